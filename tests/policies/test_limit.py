"""`limit`: what is let in, what a refusal says, and that every slot comes back."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import LimitReached, UsageError
from penstock.events import Event, Text, Used
from penstock.messages import ChatRequest, Usage
from penstock.outcome import Failed
from penstock.policies import limit as limit_module
from penstock.policies.limit import limit
from penstock.run import Executor, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm
from tests.policies.conftest import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(monkeypatch, limit_module)


class Gate:
    """An executor that waits until it is let go; `entered` counts the calls that came through."""

    def __init__(self) -> None:
        self.entered = 0
        self.go = asyncio.Event()

    async def __call__(self, request: Any, _: Run, /) -> Any:
        self.entered += 1
        await self.go.wait()
        return request


def using(tokens: int) -> Executor[Any, None]:
    async def executor(request: Any, run: Run) -> None:
        await run.emit(Used(usage=Usage(tokens, 0, tokens)))

    return executor


async def refused(executor: Executor[Any, Any]) -> LimitReached | None:
    """The refusal of one call, if it was refused."""
    try:
        await execute(executor, "x")
    except LimitReached as error:
        return error
    return None


async def test_case_17_of_100_calls_at_once_exactly_10_pass() -> None:
    gate = Gate()
    executor = limit(concurrent=10)(gate)
    calls = [asyncio.ensure_future(execute(executor, number)) for number in range(100)]
    await asyncio.sleep(0.01)
    assert gate.entered == 10
    gate.go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[:10] == list(range(10))
    for error in results[10:]:
        assert isinstance(error, LimitReached)
        assert (error.limit, error.retryable, error.retry_after) == ("concurrent", False, 1.0)
        assert str(error) == "10 calls are running already"
    assert await execute(executor, "again") == "again"


async def test_case_17_of_100_requests_in_a_minute_exactly_10_pass(clock: Clock) -> None:
    executor = limit(requests_per_minute=10)(using(1))
    errors = [await refused(executor) for _ in range(100)]
    assert errors[:10] == [None] * 10
    for error in errors[10:]:
        assert error is not None
        assert error.limit == "requests_per_minute"
        assert str(error) == "the limit of 10 requests a minute is used up"
        assert error.retry_after == pytest.approx(6.0)


async def test_case_17_refused_calls_consume_nothing(clock: Clock) -> None:
    executor = limit(requests_per_minute=10)(using(1))
    assert [await refused(executor) for _ in range(10)] == [None] * 10
    for _ in range(1000):
        assert await refused(executor)
    clock.now += 6.0
    assert await refused(executor) is None
    assert await refused(executor)


async def test_case_17_a_call_refused_by_one_limit_consumes_nothing_of_the_others(clock: Clock) -> None:
    gate = Gate()
    executor = limit(concurrent=1, requests_per_minute=2, tokens_per_minute=100)(gate)
    first = asyncio.ensure_future(execute(executor, 1))
    await asyncio.sleep(0)
    for _ in range(5):
        error = await refused(executor)
        assert error is not None
        assert error.limit == "concurrent"
    gate.go.set()
    await first
    assert await refused(executor) is None
    error = await refused(executor)
    assert error is not None
    assert error.limit == "requests_per_minute"


async def test_case_17_a_call_refused_by_a_limit_further_in_gives_its_request_back(clock: Clock) -> None:
    gate = Gate()
    inner = limit(concurrent=1)(gate)
    executor = limit(requests_per_minute=3)(limit(requests_per_minute=2)(inner))
    first = asyncio.ensure_future(execute(executor, 1))
    await asyncio.sleep(0)
    for _ in range(100):
        error = await refused(executor)
        assert error is not None
        assert error.limit == "concurrent"
    gate.go.set()
    await first
    assert await refused(executor) is None
    error = await refused(executor)
    assert error is not None
    assert str(error) == "the limit of 2 requests a minute is used up"


@pytest.mark.parametrize("told", [Text("a"), Used(usage=Usage(1, 1, 2))], ids=lambda event: type(event).__name__)
async def test_a_call_that_a_limit_stopped_on_its_way_was_one(told: Event, clock: Clock) -> None:
    async def agent(request: Any, run: Run) -> None:
        await run.child("step").emit(told)
        raise LimitReached("the next step is not taken", limit="steps")

    executor = limit(requests_per_minute=2)(agent)
    limits = [error.limit for _ in range(3) if (error := await refused(executor))]
    assert limits == ["steps", "steps", "requests_per_minute"]


async def test_what_is_given_back_never_grows_beyond_the_allowance(clock: Clock) -> None:
    async def refuses(request: Any, run: Run) -> None:
        clock.now += 60
        raise LimitReached("no", limit="steps")

    shared = limit(requests_per_minute=2)
    for _ in range(10):
        await refused(shared(refuses))
    assert [await refused(shared(using(1))) is None for _ in range(3)] == [True, True, False]


async def end_somehow(executor: Executor[Any, Any], chance: random.Random) -> None:
    """One call that returns, raises, is cancelled at a random moment, is left, or loses its listener."""

    def fail(event: Event) -> None:
        if isinstance(event, Text):
            raise OSError("gone")

    how = chance.choice(("return", "raise", "cancel", "leave", "listener"))
    if how == "leave":
        with suppress(LimitReached):
            async with execute_stream(executor, how) as execution:
                async for _ in execution:
                    break
        return
    task = asyncio.ensure_future(execute(executor, how, fail if how == "listener" else None))
    if how == "cancel":
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        assert isinstance(task.exception(), OSError | ValueError | LimitReached | None)


async def test_case_17_no_slot_is_lost_in_10_000_random_ends() -> None:
    inside, most, admitted, gate = 0, 0, 0, Gate()

    async def works(request: Any, run: Run) -> Any:
        nonlocal inside, most, admitted
        if isinstance(request, int):
            return await gate(request, run)
        inside, admitted = inside + 1, admitted + 1
        most = max(most, inside)
        try:
            await asyncio.sleep(0)
            await run.emit(Text(request))
            await asyncio.sleep(0)
            if request == "raise":
                raise ValueError(request)
            return request
        finally:
            inside -= 1

    executor, chance = limit(concurrent=10)(works), random.Random(17)
    for _ in range(500):
        await asyncio.gather(*(end_somehow(executor, chance) for _ in range(20)))
    assert (inside, most) == (0, 10)
    assert admitted > 3000
    calls = [asyncio.ensure_future(execute(executor, number)) for number in range(11)]
    await asyncio.sleep(0.01)
    assert gate.entered == 10
    gate.go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [number for number, result in enumerate(results) if isinstance(result, LimitReached)] == [10]


async def test_a_minutes_allowance_comes_back_evenly_and_never_grows_beyond_itself(clock: Clock) -> None:
    executor = limit(requests_per_minute=60)(using(1))
    assert [await refused(executor) for _ in range(60)] == [None] * 60
    for seconds, passes in ((0.5, 0), (0.5, 1), (10.0, 10), (3600.0, 60)):
        clock.now += seconds
        answers = [await refused(executor) for _ in range(100)]
        assert answers.count(None) == passes
        assert answers[:passes] == [None] * passes


@given(st.lists(st.floats(0, 30), max_size=40), st.integers(1, 60))
def test_retry_after_is_the_time_after_which_a_call_passes(gaps: list[float], per_minute: int) -> None:
    async def check() -> None:
        clock = Clock()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limit_module, "monotonic", clock)
            executor = limit(requests_per_minute=per_minute)(using(1))
            passed = 0
            for gap in gaps:
                clock.now += gap
                if (error := await refused(executor)) is None:
                    passed += 1
                    continue
                assert error.retry_after is not None
                assert 0 < error.retry_after <= 60 / per_minute + 1e-6
                clock.now += error.retry_after + 1e-6
                assert await refused(executor) is None
                passed += 1
            assert passed <= per_minute + (clock.now - 1000) * per_minute / 60 + 1e-3

    asyncio.run(check())


async def test_tokens_are_counted_as_they_are_told_on_every_path(clock: Clock) -> None:
    async def works(request: Any, run: Run) -> None:
        await run.emit(Used(usage=Usage(20, 10, 30)))
        await run.child("tool").emit(Used(usage=Usage(50, 10)))

    executor = limit(tokens_per_minute=120)(works)
    assert await refused(executor) is None
    assert await refused(executor) is None  # 30 are left, which is enough to begin
    error = await refused(executor)
    assert error is not None
    assert (error.limit, str(error)) == ("tokens_per_minute", "the limit of 120 tokens a minute is used up")
    assert error.retry_after == pytest.approx(61 / 2)  # 60 below zero, 2 come back each second
    clock.now += 30.4
    assert await refused(executor)
    clock.now += 0.2
    assert await refused(executor) is None


async def test_tokens_of_failed_and_cancelled_calls_count_too(clock: Clock) -> None:
    async def fails(request: Any, run: Run) -> None:
        await using(60)(request, run)
        raise ValueError("after use")

    executor = limit(tokens_per_minute=60)(fails)
    with pytest.raises(ValueError, match="after use"):
        await execute(executor, "x")
    assert await refused(executor)


async def test_a_refusal_is_the_runs_end_and_the_executor_is_not_called() -> None:
    called, heard = list[str](), Heard()

    async def note(request: str, run: Run) -> None:
        called.append(request)

    executor = limit(requests_per_minute=1)(note)
    await execute(executor, "a")
    with pytest.raises(LimitReached) as caught:
        await execute(executor, "b", heard)
    assert called == ["a"]
    assert heard.events == [Failed(caught.value)]


async def test_executors_with_the_same_policy_share_its_limits() -> None:
    shared = limit(requests_per_minute=1)
    assert await refused(shared(using(1))) is None
    assert await refused(shared(using(1)))
    assert await refused(limit(requests_per_minute=1)(using(1))) is None


async def test_an_llm_with_the_policy_is_limited_over_its_calls() -> None:
    llm = ScriptedLlm("hello", policies=[limit(requests_per_minute=2)])
    for _ in range(2):
        assert (await execute(llm, ChatRequest.of("hi"))).content == "hello"
    with pytest.raises(LimitReached):
        await execute(llm, ChatRequest.of("hi"))
    assert len(llm.requests) == 2


async def test_without_limits_everything_passes() -> None:
    executor = limit()(using(10**9))
    assert [await refused(executor) for _ in range(100)] == [None] * 100


@pytest.mark.parametrize("bound", ["requests_per_minute", "tokens_per_minute", "concurrent"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_that_lets_nothing_through_is_refused(bound: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"a limit of {value} lets nothing through"):
        limit(**{bound: value})
