"""Calls that fail in passing: made again, after the time that the service asks for, and no others meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any

import pytest

from penstock.batch.batch import Batch
from penstock.batch.executor import BatchInferenceExecutor
from penstock.batch.fallbacks import Fallback
from penstock.batch.patience import LONGEST_S
from penstock.batch.planner import Planner
from penstock.errors import BadAnswer, BadRequest, LimitReached, RateLimited, Refused, Unavailable, UsageError
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Run, from_stream
from penstock.testing import ScriptedLlm
from tests.batch.answering import Do, all_but, does, keys

HUNDRED = [(number, 0) for number in range(100)]
SOON_S = 0.05


class Limited:
    """Refuses its first calls; `times` are when each was made."""

    def __init__(self, calls: int, *, after_s: float | None = SOON_S) -> None:
        self.left, self.after_s = calls, after_s
        self.times: list[float] = []

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        self.times.append(monotonic())
        await asyncio.sleep(0.001)
        self.left -= 1
        if self.left >= 0:
            raise RateLimited("slow down", retry_after=self.after_s)
        return await ScriptedLlm(all_but())(request, run)


async def test_calls_that_a_service_refuses_in_passing_are_made_again_and_cost_no_item() -> None:
    outcomes = await Batch(llm := Limited(16), Do, concurrent=8).run(HUNDRED)
    assert all(outcome.ok and outcome.attempts == 1 and not outcome.faults for outcome in outcomes)
    assert len(llm.times) == 26


async def test_no_call_begins_while_a_service_wants_to_be_left_alone() -> None:
    async def late(request: ChatRequest, run: Run, /) -> ChatReply:
        if 5 in keys(request):
            await asyncio.sleep(0.01)  # it ends while the others are held
        return await llm(request, run)

    llm = Limited(1, after_s=0.1)
    outcomes = await Batch(late, Do, planner=Planner(5), concurrent=2).run(HUNDRED[:20])
    first, *others = sorted(llm.times)
    assert all(outcome.ok for outcome in outcomes)
    assert [time - first > 0.09 for time in others].count(False) <= 1  # the one that had begun


async def test_calls_are_held_also_where_none_is_made_twice() -> None:
    outcomes = await Batch(llm := Limited(1), Do, attempts=1).run(HUNDRED[:2])
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 2)] * 2
    assert llm.times[1] - llm.times[0] >= SOON_S


async def test_many_calls_side_by_side_that_fail_at_once_do_not_end_the_batch() -> None:
    llm = Limited(20, after_s=None)
    outcomes = await Batch(llm, Do, planner=Planner(5), concurrent=20, attempts=1).run(HUNDRED)
    assert all(outcome.ok for outcome in outcomes)


async def test_a_service_that_is_away_for_a_moment_costs_no_item() -> None:
    outcomes = await Batch(Limited(20, after_s=0.0), Do).run([(number, 0) for number in range(200)])
    assert all(outcome.ok for outcome in outcomes)


async def test_a_service_that_stays_down_ends_the_batch() -> None:
    outcomes = await Batch(llm := Limited(1000, after_s=0.01), Do).run([(number, 0) for number in range(1000)])
    assert not any(outcome.ok for outcome in outcomes)
    assert len(llm.times) <= 36


async def test_a_service_that_wants_to_be_left_alone_for_long_is_not_asked_again() -> None:
    fallback = Fallback(name="wait", default={"do": "wait"})
    batch = Batch(llm := Limited(1000, after_s=LONGEST_S + 1), Do, concurrent=1, fallbacks=[fallback])
    outcomes = await batch.run(HUNDRED)
    assert len(llm.times) == 1
    assert {outcome.tier for outcome in outcomes} == {"wait"}


async def test_a_rate_that_is_used_up_is_waited_for_and_a_budget_is_not() -> None:
    def answer(request: ChatRequest) -> Any:
        return limits.pop() if limits else does(*keys(request))

    limits = [LimitReached("5 a minute", limit="rate", retry_after=0.02) for _ in range(12)]
    outcomes = await Batch(llm := ScriptedLlm(answer), Do).run(HUNDRED)
    assert all(outcome.ok and outcome.attempts == 1 for outcome in outcomes)
    assert len(llm.requests) == 22
    limits = [LimitReached("no money", limit="budget", retry_after=0.02)]
    outcomes = await Batch(llm := ScriptedLlm(answer), Do, concurrent=1).run(HUNDRED)
    assert len(llm.requests) == 1


async def test_an_answer_that_a_rate_stopped_after_its_beginning_is_not_made_again() -> None:
    begun: list[list[Any]] = []

    async def stops(request: ChatRequest) -> AsyncGenerator[str, None]:
        begun.append(keys(request))
        yield does(*keys(request)[:1])[:-2]
        if len(begun) == 1:
            raise LimitReached("5 a minute", limit="rate", retry_after=0.01)

    await Batch(from_stream(stops), Do).run(HUNDRED[:2])
    assert begun == [[0, 1]]


async def test_a_service_that_refuses_everything_is_not_asked_for_each_of_many_items() -> None:
    thousand = [(number, 0) for number in range(1000)]
    for error, most in ((BadRequest("not so", status=400), 14), (ValueError("odd"), 12), (BadAnswer("cut"), 12)):
        llm = ScriptedLlm(error)
        outcomes = await Batch(llm, Do, dialect="positions").run(thousand)
        assert len(llm.requests) <= most
        assert not any(outcome.ok for outcome in outcomes)


async def test_errors_of_some_items_do_not_end_the_batch() -> None:
    def refuses(request: ChatRequest) -> Any:
        return Refused("no") if len(keys(request)) > 1 else does(*keys(request))

    outcomes = await Batch(ScriptedLlm(refuses), Do).run(HUNDRED)
    assert all(outcome.ok for outcome in outcomes)

    def odd(request: ChatRequest) -> Any:
        return does(*keys(request)) if 0 in keys(request) else ValueError("odd")

    await Batch(llm := ScriptedLlm(odd), Do, concurrent=1).run(HUNDRED)
    assert len(llm.requests) > 100


async def test_an_answer_that_has_begun_is_not_made_again() -> None:
    asked: list[list[Any]] = []

    async def breaks(request: ChatRequest) -> AsyncGenerator[str, None]:
        asked.append(keys(request))
        yield does(*keys(request)[:2])[:-2]
        if len(asked) == 1:
            raise Unavailable("gone")

    outcomes = await Batch(from_stream(breaks), Do).run(HUNDRED[:4])
    assert asked == [[0, 1, 2, 3], [2, 3]]
    assert [outcome.attempts for outcome in outcomes] == [1, 1, 2, 2]


async def test_a_cancel_ends_the_waiting() -> None:
    task = asyncio.ensure_future(Batch(Limited(1, after_s=30), Do).run(HUNDRED))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("llm", "says"), [("gpt-5", r"llm\('gpt-5'\)"), (None, "None is no LLM"), (ScriptedLlm, "is no LLM")]
)
async def test_what_is_no_llm_is_said_at_once(llm: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Batch(llm)
    if llm is not None:
        with pytest.raises(UsageError, match=says):
            Batch(ScriptedLlm(""), fallbacks=[Fallback(name="other", llm=llm)])
        executor = BatchInferenceExecutor(llm=llm)
        executor.queue_agent(1, 1)
        with pytest.raises(UsageError, match=says):
            await executor.execute_batch()


async def test_an_executor_of_another_kind_is_no_fault_of_an_item(caplog: pytest.LogCaptureFixture) -> None:
    async def one(request: ChatRequest) -> ChatReply:
        raise AssertionError(request)

    async def text(request: ChatRequest, run: Run) -> str:
        return "{}"

    def plain(request: ChatRequest, run: Run) -> str:
        return "{}"

    async def wrong(request: ChatRequest, run: Run) -> ChatReply:
        raise TypeError("of its own")

    odd: list[tuple[Any, str]] = [(one, "cannot be called"), (text, "no ChatReply"), (plain, "no ChatReply")]
    for llm, says in odd:
        with pytest.raises(UsageError, match=says):
            await Batch(llm).run(HUNDRED[:2])
    outcomes = await Batch(wrong).run(HUNDRED[:2])
    assert outcomes[0].faults[0].message.startswith("TypeError: unexpected")
    assert "of its own" not in str(outcomes)
    assert "of its own" in caplog.text
