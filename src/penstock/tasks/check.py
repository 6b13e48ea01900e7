"""Checks a project before anything runs: its graph, who does and reviews its tasks, and whom its limits name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

from penstock.errors import AgentUnavailable, CyclicPlan, UnknownName, UsageError
from penstock.tasks.agents import AgentConfig
from penstock.tasks.graph import near
from penstock.tasks.project import ProjectLimits, ProjectSpec
from penstock.tasks.registry import AgentRegistry, lacks, provider_of
from penstock.tasks.task import AgentTask

Place: TypeAlias = tuple[str | int, ...]
"""Keys and numbers that lead from a project to what is written there."""
Problem: TypeAlias = tuple[Place, UsageError]
Chooser: TypeAlias = Callable[[AgentTask, str | None], AgentConfig]
"""Who does a task, or the agent of a name for it; raises `UnknownName`, `AgentUnavailable`."""


def problems_of(spec: ProjectSpec, agents: AgentRegistry, choose: Chooser | None = None) -> Iterator[Problem]:
    """All that would keep a project from being done, each with its place; what is wrong with its graph comes first.

    `choose` is how an executor gives out tasks, where it knows more of its agents than the registry.
    """
    yield from _graph_problems(spec)
    yield from _staff_problems(spec, agents, choose or chooser(agents))
    yield from _own_reviews(spec)
    yield from limit_problems(spec.limits, agents)


def limit_problems(limits: ProjectLimits, agents: AgentRegistry, providers: Iterable[str] = ()) -> Iterator[Problem]:
    """Limits of agents that are not registered, and of providers that neither Penstock has nor `providers` name."""
    known = {agent.name for agent in agents}
    yield from _unknown("agent", {name: name for name in limits.agents}, known)
    if limits.providers:
        from penstock.llms import LLMS
        from penstock.llms.services import SERVICES

        kinds = {name: provider_of(name) for name in limits.providers}
        yield from _unknown("provider", kinds, {*SERVICES, *LLMS.names(), *providers})


def chooser(agents: AgentRegistry) -> Chooser:
    """Who does a task, as far as a registry knows."""

    def choose(task: AgentTask, agent: str | None = None) -> AgentConfig:
        chosen, _ = staff_of(agents, task, agent)
        return chosen

    return choose


def staff_of(
    agents: AgentRegistry, task: AgentTask, agent: AgentConfig | str | None = None
) -> tuple[AgentConfig, list[AgentConfig]]:
    """Who does a task (the agent that is given, the task's own, or the first that can), and all who take part in it.

    Raises `UnknownName`, `AgentUnavailable` for one that is disabled or lacks a capability, and `UsageError` for
    agents that consist of each other.
    """
    chosen = agent or task.agent
    if chosen is None:
        chosen = agents.recommend(task.capabilities)
    elif isinstance(chosen, str):
        chosen = agents.get(chosen)
    if missing := lacks(chosen, task.capabilities):
        what = ", ".join(map(repr, missing))
        has = ", ".join(map(repr, chosen.capabilities)) or "none"
        text = f"the agent {chosen.name!r} lacks {what}, which the task {task.id!r} asks for: it has {has}"
        raise AgentUnavailable(text)
    leaders = (chosen, agents.get(task.review)) if task.review else (chosen,)
    everyone = [member for leader in leaders for member in with_members(agents, leader)]
    for member in everyone:
        if not member.enabled:
            raise AgentUnavailable(f"the agent {member.name!r} is disabled: enable it, or choose another one")
    return chosen, everyone


def with_members(agents: AgentRegistry, agent: AgentConfig, path: tuple[str, ...] = ()) -> Iterator[AgentConfig]:
    """An agent and all that it consists of; raises `UsageError` where it is a part of itself."""
    path = (*path, agent.name)
    if agent.name in path[:-1]:
        raise UsageError(f"the agents {' > '.join(path)} consist of each other: take one of them out")
    yield agent
    for name in agent.agents:
        yield from with_members(agents, agents.get(name), path)


def _graph_problems(spec: ProjectSpec) -> Iterator[Problem]:
    if not spec.tasks:
        yield ("tasks",), UsageError("a project has at least one task: write its id and description")
    places: dict[str, int] = {}
    sound = True
    for number, task in enumerate(spec.tasks):
        if task.id in places:
            sound = False
            text = f"there are two tasks {task.id!r}: choose another name for one"
            yield ("tasks", number, "id"), UsageError(text)
        places.setdefault(task.id, number)
    for number, task in enumerate(spec.tasks):
        for at, need in enumerate(task.depends_on):
            if need not in places:
                sound = False
                text = f"task {task.id!r} needs {need!r}, which is no task: {near(need, {*places} - {task.id})}"
                yield ("tasks", number, "depends_on", at), UnknownName(text)
    if sound:
        try:
            spec.graph()
        except CyclicPlan as error:
            first, need, *_ = (*error.path, error.path[0])
            number = places[first]
            yield ("tasks", number, "depends_on", spec.tasks[number].depends_on.index(need)), error


def _staff_problems(spec: ProjectSpec, agents: AgentRegistry, choose: Chooser) -> Iterator[Problem]:
    for place, agent, task in _asked(spec):
        try:
            choose(task, agent)
        except (UnknownName, AgentUnavailable) as error:
            yield _exact(place, agents, agent, task), error


def _asked(spec: ProjectSpec) -> Iterator[tuple[Place, str | None, AgentTask]]:
    """Who is asked to do what, and where that is written; who reviews a task need not be able to do it."""
    anything = AgentTask(id="any", description="Anything.")
    usual = spec.defaults
    yield from ((("defaults", "agent"), name, anything) for name in (usual.agent,) if name)
    yield from ((("defaults", "review"), name, anything) for name in (usual.review,) if name)
    for number, task in enumerate(spec.tasks):
        alone = task.model_copy(update={"review": None})
        if task.agent is not None or usual.agent is None or task.capabilities:
            yield ("tasks", number), task.agent, alone
        if task.review is not None:
            yield ("tasks", number, "review"), task.review, anything


def _own_reviews(spec: ProjectSpec) -> Iterator[Problem]:
    for number, task in enumerate(spec.tasks):
        if task.review is not None and task.review == spec.defaults.fill(task).agent:
            text = f"{task.review!r} cannot review its own work on the task {task.id!r}: name another agent"
            yield ("tasks", number, "review"), UsageError(text)


def _exact(place: Place, agents: AgentRegistry, agent: str | None, task: AgentTask) -> Place:
    """What exactly asks for somebody who is not there: an agent's name, or the first capability that is lacking."""
    if place[0] == "defaults" or place[-1] == "review":
        return place
    if agent is not None:
        missing = lacks(agents.get(agent), task.capabilities) if agent in agents else ()
        return (*place, "capabilities", task.capabilities.index(missing[0])) if missing else (*place, "agent")
    able = [one for one in agents if one.enabled]
    if not able or all(not lacks(one, task.capabilities) for one in able):
        return place
    known = {name for one in able for name in one.capabilities}
    number = next((number for number, name in enumerate(task.capabilities) if name not in known), None)
    return (*place, "capabilities") if number is None else (*place, "capabilities", number)


def _unknown(kind: str, limits: Mapping[str, str], known: Collection[str]) -> Iterator[Problem]:
    for name, meant in limits.items():
        if meant not in known:
            yield ("limits", f"{kind}s", name), UnknownName(f"no {kind} {name!r}: {near(name, known)}")
