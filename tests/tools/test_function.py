"""Function tools: every form a function may have, wherever it runs, and what becomes of one that overruns."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from penstock.errors import UsageError
from penstock.run import Principal
from penstock.tools.function import BaseFunctionExecutor, FunctionToolExecutor, FunctionToolSpec, tool
from penstock.tools.result import ToolContext, ToolResult
from tests.tools import process_functions as functions
from tests.tools import process_tools
from tests.tools.test_process import gone, until

NUMBERS = {"a": "integer", "b": {"type": "integer", "default": 5}}
ALICE = ToolContext(principal=Principal("alice", "acme"))
WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def of(func: Callable[..., Any], **fields: Any) -> FunctionToolExecutor:
    return FunctionToolExecutor(FunctionToolSpec(tool_name="sum", **fields), func)


def untyped(args, ctx) -> Any:  # type: ignore[no-untyped-def]  # noqa: ANN001  # as many write it
    return [args["a"] + args["b"], ctx.principal.name]


def mapping(args: dict[str, int]) -> list[Any]:
    return [args["a"] + args["b"], "alice"]


def mapping_with_context(args: Mapping[str, Any], context: ToolContext) -> list[Any]:
    return [args["a"] + args["b"], who(context)]


def typed(a: int, b: int = 5) -> list[Any]:
    return [a + b, "alice"]


def typed_with_context(a: int, run: ToolContext | None, b: int = 5) -> list[Any]:
    return [a + b, who(run)]


def by_name_with_context(a: int, *, ctx: ToolContext, b: int = 5) -> list[Any]:
    return [a + b, who(ctx)]


async def async_untyped(args, ctx) -> Any:  # type: ignore[no-untyped-def]  # noqa: ANN001
    return [args["a"] + args["b"], ctx.principal.name]


async def async_mapping(args: dict[str, int]) -> list[Any]:
    return mapping(args)


async def async_typed(a: int, b: int = 5) -> list[Any]:
    return typed(a, b)


async def async_typed_with_context(a: int, ctx: ToolContext, b: int = 5) -> list[Any]:
    return typed_with_context(a, ctx, b)


class Adder:
    """An object that is called, and its methods."""

    def __call__(self, a: int, b: int = 5) -> list[Any]:
        return typed(a, b)

    async def later(self, a: int, ctx: ToolContext, b: int = 5) -> list[Any]:
        return typed_with_context(a, ctx, b)

    @staticmethod
    def plainly(a: int, b: int = 5) -> list[Any]:
        return typed(a, b)

    @classmethod
    def of_class(cls, args: dict[str, Any], ctx: ToolContext) -> list[Any]:
        return mapping_with_context(args, ctx)


class AsyncAdder:
    """An object that is awaited."""

    async def __call__(self, a: int, b: int = 5) -> list[Any]:
        return typed(a, b)


def who(ctx: ToolContext | None) -> str:
    assert ctx is not None
    assert ctx.principal is not None
    assert ctx.run is not None
    assert ctx.tenant == "acme"
    return ctx.principal.name


FORMS = [
    untyped,
    mapping,
    mapping_with_context,
    typed,
    typed_with_context,
    by_name_with_context,
    async_untyped,
    async_mapping,
    async_typed,
    async_typed_with_context,
    Adder(),
    Adder().later,
    Adder.plainly,
    Adder.of_class,
    AsyncAdder(),
    functools.partial(typed, b=5),
    functools.partial(async_typed_with_context, b=5),
    functools.partial(Adder(), b=5),
    lambda a, b=5: typed(a, b),
    lambda a, b=5: async_typed(a, b),
]


@pytest.mark.parametrize("run_in", ["thread", "inline"])
@pytest.mark.parametrize("func", FORMS, ids=[getattr(form, "__qualname__", type(form).__name__) for form in FORMS])
async def test_row_b6_every_form_of_function_takes_declared_parameters(func: Callable[..., Any], run_in: str) -> None:
    result = await of(func, parameters=NUMBERS, run_in=run_in).execute('{"a": 2}', ALICE)
    assert result.error is None
    assert result.content == [7, "alice"]


@pytest.mark.parametrize("func", [typed, typed_with_context, async_typed, Adder(), functools.partial(typed, b=5)])
async def test_row_b6_plain_parameters_are_those_of_the_signature(func: Callable[..., Any]) -> None:
    made = of(func)
    assert set(made.arguments.schema["properties"]) == {"a", "b"}
    assert (await made.execute({"a": 2}, ALICE)).content == [7, "alice"]
    refused = await made.execute({"a": "x", "ctx": 1}, ALICE)
    assert refused.error is not None
    assert refused.error.code == "bad_arguments"


async def test_row_b6_positional_parameters_and_classes_are_called_too() -> None:
    with pytest.raises(UsageError, match="parameters of <built-in function hypot> are not known: wrap it"):
        of(math.hypot, parameters={})
    assert (await of(math.sqrt, parameters={"x": "number"}).execute({"x": 9})).content == 3.0
    point = await of(functions.Point, parameters={"x": "integer", "y": "integer"}).execute({"x": 1, "y": 2})
    assert point.content == functions.Point(1, 2)
    assert (await of(functions.Point).execute({"x": 1, "y": 2})).content == functions.Point(1, 2)

    def placed(args: dict[str, Any], ctx: ToolContext, /) -> list[Any]:
        return mapping_with_context(args, ctx)

    assert (await of(placed, parameters=NUMBERS).execute({"a": 2}, ALICE)).content == [7, "alice"]


def needs_more(a: int, c: int) -> int:
    return a + c


@pytest.mark.parametrize(
    ("func", "said"),
    [
        (needs_more, r"'needs_more' does not take \['b'\]"),
        (lambda a, b, c: [a, b, c], r"needs \['c'\], which the spec does not declare"),
        (lambda *args: args, r"does not take \['a', 'b'\]"),
    ],
)
def test_row_b6_a_function_that_cannot_take_what_is_declared_is_refused(func: Callable[..., Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        of(func, parameters=NUMBERS)


async def test_row_b6_one_that_takes_any_names_takes_all() -> None:
    assert (await of(lambda **rest: rest, parameters=NUMBERS).execute({"a": 1})).content == {"a": 1, "b": 5}


async def test_row_b6_a_thread_has_the_callers_context_variables() -> None:
    WHO.set("alice")
    result = await of(lambda: [WHO.get(), threading.current_thread() is threading.main_thread()]).execute({})
    assert result.content == ["alice", False]


async def test_row_b6_a_thread_that_overruns_is_said_to_go_on_with_an_unknown_outcome() -> None:
    done = threading.Event()

    def slow() -> None:
        time.sleep(0.3)
        done.set()

    result = await of(slow, timeout_s=0.05).execute({})
    assert result.error is not None
    assert result.error.code == "timeout"
    assert result.error.details == {"outcome": "unknown", "stopped": False}
    assert "goes on" in result.error.message
    assert not result.error.retryable
    await until(done.is_set)


async def test_row_b6_an_inline_function_that_overruns_warns() -> None:
    def slow(value: Any) -> Any:
        time.sleep(0.1)
        return value

    spec = {"run_in": "inline", "timeout_s": 0.05, "parameters": {}}
    result = await of(functools.partial(slow, 7), **spec).execute({})
    assert result.content == 7
    assert "longer than allowed: an inline function cannot be stopped" in result.warnings[0]
    result = await of(functools.partial(slow, ToolResult(8, warnings=("own",))), **spec).execute({})
    assert (result.content, result.warnings[0], len(result.warnings)) == (8, "own", 2)


async def test_row_b6_an_inline_generator_that_overruns_is_stopped_between_items() -> None:
    def slow() -> Any:
        for number in range(100):
            time.sleep(0.02)
            yield number

    began = time.monotonic()
    result = await of(slow, run_in="inline", timeout_s=0.1).execute({})
    assert result.error is not None
    assert (result.error.code, result.error.details["stopped"]) == ("timeout", True)
    assert time.monotonic() - began < 1


async def test_row_b6_a_process_that_overruns_is_really_stopped_and_its_child_too(tmp_path: Path) -> None:
    assert (await process_tools.triple.execute({"value": 2})).content == 6
    notes = tmp_path / "pids"
    result = await process_tools.spins.execute({"notes": str(notes)})
    assert result.error is not None
    assert (result.error.code, result.error.details["stopped"]) == ("timeout", True)
    pids = [int(pid) for pid in notes.read_text().split()]
    await until(lambda: all(map(gone, pids)), 2)
    assert (await process_tools.triple.execute({"value": 3})).content == 9


@pytest.mark.parametrize(
    ("func", "said"),
    [
        (lambda a: a, "at the top level of a module"),
        (typed_with_context, "it takes a context or is a generator"),
        (functions.Counter(1).add, ""),
        (functools.partial(typed, b=1), ""),
    ],
)
def test_row_b6_what_no_process_can_be_given_is_refused_at_once(func: Callable[..., Any], said: str) -> None:
    if said:
        with pytest.raises(UsageError, match=said):
            of(func, run_in="process")
    else:
        of(func, run_in="process")


@pytest.mark.parametrize(
    ("func", "code", "said"),
    [
        (functools.partial(functions.fails, "value"), "failed", "ValueError: "),
        (functools.partial(functions.fails, "stop"), "failed", "StopIteration"),
        (functools.partial(functions.fails, "system"), "failed", "SystemExit: 3"),
        (functools.partial(functions.fails, "interrupt"), "failed", "KeyboardInterrupt"),
        (functools.partial(functions.gives, "function"), "bad_return_value", "function that JSON cannot carry"),
        (functools.partial(functions.gives, "module"), "bad_return_value", "module that JSON cannot carry"),
    ],
)
async def test_whatever_a_function_does_is_one_error_and_the_next_call_is_well(
    func: Callable[..., Any], code: str, said: str
) -> None:
    made = of(func, parameters={})
    for _ in range(2):
        result = await made.execute({})
        assert result.error is not None
        assert result.error.code == code
        assert said in result.error.message


async def test_a_function_that_awaits_nothing_and_is_cancelled_by_its_caller_is_cancelled() -> None:
    async def waits() -> None:
        await asyncio.sleep(30)

    task = asyncio.create_task(of(waits).execute({}))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Counting(BaseFunctionExecutor):
    """A custom executor that keeps what it called: `async def`."""

    async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        assert 0 < timeout <= self.spec.timeout_s
        assert isinstance(ctx.principal, Principal)
        value = self.func(**args)
        return {"value": value, "by": ctx.principal.name}


class Spelling(BaseFunctionExecutor):
    """A custom executor that streams: an async generator."""

    async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> AsyncIterator[str]:
        for letter in self.func(**args):
            await asyncio.sleep(0)
            yield letter


class Passing(BaseFunctionExecutor):
    """A custom executor that adds to what is inherited."""

    async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        return [await super()._execute_function(args, ctx, timeout), "and more"]  # type: ignore[misc]


async def test_row_b5_a_custom_executor_defines_the_call_and_inherits_the_rest() -> None:
    spec = FunctionToolSpec(tool_name="own")
    counted = Counting(spec, lambda a, b: a + b)
    assert (await counted.execute({"a": 1, "b": 2}, ALICE)).content == {"value": 3, "by": "alice"}
    assert not (await counted.execute({"a": 1}, ALICE)).ok
    spelled = await Spelling(spec, lambda word: word).execute({"word": "abc"})
    assert spelled.content == "abc"
    assert (await Passing(spec, typed).execute({"a": 1})).content == [[6, "alice"], "and more"]


async def test_row_b5_a_custom_executor_has_the_deadline_too() -> None:
    class Slow(BaseFunctionExecutor):
        async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
            await asyncio.sleep(30)

    class SlowItems(BaseFunctionExecutor):
        async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> AsyncIterator[int]:
            yield 1
            await asyncio.sleep(30)

    for kind in (Slow, SlowItems):
        result = await kind(FunctionToolSpec(tool_name="slow", timeout_s=0.05), typed).execute({"a": 1})
        assert result.error is not None
        assert result.error.code == "timeout"


def test_row_b6_a_decorated_function_is_a_tool() -> None:
    @tool(name="renamed", timeout_s=3)
    def original(a: int) -> int:
        """Say what it does."""
        return a

    assert (original.name, original.description, original.spec.timeout_s) == ("renamed", "Say what it does.", 3)
    assert isinstance(tool(typed), FunctionToolExecutor)


class Shop:
    def price(self, item: str) -> str:
        return f"{item} for 1"

    @classmethod
    def open(cls, day: str) -> str:
        return f"{cls.__name__} on {day}"

    @staticmethod
    def close(day: str) -> str:
        return day


@pytest.mark.parametrize("fields", [{}, {"parameters": {"item": "string"}}, {"run_in": "process"}])
def test_row_b6_a_method_without_its_object_is_refused_and_told_how(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"'Shop.price' is a method without its object: .* tool\(obj.price\)"):
        tool(**fields)(Shop.price)
    with pytest.raises(UsageError, match=r"'Local.ask' is a method without"):

        class Local:
            @tool
            async def ask(self, question: str) -> str:
                return question


async def test_row_b6_a_method_of_an_object_or_a_class_is_a_tool() -> None:
    assert (await tool(Shop().price).execute({"item": "tea"})).content == "tea for 1"
    assert (await tool(Shop.open).execute({"day": "Monday"})).content == "Shop on Monday"
    assert (await tool(Shop.close).execute({"day": "Monday"})).content == "Monday"


async def test_row_b6_a_context_is_known_by_whatever_name_it_has() -> None:
    Context: TypeAlias = ToolContext  # a name that only this place knows

    @tool
    async def ask(question: str, about: Context | None) -> str:
        return f"{question}: {who(about)}"

    assert list(ask.arguments.schema["properties"]) == ["question"]
    assert (await ask.execute({"question": "who"}, ALICE)).content == "who: alice"


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError("late"), OSError(5, "broken")])
@pytest.mark.parametrize("safe", [True, False])
async def test_row_b7_what_the_network_does_is_tried_again_where_that_is_safe(error: OSError, safe: bool) -> None:
    calls: list[str] = []

    @tool(retry={"attempts": 3, "base_s": 0.001}, idempotency={"safe": safe})
    async def ask() -> str:
        calls.append("ask")
        if len(calls) < 3:
            raise error
        return "answer"

    result = await ask.execute({})
    assert len(calls) == (3 if safe else 1)
    assert result.ok is safe
    assert safe or (result.error is not None and result.error.details == {"type": type(error).__name__})


def test_an_async_function_is_not_promised_a_process() -> None:
    async def busy() -> None:
        return None

    with pytest.raises(UsageError, match="plain function"):
        tool(run_in="process")(busy)


def test_the_decorator_takes_the_name_as_the_spec_does() -> None:
    assert tool(tool_name="other")(functions.double).name == "other"
