"""Items that several callers wait for: who shares a call, and that each caller gets its own outcome, once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Iterable
from contextvars import ContextVar
from decimal import Decimal
from typing import Any

import pytest

from penstock.batch.batch import Batch
from penstock.batch.items import BatchRequest, Item
from penstock.batch.outcomes import BatchResponse, ItemOutcome
from penstock.batch.waiting import Waiting
from penstock.errors import UsageError
from penstock.events import Item as Told
from penstock.events import Used
from penstock.messages import ChatRequest, Usage, text_of
from penstock.run import Principal, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm

pytestmark = pytest.mark.asyncio

LONG_S = 30.0


class Calls:
    """A batch that gives back each item's data, and keeps what it was asked; a call goes on when `gate` lets it."""

    def __init__(self, *, open_gate: bool = True, turns: random.Random | None = None) -> None:
        self.asked: list[list[Any]] = []
        self.requests: list[BatchRequest] = []
        self.running = self.most = self.ended = 0
        self.gate = asyncio.Event()
        self.told = asyncio.Event()
        self._turns = turns
        if open_gate:
            self.gate.set()

    async def __call__(self, request: BatchRequest, run: Run, /) -> BatchResponse:
        self.asked.append([item.id for item in request.items])
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._answer(request, run)
        finally:
            self.running -= 1

    async def _answer(self, request: BatchRequest, run: Run) -> BatchResponse:
        outcomes: list[ItemOutcome] = []
        for item in request.items:
            if self._turns is not None:
                await turns(self._turns)
            outcome = ItemOutcome(id=item.id, value=item.data, tier="batch", attempts=1)
            await run.emit(Told(outcome))
            outcomes.append(outcome)
            self.told.set()
            await self.gate.wait()
        for _ in range(3):  # what comes after the last value
            await asyncio.sleep(0)
        self.ended += 1
        used = Usage(10, 2, 12)
        return BatchResponse(tuple(ItemOutcome(id=o.id, value=o.value, tier="batch", usage=used) for o in outcomes))


async def turns(chance: random.Random, most: int = 3) -> None:
    for _ in range(chance.randrange(most + 1)):
        await asyncio.sleep(0)


async def values(waiting: Waiting, items: Iterable[Any]) -> list[Any]:
    return [outcome.value for outcome in await asyncio.gather(*map(waiting.submit, items))]


async def until(condition: Awaitable[Any]) -> None:
    async with asyncio.timeout(5):
        await condition


async def test_row_d7_those_that_come_together_share_calls_of_the_size() -> None:
    async with Waiting(calls := Calls(), size=4, linger_s=LONG_S) as waiting:
        assert await values(waiting, ((n, f"data {n}") for n in range(10))) == [f"data {n}" for n in range(10)]
    assert calls.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_row_d7_one_alone_goes_alone_after_the_linger() -> None:
    async with Waiting(calls := Calls(), linger_s=0.05) as waiting:
        task = asyncio.create_task(waiting.submit((1, "a")))
        await asyncio.sleep(0.02)
        assert calls.asked == []
        await until(task)
    assert calls.asked == [[1]]


async def test_a_second_one_ends_the_linger_of_the_first() -> None:
    async with Waiting(calls := Calls(), linger_s=LONG_S) as waiting:
        first = asyncio.create_task(waiting.submit((2, "b")))
        await asyncio.sleep(0.01)
        assert calls.asked == []
        await until(asyncio.gather(first, waiting.submit((1, "a"))))
    assert calls.asked == [[1, 2]]


async def test_while_all_places_are_taken_items_gather() -> None:
    calls = Calls(open_gate=False)
    async with Waiting(calls, size=5, linger_s=0.001, concurrent=1) as waiting:
        tasks = [asyncio.create_task(waiting.submit((0, None)))]
        await until(calls.told.wait())
        for number in range(1, 8):
            tasks.append(asyncio.create_task(waiting.submit((number, None))))
            await asyncio.sleep(0.002)
        assert calls.asked == [[0]]
        calls.gate.set()
        await until(asyncio.gather(*tasks))
    assert calls.asked == [[0], [1, 2, 3, 4, 5], [6, 7]]


async def test_row_d7_groups_and_principals_never_share_a_call() -> None:
    async def ask(waiting: Waiting, item: Item, name: str) -> ItemOutcome:
        return await execute(waiting, item, principal=Principal(name))

    async with Waiting(calls := Calls(), linger_s=0.001) as waiting:
        items = [Item(number, None, f"group {number % 2}") for number in range(8)]
        await asyncio.gather(*(ask(waiting, item, "ann" if n < 4 else "bob") for n, item in enumerate(items)))
    assert sorted(calls.asked) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert all(len({item.group for item in request.items}) == 1 for request in calls.requests)


async def test_the_group_that_has_waited_longest_goes_first() -> None:
    calls = Calls(open_gate=False)
    async with Waiting(calls, size=2, linger_s=LONG_S, concurrent=1) as waiting:
        arrivals = [(0, "b"), (1, "b"), (2, "c"), (3, "b"), (4, "a"), (5, "c"), (6, "b"), (7, "a")]
        tasks = [asyncio.create_task(waiting.submit(Item(n, n, group))) for n, group in arrivals]
        await until(calls.told.wait())
        calls.gate.set()
        await until(asyncio.gather(*tasks))
    assert calls.asked == [[0, 1], [2, 5], [3, 6], [4, 7]]


async def test_a_call_runs_in_the_context_of_no_caller() -> None:
    of: ContextVar[str] = ContextVar("of", default="nobody")
    seen: list[str] = []

    async def batch(request: BatchRequest, run: Run) -> BatchResponse:
        seen.append(of.get())
        return BatchResponse(tuple(ItemOutcome(id=item.id, tier="batch") for item in request.items))

    async with Waiting(batch, linger_s=0) as waiting:
        of.set("a caller")
        await waiting.submit((1, 1))
    assert seen == ["nobody"]


async def test_a_call_is_made_on_behalf_of_who_waits() -> None:
    seen: list[str] = []

    async def batch(request: BatchRequest, run: Run) -> BatchResponse:
        seen.append(run.principal.name)
        return BatchResponse(tuple(ItemOutcome(id=item.id, tier="batch") for item in request.items))

    async with Waiting(batch, linger_s=0) as waiting:
        await execute(waiting, Item(1, None), principal=Principal("ann"))
    assert seen == ["ann"]


async def test_two_with_one_id_are_no_company_for_each_other() -> None:
    async with Waiting(calls := Calls(), linger_s=LONG_S) as waiting:
        twice = [asyncio.ensure_future(waiting.submit((1, number))) for number in range(2)]
        await asyncio.sleep(0.005)
        assert calls.asked == []
        await waiting.submit((2, 0))
        assert calls.asked == [[1, 2]]
        await twice[0]
        twice[1].cancel()


async def test_items_with_the_same_id_go_in_different_calls() -> None:
    async with Waiting(calls := Calls(), linger_s=0.001) as waiting:
        assert await values(waiting, [(1, "a"), (2, "b"), (1, "c"), ("1", "d")]) == ["a", "b", "c", "d"]
    assert [[item.data for item in request.items] for request in calls.requests] == [["a", "b", "d"], ["c"]]


@pytest.mark.parametrize("item", [(True, 1), ("", 1), (None, 1), 7, {"no": "id"}, (3, object())])
async def test_a_bad_item_is_refused_and_harms_nobody(item: Any) -> None:
    async with Waiting(calls := Calls(), linger_s=LONG_S) as waiting:
        found = await asyncio.gather(*map(waiting.submit, [(1, "a"), item, (2, "b")]), return_exceptions=True)
    assert isinstance(found[1], UsageError)
    assert calls.asked == [[1, 2]]


async def test_who_leaves_before_the_call_takes_its_item_along() -> None:
    async with Waiting(calls := Calls(), linger_s=LONG_S) as waiting:
        leaves = asyncio.create_task(waiting.submit((2, "b")))
        await asyncio.sleep(0.001)
        leaves.cancel()
        await asyncio.wait([leaves])
        assert await values(waiting, [(1, "a"), (3, "c")]) == ["a", "c"]
    assert leaves.cancelled()
    assert calls.asked == [[1, 3]]


async def test_who_leaves_during_the_call_harms_nobody() -> None:
    calls = Calls(open_gate=False)
    async with Waiting(calls, linger_s=LONG_S) as waiting:
        tasks = [asyncio.create_task(waiting.submit((n, n))) for n in range(4)]
        await until(calls.told.wait())
        tasks[0].cancel()
        tasks[3].cancel()
        await asyncio.sleep(0)
        calls.gate.set()
        await asyncio.wait(tasks)
        assert [task.result().value for task in tasks[1:3]] == [1, 2]
    assert (len(calls.asked), calls.ended) == (1, 1)


async def test_case_01_when_all_have_left_the_call_is_cancelled() -> None:
    calls = Calls(open_gate=False)
    async with Waiting(calls, linger_s=LONG_S) as waiting:
        tasks = [asyncio.create_task(waiting.submit((n, n))) for n in range(3)]
        await until(calls.told.wait())
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0.01)
        assert (calls.running, calls.ended) == (0, 0)
        calls.gate.set()
        assert await values(waiting, [(1, "again"), (2, "again")]) == ["again"] * 2


async def test_row_d4_an_outcome_is_told_as_it_closes_and_returned_with_its_share() -> None:
    calls = Calls(open_gate=False)
    async with Waiting(calls, linger_s=LONG_S) as waiting:
        other = asyncio.create_task(waiting.submit((2, "b")))
        async with execute_stream(waiting, Item(1, "a")) as execution:
            first = await anext(aiter(execution))
            assert isinstance(first, Told)
            assert (first.value.id, first.value.value, first.value.usage) == (1, "a", Usage())
            assert not other.done()
            calls.gate.set()
            used = await anext(execution)
            assert isinstance(used, Used)
            assert (used.usage, used.cost) == (Usage(10, 2, 12), Decimal(0))
            await anext(execution)
        assert execution.result.usage.total == execution.usage.total == 12
        assert (await other).value == "b"


async def test_early_callers_go_on_and_the_call_ends_all_the_same() -> None:
    calls = Calls(open_gate=False)
    async with Waiting(calls, linger_s=LONG_S, early=True) as waiting:
        tasks = [asyncio.create_task(waiting.submit((n, n))) for n in range(2)]
        await until(tasks[0])
        assert not tasks[1].done()
        calls.gate.set()
        await until(tasks[1])
    assert (calls.running, calls.ended) == (0, 1)


async def test_a_batch_that_raises_fails_its_own_callers_only() -> None:
    async def batch(request: BatchRequest, run: Run) -> BatchResponse:
        if request.items[0].group:
            raise UsageError("no such model")
        return BatchResponse(tuple(ItemOutcome(id=item.id, tier="batch") for item in request.items))

    async with Waiting(batch, linger_s=0) as waiting:
        items = [Item(n, n, "x" if n > 1 else "") for n in range(4)]
        found = await asyncio.gather(*map(waiting.submit, items), return_exceptions=True)
    assert [isinstance(one, UsageError) for one in found] == [False, False, True, True]


async def test_an_item_without_a_value_is_an_outcome_of_its_own_caller() -> None:
    def answer(request: ChatRequest) -> str:
        lines = [json.loads(line) for line in text_of(request.messages[-1]).splitlines() if line[:1] == "{"]
        plans = [{"agent_id": line["agent_id"], "steps": []} for line in lines if line["agent_id"] != 2]
        return json.dumps({"plans": plans})

    llm = ScriptedLlm(answer)
    async with Waiting(Batch(llm), linger_s=LONG_S) as waiting:
        found = await asyncio.gather(*map(waiting.submit, [(1, "a"), (2, "b"), (3, "c")]))
    assert [outcome.ok for outcome in found] == [True, False, True]
    assert found[1].faults
    used = sum((outcome.usage for outcome in found), Usage())
    assert used.prompt == sum(len(request.messages) for request in llm.requests)


async def test_closing_sends_who_waits_and_refuses_who_comes_later() -> None:
    waiting = Waiting(calls := Calls(), linger_s=LONG_S)
    task = asyncio.create_task(waiting.submit((1, "a")))
    await asyncio.sleep(0)
    await until(waiting.aclose())
    assert task.done()
    assert task.result().value == "a"
    assert calls.asked == [[1]]
    with pytest.raises(UsageError, match="closed"):
        await waiting.submit((2, "b"))
    await waiting.aclose()


async def test_an_error_in_the_block_stops_calls_and_turns_away_who_waits() -> None:
    calls = Calls(open_gate=False)
    with pytest.raises(ZeroDivisionError):
        async with Waiting(calls, size=2, linger_s=LONG_S, concurrent=1) as waiting:
            heard = [Heard() for _ in range(3)]
            tasks = [asyncio.create_task(execute(waiting, Item(n, n), heard[n])) for n in range(3)]
            await until(calls.told.wait())
            raise ZeroDivisionError
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert calls.running == 0
    assert isinstance(ends[0], ItemOutcome)  # its value had come
    assert [type(end) for end in ends[1:]] == [UsageError, UsageError]
    assert len(asyncio.all_tasks()) == 1


async def test_closing_that_is_cancelled_stops_what_runs() -> None:
    waiting = Waiting(calls := Calls(open_gate=False), linger_s=0)
    task = asyncio.create_task(waiting.submit((1, "a")))
    await until(calls.told.wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waiting.aclose()
    await until(task)
    assert (calls.running, calls.ended) == (0, 0)


@pytest.mark.parametrize("limits", [{"size": 0}, {"concurrent": 0}, {"linger_s": -1}])
async def test_limits_that_let_nothing_through_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="let nothing through"):
        Waiting(Calls(), **limits)


async def one_caller(waiting: Waiting, item: Item, early: bool, chance: random.Random) -> ItemOutcome:
    await turns(chance, 20)
    task = asyncio.create_task(waiting.submit(item))
    if early:
        await turns(chance, 12)
        task.cancel()
    return await task


@pytest.mark.parametrize("seed", range(40))
async def test_in_any_interleaving_each_gets_its_own_outcome_once(seed: int) -> None:
    chance = random.Random(seed)
    calls = Calls(turns=random.Random(seed + 1))
    size, places = chance.randint(1, 6), chance.randint(1, 3)
    items = [Item(chance.randrange(25), f"own {n}", chance.choice("ab")) for n in range(40)]
    leaves = [chance.random() < 0.3 for _ in items]
    early = chance.random() < 0.5
    async with Waiting(calls, size=size, linger_s=0.002, concurrent=places, early=early) as waiting:
        pairs = zip(items, leaves, strict=True)
        found = await asyncio.gather(
            *(one_caller(waiting, item, left, chance) for item, left in pairs), return_exceptions=True
        )
    for item, left, outcome in zip(items, leaves, found, strict=True):
        if isinstance(outcome, ItemOutcome):
            assert (outcome.id, outcome.value) == (item.id, item.data)
        else:
            assert left
            assert isinstance(outcome, asyncio.CancelledError)
    asked = Counter(item.data for request in calls.requests for item in request.items)
    assert set(asked.values()) <= {1}
    assert {item.data for item, left in zip(items, leaves, strict=True) if not left} <= set(asked)
    assert calls.most <= places
    assert all(len(request) <= size for request in calls.requests)
    assert all(len({item.group for item in request.items}) == 1 for request in calls.requests)
    assert not waiting._lines
    assert not waiting._flights
