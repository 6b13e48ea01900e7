"""Runs a graph of tasks: each starts the moment its last need is met, as wide as limits allow, by priority.

    scheduler = Scheduler(graph_of({"plan": [], "write": ["plan"]}), work, limits=Limits(total=8))
    outcomes = await scheduler.run()

One coroutine decides everything, woken by what ends: nothing polls, and a task that waits is an entry in a few
dictionaries, not a task or a future.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from penstock.errors import StoreFailed, UnknownName, UsageError
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.root import outlive
from penstock.tasks.graph import Graph, needs_of
from penstock.tasks.limits import Limits, ReadyQueue
from penstock.tasks.states import ENDS, HOPELESS, LEGAL, Blocked, Change, End, Ended, Reopened, Started, State, unstored

Work: TypeAlias = Callable[[str], Awaitable[Any]]
Commit: TypeAlias = Callable[[Sequence[Ended]], Awaitable[Any] | None]

Argument = TypeVar("Argument")
Value = TypeVar("Value")


_UNCOMMITTED = StoreFailed("the ends of tasks could not be committed")


class Scheduler:
    """Runs the tasks of a graph: `work(task)` is awaited as a task of its own, once its needs have finished.

    What it returns is the task's `Finished`, what it raises its `Failed`, which blocks all dependants and nobody else.
    `commit` is called with the ends since its last call, all in one list, and awaited before any dependant starts,
    unless it returns None, having stored them: a journal writes there. Who is blocked follows from that, and is not
    committed. `ended` are ends of an earlier run: those tasks do not run again. `listener` is a plain function that
    must not raise; it hears every change in the order it happened. All is called in the event loop's thread. Raises
    `UnknownName` if `ended` names no task.
    """

    def __init__(
        self,
        graph: Graph,
        work: Work,
        *,
        limits: Limits | None = None,
        commit: Commit | None = None,
        listener: Callable[[Change], None] | None = None,
        ended: Mapping[str, Outcome[Any]] | None = None,
    ) -> None:
        self._work, self._commit, self._listener = work, commit, listener
        self._needs = dict(graph.dependencies)
        self._dependants = dict(graph.dependants)
        self._grown: dict[str, list[str]] = {}
        self._waits = graph.waits()
        self._state = dict.fromkeys(self._needs, State.WAITING)
        self._outcomes: dict[str, End] = {}
        self._left = len(self._needs)
        self._queue = ReadyQueue(limits or Limits())
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._reasons: dict[str, str] = {}
        self._ripe: list[str] = []
        self._over: list[str] = []
        self._ending: list[Ended] = []
        self._lost: list[Ended] = []
        self._committing: tuple[asyncio.Future[Any], list[Ended]] | None = None
        self._broken: Exception | None = None
        self._news: deque[Change] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._stirred = self._paused = self._driven = self._interrupted = False
        self._recall(ended or {})

    @property
    def outcomes(self) -> Mapping[str, End]:
        """The ends so far, those given at the start included."""
        return self._outcomes

    @property
    def states(self) -> Mapping[str, State]:
        """Where every task stands."""
        return self._state

    async def run(self) -> Mapping[str, End]:
        """Run until every task has an end; returns all of them. May be called again after a retry, or an addition.

        When it is cancelled, when `commit` or the listener fails (which it then raises) or when work raises what is no
        `Exception`, everything is cancelled and awaited first. What had finished is still committed; what was
        interrupted is `Cancelled` but not committed, so that whoever resumes runs it. What cannot be committed is
        `Failed`. While paused, it waits.
        """
        if self._driven:
            raise RuntimeError("the scheduler runs already: await that run")
        self._driven, self._broken = True, None
        try:
            await self._drive()
        finally:
            try:
                if self._left:
                    await outlive(asyncio.get_running_loop().create_task(self._wind_up()))
            finally:
                self._driven = self._interrupted = False
        return self._outcomes

    def pause(self) -> None:
        """Start nothing more until `resume`; what runs goes on."""
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._rouse()

    def cancel(self, task: str, reason: str = "cancelled") -> bool:
        """Cancel one task, which blocks its dependants; whether it was still to cancel. Raises `UnknownName`."""
        state = self._state_of(task)
        if state is State.RUNNING:
            if task in self._reasons or not self._running[task].cancel(reason):
                return False
            self._reasons[task] = reason
        elif state in (State.WAITING, State.READY):
            self._end(task, Cancelled(reason))
            self._rouse()
        else:
            return False
        return True

    def stop(self, reason: str = "cancelled") -> None:
        """Cancel all tasks that have not ended; `run` returns when the last of them has."""
        for task in self._needs:
            self.cancel(task, reason)

    def retry(self, task: str) -> None:
        """Take back the end of a task that failed or was cancelled, and of those it blocked: they run again.

        Raises `UnknownName`, or `UsageError` when the task did neither, or while `run` is winding up.
        """
        if self._state_of(task) not in (State.FAILED, State.CANCELLED):
            raise UsageError(f"task {task!r} is {self._state[task]}: only one that failed or was cancelled is retried")
        self._refuse_late()
        reopened = [task]
        for above in reopened:  # which grows meanwhile
            self._move(above, State.WAITING)
            del self._outcomes[above]
            self._left += 1
            self._news.append(Reopened(above))
            for other in self._dependants[above]:
                end = self._outcomes.get(other)
                if isinstance(end, Blocked) and end.by == task and end.via == above:
                    reopened.append(other)
        for again in reopened:
            self._place(again)
        self._rouse()

    def add(self, task: str, dependencies: Iterable[str] = (), *, end: Outcome[Any] | None = None) -> None:
        """Add a task, also while others run; it is blocked at once if one of its needs is, or has an earlier run's end.

        Raises `UsageError` when the name is taken or `run` is winding up, `UnknownName`, `CyclicPlan`.
        """
        if task in self._state:
            raise UsageError(f"there is a task {task!r} already: choose another name")
        self._refuse_late()
        needs = needs_of(task, dependencies, self._state)
        self._needs[task], self._dependants[task], self._state[task] = needs, [], State.WAITING
        self._waits[task] = sum(self._state[need] is not State.FINISHED for need in needs)
        for need in needs:
            grown = self._grown.get(need)
            if grown is None:  # the graph's own is not ours to change
                grown = self._grown[need] = self._dependants[need] = [*self._dependants[need]]
            grown.append(task)
        if end is not None:
            self._state[task], self._outcomes[task] = ENDS[type(end)], end
            return
        self._left += 1
        self._place(task)
        self._rouse()

    def path(self, task: str) -> tuple[str, ...]:
        """From the task whose end blocks this one, need by need, to this one; only itself if it is not blocked.

        Raises `UnknownName`.
        """
        self._state_of(task)
        found = [task]
        while isinstance(end := self._outcomes.get(found[-1]), Blocked):
            found.append(end.via)
        return tuple(reversed(found))

    async def _drive(self) -> None:
        """Step whenever something happened, until every task has an end."""
        loop = asyncio.get_running_loop()
        while True:
            self._stirred = False
            self._collect()
            self._store()
            self._fill(loop)
            self._tell()
            if self._stirred:  # by the listener, or by keys_of and priority_of
                continue
            if not self._left:
                return
            self._wake = loop.create_future()
            try:
                await self._wake
            finally:
                self._wake = None

    async def _wind_up(self) -> None:
        """Cancel what is left and wait for it, whatever else goes wrong meanwhile: the first failure is told."""
        self._interrupted = True
        for task, state in self._state.items():
            if state is State.RUNNING and task not in self._reasons:
                self._running[task].cancel("interrupted")
            elif state in (State.WAITING, State.READY):
                self._end(task, Cancelled("interrupted"), lost=True)
        while self._left:
            step = asyncio.get_running_loop().create_task(self._drive())
            await asyncio.wait((step,))
            step.exception()

    def _collect(self) -> None:
        """Free the places of the work that is over, and turn how it ended into values."""
        over, self._over = self._over, []
        fatal: BaseException | None = None
        for task in over:
            work = self._running.pop(task)
            reason = self._reasons.pop(task, None)
            self._queue.leave(task)
            if work.cancelled():
                lost = self._interrupted and reason is None
                why = reason or ("interrupted" if lost else "cancelled by its own work")
                self._end(task, Cancelled(why), lost=lost)
            elif (error := work.exception()) is None:
                self._end(task, Finished(work.result()))
            elif isinstance(error, Exception):
                self._end(task, Failed(error))
            else:
                fatal = error
                self._end(task, Cancelled(f"stopped by {error!r}"), lost=True)
        if fatal is not None:
            raise fatal

    def _end(self, task: str, outcome: Outcome[Any], *, lost: bool = False) -> None:
        """Fix how a task ended; it counts once it is committed, or at once if it is `lost`."""
        if self._state[task] is State.READY:
            self._queue.drop(task)
        self._move(task, State.ENDING)
        (self._lost if lost else self._ending).append(Ended(task, outcome))

    def _store(self) -> None:
        """Settle what is committed, and commit what ended meanwhile."""
        lost, self._lost = self._lost, []
        self._settle(lost)
        if self._committing is not None:
            storing, batch = self._committing
            if not storing.done():
                return
            self._committing = None
            error = StoreFailed("committing was cancelled") if storing.cancelled() else storing.exception()
            if error is not None:
                self._broken = error if isinstance(error, Exception) else StoreFailed(f"not committed: {error!r}")
                self._settle(unstored(batch, self._broken))
                raise self._broken
            self._settle(batch)
        if not self._ending:
            return
        if self._broken is None and self._commit is not None:
            self._begin_commit(self._commit)
            return
        batch, self._ending = self._ending, []
        self._settle(batch if self._broken is None else unstored(batch, self._broken))

    def _begin_commit(self, commit: Commit) -> None:
        self._broken = _UNCOMMITTED  # where the call raises, which ends the run
        batch, storing = self._ending, commit(self._ending)
        self._broken, self._ending = None, []
        if storing is None:
            self._settle(batch)
        else:
            future = asyncio.ensure_future(storing)
            future.add_done_callback(self._rouse)
            self._committing = future, batch

    def _settle(self, ended: Iterable[Ended]) -> None:
        """Make ends known, and their dependants ready, or blocked."""
        waits, state = self._waits, self._state
        for each in ended:
            task, end = each.task, each.end
            self._outcomes[task] = end
            self._left -= 1
            self._news.append(each)
            self._move(task, ENDS[type(end)])
            if type(end) is not Finished:
                self._block_above([task], task)
                continue
            for other in self._dependants[task]:
                waits[other] -= 1
                if not waits[other] and state[other] is State.WAITING:
                    self._move(other, State.READY)
                    self._ripe.append(other)

    def _block_above(self, below: list[str], by: str) -> None:
        for via in below:  # which grows meanwhile
            for other in self._dependants[via]:
                if self._state[other] is State.WAITING:
                    self._block(other, Blocked(by, via))
                    below.append(other)

    def _block(self, task: str, end: Blocked) -> None:
        self._move(task, State.BLOCKED)
        self._outcomes[task] = end
        self._left -= 1
        self._news.append(Ended(task, end))

    def _place(self, task: str) -> None:
        """Make a waiting task ready, or block it, when its needs are all met, or one of them never will."""
        if self._state[task] is not State.WAITING:
            return
        for need in self._needs[task]:
            if self._state[need] in HOPELESS:
                end = self._outcomes[need]
                by = end.by if isinstance(end, Blocked) else need
                self._block(task, Blocked(by, need))
                self._block_above([task], by)
                return
        if not self._waits[task]:
            self._move(task, State.READY)
            self._ripe.append(task)

    def _recall(self, ended: Mapping[str, Outcome[Any]]) -> None:
        """Take over the ends of an earlier run, of which nobody is told, and make ready what waits for nothing."""
        for task, end in ended.items():
            self._state_of(task)
            self._state[task], self._outcomes[task] = ENDS[type(end)], end
        for task, end in ended.items():
            if not isinstance(end, Finished):
                self._block_above([task], task)
                continue
            for other in self._dependants[task]:
                self._waits[other] -= 1
        self._left -= len(ended)
        for task, count in self._waits.items():
            if not count and self._state[task] is State.WAITING:
                self._move(task, State.READY)
                self._ripe.append(task)

    def _fill(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start whatever may start."""
        ripe, self._ripe = self._ripe, []
        for known in ripe:
            if self._state[known] is State.READY:
                self._queue.put(known)
        while not self._paused and (task := self._queue.take()) is not None:
            self._move(task, State.RUNNING)
            work = self._running[task] = loop.create_task(_called(self._work, task), name=task)
            work.add_done_callback(self._note)
            self._news.append(Started(task))

    def _note(self, work: asyncio.Task[Any]) -> None:
        self._over.append(work.get_name())
        self._rouse()

    def _rouse(self, _: object = None) -> None:
        self._stirred = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _tell(self) -> None:
        """Tell the listener what is new; one that raises hears nothing more."""
        listener, self._listener = self._listener, None
        if listener is None:
            self._news.clear()
            return
        while self._news:
            listener(self._news.popleft())
        self._listener = listener

    def _move(self, task: str, state: State) -> None:
        if state not in LEGAL[self._state[task]]:
            raise RuntimeError(f"task {task!r} cannot go from {self._state[task]} to {state}")
        self._state[task] = state

    def _state_of(self, task: str) -> State:
        if task not in self._state:
            raise UnknownName(f"there is no task {task!r} to run: add it first")
        return self._state[task]

    def _refuse_late(self) -> None:
        if self._interrupted:
            raise UsageError("the run is winding up: wait until it has ended, then change it and run it again")


async def _called(function: Callable[[Argument], Awaitable[Value]], argument: Argument) -> Value:
    """Call inside of a task, so that what is raised on the way to the first `await` is that task's too."""
    return await function(argument)
