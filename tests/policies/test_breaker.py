"""`breaker`: when it opens, what a refusal says, and that exactly one call tries it again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import (
    BadArguments,
    BadRequest,
    Conflict,
    Denied,
    Invalid,
    LimitReached,
    PenstockError,
    ToolFailed,
    Unavailable,
    UsageError,
)
from penstock.policies import breaker as breaker_module
from penstock.policies.breaker import breaker
from penstock.policies.retry import retry
from penstock.run import Executor, Run, execute
from tests.policies.conftest import Clock

CALLERS = (
    BadArguments("no"),
    BadRequest("no"),
    Conflict("no"),
    Denied("no"),
    Invalid("no"),
    LimitReached("no", limit="steps"),
    UsageError("no"),
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(monkeypatch, breaker_module)


async def works(request: Any, run: Run) -> Any:
    if isinstance(request, Exception):
        raise request
    return await request if isinstance(request, asyncio.Future) else request


async def ending(executor: Executor[Any, Any], request: Any) -> Any:
    """What a call returned or raised."""
    try:
        return await execute(executor, request)
    except (PenstockError, OSError) as error:
        return error


async def opened(executor: Executor[Any, Any], failures: int = 3) -> None:
    for number in range(failures):
        failure = OSError(number)
        assert await ending(executor, failure) is failure


async def test_row_b8_failures_in_a_row_open_it_and_a_refusal_says_when_to_come_back(clock: Clock) -> None:
    executor = breaker(failures=3, reset_s=30)(works)
    await opened(executor)
    clock.now += 10
    refusal = await ending(executor, "x")
    assert isinstance(refusal, Unavailable)
    assert (refusal.retryable, refusal.retry_after) == (True, 20.0)
    assert str(refusal) == "not called: it failed 3 times in a row; the next try is in 20.0 s"


async def test_a_success_between_failures_keeps_it_closed(clock: Clock) -> None:
    executor = breaker(failures=3)(works)
    for _ in range(5):
        await opened(executor, 2)
        assert await ending(executor, "x") == "x"


@pytest.mark.parametrize("error", CALLERS, ids=lambda error: type(error).__name__)
async def test_the_callers_errors_neither_count_nor_mend(error: Exception, clock: Clock) -> None:
    executor = breaker(failures=3)(works)
    for _ in range(5):
        assert await ending(executor, error) is error
    await opened(executor, 2)
    assert await ending(executor, error) is error
    await opened(executor, 1)
    assert isinstance(await ending(executor, "x"), Unavailable)


async def test_counts_and_error_are_the_callers_choice(clock: Clock) -> None:
    def refuse(message: str) -> ToolFailed:
        return ToolFailed(message, code="circuit_open", retryable=True)

    executor = breaker(failures=1, error=refuse, counts=lambda error: isinstance(error, Denied))(works)
    await opened(executor, 5)
    await ending(executor, Denied("no"))
    refusal = await ending(executor, "x")
    assert isinstance(refusal, ToolFailed)
    assert (refusal.code, refusal.retry_after) == ("circuit_open", 30.0)


async def test_row_b7_exactly_one_probe_goes_through_and_its_success_closes(clock: Clock) -> None:
    executor = breaker(failures=3, reset_s=30)(works)
    await opened(executor)
    clock.now += 30
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    probe = asyncio.ensure_future(ending(executor, answer))
    await asyncio.sleep(0)
    for _ in range(10):
        refusal = await ending(executor, "x")
        assert isinstance(refusal, Unavailable)
        assert refusal.retry_after == 1.0
    answer.set_result("well")
    assert await probe == "well"
    await opened(executor, 2)
    assert await ending(executor, "x") == "x"


async def test_a_failed_probe_opens_it_again_for_the_whole_time(clock: Clock) -> None:
    executor = breaker(failures=3, reset_s=30)(works)
    await opened(executor)
    clock.now += 31
    await opened(executor, 1)
    refusal = await ending(executor, "x")
    assert isinstance(refusal, Unavailable)
    assert refusal.retry_after == 30.0


@pytest.mark.parametrize("how", ["cancelled", "the caller's error"])
async def test_a_probe_that_says_nothing_frees_its_place(how: str, clock: Clock) -> None:
    executor = breaker(failures=3, reset_s=30)(works)
    await opened(executor)
    clock.now += 30
    if how == "cancelled":
        probe = asyncio.ensure_future(execute(executor, asyncio.get_running_loop().create_future()))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.wait([probe])
    else:
        await ending(executor, BadArguments("no"))
    await opened(executor, 1)
    assert isinstance(await ending(executor, "x"), Unavailable)


async def test_a_predicate_that_fails_frees_the_probes_place(clock: Clock) -> None:
    def counts(error: Exception) -> bool:
        if isinstance(error, ToolFailed):
            raise KeyError("mine")
        return True

    executor = breaker(failures=1, reset_s=30, counts=counts)(works)
    await opened(executor, 1)
    clock.now += 30
    with pytest.raises(KeyError):
        await execute(executor, ToolFailed("x"))
    assert await ending(executor, "x") == "x"


async def test_a_late_call_neither_closes_nor_reopens_what_changed_since(clock: Clock) -> None:
    executor, loop = breaker(failures=3, reset_s=30)(works), asyncio.get_running_loop()
    late: list[asyncio.Future[str]] = [loop.create_future() for _ in range(6)]
    calls = [asyncio.ensure_future(ending(executor, future)) for future in late]
    await asyncio.sleep(0)
    await opened(executor)
    late[0].set_result("late")
    assert await calls[0] == "late"
    assert isinstance(await ending(executor, "x"), Unavailable)
    clock.now += 30
    assert await ending(executor, "probe") == "probe"
    for future, call in zip(late[1:], calls[1:], strict=True):
        future.set_exception(OSError("late"))
        assert isinstance(await call, OSError)
    assert await ending(executor, "x") == "x"


async def test_retry_around_it_waits_for_the_probe() -> None:
    failing = [OSError("x"), OSError("x")]

    async def executor(request: str, run: Run) -> str:
        if failing:
            raise failing.pop()
        return request

    guarded = breaker(failures=2, reset_s=0.02)(executor)
    for _ in range(2):
        assert isinstance(await ending(guarded, "x"), OSError)
    assert await execute(retry(attempts=3)(guarded), "x") == "x"


async def test_executors_with_the_same_policy_share_its_circuit(clock: Clock) -> None:
    shared = breaker(failures=3)
    await opened(shared(works))
    assert isinstance(await ending(shared(works), "x"), Unavailable)


@pytest.mark.parametrize(("failures", "reset_s"), [(0, 30.0), (5, 0.0), (5, -1.0), (5, float("nan"))])
def test_a_breaker_that_cannot_work_is_refused(failures: int, reset_s: float) -> None:
    with pytest.raises(UsageError, match="give at least 1 failure and more than 0 seconds"):
        breaker(failures=failures, reset_s=reset_s)


class Model:
    """The circuit as its description says it, in the plainest words."""

    def __init__(self, failures: int) -> None:
        self.failures, self.count, self.era = failures, 0, 0
        self.open_until: float | None = None
        self.probe: int | None = None

    def admits(self, call: int, now: float) -> bool:
        if self.open_until is None:
            return True
        if now < self.open_until or self.probe is not None:
            return False
        self.probe = call
        return True

    def ends(self, call: int, era: int, how: str, now: float) -> None:
        if self.open_until is not None and call == self.probe:
            self.probe = None
            if how != "cancel":
                self.open_until, self.count = (now + 10 if how == "fail" else None), 0
                self.era += 1
        elif self.open_until is None and era == self.era:
            self.count = {"fail": self.count + 1, "succeed": 0}.get(how, self.count)
            if self.count >= self.failures:
                self.open_until, self.count = now + 10, 0
                self.era += 1


STEPS = st.one_of(
    st.just(("call", 0)),
    st.tuples(st.sampled_from(["succeed", "fail", "cancel"]), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40), st.integers(1, 3))
def test_any_order_of_calls_and_ends_follows_the_model(steps: list[tuple[str, int]], failures: int) -> None:
    async def check() -> None:
        clock, model = Clock(), Model(failures)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(breaker_module, "monotonic", clock)
            executor = breaker(failures=failures, reset_s=10)(works)
            running: list[tuple[int, int, asyncio.Future[str], asyncio.Task[str]]] = []
            for number, (what, value) in enumerate(steps):
                if what == "wait":
                    clock.now += value
                elif what == "call":
                    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
                    task = asyncio.ensure_future(execute(executor, future))
                    await asyncio.sleep(0)
                    if model.admits(number, clock.now):
                        assert not task.done()
                        running.append((number, model.era, future, task))
                    else:
                        assert isinstance(task.exception(), Unavailable)
                elif running:
                    call, era, future, task = running.pop(value % len(running))
                    if what == "cancel":
                        task.cancel()
                    elif what == "fail":
                        future.set_exception(OSError("x"))
                    else:
                        future.set_result("x")
                    await asyncio.wait([task])
                    assert task.cancelled() or task.exception() is None or isinstance(task.exception(), OSError)
                    model.ends(call, era, what, clock.now)
            for *_, task in running:
                task.cancel()
            await asyncio.gather(*(task for *_, task in running), return_exceptions=True)

    asyncio.run(check())
