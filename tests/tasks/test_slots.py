"""Limits of agents and providers hold for whoever is called: for reviewers and the parts of hybrids, too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.messages import ChatReply, ChatRequest
from penstock.run import Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.project import ProjectLimits
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.report import Report
from penstock.tasks.task import AgentTask
from penstock.testing import ScriptedLlm

RACE = AgentConfig(name="race", mode="hybrid", strategy="race", agents=("a", "b"))
ROW = AgentConfig(name="row", mode="hybrid", agents=("race", "a"))


class Counting(ScriptedLlm):
    """Accepts all work, and notes how many calls of it go on at once, and of all of its kind."""

    def __init__(self, total: list[int], seconds: float = 0.002) -> None:
        super().__init__('{"unmet": []}')
        self.total, self.seconds = total, seconds
        self.running = self.most = 0

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Answer after a while."""
        self.running += 1
        self.total[0] += 1
        self.most, self.total[1] = max(self.most, self.running), max(self.total)
        try:
            await asyncio.sleep(self.seconds)
            return await super().__call__(request, run)
        finally:
            self.running -= 1
            self.total[0] -= 1


class Staff:
    """The agents a, b and c of the provider demo, and hybrids, with what they do at once."""

    def __init__(self, seconds: float = 0.002, **concurrent: int) -> None:
        self.total = [0, 0]
        self.llms = {name: Counting(self.total, seconds) for name in "abc"}
        agents = [AgentConfig(name=name, provider="demo", concurrent=concurrent.get(name)) for name in "abc"]
        hybrids = [each.model_copy(update={"concurrent": concurrent.get(each.name)}) for each in (RACE, ROW)]
        self.executor = TaskExecutor(AgentRegistry([*agents, *hybrids]), llms=lambda agent: self.llms[agent.name])

    async def ran(self, *tasks: AgentTask, **limits: Any) -> Report:
        """Run tasks as a project."""
        async with ProjectOrchestrator(self.executor, limits=ProjectLimits(**limits)) as project:
            project.add(*tasks)
            return await asyncio.wait_for(project.run(), 10)


def tasks(count: int = 6, **fields: Any) -> list[AgentTask]:
    return [AgentTask(id=f"t{n}", description="Do it.", **fields) for n in range(count)]


@pytest.mark.parametrize(
    ("limits", "concurrent"), [({}, {"c": 1}), ({"agents": {"c": 1}}, {}), ({"agents": {"c": 2}}, {"c": 1})]
)
async def test_row_c7_a_reviewer_does_no_more_at_once_than_it_may(
    limits: dict[str, Any], concurrent: dict[str, int]
) -> None:
    staff = Staff(**concurrent)
    assert (await staff.ran(*tasks(agent="a", review="c"), **limits)).ok
    assert (staff.llms["a"].most, staff.llms["c"].most) == (6, 1)


@pytest.mark.parametrize("agent", ["race", "row"])
@pytest.mark.parametrize("provider", ["demo", "Demo"])
async def test_row_c7_the_parts_of_a_hybrid_count_for_their_provider(agent: str, provider: str) -> None:
    staff = Staff()
    assert (await staff.ran(*tasks(agent=agent, review="c"), providers={provider: 2})).ok
    assert staff.total == [0, 2]


@pytest.mark.parametrize(("limits", "concurrent"), [({"agents": {"race": 1, "b": 1}}, {}), ({}, {"race": 1, "b": 1})])
async def test_row_c7_hybrids_and_their_parts_do_no_more_at_once_than_they_may(
    limits: dict[str, Any], concurrent: dict[str, int]
) -> None:
    staff = Staff(**concurrent)
    assert (await staff.ran(*tasks(agent="row"), **limits)).ok
    assert (staff.llms["a"].most, staff.llms["b"].most) == (1, 1)


async def test_row_c7_agents_that_all_need_each_other_never_wait_in_a_circle() -> None:
    staff = Staff(a=1, b=1, c=1, race=1, row=2)
    agents = ("a", "b", "c", "race", "row")
    pairs = [(one, other) for one in agents for other in agents if one != other]
    mixed = [
        AgentTask(id=f"{one}-{other}", description="Do it.", agent=one, review=other, timeout_s=5)
        for one, other in pairs
    ]
    report = await staff.ran(*mixed, concurrent=20, agents=dict.fromkeys(agents, 1), providers={"demo": 2})
    assert report.ok, report.markdown()
    assert staff.total == [0, 2]


async def test_row_c7_two_projects_share_an_agents_own_limit_and_have_their_own() -> None:
    staff = Staff(a=3)
    one, two = await asyncio.gather(*(staff.ran(*tasks(agent="a"), agents={"a": 2}) for _ in range(2)))
    assert one.ok
    assert two.ok
    assert staff.llms["a"].most == 3


@pytest.mark.parametrize("task", [{"agent": "a", "review": "c"}, {"agent": "row"}])
async def test_row_c7_the_time_of_a_task_stands_still_while_it_waits_for_another_agent(task: dict[str, Any]) -> None:
    staff = Staff(0.03, a=1, b=1, c=1)
    report = await staff.ran(*tasks(**task, timeout_s=0.14))
    assert report.ok, report.markdown()


async def test_row_c7_the_time_of_a_task_goes_on_while_one_of_its_agents_works() -> None:
    staff = Staff(0.01, b=1)
    staff.llms["a"].seconds = staff.llms["b"].seconds = 30
    begun = asyncio.create_task(staff.executor.execute(tasks(1)[0], "b"))
    late = await asyncio.wait_for(staff.executor.execute(tasks(1, timeout_s=0.05)[0], "race"), 5)
    begun.cancel()
    assert late.error is not None
    assert late.error.code == "timeout"


async def test_row_c7_what_must_wait_for_its_agent_has_not_begun() -> None:
    staff = Staff(0.05)
    async with ProjectOrchestrator(staff.executor, limits=ProjectLimits(providers={"Demo": 1})) as project:
        project.add(*tasks(3, agent="a"))
        running = asyncio.create_task(project.run())
        while not staff.total[0]:
            await asyncio.sleep(0.001)
        assert project.report().counts == {"in_progress": 1, "pending": 2}
        assert (await running).ok
