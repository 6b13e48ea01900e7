"""The three factories of tool executors, one for each kind of tool: executor types by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any, cast

from penstock.errors import UsageError
from penstock.registry import Registry
from penstock.tools.base import BaseToolExecutor
from penstock.tools.spec import ToolSpec

Executor = BaseToolExecutor[Any]

_FUNCTION = {
    "standard": "penstock.tools.function:FunctionToolExecutor",
    "default": "penstock.tools.function:FunctionToolExecutor",
    "cached": "penstock.tools.function.batching:CachedFunctionExecutor",
    "streaming": "penstock.tools.function.batching:StreamingFunctionExecutor",
    "batching": "penstock.tools.function.batching:BatchingFunctionExecutor",
}
_HTTP = {
    "standard": "penstock.tools.http:HttpToolExecutor",
    "default": "penstock.tools.http:HttpToolExecutor",
}
_DB = {
    "sqlite": "penstock.tools.db.sqlite:SqliteExecutor",
    "postgresql": "penstock.tools.db.postgresql:PostgreSqlExecutor [postgresql]",
    "mysql": "penstock.tools.db.mysql:MySqlExecutor [mysql]",
    "dynamodb": "penstock.tools.db.dynamodb:DynamoDBExecutor [dynamodb]",
}


class ExecutorFactory:
    """Makes executors of one kind of tool by the name of their type, whatever its case.

    `base` and the built-in types are written "module:attribute" and are imported when they are asked for. A test makes
    its own with `copy()`.
    """

    def __init__(self, kind: str, base: str, builtin: Mapping[str, str]) -> None:
        self._kind, self._base, self._builtin = kind, base, dict(builtin)
        self._types: Registry[type[Executor]] = Registry(f"{kind} executor type")
        for name, reference in builtin.items():
            self._types.register(name, reference, builtin=True)

    def copy(self) -> ExecutorFactory:
        """A factory that knows the built-in types alone."""
        return ExecutorFactory(self._kind, self._base, self._builtin)

    def create_executor(
        self,
        spec: ToolSpec,
        func: Callable[..., Any] | None = None,
        executor_type: str | None = None,
        **options: Any,
    ) -> Executor:
        """An executor for `spec`; without a type it is that of the spec's `driver`, else "standard".

        `func` is for function tools alone. The options `policies`, `ledger` and `trace_content` are passed on. Raises
        `UnknownName`, a `ValueError` that lists the known types.
        """
        chosen = getattr(spec, "driver", "standard") if executor_type is None else executor_type
        found = self.get_executor_class(chosen)
        if (func is None) is (self._kind == "function"):
            needs = "needs a function" if func is None else "takes no function"
            raise UsageError(f"the tool {spec.tool_name!r} of kind {self._kind!r} {needs}")
        return found(spec, **options) if func is None else found(spec, func, **options)  # type: ignore[arg-type, call-arg]

    def get_executor(self, spec: ToolSpec, **options: Any) -> Executor:
        """An executor for `spec`, of the type that its `driver` names."""
        return self.create_executor(spec, **options)

    def list_executor_types(self) -> list[str]:
        """The names of all types, sorted."""
        return self._types.names()

    def get_executor_class(self, name: str) -> type[Executor]:
        """The class of a type; raises `UnknownName`, a `ValueError` that lists the known ones."""
        return self._types.get(name)

    def register(self, name: str, cls: type[Executor]) -> None:
        """Add a type, or replace one that was added.

        Raises `TypeError` for a class of another kind, `ValueError` for an empty name or a built-in one.
        """
        base, given = resolve_name(self._base), cast("object", cls)
        if not (inspect.isclass(given) and issubclass(given, base)):
            raise TypeError(f"the {self._kind} executor type {name!r} must extend {base.__name__}: {cls!r} does not")
        self._types.register(name, cls, replace=True)

    def unregister(self, name: str) -> None:
        """Take a type out that was added; raises `ValueError` for an unknown name, and for a built-in one."""
        self._types.unregister(name)


FunctionExecutorFactory = ExecutorFactory("function", "penstock.tools.function:BaseFunctionExecutor", _FUNCTION)
HttpExecutorFactory = ExecutorFactory("http", "penstock.tools.http:BaseHttpExecutor", _HTTP)
DbExecutorFactory = ExecutorFactory("db", "penstock.tools.db.base:BaseDbExecutor", _DB)
