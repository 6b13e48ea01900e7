"""Hostile answers through a whole batch: each item has its outcome, however the answer is cut."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.batch.batch import Batch
from penstock.batch.items import BatchRequest, Item
from penstock.batch.outcomes import BatchResponse
from penstock.batch.schema import ItemSchema
from penstock.errors import LimitReached
from penstock.messages import ChatRequest
from penstock.run import execute, from_stream
from tests.batch.answering import Do, cuttings, told

SCHEMA = ItemSchema(Do)
REQUEST = BatchRequest.of([Item(number, {"hp": number}) for number in (1, 2, 3)])
STOP = LimitReached("no more", limit="tests")
A, B, C = (f'{{"agent_id": {key}, "do": "{do}"}}' for key, do in ((1, "a"), (2, "b"), (3, "c")))
MISS = {1: "missing", 2: "missing", 3: "missing"}
CUT = {1: "truncated", 2: "truncated", 3: "truncated"}


class Case(NamedTuple):
    answer: str
    items: dict[int, str]
    """What became of each item: ok, its fault, or both."""
    foreign: tuple[str, ...] = ()


CASES = {
    "as asked": Case(f'{{"plans": [{A}, {B}, {C}]}}', {1: "ok", 2: "ok", 3: "ok"}),
    "in another order": Case(f"[{C}, {A}, {B}]", {1: "ok", 2: "ok", 3: "ok"}),
    "fence and prose": Case(f"See [it]:\n```json\n[{A},\n{B}, {C}]\n```\n{{ok}}", {1: "ok", 2: "ok", 3: "ok"}),
    "lines": Case(f"{A}\n{B}\n{C}", {1: "ok", 2: "ok", 3: "ok"}),
    "two arrays": Case(f"[{A}] and\n[{B}, {C}]", {1: "ok", 2: "ok", 3: "ok"}),
    "map of keys": Case(f'{{"1": {A}, "2": {{"do": "b"}}, "3": {C}}}', {1: "ok", 2: "ok", 3: "ok"}),
    "keys as text": Case(f'[{{"agent_id": "1", "do": "a"}}, {B}, {C}]', {1: "ok", 2: "ok", 3: "ok"}),
    "one missing": Case(f"[{A}, {C}]", {1: "ok", 2: "missing", 3: "ok"}),
    "twice": Case(f"[{A}, {A}, {B}, {A}, {C}]", {1: "ok duplicate duplicate", 2: "ok", 3: "ok"}),
    "twice, the second one broken": Case(f'[{A}, {{"agent_id": 1}}, {B}, {C}]', {1: "ok duplicate", 2: "ok", 3: "ok"}),
    "first broken, then whole": Case(f'[{{"agent_id": 1}}, {A}, {B}, {C}]', {1: "ok schema", 2: "ok", 3: "ok"}),
    "zero, empty and null keys": Case(
        f'[{{"agent_id": 0, "do": "a"}}, {{"agent_id": "", "do": "a"}}, {{"agent_id": null, "do": "a"}}, {{}}, {B}]',
        {1: "missing", 2: "ok", 3: "missing"},
        ("foreign",) * 4,
    ),
    "keys of other kinds": Case(
        f'[{{"agent_id": true, "do": "a"}}, {{"agent_id": [1], "do": "a"}}, {{"agent_id": 1.0, "do": "a"}}, {C}]',
        {1: "missing", 2: "missing", 3: "ok"},
        ("foreign",) * 3,
    ),
    "foreign": Case(f'[{A}, {{"agent_id": 9, "do": "z"}}, {B}, {C}]', {1: "ok", 2: "ok", 3: "ok"}, ("foreign",)),
    "no objects": Case(f'[{A}, 1, "x", null, {B}, {C}]', {1: "ok", 2: "ok", 3: "ok"}, ("foreign",) * 3),
    "another type": Case(f'[{A}, {{"agent_id": 2, "do": 5}}, {C}]', {1: "ok", 2: "schema", 3: "ok"}),
    "malformed": Case(f'[{A}, {{"agent_id": 2, "do": NaN}}, {C}]', {1: "ok", 2: "malformed", 3: "ok"}),
    "half a pair": Case(f'[{A}, {{"agent_id": 2, "do": "\\ud83d"}}, {C}]', {1: "ok", 2: "malformed", 3: "ok"}),
    "malformed, whose cannot be seen": Case(
        f"[{A}, {{'agent_id': 2}}, {C}]", {1: "ok", 2: "missing", 3: "ok"}, ("malformed",)
    ),
    "quote not closed": Case(f'[{{"agent_id": 1, "do": "a}}, {B}, {C}]', {1: "malformed", 2: "ok", 3: "ok"}),
    "deep": Case(f'[{A}, {{"agent_id": 2, "do": {"[" * 70}{"]" * 70}}}, {C}]', {1: "ok", 2: "malformed", 3: "ok"}),
    "cut in an element": Case(f"[{A}, {B[:-3]}", {1: "ok", 2: "truncated", 3: "truncated"}),
    "cut before its key": Case(f"[{A}, {B[:8]}", {1: "ok", 2: "truncated", 3: "truncated"}),
    "cut before its last brace": Case(f"[{A}, {B}, {C[:-1]}", {1: "ok", 2: "ok", 3: "truncated"}),
    "cut between": Case(f'{{"plans": [{A}, ', {1: "ok", 2: "truncated", 3: "truncated"}),
    "array left open": Case(f"[{A}, {B}, {C}", {1: "ok", 2: "ok", 3: "ok"}),
    "cut in an escape": Case(f'[{A}, {{"agent_id": 2, "do": "\\u00', {1: "ok", 2: "truncated", 3: "truncated"}),
    "cut in a foreign one": Case(f'[{A}, {{"agent_id": 9, "do": "z', {1: "ok", 2: CUT[2], 3: CUT[3]}, ("foreign",)),
    "cut in a second one": Case(f"[{A}, {B}, {C}, {A[:-4]}", {1: "ok duplicate", 2: "ok", 3: "ok"}),
    "escapes": Case(f'[{{"agent_id": 1, "do": "}}]\\"\\ud83d\\ude00"}}, {B}, {C}]', {1: "ok", 2: "ok", 3: "ok"}),
    "prose alone": Case("I cannot do that [sorry].", MISS),
    "nothing": Case("", MISS),
}


def asked(pieces: list[str]) -> BatchResponse:
    """What becomes of the items when their first call is answered so, and no other one is made."""
    return asyncio.run(once(pieces))


async def once(pieces: list[str]) -> BatchResponse:
    return await execute(Batch(told(pieces, STOP), SCHEMA), REQUEST)


def became(response: BatchResponse) -> dict[Any, str]:
    return {
        outcome.id: " ".join(["ok"] * outcome.ok + [fault.kind for fault in outcome.faults if fault.call == 1])
        for outcome in response.outcomes
    }


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_row_d5_every_item_has_its_outcome_under_every_cutting(case: Case) -> None:
    for pieces in cuttings(case.answer):
        response = await once(pieces)
        assert became(response) == case.items, pieces
        assert tuple(fault.kind for fault in response.foreign) == case.foreign, pieces
        for outcome in response.outcomes:
            assert (outcome.tier, outcome.value is not None) == (("batch", True) if outcome.ok else ("", False))
            assert outcome.value is None or (outcome.value.agent_id, len(outcome.value.do)) >= (outcome.id, 1)
            assert all(fault.message and fault.said in case.answer for fault in outcome.faults)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([A, B, C, B[:9], '{"agent_id": 9, "do": "z"}', "{}", "7", "nul", "]", '"', "\n"])),
    st.data(),
)
def test_row_d4_no_outcome_depends_on_how_the_answer_is_cut(parts: list[str], data: st.DataObject) -> None:
    answer = "[" + ", ".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    whole, cut = asked([answer]), asked(pieces)
    assert became(cut) == became(whole)
    assert Counter(fault.kind for fault in cut.foreign) == Counter(fault.kind for fault in whole.foreign)
    assert [outcome.value for outcome in cut.outcomes] == [outcome.value for outcome in whole.outcomes]


async def test_of_an_answer_without_end_the_faults_are_few() -> None:
    response = await once([f"[{A}", *[f", {A}"] * 5000])
    assert response.outcomes[0].value == Do(1, "a")
    assert len(response.outcomes[0].faults) == 1000


async def test_a_call_about_one_item_blames_it_for_what_names_nobody() -> None:
    response = await execute(Batch(told(["[{'agent_id': 1}]"], STOP), SCHEMA), BatchRequest.of([Item(1, "x")]))
    assert became(response) == {1: "malformed"}
    assert response.foreign == ()


async def test_row_d6_an_element_of_ten_megabytes_is_refused_and_what_follows_is_read() -> None:
    long = '{"agent_id": 2, "do": "' + "x" * 10_000_000 + '"}'
    answer = f"[{A}, {long}, {C}]"
    response = await once([answer[start : start + 65_536] for start in range(0, len(answer), 65_536)])
    assert became(response) == {1: "ok", 2: "malformed", 3: "ok"}
    assert len(response.outcomes[1].faults[0].said) == 200


async def test_row_d6_an_answer_without_end_is_read_no_further_than_its_cap() -> None:
    left: list[int] = []

    async def generate(_: ChatRequest) -> AsyncGenerator[str, None]:
        if left:
            raise STOP
        yield f"[{A}]"
        for number in range(200):
            left.append(number)
            yield "x" * 1_000_000

    response = await execute(Batch(from_stream(generate), SCHEMA), REQUEST)
    assert len(left) == 64
    assert became(response)[1] == "ok"
    assert response.outcomes[1].faults[0].message.startswith("BadAnswer")
