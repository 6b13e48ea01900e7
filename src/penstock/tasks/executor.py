"""`TaskExecutor`: gives a task to an agent, within its bounds, and says how it ended.

    agents = AgentRegistry([AgentConfig(name="writer", provider="demo", capabilities=("writing",))])
    executor = TaskExecutor(agents)
    task = AgentTask(id="greet", description="Say hello to Ada.", capabilities=("writing",), timeout_s=60)

    result = await executor.execute(task)                        # an ExecutionResult, also of a failure
    async with execute_stream(executor, TaskRequest(task)) as execution:
        async for event in execution: ...                        # what the agent tells, at the path "writer"

It is an executor from `TaskRequest` to `ExecutionResult`, so it goes into any policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.errors import TaskFailed, UsageError
from penstock.policies import Policy, wrap
from penstock.run import Executor, Run, execute
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds
from penstock.tasks.check import staff_of, with_members
from penstock.tasks.modes import Answer, Work
from penstock.tasks.modes.api import Asking, Chat, Llms, api, llm_of
from penstock.tasks.registry import AgentRegistry, provider_of
from penstock.tasks.results import ExecutionResult, Review
from penstock.tasks.slots import Slots, Turns
from penstock.tasks.tally import Tally
from penstock.tasks.task import AgentTask
from penstock.tasks.team import Team

if TYPE_CHECKING:
    from penstock.tasks.modes.interactive import Ask

EFFECTS = {"api": False, "interactive": True, "cli": True}
"""Whether agents of a mode change something outside, where they do not say it; a hybrid does what its agents do."""


def _nothing(*_: object) -> None:
    pass


class TaskRequest(msgspec.Struct, frozen=True):
    """A task to be done, by an agent or its name where one is given, with the outputs of the tasks it depends on.

    `bounds` hold where neither the task nor its agent says anything. `slots` are those of a project, which its agents
    take beside their own.
    """

    task: AgentTask
    agent: AgentConfig | str | None = None
    results: Mapping[str, Any] = {}
    bounds: Bounds = Bounds()
    slots: Slots | None = None


class _Taken(TaskRequest, frozen=True):
    """A request that was taken: `begun` is called when the first agent has its turn, `judged` of each review."""

    begun: Callable[[], None] = _nothing
    judged: Callable[[Review], None] = _nothing


class TaskExecutor:
    """Does tasks with the agents of a registry; `llms` makes the LLM of an agent, `ask` puts a question to a person.

    `asking(agent, llm)` is how an LLM is asked, by default once for each task.

    Called as an executor it raises what stopped the task: a `TaskFailed`, whose details are the result as JSON, or an
    `LlmError`, `LimitReached` (the budget), `UnknownName`, `AgentUnavailable`. Its `policies` stand around each task,
    and around its wait for an agent that is busy.
    """

    def __init__(
        self,
        agents: AgentRegistry,
        *,
        llms: Llms | None = None,
        ask: Ask | None = None,
        asking: Asking = api,
        policies: Iterable[Policy] = (),
    ) -> None:
        self.agents = agents
        self._make, self._asking, self._ask = llms or llm_of, asking, ask
        self._made: dict[str, tuple[AgentConfig, Chat, Executor[Work, Answer]]] = {}
        self._slots = Slots()
        self._wrapped = wrap(self._bounded, policies)

    async def __call__(self, request: TaskRequest, run: Run, /) -> ExecutionResult:
        """Do a task; each agent tells what it does at the path of its name."""
        result, error = await self._ended(request, run)
        try:
            if isinstance(error, TaskFailed):
                raise result.failure() from error
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame, which must not hold it
        return result

    async def execute(  # what is done, by whom, with what
        self,
        task: AgentTask,
        agent: AgentConfig | str | None = None,
        *,
        results: Mapping[str, Any] | None = None,
        bounds: Bounds | None = None,
        run: Run | None = None,
    ) -> ExecutionResult:
        """How a task ended: whatever stopped it is the result's `error`. Without a run it is one of its own."""
        request = TaskRequest(task, agent, results or {}, bounds or Bounds())
        return await (execute(self.result, request) if run is None else self.result(request, run))

    def agent_for(self, task: AgentTask, agent: AgentConfig | str | None = None) -> AgentConfig:
        """Who does a task: the agent that is given, else the task's own, else the first that has its capabilities.

        Whatever can be known to be wrong is raised here, before anything runs: `UnknownName` for an agent or a provider
        that is not there, `AgentUnavailable` for one that is disabled or lacks a capability, `UsageError` for agents
        that consist of each other or a task that its own agent is to review, `MissingExtra`. The task's reviewer is
        checked as well.
        """
        chosen, everyone = staff_of(self.agents, task, agent)
        for member in everyone:
            if member.mode == "api":
                self._llm(member)
        if task.review == chosen.name:
            raise UsageError(f"{chosen.name!r} cannot review its own work on the task {task.id!r}: name another agent")
        return chosen

    def effects(self, agent: AgentConfig) -> bool:
        """Whether what an agent does changes something outside; raises `UnknownName` for a part of a hybrid."""
        if agent.effects is not None:
            return agent.effects
        if agent.mode != "hybrid":
            return EFFECTS[agent.mode]
        _, *members = with_members(self.agents, agent)
        return any(self.effects(member) for member in members)

    def provider(self, agent: AgentConfig) -> str:
        """The provider of an agent's model; empty where it has no model, or nobody knows."""
        if agent.mode != "api":
            return ""
        return provider_of(agent.provider) if agent.provider else str(getattr(self._llm(agent), "provider", ""))

    async def result(self, request: TaskRequest, run: Run, /) -> ExecutionResult:
        """How a task ended: as `execute`, from a request."""
        result, _ = await self._ended(request, run)
        return result

    async def _ended(self, request: TaskRequest, run: Run) -> tuple[ExecutionResult, Exception | None]:
        """The result of a task, and the error it failed with."""
        tally = Tally(request.task.id, self.agents, lambda: [llm for _, llm, _ in self._made.values()])
        try:
            tally.agent = agent = self.agent_for(request.task, request.agent)
            tally.begin()
            begun = _once(tally.begin)
            taken = _Taken(request.task, agent, request.results, request.bounds, request.slots, begun, tally.judge)
            answer = await self._wrapped(taken, run.listening(tally.note))
        except Exception as error:  # a task's failure is a value: it is stored, and others go on
            return tally.failed(error), error
        return tally.succeeded(answer), None

    async def _bounded(self, request: TaskRequest, run: Run, /) -> Answer:
        task, agent = request.task, self.agent_for(request.task, request.agent)
        bounds = task.over(agent).over(request.bounds)
        taken = request if isinstance(request, _Taken) else _Taken(task)
        turns = Turns(partial(self._slots_of, request.slots), begun=taken.begun)
        team = Team(self.agents, bounds, f"the task {task.id!r}", api=self._api, ask=self._ask, turns=turns)
        work = Work(task, agent, request.results, judged=taken.judged, timeout_s=bounds.timeout_s)
        return await team(work, run)

    def _slots_of(self, project: Slots | None, agent: AgentConfig) -> list[asyncio.Semaphore]:
        """What an agent takes for a call: the slots of its project first, as others use its own, too."""
        return [*(project.of(agent, self.provider) if project else ()), *self._slots.of(agent, self.provider)]

    def _llm(self, agent: AgentConfig) -> Chat:
        """The LLM of an agent."""
        return self._known(agent)[1]

    def _api(self, agent: AgentConfig) -> Executor[Work, Answer]:
        """How an agent's LLM is asked."""
        return self._known(agent)[2]

    def _known(self, agent: AgentConfig) -> tuple[AgentConfig, Chat, Executor[Work, Answer]]:
        """An agent with its LLM, made once, and again when the agent was changed."""
        made = self._made.get(agent.name)
        if made is None or made[0] != agent:
            llm = self._make(agent)
            made = self._made[agent.name] = agent, llm, self._asking(agent, llm)
        return made


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """A function that does its work the first time only."""
    left = [call]
    return lambda: left.pop()() if left else None
