"""Penstock as a child process, and the words and cuts that the tests of it share."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.rig.serving import ROOT, Process, running
from tests.rig.tiny_llm import MODEL
from tests.rig.wire import JsonObject

PROVIDER = ("_API_KEY", "_BASE_URL", "_ENDPOINT")
OWN = frozenset(("id", "created", "timings"))
HELLO: Any = [{"role": "user", "content": "hello there river"}]
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "required": ["a", "b"],
            "properties": {"a": NUMBER, "b": NUMBER},
        },
    },
}
PLAN: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "plan",
        "strict": True,
        "schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["level", "steps"],
            "properties": {
                "level": {"type": "integer", "minimum": 1, "maximum": 9},
                "steps": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"enum": ["open", "close"]}},
            },
        },
    },
}
# Far more than a client waits for: about eight seconds.
ENDLESS: JsonObject = {"model": MODEL, "messages": HELLO, "max_tokens": 4000, "ignore_eos": True}


def environment(**variables: str) -> dict[str, str]:
    """What to lay over this process's environment so that no provider is in it but those given."""
    emptied = {name: "" for name in os.environ if name.endswith(PROVIDER)}
    return {**emptied, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", **variables}


@contextlib.contextmanager
def penstock(*arguments: str, env: Mapping[str, str] | None = None, python: Sequence[str] = ()) -> Generator[Process]:
    """Runs `penstock serve` on a free port, in a folder without a configuration; `python` are the interpreter's."""
    command = [sys.executable, *python, "-m", "penstock", "serve", "--port", "{port}", *arguments]
    health = "http://127.0.0.1:{port}/health"
    with (
        tempfile.TemporaryDirectory(prefix="penstock-") as folder,
        running(command, ready=health, env=environment(**(env or {})), cwd=Path(folder)) as process,
    ):
        yield process


def request(**fields: Any) -> JsonObject:
    """A request whose answer is the same each time: llama.cpp's logprobs depend on what its prompt cache holds."""
    usual = {"model": MODEL, "messages": HELLO, "seed": 3, "temperature": 0, "max_tokens": 24, "cache_prompt": False}
    return {**usual, **fields}


def essence(said: Any) -> Any:
    """JSON without what differs between two answers of the same words: ids, dates, timings."""
    if isinstance(said, dict):
        return {key: essence(value) for key, value in said.items() if key not in OWN}
    return [essence(item) for item in said] if isinstance(said, list) else said


def no_proc() -> str:
    """Why processes cannot be looked into, or an empty text."""
    return "" if Path("/proc/self/fd").is_dir() else "this system has no /proc"


def descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
