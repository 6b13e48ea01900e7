"""`penstock run`: a project file is checked, run so that it survives, and shown; `--resume` goes on with it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from penstock.cli.check import console
from penstock.cli.ends import FAILED, INTERRUPTED, complain
from penstock.cli.live import View, view_of
from penstock.cli.tables import table
from penstock.cli.view import Board, one_line, some
from penstock.config import Catalog, Settings, load
from penstock.config.projects import make_tasks, open_engine, read_project
from penstock.errors import UsageError
from penstock.events import Event, Item
from penstock.messages import is_object
from penstock.run import Run, execute
from penstock.store.steps import SUCCEEDED, Logged, Step
from penstock.tasks.engines import Engine, Flow, Json, RunState, RunStatus
from penstock.tasks.flow import PROJECT, register_projects
from penstock.tasks.modes.interactive import ask_terminal
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import project_of, report_of

if TYPE_CHECKING:
    from penstock.tasks.agents import AgentConfig
    from penstock.tasks.engines.local import LocalEngine
    from penstock.tasks.executor import TaskExecutor

ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
FILE = "file"
"""The note of a run that says which file it was begun with."""
MOST_SHOWN = 60


@dataclass(slots=True)
class Stage:
    """The terminal that a run is shown on, which it leaves to whoever must be asked something."""

    as_json: bool
    view: View | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def show(self, view: View) -> None:
        """Show a run from now on."""
        self.view = view
        view.start()

    def leave(self, *, keep: bool) -> None:
        """Show it no more, and `keep` there what was shown last."""
        if self.view is not None:
            self.view.stop(keep=keep)
        self.view = None

    async def ask(self, text: str) -> str:
        """Put a question to the person at the terminal, one at a time."""
        async with self._turn:
            if self.view is not None:
                self.view.stop()
            try:
                return await ask_terminal(text)
            finally:
                if self.view is not None:
                    self.view.start()


@dataclass(frozen=True, slots=True)
class Staff:
    """Who does the tasks: the agents of the configuration, and of a project file where there is one."""

    settings: Settings
    executor: TaskExecutor
    stage: Stage
    file: str = ""

    @classmethod
    def of(cls, settings: Settings, agents: Iterable[AgentConfig], *, as_json: bool, file: str = "") -> Staff:
        """The staff of a project file."""
        stage = Stage(as_json)
        executor = make_tasks(settings, Catalog(settings, os.environ), agents, ask=stage.ask)
        return cls(settings, executor, stage, file)

    def engine(self) -> LocalEngine:
        """The engine of the journal, on which projects note the file they were begun with."""
        engine = open_engine(self.settings, self.executor)
        flow, file = register_projects(engine, self.executor).flow, str(Path(self.file).absolute())

        async def noted(going: Flow, payload: Json) -> Json:
            if self.file:
                await going.emit(FILE, file)
            return await flow(going, payload)

        engine.register_flow(PROJECT, noted)
        return engine

    def check(self, spec: ProjectSpec, steps: Mapping[str, Step]) -> dict[str, str]:
        """Who does each task that is still to be done; raises, before anything runs, where nobody can."""
        left = (task for task in spec.tasks if task.id not in steps or steps[task.id].state != SUCCEEDED)
        return {task.id: self.executor.agent_for(spec.defaults.fill(task)).name for task in left}


def run_project(  # each is an option
    file: str, *, resume: bool, new: bool, concurrent: int | None, as_json: bool, config: str | None
) -> int:
    """Run a project file, or go on with its run, and show it; returns the exit code. Raises `UsageError`."""
    if resume and new:
        raise UsageError("give --resume to go on, or --new to begin anew, not both")
    settings = load(config, os.environ)
    spec, agents = read_project(file, os.environ, settings=settings)
    staff = Staff.of(settings, agents, as_json=as_json, file=file)
    if concurrent is not None:
        spec = spec.model_copy(update={"limits": spec.limits.model_copy(update={"concurrent": concurrent})})

    async def work() -> int:
        async with staff.engine() as engine:
            chosen = await (_resumed if resume else _begun)(engine, Asked(file, spec, new, concurrent))
            return await perform(engine, chosen, staff)

    return stoppable(work())


class Asked(NamedTuple):
    """What is to be run: a project as its file has it now."""

    file: str
    spec: ProjectSpec
    new: bool = False
    concurrent: int | None = None

    async def runs(self, engine: Engine) -> list[RunStatus]:
        """The runs of this project that were begun here, the oldest first."""
        named = re.compile(rf"{re.escape(self.spec.name)}(-\d+)?")
        return [one for one in await engine.runs() if one.flow == PROJECT and named.fullmatch(one.run)]


async def _begun(engine: Engine, asked: Asked) -> RunStatus:
    """A run under a name of its own; raises `UsageError` where the newest one has not ended."""
    known = await asked.runs(engine)
    if known and known[-1].state not in ENDED and not asked.new:
        run, state = known[-1].run, known[-1].state
        hint = f"`penstock run {asked.file} --resume` goes on with it"
        if state is not RunState.INTERRUPTED:
            hint = f"another process runs it; `penstock project status {run} --follow` shows it"
        raise UsageError(f"the run {run!r} is {state}: {hint}, --new begins another")
    taken = {one.run for one in await engine.runs()}
    names = chain([asked.spec.name], (f"{asked.spec.name}-{number}" for number in count(2)))
    name = next(name for name in names if name not in taken)
    return RunStatus(run=name, flow=PROJECT, payload=asked.spec.payload(), state=RunState.RUNNING)


async def _resumed(engine: Engine, asked: Asked) -> RunStatus:
    """The newest run that has not ended; raises `UsageError` for none, or where its file says something else now."""
    known = await asked.runs(engine)
    open_ones = [one for one in known if one.state not in ENDED]
    if not open_ones:
        hint = f"`penstock run {asked.file}` begins one"
        if known:
            run, state = known[-1].run, known[-1].state
            hint = (
                f"{run!r} {state}; `penstock project retry {run}` does again what failed, {hint.replace('one', 'anew')}"
            )
        raise UsageError(f"there is nothing to resume of the project {asked.spec.name!r}: {hint}")
    status = await engine.status(open_ones[-1].run)
    began, now = project_of(status.payload), asked.spec
    if asked.concurrent is None and now.limits.concurrent != began.limits.concurrent:
        complain(f"it goes on with limits.concurrent {began.limits.concurrent}, with which it began")
        limits = now.limits.model_copy(update={"concurrent": began.limits.concurrent})
        now = now.model_copy(update={"limits": limits})
    if found := "; ".join(differences(began, now)):
        raise UsageError(
            f"{asked.file} has changed since the run {status.run!r} began ({found}): "
            "bring it back to go on, or begin anew with --new"
        )
    return status


def differences(began: ProjectSpec, now: ProjectSpec) -> Iterator[str]:
    """What a project says differently now, in words."""
    before, after = ({task.id: task for task in spec.tasks} for spec in (began, now))
    for name, names in (
        ("added", [task for task in after if task not in before]),
        ("removed", [task for task in before if task not in after]),
        ("changed", [task for task in before if task in after and before[task] != after[task]]),
    ):
        if names:
            yield f"tasks {name}: {some(names)}"
    yield from (f"{key} changed" for key in ("goal", "defaults", "limits") if getattr(began, key) != getattr(now, key))


async def perform(engine: Engine, begun: RunStatus, staff: Staff) -> int:
    """Start a run, or go on with it, show it until it has ended and say how it did; returns the exit code."""
    spec, stage = project_of(begun.payload), staff.stage
    agents = staff.check(spec, begun.steps)
    board = Board(spec, begun.steps, agents=agents)
    view = view_of(board, begun.run, as_json=stage.as_json)

    def hear(event: Event) -> None:
        if isinstance(event, Item) and isinstance(event.value, Logged) and not event.path:
            view.tell(event.value)
        else:
            board.hear(event)

    async def work(_: None, within: Run, /) -> RunStatus:
        await engine.start(begun.run, PROJECT, begun.payload, within=within)
        over = False
        stage.show(view)
        try:
            status = await engine.wait(begun.run)
            over = True
        finally:
            stage.leave(keep=not (over and sys.stdout.isatty()))
            if not over:  # what runs is stopped while there is still somebody to hear of it
                await engine.aclose()
        return status

    try:
        status = await execute(work, None, hear)
    except asyncio.CancelledError:
        again = f"penstock run {staff.file} --resume" if staff.file else f"penstock project retry {begun.run}"
        complain(f"interrupted, {board.ended} of {len(board.rows)} tasks have ended: `{again}` goes on")
        raise
    return conclude(status, agents, as_json=stage.as_json)


def conclude(status: RunStatus, agents: Mapping[str, str], *, as_json: bool) -> int:
    """Say on stdout how a run ended; the exit code."""
    report = report_of(status)
    if as_json:
        print(json.dumps({"report": msgspec.to_builtins(report)}, ensure_ascii=False))
        return 0 if report.ok else FAILED
    board = Board(project_of(status.payload), status.steps, agents=agents)
    show(board, most=MOST_SHOWN)
    print(report.summary())
    if status.state is RunState.FAILED and not board.troubles and is_object(status.value):
        complain(f"the run itself failed: {one_line(status.value.get('message'))}")
    print(f"read all: penstock project report {status.run}")
    if not report.ok:
        print(f"do again what failed: penstock project retry {status.run}")
    return 0 if report.ok else FAILED


def show(board: Board, *, most: int | None = None) -> None:
    """Print the tasks as a table; where they are more than `most`, those that failed only."""
    rows = [*board.rows.values()]
    if most is not None and len(rows) > most:
        rows = [*board.troubles.values()][:most]
    if rows:
        out = console()
        out.print(table(rows, out, head=True))


def stoppable(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end, or until Ctrl-C, SIGTERM or a terminal that is closed: then all is left in order first."""

    async def main() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if task is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                loop.add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
