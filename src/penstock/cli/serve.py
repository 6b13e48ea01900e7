"""`penstock serve`: says what is served and how to call it, then serves."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from penstock.cli import version
from penstock.config import Catalog, Settings, load
from penstock.config.catalog import DEMO_MODEL
from penstock.config.settings import DEMO

_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # shown, not bound
_EXAMPLE_MODELS = {DEMO: DEMO_MODEL, "openai": "gpt-5-mini"}


def serve(config: str | None, overrides: Mapping[str, Any], *, fd: int | None = None) -> int:
    """Serve until a signal and return the exit code; raises `ConfigError`.

    `fd` is a listening socket, handed down by the first of several processes, which has said what there is to say.
    """
    settings = load(config, os.environ, overrides=overrides)
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
        "try": _curl(address, _example(catalog), authorized=bool(tokens)),
        "notices": catalog.notices,
    }


def _served(catalog: Catalog) -> str:
    names = [one.name for one in catalog.served]
    if catalog.configured:
        return ", ".join(names)
    if names == [DEMO]:
        return "the demo LLM, because no key is set: set OPENAI_API_KEY or OPENAI_BASE_URL"
    return f"all of {', '.join(names)}"


def _example(catalog: Catalog) -> str:
    first, *others = [one.name for one in catalog.served]
    if catalog.configured:
        return first
    model = _EXAMPLE_MODELS.get(first, "MODEL")
    return f"{first}:{model}" if others else model


def _curl(address: str, model: str, *, authorized: bool) -> str:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Say hello."}]}
    token = '-H "authorization: Bearer $TOKEN" ' if authorized else ""
    head = f"curl -N {address}/v1/chat/completions -H 'content-type: application/json' {token}"
    return f"{head}-d {shlex.quote(json.dumps(body))}"


def _plain(said: Mapping[str, Any]) -> str:
    lines = [said["message"], *(f"  {key:7} {said[key]}" for key in ("models", "tools", "auth", "try") if said[key])]
    return "\n".join([*lines, *(f"  note    {notice}" for notice in said["notices"])])
