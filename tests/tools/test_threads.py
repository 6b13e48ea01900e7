"""`Threads` and `iterate`: synchronous functions beside the event loop, which hold nothing up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import pytest

from penstock.errors import ToolFailed
from penstock.tools.function.threads import Threads, iterate

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def raising(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_function_runs_in_another_thread_that_is_used_again() -> None:
    own = Threads(9)
    seen = {await own.run(threading.get_ident) for _ in range(20)}
    assert len(seen) == 1
    assert threading.get_ident() not in seen


async def test_a_thread_has_the_callers_context_and_changes_none() -> None:
    own = Threads(9)
    WHO.set("alice")
    assert await own.run(WHO.get) == "alice"
    await own.run(lambda: WHO.set("mallory"))
    assert await own.run(WHO.get) == WHO.get() == "alice"


async def test_calls_run_side_by_side_up_to_the_limit_and_the_rest_waits() -> None:
    own, running, most = Threads(most=3), [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1

    await asyncio.wait_for(asyncio.gather(*(own.run(work) for _ in range(12))), 5)
    assert most == [3]


async def test_one_that_overruns_takes_no_place() -> None:
    own, free = Threads(most=2), threading.Event()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(own.run(free.wait), 0.02)
    assert await asyncio.wait_for(own.run(lambda: "next"), 5) == "next"
    free.set()
    await until(lambda: own._running == 2)
    assert own._free == 2


async def test_calls_that_never_return_are_bounded_and_then_refused_until_one_does() -> None:
    own, free, before = Threads(most=3), threading.Event(), threading.active_count()
    ends: list[Any] = []
    for _ in range(4):
        calls = [asyncio.wait_for(own.run(free.wait), 0.02) for _ in range(5)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert threading.active_count() - before == 6
    assert [(end.code, end.retryable) for end in ends if isinstance(end, ToolFailed)] == [("unavailable", True)] * 5
    free.set()
    await until(lambda: own._free == 3)
    assert await asyncio.wait_for(own.run(lambda: "next"), 5) == "next"
    assert (own._running, own._left) == (3, 0)


async def test_a_call_waits_while_some_places_are_not_taken_by_overruns() -> None:
    own, free, short = Threads(most=2), threading.Event(), threading.Event()
    well = asyncio.create_task(own.run(lambda: short.wait(5)))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(own.run(free.wait), 0.02)
    waiting = asyncio.create_task(own.run(lambda: "next"))
    await asyncio.sleep(0.02)
    short.set()
    assert (await well, await asyncio.wait_for(waiting, 5)) == (True, "next")
    free.set()


async def test_one_that_waits_behind_an_overrun_gets_its_place() -> None:
    own, free = Threads(most=1), threading.Event()
    stuck = asyncio.create_task(own.run(free.wait))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(own.run(lambda: "done"))
    await asyncio.sleep(0.01)
    stuck.cancel()
    assert await asyncio.wait_for(waiting, 5) == "done"
    free.set()


async def test_one_that_is_cancelled_while_it_waits_is_never_called() -> None:
    own, free, called = Threads(most=1), threading.Event(), list[str]()
    first = asyncio.create_task(own.run(free.wait))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(own.run(lambda: called.append("second")))
    await asyncio.sleep(0.01)
    second.cancel()
    third = asyncio.create_task(own.run(lambda: called.append("third")))
    await asyncio.sleep(0.01)
    free.set()
    await first
    await third
    assert called == ["third"]


async def test_a_call_that_gets_no_thread_fails_and_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Threads(1)
    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", lambda _: raising(RuntimeError("can't start new thread"))())
        with pytest.raises(RuntimeError, match="can't start"):
            await own.run(int)
    assert await asyncio.wait_for(own.run(lambda: "next"), 5) == "next"
    await until(lambda: (own._running, own._free) == (1, 1))


async def test_idle_threads_end_and_new_ones_come() -> None:
    own = Threads(9, idle_s=0.05)
    first = await own.run(threading.current_thread)
    await until(lambda: not first.is_alive())
    assert (own._running, own._free) == (0, 0)
    assert await own.run(threading.current_thread) is not first


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(3), "the function raised SystemExit: 3"),
        (KeyboardInterrupt(), "the function raised KeyboardInterrupt"),
        (StopIteration(5), "the function raised StopIteration: 5"),
        (GeneratorExit(), "the function raised GeneratorExit"),
        (asyncio.CancelledError(), "the function raised CancelledError"),
    ],
)
async def test_what_would_end_the_loop_is_a_failure_instead(error: BaseException, said: str) -> None:
    with pytest.raises(ToolFailed, match=said) as caught:
        await Threads(9).run(raising(error))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("no"), StopAsyncIteration(), TimeoutError()])
async def test_an_error_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await Threads(9).run(raising(error))
    assert caught.value is error


def test_a_loop_that_is_gone_when_the_function_ends_harms_nothing() -> None:
    own, free = Threads(9), threading.Event()

    async def main() -> None:
        await asyncio.wait_for(own.run(free.wait), 0.02)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    free.set()
    assert asyncio.run(own.run(lambda: "well")) == "well"


NEVER = """
import asyncio, threading
from penstock.tools.function import tool

@tool(timeout_s=0.1)
def never() -> None:
    threading.Event().wait()

@tool(timeout_s=0.1)
def endless():
    while True:
        threading.Event().wait()
        yield 1

async def main():
    for one in (never, endless):
        result = await one.execute({})
        print(result.error.code, result.error.details["stopped"])

asyncio.run(main())
"""


def test_a_thread_that_never_returns_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", NEVER], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "timeout False\ntimeout False\n", "")


class Items:
    """A generator, and in which threads and context it was run."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.seen: list[str] = []
        self.closed = threading.Event()

    def __call__(self, count: int = 1000) -> Generator[int, None, None]:
        try:
            for number in range(count):
                self.threads.append(threading.get_ident())
                self.seen.append(WHO.get())
                WHO.set(str(number))
                yield number
        finally:
            self.threads.append(threading.get_ident())
            self.closed.set()


async def test_a_generator_lives_in_one_thread_and_one_context() -> None:
    items = Items()
    WHO.set("alice")
    assert [item async for item in iterate(lambda: items(3))] == [0, 1, 2]
    assert len(set(items.threads)) == 1
    assert threading.get_ident() not in items.threads
    assert items.seen == ["alice", "0", "1"]
    assert WHO.get() == "alice"


async def test_a_generator_makes_an_item_when_it_is_asked_for_one() -> None:
    items = Items()
    async with aclosing(iterate(items)) as stream:
        assert [await anext(stream), await anext(stream)] == [0, 1]
        await asyncio.sleep(0.02)
        assert len(items.seen) == 2
    assert items.closed.is_set()
    assert len(set(items.threads)) == 1


async def test_a_generator_is_closed_in_its_thread_when_its_reader_is_cancelled() -> None:
    items, free = Items(), threading.Event()

    def slow() -> Generator[int, None, None]:
        for number in items():
            free.wait(5)
            yield number

    async def read() -> None:
        async for _ in iterate(slow):
            pass

    task = asyncio.create_task(read())
    await until(lambda: items.seen)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    assert not items.closed.is_set()
    free.set()
    await until(items.closed.is_set)
    assert len(set(items.threads)) == 1


async def test_generators_that_never_yield_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.tools.function.threads.MOST", 3)
    free = threading.Event()

    def stuck() -> Generator[bool, None, None]:
        yield free.wait(5)

    def never_closed() -> Generator[bool, None, None]:
        try:
            yield True
        finally:
            free.wait(5)

    async def first_of_two() -> None:
        async with aclosing(iterate(never_closed)) as stream:
            await anext(stream)

    for left in (anext(iterate(stuck)), anext(iterate(stuck)), first_of_two()):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(left, 0.02)
    with pytest.raises(ToolFailed, match="3 functions that overran") as refused:
        await asyncio.wait_for(anext(iterate(stuck)), 5)
    assert (refused.value.code, refused.value.retryable) == ("unavailable", True)
    free.set()
    await until(lambda: not any(each.name == "penstock-tool-stream" for each in threading.enumerate()))
    assert [item async for item in iterate(stuck)] == [True]


async def test_an_error_of_a_generator_is_raised_where_it_is_read() -> None:
    def broken() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    def exits() -> Generator[int, None, None]:
        yield 1
        sys.exit(3)

    stream = iterate(broken)
    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)
    with pytest.raises(ToolFailed, match="the function raised SystemExit: 3"):
        assert [item async for item in iterate(exits)]


async def test_a_generator_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(ValueError, match="not made"):
        await asyncio.wait_for(anext(iterate(raising(ValueError("not made")))), 5)


async def test_an_error_in_closing_is_raised_where_it_is_closed() -> None:
    def stubborn() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            raise ValueError("stubborn")

    stream = iterate(stubborn)
    await anext(stream)
    with pytest.raises(ValueError, match="stubborn"):
        await stream.aclose()
