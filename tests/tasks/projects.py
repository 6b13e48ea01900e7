"""Agents whose model does what a test says, and projects for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from penstock.errors import BadRequest
from penstock.events import Used
from penstock.messages import ChatReply, ChatRequest, Choice, Usage, text_of
from penstock.run import Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.project import ProjectSpec
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.task import AgentTask

USED = Usage(10, 5, 15)


def named(request: ChatRequest) -> str:
    """The name of the task that a model is asked to do."""
    text = "\n".join(map(text_of, request.messages))
    found = re.search(r"do <([^>]+)>", text)
    assert found is not None, text
    return found[1]


class Model:
    """An LLM that answers with the name of the task in capitals; it waits at the gate of a task, or fails it."""

    def __init__(self, *gates: str, failing: Iterable[str] = (), cost: str | None = "0.25") -> None:
        self.gates = {gate: asyncio.Event() for gate in gates}
        self.failing = {*failing}
        self.cost = None if cost is None else Decimal(cost)
        self.begun: list[str] = []
        self.asked: dict[str, str] = {}
        self.stopped: list[str] = []
        self.running = self.most = 0

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Do one task."""
        task = named(request)
        self.begun.append(task)
        self.asked[task] = "\n".join(map(text_of, request.messages))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (self.gates[task].wait() if task in self.gates else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.stopped.append(task)
            raise
        finally:
            self.running -= 1
        await run.emit(Used(usage=USED, model="m", provider="p", cost=self.cost))
        if task in self.failing:
            raise BadRequest(f"{task} cannot be done")
        return ChatReply(choices=(Choice(content=task.upper(), finish_reason="stop"),), usage=USED)

    async def until(self, *tasks: str) -> None:
        """Wait until all of these have begun."""
        async with asyncio.timeout(5):
            while not {*tasks} <= {*self.begun}:
                await asyncio.sleep(0.001)


def agent(name: str, **fields: Any) -> AgentConfig:
    return AgentConfig(name=name, **{"provider": "demo", "capabilities": ("any",), **fields})


def executor(model: Any, *agents: AgentConfig) -> TaskExecutor:
    """Agents that share a model; without any, one that is named "writer"."""
    return TaskExecutor(AgentRegistry(agents or [agent("writer")]), llms=lambda _: model)


def task(name: str, *needs: str, **fields: Any) -> AgentTask:
    """A task by name, for the writer."""
    return AgentTask(id=name, description=f"do <{name}>", depends_on=needs, **{"agent": "writer", **fields})


def project(*tasks: AgentTask, **fields: Any) -> ProjectSpec:
    return ProjectSpec(name="site", tasks=tasks, **fields)


def states(steps: Any) -> dict[str, str]:
    """The states of steps, or of the results of a report."""
    if isinstance(steps, dict):
        return {name: step.state for name, step in steps.items()}
    return {result.task: str(result.status) for result in steps.results}


def names(tasks: Iterable[AgentTask]) -> list[str]:
    return [one.id for one in tasks]


async def quiet() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)
