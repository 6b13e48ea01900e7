"""Function tools: `@tool` on a function, `FunctionToolExecutor`, and the base that custom ones extend."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, closing
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal, overload

from msgspec.structs import replace
from pydantic import Field

from penstock.errors import ToolTimeout, UsageError
from penstock.policies import Policy
from penstock.policies.idempotency import Ledger
from penstock.tools.arguments.parsing import Arguments
from penstock.tools.arguments.signature import describe
from penstock.tools.base import BaseToolExecutor, Hook, declared
from penstock.tools.function.binding import Binding
from penstock.tools.function.threads import THREADS, iterate
from penstock.tools.result import ToolContext, ToolResult
from penstock.tools.spec import Section, ToolSpec

Function = Callable[..., Any]
Way = Callable[["BaseFunctionExecutor", dict[str, Any], ToolContext, float], Hook]


class BatchSpec(Section):
    """Calls that come within `linger_s` seconds go to the function as one list, `max_items` at most."""

    linger_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    max_items: Annotated[int, Field(ge=1)] = 16


class FunctionToolSpec(ToolSpec):
    """A tool that is a Python function.

    `run_in` says where a synchronous one runs: in a thread, in the event loop (`inline`: for one that takes no time),
    or in a process of its own, the only place where one that overruns can be stopped. Without `parameters` they are
    those of the function's signature. `batch` is for the type `batching`.
    """

    run_in: Literal["thread", "inline", "process"] = "thread"
    batch: BatchSpec | None = None


class BaseFunctionExecutor(BaseToolExecutor[FunctionToolSpec]):
    """Extend it with `_execute_function(args, ctx, timeout)`; the pipeline around it is inherited.

    `func` may be sync or async, a generator too, and takes `(args, ctx)`, `(args)` or plain typed parameters; a
    parameter annotated with `ToolContext` is given the context.
    """

    def __init__(self, spec: FunctionToolSpec, func: Function, **options: Any) -> None:
        self.func = func
        self.binding = Binding(func)
        self.speaks = self._overridden or bool(self.binding.context) or self.binding.generator
        self.alone = not self.speaks
        self._calling = self._way(spec)
        super().__init__(spec, arguments=self._taken(spec), **options)

    def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:
        """Call the function with validated arguments; `timeout` is the seconds left.

        An override may be an `async def` that returns the value, or an async generator, each of whose items is told.
        """
        return self._calling(self, args, ctx, timeout)

    def _operate(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:
        return self._execute_function(args, ctx, timeout)

    def _taken(self, spec: FunctionToolSpec) -> Arguments:
        if spec.parameters is None and not self.binding.mapping:
            return Arguments.from_signature(self.func, skip=self.binding.skip, coerce=spec.coerce)
        arguments = declared(spec)
        if not self._overridden:
            self.binding.check(arguments.schema)
        return arguments

    def _way(self, spec: FunctionToolSpec) -> Way:
        if self.binding.asynchronous and spec.run_in == "process":
            raise UsageError(f"{spec.tool_name!r} is async and cannot run in a process: write it as a plain function")
        if self.binding.asynchronous:
            return _directly
        if spec.run_in == "process":
            if self.binding.context or self.binding.generator:
                raise UsageError(f"{spec.tool_name!r} cannot run in a process: it takes a context or is a generator")
            from penstock.tools.function.process import check

            check(self.func)
            return _in_process
        if self.binding.generator:
            return _stepwise if spec.run_in == "thread" else _inline_items
        return _in_thread if spec.run_in == "thread" else _inline

    @property
    def _overridden(self) -> bool:
        """Whether a child class calls the function in a way of its own."""
        return type(self)._execute_function is not BaseFunctionExecutor._execute_function  # noqa: SLF001  # its own class

    def _late(self, message: str) -> ToolTimeout:
        if self._calling in {_in_thread, _stepwise}:
            text = f"{message}; a function in a thread cannot be stopped: it goes on, and what it did is not known"
            return ToolTimeout(text, details={"outcome": "unknown", "stopped": False})
        return ToolTimeout(message, details={"outcome": "unknown", "stopped": True})


class FunctionToolExecutor(BaseFunctionExecutor):
    """A function as a tool: `FunctionToolExecutor(spec, func)`."""


def _directly(self: BaseFunctionExecutor, args: dict[str, Any], ctx: ToolContext, _: float) -> Hook:
    return self.binding.call(args, ctx)  # type: ignore[no-any-return]


async def _in_thread(self: BaseFunctionExecutor, args: dict[str, Any], ctx: ToolContext, _: float) -> Any:
    value = await THREADS.run(partial(self.binding.call, args, ctx))
    return await value if inspect.iscoroutine(value) else value  # of a function that passes on what another makes


def _in_process(self: BaseFunctionExecutor, args: dict[str, Any], _: ToolContext, __: float) -> Hook:
    from penstock.tools.function.process import in_process

    return in_process(self.func, *self.binding.placed(args))


async def _inline(self: BaseFunctionExecutor, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
    began = monotonic()
    value = self.binding.call(args, ctx)
    if inspect.iscoroutine(value):
        return await value
    took = monotonic() - began
    if took <= timeout:
        return value
    result = value if isinstance(value, ToolResult) else ToolResult(value)
    warning = f"ran {took:.3g} s, longer than allowed: an inline function cannot be stopped"
    return replace(result, warnings=(*result.warnings, warning))


async def _inline_items(
    self: BaseFunctionExecutor, args: dict[str, Any], ctx: ToolContext, timeout: float
) -> AsyncIterator[Any]:
    end = object()
    with closing(self.binding.call(args, ctx)) as items:
        while timeout > 0:
            began = monotonic()
            if (item := next(items, end)) is end:
                return
            timeout -= monotonic() - began
            yield item
    raise self._late("the items took longer than allowed")  # pyright: ignore[reportPrivateUsage]


async def _stepwise(self: BaseFunctionExecutor, args: dict[str, Any], ctx: ToolContext, _: float) -> AsyncIterator[Any]:
    async with aclosing(iterate(partial(self.binding.call, args, ctx))) as items:
        async for item in items:
            yield item


@overload
def tool(func: Function, /) -> FunctionToolExecutor: ...
@overload
def tool(
    *,
    name: str = "",
    description: str = "",
    ledger: Ledger | None = None,
    policies: Iterable[Policy] = (),
    **fields: Any,
) -> Callable[[Function], FunctionToolExecutor]: ...


def tool(
    func: Function | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    ledger: Ledger | None = None,
    policies: Iterable[Policy] = (),
    **fields: Any,
) -> Any:
    """Make a tool of a function: `@tool`, or `@tool(timeout_s=5, permissions=["orders"])` with fields of its spec.

    Name, description and parameters are those of the function, its annotations and its docstring.
    """
    name = fields.pop("tool_name", name)

    def make(func: Function) -> FunctionToolExecutor:
        about = describe(func)
        spec = FunctionToolSpec(tool_name=name or about.name, description=description or about.description, **fields)
        return FunctionToolExecutor(spec, func, ledger=ledger, policies=policies)

    return make if func is None else make(func)
