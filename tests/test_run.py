"""The contract: one executor, one run, one end; pushed and pulled."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN

from penstock import root as root_module
from penstock.events import Event, Reasoning, Text, Used
from penstock.messages import Usage
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.run import (
    LOCAL,
    Executor,
    Principal,
    Run,
    execute,
    execute_stream,
    run_sync,
)

BOUND_S = 10.0  # far above what any of this takes: it only turns a hang into a failure


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    """No test may leave a task behind."""
    yield
    async with asyncio.timeout(BOUND_S):
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0.001)


@pytest.fixture
def short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_module, "TAIL_S", 0.05)


async def shout(request: str, run: Run) -> str:
    await run.emit(Text(request.upper()))
    return request.upper()


async def forever(request: str, run: Run) -> str:
    await run.emit(Text(request))
    await asyncio.Event().wait()
    raise AssertionError


async def count(request: int, run: Run) -> int:
    for number in range(request):
        await run.emit(Text(str(number)))
    return request


def failing(error: Exception) -> Executor[Any, str]:
    async def executor(request: Any, run: Run) -> str:
        await run.emit(Text("before"))
        raise error

    return executor


def ends(events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, Finished | Failed | Cancelled)]


@asynccontextmanager
async def started(work: Callable[[], Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that has run until it waits; it is cancelled at the end where it was not before."""
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.005)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=BOUND_S)


# Pushed: results, errors, the end


async def test_result_is_returned_after_the_events_and_the_end() -> None:
    heard: list[Event] = []
    assert await execute(shout, "hi", heard.append) == "HI"
    assert heard == [Text("HI"), Finished("HI")]


async def test_exception_passes_unchanged() -> None:
    error, heard = ValueError("mine"), list[Event]()
    with pytest.raises(ValueError, match="mine") as caught:
        await execute(failing(error), "hi", heard.append)
    assert caught.value is error
    assert heard == [Text("before"), Failed(error)]
    assert error.__cause__ is None
    assert error.__context__ is None


async def test_cancel_is_told_and_propagates() -> None:
    heard: list[Event] = []
    async with started(lambda: execute(forever, "hi", heard.append)) as task:
        task.cancel("shutdown")
        with pytest.raises(asyncio.CancelledError):
            await task
    assert heard == [Text("hi"), Cancelled("shutdown")]


@pytest.mark.parametrize("end", [Finished("x"), Failed(ValueError()), Cancelled()])
@pytest.mark.parametrize("path", ["", "child"])
async def test_only_the_root_tells_an_end(end: Event, path: str) -> None:
    async def executor(request: str, run: Run) -> str:
        await (run.child(path) if path else run).emit(end)
        return "not reached"

    heard: list[Event] = []
    with pytest.raises(TypeError, match=f"{type(end).__name__} is told by the root alone"):
        await execute(executor, "hi", heard.append)
    assert [type(event) for event in heard] == [Failed]


async def test_what_a_leftover_task_tells_is_not_heard_after_the_end() -> None:
    release, left = asyncio.Event(), list[asyncio.Task[None]]()

    async def executor(request: str, run: Run) -> str:
        async def late() -> None:
            await release.wait()
            await run.emit(Text("late"))

        left.append(asyncio.create_task(late()))
        return "done"

    heard: list[Event] = []
    await execute(executor, "hi", heard.append, closing=[lambda _: release.set()])
    await left[0]
    assert heard == [Finished("done")]


# Closing hooks


async def test_closing_hooks_hear_the_outcome_before_the_listener_newest_first() -> None:
    said: list[tuple[str, object]] = []

    async def slow(outcome: Outcome[Any]) -> None:
        await asyncio.sleep(0)
        said.append(("slow", outcome))

    async def executor(request: str, run: Run) -> str:
        run.closing(slow)
        run.child("deep").closing(lambda outcome: said.append(("newest", outcome)))
        return "done"

    await execute(
        executor,
        "hi",
        lambda event: said.append(("listener", event)),
        closing=[lambda outcome: said.append(("root", outcome))],
    )
    assert said == [(name, Finished("done")) for name in ("newest", "slow", "root", "listener")]


@pytest.mark.parametrize("waits", [False, True])
async def test_hook_that_fails_makes_the_end_failed(waits: bool) -> None:
    error, seen, heard = OSError("disk full"), list[object](), list[Event]()

    async def later(_: Outcome[Any]) -> None:
        await asyncio.sleep(0)
        raise error

    def now(_: Outcome[Any]) -> None:
        raise error

    with pytest.raises(OSError, match="disk full") as caught:
        await execute(shout, "hi", heard.append, closing=[seen.append, later if waits else now])
    assert caught.value is error
    assert seen == [Failed(error)]
    assert heard == [Text("HI"), Failed(error)]


@pytest.mark.usefixtures("short_tail")
async def test_hook_that_hangs_is_a_failed_end_and_the_others_are_called() -> None:
    seen, heard = list[Outcome[Any]](), list[Event]()

    async def hang(_: Outcome[Any]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await execute(shout, "hi", heard.append, closing=[seen.append, hang])
    assert isinstance(seen[0], Failed)
    assert isinstance(seen[0].error, TimeoutError)
    assert ends(heard) == seen


async def test_hook_that_awaits_something_cancelled_stops_neither_the_end_nor_the_hooks() -> None:
    seen, heard = list[Outcome[Any]](), list[Event]()

    async def broken(_: Outcome[Any]) -> None:
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    with pytest.raises(RuntimeError, match="storing the end was cancelled"):
        await execute(shout, "hi", heard.append, closing=[seen.append, broken])
    assert [type(outcome) for outcome in seen] == [Failed]
    assert ends(heard) == seen


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_cancel_while_storing_changes_nothing_told_but_propagates(cancels: int) -> None:
    stored, heard = asyncio.Event(), list[Event]()

    async def store(_: Outcome[Any]) -> None:
        await stored.wait()

    async with started(lambda: execute(shout, "hi", heard.append, closing=[store])) as task:
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.001)
            assert not task.done()
        stored.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert heard == [Text("HI"), Finished("HI")]


async def test_second_cancel_waits_for_the_storing_of_the_first() -> None:
    stored, heard = asyncio.Event(), list[Event]()

    async def store(_: Outcome[Any]) -> None:
        await stored.wait()

    async with started(lambda: execute(forever, "hi", heard.append, closing=[store])) as task:
        task.cancel("first")
        await asyncio.sleep(0.001)
        task.cancel("second")
        await asyncio.sleep(0.001)
        assert not task.done()
        stored.set()
        with pytest.raises(asyncio.CancelledError, match="second"):
            await task
    assert ends(heard) == [Cancelled("first")]


@pytest.mark.usefixtures("short_tail")
@pytest.mark.parametrize("hangs", [False, True])
async def test_listener_that_cannot_hear_the_end_changes_nothing(hangs: bool) -> None:
    async def listener(event: Event) -> None:
        if isinstance(event, Finished):
            if hangs:
                await asyncio.Event().wait()
            raise ConnectionResetError

    assert await execute(shout, "hi", listener) == "HI"


# The listener fails, or is slow


@pytest.mark.parametrize("waits", [False, True])
async def test_listener_that_fails_cancels_the_run_past_every_policy(waits: bool) -> None:
    error, seen, stops, calls = ConnectionResetError("gone"), list[object](), list[str](), list[Event]()
    error.__cause__ = cause = OSError("socket")

    def now(event: Event) -> None:
        calls.append(event)
        raise error

    async def later(event: Event) -> None:
        await asyncio.sleep(0)
        now(event)

    async def policy(request: str, run: Run) -> str:
        try:
            return await shout(request, run)
        except Exception:
            stops.append("caught as the executor's")
            raise
        except BaseException as stop:
            stops.append(type(stop).__name__)
            await run.emit(Text("goodbye"))
            raise

    with pytest.raises(ConnectionResetError, match="gone") as caught:
        await execute(policy, "hi", later if waits else now, closing=[seen.append])
    assert caught.value is error
    assert error.__cause__ is cause
    assert stops == ["ListenerFailed"]
    assert seen == [Cancelled("listener failed: gone")]
    assert calls == [Text("HI")]


async def swallow(request: str, run: Run) -> str:
    with suppress(BaseException):
        await run.emit(Text("x"))
    return "as if nothing had happened"


async def group(request: str, run: Run) -> str:
    async with asyncio.TaskGroup() as tasks:
        for name in "ab":
            tasks.create_task(shout(request, run.child(name)))
    return "not reached"


async def stumble(request: str, run: Run) -> str:
    try:
        await run.emit(Text("x"))
    finally:
        raise ValueError(request)


@pytest.mark.parametrize("executor", [swallow, group, stumble])
async def test_listener_failure_stays_one_whatever_the_executor_makes_of_it(executor: Any) -> None:
    seen: list[object] = []

    def listener(_: Event) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        await execute(executor, "hi", listener, closing=[seen.append])
    assert seen == [Cancelled("listener failed: gone")]


async def test_cancel_after_the_listener_failed_still_propagates() -> None:
    async def executor(request: str, run: Run) -> str:
        with suppress(BaseException):
            await run.emit(Text(request))
        return await asyncio.Future()

    def listener(_: Event) -> None:
        raise ConnectionResetError

    async with started(lambda: execute(executor, "hi", listener)) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_storing_that_fails_after_the_listener_failed_is_raised() -> None:
    def listener(_: Event) -> None:
        raise ConnectionResetError("gone")

    def store(_: Outcome[Any]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await execute(shout, "hi", listener, closing=[store])


async def test_outer_listener_that_fails_stops_the_inner_root_too() -> None:
    inner: list[object] = []

    async def nested(request: str, run: Run) -> str:
        return await execute(shout, request, run.emit, closing=[inner.append])

    def listener(_: Event) -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        await execute(nested, "hi", listener)
    assert [type(outcome) for outcome in inner] == [Cancelled]


async def test_slow_listener_slows_the_executor() -> None:
    told, taken, heard = list[int](), asyncio.Semaphore(0), list[Event]()

    async def listener(event: Event) -> None:
        await taken.acquire()
        heard.append(event)

    async def executor(request: int, run: Run) -> int:
        for number in range(request):
            await run.emit(Text(str(number)))
            told.append(number)
        return request

    async with started(lambda: execute(executor, 5, listener)) as task:
        for expected in range(5):
            assert told == list(range(expected))
            taken.release()
            await asyncio.sleep(0.001)
        taken.release()
        assert await task == 5
    assert len(heard) == 6


async def test_listener_interrupted_by_a_part_of_the_run_hears_the_rest() -> None:
    heard: list[Event] = []

    async def listener(event: Event) -> None:
        if event == Text("slow"):
            await asyncio.Event().wait()
        heard.append(event)

    async def executor(request: str, run: Run) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await run.emit(Text("slow"))
        return await shout(request, run)

    await execute(executor, "hi", listener)
    assert heard == [Text("HI"), Finished("HI")]


async def test_cancelled_run_does_not_wait_again_for_the_listener_it_interrupted() -> None:
    heard, stalled = list[Event](), asyncio.Event()

    async def listener(event: Event) -> None:
        if not isinstance(event, Cancelled):
            await stalled.wait()
        heard.append(event)

    async def executor(request: str, run: Run) -> str:
        try:
            return await shout(request, run)
        finally:
            await run.emit(Used(usage=Usage(total_tokens=1)))

    async with started(lambda: execute(executor, "hi", listener)) as task:
        task.cancel()
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait([task])
    assert heard == [Cancelled()]


# The handle


async def test_child_speaks_under_its_path_and_grandchild_below_it() -> None:
    heard: list[Event] = []

    async def executor(request: str, run: Run) -> str:
        plan = run.child("plan")
        assert plan.child("llm").path == "plan/llm"
        await run.emit(Text("own"))
        await plan.emit(Text("p"))
        await plan.child("llm").emit(Text("l"))
        return "done"

    await execute(executor, "hi", heard.append)
    assert heard[:-1] == [Text("own"), Text("p", path="plan"), Text("l", path="plan/llm")]


async def test_content_is_the_own_path_and_usage_is_of_all() -> None:
    async def executor(request: str, run: Run) -> str:
        await run.emit(Reasoning("hm"))
        for speaker in (run, run.child("tool"), run.child("a").child("b")):
            await speaker.emit(Text(speaker.path or "own"))
            await speaker.emit(Reasoning(speaker.path))
            await speaker.emit(Used(usage=Usage(total_tokens=5)))
        return "done"

    async with execute_stream(executor, "hi") as execution:
        async for _ in execution:
            pass
    assert (execution.content, execution.reasoning, execution.usage.total) == ("own", "hm", 15)


@pytest.mark.parametrize("waits", [False, True])
async def test_listeners_hear_the_newest_first_and_the_client_last(waits: bool) -> None:
    said: list[tuple[str, str]] = []

    def tap(name: str) -> Callable[[Event], Awaitable[None] | None]:
        def now(event: Event) -> None:
            if isinstance(event, Text):
                said.append((name, event.path))

        async def later(event: Event) -> None:
            await asyncio.sleep(0)
            now(event)

        return later if waits else now

    async def executor(request: str, run: Run) -> str:
        run = run.listening(tap("outer")).listening(tap("inner"))
        return await shout(request, run.child("c").listening(tap("child")))

    await execute(executor, "hi", tap("client"))
    assert said == [("child", ""), ("inner", "c"), ("outer", "c"), ("client", "c")]


async def test_telling_replaces_where_events_go_and_later_listeners_hear_first() -> None:
    heard, tapped = list[Event](), list[Event]()

    async def executor(request: str, run: Run) -> str:
        emit = run.emit

        async def twice(event: Event) -> None:
            await emit(event)
            await emit(event)

        return await shout(request, run.telling(twice).listening(tapped.append))

    await execute(executor, "hi", heard.append)
    assert tapped == [Text("HI")]
    assert heard == [Text("HI"), Text("HI"), Finished("HI")]


async def test_run_carries_principal_and_span() -> None:
    alice, spans = Principal("alice", "acme", frozenset({"chat"})), list[object]()

    async def executor(request: str, run: Run) -> Principal:
        spans.extend([run.span, run.under(INVALID_SPAN).child("c").span])
        return run.child("c").principal

    assert await execute(executor, "hi", principal=alice) is alice
    assert await execute(executor, "hi", parent=INVALID_SPAN) is LOCAL
    assert spans == [None, INVALID_SPAN, INVALID_SPAN, INVALID_SPAN]
    assert (alice.holds("chat"), alice.holds("tools"), LOCAL.holds("anything")) == (True, False, True)


def test_run_sync_returns_the_result() -> None:
    assert run_sync(shout, "hi") == "HI"


# Closed, not awaited


async def test_closed_coroutine_is_an_abandoned_run() -> None:
    heard, seen = list[Event](), list[object]()
    call = execute(forever, "hi", heard.append, closing=[seen.append])
    call.send(None)
    call.close()
    await asyncio.sleep(0.001)
    assert seen == [Cancelled("abandoned")]
    assert heard == [Text("hi"), Cancelled("abandoned")]


async def test_run_dropped_while_it_works_is_closed_by_the_collector(caplog: pytest.LogCaptureFixture) -> None:
    place: ContextVar[str] = ContextVar("place", default="")
    seen, closed = list[object](), list[str]()

    async def executor(request: str, run: Run) -> str:
        token = place.set("inside")
        try:
            return await forever(request, run)
        finally:
            place.reset(token)
            closed.append(place.get())

    call = execute(executor, "hi", closing=[seen.append])
    call.send(None)
    del call
    gc.collect()
    await asyncio.sleep(0.001)
    assert (closed, seen) == ([""], [Cancelled("abandoned")])
    assert not caplog.records


async def test_execution_never_entered_costs_nothing(recwarn: pytest.WarningsRecorder) -> None:
    execute_stream(shout, "hi")
    gc.collect()
    assert not recwarn.list


async def test_generator_around_an_execution_closed_elsewhere_ends_it_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []

    async def consume() -> AsyncGenerator[Event, None]:
        async with execute_stream(forever, "hi", closing=[seen.append]) as execution:
            async for event in execution:
                yield event

    events = consume()
    assert await anext(events) == Text("hi")
    with caplog.at_level(logging.WARNING):
        await asyncio.create_task(events.aclose())
    assert seen == [Cancelled("the consumer left early")]
    assert not caplog.records
