"""Project files: read and checked, given to the agents that do them, and the engine that runs them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Strict, ValidationError

from penstock.config.agents import (
    AgentSettings,
    checked_agents,
    circle_of,
    modelled,
    near,
    pace_of,
    service_of,
    shown_path,
)
from penstock.config.document import Path as Place
from penstock.config.document import read, text_of
from penstock.config.models import DEMO
from penstock.config.problems import Source, keys_of
from penstock.config.section import Section, unknown_key
from penstock.config.settings import Settings
from penstock.errors import StoreFailed
from penstock.llms import LLMS
from penstock.llms.services import SERVICES
from penstock.messages import is_array, is_object
from penstock.tasks.agents import AgentConfig
from penstock.tasks.project import ProjectSpec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from penstock.config.catalog import Catalog
    from penstock.messages import ChatReply, ChatRequest
    from penstock.run import Executor, Run
    from penstock.tasks.engines.local import LocalEngine
    from penstock.tasks.executor import TaskExecutor
    from penstock.tasks.modes.interactive import Ask

    Chat = Executor[ChatRequest, ChatReply]

JOURNAL = "projects.sqlite"
_LARGEST = 1 << 63


class _Agents(Section):
    agents: Annotated[tuple[AgentSettings, ...], Strict(strict=False)] = ()


def read_project(
    path: str, env: Mapping[str, str], *, settings: Settings | None = None
) -> tuple[ProjectSpec, tuple[AgentConfig, ...]]:
    """A project file, and the agents it brings along; `settings` has further agents, and the models they may name.

    Raises `ConfigError` with file, line and key for anything that would keep a task from being started.
    """
    return project_of(text_of(path), path, env, settings=settings)


def project_of(
    text: str, file: str, env: Mapping[str, str], *, settings: Settings | None = None
) -> tuple[ProjectSpec, tuple[AgentConfig, ...]]:
    """The project that a file's text holds, as `read_project` gives it."""
    document = read(text, file=file, env=env, only="agents")
    source, settings = Source(document, file), settings or Settings()
    spec, written = _validated(document.value, source)
    written = tuple(agent.placed(Path(file).parent) for agent in written)
    usual = [agent.config for agent in settings.agents]
    agents = checked_agents(written, source, settings, env, others=usual)
    _check_tasks(spec, source)
    _Staff(spec, source, _joined(agents, usual)).check()
    return spec, agents


def project_schema() -> dict[str, Any]:
    """The JSON Schema of a project file, for editors."""
    made, agents = ProjectSpec.model_json_schema(), _Agents.model_json_schema()
    made["properties"]["agents"] = agents["properties"]["agents"]
    made["$defs"] |= agents["$defs"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def make_tasks(
    settings: Settings,
    catalog: Catalog,
    agents: Iterable[AgentConfig] = (),
    *,
    ask: Ask | None = None,
    env: Mapping[str, str] | None = None,
) -> TaskExecutor:
    """The executor of tasks, with the configured agents and those of a project file, which win.

    An agent's model is found in the catalog, with all that is configured around it; one of an agent that names its
    provider is made with the key it has, else with the usual one of `env` (by default the process's).
    """
    from penstock.tasks.executor import TaskExecutor
    from penstock.tasks.registry import AgentRegistry

    known = _joined(agents, (one.config for one in settings.agents))
    llms = partial(_llm_of, catalog=catalog, env=os.environ if env is None else env)
    return TaskExecutor(AgentRegistry(known.values()), llms=llms, ask=ask)


def open_engine(settings: Settings, executor: TaskExecutor) -> LocalEngine:
    """The engine that keeps its projects in `store.dir`; a folder that is new only this user can read.

    Raises `StoreFailed` where it cannot be made.
    """
    from penstock.store.journal import Journal
    from penstock.tasks.engines.local import LocalEngine
    from penstock.tasks.flow import register_projects

    folder = Path(settings.store.dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreFailed(f"the folder {str(folder)!r} cannot be made: {error}: set store.dir to another") from error
    engine = LocalEngine(Journal(folder / JOURNAL))
    register_projects(engine, executor)
    return engine


def _joined(own: Iterable[AgentConfig], usual: Iterable[AgentConfig]) -> dict[str, AgentConfig]:
    """The agents of a project by name, its own first: they win, also where a task names nobody."""
    known = {agent.name: agent for agent in own}
    return known | {agent.name: agent for agent in usual if agent.name not in known}


class _AgentLlm:
    """What an agent asks, and whose it is: a limit of its provider counts by that name."""

    def __init__(self, chat: Chat, provider: str) -> None:
        self._chat, self.provider = chat, provider

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        return await self._chat(request, run)


def _llm_of(agent: AgentConfig, *, catalog: Catalog, env: Mapping[str, str]) -> _AgentLlm:
    """The LLM of an agent; raises `ConfigError` or `NotFound` for one that is not there any more."""
    service = service_of(agent)
    if not service:
        return _AgentLlm(catalog.find(agent.model), catalog.provider(agent.model))
    pace_s = pace_of(agent.params) if service == DEMO else 0.0
    return _AgentLlm(catalog.made(modelled(agent), env, pace_s=pace_s), service)


def _validated(value: Any, source: Source) -> tuple[ProjectSpec, tuple[AgentSettings, ...]]:
    """The project and its agents; of several problems the first in the file is raised."""
    found: list[ErrorDetails] = []
    parts = {key: inner for key, inner in value.items() if key != "agents"} if is_object(value) else value
    for path, problem in _unstorable(parts, ()):
        raise source.wrong(problem, path)
    agents, spec = _Agents(), None
    try:
        agents = _Agents.model_validate({"agents": value["agents"]} if is_object(value) and "agents" in value else {})
    except ValidationError as error:
        found += error.errors()
    try:
        spec = ProjectSpec.model_validate_json(json.dumps(parts), strict=True)
    except ValidationError as error:
        found += error.errors()
    if spec is None or found:
        raise source.first(found, _unknown)
    return spec, agents.agents


def _unknown(path: Place) -> str:
    *around, key = path
    section = [part for part in around if isinstance(part, str)]
    if section[:1] == ["agents"]:
        return unknown_key(key, keys_of(_Agents, section))
    return unknown_key(key, [*keys_of(ProjectSpec, section), *(() if section else ("agents",))])


def _unstorable(value: Any, path: Place) -> Iterator[tuple[Place, str]]:
    """What is written, but is no JSON that can be stored."""
    if is_object(value):
        for key, inner in value.items():
            yield from _unstorable(inner, (*path, key))
    elif is_array(value):
        for place, inner in enumerate(value):
            yield from _unstorable(inner, (*path, place))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, "expected a finite number"
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        yield path, "too large a number: put it in quotes"
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            yield path, f"not text (character {error.start + 1}): write it as it is, without halves of a pair"


def _check_tasks(spec: ProjectSpec, source: Source) -> None:
    """Raise for tasks that stand twice, need what is no task, or need each other."""
    if not spec.tasks:
        raise source.wrong("a project has at least one task: write its id and description", ("tasks",))
    ids = {task.id: place for place, task in enumerate(spec.tasks)}
    source.refuse_doubles("tasks", [task.id for task in spec.tasks], "id")
    for place, task in enumerate(spec.tasks):
        for at, need in enumerate(task.depends_on):
            if need not in ids:
                problem = f"no task {need!r}: {near(need, {*ids} - {task.id})}"
                raise source.wrong(problem, ("tasks", place, "depends_on", at))
    if circle := circle_of({task.id: task.depends_on for task in spec.tasks}):
        problem = f"tasks need each other in a circle: {shown_path(circle)} (each needs the next); take one need out"
        raise source.wrong(problem, ("tasks", ids[circle[0]], "depends_on"))


class _Staff:
    """Who can do the tasks of a project."""

    def __init__(self, spec: ProjectSpec, source: Source, agents: Mapping[str, AgentConfig]) -> None:
        self._spec, self._source, self._agents = spec, source, agents

    def check(self) -> None:
        """Raise for an agent or capability that is not there, or that cannot be used, and for limits of others."""
        defaults = self._spec.defaults
        for key, name in (("agent", defaults.agent), ("review", defaults.review)):
            if name is not None:
                self._usable(name, ("defaults", key))
        for number, task in enumerate(self._spec.tasks):
            place: Place = ("tasks", number)
            if task.review is not None:
                self._usable(task.review, (*place, "review"))
            name = defaults.fill(task).agent
            if name is not None:
                agent = self._usable(name, (*place, "agent"))
                self._capable(agent, task.capabilities, (*place, "capabilities"))
            else:
                self._some_agent(task.capabilities, place)
        limits = self._spec.limits
        self._known(limits.agents, self._agents, "agent")
        self._known(limits.providers, {*SERVICES, *LLMS.names()}, "provider")

    def _known(self, limits: Mapping[str, int], known: Iterable[str], kind: str) -> None:
        names = {*known}
        for name in limits:
            if name not in names:
                raise self._source.wrong(f"no {kind} {name!r}: {near(name, names)}", ("limits", f"{kind}s", name))

    def _usable(self, name: str, place: Place) -> AgentConfig:
        agent = self._agents.get(name)
        if agent is None:
            raise self._source.wrong(f"no agent {name!r}: {near(name, self._agents)}", place)
        if not agent.enabled:
            raise self._source.wrong(f"the agent {name!r} is disabled: enable it, or name another one", place)
        for member in agent.agents:
            self._usable(member, place)
        return agent

    def _capable(self, agent: AgentConfig, wanted: Sequence[str], place: Place) -> None:
        for number, capability in enumerate(wanted):
            if capability not in agent.capabilities:
                has = ", ".join(map(repr, agent.capabilities)) or "none"
                problem = f"the agent {agent.name!r} lacks the capability {capability!r}: it has {has}"
                raise self._source.wrong(problem, (*place, number))

    def _some_agent(self, wanted: Sequence[str], place: Place) -> None:
        enabled = [agent for agent in self._agents.values() if agent.enabled]
        chosen = next((agent for agent in enabled if {*wanted} <= {*agent.capabilities}), None)
        if chosen is not None:
            self._usable(chosen.name, place)
            return
        if not enabled:
            raise self._source.wrong("no agent can do it: write agents, such as {name: writer, provider: demo}", place)
        known = {name for agent in enabled for name in agent.capabilities}
        for number, capability in enumerate(wanted):
            if capability not in known:
                problem = f"no enabled agent has the capability {capability!r}: {near(capability, known)}"
                raise self._source.wrong(problem, (*place, "capabilities", number))
        problem = f"no enabled agent has all of {', '.join(map(repr, wanted))}: name fewer, or an agent"
        raise self._source.wrong(problem, (*place, "capabilities"))
