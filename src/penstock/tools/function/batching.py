"""The function tool types beside the standard one: cached, streaming, and batching, which gathers calls into one."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import typing
from collections.abc import Awaitable, Coroutine, Sequence
from contextvars import Context
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from penstock.errors import ToolFailed, UsageError
from penstock.tools.arguments.parsing import Arguments
from penstock.tools.arguments.problems import refusal, typed_problems
from penstock.tools.base import declared
from penstock.tools.function.crew import settle
from penstock.tools.function.executor import (
    BaseFunctionExecutor,
    BatchSpec,
    Function,
    FunctionToolExecutor,
    FunctionToolSpec,
)
from penstock.tools.result import ToolContext
from penstock.tools.spec import CacheSpec


class CachedFunctionExecutor(FunctionToolExecutor):
    """A function whose results are kept: the type `cached`. Without a `cache` in its spec it has the default one."""

    def __init__(self, spec: FunctionToolSpec, func: Function, **options: Any) -> None:
        kept = spec if spec.cache is not None else spec.model_copy(update={"cache": CacheSpec()})
        super().__init__(kept, func, **options)


class StreamingFunctionExecutor(FunctionToolExecutor):
    """A generator function, each of whose items is told: the type `streaming`.

    Text is told as `Text`, anything else as `Item`; the value is the joined text, or the list of items.
    """

    def _taken(self, spec: FunctionToolSpec) -> Arguments:
        if not self.binding.generator:
            raise UsageError(f"{spec.tool_name!r} of the type 'streaming' needs a function that yields")
        return super()._taken(spec)


class BatchingFunctionExecutor(BaseFunctionExecutor):
    """A function that is given the arguments of many calls as one list: the type `batching`.

    It returns a list with a value, or an exception, at the place of each call. Its only parameter may be declared as a
    list of a pydantic model, a dataclass or a `TypedDict`: then the tool's parameters are the fields of that. A batch
    belongs to none of its callers: it runs in a context of its own, until the last of them has left.
    """

    def _taken(self, spec: FunctionToolSpec) -> Arguments:
        self._limits = spec.batch or BatchSpec()
        self._open: dict[asyncio.AbstractEventLoop, _Batch] = {}
        if self.binding.generator or self.binding.context:
            raise UsageError(f"{spec.tool_name!r} of the type 'batching' cannot yield, nor take a caller's context")
        self._parameter = _only_parameter(spec, self.func)
        kind = _item_type(self.binding.hints.get(self._parameter))
        self._item = None if kind is None else TypeAdapter[Any](kind)
        if spec.parameters is None and self._item is not None:
            schema = self._item.json_schema(schema_generator=_Untitled)
            return Arguments.from_schema(schema, coerce=spec.coerce)
        if spec.parameters is None:
            raise UsageError(f"{spec.tool_name!r} of the type 'batching' needs parameters, or a list of models")
        return declared(spec)

    async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        item = self._made(args)
        batch = self._open.get(loop) or self._begin(loop)
        place = batch.add(item)
        if len(batch.waiting) >= self._limits.max_items:
            self._flush(loop)
        try:
            return await place
        except asyncio.CancelledError:
            batch.leave(place)
            raise

    def _begin(self, loop: asyncio.AbstractEventLoop) -> _Batch:
        for closed in [other for other in self._open if other.is_closed()]:
            del self._open[closed]
        timer = loop.call_later(self._limits.linger_s, self._flush, loop)
        batch = self._open[loop] = _Batch(loop, timer)
        return batch

    def _made(self, args: dict[str, Any]) -> Any:
        if self._item is None:
            return args
        try:
            return self._item.validate_python(args)
        except ValidationError as error:  # what a schema cannot say, such as a validator of the model
            known = error.errors(include_url=False, include_context=False)
            raise refusal(typed_problems(known, args, self.arguments.schema)) from None

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._open.pop(loop)
        batch.timer.cancel()
        if batch.waiting:
            batch.start(self._run([item for _, item in batch.waiting]))

    async def _run(self, items: list[Any]) -> Any:
        args: Any = items if self.binding.mapping else {self._parameter: items}
        return await cast("Awaitable[Any]", self._calling(self, args, ToolContext(), math.inf))


class _Untitled(GenerateJsonSchema):
    """Schemas without the titles that only repeat names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Batch:
    """Calls that go to the function together: who waits, with the arguments, in the order they came."""

    __slots__ = ("_loop", "_task", "timer", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, timer: asyncio.TimerHandle) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self.timer = timer
        self.waiting: list[tuple[asyncio.Future[Any], Any]] = []

    def add(self, item: Any) -> asyncio.Future[Any]:
        """A place in the batch: the future of its value."""
        place: asyncio.Future[Any] = self._loop.create_future()
        self.waiting.append((place, item))
        return place

    def leave(self, place: asyncio.Future[Any]) -> None:
        """Give a place up: it is not called for, or, once it is, the last one to leave stops the call."""
        if self._task is None:
            self.waiting = [each for each in self.waiting if each[0] is not place]
        elif all(other.done() for other, _ in self.waiting):
            self._task.cancel()

    def start(self, call: Coroutine[Any, Any, Any]) -> None:
        """Call the function, whose values go to their places."""
        self._task = self._loop.create_task(call, context=Context())
        self._task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            error: Any = ToolFailed("the batch was cancelled from within", code="cancelled")
        else:
            error = task.exception() or _misfit(task.result(), len(self.waiting))
        values: Sequence[Any] = [error] * len(self.waiting) if error is not None else task.result()
        for (place, _), value in zip(self.waiting, values, strict=True):
            settle(place, value, value if isinstance(value, BaseException) else None)


def _misfit(values: Any, count: int) -> ToolFailed | None:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        given = f"a {type(values).__name__}"
    elif (length := len(cast("Sequence[Any]", values))) == count:  # type: ignore[redundant-cast]
        return None
    else:
        given = f"{length} values"
    return ToolFailed(f"the function returned {given} for a batch of {count}: one value each is needed, in a list")


def _only_parameter(spec: FunctionToolSpec, func: Function) -> str:
    parameters = inspect.signature(func).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if len(needed) != 1:
        raise UsageError(f"{spec.tool_name!r} of the type 'batching' must take one list and nothing else")
    return needed[0]


def _item_type(hint: Any) -> Any:
    """The model, dataclass or `TypedDict` that a list is declared to hold, else None."""
    kind = next(iter(typing.get_args(hint)), None)
    if not inspect.isclass(kind):
        return None
    if typing.is_typeddict(kind):
        return _readable(kind)
    return kind if issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind) else None


def _readable(kind: Any) -> Any:
    """The same `TypedDict` as pydantic wants it: before Python 3.12 it refuses that of `typing`."""
    from typing_extensions import TypedDict

    hints = typing.get_type_hints(kind)
    fields = {
        name: hint if name in kind.__required_keys__ else typing.NotRequired[hint] for name, hint in hints.items()
    }
    return TypedDict(kind.__name__, fields)  # type: ignore[operator]
