"""The shares of a call: whole, in proportion, and exactly what the call used."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.batch.sharing import divided, divided_cost, shares, with_rest
from penstock.messages import CompletionTokens, PromptTokens, Usage

COUNTS = st.integers(0, 10**9)
WEIGHTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(COUNTS, WEIGHTS)
def test_shares_are_whole_exact_and_no_further_from_their_due_than_one(total: int, weights: list[int]) -> None:
    parts = shares(total, weights)
    assert sum(parts) == total
    whole = sum(weights) or len(weights)
    for part, weight in zip(parts, weights if sum(weights) else [1] * len(weights), strict=True):
        assert abs(part * whole - total * weight) < whole


@settings(max_examples=100, deadline=None)
@given(
    st.lists(COUNTS, min_size=6, max_size=6),
    st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=20),
    st.booleans(),
)
def test_row_d9_the_tokens_of_the_items_are_exactly_those_of_the_call(
    counts: list[int], weights: list[tuple[int, int]], partial: bool
) -> None:
    prompt, completion, more, *details = counts
    cached, written, thought = details[0] % (prompt + 1), details[1] % (prompt + 1), details[2] % (completion + 1)
    usage = Usage(
        prompt,
        completion,
        prompt + completion + more,
        PromptTokens(cached, written or None),
        CompletionTokens(thought),
        partial=partial,
    )
    parts = divided(usage, [asked for asked, _ in weights], [came for _, came in weights])
    assert sum(parts, Usage()) == usage
    assert all(part.cached <= part.prompt and part.reasoning <= part.completion for part in parts)
    assert all(part.partial == partial for part in parts)


@settings(max_examples=100, deadline=None)
@given(st.decimals(0, 10**6, places=12) | st.decimals(0, 1, places=25), st.lists(COUNTS, min_size=1, max_size=20))
def test_row_d9_the_costs_of_the_items_are_exactly_that_of_the_call(cost: Decimal, tokens: list[int]) -> None:
    parts = [part for part in divided_cost(cost, [Usage(count, 0, count) for count in tokens]) if part is not None]
    assert len(parts) == len(tokens)
    assert sum(parts, Decimal(0)) == cost
    assert min(parts) >= 0


def test_a_cost_that_is_not_known_is_known_for_nobody() -> None:
    assert divided_cost(None, [Usage(1, 1, 2)] * 3) == [None] * 3


def test_a_cost_has_no_zeros_at_its_end() -> None:
    for cost in ("0", "0E-12", "0.0000", "30", "0.00002"):
        said = [str(part) for part in divided_cost(Decimal(cost), [Usage(1, 0, 1)] * 2)]
        assert said == {"30": ["15"] * 2, "0.00002": ["0.00001"] * 2}.get(cost, ["0"] * 2)
    assert [str(part) for part in divided_cost(Decimal(200), [Usage(1, 0, 1)] * 2)] == ["100", "100"]


def test_what_belongs_to_all_is_shared_equally() -> None:
    assert shares(100, with_rest([30, 10], 60)) == [60, 40]
    assert divided(Usage(10, 0, 10), [1, 1, 2], [0, 0, 0])[2].prompt == 5
