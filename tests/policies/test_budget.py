"""`budget`: how much is spent at most, who waits for room, and what counts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import LimitReached, UsageError
from penstock.events import Text, Used
from penstock.messages import Usage
from penstock.policies import Policy
from penstock.policies import budget as budget_module
from penstock.policies.budget import budget
from penstock.run import Executor, Run, execute
from penstock.server.wire import answer_of
from tests.policies.conftest import Clock


class Costs:
    """An executor that uses as many tokens as its request says, and remembers what was spent and how many ran."""

    def __init__(self) -> None:
        self.spent = self.inside = self.most = self.calls = 0

    async def __call__(self, request: int, run: Run, /) -> int:
        self.calls += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            self.spent += request
            await run.emit(Used(usage=Usage(request, 0, request)))
            await asyncio.sleep(0)
            return request
        finally:
            self.inside -= 1


async def together(executor: Executor[Any, Any], requests: list[int]) -> list[LimitReached]:
    """The refusals of calls that are made at once."""
    ended = await asyncio.gather(*(execute(executor, one) for one in requests), return_exceptions=True)
    assert all(isinstance(one, int | LimitReached) for one in ended)
    return [one for one in ended if isinstance(one, LimitReached)]


def exactly(request: int) -> int:
    return request


@pytest.mark.parametrize("estimate", [None, exactly])
async def test_case_16_twenty_calls_at_once_spend_the_budget_and_at_most_one_call_more(
    estimate: Callable[[int], int] | None,
) -> None:
    executor = budget(100, estimate=estimate)(costs := Costs())
    refused = await together(executor, [30] * 20)
    assert (costs.spent, len(refused)) == (120, 16)
    assert costs.most > 1
    for error in refused:
        assert (error.limit, error.retryable, error.retry_after) == ("budget", False, None)
        assert str(error) == "the budget of 100 is used up: 120 is spent"
    answer = answer_of(refused[0])
    assert (answer.status, answer.body["error"]["code"]) == (429, "budget_exhausted")


async def test_until_a_cost_is_known_calls_go_one_at_a_time() -> None:
    executor = budget(1000)(costs := Costs())
    calls = [asyncio.ensure_future(execute(executor, 10)) for _ in range(20)]
    while not costs.spent:
        assert costs.most <= 1
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert costs.most > 10


@pytest.mark.parametrize("failing", [True, False])
async def test_calls_that_cost_nothing_are_made_together(*, failing: bool) -> None:
    inside = most = 0

    async def works(request: int, run: Run) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        if failing:
            raise OSError("down")
        return request

    executor = budget(1000)(works)
    await asyncio.gather(*(execute(executor, 0) for _ in range(10)), return_exceptions=True)
    assert most == 9


async def test_one_that_turns_out_to_cost_something_holds_up_the_next_at_once() -> None:
    go, shared = asyncio.Event(), budget(100)

    async def waits(request: int, run: Run) -> int:
        await run.emit(Used(usage=Usage(request, 0, request)))
        await go.wait()
        return request

    executor = shared(costs := Costs())
    await execute(executor, 0)
    first = asyncio.ensure_future(execute(shared(waits), 60))
    await asyncio.sleep(0.01)
    await together(executor, [30] * 5)
    assert costs.spent == 60
    go.set()
    assert await first == 60


async def test_a_call_waits_while_running_ones_may_need_the_room_and_is_let_in_when_they_did_not() -> None:
    executor = budget(100, estimate=lambda _: 60)(costs := Costs())
    assert await together(executor, [5] * 10) == []
    assert (costs.spent, costs.most) == (50, 2)


async def test_what_a_running_call_has_told_is_not_reserved_twice() -> None:
    go = asyncio.Event()

    async def spends(request: int, run: Run) -> int:
        await run.emit(Used(usage=Usage(request, 0, request)))
        await go.wait()
        return request

    executor = budget(100, estimate=exactly)(spends)
    calls = [asyncio.ensure_future(execute(executor, 60)) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(LimitReached, match="120 is spent"):
        await execute(executor, 1)
    go.set()
    assert await asyncio.gather(*calls) == [60, 60]


async def test_a_call_that_did_not_finish_says_too_little_of_what_one_costs() -> None:
    shared, costs = budget(100), Costs()
    first = asyncio.ensure_future(execute(shared(costs), 1))
    while not costs.spent:
        await asyncio.sleep(0)
    first.cancel()
    await together(shared(costs), [60] * 5)
    assert costs.most == 1


async def test_case_16_refused_calls_consume_nothing() -> None:
    executor = budget(100)(costs := Costs())
    await execute(executor, 100)
    for _ in range(100):
        assert len(await together(executor, [1])) == 1
    assert (costs.calls, costs.spent) == (1, 100)


async def test_what_was_told_counts_however_the_call_ends() -> None:
    executor = budget(100)(works := Costs())

    async def breaks(request: int, run: Run) -> int:
        await run.child("part").emit(Used(usage=Usage(request, 0, request)))
        if request == 40:
            raise OSError("after use")
        await asyncio.Event().wait()
        return request

    shared = budget(100)
    failing, after = shared(breaks), shared(works)
    with pytest.raises(OSError, match="after use"):
        await execute(failing, 40)
    call = asyncio.ensure_future(execute(failing, 50))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert await execute(after, 10) == 10
    with pytest.raises(LimitReached, match="100 is spent"):
        await execute(after, 10)
    assert await execute(executor, 1) == 1


async def test_one_who_waits_and_leaves_holds_up_nobody() -> None:
    executor = budget(100)(costs := Costs())
    calls = [asyncio.ensure_future(execute(executor, 10)) for _ in range(5)]
    await asyncio.sleep(0)
    for call in calls[1:4]:
        call.cancel()
    await asyncio.wait(calls)
    assert [call.cancelled() for call in calls] == [False, True, True, True, False]
    assert costs.calls == 2


async def test_one_who_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    executor, go = budget(100), asyncio.Event()

    async def waits(request: int, run: Run) -> int:
        await go.wait()
        return request

    calls = [asyncio.ensure_future(execute(executor(waits), number)) for number in range(3)]
    await asyncio.sleep(0)
    go.set()
    while not calls[0].done():
        await asyncio.sleep(0)
    calls[1].cancel()
    assert await asyncio.wait_for(calls[2], 1) == 2


async def test_those_who_wait_are_refused_as_soon_as_all_is_spent() -> None:
    go = asyncio.Event()

    async def spends(request: int, run: Run) -> int:
        await asyncio.sleep(0.01)
        await run.emit(Used(usage=Usage(request, 0, request)))
        await go.wait()
        return request

    executor = budget(10)(spends)
    calls = [asyncio.ensure_future(execute(executor, 10)) for _ in range(3)]
    await asyncio.wait(calls[1:], timeout=1)
    assert [isinstance(call.exception(), LimitReached) for call in calls[1:]] == [True, True]
    go.set()
    assert await calls[0] == 10


async def test_a_window_begins_the_budget_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock.of(monkeypatch, budget_module)
    executor = budget(100, window_s=60)(Costs())
    for _ in range(3):
        await execute(executor, 100)
        clock.now += 45
        with pytest.raises(LimitReached) as caught:
            await execute(executor, 1)
        assert caught.value.retry_after == 15
        clock.now += 15


async def test_a_call_that_a_limit_further_in_refused_says_nothing_of_what_one_costs() -> None:
    shared, costs = budget(100), Costs()
    with pytest.raises(LimitReached, match="9 calls"):
        await execute(shared(refuses), 1)
    await together(shared(costs), [60] * 5)
    assert costs.most == 1


async def refuses(request: int, run: Run) -> int:
    raise LimitReached("9 calls are running already", limit="concurrent")


async def test_budgets_of_calls_that_have_ended_leave_nothing_in_the_task_that_made_them() -> None:
    before = len(copy_context())
    for ends in (3, 50):
        with suppress(LimitReached):
            await execute(budget(ends)(budget(ends)(Costs())), 10)
    assert len(copy_context()) == before


async def test_a_call_may_end_in_another_context_than_it_began_in() -> None:
    async def paused(request: int, run: Run, /) -> int:
        await asyncio.sleep(0)
        return request

    async def moved(request: int, run: Run, /) -> None:
        call: Any = budget(100)(paused)(request, run)
        copy_context().run(call.send, None)
        with pytest.raises(StopIteration, match="7"):
            call.send(None)

    await execute(moved, 7)


async def test_a_call_inside_another_of_the_same_budget_counts_once_and_is_stopped_too() -> None:
    shared, costs = budget(100), Costs()
    inner = shared(costs)

    async def agent(request: int, run: Run) -> int:
        for _ in range(request):
            await inner(30, run)
            await asyncio.gather(inner(10, run), inner(10, run))
        return request

    with pytest.raises(LimitReached, match="100 is spent"):
        await asyncio.wait_for(execute(shared(agent), 3), 1)
    assert costs.spent == 100


async def test_executors_with_the_same_policy_share_it() -> None:
    shared = budget(10)
    await execute(shared(Costs()), 10)
    assert len(await together(shared(Costs()), [1])) == 1


@pytest.mark.parametrize(("amount", "window_s"), [(0, None), (-1, None), (1, 0.0), (float("nan"), None)])
def test_a_budget_that_lets_nothing_through_is_refused(amount: float, window_s: float | None) -> None:
    with pytest.raises(UsageError, match="give more than 0"):
        budget(amount, window_s=window_s)


@settings(max_examples=80, deadline=None)
@given(
    amount=st.integers(1, 300),
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
)
def test_case_16_no_order_of_calls_and_cancels_spends_more_than_one_call_too_much(
    amount: int, costs: list[int], seed: int
) -> None:
    async def check(policy: Policy) -> None:
        chance, spent, inside = random.Random(seed), 0, 0

        async def works(request: int, run: Run) -> int:
            nonlocal spent, inside
            assert spent < amount
            inside += 1
            try:
                await run.emit(Text("x"))
                for part in range(request):
                    spent += 1
                    await run.emit(Used(usage=Usage(1, 0, 1)))
                    if part % 10 == 0:
                        await asyncio.sleep(0)
                return request
            finally:
                inside -= 1

        executor, calls = policy(works), []
        for cost in costs:
            calls.append(asyncio.ensure_future(execute(executor, cost)))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                chance.choice(calls).cancel()
        await asyncio.wait_for(asyncio.wait(calls), 5)
        assert inside == 0
        assert spent <= amount - 1 + max(costs)
        if spent < amount:  # then nobody was refused
            assert all(call.cancelled() or call.exception() is None for call in calls)

    asyncio.run(check(budget(amount, estimate=exactly)))
