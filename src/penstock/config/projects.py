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
    modelled,
    pace_of,
    service_of,
)
from penstock.config.document import Path as Place
from penstock.config.document import read, text_of
from penstock.config.models import DEMO
from penstock.config.problems import Source, keys_of
from penstock.config.ready import lacks_of
from penstock.config.section import Section, unknown_key
from penstock.config.settings import Settings
from penstock.errors import ConfigError, StoreFailed
from penstock.messages import is_array, is_object
from penstock.tasks.agents import AgentConfig
from penstock.tasks.check import problems_of
from penstock.tasks.project import ProjectSpec
from penstock.tasks.registry import AgentRegistry

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from penstock.config.catalog import Catalog
    from penstock.messages import ChatReply, ChatRequest
    from penstock.net import Secret
    from penstock.run import Executor, Run
    from penstock.tasks.engines.local import LocalEngine
    from penstock.tasks.executor import TaskExecutor
    from penstock.tasks.modes.interactive import Ask

    Chat = Executor[ChatRequest, ChatReply]

JOURNAL = "projects.sqlite"
MOST_SAID = 5
"""How many problems of a file are said at once."""
_LARGEST = 1 << 63


class _Agents(Section):
    agents: Annotated[tuple[AgentSettings, ...], Strict(strict=False)] = ()


def read_project(
    path: str, env: Mapping[str, str], *, settings: Settings | None = None, terminal: bool = True
) -> tuple[ProjectSpec, tuple[AgentConfig, ...]]:
    """A project file, and the agents it brings along; `settings` has further agents, and the models they may name.

    Raises `ConfigError` with file, line and key for anything that would keep a task from being started: also a key or
    a command that this machine lacks, and, without a `terminal`, a person who is to be asked.
    """
    settings = settings or Settings()
    spec, agents, source = _read(text_of(path), path, env, settings)
    everybody = _registry(agents, settings)
    own = {agent.name: place for place, agent in enumerate(agents)}
    wrong: list[ConfigError] = []
    keys = not settings.recordings.replay  # what is recorded needs none
    for at, agent, lack in lacks_of(spec, everybody, env, keys=keys, terminal=terminal):
        problem = f"the agent {agent.name!r}: {lack.problem}"
        place = ("agents", own[agent.name], lack.key) if agent.name in own else at
        wrong.append(source.wrong(problem, place))
    _refuse(wrong)
    return spec, agents


def project_of(
    text: str, file: str, env: Mapping[str, str], *, settings: Settings | None = None
) -> tuple[ProjectSpec, tuple[AgentConfig, ...]]:
    """The project that a file's text holds, whatever this machine lacks to run it; raises `ConfigError`."""
    spec, agents, _ = _read(text, file, env, settings or Settings())
    return spec, agents


def _read(
    text: str, file: str, env: Mapping[str, str], settings: Settings
) -> tuple[ProjectSpec, tuple[AgentConfig, ...], Source]:
    document = read(text, file=file, env=env, only="agents")
    source = Source(document, file)
    spec, written = _validated(document.value, source)
    written = tuple(agent.placed(Path(file).parent) for agent in written)
    agents = checked_agents(written, source, settings, env, others=[agent.config for agent in settings.agents])
    source.refuse_doubles("tasks", [task.id for task in spec.tasks], "id")
    _refuse([source.wrong(error.message, place) for place, error in problems_of(spec, _registry(agents, settings))])
    return spec, agents, source


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
    from penstock.config.sharing import asking
    from penstock.tasks.executor import TaskExecutor

    llms = partial(_llm_of, catalog=catalog, env=os.environ if env is None else env)
    return TaskExecutor(_registry(agents, settings), llms=llms, ask=ask, asking=asking)


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
    """What an agent asks, whose it is (a limit of its provider counts by that name), and the keys it hides."""

    def __init__(self, chat: Chat, provider: str, hides: tuple[Secret, ...]) -> None:
        self._chat, self.provider, self.hides = chat, provider, hides

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        return await self._chat(request, run)


def _llm_of(agent: AgentConfig, *, catalog: Catalog, env: Mapping[str, str]) -> _AgentLlm:
    """The LLM of an agent; raises `ConfigError` or `NotFound` for one that is not there any more."""
    service = service_of(agent)
    if not service:
        return _AgentLlm(catalog.find(agent.model), catalog.provider(agent.model), catalog.hides(agent.model))
    pace_s = pace_of(agent.params) if service == DEMO else 0.0
    made = catalog.made(modelled(agent), env, pace_s=pace_s)
    return _AgentLlm(made, service, made.hides)


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


def _refuse(problems: Sequence[ConfigError]) -> None:
    """Raise the first of these problems; its message goes on with the next ones, a line each."""
    if not problems:
        return
    first, *others = problems
    said = [
        *map(str, others[: MOST_SAID - 1]),
        *([f"and {len(others) + 1 - MOST_SAID} more"] * (len(others) >= MOST_SAID)),
    ]
    raise ConfigError("\n".join((first.problem, *said)), file=first.file, line=first.line, key=first.key)


def _registry(own: Iterable[AgentConfig], settings: Settings) -> AgentRegistry:
    return AgentRegistry(_joined(own, (agent.config for agent in settings.agents)).values())
