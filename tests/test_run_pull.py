"""A run that is pulled: entered once, iterated once, ended when its block is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest

from penstock.events import Event, Text, Used
from penstock.messages import Usage
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.run import PULL_BUFFER, Execution, Run, execute, execute_stream, from_stream

BOUND_S = 10.0  # far above what any of this takes: it only turns a hang into a failure


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    """No test may leave a task behind."""
    yield
    async with asyncio.timeout(BOUND_S):
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0.001)


class Count:
    """Tells as many numbers as it is asked for; knows how often it was started, how far it came and how it ended."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.error = error
        self.starts = self.told = 0
        self.ends: list[Outcome[Any]] = []

    async def __call__(self, request: int, run: Run, /) -> int:
        self.starts += 1
        run.closing(self.ends.append)
        for number in range(request):
            await run.emit(Text(str(number)))
            self.told += 1
        if self.error is not None:
            raise self.error
        return request


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(BOUND_S):
        yield


async def idle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def drained(execution: Execution[Any]) -> list[Event]:
    return [event async for event in execution]


async def test_events_come_in_order_and_the_end_last() -> None:
    async with execute_stream(Count(), 200) as execution:
        events = await drained(execution)
    assert events == [*(Text(str(number)) for number in range(200)), Finished(200)]
    assert execution.result == 200
    assert execution.content == "".join(map(str, range(200)))


async def test_content_grows_while_it_runs() -> None:
    async with execute_stream(Count(), 3) as execution:
        assert execution.content == ""
        async for event in execution:
            if isinstance(event, Text):
                assert event.text in execution.content


async def test_slow_consumer_slows_the_executor() -> None:
    count = Count()
    async with bounded(), execute_stream(count, 5 * PULL_BUFFER) as execution:
        await idle()
        assert count.told == PULL_BUFFER - 1
        taken = 0
        async for _ in execution:
            taken += 1
            await idle()
            assert count.told - taken <= PULL_BUFFER
    assert taken == 5 * PULL_BUFFER + 1


async def test_slow_consumer_slows_all_tasks_of_an_executor_and_stops_none() -> None:
    async def tools(request: int, run: Run) -> int:
        counts = [Count()(request, run.child(str(number))) for number in range(4)]
        return sum(await asyncio.gather(*counts))

    async with bounded(), execute_stream(tools, 3 * PULL_BUFFER) as execution:
        await idle()
        assert len(await drained(execution)) == 4 * 3 * PULL_BUFFER + 1
    assert execution.result == 4 * 3 * PULL_BUFFER


async def test_end_never_waits_for_room() -> None:
    async with bounded(), execute_stream(Count(), PULL_BUFFER - 1) as execution:
        await idle()
        assert execution.result == PULL_BUFFER - 1
    assert execution.content


# Single use


async def test_entering_twice_is_refused_before_anything_starts() -> None:
    count = Count()
    async with execute_stream(count, 1) as execution:
        await drained(execution)
        with pytest.raises(RuntimeError, match="single-use"):
            async with execution:
                pass
    with pytest.raises(RuntimeError, match="single-use"):
        await execution.__aenter__()
    assert count.starts == 1


async def test_entering_at_once_from_two_tasks_starts_one_run() -> None:
    count, refused = Count(), list[RuntimeError]()
    execution = execute_stream(count, 1)

    async def enter() -> None:
        try:
            async with execution:
                await idle()
        except RuntimeError as error:
            refused.append(error)

    await asyncio.gather(enter(), enter())
    assert (len(refused), count.starts) == (1, 1)


async def test_iterating_twice_is_refused() -> None:
    async with execute_stream(Count(), 1) as execution:
        await drained(execution)
        with pytest.raises(RuntimeError, match="already iterated"):
            await drained(execution)


async def test_iterating_from_two_tasks_is_refused() -> None:
    release = asyncio.Event()

    async def executor(request: str, run: Run) -> str:
        await release.wait()
        return request

    async with execute_stream(executor, "hi") as execution:
        first = asyncio.create_task(drained(execution))
        await idle()
        with pytest.raises(RuntimeError, match="already iterated"):
            await drained(execution)
        with pytest.raises(RuntimeError, match="one task"):
            await anext(execution)
        release.set()
        assert await first == [Finished("hi")]


async def test_iterating_before_entering_starts_nothing() -> None:
    count = Count()
    execution = execute_stream(count, 1)
    with pytest.raises(RuntimeError, match="enter the execution first"):
        await drained(execution)
    with pytest.raises(RuntimeError, match="after it was entered"):
        await anext(execution)
    await idle()
    assert count.starts == 0


async def test_iterating_after_the_block_is_refused() -> None:
    async with execute_stream(Count(), 0) as execution:
        pass
    with pytest.raises(RuntimeError, match="inside its block"):
        for _ in range(2):  # what was told before may still be there
            await anext(execution)


async def test_result_is_refused_until_the_run_has_finished() -> None:
    execution = execute_stream(Count(), 1)
    with pytest.raises(RuntimeError, match="has not finished"):
        _ = execution.result
    async with execution:
        with pytest.raises(RuntimeError, match="has not finished"):
            _ = execution.result
        await drained(execution)
        assert execution.result == 1


async def test_same_executor_runs_as_often_as_it_is_asked() -> None:
    count = Count()
    for _ in range(3):
        async with execute_stream(count, 1) as execution:
            await drained(execution)
    assert count.starts == 3


# Leaving


@pytest.mark.parametrize("error", [None, ValueError("mine")])
async def test_leaving_at_the_terminal_event_is_not_early(error: Exception | None) -> None:
    async def store(_: Outcome[Any]) -> None:
        await asyncio.sleep(0)

    execution = execute_stream(Count(error=error), 1, closing=[store])
    with pytest.raises(ValueError, match="mine") if error else nullcontext():
        async with execution:
            async for event in execution:
                if isinstance(event, Finished | Failed):
                    break
        assert execution.result == 1


@pytest.mark.parametrize("taken", [1, 40, 100])
async def test_leaving_early_cancels_and_waits_for_the_end(taken: int) -> None:
    count = Count()
    async with bounded(), execute_stream(count, 10**9) as execution:
        async for _ in execution:
            taken -= 1
            if not taken:
                break
    assert count.ends == [Cancelled("the consumer left early")]
    with pytest.raises(RuntimeError, match="was cancelled"):
        _ = execution.result


async def test_leaving_at_once_still_tells_the_hooks() -> None:
    ends: list[object] = []
    async with execute_stream(Count(), 10**9, closing=[ends.append]):
        pass
    assert ends == [Cancelled("the consumer left early")]


async def test_leaving_waits_for_the_clean_up_of_the_executor_through_cancels() -> None:
    steps: list[str] = []

    async def executor(request: str, run: Run) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            steps.append("cleaned")
        return request

    async def consume() -> None:
        try:
            async with execute_stream(executor, "hi"):
                await idle()
        finally:
            steps.append("left")

    task = asyncio.create_task(consume())
    for _ in range(12):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["cleaned", "left"]


async def test_leaving_frees_a_task_that_the_executor_waits_for() -> None:
    async def stubborn(request: int, run: Run) -> int:
        told = asyncio.ensure_future(Count()(request, run))
        with suppress(asyncio.CancelledError):
            await asyncio.shield(told)
        return await told

    async with bounded(), execute_stream(stubborn, 3 * PULL_BUFFER) as execution:
        await idle()
    assert execution.result == 3 * PULL_BUFFER


async def test_consumer_cancelled_while_it_waits_cancels_the_run() -> None:
    ends: list[object] = []

    async def executor(request: str, run: Run) -> str:
        run.closing(ends.append)
        await asyncio.Event().wait()
        return request

    async def consume() -> None:
        async with execute_stream(executor, "hi") as execution:
            await drained(execution)

    task = asyncio.create_task(consume())
    await idle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ends == [Cancelled("the consumer left early")]


async def test_timeout_around_a_pull_is_a_timeout_outside_and_a_cancel_inside() -> None:
    count = Count()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), execute_stream(count, 10**9):
            await asyncio.Event().wait()
    assert [type(end) for end in count.ends] == [Cancelled]


async def test_error_of_the_block_passes_and_cancels_the_run() -> None:
    count = Count()
    with pytest.raises(KeyError):
        async with execute_stream(count, 10**9) as execution:
            async for _ in execution:
                raise KeyError
    assert [type(end) for end in count.ends] == [Cancelled]


async def test_usage_told_on_the_way_out_is_counted() -> None:
    async def executor(request: str, run: Run) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await run.emit(Used(usage=Usage(total_tokens=7, partial=True)))
        return request

    async with execute_stream(executor, "hi") as execution:
        await idle()
    assert execution.usage.total == 7
    assert execution.usage.partial


# Failing


async def test_failure_is_raised_where_the_iteration_ends_and_only_there() -> None:
    error, events = ValueError("mine"), list[Event]()
    async with execute_stream(Count(error=error), 1) as execution:
        with pytest.raises(ValueError, match="mine") as caught:
            async for event in execution:
                events.append(event)
        assert caught.value is error
    assert events == [Text("0"), Failed(error)]
    with pytest.raises(ValueError, match="mine"):
        _ = execution.result


async def test_failure_the_consumer_has_not_seen_is_raised_at_the_exit() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with execute_stream(Count(error=ValueError("mine")), 1):
            await idle()


async def test_error_of_the_block_passes_before_a_failure_that_was_not_seen() -> None:
    with pytest.raises(KeyError):
        async with execute_stream(Count(error=ValueError("mine")), 1):
            await idle()
            raise KeyError


async def test_stop_async_iteration_of_an_executor_does_not_look_like_the_end() -> None:
    async def executor(request: list[str], run: Run) -> str:
        async def none() -> AsyncGenerator[str, None]:
            for item in request:
                yield item

        return await anext(none())

    with pytest.raises(StopAsyncIteration):
        await execute(executor, [])
    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        async with execute_stream(executor, []) as execution:
            await drained(execution)


# Generators


def generator(
    closed: list[str], *, error: Exception | None = None
) -> Callable[[str], AsyncGenerator[Event | str, None]]:
    async def generate(request: str) -> AsyncGenerator[Event | str, None]:
        try:
            for piece in request:
                yield piece
            yield Used(usage=Usage(total_tokens=3))
            if error is not None:
                raise error
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    return generate


async def test_generator_becomes_an_executor_whose_reply_is_what_it_yielded() -> None:
    closed, heard = list[str](), list[Event]()
    reply = await execute(from_stream(generator(closed)), "abc", heard.append)
    assert reply.content == "abc"
    assert reply.usage is not None
    assert reply.usage.total == 3
    assert heard == [Text("a"), Text("b"), Text("c"), Used(usage=Usage(total_tokens=3)), Finished(reply)]
    assert closed == ["closed"]


async def test_generator_is_closed_when_the_consumer_leaves() -> None:
    closed: list[str] = []
    async with bounded(), execute_stream(from_stream(generator(closed)), "x" * 10**6) as execution:
        async for _ in execution:
            break
        assert closed == []
    assert closed == ["closed"]


async def test_generator_is_closed_when_it_fails_and_when_the_listener_does() -> None:
    closed: list[str] = []
    with pytest.raises(ValueError, match="mine"):
        await execute(from_stream(generator(closed, error=ValueError("mine"))), "abc")

    def listener(_: Event) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await execute(from_stream(generator(closed)), "abc", listener)
    assert closed == ["closed", "closed"]


async def test_generator_that_yields_an_end_is_refused() -> None:
    async def generate(request: str) -> AsyncGenerator[Event | str, None]:
        yield Finished(request)

    with pytest.raises(TypeError, match="told by the root alone"):
        await execute(from_stream(generate), "hi")
