"""Checks a project that a client sent: its fields, its graph, and that its agents can do it, before anything runs."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

from penstock.config.document import Path, dotted
from penstock.config.problems import keys_of, place, said
from penstock.config.section import unknown_key
from penstock.errors import AgentUnavailable, CyclicPlan, Invalid, UnknownName, UsageError
from penstock.messages import is_array, is_object
from penstock.server.wire import parse_json
from penstock.tasks.agents import AgentConfig
from penstock.tasks.check import problems_of
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.project import ProjectSpec
from penstock.tasks.task import AgentTask

SHOWN = 10
MOST_TASKS = 1000
"""So many are checked and begun in about 0.1 s, for which other requests wait at most half as long."""
MOST_NEEDS = 10_000
"""How many entries all `depends_on` of one project have together: each costs time when it is checked and when run."""
MOST_TASKS_AT_ONCE = 16
"""The most that `limits.concurrent` of one project may ask for: each task may be a process."""


def project_in(body: bytes, executor: TaskExecutor, *, withheld: Collection[str] = ()) -> ProjectSpec:
    """The project in a body, for agents of this executor; raises `Invalid` with the path of what is wrong.

    `withheld` are agents that are configured, but ask a person, whom a client cannot bring.
    """
    project = _read(body)
    if project.limits.concurrent > MOST_TASKS_AT_ONCE:
        text = f"at most {MOST_TASKS_AT_ONCE} tasks of a project run at once over the API: write that, or less"
        raise Invalid(text, param="limits.concurrent", code="invalid_project")
    if (needs := sum(len(task.depends_on) for task in project.tasks)) > MOST_NEEDS:
        text = (
            f"the tasks of a project over the API need at most {MOST_NEEDS} others in all, not {needs}: name the last"
        )
        raise Invalid(text, param="tasks", code="invalid_project")

    def choose(task: AgentTask, agent: str | None) -> AgentConfig:
        if agent in withheld:
            text = f"the agent {agent!r} asks a person, so it does no tasks over the API: name another one"
            raise AgentUnavailable(text)
        return executor.agent_for(task, agent)

    for path, error in problems_of(project, executor.agents, choose):
        raise Invalid(error.message, param=dotted(path), code=_code(path, error)) from error
    return project


def _code(path: Path, error: UsageError) -> str:
    match error, path:
        case CyclicPlan(), _:
            return "cyclic_plan"
        case AgentUnavailable(), _:
            return "agent_unavailable"
        case UnknownName(), ("tasks", _, "depends_on", _):
            return "unknown_task"
        case UnknownName(), ("limits", "providers", _):
            return "unknown_provider"
        case UnknownName(), _:
            return "unknown_agent"
        case _:
            return "invalid_project"


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
