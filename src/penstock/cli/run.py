"""`penstock run`: a project file is checked, run so that it survives, and shown; `--resume` goes on with it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from penstock.cli.advice import advice, at_rest, may_go, reasons, resuming, retrying, say
from penstock.cli.check import console
from penstock.cli.ends import FAILED, INTERRUPTED, complain
from penstock.cli.live import View, view_of
from penstock.cli.tables import table
from penstock.cli.view import Board, one_line, some, unsteering
from penstock.config import Catalog, Settings, load
from penstock.config.projects import JOURNAL, make_tasks, open_engine, read_project
from penstock.errors import Conflict, PenstockError, UsageError
from penstock.events import Event, Item
from penstock.messages import is_object
from penstock.run import Run, execute
from penstock.store.journal import Journal
from penstock.store.steps import SUCCEEDED, Logged, Step
from penstock.tasks.engines import Engine, Flow, Json, RunState, RunStatus
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.flow import PROJECT, register_projects
from penstock.tasks.modes.interactive import ask_terminal
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import project_of, report_of, tree

if TYPE_CHECKING:
    from penstock.tasks.agents import AgentConfig
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
    limits: dict[str, Json] = field(default_factory=dict)
    """The limits that hold here, whatever a run was begun with."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        agents: Iterable[AgentConfig],
        *,
        as_json: bool,
        file: str = "",
        concurrent: int | None = None,
    ) -> Staff:
        """The staff of a project file."""
        stage = Stage(as_json)
        executor = make_tasks(settings, Catalog(settings, os.environ), agents, ask=stage.ask)
        return cls(settings, executor, stage, file, {} if concurrent is None else {"concurrent": concurrent})

    @property
    def folder(self) -> Path:
        """Where runs are kept."""
        return Path(self.settings.store.dir).absolute()

    def engine(self) -> LocalEngine:
        """The engine of the journal, on which projects note the file they were begun with."""
        engine = open_engine(self.settings, self.executor)
        flow, file = register_projects(engine, self.executor).flow, str(Path(self.file).absolute())

        async def noted(going: Flow, payload: Json) -> Json:
            if self.file:
                await going.emit(FILE, file)
            limits = {**payload.get("limits", {}), **self.limits}
            return await flow(going, {**payload, "limits": limits})

        engine.register_flow(PROJECT, noted)
        return engine

    def adopted(self, began: ProjectSpec, now: ProjectSpec) -> ProjectSpec:
        """What a file says now, without what may differ from what its run began with; its budget holds from now on."""
        limits = began.limits
        if now.limits.budget != limits.budget:
            budget = now.limits.budget
            self.limits["budget"] = None if budget is None else budget.model_dump(mode="json", exclude_none=True)
            complain(f"limits.budget is what {self.file} says now, not what the run began with")
        if now.limits.concurrent != limits.concurrent and "concurrent" not in self.limits:
            complain(f"it goes on with limits.concurrent {limits.concurrent}, with which it began")
        same = {"concurrent": limits.concurrent, "budget": limits.budget}
        return now.model_copy(update={"limits": now.limits.model_copy(update=same)})

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
    spec, agents = read_project(file, os.environ, settings=settings, terminal=sys.stdin.isatty())
    staff = Staff.of(settings, agents, as_json=as_json, file=file, concurrent=concurrent)
    if resume and not (staff.folder / JOURNAL).exists():
        raise UsageError(_nothing_left(spec.name, staff.folder, f"`penstock run {file}` begins a run"))
    if concurrent is not None and not resume:
        spec = spec.model_copy(update={"limits": spec.limits.model_copy(update={"concurrent": concurrent})})

    async def work() -> int:
        async with staff.engine() as engine:
            asked = Asked(file, spec, new)
            chosen = await (_resumed(engine, asked, staff) if resume else _begun(engine, asked))
            return await perform(engine, chosen, staff)

    return stoppable(work())


def check_project(file: str, *, as_json: bool, config: str | None) -> int:
    """Print the tasks of a project file and who does them, and run nothing; returns the exit code."""
    settings = load(config, os.environ)
    spec, agents = read_project(file, os.environ, settings=settings)
    who = Staff.of(settings, agents, as_json=as_json, file=file).check(spec, {})
    if as_json:
        print(json.dumps({"ok": True, "project": spec.name, "agents": who}, ensure_ascii=False))
        return 0
    given = [task.model_copy(update={"agent": who[task.id]}) for task in spec.tasks]
    text = tree(spec.model_copy(update={"tasks": tuple(given)}))
    sys.stdout.write(unsteering(text) if sys.stdout.isatty() else text)
    say(f"{spec.name}: {len(spec.tasks)} tasks, nothing has run")
    return 0


class Brief(msgspec.Struct):
    """What a list needs to know of a project."""

    name: str
    tasks: list[msgspec.Raw]


class Asked(NamedTuple):
    """What is to be run: a project as its file has it now."""

    file: str
    spec: ProjectSpec
    new: bool = False

    async def runs(self, engine: Engine) -> list[RunStatus]:
        """The runs of this project that were begun here, the oldest first."""
        known = [one for one in await engine.runs(payloads=False) if one.flow == PROJECT]
        return [one for one in known if one.part(Brief).name == self.spec.name]


async def _begun(engine: Engine, asked: Asked) -> RunStatus:
    """A run under a name of its own; raises `UsageError` where the newest one has not ended."""
    known = await asked.runs(engine)
    if known and known[-1].state not in ENDED and not asked.new:
        run, state = known[-1].run, known[-1].state
        hint = f"`{resuming(run)}` goes on with it"
        if state is not RunState.INTERRUPTED:
            hint = f"another process runs it; `penstock project status {run} --follow` shows it"
        raise UsageError(f"the run {run!r} is {state}: {hint}, --new begins another")
    taken = {one.run for one in await engine.runs(payloads=False)}
    names = chain([asked.spec.name], (f"{asked.spec.name}-{number}" for number in count(2)))
    name = next(name for name in names if name not in taken)
    return RunStatus(run=name, flow=PROJECT, payload=asked.spec.payload(), state=RunState.RUNNING)


async def _resumed(engine: Engine, asked: Asked, staff: Staff) -> RunStatus:
    """The run that has not ended; raises `UsageError` for none or several, or where its file says something else."""
    known = await asked.runs(engine)
    open_ones = [one for one in known if one.state not in ENDED]
    rest = [one for one in open_ones if one.state is RunState.INTERRUPTED] or open_ones
    if not rest:
        hint = f"`penstock run {asked.file}` begins a run"
        if known:
            run, state = known[-1].run, known[-1].state
            hint = f"{run!r} {state}; `{retrying(run)}` does again what failed, {hint.replace('a run', 'anew')}"
        raise UsageError(_nothing_left(asked.spec.name, staff.folder, hint))
    if len(rest) > 1:
        names = some(one.run for one in reversed(rest))
        raise UsageError(f"several runs of it have not ended, {names}: say which with `penstock project resume NAME`")
    status = await engine.status(rest[-1].run)
    began = project_of(status.payload)
    if found := "; ".join(differences(began, staff.adopted(began, asked.spec))):
        raise UsageError(
            f"{asked.file} has changed since the run {status.run!r} began ({found}): "
            "bring it back to go on, or begin anew with --new"
        )
    return status


def _nothing_left(name: str, folder: Path, hint: str) -> str:
    return f"there is nothing to resume of the project {name!r} in {str(folder)!r}: {hint}"


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
    spec, stage, steps = project_of(begun.payload), staff.stage, at_rest(begun).steps
    agents = staff.check(spec, steps)
    board = Board(spec, steps, agents=agents)
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
        await _interrupted(spec, begun.run, staff)
        raise
    return conclude(status, agents, as_json=stage.as_json)


async def _interrupted(spec: ProjectSpec, run: str, staff: Staff) -> None:
    """Say how a run stands that was stopped, and how to go on with it."""
    with suppress(PenstockError):  # as for a run that was stopped before it began
        async with LocalEngine(Journal(staff.folder / JOURNAL)) as engine:
            status = at_rest(await engine.status(run))
        board = Board(spec, status.steps)
        text = f"interrupted, {board.ended} of {len(board.rows)} tasks have ended"
        goes = may_go(spec, status.steps)
        complain(f"{text}: `{resuming(run)}` goes on" if goes else text)
        for line in [*advice(spec, status)][1 if goes else 0 :]:
            complain(line)


def conclude(status: RunStatus, agents: Mapping[str, str], *, as_json: bool) -> int:
    """Say on stdout how a run ended; the exit code."""
    report, spec = report_of(status), project_of(status.payload)
    if as_json:
        print(json.dumps({"report": msgspec.to_builtins(report)}, ensure_ascii=False))
        return 0 if report.ok else FAILED
    board = Board(spec, status.steps, agents=agents)
    show(board, most=MOST_SHOWN)
    for line in (*reasons(report), report.summary()):
        say(line)
    if status.state is RunState.FAILED and not board.troubles and is_object(status.value):
        complain(f"the run itself failed: {one_line(status.value.get('message'))}")
    say(f"read all: {shlex.join(['penstock', 'project', 'report', status.run])}")
    for line in advice(spec, status):
        say(line)
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
    except Conflict as error:
        complain(error.message)
        return FAILED
