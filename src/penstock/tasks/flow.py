"""The flow "project": each task is a step, which a `TaskExecutor` gives to its agent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Final
from weakref import proxy

import msgspec
from pydantic_core import PydanticSerializationError

from penstock.errors import LimitReached, PenstockError, TaskFailed, UnknownName, UsageError
from penstock.policies import Policy
from penstock.policies.budget import budget
from penstock.run import Executor, Run
from penstock.store.steps import CANCELLED, FAILED, PENDING, RUNNING, SUCCEEDED, UNKNOWN, Step
from penstock.tasks.bounds import Bounds, Budget
from penstock.tasks.check import limit_problems
from penstock.tasks.engines import Call, Engine, Flow, Json, RunStatus
from penstock.tasks.executor import TaskExecutor, TaskRequest
from penstock.tasks.project import Defaults, ProjectLimits, ProjectSpec
from penstock.tasks.registry import provider_of
from penstock.tasks.report import project_of, result_of, spent, why
from penstock.tasks.results import ExecutionResult, ExecutionStatus
from penstock.tasks.slots import Slots
from penstock.tasks.task import AgentTask

PROJECT: Final = "project"
TASK: Final = "task"
PENDING_STEP: Final = Step(PENDING)
_BEGUN: Final = frozenset({RUNNING, SUCCEEDED, FAILED, CANCELLED, UNKNOWN})


@dataclass(frozen=True, slots=True)
class Order:
    """How a task is spawned as a step: who does and who reviews it, and what the engine must know."""

    agent: str | None = None
    review: str | None = None
    effects: bool = True
    keys: Sequence[str] = ()
    priority: float = 0

    def spawn(self, flow: Flow, task: AgentTask, bounds: Json) -> None:
        """Spawn it; `bounds` are those of its project."""
        said = task.model_dump(mode="json", exclude_defaults=True)
        flow.spawn(
            task.id,
            TASK,
            {
                "task": said if self.review is None else {**said, "review": self.review},
                "bounds": bounds,
                **({} if self.agent is None else {"agent": self.agent}),
            },
            after=task.depends_on,
            effects=self.effects,
            keys=self.keys,
            priority=self.priority,
        )


class Projects:
    """The projects of one engine: its function "task", and what is left of the budgets of those that run here."""

    def __init__(self, engine: Engine, executor: TaskExecutor) -> None:
        self.executor = executor
        self._engine: Engine = proxy(engine)  # which holds this: neither must keep the other alive
        self._budgeted: dict[str, Executor[TaskRequest, ExecutionResult]] = {}
        self._slots: dict[str, Slots] = {}

    async def __call__(self, call: Call, run: Run, /) -> Json:
        """Do the task of a step; its fault holds the whole result."""
        payload = call.payload
        request = TaskRequest(
            AgentTask.model_validate(payload["task"]),
            payload.get("agent"),
            {name: value["output"] for name, value in call.results.items()},
            Bounds.model_validate(payload.get("bounds", {})),
            self._slots.get(call.run),
        )
        result = await self._budgeted.get(call.run, self.executor.result)(request, run)
        if not result.ok:
            raise result.failure()
        return msgspec.to_builtins(result)

    async def flow(self, flow: Flow, payload: Json) -> Json:
        """Run a project; its value says how many tasks there were and what they used."""
        spec = project_of(payload)
        graph = spec.graph()
        tasks = {task.id: task for task in spec.tasks}
        self.limit(flow, spec.limits)
        await self.begin(flow.run, spec.name, spec.limits.budget)
        try:
            self.spawn(flow, [tasks[name] for name in graph.order], spec.defaults)
            steps = await flow.wait()
        finally:
            self.end(flow.run)
        results = [result_of(name, steps[name]) for name in graph.order]
        if not all(result.ok for result in results):
            raise failure(spec.name, results)
        usage, cost = spent(results)
        return {"tasks": len(results), "tokens": usage.total, "cost": None if cost is None else str(cost)}

    def spawn(self, flow: Flow, tasks: Iterable[AgentTask], defaults: Defaults) -> None:
        """Spawn tasks, each after those it needs, once all of them are known to be sound; raises what `order` does."""
        orders = [(task, self.order(task, defaults, flow.step_of(task.id) or PENDING_STEP)) for task in tasks]
        bounds = json_of(defaults)
        for task, order in orders:
            order.spawn(flow, task, bounds)

    def order(
        self, task: AgentTask, defaults: Defaults, step: Step = PENDING_STEP, *, agent: str | None = None
    ) -> Order:
        """How a task is spawned; raises `UnknownName` or `AgentUnavailable` where it can be given to nobody.

        One that has ended, as its step says, may name an agent that is gone. Raises `UsageError` for inputs that are
        no JSON.
        """
        try:
            task.model_dump(mode="json", include={"inputs"})
        except PydanticSerializationError as error:
            raise UsageError(f"the inputs of task {task.id!r} are no JSON: {error}") from None
        filled = defaults.fill(task, agent)
        try:
            chosen = self.executor.agent_for(filled, agent)
            if filled.review is None and defaults.review is not None:  # now that it is known who does it
                filled = defaults.fill(task, chosen.name)
                self.executor.agent_for(filled, chosen)
            provider = self.executor.provider(chosen)
            effects = self.executor.effects(chosen)
        except UsageError:
            if step.state in (PENDING, RUNNING):
                raise
            return Order(filled.agent, filled.review, priority=task.priority)
        return Order(chosen.name, filled.review, effects, _keys(chosen.name, provider), task.priority)

    async def begin(self, run: str, name: str, most: Budget | None) -> None:
        """Hold a budget over the tasks of a run that follow, less what its log says is spent."""
        if most is None:
            return
        tokens, usd = await self._spent(run)
        work: Executor[TaskRequest, ExecutionResult] = self.executor.result
        if most.tokens is not None:
            work = _purse(most.tokens, tokens, f"tokens of project {name!r}")(work)
        if most.usd is not None:
            from penstock.llms.prices import cost_of

            work = _purse(most.usd, usd, f"USD of project {name!r}", cost=cost_of)(work)
        self._budgeted[run] = work

    def limit(self, flow: Flow, limits: ProjectLimits) -> None:
        """Set the limits of a flow whose first step is to come: an agent's own, or that of the project, if lower.

        With these keys a task waits in the engine, as one that has not begun. Those who review tasks or are parts of
        hybrids have none: they wait for the slots of the run. Raises `UnknownName` where a limit is nobody's.
        """
        if not flow.steps:  # what goes on may name an agent that is gone by now
            for _, error in limit_problems(limits, self.executor.agents, self._providers()):
                raise error
        self._slots[flow.run] = Slots(limits)
        each = {f"agent:{agent.name}": agent.concurrent for agent in self.executor.agents.list() if agent.concurrent}
        for agent, most in limits.agents.items():
            each[f"agent:{agent}"] = min(most, each.get(f"agent:{agent}", most))
        each |= {f"provider:{provider_of(provider)}": most for provider, most in limits.providers.items()}
        flow.limit(limits.concurrent, each)

    def _providers(self) -> Iterator[str]:
        """The providers of the agents there are, as far as they are known."""
        for agent in self.executor.agents:
            with suppress(PenstockError):
                yield self.executor.provider(agent)

    def end(self, run: str) -> None:
        """Forget the budget and the slots of a run that does not go on."""
        self._budgeted.pop(run, None)
        self._slots.pop(run, None)

    async def _spent(self, run: str) -> tuple[int, Decimal | None]:
        """What the log of a run says was used, tokens and USD; also by what was retried or rolled back since."""
        results: list[ExecutionResult] = []
        running: set[str] = set()
        after = 0
        with suppress(UnknownName):  # nothing yet
            while entries := await self._engine.events(run, after=after):
                after = entries[-1].offset
                for step, state, value in ((entry.step, entry.state, entry.value) for entry in entries):
                    if step is not None and state == RUNNING:
                        running.add(step)
                    elif step in running and state in (SUCCEEDED, FAILED):  # and not brought back to that
                        running.remove(step)
                        results.append(result_of(step, Step(state, value)))
        usage, cost = spent(results)
        return usage.total, cost


def register_projects(engine: Engine, executor: TaskExecutor) -> Projects:
    """Let an engine run projects: the flow "project", whose payload is a `ProjectSpec` as JSON.

    Its tasks are given to the agents of the executor. Raises `UsageError` where the engine has another executor.
    """
    known = engine.function(TASK)
    if not isinstance(known, Projects):
        known = Projects(engine, executor)
        engine.register(TASK, known)
        engine.register_flow(PROJECT, known.flow)
    elif known.executor is not executor:
        raise UsageError("this engine runs projects with another TaskExecutor: give that one, or another engine")
    return known


@lru_cache(maxsize=1024)  # which many tasks share
def _keys(agent: str, provider: str) -> tuple[str, ...]:
    return (f"agent:{agent}", f"provider:{provider}") if provider else (f"agent:{agent}",)


def json_of(defaults: Defaults) -> Json:
    """The bounds that hold for all tasks of a project, as JSON."""
    return defaults.bounds.model_dump(mode="json", exclude_defaults=True)


def goes_on(spec: ProjectSpec, last: RunStatus) -> bool:
    """Whether a run is one of this project: what has begun is there, and what succeeded is the same."""
    if last.flow != PROJECT:
        return False
    now = {task.id: task for task in spec.tasks}
    for task in project_of(last.payload).tasks:
        state = last.steps.get(task.id, PENDING_STEP).state
        if state in _BEGUN and (task.id not in now or (state == SUCCEEDED and now[task.id] != task)):
            return False
    return True


def failure(name: str, results: Iterable[ExecutionResult]) -> TaskFailed:
    """What is raised for a project of which not every task succeeded: it names them, and says why."""
    bad = [result for result in results if not result.ok]
    first = [result for result in bad if result.status is not ExecutionStatus.BLOCKED]
    statuses = {result.status for result in first}
    code = next((code for status, code in _CODES.items() if status in statuses), "agent_failed")
    shown = [f"{result.task!r} {why(result)}" for result in first[:_SHOWN]]
    shown += [f"{len(first) - _SHOWN} more"] if len(first) > _SHOWN else []
    behind = f"; blocked by that: {len(bad) - len(first)}" if len(bad) > len(first) else ""
    details = {
        "tasks": [result.task for result in first[:_SHOWN]],
        "failed": len(first),
        "blocked": len(bad) - len(first),
    }
    return TaskFailed(
        f"not every task of project {name!r} succeeded: {'; '.join(shown)}{behind}",
        code=code,
        details=details,
        retryable=any(result.error is not None and result.error.retryable for result in first),
    )


_SHOWN: Final = 20
_CODES: Final[Mapping[ExecutionStatus, str]] = {
    ExecutionStatus.FAILED: "agent_failed",
    ExecutionStatus.UNKNOWN: "outcome_unknown",
    ExecutionStatus.CANCELLED: "cancelled",
}


def _purse(amount: Any, gone: Any, name: str, **options: Any) -> Policy:
    """A budget of which something is spent already; what nobody knows is all of it."""
    if gone is None or gone >= amount:
        known = f"{gone} is spent" if gone is not None else "what was spent of it is unknown, as a price was"
        return partial(_refused, f"the budget of {amount} {name} is used up: {known}")
    return budget(amount - gone, name=f"left of {amount} {name}" if gone else name, **options)


def _refused(message: str, _: Executor[Any, Any]) -> Executor[Any, Any]:
    async def refuse(_request: Any, _run: Run, /) -> Any:
        raise LimitReached(message, limit="budget")

    return refuse
