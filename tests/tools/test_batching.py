"""The type `batching`: calls that come together go to the function as one list, and fail alone."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypedDict

import pytest
import uvloop
from pydantic import BaseModel, field_validator

from penstock.errors import ToolFailed, UsageError
from penstock.tools.function import BatchSpec, FunctionToolSpec
from penstock.tools.function.batching import BatchingFunctionExecutor
from penstock.tools.result import ToolContext, ToolResult
from penstock.tools.spec import CacheSpec
from tests.tools.process_functions import double_all

NUMBER = {"n": {"type": "integer"}}
WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


class Batches:
    """A function that doubles `n`, and what it was given, batch by batch."""

    def __init__(self, answer: Callable[[list[Any]], Any] | None = None) -> None:
        self.seen: list[list[Any]] = []
        self.answer = answer

    async def __call__(self, items: list[dict[str, int]]) -> Any:
        self.seen.append([item["n"] for item in items])
        await asyncio.sleep(0)
        return [item["n"] * 2 for item in items] if self.answer is None else self.answer(items)


def batching(
    func: Callable[..., Any], linger_s: float = 0.02, max_items: int = 16, **fields: Any
) -> BatchingFunctionExecutor:
    fields = {"parameters": NUMBER, **fields}
    batch = BatchSpec(linger_s=linger_s, max_items=max_items)
    return BatchingFunctionExecutor(FunctionToolSpec(tool_name="many", batch=batch, **fields), func)


async def each(tool: BatchingFunctionExecutor, numbers: Sequence[int]) -> list[ToolResult]:
    return await asyncio.gather(*(tool.execute({"n": n}) for n in numbers))


async def test_row_b11_calls_that_come_together_are_one_and_results_go_by_position() -> None:
    func = Batches()
    results = await each(batching(func), [3, 1, 2])
    assert [result.content for result in results] == [6, 2, 4]
    assert func.seen == [[3, 1, 2]]


async def test_row_b11_a_full_batch_goes_at_once_and_the_next_one_begins() -> None:
    func = Batches()
    results = await asyncio.wait_for(each(batching(func, linger_s=0.3, max_items=2), [1, 2, 3, 4, 5]), 1)
    assert [result.content for result in results] == [2, 4, 6, 8, 10]
    assert func.seen == [[1, 2], [3, 4], [5]]


async def test_row_b11_a_call_that_comes_later_than_the_linger_is_another_batch() -> None:
    func = Batches()
    tool = batching(func, linger_s=0.01)
    first = asyncio.create_task(tool.execute({"n": 1}))
    await asyncio.sleep(0.05)
    assert (await tool.execute({"n": 2})).content == 4
    assert (await first).content == 2
    assert func.seen == [[1], [2]]


async def test_row_b11_a_call_that_comes_within_the_linger_is_in_the_batch() -> None:
    func = Batches()
    tool = batching(func, linger_s=0.25)
    first = asyncio.create_task(tool.execute({"n": 1}))
    await asyncio.sleep(0.04)
    assert (await tool.execute({"n": 2})).content == 4
    assert (await first).content == 2
    assert func.seen == [[1, 2]]


async def test_row_b11_a_failing_call_fails_alone() -> None:
    func = Batches(lambda items: [ValueError("odd") if item["n"] % 2 else item["n"] for item in items])
    good, bad, also = await each(batching(func), [2, 3, 4])
    assert (good.content, also.content) == (2, 4)
    assert bad.error is not None
    assert (bad.error.code, bad.error.message) == ("failed", "ValueError: odd")


async def test_row_b11_an_error_that_a_tool_raises_keeps_its_code() -> None:
    func = Batches(lambda _: [ToolFailed("sold out", code="sold_out", retryable=False)])
    (result,) = await each(batching(func), [1])
    assert result.error is not None
    assert result.error.code == "sold_out"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: [1], "returned 1 values for a batch of 2"),
        (lambda _: "ab", "returned a str for a batch of 2"),
        (lambda _: None, "returned a NoneType for a batch of 2"),
        (lambda _: {"a": 1, "b": 2}, "returned a dict for a batch of 2"),
    ],
)
async def test_row_b11_a_wrong_number_of_results_fails_the_whole_batch(answer: Callable[..., Any], said: str) -> None:
    results = await each(batching(Batches(answer)), [1, 2])
    assert all(result.error is not None and said in result.error.message for result in results)


async def test_row_b11_a_function_that_raises_fails_its_batch_and_no_other() -> None:
    def answer(items: list[Any]) -> Any:
        if items[0]["n"] < 0:
            raise ValueError("negative")
        return [0] * len(items)

    results = await each(batching(Batches(answer), max_items=2), [-1, 2, 3, 4])
    assert [result.ok for result in results] == [False, False, True, True]
    assert results[1].error is not None
    assert "ValueError: negative" in results[1].error.message


async def test_row_b11_a_function_that_is_cancelled_from_within_fails_its_batch() -> None:
    def answer(items: list[Any]) -> Any:
        raise asyncio.CancelledError

    results = await asyncio.wait_for(each(batching(Batches(answer)), [1, 2]), 5)
    assert [result.error.code if result.error else "" for result in results] == ["cancelled"] * 2


async def test_row_b11_who_leaves_before_the_batch_goes_is_not_called_for() -> None:
    func = Batches()
    tool = batching(func, linger_s=0.05)
    tasks = [asyncio.create_task(tool.execute({"n": n})) for n in (1, 2, 3)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    assert [(await tasks[0]).content, (await tasks[2]).content] == [2, 6]
    assert tasks[1].cancelled()
    assert func.seen == [[1, 3]]


async def test_row_b11_who_leaves_makes_room_in_the_batch() -> None:
    func = Batches()
    tool = batching(func, linger_s=0.05, max_items=2)
    gone = asyncio.create_task(tool.execute({"n": 1}))
    await asyncio.sleep(0.01)
    gone.cancel()
    results = await each(tool, [2, 3])
    assert [result.content for result in results] == [4, 6]
    assert func.seen == [[2, 3]]


async def test_row_b11_a_batch_that_everybody_left_is_not_called() -> None:
    func = Batches()
    task = asyncio.create_task(batching(func, linger_s=0.02).execute({"n": 1}))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.05)
    assert func.seen == []


async def test_row_b11_the_last_to_leave_stops_the_call_and_not_the_first() -> None:
    ends: list[str] = []

    async def slow(items: list[dict[str, int]]) -> list[int]:
        try:
            await asyncio.sleep(0.05 if items[0]["n"] else 30)
        except asyncio.CancelledError:
            ends.append("stopped")
            raise
        return [7] * len(items)

    tool = batching(slow, linger_s=0.0)
    tasks = [asyncio.create_task(tool.execute({"n": 1})) for _ in range(2)]
    await asyncio.sleep(0.03)
    tasks[0].cancel()
    assert (await tasks[1]).content == 7
    assert ends == []
    tasks = [asyncio.create_task(tool.execute({"n": 0})) for _ in range(2)]
    await asyncio.sleep(0.03)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    assert ends == ["stopped"]


async def test_row_b11_each_call_has_its_own_deadline() -> None:
    async def slow(items: list[dict[str, int]]) -> list[int]:
        await asyncio.sleep(30)
        return []

    began = asyncio.get_running_loop().time()
    (result,) = await each(batching(slow, timeout_s=0.1), [1])
    assert result.error is not None
    assert result.error.code == "timeout"
    assert asyncio.get_running_loop().time() - began < 5


async def test_row_b11_a_synchronous_function_runs_in_a_thread_and_one_in_a_process_there() -> None:
    def here(items: list[dict[str, int]]) -> list[bool]:
        return [threading.current_thread() is threading.main_thread()] * len(items)

    assert [result.content for result in await each(batching(here), [1, 2])] == [False, False]
    assert [result.content for result in await each(batching(here, run_in="inline"), [1, 2])] == [True, True]
    (result,) = await each(batching(double_all, run_in="process"), [4])
    assert result.content[0] == 8
    assert result.content[1] != os.getpid()


async def test_row_b11_a_batch_is_not_in_the_context_of_a_caller() -> None:
    async def who(items: list[dict[str, int]]) -> list[str]:
        return [WHO.get()] * len(items)

    WHO.set("alice")
    assert [result.content for result in await each(batching(who, max_items=1), [1])] == ["nobody"]
    assert [result.content for result in await each(batching(who), [1])] == ["nobody"]


class Order(BaseModel):
    """A pydantic model."""

    day: dt.date
    count: int = 1

    @field_validator("count")
    @classmethod
    def _whole(cls, value: int) -> int:
        if value == 13:
            raise ValueError("unlucky")
        return value


@dataclasses.dataclass
class Booking:
    """A dataclass."""

    day: dt.date
    count: int = 1


class Dated(TypedDict):
    """A typed dictionary."""

    day: dt.date
    count: int


async def of_models(items: list[Order]) -> list[Any]:
    return [[type(item).__name__, item.day.year, item.count] for item in items]


def of_dataclasses(orders: Sequence[Booking]) -> list[Any]:
    return [[type(item).__name__, item.day.year, item.count] for item in orders]


def of_dictionaries(items: list[Dated]) -> list[Any]:
    return [[type(item).__name__, item["day"].year, item["count"]] for item in items]


@pytest.mark.parametrize(
    ("func", "name"), [(of_models, "Order"), (of_dataclasses, "Booking"), (of_dictionaries, "dict")]
)
async def test_row_b11_parameters_are_the_fields_of_what_the_list_holds(func: Callable[..., Any], name: str) -> None:
    tool = batching(func, parameters=None)
    properties = tool.arguments.schema["properties"]
    assert properties["day"] == {"type": "string", "format": "date"}
    assert set(properties) == {"day", "count"}
    good, bad = await asyncio.gather(
        tool.execute('{"day": "2024-02-29", "count": 2}'), tool.execute('{"day": "2023-02-29", "count": "x", "z": 1}')
    )
    assert good.content == [name, 2024, 2]
    assert bad.error is not None
    assert bad.error.code == "bad_arguments"
    assert {problem["path"] for problem in bad.error.details} >= {"count"}


async def test_row_b11_what_a_model_itself_refuses_is_told_as_wrong_arguments() -> None:
    tool = batching(of_models, parameters=None)
    good, bad = await asyncio.gather(
        tool.execute({"day": "2024-02-29"}), tool.execute({"day": "2024-02-29", "count": 13})
    )
    assert good.content == ["Order", 2024, 1]
    assert bad.error is not None
    assert (bad.error.code, bad.error.details[0]["path"]) == ("bad_arguments", "count")
    assert "unlucky" in bad.error.message


async def test_row_b11_a_list_that_says_nothing_of_its_items_takes_declared_ones() -> None:
    def args_style(args: Any) -> list[int]:
        return [item["n"] + 1 for item in args]

    assert [result.content for result in await each(batching(args_style), [1, 2])] == [2, 3]


def no_list() -> list[int]:
    return []


def two_lists(items: list[int], more: list[int]) -> list[int]:
    return items + more


def with_context(items: list[int], ctx: ToolContext) -> list[int]:
    return items


async def yields(items: list[int]) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("func", "said"),
    [
        (no_list, "must take one list"),
        (two_lists, "must take one list"),
        (with_context, "cannot yield, nor take a caller's context"),
        (yields, "cannot yield"),
    ],
)
def test_row_b11_a_function_that_cannot_be_batched_is_refused(func: Callable[..., Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        batching(func)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_row_b11_event_loops_come_and_go(run: Callable[..., Any]) -> None:
    func = Batches()
    tool = batching(func, linger_s=0.01)

    async def left_open() -> None:
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
        await tool.execute({"n": 9})

    for _ in range(2):
        assert [result.content for result in run(each(tool, [1, 2]))] == [2, 4]
        with pytest.raises(asyncio.CancelledError):
            run(left_open())
    assert func.seen == [[1, 2], [1, 2]]
    assert len(tool._open) <= 1


def test_row_b11_loops_in_two_threads_have_batches_of_their_own() -> None:
    func = Batches()
    tool = batching(func, linger_s=0.05)
    contents: list[list[Any]] = []

    def work(numbers: list[int]) -> None:
        contents.append([result.content for result in asyncio.run(each(tool, numbers))])

    threads = [threading.Thread(target=work, args=(numbers,)) for numbers in ([1, 2], [3, 4])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(contents) == [[2, 4], [6, 8]]
    assert sorted(func.seen) == [[1, 2], [3, 4]]


async def test_row_b11_a_batch_and_a_cache_go_together() -> None:
    func = Batches()
    tool = batching(func, cache=CacheSpec())
    assert [result.content for result in await each(tool, [1, 1, 2])] == [2, 2, 4]
    assert (await tool.execute({"n": 2})).content == 4
    assert func.seen == [[1, 2]]


async def test_row_b11_a_full_batch_leaves_no_timer_behind() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    tool = batching(Batches(), linger_s=0.02, max_items=2)
    assert all(result.ok for result in await each(tool, [1, 2]))
    await asyncio.sleep(0.04)
    assert complaints == []


def test_a_list_of_nobody_knows_what_is_refused() -> None:
    async def untold(items: list[Any]) -> list[Any]:
        return items

    with pytest.raises(UsageError, match="needs parameters"):
        batching(untold, parameters=None)
