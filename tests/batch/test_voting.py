"""The same items asked for in several orders: which orders, whose value wins, and what all of it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from itertools import permutations
from math import factorial
from typing import Any

import msgspec
import pydantic
import pytest

from penstock.batch.batch import Batch
from penstock.batch.fallbacks import Fallback
from penstock.batch.items import BatchRequest, Item
from penstock.batch.outcomes import BatchResponse, FaultKind, ItemFault, ItemOutcome
from penstock.batch.planner import Planner
from penstock.batch.voting import Votes, Voting, orders
from penstock.errors import UnknownName, UsageError
from penstock.events import Item as Told
from penstock.messages import ChatRequest, Usage
from penstock.run import Run, execute
from penstock.testing import Heard, ScriptedLlm
from tests.batch.answering import keys

pytestmark = pytest.mark.asyncio

ABC = [("a", "x"), ("b", "y"), ("c", "z")]


class Label(msgspec.Struct):
    label: str
    why: str = ""


class Model(pydantic.BaseModel):
    label: str


class Ballots:
    """A batch whose n-th call gives the n-th value of each item (None: no value), told in the order asked for."""

    def __init__(self, by_item: dict[Any, Sequence[Any]], *, cost: Decimal | None = Decimal("0.1")) -> None:
        self.asked: list[list[Any]] = []
        self._by_item, self._cost = by_item, cost

    async def __call__(self, request: BatchRequest, run: Run, /) -> BatchResponse:
        number = len(self.asked)
        self.asked.append([item.id for item in request.items])
        outcomes = [self._outcome(item.id, self._by_item[item.id][number], number) for item in request.items]
        for outcome in outcomes:
            await run.emit(Told(outcome))
        return BatchResponse(tuple(outcomes))

    def _outcome(self, item: Any, value: Any, number: int) -> ItemOutcome:
        fault = ItemFault(FaultKind.MISSING, f"vote {number + 1}", 1)
        found: dict[str, Any] = {"faults": (fault,)} if value is None else {"value": value, "tier": "batch"}
        if isinstance(value, tuple):
            found = {"value": value[0], "tier": value[1]}
        return ItemOutcome(id=item, attempts=1, usage=Usage(3, 1, 4), cost=self._cost, **found)


async def votes_on(by_item: dict[Any, Sequence[Any]], **options: Any) -> Votes:
    count = len(next(iter(by_item.values())))
    return await Voting(Ballots(by_item), votes=count, **options).run([(item, None) for item in by_item])


async def test_the_majority_of_each_item_wins() -> None:
    votes = await votes_on({1: "aab", 2: "bab", 3: "ccc"})
    assert [votes.get_plan(item) for item in (1, 2, 3)] == ["a", "b", "c"]
    assert votes.agreements == (2 / 3, 2 / 3, 1.0)
    assert votes.agreement(3) == 1.0
    with pytest.raises(UnknownName):
        votes.agreement(4)


@pytest.mark.parametrize(
    ("given", "value", "share"),
    [("ab", "a", 0.5), ("ba", "b", 0.5), ("abc", "a", 1 / 3), ("cabba", "a", 0.4), ("cbaab", "b", 0.4)],
)
async def test_of_a_tie_the_value_wins_that_was_given_first(given: str, value: str, share: float) -> None:
    votes = await votes_on({1: given})
    assert (votes.get_plan(1), votes.agreement(1)) == (value, share)


async def test_a_vote_without_a_value_lowers_the_agreement() -> None:
    votes = await votes_on({1: [None, "b", "b", None], 2: [None] * 4})
    assert (votes.get_plan(1), votes.agreement(1)) == ("b", 0.5)
    assert (votes.outcomes[1].ok, votes.agreement(2)) == (False, 0.0)
    assert [fault.message for fault in votes.outcomes[0].faults] == ["vote 1", "vote 4"]


async def test_what_a_fallback_gave_is_no_vote_and_stands_where_there_is_none() -> None:
    safe = ("safe", "wait")
    votes = await votes_on({1: [safe, "b", safe], 2: [None, safe, None]})
    assert [(one.value, one.tier) for one in votes.outcomes] == [("b", "batch"), safe]
    assert votes.agreements == (1 / 3, 0.0)


async def test_usage_and_cost_are_those_of_all_votes() -> None:
    votes = await votes_on({1: "aab", 2: ["c", None, "c"]})
    assert [(one.usage.total, one.cost, one.attempts) for one in votes.outcomes] == [(12, Decimal("0.3"), 3)] * 2
    assert (votes.usage.total, votes.cost) == (24, Decimal("0.6"))
    unknown = await Voting(Ballots({1: "aa"}, cost=None), votes=2).run([(1, None)])
    assert unknown.cost is None


async def test_values_are_equal_when_their_json_is() -> None:
    votes = await votes_on({1: [{"a": 1, "b": [2]}, {"b": [2], "a": 1}, {"a": 1}], 2: [Model(label=x) for x in "xyy"]})
    assert votes.agreements == (2 / 3, 2 / 3)
    assert votes.get_plan(2) == Model(label="y")


async def test_a_part_of_the_value_may_be_voted_on_and_the_first_of_the_majority_is_given() -> None:
    given = [Label("a", "one"), Label("b", "two"), Label("b", "three")]
    votes = await votes_on({1: given}, by=lambda value: value.label)
    assert (votes.get_plan(1), votes.agreement(1)) == (Label("b", "two"), 2 / 3)


async def test_outcomes_are_told_once_decided_and_in_the_order_of_the_ids() -> None:
    heard = Heard()
    voting = Voting(Ballots({"b": "xy", 10: "xx", 2: "yy"}), votes=2)
    request = BatchRequest((Item("b", None), Item(10, None), Item(2, None)))
    votes = await execute(voting, request, heard)
    told = [event for event in heard.events if isinstance(event, Told)]
    assert [event.value for event in told if not event.path] == list(votes.outcomes)
    assert [outcome.id for outcome in votes.outcomes] == [2, 10, "b"]
    assert {event.path for event in told} == {"", "vote-1", "vote-2"}


async def test_a_seed_alone_decides_the_orders() -> None:
    items: dict[Any, Any] = dict.fromkeys(range(8), "aaaaa")
    asked = []
    for seed in (1, 1, 2):
        ballots = Ballots(items)
        await Voting(ballots, votes=5, seed=seed).run([(n, None) for n in sorted(items, key=lambda n: -n * seed)])
        asked.append(ballots.asked)
    assert asked[0] == asked[1] != asked[2]
    assert asked[0][0] == [*range(8)]
    assert len({tuple(order) for order in asked[0]}) == 5


@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("count", [1, 2, 7, 30])
async def test_no_order_comes_twice_before_all_have_come(size: int, count: int) -> None:
    items = [Item(n, None) for n in range(size)]
    found = [*orders(items, count, 7)]
    assert len(found) == count
    assert found[0] == tuple(items)
    assert len(set(found[: factorial(size)])) == min(count, factorial(size))
    assert set(found) <= set(permutations(items))


def by_place(request: ChatRequest) -> str:
    """What a model says that prefers the first of a list, whatever it is."""
    names = keys(request)
    plans = [{"agent_id": name, "value": {"label": "first" if name == names[0] else name}} for name in names]
    return json.dumps({"plans": plans})


@pytest.mark.parametrize("seed", range(3))
async def test_a_real_batch_is_asked_in_each_order_and_the_place_in_the_list_is_outvoted(seed: int) -> None:
    llm = ScriptedLlm(by_place)
    votes = await Voting(Batch(llm, Label), votes=5, seed=seed).run(ABC)
    once = await Batch(ScriptedLlm(by_place), Label).run(ABC)
    assert [outcome.value.label for outcome in once] == ["first", "b", "c"]
    asked = [keys(request) for request in llm.requests]
    assert (len(asked), asked[0], len({tuple(order) for order in asked})) == (5, ["a", "b", "c"], 5)
    firsts = [order[0] for order in asked]
    expected = ["first" if firsts.count(name) > 2 else name for name in "abc"]
    assert [outcome.value.label for outcome in votes.outcomes] == expected
    assert votes.usage.prompt == sum(len(request.messages) for request in llm.requests)


async def test_a_real_batch_that_is_split_shares_calls_in_other_ways() -> None:
    llm = ScriptedLlm(by_place)
    fallback = Fallback(name="safe", default={"label": "safe"})
    voting = Voting(Batch(llm, Label, planner=Planner(2), fallbacks=[fallback]), votes=3)
    votes = await voting.run([*ABC, ("d", "w")])
    assert len(llm.requests) == 6
    assert {len(keys(request)) for request in llm.requests} == {2}
    assert all(outcome.ok for outcome in votes.outcomes)


async def test_a_batch_that_raises_ends_the_voting() -> None:
    async def batch(request: BatchRequest, run: Run) -> BatchResponse:
        raise UsageError(run.path)

    with pytest.raises(UsageError, match="vote-1"):
        await Voting(batch).run(ABC)


async def test_nobody_and_nothing_to_vote_on() -> None:
    assert await Voting(Ballots({})).run([]) == Votes()
    with pytest.raises(UsageError, match="votes=0"):
        Voting(Ballots({}), votes=0)
