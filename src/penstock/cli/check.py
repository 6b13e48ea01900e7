"""`penstock check`: the configuration in a table, or what is wrong with it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from penstock.cli.ends import USAGE, complain
from penstock.config import Catalog, Settings, load, schema
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 200


def print_schema() -> None:
    """Print the JSON Schema of `penstock.yaml`."""
    print(json.dumps(schema(), indent=2))


def check(config: str | None, *, as_json: bool) -> int:
    """Print what the configuration serves and return 0; raises `ConfigError`, or prints it as JSON and returns 2."""
    try:
        settings = load(config, os.environ)
        catalog = Catalog(settings, os.environ)
    except ConfigError as error:
        if not as_json:
            raise
        said = {"problem": error.problem, "file": error.file, "line": error.line, "key": error.key}
        print(json.dumps({"ok": False, "error": said}))
        return USAGE
    report = _report(settings, catalog)
    if as_json:
        print(json.dumps(report))
        return 0
    _show(report)
    for notice in catalog.notices:
        complain(notice)
    return 0


def _report(settings: Settings, catalog: Catalog) -> dict[str, Any]:
    return {
        "ok": True,
        "configured": catalog.configured,
        "models": [
            {
                "name": one.name,
                "llm": one.order[-1],
                "address": getattr(one.llm, "base_url", ""),
                "order": one.order[:-1],
            }
            for one in catalog.served
        ],
        "tools": [{"name": tool.name, "kind": tool.kind, "type": tool.type} for tool in settings.tools],
        "agents": [
            {"name": one.name, "mode": one.mode, "does": one.model or one.provider or "".join(one.command[:1])}
            for one in (agent.config for agent in settings.agents)
        ],
        "auth": [{"name": token.name, "scopes": token.scopes} for token in settings.auth.tokens],
        "notices": catalog.notices,
    }


def console() -> Console:
    """Where tables are printed: as wide as the terminal, or wide enough for a file."""
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = PIPED_WIDTH
    return made


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("model" if report["configured"] else "provider", "llm", "address", "around each call", box=None)
    for one in report["models"]:
        table.add_row(*map(Text, (one["name"], one["llm"], one["address"], "\n> ".join(one["order"]) or "nothing")))
    out = console()
    out.print("ok")
    out.print(table)
    if report["tools"]:
        tools = Table("tool", "kind", "type", box=None)
        for one in report["tools"]:
            tools.add_row(*map(Text, (one["name"], one["kind"], one["type"])))
        out.print(tools)
    if report["agents"]:
        agents = Table("agent", "mode", "model, provider or program", box=None)
        for one in report["agents"]:
            agents.add_row(*map(Text, (one["name"], one["mode"], one["does"])))
        out.print(agents)
    tokens = ", ".join(f"{one['name']} ({' '.join(one['scopes'])})" for one in report["auth"])
    out.print(f"auth: {tokens}" if tokens else "auth: off, no token is configured")
