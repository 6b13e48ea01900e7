"""`penstock tools`: the configured tools in a table, one of them in full, and a call from the terminal."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, NamedTuple

from penstock.cli.check import console
from penstock.cli.ends import FAILED, INTERRUPTED, USAGE, complain
from penstock.config import load
from penstock.config.tools import ToolSettings, close_tools, make_tools
from penstock.errors import BadArguments, PenstockError, UnknownName, UsageError
from penstock.events import Event, Item, Retrying, Text
from penstock.run import execute
from penstock.tools.base import BaseToolExecutor
from penstock.tools.result import ToolRequest, ToolResult
from penstock.tools.value import fault_of, plain, text_of

NO_TOOL = "no tool is configured: add the section `tools` to penstock.yaml"


class Configured(NamedTuple):
    """A tool, and what the configuration says of it."""

    tool: BaseToolExecutor[Any]
    settings: ToolSettings

    def about(self) -> dict[str, Any]:
        """What a model is told of the tool, and how it is run."""
        spec = json.loads(self.tool.spec.model_dump_json(exclude_defaults=True, exclude={"tool_name", "parameters"}))
        kind: dict[str, Any] = {"name": self.tool.name, "kind": self.settings.kind, "type": self.settings.type}
        return {**kind, **spec, **self.tool.definition["function"]}

    def arguments(self) -> str:
        """The names of the arguments, those that may be left out in brackets."""
        schema = self.tool.arguments.schema
        required = schema.get("required", ())
        return ", ".join(name if name in required else f"[{name}]" for name in schema.get("properties", {}))


def list_tools(config: str | None, *, as_json: bool) -> None:
    """Print the tools that the configuration names."""
    found = _configured(config)
    if as_json:
        print(json.dumps({"tools": [one.about() for one in found.values()]}))
        return
    if not found:
        complain(NO_TOOL)
        return
    from rich.table import Table
    from rich.text import Text as Cell

    table = Table("tool", "kind", "arguments", "description", box=None)
    for name, one in found.items():
        first_line = one.tool.spec.description.partition("\n")[0]
        table.add_row(*map(Cell, (name, one.settings.kind, one.arguments(), first_line)))
    console().print(table)


def show_tool(name: str, config: str | None, *, as_json: bool) -> None:
    """Print one tool: what a model is told, and how it is run."""
    about = json.dumps(_named(name, config).about(), indent=None if as_json else 2)
    print(about)


def call_tool(name: str, arguments: str, *, key: str | None, config: str | None, as_json: bool) -> int:
    """Call a tool and print its value, a stream as it comes; returns the exit code. Raises `UsageError`."""
    tool = _named(name, config).tool
    if key is not None and not (tool.spec.idempotency.ledger or tool.safe):
        raise UsageError(f"the tool {name!r} keeps no ledger, so a key would not keep it from running twice")
    text = sys.stdin.read() if arguments == "-" else arguments
    try:
        return asyncio.run(_call(tool, ToolRequest(text, key), as_json=as_json))
    except KeyboardInterrupt:
        return INTERRUPTED


async def _call(tool: BaseToolExecutor[Any], request: ToolRequest, *, as_json: bool) -> int:
    told = _Told()
    try:
        result = await execute(tool, request, None if as_json else told.tell)
    except UsageError:
        raise
    except PenstockError as error:
        fault = fault_of(error)
        if as_json:
            print(json.dumps(plain(ToolResult(error=fault))))
        else:
            told.end()
            complain(f"{fault.code}: {fault.message}")
        return USAGE if isinstance(error, BadArguments) else FAILED
    finally:
        await close_tools([tool])
    if as_json:
        print(json.dumps(plain(result)))
        return 0
    if not told.spoke:
        print(text_of(result.content))
    told.end()
    for warning in result.warnings:
        complain(f"warning: {warning}")
    return 0


class _Told:
    """Prints what a tool tells while it works."""

    def __init__(self) -> None:
        self.spoke = self._open = False

    def tell(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Text):
            self.spoke = True
            self._open = not event.text.endswith("\n") if event.text else self._open
            print(event.text, end="", flush=True)
        elif isinstance(event, Item):
            self.spoke = True
            self.end()
            print(text_of(event.value), flush=True)
        elif isinstance(event, Retrying):
            self.end()
            complain(f"attempt {event.attempt} in {event.wait_s:.1f} s: {event.error}")

    def end(self) -> None:
        """End a line that is open."""
        if self._open:
            print(flush=True)
        self._open = False


def _configured(config: str | None) -> dict[str, Configured]:
    settings = load(config, os.environ)
    tools = make_tools(settings.tools, os.environ, directory=settings.store.dir)
    return {one.name: Configured(tools[one.name], one) for one in settings.tools}


def _named(name: str, config: str | None) -> Configured:
    found = _configured(config)
    if not found:
        raise UnknownName(NO_TOOL)
    if name not in found:
        raise UnknownName(f"no tool {name!r}; known are {', '.join(map(repr, found))}")
    return found[name]
