"""`penstock project`: runs are gone on with, mended, brought back, cancelled and removed."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from penstock.cli.advice import advice, at_rest, doubts, may_go, retrying, say
from penstock.cli.ends import FAILED, complain
from penstock.cli.run import ENDED, FILE, Staff, differences, perform, stoppable
from penstock.cli.runs import GOING, named, reading, report_now, spec_of
from penstock.cli.view import some
from penstock.config import Settings, load
from penstock.config.projects import read_project
from penstock.errors import Conflict, UnknownName, UsageError
from penstock.store import steps
from penstock.tasks.engines import Engine, RunState, RunStatus
from penstock.tasks.flow import PROJECT
from penstock.tasks.project import ProjectSpec

AGAIN = frozenset({steps.FAILED, steps.CANCELLED})
PAGE = 1000


def retry(name: str | None, tasks: Sequence[str], config: str | None, *, file: str | None, as_json: bool) -> int:
    """Take back the ends of tasks, and go on with their run; returns the exit code."""
    settings = load(config, os.environ)

    async def found() -> tuple[RunStatus, str]:
        async with reading(settings) as engine:
            known = await named(engine, name)
            return known, file or await _file(engine, known.run)

    begun, path = asyncio.run(found())
    if begun.flow != PROJECT:
        raise UsageError(f"the run {begun.run!r} is a server's: POST /v1/projects/{begun.run}/tasks/TASK/retry")
    chosen = _chosen(begun, tasks)
    return _going_on(Going(begun, path, chosen, moved=bool(file)), settings, as_json=as_json)


def resume(name: str | None, config: str | None, *, file: str | None, as_json: bool) -> int:
    """Go on with a run that was interrupted; returns the exit code."""
    settings = load(config, os.environ)

    async def found() -> tuple[RunStatus, str]:
        async with reading(settings) as engine:
            known = await _the_one(engine, name, {RunState.INTERRUPTED}, "resume")
            return known, file or await _file(engine, known.run)

    begun, path = asyncio.run(found())
    if begun.flow != PROJECT:
        raise UsageError(f"the run {begun.run!r} is a server's: that goes on with it when it is started")
    if begun.state in ENDED:
        raise UsageError(
            f"the run {begun.run!r} has ended ({begun.state}): `{retrying(begun.run)}` does again what failed"
        )
    return _going_on(Going(begun, path, moved=bool(file)), settings, as_json=as_json)


class Going(NamedTuple):
    """A run that is to go on, the tasks that are done again, and the file with its agents."""

    begun: RunStatus
    path: str
    chosen: Sequence[str] = ()
    moved: bool = False


def _going_on(going: Going, settings: Settings, *, as_json: bool) -> int:
    begun, path, chosen, moved = going
    if path and not moved and not Path(path).exists():
        raise UsageError(f"the project file {path!r} is gone, and with it its agents: say where it is now with --file")
    here = sys.stdin.isatty()
    now, agents = read_project(path, os.environ, settings=settings, terminal=here) if path else (None, ())
    staff = Staff.of(settings, agents, as_json=as_json, file=path)

    async def work() -> int:
        async with staff.engine() as engine:
            for task in chosen:
                await engine.retry(begun.run, task)
            if begun.state in GOING and chosen:
                print(f"{', '.join(chosen)}: done again by the process that runs {begun.run}")
                return 0
            if now is not None:
                _say_what_changed(begun, now, staff)
            return await perform(engine, await engine.status(begun.run), staff)

    return stoppable(work())


def _say_what_changed(begun: RunStatus, now: ProjectSpec, staff: Staff) -> None:
    began = spec_of(begun)
    if now.name != began.name:
        raise UsageError(f"{staff.file} is the project {now.name!r}, not {began.name!r}: give its file with --file")
    if found := "; ".join(differences(began, staff.adopted(began, now))):
        anew = shlex.join(["penstock", "run", staff.file, "--new"])
        complain(
            f"{staff.file} has changed since the run {begun.run!r} began ({found}): "
            f"the run keeps what it began with, `{anew}` begins anew"
        )


def cancel(name: str | None, task: str | None, config: str | None) -> int:
    """Cancel a run or a task; returns the exit code."""

    async def work() -> int:
        async with reading(load(config, os.environ)) as engine:
            found = await _the_one(engine, name, {*RunState} - ENDED, "cancel")
            if task is not None:
                _known(found, [task])
            done = await cancelled(engine, found, task)
            what = f"the task {task!r} of {found.run!r}" if task is not None else f"the run {found.run!r}"
            if not done:
                complain(f"{what} has ended already")
                return FAILED
            print(f"cancelled: {what}")
            return 0

    return stoppable(work())


async def cancelled(engine: Engine, before: RunStatus, task: str | None) -> bool:
    """Whether a run or a task that had not ended is cancelled now, by this or by somebody else at the same time."""
    if await engine.cancel(before.run, task):
        return True
    now = await engine.status(before.run)
    if task is None:
        return before.state not in ENDED and now.state is RunState.CANCELLED
    was, step = before.steps.get(task), now.steps.get(task)
    begun_or_open = was is None or was.state in {steps.PENDING, steps.RUNNING}
    return begun_or_open and step is not None and step.state == steps.CANCELLED


def rollback(name: str, offset: int, config: str | None) -> None:
    """Bring a run back to an offset of its log."""

    async def work() -> None:
        async with reading(load(config, os.environ)) as engine:
            run = (await named(engine, name)).run
            await engine.rollback(run, offset)
            now = await engine.status(run)
        say(f"{run} is as it was at {offset}: {report_now(now).summary()}")
        if now.flow == PROJECT:
            for line in advice(spec_of(now), now):
                say(line)

    asyncio.run(work())


def remove(name: str, config: str | None, *, as_json: bool) -> None:
    """Remove a run from the journal."""

    async def work() -> str:
        async with reading(load(config, os.environ)) as engine:
            run = (await named(engine, name)).run
            try:
                await engine.forget(run)
            except Conflict as error:
                raise UsageError(f"{error.message}: `penstock project cancel {run}` ends it") from error
            return run

    run = asyncio.run(work())
    print(json.dumps({"removed": run}, ensure_ascii=False) if as_json else f"removed: the run {run!r}")


async def _the_one(engine: Engine, name: str | None, states: AbstractSet[RunState], what: str) -> RunStatus:
    """A run by its name, or the only one of this command line in such a state; raises `UsageError`."""
    if name is not None:
        return await named(engine, name)
    runs = [one.run for one in await engine.runs(payloads=False) if one.flow == PROJECT and one.state in states]
    if not runs:
        raise UsageError(
            f"there is nothing to {what}: no run has been left unfinished; `penstock project list` shows all"
        )
    if len(runs) > 1:
        raise UsageError(f"several runs have not ended, {some(reversed(runs))}: name the one to {what}")
    return await engine.status(runs[0])


async def _file(engine: Engine, run: str) -> str:
    """The project file that a run was begun with; empty where it is not known."""
    entries = await engine.events(run, limit=PAGE)
    return next((str(entry.value) for entry in entries if entry.kind == FILE), "")


def _chosen(begun: RunStatus, tasks: Sequence[str]) -> list[str]:
    """The tasks to do again: those that are named, else all that failed or were cancelled."""
    _known(begun, tasks)
    stand = at_rest(begun).steps
    chosen = [*dict.fromkeys(tasks)] or [name for name, step in stand.items() if step.state in AGAIN]
    left = "; ".join(doubts(begun.run, {name: step for name, step in stand.items() if name not in chosen}))
    goes = begun.state is RunState.INTERRUPTED and may_go(spec_of(begun), stand)
    if not chosen and not goes:
        raise UsageError(left or f"there is nothing to do again in the run {begun.run!r} ({begun.state})")
    if left:
        complain(left)
    return chosen


def _known(found: RunStatus, tasks: Iterable[str]) -> None:
    known = dict.fromkeys([*(task.id for task in spec_of(found).tasks), *found.steps])
    for task in tasks:
        if task not in known:
            raise UnknownName(f"the run {found.run!r} has no task {task!r}: it has {some(known)}")
