"""`Projects`: what clients have run in the background, each for its owner, and taken up again after a crash."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import msgspec

from penstock.errors import (
    Conflict,
    Invalid,
    LimitReached,
    NotFound,
    PenstockError,
    StoreFailed,
    UnknownName,
    UsageError,
)
from penstock.policies.trace import Attributes, trace
from penstock.run import Principal, execute
from penstock.server.project_tasks import demand_task, reopen, settled

if TYPE_CHECKING:
    from penstock.config import Catalog, Settings
    from penstock.config.agents import AgentSettings
    from penstock.run import Run
    from penstock.tasks.engines import Engine, Flow, Json, RunStatus
    from penstock.tasks.executor import TaskExecutor
    from penstock.tasks.flow import Projects as Tasks

JOURNAL = "projects.sqlite"
"""As `config.projects` names it, which costs 9 MB and is not loaded before there is one."""
SERVED = "served"
"""The flow of a client's project: its payload is `{"project": ..., "owner": tenant, "by": name}`."""
MOST_AT_ONCE = 16
"""How many projects of one owner go on at once, in each process of the server."""
MOST_PROCESSES = 16
"""How many commands an agent of mode `cli` runs at once, in each process of the server, unless its settings say it."""
OVER, GOING = frozenset(("succeeded", "failed", "cancelled")), frozenset(("running", "paused"))
_log = logging.getLogger("penstock.server")


class Named(msgspec.Struct, frozen=True):
    """A project's name, of all that its payload says."""

    name: str


class Kept(msgspec.Struct, frozen=True):
    """Whose a run is, and what it is called."""

    owner: str
    project: Named


class Projects:
    """The projects of a server's clients, over the configured agents that ask no person.

    Nothing is opened, and no file made, before the first project, or before there is a journal. A project is seen by
    its owner, the tenant of who began it, and by those who hold `admin`; for all others it is not there.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings, self._catalog = settings, catalog
        self._withheld = asking(settings.agents)
        self._opening, self._beginning = asyncio.Lock(), asyncio.Lock()
        self._executor: TaskExecutor | None = None
        self._engine: Engine | None = None
        self._living: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._waiting: dict[str, str] = {}
        self._taking: asyncio.Task[None] | None = None
        self._stopping = False
        self.closing = asyncio.Event()

    async def begin(self, principal: Principal, body: bytes, key: str | None = None) -> RunStatus:
        """Begin the project in a body; one that was begun under the same key is given again.

        Raises `NotFound` where no agent is configured, `Invalid` for what is no project that these agents can do,
        `Conflict` where the key stands for another project, `LimitReached` where too many go on.
        """
        engine, executor = await self._making()
        from penstock.server.project_check import project_in

        project = await asyncio.to_thread(project_in, body, executor, withheld=self._withheld)
        owner = _tenant(principal)
        payload = {"project": project.payload(), "owner": owner, "by": principal.name}
        run = f"proj_{uuid4().hex if key is None else _digest(principal, key)}"
        async with self._beginning:
            known = None if key is None else await _known(engine, run)
            if known is None:
                self._demand_room(owner)
                await self._start(engine, run, payload)
            elif known.payload != payload:
                text = f"the idempotency key {key!r} stands for another project: use a new one"
                raise Conflict(text, param="idempotency-key", code="idempotency_conflict")
        return known or await engine.status(run)

    async def list(self, principal: Principal, limit: int, after: str | None = None) -> list[RunStatus]:
        """At most `limit` projects that a caller may see, the newest first, behind the one named `after`.

        They are without their tasks. Raises `Invalid` where `after` is none of theirs.
        """
        engine = await self._reading()
        runs = await engine.runs(payloads=False) if engine else []
        own = (one for one in reversed(runs) if one.flow == SERVED and _seen(one, principal))
        if after is not None and all(one.run != after for one in own):
            raise Invalid(f"you have no project {after[:100]!r}: give the id of one", param="after")
        return [*islice(own, limit)]

    async def find(self, principal: Principal, run: str, *, tasks: bool = True) -> tuple[Engine, RunStatus]:
        """A project, and the engine that keeps it; quicker without its `tasks`. Raises `NotFound`."""
        engine, status = await self._found(principal, run)
        if status.state == "interrupted":  # its process ended after this one had begun
            await self._take(engine, run, status)
        elif not tasks:
            return engine, status
        return engine, await engine.status(run, steps=tasks)

    async def cancel(self, principal: Principal, run: str, task: str | None = None) -> None:
        """Cancel a project, or one of its tasks, whichever process runs it; what has ended stays as it is.

        Raises `Conflict` for a task that cannot be reached: its project is interrupted, and it has not begun.
        """
        engine, status = await self._found(principal, run)
        demand_task(status, task)
        if status.state in OVER:
            return
        try:
            await engine.cancel(run, task, reason=f"cancelled by {principal.name}")
        except UnknownName as error:
            text = f"the task {task!r} has not begun, and nothing runs its project: try again when that is taken up"
            raise Conflict(text, param="task", code="not_running") from error

    async def retry(self, principal: Principal, run: str, task: str | None = None) -> None:
        """Let a task that did not succeed run again, or all of them, and the project go on.

        Raises `Conflict` for any other task, or where there is none such.
        """
        engine, status = await self._found(principal, run)
        demand_task(status, task)
        await self._making()
        owner = status.payload["owner"]
        if run not in self._living:
            self._demand_room(owner)
        await reopen(engine, run, task)  # which may wait long for another process: nobody else waits for that
        async with self._beginning:
            if run in self._living or self._has_room(owner):
                await self._start(engine, run, status.payload)
            else:
                self._waiting[run] = owner

    async def pause(self, principal: Principal, run: str) -> None:
        """Start no more tasks of a project until `resume`; raises `Conflict` for one that does not go on."""
        await self._steer(principal, run, "pause")

    async def resume(self, principal: Principal, run: str) -> None:
        """Go on after `pause`; raises `Conflict` for a project that does not go on."""
        await self._steer(principal, run, "resume")

    async def _steer(self, principal: Principal, run: str, what: Literal["pause", "resume"]) -> None:
        engine, status = await self._found(principal, run)
        text = f"the project {run!r} is {status.state}: only one that goes on can {what}"
        if status.state not in GOING:
            raise Conflict(text, param="id", code="not_running")
        try:
            await (engine.pause(run) if what == "pause" else engine.resume(run))
        except UsageError as error:  # it has ended meanwhile
            raise Conflict(text, param="id", code="not_running") from error

    def take_up(self) -> None:
        """Go on with the projects that a process left behind, in the background."""
        if self._settings.agents and self._path().exists():
            self._taking = asyncio.ensure_future(self._take_up())

    async def settle(self) -> None:
        """Start no more tasks, and return when those that run have ended: the rest is for the next process."""
        self._stopping = True
        if self._taking is not None:
            self._taking.cancel()
        if (engine := self._engine) is not None:
            ends = await asyncio.gather(*(settled(engine, run) for run in self._living), return_exceptions=True)
            for error in filter(None, ends):
                _log.error("a project is interrupted as it stands: %s", error)

    async def aclose(self) -> None:
        """Interrupt what still runs, so that it can be taken up, and let go of the journal."""
        self.closing.set()
        self._stopping = True
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait((self._taking,))
        for _, following in self._living.values():
            following.cancel()
        if self._engine is not None:
            try:
                await self._engine.aclose()
            except StoreFailed as error:
                _log.error("the projects are left as they were last stored: %s", error)

    async def _found(self, principal: Principal, run: str) -> tuple[Engine, RunStatus]:
        engine = await self._reading()
        status = await _known(engine, run, steps=False) if engine else None
        if engine is None or status is None or status.flow != SERVED or not _seen(status, principal):
            text = f"no project {run[:100]!r}: GET /v1/projects lists yours"
            raise NotFound(text, param="id", code="project_not_found")
        return engine, status

    def _path(self) -> Path:
        return Path(self._settings.store.dir, JOURNAL)

    async def _reading(self) -> Engine | None:
        """The engine, where there is a journal."""
        if self._engine is None and self._path().exists():
            await self._opened()
        return self._engine

    async def _making(self) -> tuple[Engine, TaskExecutor]:
        if not self._settings.agents:
            text = "this server has no agents, so it runs no projects: write some in the section agents of its file"
            raise NotFound(text, code="no_agents")
        return await self._opened()

    async def _opened(self) -> tuple[Engine, TaskExecutor]:
        async with self._opening:
            if self._engine is None or self._executor is None:
                await asyncio.to_thread(_load)
                from penstock.config.projects import make_tasks, open_engine
                from penstock.tasks.flow import register_projects

                free = tuple(_bounded(agent) for agent in self._settings.agents if agent.name not in self._withheld)
                settings = self._settings.model_copy(update={"agents": free})
                executor = make_tasks(settings, self._catalog)
                try:
                    engine = open_engine(settings, executor)
                except OSError as error:
                    text = f"no projects can be kept in {self._settings.store.dir!r}: {error.strerror}"
                    raise StoreFailed(text) from error
                tasks = register_projects(engine, executor)
                engine.register_flow(SERVED, _served(tasks, traced=settings.tracing.otlp is not None))
                self._engine, self._executor = engine, executor
            return self._engine, self._executor

    async def _start(self, engine: Engine, run: str, payload: Json) -> None:
        """Run a project here, or leave it to the process that does."""
        try:
            await engine.start(run, SERVED, payload)
        except Conflict as error:
            if error.code != "in_progress":
                raise
            return
        owner = payload["owner"]  # who followed it before may not have seen yet that it had ended, and goes on again
        self._living[run] = owner, asyncio.ensure_future(self._follow(engine, run, owner))

    async def _follow(self, engine: Engine, run: str, owner: str) -> None:
        try:
            status = await engine.wait(run)
            _log.info("project %s is %s", run, status.state)
        except PenstockError as error:
            _log.error("project %s: %s", run, error)
        finally:
            following = self._living.get(run)
            if following is not None and following[1] is asyncio.current_task():
                del self._living[run]
        await self._take_next(engine, owner)

    async def _take(self, engine: Engine, run: str, status: RunStatus) -> None:
        """Go on with a project that no process runs, now or when one of its owner has ended."""
        if not self._settings.agents or self._stopping:
            return
        owner = status.part(Kept).owner
        self._waiting[run] = owner
        await self._take_next(engine, owner)

    async def _take_next(self, engine: Engine, owner: str) -> None:
        """Go on with what waits for room, as long as there is some."""
        async with self._beginning:
            while not self._stopping and self._has_room(owner):
                run = next((run for run, other in self._waiting.items() if other == owner), None)
                if run is None:
                    return
                del self._waiting[run]
                try:
                    await self._start(engine, run, (await engine.status(run, steps=False)).payload)
                except PenstockError as error:
                    _log.error("project %s is not taken up: %s", run, error)

    def _has_room(self, owner: str) -> bool:
        return sum(other == owner for other, _ in self._living.values()) < MOST_AT_ONCE

    def _demand_room(self, owner: str) -> None:
        if not self._has_room(owner):
            text = f"{MOST_AT_ONCE} projects of {owner!r} go on: wait until one has ended, or cancel one"
            raise LimitReached(text, limit="projects")

    async def _take_up(self) -> None:
        try:
            engine, _ = await self._opened()
            runs = await engine.runs(payloads=False)
        except PenstockError as error:
            _log.error("the projects of the process before are not taken up: %s", error)
            return
        for one in runs:
            if one.flow == SERVED and one.state == "interrupted":
                await self._take(engine, one.run, one)


def asking(agents: Iterable[AgentSettings]) -> frozenset[str]:
    """The names of the agents that ask a person, themselves or through an agent of theirs."""
    members = {agent.name: agent.agents for agent in agents}
    found = {agent.name for agent in agents if agent.mode == "interactive"}
    while more := {name for name, others in members.items() if found & {*others}} - found:
        found |= more
    return frozenset(found)


def _bounded(agent: AgentSettings) -> AgentSettings:
    """An agent that starts at most so many processes at once, for all projects together, where it does not say."""
    if agent.mode != "cli" or agent.concurrent is not None:
        return agent
    return agent.model_copy(update={"concurrent": MOST_PROCESSES})


def _load() -> None:
    """Import what runs projects, which takes a moment that others need not wait for."""
    for name in ("config.projects", "server.project_check", "tasks.engines.local", "tasks.orchestrator"):
        import_module(f"penstock.{name}")


def _served(tasks: Tasks, *, traced: bool) -> Any:
    """The flow of a client's project, on whose behalf its tasks work; where it is traced, below one span."""

    async def served(flow: Flow, payload: Json) -> Json:
        async def work(project: Json, run: Run, /) -> Json:
            flow.within = run
            return await tasks.flow(flow, project)

        def describe(*_: Any, content: bool) -> Attributes:  # noqa: ARG001  # texts are its tasks'
            return {"penstock.project": flow.run}

        run = trace("project", describe=describe)(work) if traced else work
        return await execute(run, payload["project"], principal=Principal(payload["by"], payload["owner"]))

    return served


async def _known(engine: Engine, run: str, *, steps: bool = True) -> RunStatus | None:
    try:
        return await engine.status(run, steps=steps)
    except UnknownName:
        return None


def _tenant(principal: Principal) -> str:
    return principal.tenant or principal.name


def _seen(status: RunStatus, principal: Principal) -> bool:
    return principal.holds("admin") or status.part(Kept).owner == _tenant(principal)


def _digest(principal: Principal, key: str) -> str:
    """A name for the project of a caller's key, which only they can name."""
    return hashlib.sha256(json.dumps([principal.tenant, principal.name, key]).encode()).hexdigest()[:32]
