"""`penstock project`: what is known of the runs in the journal, and what can be done with them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from penstock.cli.advice import advice, at_rest, reasons, say
from penstock.cli.check import console
from penstock.cli.ends import FAILED, complain
from penstock.cli.live import view_of
from penstock.cli.run import Brief, show, stoppable
from penstock.cli.view import Board, some, unsteering
from penstock.config import Settings, load
from penstock.config.projects import JOURNAL
from penstock.errors import UnknownName, UsageError
from penstock.store import steps
from penstock.store.journal import Journal
from penstock.tasks.engines import Engine, RunState, RunStatus
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.flow import PROJECT
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import Report, mermaid, project_of, report_on, tree

SERVED = "served"
PROJECTS = frozenset({PROJECT, SERVED})
"""The flows of projects: those begun here, and those that a server was sent."""
GOING = frozenset({RunState.RUNNING, RunState.PAUSED})
READ_S = 0.1  # a log is read about ten times a second, however much happens
WAIT_S = 1.0


class _Sent(msgspec.Struct):
    """What is needed of the payload of a project that a server was sent."""

    project: Brief
    owner: str


def list_runs(config: str | None, *, limit: int, as_json: bool) -> None:
    """Print the newest runs."""
    path = _journal(load(config, os.environ))
    found, more = asyncio.run(_listed(path, limit)) if path.exists() else ([], 0)
    if as_json:
        print(json.dumps({"runs": found[::-1], "more": more}, ensure_ascii=False))
        return
    if not found:
        complain(_nothing(path))
        return
    from rich.table import Table
    from rich.text import Text

    served = any(one["owner"] for one in found)
    table = Table("run", "state", "tasks", "began", *(["project", "owner"] if served else []), box=None)
    for one in found:
        cells = [one["run"], one["state"], f"{one['succeeded']}/{one['tasks']}", when(one["at"])]
        table.add_row(*map(Text, (*cells, one["project"], one["owner"] or "") if served else cells))
    console().print(table)
    if more:
        complain(f"{more} older runs are not shown: --limit shows more")


def status(name: str | None, config: str | None, *, follow: bool, as_json: bool) -> int:
    """Print how a run stands, or show it until it has ended; returns the exit code."""

    async def work() -> int:
        async with reading(load(config, os.environ)) as engine:
            found = await named(engine, name)
            if follow and found.state in GOING:
                found = await _watched(engine, found, as_json=as_json)
            elif as_json:
                print(json.dumps(_told(found), ensure_ascii=False))
            if not as_json:
                show(await _board(engine, found))
                spec, told = spec_of(found), report_now(found)
                said = f"{found.run}: {told.summary()}; began {when(found.at)}"
                for line in (*reasons(told), said, *(advice(spec, found) if found.flow == PROJECT else ())):
                    say(line)
            return FAILED if follow and found.state is not RunState.SUCCEEDED else 0

    return stoppable(work())


def report(name: str | None, config: str | None, *, output: str | None, as_json: bool) -> None:
    """Write the report of a run."""
    made = report_now(_look(name, config))
    text = json.dumps(msgspec.to_builtins(made), indent=2, ensure_ascii=False) + "\n" if as_json else made.markdown()
    text = text.replace("\x1b", "")  # which steers a terminal that shows the file later
    if output is None:
        _write(text)
        return
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"the report cannot be written to {output!r}: {error.strerror}") from error
    print(f"written to {output}")


def graph(name: str | None, config: str | None, *, as_mermaid: bool) -> None:
    """Print the graph of a run's tasks."""
    found = _look(name, config)
    draw = mermaid if as_mermaid else tree
    _write(draw(spec_of(found), report_now(found).results))


def backup(file: str, config: str | None) -> None:
    """Copy the journal."""
    path = _journal(load(config, os.environ))
    if not path.exists():
        raise UsageError(_nothing(path))

    async def work() -> None:
        async with Journal(path) as journal:
            await journal.backup(file)

    asyncio.run(work())
    print(f"copied {path} to {file}; put it back under that name to go on from it")


@asynccontextmanager
async def reading(settings: Settings) -> AsyncGenerator[LocalEngine]:
    """The engine of the journal, to look at runs; raises `UsageError` where nothing has been run."""
    path = _journal(settings)
    if not path.exists():
        raise UsageError(_nothing(path))
    async with LocalEngine(Journal(path)) as engine:
        yield engine


async def named(engine: Engine, name: str | None) -> RunStatus:
    """A run by its name, or the newest one; raises `UnknownName`."""
    runs = [one.run for one in await engine.runs(payloads=False) if one.flow in PROJECTS]
    if name is None and runs:
        return await engine.status(runs[-1])
    if name not in runs:
        known = some(reversed(runs)) or "none"
        raise UnknownName(f"there is no run {name!r}: there are {known}" if name else "no project has been run yet")
    return await engine.status(name)


def brief(status: RunStatus) -> Brief:
    """The name of a run's project, and how many tasks it has."""
    return status.part(Brief) if status.flow == PROJECT else status.part(_Sent).project


def spec_of(status: RunStatus) -> ProjectSpec:
    """The project of a run, also of one that a server was sent."""
    return project_of(status.payload if status.flow == PROJECT else status.payload["project"])


async def _watched(engine: Engine, found: RunStatus, *, as_json: bool) -> RunStatus:
    """A run that another process runs, shown until it has ended there."""
    view = view_of(await _board(engine, found), found.run, as_json=as_json)
    after, kept = found.offset, True
    view.start()
    try:
        while found.state in GOING:
            entries = await engine.events(found.run, after=after, wait_s=WAIT_S)
            for entry in entries:
                view.tell(entry)
                after = entry.offset
            await asyncio.sleep(READ_S)
            if not entries:
                found = await engine.status(found.run)
        kept = False
    finally:
        view.stop(keep=kept)
    return found


async def _board(engine: Engine, found: RunStatus) -> Board:
    """What is known of the tasks of a run; of one that goes on, since when."""
    if found.state not in GOING:
        board = Board(spec_of(found), at_rest(found).steps)
        for name, step in found.steps.items():
            if step.state == steps.RUNNING and not board.rows[name].words:
                board.rows[name].words = "interrupted"
        return board
    board, last = Board(spec_of(found), {}), 0
    while last < found.offset and (entries := await engine.events(found.run, after=last)):
        for entry in entries:
            if entry.offset <= found.offset:
                board.log(entry)
        last = entries[-1].offset
    return board


def _look(name: str | None, config: str | None) -> RunStatus:
    """A run as it stands now."""

    async def work() -> RunStatus:
        async with reading(load(config, os.environ)) as engine:
            return await named(engine, name)

    return asyncio.run(work())


def _write(text: str) -> None:
    """Print what models wrote, which must not steer a terminal."""
    sys.stdout.write(unsteering(text) if sys.stdout.isatty() else text)


def report_now(found: RunStatus) -> Report:
    """The report of a run as it stands."""
    return report_on(spec_of(found), at_rest(found))


def _told(found: RunStatus) -> dict[str, Any]:
    """How a run stands, as JSON, without what its tasks gave."""
    said = msgspec.to_builtins(report_now(found))
    results = [{key: value for key, value in one.items() if key != "output"} for one in said.pop("results")]
    return {**said, "offset": found.offset, "tasks": results}


def when(at: float) -> str:
    """A time in seconds since 1970 as a clock here shows it."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _journal(settings: Settings) -> Path:
    return Path(settings.store.dir, JOURNAL)


def _nothing(path: Path) -> str:
    folder = str(path.parent.absolute())
    return f"no project has been run yet: there is no {path.name} in {folder!r}; `penstock run project.yaml` begins one"


async def _listed(path: Path, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The newest runs, and how many more there are."""
    async with LocalEngine(Journal(path)) as engine:
        known = [one for one in await engine.runs(payloads=False) if one.flow in PROJECTS]
        newest = known[: -limit - 1 : -1]
        return [await _about(engine, one) for one in newest], len(known) - len(newest)


async def _about(engine: Engine, one: RunStatus) -> dict[str, Any]:
    of = brief(one)
    succeeded = total = len(of.tasks)
    if one.state is not RunState.SUCCEEDED:
        stand = (await engine.status(one.run)).steps
        succeeded = sum(step.state == steps.SUCCEEDED for step in stand.values())
    owner = one.part(_Sent).owner if one.flow == SERVED else None
    told = {"run": one.run, "project": of.name, "owner": owner, "state": one.state, "at": one.at}
    return {**told, "tasks": total, "succeeded": succeeded}
