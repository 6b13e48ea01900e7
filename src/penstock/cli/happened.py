"""`penstock project events`: the log of a run, an entry a line or each with its whole value."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import msgspec

from penstock.cli.advice import wrapped
from penstock.cli.check import console
from penstock.cli.runs import named, reading, when
from penstock.cli.tables import fit
from penstock.cli.view import one_line, unsteering
from penstock.config import load
from penstock.store.steps import BEGUN, RESUMED, Logged, Step
from penstock.tasks.report import STATUS, result_of
from penstock.tasks.results import ExecutionResult

INDENT = " " * 8


def events(name: str | None, config: str | None, *, after: int, full: bool, as_json: bool) -> None:
    """Print the log of a run; a line of each entry, or the `full` values."""

    async def work() -> None:
        width = console().width
        async with reading(load(config, os.environ)) as engine:
            run, last = (await named(engine, name)).run, after
            while entries := await engine.events(run, after=last):
                for entry in entries:
                    print(msgspec.json.encode(entry).decode() if as_json else told(entry, width, full=full))
                last = entries[-1].offset

    asyncio.run(work())


def told(entry: Logged, width: int, *, full: bool) -> str:
    """An entry as a line of that width, or with its `full` value below it."""
    what = f"{one_line(entry.step)} {entry.state}" if entry.state else f"({entry.kind})"
    head, said = f"{entry.offset:6}  {when(entry.at)}  {what}", _said(entry)
    if full:
        lines = [line for text in _text(said).splitlines() for line in _broken(unsteering(text), width)]
        return "\n".join([head, *lines])
    first = one_line(_first(said))
    line = f"{head}: {first}" if first else head
    return fit(line, width).rstrip()


def _said(entry: Logged) -> Any:
    """What an entry says: a task's output, or its fault."""
    if entry.step and entry.state and entry.state in STATUS:
        return _outcome(result_of(entry.step, Step(entry.state, entry.value)))
    return None if entry.kind in {BEGUN, RESUMED} else entry.value


def _outcome(result: ExecutionResult) -> Any:
    fault = result.error
    if fault is None:
        return result.output
    return f"{'' if fault.code in {None, result.status} else f'{fault.code}: '}{fault.message}"


def _first(said: Any) -> Any:
    """The first line of a text, marked where more follow."""
    if not isinstance(said, str):
        return said
    lines = said.strip().splitlines()
    return f"{lines[0]} ..." if len(lines) > 1 else said


def _text(said: Any) -> str:
    if said is None:
        return ""
    return said if isinstance(said, str) else json.dumps(said, indent=2, ensure_ascii=False)


def _broken(line: str, width: int) -> list[str]:
    """A line, broken between words where it goes to a terminal."""
    return wrapped(line, width, INDENT) if sys.stdout.isatty() and line.strip() else [INDENT + line]
