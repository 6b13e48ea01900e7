"""`penstock serve`: says what is served and how to call it, then serves."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from penstock.cli import record, version
from penstock.config import Catalog, Settings, load
from penstock.config.catalog import DEMO_MODEL
from penstock.config.models import DEMO

_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # shown, not bound
_EXAMPLE_MODELS = {DEMO: DEMO_MODEL, "openai": "gpt-5-mini"}


def serve(config: str | None, overrides: Mapping[str, Any], *, fd: int | None = None) -> int:
    """Serve until a signal and return the exit code; raises `ConfigError`.

    `fd` is a listening socket, handed down by the first of several processes, which has said what there is to say.
    """
    settings = load(config, os.environ, overrides=overrides)
    record.prepare(settings)
    if fd is None:
        said = _greeting(settings, Catalog(settings, os.environ))
        print(json.dumps(said) if settings.server.log == "json" else _plain(said), file=sys.stderr, flush=True)
    from penstock.server.serve import run

    return run(settings, config_path=config, fd=fd)


def _greeting(settings: Settings, catalog: Catalog) -> dict[str, Any]:
    """What to say at start: the address, what is served, whether tokens are needed, a line to try, notices."""
    server, tokens = settings.server, settings.auth.tokens
    host = _EVERYWHERE.get(server.host, f"[{server.host}]" if ":" in server.host else server.host)
    address = f"http://{host}:{server.port}"
    return {
        "message": f"penstock {version()} on {address}/v1",
        "models": _served(catalog),
        "tools": ", ".join(tool.name for tool in settings.tools),
        "auth": f"on, for {', '.join(token.name for token in tokens)}" if tokens else "off",
        **record.said(settings, catalog),
        "try": _curl(address, _body(catalog), authorized=bool(tokens)),
        "notices": catalog.notices,
    }


def _served(catalog: Catalog) -> str:
    names = [one.name for one in catalog.served]
    if (replay := record.replayed(catalog)) is not None:
        return ", ".join(replay.models())
    if catalog.configured:
        return ", ".join(names)
    if names == [DEMO]:
        return "the demo LLM, because no key is set: set OPENAI_API_KEY, ANTHROPIC_API_KEY or another"
    return f"all of {', '.join(names)}"


def _body(catalog: Catalog) -> dict[str, Any]:
    if (replay := record.replayed(catalog)) is not None:
        return record.example(replay)
    return {"model": _example(catalog), "stream": True, "messages": [{"role": "user", "content": "Say hello."}]}


def _example(catalog: Catalog) -> str:
    first, *others = [one.name for one in catalog.served]
    if catalog.configured:
        return first
    model = _EXAMPLE_MODELS.get(first, "MODEL")
    return f"{first}:{model}" if others else model


def _curl(address: str, body: Mapping[str, Any], *, authorized: bool) -> str:
    if not body:
        return ""
    token = '-H "authorization: Bearer $TOKEN" ' if authorized else ""
    head = f"curl -N {address}/v1/chat/completions -H 'content-type: application/json' {token}"
    return f"{head}-d {shlex.quote(json.dumps(body))}"


def _plain(said: Mapping[str, Any]) -> str:
    keys = ("models", "tools", "auth", "records", "replays", "try")
    lines = [said["message"], *(f"  {key:7} {said[key]}" for key in keys if said.get(key))]
    return "\n".join([*lines, *(f"  note    {notice}" for notice in said["notices"])])
