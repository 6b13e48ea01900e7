"""The section `tools`: each entry becomes a spec, and each spec an executor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from penstock.config.document import Path as Place
from penstock.config.document import dotted
from penstock.config.problems import keys_of, place, said
from penstock.config.section import FromEnvironment, Name, Section, flag, number, unknown_key
from penstock.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from penstock.policies.idempotency import Ledger
    from penstock.tools.base import BaseToolExecutor
    from penstock.tools.factory import ExecutorFactory
    from penstock.tools.function import BaseFunctionExecutor
    from penstock.tools.spec import ToolSpec

    Tool = BaseToolExecutor[Any]

KINDS = ("function", "http", "sqlite", "postgresql", "mysql", "dynamodb")
USUAL = "standard"
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _reference(value: str) -> str:
    if not _REFERENCE.fullmatch(value):
        raise ValueError("write the module and the function in it, as in shop.tools:add")
    return value


class ToolSettings(Section):
    """A tool under a name: what it is (one of `function`, `http`, a database), and the fields of its spec."""

    model_config = ConfigDict(extra="allow")

    name: Name
    function: Annotated[str, AfterValidator(_reference)] | None = None
    http: dict[str, Any] | None = None
    sqlite: dict[str, Any] | None = None
    postgresql: dict[str, Any] | None = None
    mysql: dict[str, Any] | None = None
    dynamodb: dict[str, Any] | None = None
    type: Annotated[str, Field(min_length=1)] = USUAL

    @model_validator(mode="after")
    def _one_kind(self) -> ToolSettings:
        if len(written := [kind for kind in KINDS if getattr(self, kind) is not None]) != 1:
            found = f"{' and '.join(written)} are written" if written else "none is written"
            raise ValueError(f"a tool is one of {', '.join(KINDS)}: {found}")
        return self

    def placed(self, folder: Path) -> ToolSettings:
        """The same tool with the file of its database found from a folder."""
        path = (self.sqlite or {}).get("path")
        if self.sqlite is None or not isinstance(path, str):
            return self
        return self.model_copy(update={"sqlite": {**self.sqlite, "path": str(folder / path)}})

    @property
    def kind(self) -> str:
        """Which of the kinds is written."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def own(self) -> dict[str, Any]:
        """The fields within the kind."""
        written = getattr(self, self.kind)
        return {} if isinstance(written, str) else dict(written)

    @property
    def common(self) -> dict[str, Any]:
        """The fields beside the kind."""
        return dict(self.model_extra or {})


class WrongTool(ConfigError):
    """What is wrong with a tool of the configuration; `path` is the place within its entry."""

    def __init__(self, problem: str, tool: ToolSettings, *path: str | int) -> None:
        super().__init__(problem, file=f"the tool {tool.name!r}", key=dotted(path))
        self.path = path


def make_tools(
    tools: Iterable[ToolSettings], env: Mapping[str, str], *, directory: str, trace_content: bool = False
) -> dict[str, Tool]:
    """The executors of configured tools by name; raises `WrongTool`.

    Their `${NAME}`s are looked up in `env`. Those that keep a ledger share the one in `directory`.
    """
    shelf = _Shelf(env, directory, trace_content)
    return {tool.name: shelf.make(tool) for tool in tools}


async def close_tools(tools: Iterable[Tool]) -> None:
    """Free what tools hold, and the ledgers that they share; they may be used again afterwards."""
    ledgers: dict[int, Any] = {}
    for tool in tools:
        await tool.aclose()
        ledgers[id(tool.ledger)] = tool.ledger
    for ledger in ledgers.values():
        if hasattr(ledger, "aclose"):
            await ledger.aclose()


class _Shelf:
    """Makes tools that share a ledger."""

    def __init__(self, env: Mapping[str, str], directory: str, trace_content: bool) -> None:  # noqa: FBT001
        self._env, self._directory, self._content = env, Path(directory), trace_content
        self._ledger: Ledger | None = None

    def make(self, tool: ToolSettings) -> Tool:
        """One tool."""
        factory, chosen = _type_of(tool)
        try:
            made = self._function(tool, factory, chosen) if tool.function else self._declared(tool, factory, chosen)
        except ConfigError:
            raise
        except (UsageError, ValueError, TypeError) as error:
            raise WrongTool(str(error), tool, tool.kind) from error
        taken = made.arguments.schema.get("properties", {})
        for name in made.spec.idempotency.key_from:
            if name not in taken:
                problem = f"no parameter is called {name!r}: parameters are {', '.join(map(repr, taken)) or 'none'}"
                raise WrongTool(problem, tool, "idempotency", "key_from")
        return made

    def _declared(self, tool: ToolSettings, factory: ExecutorFactory, chosen: str | None) -> Tool:
        spec = spec_of(tool)
        return factory.create_executor(spec, executor_type=chosen, env=self._env, **self._options(spec))

    def _function(self, tool: ToolSettings, factory: ExecutorFactory, chosen: str | None) -> Tool:
        from penstock.tools.arguments.signature import describe
        from penstock.tools.base import BaseToolExecutor
        from penstock.tools.function import BaseFunctionExecutor

        found = _import(tool, tool.function or "", "function")
        form = type(found).__name__
        if isinstance(found, BaseFunctionExecutor):
            return self._decorated(tool, found, factory, chosen)
        if not callable(found) or isinstance(found, BaseToolExecutor):
            raise WrongTool(f"{tool.function!r} is not a function, but of the type {form}", tool, "function")
        spec = spec_of(tool, {"description": describe(found).description})
        return factory.create_executor(spec, found, chosen, **self._options(spec))

    def _decorated(
        self, tool: ToolSettings, found: BaseFunctionExecutor, factory: ExecutorFactory, chosen: str | None
    ) -> Tool:
        """A function that is a tool already: what is written here goes over its own spec."""
        spec: Any = spec_of(tool, found.spec.model_dump(mode="json", exclude_unset=True))
        options: dict[str, Any] = self._options(spec, found.ledger)
        options["policies"] = found.policies
        if tool.type == USUAL:
            return type(found)(spec, found.func, **options)
        return factory.create_executor(spec, found.func, chosen, **options)

    def _options(self, spec: ToolSpec, ledger: Ledger | None = None) -> dict[str, Any]:
        options: dict[str, Any] = {"trace_content": self._content}
        if spec.idempotency.ledger:
            options["ledger"] = ledger or self._shared()
        return options

    def _shared(self) -> Ledger:
        if self._ledger is None:
            from penstock.store.ledger import SqliteLedger

            self._ledger = SqliteLedger(self._directory / "ledger.db")
        return self._ledger


def _type_of(tool: ToolSettings) -> tuple[ExecutorFactory, str | None]:
    """The factory for a tool and the name of its executor type there, None for the usual one."""
    from penstock.tools.factory import DbExecutorFactory, FunctionExecutorFactory, HttpExecutorFactory

    factory = {"function": FunctionExecutorFactory, "http": HttpExecutorFactory}.get(tool.kind, DbExecutorFactory)
    if tool.type == USUAL:
        return factory, None
    if ":" in tool.type:
        factory, own = factory.copy(), _import(tool, tool.type, "type")
        try:
            factory.register(tool.type, own)
        except TypeError as error:
            raise WrongTool(str(error), tool, "type") from error
    elif factory is DbExecutorFactory:
        problem = f"write standard or module:Class, not {tool.type!r}: {tool.kind!r} says which database it is"
        raise WrongTool(problem, tool, "type")
    try:
        factory.get_executor_class(tool.type)
    except UsageError as error:
        raise WrongTool(f"{error}; one of your own is written module:Class", tool, "type") from error
    return factory, tool.type


def _import(tool: ToolSettings, reference: str, key: str) -> Any:
    module, _, name = reference.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's own may raise anything
        problem = f"{reference!r} cannot be imported: {type(error).__name__}: {error}"
        raise WrongTool(problem, tool, key) from error
    return found


@cache
def spec_classes() -> dict[str, type[ToolSpec]]:
    """The spec of each kind."""
    from penstock.tools.db.spec import DynamoDbToolSpec, MySqlToolSpec, PostgreSqlToolSpec, SqliteToolSpec
    from penstock.tools.function import FunctionToolSpec
    from penstock.tools.http.spec import HttpToolSpec

    classes = (FunctionToolSpec, HttpToolSpec, SqliteToolSpec, PostgreSqlToolSpec, MySqlToolSpec, DynamoDbToolSpec)
    return dict(zip(KINDS, classes, strict=True))


def own_keys(kind: str) -> set[str]:
    """The fields that only tools of a kind have."""
    from penstock.tools.spec import ToolSpec

    return set(spec_classes()[kind].model_fields) - set(ToolSpec.model_fields) - {"driver"}


def common_keys(kind: str) -> set[str]:
    """The keys that stand beside the kind; those of a function stand there too."""
    from penstock.tools.spec import ToolSpec

    usual = (set(ToolSpec.model_fields) - {"tool_name"}) | {"name", "type", kind}
    return usual | own_keys(kind) if kind == "function" else usual


def spec_of(tool: ToolSettings, usual: Mapping[str, Any] | None = None) -> ToolSpec:
    """The spec of a tool, over the usual values of its fields; raises `WrongTool` for the first thing wrong."""
    _refuse_unknown(tool)
    spec = spec_classes()[tool.kind]
    written = deepcopy({**(usual or {}), **tool.common, **tool.own, "tool_name": tool.name})
    while True:
        try:
            return spec.model_validate_json(json.dumps(written), strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False)
        if not any(_converted(one, written) for one in found):
            raise _wrong(tool, found[0], written)


def _converted(error: ErrorDetails, written: Any) -> bool:
    """Whether text from a variable stands where a number or a flag is expected, and could be turned into one."""
    path, value = place(error, written)
    if not isinstance(value, FromEnvironment) or isinstance(read := number(flag(value)), str):
        return False
    for part in path[:-1]:
        written = written[part]
    written[path[-1]] = read
    return True


def _wrong(tool: ToolSettings, error: ErrorDetails, written: Any) -> WrongTool:
    path, value = place(error, written)
    if not path:
        inner: Place = (tool.kind,)
    elif path[0] == "tool_name":
        inner = ("name",)
    else:
        within = path[0] in tool.own or (error["type"] == "missing" and len(path) == 1)
        inner = (tool.kind, *path) if within else path
    return WrongTool(said(error, path, value, unknown=lambda _: _unknown(tool, path)), tool, *inner)


def _unknown(tool: ToolSettings, path: Place) -> str:
    section = [part for part in path[:-1] if isinstance(part, str)]
    return unknown_key(path[-1], keys_of(spec_classes()[tool.kind], section))


def _refuse_unknown(tool: ToolSettings) -> None:
    kind, own, common = tool.kind, own_keys(tool.kind), common_keys(tool.kind)
    for key in tool.common:
        if key not in common:
            moved = f"{key!r} stands within {kind!r}: move it there" if key in own else unknown_key(key, common)
            raise WrongTool(moved, tool, key)
    for key in tool.own:
        if key not in own:
            moved = f"{key!r} stands beside {kind!r}: move it there" if key in common else unknown_key(key, own)
            raise WrongTool(moved, tool, kind, key)


def tool_schemas() -> dict[str, Any]:
    """The JSON Schema of an entry, and those that it refers to, by their names."""
    from pydantic.json_schema import models_json_schema

    classes = spec_classes()
    parts: dict[str, Any] = models_json_schema([(spec, "validation") for spec in classes.values()])[1]["$defs"]
    specs = {kind: parts.pop(spec.__name__) for kind, spec in classes.items()}
    shown = {"parameters": {"type": ["object", "array"]}, "return_type": {"type": ["object", "string"]}}
    entry = ToolSettings.model_json_schema()["properties"]
    common = specs["function"]["properties"]
    properties = {key: shown.get(key, common[key]) for key in sorted(common_keys("function") & set(common))}
    properties |= {"name": common["tool_name"], "type": entry["type"], "function": {"type": "string"}}
    for kind in KINDS[1:]:
        own, spec = own_keys(kind), specs[kind]
        properties[kind] = {
            "type": "object",
            "properties": {key: spec["properties"][key] for key in sorted(own)},
            "required": [key for key in spec.get("required", ()) if key in own],
            "additionalProperties": False,
        }
    entry = {
        "type": "object",
        "description": ToolSettings.__doc__,
        "properties": properties,
        "required": ["name"],
        "additionalProperties": False,
        "oneOf": [{"required": [kind]} for kind in KINDS],
        "dependentRequired": {key: ["function"] for key in sorted(own_keys("function"))},
    }
    return {"ToolSettings": entry, **_referred(entry, parts)}


def _referred(part: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parts that another one refers to, directly or through others."""
    names = {name for name in parts if f'"#/$defs/{name}"' in json.dumps(part)}
    return {
        name: inner
        for near in sorted(names)
        for name, inner in {near: parts[near], **_referred(parts[near], parts)}.items()
    }
