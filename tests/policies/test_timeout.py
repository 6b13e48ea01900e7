"""`timeout` and `Deadline`: working time is limited, the client's time is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest

from penstock.errors import PenstockError, TimedOut, ToolTimeout
from penstock.events import Event, Text
from penstock.outcome import Cancelled, Failed
from penstock.policies.timeout import Deadline, timeout
from penstock.run import Run, execute, execute_stream
from penstock.testing import Heard

BOUND_S = 10.0  # far above what any of this takes: it only turns a hang into a failure


@pytest.fixture(autouse=True)
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop had to complain about, which must be nothing; no timer of a deadline is left either."""
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    yield heard
    await asyncio.sleep(0)
    assert not heard
    assert not deadlines(loop)


def deadlines(loop: Any) -> list[Any]:
    """The timers that wait for a deadline."""
    waiting = [timer for timer in loop._scheduled if not timer.cancelled()]
    return [timer for timer in waiting if isinstance(getattr(timer._callback, "__self__", None), Deadline)]


async def forever(request: Any, run: Run) -> str:
    await run.emit(Text("begun"))
    await asyncio.sleep(BOUND_S)
    raise AssertionError("the limit did not fire")


async def slow_listener(event: Event) -> None:
    if isinstance(event, Text):
        await asyncio.sleep(0.05)


async def test_the_limit_ends_the_executor_and_is_a_retryable_error() -> None:
    cleaned: list[str] = []

    async def works(request: str, run: Run) -> str:
        try:
            return await forever(request, run)
        finally:
            cleaned.append(request)

    heard = Heard()
    with pytest.raises(TimedOut, match=r"^not finished within 0.02 s$") as caught:
        await execute(timeout(0.02)(works), "x", heard)
    assert caught.value.retryable
    assert cleaned == ["x"]
    assert heard.events == [Text("begun"), Failed(caught.value)]


@pytest.mark.parametrize("error", [ToolTimeout, TimedOut, lambda text: PenstockError(text, retry_after=3)])
async def test_the_error_is_the_callers_choice(error: Any) -> None:
    with pytest.raises(type(error("x")), match=r"not finished within 0.01 s") as caught:
        await execute(timeout(0.01, error=error)(forever), "x")
    assert caught.value.retry_after == error("x").retry_after


async def test_time_in_which_the_client_listens_does_not_count() -> None:
    async def tells(request: int, run: Run) -> int:
        for number in range(request):
            await run.emit(Text(str(number)))
        return request

    began = monotonic()
    assert await execute(timeout(0.1)(tells), 6, slow_listener) == 6
    assert monotonic() - began > 0.25


async def test_time_in_which_nested_and_parallel_children_are_listened_to_does_not_count() -> None:
    async def child(run: Run, depth: int) -> None:
        await run.emit(Text("said"))
        if depth:
            await child(run.child("below"), depth - 1)

    async def parent(request: str, run: Run) -> str:
        await asyncio.gather(*(child(run.child(str(number)), 2) for number in range(3)))
        return request

    policy = timeout(0.1)
    assert await execute(policy(policy(parent)), "done", slow_listener) == "done"


async def test_the_clock_goes_on_after_the_client_has_listened() -> None:
    async def tells(request: str, run: Run) -> str:
        for _ in range(3):
            await run.emit(Text("said"))
        return await forever(request, run)

    async with asyncio.timeout(BOUND_S):
        with pytest.raises(TimedOut):
            await execute(timeout(0.02)(tells), "x", slow_listener)


async def test_a_pulled_run_left_alone_does_not_time_out() -> None:
    async def tells(request: int, run: Run) -> int:
        for number in range(request):
            await run.emit(Text(str(number)))
        return request

    async with execute_stream(timeout(0.1)(tells), 200) as execution:
        async for event in execution:
            if event == Text("0"):
                await asyncio.sleep(0.25)
    assert execution.result == 200


async def test_a_timeout_of_the_executors_own_passes_as_it_is() -> None:
    async def raises(request: str, run: Run) -> str:
        raise TimeoutError("the database")

    async def waits(request: str, run: Run) -> str:
        async with asyncio.timeout(0.005):
            return await forever(request, run)

    with pytest.raises(TimeoutError, match="the database"):
        await execute(timeout(5)(raises), "x")
    with pytest.raises(TimeoutError):
        await execute(timeout(5)(waits), "x")


async def test_the_shorter_of_two_limits_fires() -> None:
    with pytest.raises(TimedOut, match=r"within 0.01 s"):
        await execute(timeout(5)(timeout(0.01)(forever)), "x")
    with pytest.raises(TimedOut, match=r"within 0.01 s"):
        await execute(timeout(0.01)(timeout(5)(forever)), "x")


async def test_each_call_has_its_own_clock() -> None:
    async def works(seconds: float, run: Run) -> float:
        await asyncio.sleep(seconds)
        return seconds

    executor, wanted = timeout(0.5)(works), [0.0, 60.0] * 25
    results = await asyncio.gather(*(execute(executor, seconds) for seconds in wanted), return_exceptions=True)
    assert [isinstance(result, TimedOut) for result in results] == [seconds == 60 for seconds in wanted]


@pytest.mark.parametrize("listener", [None, slow_listener])
async def test_a_cancel_before_the_limit_is_a_cancel(listener: Any) -> None:
    outcomes: list[Any] = []
    call = execute(timeout(5)(forever), "x", listener, closing=[outcomes.append])
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0.01)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcomes == [Cancelled("enough")]


async def test_a_task_left_behind_does_not_start_the_clock_again(complaints: list[dict[str, Any]]) -> None:
    room, left = asyncio.Event(), list[asyncio.Task[None]]()

    async def wait_for_room(event: Event) -> None:
        if event == Text("late"):
            await room.wait()

    async def leaves(request: str, run: Run) -> str:
        left.append(asyncio.ensure_future(run.emit(Text("late"))))
        await asyncio.sleep(0.05)  # past the limit, which is paused
        return request

    assert await execute(timeout(0.02)(leaves), "x", wait_for_room) == "x"
    room.set()
    await left[0]
    assert not deadlines(asyncio.get_running_loop())
    await asyncio.sleep(0.03)
    assert not complaints


async def test_deadline_limits_the_silence_after_the_first_piece() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(5, idle_s=0.02) as deadline:
            await asyncio.sleep(0.05)  # the first piece may take longer
            for _ in range(3):
                deadline.pause()
                deadline.resume()
                await asyncio.sleep(0.005)
            await asyncio.sleep(BOUND_S)
    assert (deadline.expired, deadline.idled) == (True, True)


async def test_deadline_in_all_is_not_told_as_silence() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(0.2, idle_s=0.19) as deadline:
            while True:
                deadline.pause()
                deadline.resume()
                await asyncio.sleep(0.002)
    assert (deadline.expired, deadline.idled) == (True, False)


@pytest.mark.parametrize("idle_s", [None, 0.09])
async def test_deadline_pauses_nest(idle_s: float | None) -> None:
    async with Deadline(0.1, idle_s=idle_s) as deadline:
        deadline.pause()
        deadline.pause()
        await asyncio.sleep(0.12)
        deadline.resume()
        await asyncio.sleep(0.12)
        deadline.resume()
        await asyncio.sleep(0.001)
    assert not deadline.expired
    with pytest.raises(TimeoutError):
        async with Deadline(0.03, idle_s=idle_s) as deadline:
            deadline.pause()
            deadline.pause()
            deadline.resume()
            deadline.resume()
            await asyncio.sleep(BOUND_S)
    assert deadline.expired


async def test_deadline_without_time_fires_at_the_first_wait() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(0):
            await asyncio.sleep(BOUND_S)


async def test_a_value_that_is_given_in_spite_of_the_limit_is_kept() -> None:
    async def stubborn() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(BOUND_S)
        return "done"

    with Deadline(0.02) as deadline:
        assert await stubborn() == "done"
    assert deadline.expired
    assert await Deadline(0.02).over(stubborn()) == "done"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
