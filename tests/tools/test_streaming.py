"""The types `streaming` and `cached`: items are told as they come; results are kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import pytest

from penstock.errors import ToolFailed, ToolTimeout, UsageError
from penstock.events import Event, Item, Text
from penstock.run import execute
from penstock.testing import Heard
from penstock.tools.function import FunctionToolExecutor, FunctionToolSpec
from penstock.tools.function.batching import CachedFunctionExecutor, StreamingFunctionExecutor
from penstock.tools.result import ToolRequest
from penstock.tools.spec import CacheSpec


def words(count: int = 3) -> Generator[str, None, None]:
    for number in range(count):
        yield f"w{number} "


async def async_words(count: int = 3) -> AsyncIterator[str]:
    for word in words(count):
        await asyncio.sleep(0)
        yield word


def mixed() -> Generator[Any, None, None]:
    yield "a"
    yield {"n": 1}
    yield None


class Endless:
    """A generator that never ends, and whether it was closed, and where."""

    def __init__(self) -> None:
        self.made = 0
        self.closed: list[str] = []
        self.threads: set[int] = set()

    def __call__(self) -> Generator[str, None, None]:
        try:
            while True:
                self.made += 1
                self.threads.add(threading.get_ident())
                yield "x" * 1000
        finally:
            self.threads.add(threading.get_ident())
            self.closed.append("sync")

    async def later(self) -> AsyncIterator[str]:
        try:
            while True:
                self.made += 1
                await asyncio.sleep(0)
                yield "x" * 1000
        finally:
            self.closed.append("async")


def streaming(func: Callable[..., Any], **fields: Any) -> StreamingFunctionExecutor:
    return StreamingFunctionExecutor(FunctionToolSpec(tool_name="stream", **fields), func)


async def told(tool: FunctionToolExecutor, arguments: Any = "{}") -> tuple[list[Event], Any]:
    heard = Heard()
    result = await execute(tool, ToolRequest(arguments), heard)
    return [event for event in heard.events if isinstance(event, Text | Item)], result


@pytest.mark.parametrize("run_in", ["thread", "inline"])
@pytest.mark.parametrize("func", [words, async_words])
async def test_row_b11_each_text_is_an_event_and_the_value_is_the_joined_text(
    func: Callable[..., Any], run_in: str
) -> None:
    events, result = await told(streaming(func, run_in=run_in), '{"count": 2}')
    assert events == [Text("w0 "), Text("w1 ")]
    assert result.content == "w0 w1 "


@pytest.mark.parametrize("run_in", ["thread", "inline"])
async def test_row_b11_other_items_are_events_too_and_the_value_is_their_list(run_in: str) -> None:
    events, result = await told(streaming(mixed, run_in=run_in))
    assert events == [Text("a"), Item({"n": 1}), Item(None)]
    assert result.content == ["a", {"n": 1}, None]


async def test_row_b11_an_event_is_told_before_the_next_item_is_made() -> None:
    endless, seen = Endless(), list[int]()

    async def listen(event: Event) -> None:
        if isinstance(event, Text):
            seen.append(endless.made)
            await asyncio.sleep(0.002)

    await execute(streaming(endless, max_result_bytes=4000), ToolRequest("{}"), listen)
    assert seen[:4] == [1, 2, 3, 4]


async def test_row_b11_no_items_are_an_empty_text() -> None:
    assert (await told(streaming(words), '{"count": 0}'))[1].content == ""


@pytest.mark.parametrize("func", [len, asyncio.sleep, lambda: [1, 2]])
def test_row_b11_a_function_that_does_not_yield_is_refused(func: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="'stream' of the type 'streaming' needs a function that yields"):
        streaming(func, parameters={})


@pytest.mark.parametrize("way", ["thread", "inline", "async"])
async def test_case_21_an_endless_stream_is_cut_at_the_limit_and_closed(way: str) -> None:
    endless = Endless()
    func = endless.later if way == "async" else endless
    tool = streaming(func, run_in="inline" if way == "inline" else "thread", max_result_bytes=3500)
    _, result = await told(tool)
    assert len(result.content) < 3600
    assert result.content.endswith("[cut: longer than 3500 bytes]")
    assert result.warnings
    assert endless.made <= 6
    assert endless.closed == ["async" if way == "async" else "sync"]
    assert (threading.get_ident() in endless.threads) is (way == "inline")
    assert len(endless.threads) <= 1


async def test_a_stream_that_takes_too_long_is_closed() -> None:
    closed = asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(30)
        finally:
            closed.set()

    with pytest.raises(ToolTimeout) as caught:
        await told(streaming(slow, timeout_s=0.05))
    assert caught.value.details["stopped"]
    assert closed.is_set()


async def test_a_stream_in_a_thread_that_takes_too_long_goes_on_to_its_next_item_and_is_closed_there() -> None:
    free, closed = threading.Event(), threading.Event()

    def slow() -> Generator[str, None, None]:
        try:
            yield "a"
            free.wait(10)
            yield "b"
        finally:
            closed.set()

    with pytest.raises(ToolTimeout, match="goes on") as caught:
        await told(streaming(slow, timeout_s=0.05))
    assert caught.value.details == {"outcome": "unknown", "stopped": False}
    assert not closed.is_set()
    free.set()
    assert await asyncio.to_thread(closed.wait, 5)


@pytest.mark.parametrize("way", ["thread", "inline", "async"])
async def test_a_listener_that_fails_closes_the_stream(way: str) -> None:
    endless = Endless()

    def listen(event: Event) -> None:
        if isinstance(event, Text):
            raise ConnectionError("the client is gone")

    func = endless.later if way == "async" else endless
    with pytest.raises(ConnectionError):
        await execute(streaming(func, run_in="inline" if way == "inline" else "thread"), ToolRequest("{}"), listen)
    assert endless.closed == ["async" if way == "async" else "sync"]


async def test_an_error_after_the_first_item_is_the_result_whatever_was_told() -> None:
    def broken() -> Generator[str, None, None]:
        yield "a"
        raise ValueError("broken")

    heard = Heard()
    with pytest.raises(ToolFailed, match="ValueError: broken"):
        await execute(streaming(broken), ToolRequest("{}"), heard)
    assert Text("a") in heard.events


async def test_row_b11_cached_keeps_results_without_asking_for_it() -> None:
    calls: list[int] = []

    def counted(n: int) -> int:
        calls.append(n)
        return n * 10

    tool = CachedFunctionExecutor(FunctionToolSpec(tool_name="counted"), counted)
    assert tool.spec.cache == CacheSpec()
    results = [(await tool.execute({"n": n})).content for n in (1, 1, 2, 1)]
    assert results == [10, 10, 20, 10]
    assert calls == [1, 2]


async def test_row_b11_cached_keeps_them_as_its_spec_says() -> None:
    calls: list[int] = []
    spec = FunctionToolSpec(tool_name="counted", cache=CacheSpec(ttl_s=0.03))
    tool = CachedFunctionExecutor(spec, lambda: calls.append(1))
    for _ in range(3):
        await tool.execute({})
        await asyncio.sleep(0.04)
    assert calls == [1, 1, 1]
