"""Checks a project that a client sent: its fields, its graph, and that its agents can do it, before anything runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator

from pydantic import ValidationError

from penstock.config.document import Path, dotted
from penstock.config.problems import keys_of, place, said
from penstock.config.section import unknown_key
from penstock.errors import AgentUnavailable, CyclicPlan, Invalid, UnknownName
from penstock.messages import is_array, is_object
from penstock.server.wire import parse_json
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.graph import graph_of
from penstock.tasks.project import ProjectSpec
from penstock.tasks.task import AgentTask

SHOWN = 10
MOST_TASKS = 1000
"""So many are checked and begun in about 0.1 s, for which other requests wait at most half as long."""


def project_in(body: bytes, executor: TaskExecutor, *, withheld: Collection[str] = ()) -> ProjectSpec:
    """The project in a body, for agents of this executor; raises `Invalid` with the path of what is wrong.

    `withheld` are agents that are configured, but ask a person, whom a client cannot bring.
    """
    project = _read(body)
    _check_graph(project)
    for path, agent, task in _asked(project):
        if agent in withheld:
            text = f"the agent {agent!r} asks a person, so it does no tasks over the API: name another one"
            raise Invalid(text, param=dotted(path), code="agent_unavailable")
        try:
            executor.agent_for(task, agent)
        except UnknownName as error:
            raise Invalid(str(error), param=dotted(path), code="unknown_agent") from error
        except AgentUnavailable as error:
            raise Invalid(str(error), param=dotted(path), code="agent_unavailable") from error
    return project


def _read(body: bytes) -> ProjectSpec:
    written = parse_json(body)
    if is_object(written) and "agents" in written:
        text = "a project over the API defines no agents: it names those of the server's configuration in its tasks"
        raise Invalid(text, param="agents", code="unsupported_value")
    if is_object(written) and is_array(tasks := written.get("tasks")) and len(tasks) > MOST_TASKS:
        text = f"a project over the API has at most {MOST_TASKS} tasks, not {len(tasks)}: begin several projects"
        raise Invalid(text, param="tasks", code="invalid_project")
    try:
        return ProjectSpec.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
    problems: dict[Path, str] = {}
    for one in found:
        path, value = place(one, written)
        problems.setdefault(path, said(one, path, value, unknown=_unknown))
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    lines = [f"{dotted(path)}: {text}" if path else text for path, text in [*problems.items()][:SHOWN]]
    raise Invalid("; ".join(lines) + more, param=dotted(next(iter(problems))) or None, code="invalid_project")


def _unknown(path: Path) -> str:
    section = [part for part in path[:-1] if isinstance(part, str)]
    return unknown_key(path[-1], keys_of(ProjectSpec, section))


def _check_graph(project: ProjectSpec) -> None:
    if not project.tasks:
        raise Invalid("a project has at least one task", param="tasks", code="invalid_project")
    places: dict[str, int] = {}
    for number, task in enumerate(project.tasks):
        if task.id in places:
            text = f"there are two tasks {task.id!r}: choose another name for one"
            raise Invalid(text, param=f"tasks[{number}].id", code="invalid_project")
        places[task.id] = number
    for number, task in enumerate(project.tasks):
        for at, need in enumerate(task.depends_on):
            if need not in places:
                text = f"task {task.id!r} needs {need!r}, which is no task: add it, or correct the name"
                raise Invalid(text, param=f"tasks[{number}].depends_on[{at}]", code="unknown_task")
    try:
        project.graph()
    except CyclicPlan as error:
        raise Invalid(str(error), param=_closing(project), code="cyclic_plan") from error


def _closing(project: ProjectSpec) -> str:
    """The need that closes the first circle."""
    needs = [
        (task.id, need, f"tasks[{number}].depends_on[{at}]")
        for number, task in enumerate(project.tasks)
        for at, need in enumerate(task.depends_on)
    ]

    def closed(count: int) -> int:
        found: dict[str, list[str]] = {task.id: [] for task in project.tasks}
        for task, need, _ in needs[:count]:
            found[task].append(need)
        try:
            graph_of(found)
        except CyclicPlan:
            return 1
        return 0

    return needs[bisect_left(range(len(needs)), 1, key=closed) - 1][2]


def _asked(project: ProjectSpec) -> Iterator[tuple[Path, str | None, AgentTask]]:
    """Who is asked to do what, and where that is written; who reviews a task need not be able to do it."""
    for number, task in enumerate(project.tasks):
        filled = project.defaults.fill(task)
        path: Path = ("tasks", number, "capabilities" if task.capabilities else "agent")
        if filled.agent is not None:
            path = ("tasks", number, "agent") if task.agent is not None else ("defaults", "agent")
        yield path, filled.agent, filled.model_copy(update={"review": None})
        if filled.review is not None:
            path = ("tasks", number, "review") if task.review is not None else ("defaults", "review")
            yield path, filled.review, filled.model_copy(update={"review": None, "capabilities": ()})
