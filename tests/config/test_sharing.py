"""Tasks of one agent that are ready together share a call, where the agent allows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.config.sharing import asking
from penstock.errors import LimitReached, Unavailable
from penstock.messages import ChatRequest
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Retry
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.task import AgentTask
from penstock.testing import ScriptedLlm


def items_in(request: ChatRequest) -> list[str]:
    """The tasks that a request asks for; one that shares no call has none."""
    text: Any = request.messages[-1]["content"]
    return [json.loads(line)["agent_id"] for line in text.splitlines() if line.startswith('{"agent_id"')]


def answer(request: ChatRequest) -> str:
    asked = items_in(request)
    plans = [{"agent_id": item, "value": {"text": f"done {item}"}} for item in asked]
    return json.dumps({"plans": plans}) if asked else "done alone"


def executor(llm: ScriptedLlm, **fields: Any) -> TaskExecutor:
    agent = AgentConfig(name="writer", provider="scripted", instructions="Be brief.", **fields)
    other = AgentConfig(name="other", provider="scripted")
    return TaskExecutor(AgentRegistry([agent, other]), llms=lambda _: llm, asking=asking)


def story() -> list[AgentTask]:
    """One task, then five that are ready together, then one that needs them all."""
    wide = [AgentTask(id=f"w{number}", description="Write.", depends_on=("first",)) for number in range(5)]
    first = AgentTask(id="first", description="Begin.", agent="writer")
    last = AgentTask(id="last", description="End.", depends_on=tuple(task.id for task in wide))
    return [task.model_copy(update={"agent": "writer"}) for task in (first, *wide, last)]


async def test_row_d8_ready_tasks_of_an_agent_that_allows_it_share_a_call() -> None:
    llm = ScriptedLlm(answer)
    async with ProjectOrchestrator(executor(llm, batch=10)) as project:
        project.add(*story())
        report = await project.run()
    assert [sorted(items_in(request)) for request in llm.requests] == [
        ["first"],
        [f"w{number}" for number in range(5)],
        ["last"],
    ]
    assert {result.task: result.output for result in report.results} == {task.id: f"done {task.id}" for task in story()}
    assert "Be brief." in str(llm.requests[1].messages[0])
    assert sum(result.usage.total for result in report.results) == report.usage.total > 0


async def test_row_d8_a_call_holds_at_most_as_many_as_the_agent_says() -> None:
    llm = ScriptedLlm(answer)
    async with ProjectOrchestrator(executor(llm, batch=2)) as project:
        project.add(*story())
        await project.run()
    assert sorted(len(items_in(request)) for request in llm.requests) == [1, 1, 1, 2, 2]


async def test_row_d8_an_agent_that_does_not_allow_it_is_asked_once_for_each_task() -> None:
    llm = ScriptedLlm(answer)
    async with ProjectOrchestrator(executor(llm)) as project:
        project.add(*story())
        report = await project.run()
    assert len(llm.requests) == 7
    assert {result.output for result in report.results} == {"done alone"}


async def test_a_task_that_the_call_leaves_out_is_asked_for_again_and_fails_alone() -> None:
    def forgetful(request: ChatRequest) -> str:
        plans = [{"agent_id": item, "value": {"text": "done"}} for item in items_in(request) if item != "w3"]
        return json.dumps({"plans": plans})

    llm = ScriptedLlm(forgetful)
    async with ProjectOrchestrator(executor(llm, batch=10)) as project:
        project.add(*story())
        report = await project.run()
    assert {result.task: result.status.value for result in report.results if not result.ok} == {
        "w3": "failed",
        "last": "blocked",
    }
    assert report["w3"].error is not None
    assert "missing" in report["w3"].error.message
    assert items_in(llm.requests[-1]) == ["w3"]


@pytest.mark.parametrize(
    ("error", "calls"),
    [(Unavailable("gone"), 4), (LimitReached("no money", limit="budget"), 1)],
)
async def test_a_call_that_fails_ends_its_task_as_it_would_alone(error: Exception, calls: int) -> None:
    llm = ScriptedLlm(error)
    async with ProjectOrchestrator(executor(llm, batch=10, retry=Retry(attempts=2, base_s=0.01))) as project:
        project.add(AgentTask(id="a", description="Do it.", agent="writer"))
        report = await project.run()
    assert report["a"].error is not None
    assert report["a"].error.type == type(error).__name__
    assert len(llm.requests) == calls


async def test_what_a_review_sends_back_is_asked_for_alone() -> None:
    verdicts = iter(["Not yet.", "Yes."])

    def reviewer(request: ChatRequest) -> str:
        text = str(request.messages[-1]["content"])
        if "response_format" in request.params and not items_in(request):
            unmet = [{"criterion": "It is good.", "reason": "It is not."}] if next(verdicts) == "Not yet." else []
            return json.dumps({"unmet": unmet})
        return answer(request) if items_in(request) else f"better: {len(text) > 0}"

    llm = ScriptedLlm(reviewer)
    async with ProjectOrchestrator(executor(llm, batch=10)) as project:
        project.add(
            AgentTask(id="a", description="Do it.", agent="writer", review="other", success_criteria=("It is good.",))
        )
        report = await project.run()
    assert report["a"].output == "better: True"
