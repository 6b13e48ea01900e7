"""What is wrong with a project, each problem with its place, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import AgentUnavailable, CyclicPlan, UnknownName, UsageError
from penstock.tasks.agents import AgentConfig
from penstock.tasks.check import problems_of
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.project import ProjectLimits, ProjectSpec
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.task import AgentTask
from penstock.testing import ScriptedLlm

AGENTS = AgentRegistry(
    [
        AgentConfig(name="w", provider="demo", capabilities=("writing",)),
        AgentConfig(name="critic", provider="demo"),
        AgentConfig(name="off", provider="demo", enabled=False, capabilities=("law",)),
        AgentConfig(name="team", mode="hybrid", agents=("w", "off")),
    ]
)


def spec(*tasks: dict[str, Any], **more: Any) -> ProjectSpec:
    made = [AgentTask(**{"description": "Do it.", "agent": "w", **task}) for task in tasks]
    return ProjectSpec(name="p", tasks=tuple(made), **more)


def test_a_sound_project_has_no_problems() -> None:
    limits = {"agents": {"w": 1}, "providers": {"openai": 2, "OpenAI": 2, "anthropic_claude": 1}}
    good = spec({"id": "a", "review": "critic"}, {"id": "b", "depends_on": ("a",), "agent": None}, limits=limits)
    assert [*problems_of(good, AGENTS)] == []


@pytest.mark.parametrize("agent", ["critic", None])
def test_row_c7_a_task_that_its_own_agent_is_to_review_is_a_problem(agent: str | None) -> None:
    ((place, error),) = problems_of(
        spec({"id": "a", "agent": agent, "review": "critic"}, defaults={"agent": "critic"}), AGENTS
    )
    assert place == ("tasks", 0, "review")
    assert "'critic' cannot review its own work on the task 'a'" in error.message


def test_every_problem_is_told_with_its_place() -> None:
    found = problems_of(
        spec(
            {"id": "a", "depends_on": ("b", "x")},
            {"id": "a", "agent": "v"},
            {"id": "c", "agent": "w", "capabilities": ("writing", "law")},
            {"id": "d", "agent": None, "capabilities": ("writign",)},
            {"id": "e", "agent": None, "capabilities": ("law",), "review": "off"},
            {"id": "f", "agent": "team"},
            {"id": "g", "agent": None},
            defaults={"agent": "u", "review": "off"},
            limits={"agents": {"ww": 1}, "providers": {"opnai": 1}},
        ),
        AGENTS,
    )
    assert [(place, type(error)) for place, error in found] == [
        (("tasks", 1, "id"), UsageError),
        (("tasks", 0, "depends_on", 0), UnknownName),
        (("tasks", 0, "depends_on", 1), UnknownName),
        (("defaults", "agent"), UnknownName),
        (("defaults", "review"), AgentUnavailable),
        (("tasks", 1, "agent"), UnknownName),
        (("tasks", 2, "capabilities", 1), AgentUnavailable),
        (("tasks", 3, "capabilities", 0), AgentUnavailable),
        (("tasks", 4, "capabilities", 0), AgentUnavailable),
        (("tasks", 4, "review"), AgentUnavailable),
        (("tasks", 5, "agent"), AgentUnavailable),
        (("limits", "agents", "ww"), UnknownName),
        (("limits", "providers", "opnai"), UnknownName),
    ]


def test_a_circle_is_placed_at_the_need_that_leads_into_it() -> None:
    ring = spec(
        {"id": "z", "depends_on": ("a",)},
        {"id": "a", "depends_on": ("z0", "b")},
        {"id": "b", "depends_on": ("a",)},
        {"id": "z0"},
    )
    ((place, error),) = problems_of(ring, AGENTS)
    assert place == ("tasks", 1, "depends_on", 1)
    assert isinstance(error, CyclicPlan)
    assert error.path == ("a", "b")


def test_a_project_without_tasks_is_none() -> None:
    ((place, _),) = problems_of(spec(), AGENTS)
    assert place == ("tasks",)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"agents": {"ww": 1}}, "no agent 'ww': did you mean 'w'"),
        ({"providers": {"scripted": 1, "opnai": 1}}, "'opnai'"),
    ],
)
async def test_a_limit_of_nobody_is_refused_by_the_library_too(limits: dict[str, Any], said: str) -> None:
    executor = TaskExecutor(AgentRegistry([AgentConfig(name="w", model="m")]), llms=lambda _: ScriptedLlm("done"))
    project = ProjectOrchestrator(executor, limits=ProjectLimits.model_validate(limits))
    project.add(AgentTask(id="a", description="x"))
    with pytest.raises(UnknownName, match=said):
        await project.run()
    await project.aclose()


async def test_a_project_that_goes_on_may_limit_an_agent_that_is_gone() -> None:
    agents = AgentRegistry([AgentConfig(name="w", model="m"), AgentConfig(name="v", model="m")])
    executor = TaskExecutor(agents, llms=lambda _: ScriptedLlm("done"))
    async with LocalEngine() as engine:
        for name in ("a", "b"):
            async with ProjectOrchestrator(executor, engine=engine, limits=ProjectLimits(agents={"v": 1})) as project:
                project.add(AgentTask(id="a", description="x", agent="w"))
                if name == "b":
                    agents.unregister("v")
                    project.add(AgentTask(id="b", description="x", agent="w"))
                assert (await project.run()).ok
