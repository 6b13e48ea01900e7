"""`ProjectOrchestrator`: a project in your hands, run task by task or at once, as its own flow on an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self

from penstock.errors import UnknownName, UsageError
from penstock.root import outlive
from penstock.run import Run
from penstock.store.steps import BLOCKED, CANCELLED, FAILED, PENDING, RUNNING, SUCCEEDED, UNKNOWN, Step
from penstock.tasks.engines import Engine, Flow, RunState, RunStatus
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.flow import PENDING_STEP, PROJECT, failure, goes_on, json_of, register_projects
from penstock.tasks.graph import Draft
from penstock.tasks.project import Defaults, ProjectLimits, ProjectSpec
from penstock.tasks.report import STATUS, Report, project_of, report_on, result_of
from penstock.tasks.results import ExecutionResult
from penstock.tasks.task import AgentTask

_HINTS = {SUCCEEDED: "its result is in the report", BLOCKED: "retry what blocks it first"}


class ProjectOrchestrator:
    """Tasks that need each other, given to agents one by one with `execute_task`, or all with `run`.

        async with ProjectOrchestrator(TaskExecutor(agents), engine=engine, name="site") as project:
            project.add(AgentTask(id="plan", description="...", agent="planner"))
            report = await project.run()

    `name` names the run that the engine keeps: an orchestrator of the same name, with the same tasks (or more) on the
    same journal, goes on where an earlier one was left, or died. Without an engine all is in memory. What is refused is
    refused when a task is added: its agents must be registered, enabled and capable by then.
    """

    def __init__(
        self,
        executor: TaskExecutor,
        *,
        name: str = "project",
        engine: Engine | None = None,
        limits: ProjectLimits = ProjectLimits(),  # noqa: B008  # frozen
        defaults: Defaults = Defaults(),  # noqa: B008  # frozen
    ) -> None:
        project_of({"name": name, "tasks": []})
        self.name, self.limits, self.defaults = name, limits, defaults
        self._executor, self._own = executor, engine is None
        self._engine = _in_memory() if engine is None else engine
        self._projects = register_projects(self._engine, executor)
        self._tasks: dict[str, AgentTask] = {}
        self._draft = Draft()
        self._flow: Flow | None = None
        self._block: AbstractAsyncContextManager[Flow] | None = None
        self._turn = asyncio.Lock()
        self._last: RunStatus | None = None
        self._spawned: set[str] = set()
        self._unended: list[str] = []
        self._calls = 0
        self._paused = False

    async def __aenter__(self) -> Self:
        await self._look()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the project as it stands: what runs is interrupted, and goes on when it is run again."""
        await self._leave()
        if self._own:
            await self._engine.aclose()

    async def __call__(self, spec: ProjectSpec | None, run: Run, /) -> Report:
        """Run this project, or another one on the same engine, and tell on the run what happens.

        A task that failed in an earlier call is tried again, so that a retry policy has its effect; one that was
        cancelled, or whose outcome is unknown, is not. Raises `TaskFailed`, which names them, where not every task
        succeeded.
        """
        if spec is not None:
            async with self._other(spec) as other:
                return await other(None, run)
        report = await self._run(run, again=True)
        if not report.ok:
            raise failure(self.name, report.results)
        return report

    @property
    def spec(self) -> ProjectSpec:
        """The project as it stands."""
        tasks = tuple(self._tasks.values())
        return ProjectSpec(name=self.name, defaults=self.defaults, limits=self.limits, tasks=tasks)

    def add(self, *tasks: AgentTask) -> None:
        """Add tasks, all of them or none; those of one call may stand in any order. Tasks before them come first.

        Raises `UsageError` for a name that is taken, `UnknownName` for a need, an agent or a provider that is not
        there, `AgentUnavailable`, `CyclicPlan`.
        """
        for task in tasks:
            self._projects.order(task, self.defaults)
        self._draft.add_all([(task.id, task.depends_on) for task in tasks])
        self._tasks |= {task.id: task for task in tasks}

    def get(self, task_id: str) -> AgentTask:
        """A task as it was added; raises `UnknownName`."""
        task = self._tasks.get(task_id)
        if task is None:
            raise UnknownName(f"project {self.name!r} has no task {task_id!r}: add it first")
        return task

    def update(self, task: AgentTask) -> None:
        """Put a task in the place of the one with its name, which has not begun, or has failed and is then retried.

        Raises what `add` raises, and `UsageError` for a task that runs or has succeeded.
        """
        self._changeable(task.id)
        self._projects.order(task, self.defaults)
        self._draft.change(task.id, task.depends_on)
        self._tasks[task.id] = task

    def remove(self, task_id: str) -> None:
        """Take a task out that has not begun; raises `UnknownName`, or `UsageError` where it has, or others need it."""
        step = self._changeable(task_id)
        if step.state not in (PENDING, BLOCKED):
            raise UsageError(f"task {task_id!r} is {_words(step)}: one that has begun stays in the report")
        self._draft.remove(task_id)
        del self._tasks[task_id]

    def ready(self) -> list[AgentTask]:
        """The tasks that could be executed now, those of higher priority first."""
        steps = self._steps
        done = {name for name, step in steps.items() if step.state == SUCCEEDED}
        free = [
            task
            for name, task in self._tasks.items()
            if name not in self._spawned and _live(steps.get(name, PENDING_STEP)) and done.issuperset(task.depends_on)
        ]
        return sorted(free, key=lambda task: -task.priority)

    async def execute_task(self, task_id: str, agent: str | None = None) -> ExecutionResult:
        """Do one task, now, with its agent or the one that is named; a failure is a value here.

        Raises `UnknownName`, `AgentUnavailable`, and `UsageError` for a task that runs or has ended (`retry` it first)
        or whose needs have not all succeeded. When the call is cancelled, the task is.
        """
        task = self.get(task_id)
        async with self._going() as flow:
            self._startable(task)
            order = self._projects.order(task, self.defaults, agent=agent)
            self._spawn(flow, self._below(task))
            order.spawn(flow, task, json_of(self.defaults))
            self._spawned.add(task_id)
            try:
                step = (await flow.wait(task_id))[task_id]
            except asyncio.CancelledError:
                await outlive(asyncio.create_task(self.cancel(task_id)))
                raise
        return result_of(task_id, step)

    async def run(self) -> Report:
        """Run every task that has not ended, those that are added meanwhile too; how all of them ended.

        Raises `UnknownName` or `AgentUnavailable`, before anything runs, where an agent went away since its task was
        added. When the call is cancelled, what runs is interrupted: a further call goes on.
        """
        return await self._run(None)

    async def pause(self) -> None:
        """Start no more tasks until `resume`; those that run go on."""
        async with self._going():
            await self._engine.pause(self.name)
            self._paused = True

    async def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        if self._flow is not None:
            await self._engine.resume(self.name)

    async def cancel(self, task_id: str | None = None, *, reason: str = "cancelled") -> bool:
        """Cancel a task that runs or waits in `run`, or all of them; whether there was anything to cancel."""
        if task_id is not None and not self._busy(self.get(task_id).id):
            return False
        if self._flow is None and self._last is None:
            return False
        found = await self._engine.cancel(self.name, task_id, reason=reason)
        if task_id is None:
            await self._leave(idle=True)
        return found

    async def retry(self, task_id: str) -> None:
        """Take back the end of a task that did not succeed, and of those it blocked.

        They run again at once while `run` goes on, else with the next call of it, or of `execute_task`. Raises
        `UnknownName`, and `UsageError` for a task that succeeded, did not end, or is blocked by another one.
        """
        step = self._step(self.get(task_id).id)
        if step.state not in (FAILED, CANCELLED, UNKNOWN):
            raise UsageError(f"task {task_id!r} is {_words(step)}: only one that failed or was cancelled is retried")
        if not self._calls:  # so that what is changed before it runs again counts
            await self._leave()
        await self._engine.retry(self.name, task_id)
        if self._flow is None:
            await self._look()

    def report(self) -> Report:
        """How the project stands."""
        steps = {name: step for name, step in self._steps.items() if name in self._tasks}
        at = self._last.at if self._last is not None else 0.0
        state = self._state()
        return report_on(
            self.spec, RunStatus(run=self.name, flow=PROJECT, payload=None, state=state, steps=steps, at=at)
        )

    @property
    def _steps(self) -> Mapping[str, Step]:
        if self._flow is not None:
            return self._flow.steps
        return self._last.steps if self._last is not None else {}

    def _step(self, task_id: str) -> Step:
        """How one task stands."""
        if self._flow is not None:
            return self._flow.step_of(task_id) or PENDING_STEP
        return PENDING_STEP if self._last is None else self._last.steps.get(task_id, PENDING_STEP)

    async def _run(self, within: Run | None, *, again: bool = False) -> Report:
        async with self._going(within) as flow:
            if again and self._calls == 1:
                for name in [name for name in self._tasks if self._step(name).state == FAILED]:
                    await self._engine.retry(self.name, name)
            fresh = self._fresh()
            while True:
                self._spawn(flow, fresh)
                await self._all(flow)
                if self._flow is not flow or not (fresh := self._fresh()):  # it was left meanwhile, or all is done
                    break
        async with self._turn:  # when it has been left, if it is
            return self.report()

    def _fresh(self) -> list[str]:
        return [name for name in self._draft.graph().order if name not in self._spawned]

    async def _all(self, flow: Flow) -> None:
        """Wait for all that is spawned; interrupt it where the waiting ends sooner, for whatever reason."""
        ended = False
        try:
            await flow.wait()
            ended = True
        finally:
            if not ended:
                await self._leave()

    @asynccontextmanager
    async def _going(self, within: Run | None = None) -> AsyncGenerator[Flow]:
        """The flow of the project, open, and told of on a run; left behind the last call when all has ended."""
        async with self._turn:
            flow = self._flow or await self._open()
            self._calls += 1
        if within is not None:
            flow.within = within
        try:
            yield flow
        finally:
            self._calls -= 1
            if not self._calls and self._all_ended():
                await self._leave(idle=True)
            elif within is not None:
                flow.within = None

    async def _open(self) -> Flow:
        await self._look()
        spec, last = self.spec, self._last
        payload = last.payload if last is not None and goes_on(spec, last) else spec.payload()
        await self._projects.begin(self.name, self.name, self.limits.budget)
        block = self._engine.open(self.name, PROJECT, payload)
        flow = await block.__aenter__()
        try:
            self._projects.limit(flow, self.limits)
        except UsageError as error:
            self._projects.end(self.name)
            await _left(block, error)
            raise
        self._flow, self._block, self._paused = flow, block, False
        if last is None:
            await self._look()
        return flow

    async def _leave(self, *, idle: bool = False) -> None:
        """Leave the flow, if nobody came meanwhile: it is stored as ended, or interrupted where something has not."""
        async with self._turn:
            if self._flow is None or self._block is None or (idle and self._calls):
                return
            leaving = asyncio.create_task(_left(self._block, self._end()))
            try:
                await outlive(leaving)
                leaving.result()
                await self._look()
            finally:
                self._flow = self._block = None
                self._spawned.clear()
                self._projects.end(self.name)

    def _end(self) -> BaseException | None:
        """What the run is left with: nothing where all succeeded."""
        if not self._all_ended():
            return asyncio.CancelledError("the project was left")
        bad = [result_of(name, step) for name in self._tasks if (step := self._step(name)).state != SUCCEEDED]
        return failure(self.name, bad) if bad else None

    async def _look(self) -> None:
        """See how the run stands in the journal."""
        try:
            self._last = await self._engine.status(self.name)
        except UnknownName:
            self._last = None

    def _spawn(self, flow: Flow, names: Sequence[str]) -> None:
        self._projects.spawn(flow, [self._tasks[name] for name in names], self.defaults)
        self._spawned.update(names)

    def _below(self, task: AgentTask) -> list[str]:
        """What a task needs and is not spawned here yet, needs first."""
        found: dict[str, None] = {}
        left = [*task.depends_on]
        while left:
            name = left.pop()
            if name not in found and name not in self._spawned:
                found[name] = None
                left += self._tasks[name].depends_on
        return [name for name in self._draft.graph().order if name in found] if found else []

    def _startable(self, task: AgentTask) -> None:
        step = self._step(task.id)
        if self._busy(task.id):
            raise UsageError(f"task {task.id!r} is {_words(step)}: await that")
        if not _live(step):
            raise UsageError(f"task {task.id!r} is {_words(step)}: {_HINTS.get(step.state, 'retry it first')}")
        missing = [(need, self._step(need)) for need in task.depends_on]
        stand = [f"{need!r} ({_words(step)})" for need, step in missing if step.state != SUCCEEDED]
        if stand:
            raise UsageError(f"task {task.id!r} needs {', '.join(stand)}: these must succeed first")

    def _changeable(self, task_id: str) -> Step:
        step = self._step(self.get(task_id).id)
        if step.state == SUCCEEDED or self._busy(task_id):
            raise UsageError(f"task {task_id!r} is {_words(step)}: it cannot be changed any more")
        return step

    def _busy(self, task_id: str) -> bool:
        """Whether a task runs, or waits in `run`."""
        return task_id in self._spawned and _live(self._step(task_id))

    def _all_ended(self) -> bool:
        """Whether every task has; looked for among those that had not the last time, then among all."""
        while self._unended:
            if self._unended[-1] in self._tasks and _live(self._step(self._unended[-1])):
                return False
            self._unended.pop()
        self._unended = [name for name in self._tasks if _live(self._step(name))]
        return not self._unended

    def _state(self) -> RunState:
        if self._flow is not None:
            return RunState.PAUSED if self._paused else RunState.RUNNING
        last = RunState.INTERRUPTED if self._last is None else self._last.state
        return RunState.INTERRUPTED if last is not RunState.CANCELLED and not self._all_ended() else last

    def _other(self, spec: ProjectSpec) -> ProjectOrchestrator:
        """An orchestrator of another project, on the same engine."""
        other = ProjectOrchestrator(
            self._executor, name=spec.name, engine=self._engine, limits=spec.limits, defaults=spec.defaults
        )
        other.add(*spec.tasks)
        return other


def _live(step: Step) -> bool:
    """Whether a task has not ended; one that ran when its process died runs again."""
    return step.state in (PENDING, RUNNING)


def _words(step: Step) -> str:
    return STATUS[step.state].replace("_", " ")


async def _left(block: AbstractAsyncContextManager[Flow], end: BaseException | None) -> None:
    """Leave a block with its end."""
    await block.__aexit__(type(end) if end is not None else None, end, None)


def _in_memory() -> Engine:
    from penstock.tasks.engines.local import LocalEngine

    return LocalEngine()
