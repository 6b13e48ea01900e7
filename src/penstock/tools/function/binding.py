"""How a function takes its call: a mapping of arguments or plain typed parameters, with a context or without."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from penstock.errors import UsageError
from penstock.tools.arguments.signature import code_of, hints_of
from penstock.tools.result import ToolContext

_MAPPINGS = (inspect.Parameter.empty, dict, Mapping, Any)
_NAMED = ("ToolContext", "ToolContext | None", "Optional[ToolContext]")


class Binding:
    """The way to call `func`, read from its signature once: `call(args, ctx)`.

    `mapping`: it takes all arguments as one mapping named `args`. `context`: the parameter that takes the context.
    `generator`: it yields. `asynchronous`: it is awaited, or iterated asynchronously.
    """

    __slots__ = ("_by_place", "_func", "asynchronous", "call", "context", "generator", "hints", "mapping", "skip")

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func = func
        code = code_of(func)
        yields = inspect.isasyncgenfunction(code)
        self.generator = yields or inspect.isgeneratorfunction(code)
        self.asynchronous = yields or inspect.iscoroutinefunction(code)
        self.hints = _hints(func, code)
        parameters = _parameters(func)
        _refuse_method(code, parameters)
        contexts = [name for name in parameters if _is_context(self.hints.get(name))]
        self.context = contexts[0] if contexts else "ctx" if "ctx" in parameters and "ctx" not in self.hints else ""
        self.skip = (self.context,) if self.context else ()
        hint = self.hints.get("args", inspect.Parameter.empty)
        others = [name for name in parameters if name != self.context]
        single = others == ["args"] and parameters["args"].kind not in {_VAR_POSITIONAL, _VAR_KEYWORD}
        self.mapping = single and (typing.get_origin(hint) or hint) in _MAPPINGS
        self._by_place = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_ONLY]
        self.call = self._way()

    def placed(self, args: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the named arguments of a call without a context."""
        if self.mapping:
            return (args,), {}
        if not self._by_place:
            return (), args
        named = dict(args)
        return tuple(named.pop(name) for name in self._by_place if name in named), named

    def _placed_call(self, args: dict[str, Any], ctx: ToolContext) -> Any:
        named: dict[str, Any] = {"args": args} if self.mapping else dict(args)
        if self.context:
            named[self.context] = ctx
        positional = [named.pop(name) for name in self._by_place if name in named]
        return self._func(*positional, **named)

    def _way(self) -> Callable[[dict[str, Any], ToolContext], Any]:
        func, context = self._func, self.context
        if self._by_place:
            return self._placed_call
        if self.mapping and context:
            return lambda args, ctx: func(args, **{context: ctx})
        if self.mapping:
            return lambda args, _: func(args)
        if context:
            return lambda args, ctx: func(**args, **{context: ctx})
        return lambda args, _: func(**args)

    def check(self, schema: Mapping[str, Any]) -> None:
        """Raise `UsageError` where declared parameters cannot be passed to the function."""
        if self.mapping:
            return
        parameters = _parameters(self._func)
        names: Mapping[str, Any] = schema.get("properties", {})
        open_ended = any(one.kind is _VAR_KEYWORD for one in parameters.values())
        takes = {name for name, one in parameters.items() if one.kind is not _VAR_POSITIONAL and name != self.context}
        strange = [] if open_ended else [name for name in names if name not in takes]
        needed = {name for name in takes if parameters[name].default is inspect.Parameter.empty}
        missing = [name for name in parameters if name in needed and name not in names]
        missing = [name for name in missing if parameters[name].kind is not _VAR_KEYWORD]
        if strange or missing:
            what = f"does not take {strange}" if strange else f"needs {missing}, which the spec does not declare"
            raise UsageError(f"the function {getattr(self._func, '__name__', 'given')!r} {what}")


_VAR_POSITIONAL, _VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _parameters(func: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(func).parameters
    except ValueError:
        raise UsageError(f"the parameters of {func!r} are not known: wrap it in a function that names them") from None


def _refuse_method(func: Any, parameters: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a method as it stands in the body of its class, which knows no object yet."""
    within = getattr(func, "__qualname__", "").rpartition("<locals>.")[2]
    if "." in within and next(iter(parameters), "") in {"self", "cls"}:
        name = func.__name__
        raise UsageError(f"{within!r} is a method without its object: make a tool of that, as in tool(obj.{name})")


def _hints(func: Callable[..., Any], code: Any) -> dict[str, Any]:
    try:
        return hints_of(func, extras=False)
    except UsageError:  # names that only a type checker knows
        return dict(getattr(code, "__annotations__", {}))


def _is_context(hint: Any) -> bool:
    return hint is ToolContext or ToolContext in typing.get_args(hint) or (isinstance(hint, str) and hint in _NAMED)
