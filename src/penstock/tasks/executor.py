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

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from penstock.errors import AgentUnavailable, TaskFailed, UsageError
from penstock.policies import Policy, wrap
from penstock.run import Run, execute
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds
from penstock.tasks.modes import Answer, Work
from penstock.tasks.modes.api import Chat, Llms, llm_of
from penstock.tasks.places import Places
from penstock.tasks.registry import AgentRegistry, lacks, provider_of
from penstock.tasks.results import ExecutionResult
from penstock.tasks.tally import Tally
from penstock.tasks.task import AgentTask
from penstock.tasks.team import Team

if TYPE_CHECKING:
    from penstock.tasks.modes.interactive import Ask

EFFECTS = {"api": False, "interactive": True, "cli": True}
"""Whether agents of a mode change something outside, where they do not say it; a hybrid does what its agents do."""


class TaskRequest(msgspec.Struct, frozen=True):
    """A task to be done, by an agent or its name where one is given, with the outputs of the tasks it depends on.

    `bounds` hold where neither the task nor its agent says anything.
    """

    task: AgentTask
    agent: AgentConfig | str | None = None
    results: Mapping[str, Any] = {}
    bounds: Bounds = Bounds()


class TaskExecutor:
    """Does tasks with the agents of a registry; `llms` makes the LLM of an agent, `ask` puts a question to a person.

    Called as an executor it raises what stopped the task: a `TaskFailed`, whose details are the result as JSON, or an
    `LlmError`, `LimitReached` (the budget), `UnknownName`, `AgentUnavailable`. Its `policies` stand around each task.
    """

    def __init__(
        self,
        agents: AgentRegistry,
        *,
        llms: Llms | None = None,
        ask: Ask | None = None,
        policies: Iterable[Policy] = (),
    ) -> None:
        self.agents = agents
        self._make, self._ask = llms or llm_of, ask
        self._made: dict[str, tuple[AgentConfig, Chat]] = {}
        self._places = Places()
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
        return await (execute(self._result, request) if run is None else self._result(request, run))

    def agent_for(self, task: AgentTask, agent: AgentConfig | str | None = None) -> AgentConfig:
        """Who does a task: the agent that is given, else the task's own, else the first that has its capabilities.

        Whatever can be known to be wrong is raised here, before anything runs: `UnknownName` for an agent or a provider
        that is not there, `AgentUnavailable` for one that is disabled or lacks a capability, `UsageError` for agents
        that consist of each other, `MissingExtra`. The task's reviewer is checked as well.
        """
        chosen = agent or task.agent
        if chosen is None:
            chosen = self.agents.recommend(task.capabilities)
        elif isinstance(chosen, str):
            chosen = self.agents.get(chosen)
        if missing := lacks(chosen, task.capabilities):
            what = ", ".join(map(repr, missing))
            raise AgentUnavailable(f"the agent {chosen.name!r} lacks {what}, which the task {task.id!r} asks for")
        for one in (chosen, *(self.agents.get(name) for name in (task.review,) if name)):
            for member in self._with_members(one):
                self._check(member)
        return chosen

    def effects(self, agent: AgentConfig) -> bool:
        """Whether what an agent does changes something outside; raises `UnknownName` for a part of a hybrid."""
        if agent.effects is not None:
            return agent.effects
        if agent.mode != "hybrid":
            return EFFECTS[agent.mode]
        _, *members = self._with_members(agent)
        return any(self.effects(member) for member in members)

    def provider(self, agent: AgentConfig) -> str:
        """The provider of an agent's model; empty where it has no model, or nobody knows."""
        if agent.mode != "api":
            return ""
        return provider_of(agent.provider) if agent.provider else str(getattr(self._llm(agent), "provider", ""))

    async def _result(self, request: TaskRequest, run: Run, /) -> ExecutionResult:
        result, _ = await self._ended(request, run)
        return result

    async def _ended(self, request: TaskRequest, run: Run) -> tuple[ExecutionResult, Exception | None]:
        """The result of a task, and the error it failed with."""
        tally = Tally(request.task.id, self.agents)
        try:
            tally.agent = agent = self.agent_for(request.task, request.agent)
            async with self._places.of(agent):
                tally.begin()
                answer = await self._wrapped(replace(request, agent=agent), run.listening(tally.note))
        except Exception as error:  # a task's failure is a value: it is stored, and others go on
            return tally.failed(error), error
        return tally.succeeded(answer), None

    async def _bounded(self, request: TaskRequest, run: Run, /) -> Answer:
        task, agent = request.task, self.agent_for(request.task, request.agent)
        bounds = task.over(agent).over(request.bounds)
        team = Team(self.agents, bounds, f"the task {task.id!r}", llm=self._llm, ask=self._ask, places=self._places)
        return await team(Work(task, agent, request.results), run)

    def _with_members(self, agent: AgentConfig, path: tuple[str, ...] = ()) -> Iterator[AgentConfig]:
        """An agent and all that it consists of; raises `UsageError` where it is a part of itself."""
        path = (*path, agent.name)
        if agent.name in path[:-1]:
            raise UsageError(f"the agents {' > '.join(path)} consist of each other: take one of them out")
        yield agent
        for name in agent.agents:
            yield from self._with_members(self.agents.get(name), path)

    def _check(self, agent: AgentConfig) -> None:
        if not agent.enabled:
            raise AgentUnavailable(f"the agent {agent.name!r} is disabled: enable it, or choose another one")
        if agent.mode == "api":
            self._llm(agent)

    def _llm(self, agent: AgentConfig) -> Chat:
        """The LLM of an agent, made once, and again when the agent was changed."""
        made = self._made.get(agent.name)
        if made is None or made[0] != agent:
            made = self._made[agent.name] = agent, self._make(agent)
        return made[1]
