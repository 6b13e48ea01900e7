"""`penstock project`: what is known of the runs in the journal, and what can be done with them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from penstock.cli.check import console
from penstock.cli.ends import FAILED, complain
from penstock.cli.live import view_of
from penstock.cli.run import FILE, Staff, perform, show, stoppable
from penstock.cli.view import Board, Row, one_line, some, unsteering
from penstock.config import Settings, load
from penstock.config.projects import JOURNAL, read_project
from penstock.errors import UnknownName, UsageError
from penstock.store import steps
from penstock.store.journal import Journal
from penstock.store.steps import BEGUN, RESUMED, Logged, Step
from penstock.tasks.engines import Engine, RunState, RunStatus
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.flow import PROJECT
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import STATUS, Report, mermaid, project_of, report_on, result_of, tree

SERVED = "served"
PROJECTS = frozenset({PROJECT, SERVED})
"""The flows of projects: those begun here, and those that a server was sent."""
GOING = frozenset({RunState.RUNNING, RunState.PAUSED})
AGAIN = frozenset({steps.FAILED, steps.CANCELLED, steps.UNKNOWN})
PAGE = 1000
READ_S = 0.1  # a log is read about ten times a second, however much happens
WAIT_S = 1.0


def list_runs(config: str | None, *, as_json: bool) -> None:
    """Print all runs."""
    path = _journal(load(config, os.environ))
    found = asyncio.run(_all(path)) if path.exists() else []
    if as_json:
        about = [{"run": one.run, "project": spec_of(one).name, "state": one.state, "at": one.at} for one in found]
        print(json.dumps({"runs": about}))
        return
    if not found:
        complain(_nothing(path))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "state", "tasks", "began", box=None)
    for one in reversed(found):
        table.add_row(*map(Text, (one.run, one.state, str(len(spec_of(one).tasks)), _when(one.at))))
    console().print(table)


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
                print(f"{found.run}: {_report(found).summary()}; began {_when(found.at)}")
            return FAILED if follow and found.state is not RunState.SUCCEEDED else 0

    return stoppable(work())


def report(name: str | None, config: str | None, *, output: str | None, as_json: bool) -> None:
    """Write the report of a run."""
    made = _report(_look(name, config))
    text = json.dumps(msgspec.to_builtins(made), indent=2, ensure_ascii=False) + "\n" if as_json else made.markdown()
    if output is None:
        _write(text)
        return
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"the report cannot be written to {output!r}: {error.strerror}") from error


def graph(name: str | None, config: str | None, *, as_mermaid: bool) -> None:
    """Print the graph of a run's tasks."""
    found = _look(name, config)
    draw = mermaid if as_mermaid else tree
    _write(draw(spec_of(found), _report(found).results))


def events(name: str | None, config: str | None, *, after: int, as_json: bool) -> None:
    """Print the log of a run."""

    async def work() -> None:
        async with reading(load(config, os.environ)) as engine:
            run, last = (await named(engine, name)).run, after
            while entries := await engine.events(run, after=last):
                for entry in entries:
                    print(msgspec.json.encode(entry).decode() if as_json else _line(entry))
                last = entries[-1].offset

    asyncio.run(work())


def retry(name: str | None, tasks: Sequence[str], config: str | None, *, file: str | None, as_json: bool) -> int:
    """Take back the ends of tasks, and go on with their run; returns the exit code."""
    settings = load(config, os.environ)

    async def found() -> tuple[RunStatus, str]:
        async with reading(settings) as engine:
            known = await named(engine, name)
            return known, file or await _file(engine, known.run)

    begun, path = asyncio.run(found())
    chosen = _chosen(begun, tasks)
    if begun.flow != PROJECT:
        raise UsageError(f"the run {begun.run!r} is a server's: POST /v1/projects/{begun.run}/tasks/TASK/retry")
    if path and not file and not Path(path).exists():
        raise UsageError(f"the project file {path!r} is gone, and with it its agents: say where it is now with --file")
    agents = read_project(path, os.environ, settings=settings)[1] if path else ()
    staff = Staff.of(settings, agents, as_json=as_json, file=path)

    async def work() -> int:
        async with staff.engine() as engine:
            for task in chosen:
                await engine.retry(begun.run, task)
            if begun.state in GOING:
                print(f"{', '.join(chosen)}: done again by the process that runs {begun.run}")
                return 0
            return await perform(engine, await engine.status(begun.run), staff)

    return stoppable(work())


def cancel(name: str | None, task: str | None, config: str | None) -> int:
    """Cancel a run or a task; returns the exit code."""

    async def work() -> int:
        async with reading(load(config, os.environ)) as engine:
            found = await named(engine, name)
            if task is not None:
                _known(found, [task])
            done = await engine.cancel(found.run, task)
            what = f"the task {task!r} of {found.run!r}" if task is not None else f"the run {found.run!r}"
            if not done and not _cancelled(found, await engine.status(found.run), task):
                complain(f"{what} has ended already")
                return FAILED
            print(f"cancelled: {what}")
            return 0

    return stoppable(work())


def rollback(name: str, offset: int, config: str | None) -> None:
    """Bring a run back to an offset of its log."""

    async def work() -> None:
        async with reading(load(config, os.environ)) as engine:
            run = (await named(engine, name)).run
            await engine.rollback(run, offset)
            now = await engine.status(run)
            path = await _file(engine, run)
        print(f"{run} is as it was at {offset}: {_report(now).summary()}")
        if now.state is RunState.INTERRUPTED and path:
            print(f"go on with it: penstock run {path} --resume")

    asyncio.run(work())


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
    runs = [one.run for one in await engine.runs() if one.flow in PROJECTS]
    if name is None and runs:
        return await engine.status(runs[-1])
    if name not in runs:
        known = some(reversed(runs)) or "none"
        raise UnknownName(f"there is no run {name!r}: there are {known}" if name else "no project has been run yet")
    return await engine.status(name)


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
        return Board(spec_of(found), found.steps)
    board, last = Board(spec_of(found), {}), 0
    while last < found.offset and (entries := await engine.events(found.run, after=last)):
        for entry in entries:
            if entry.offset <= found.offset:
                board.log(entry)
        last = entries[-1].offset
    return board


async def _file(engine: Engine, run: str) -> str:
    """The project file that a run was begun with; empty where it is not known."""
    entries = await engine.events(run, limit=PAGE)
    return next((str(entry.value) for entry in entries if entry.kind == FILE), "")


def _chosen(begun: RunStatus, tasks: Sequence[str]) -> list[str]:
    """The tasks to do again: those that are named, else all that have an end that can be taken back."""
    _known(begun, tasks)
    chosen = [*dict.fromkeys(tasks)] or [name for name, step in begun.steps.items() if step.state in AGAIN]
    if not chosen and begun.state is not RunState.INTERRUPTED:
        raise UsageError(f"there is nothing to do again in the run {begun.run!r} ({begun.state})")
    return chosen


def _known(found: RunStatus, tasks: Iterable[str]) -> None:
    known = dict.fromkeys([*(task.id for task in spec_of(found).tasks), *found.steps])
    for task in tasks:
        if task not in known:
            raise UnknownName(f"the run {found.run!r} has no task {task!r}: it has {some(known)}")


def _cancelled(before: RunStatus, now: RunStatus, task: str | None) -> bool:
    """Whether it was cancelled meanwhile, by a process that ended before it could say so."""
    if task is None:
        return now.state is RunState.CANCELLED is not before.state
    stood, stands = (one.steps.get(task, Step(steps.PENDING)).state for one in (before, now))
    return stands == steps.CANCELLED != stood


def _look(name: str | None, config: str | None) -> RunStatus:
    """A run as it stands now."""

    async def work() -> RunStatus:
        async with reading(load(config, os.environ)) as engine:
            return await named(engine, name)

    return asyncio.run(work())


def _write(text: str) -> None:
    """Print what models wrote, which must not steer a terminal."""
    sys.stdout.write(unsteering(text) if sys.stdout.isatty() else text)


def _report(found: RunStatus) -> Report:
    return report_on(spec_of(found), found)


def _told(found: RunStatus) -> dict[str, Any]:
    """How a run stands, as JSON, without what its tasks gave."""
    said = msgspec.to_builtins(_report(found))
    results = [{key: value for key, value in one.items() if key != "output"} for one in said.pop("results")]
    return {**said, "offset": found.offset, "tasks": results}


def _line(entry: Logged) -> str:
    what = f"{one_line(entry.step)} {entry.state}" if entry.state else f"({entry.kind})"
    words = ""
    if entry.step and entry.state and entry.state in STATUS:
        row = Row(entry.step)
        row.end(result_of(entry.step, Step(entry.state, entry.value)), entry.at)
        words = row.words
    elif entry.kind not in {BEGUN, RESUMED}:
        words = one_line(entry.value)
    return f"{entry.offset:6}  {_when(entry.at)}  {what}{f': {words}' if words else ''}"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _journal(settings: Settings) -> Path:
    return Path(settings.store.dir, JOURNAL)


def _nothing(path: Path) -> str:
    return f"no project has been run yet: there is no {str(path)!r}; `penstock run project.yaml` begins one"


async def _all(path: Path) -> list[RunStatus]:
    async with LocalEngine(Journal(path)) as engine:
        return [one for one in await engine.runs() if one.flow in PROJECTS]
