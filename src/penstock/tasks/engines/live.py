"""`LocalFlow`: a run that goes on in this process: its steps on the scheduler, what happens to them in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from penstock.errors import PenstockError, UnknownName, UsageError
from penstock.outcome import Cancelled, Finished, Outcome
from penstock.root import outlive
from penstock.run import Run, execute
from penstock.store.steps import PENDING, RUNNING, SUCCEEDED, Change, Note, Step
from penstock.tasks.engines import Call, Json, RunState, StepFunction
from penstock.tasks.engines.past import (
    EFFECTS,
    ENDED,
    PAUSED,
    RESERVED,
    UNPAUSED,
    Past,
    change_of,
    failed_of,
    fault_of,
    interrupted,
    outcome_of,
    reopening,
    unfinished,
)
from penstock.tasks.engines.teller import Teller
from penstock.tasks.engines.values import Steps, kept, read
from penstock.tasks.engines.writer import Runs, Writer
from penstock.tasks.graph import Graph, needs_of
from penstock.tasks.limits import Limits
from penstock.tasks.scheduler import Scheduler
from penstock.tasks.states import Blocked, End, Ended, Started, State
from penstock.tasks.states import Change as Heard


class _Order(msgspec.Struct, gc=False):
    """What was said of a step when it was spawned; its payload until it has succeeded."""

    function: StepFunction
    payload: msgspec.Raw | None
    needs: tuple[str, ...]
    effects: bool
    keys: tuple[str, ...]
    priority: float


class LocalFlow:
    """A `Flow` of this process, from when its run was taken until `close`; what it needs is given by its engine."""

    def __init__(
        self,
        run: str,
        spec: Json,
        runs: Runs,
        *,
        functions: Mapping[str, StepFunction],
        earlier: Mapping[str, Step],
        past: Past,
    ) -> None:
        self.run, self.spec, self._runs = run, spec, runs
        self.value: Json = None
        self.task: asyncio.Task[None] | None = None
        self.writer = Writer(runs, run)
        self.teller = Teller(runs, run, self.writer, self._stop)
        self._functions, self._earlier = functions, dict(earlier)
        self._emitted, self._emits = past.emitted, 0
        self._limits: tuple[int | None, Mapping[str, int]] = None, {}
        self._orders: dict[str, _Order] = {}
        self._recalled: dict[str, Step] = {}
        self._scheduler: Scheduler | None = None
        self._outcomes: Mapping[str, End] = {}
        self._launching: asyncio.Handle | None = None
        self._driver: asyncio.Task[Any] | None = None
        self._awaited: dict[str, list[asyncio.Future[None]]] = {}
        self._cancelling: asyncio.Task[None] | None = None
        self._reason: str | None = None
        self._error: BaseException | None = None
        self._paused = self.closed = False
        self.over = asyncio.Event()

    @property
    def within(self) -> Run | None:
        """The run that hears what steps tell from now on, and the log."""
        return self.teller.within

    @within.setter
    def within(self, run: Run | None) -> None:
        self.teller.tell(run)

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled."""
        return self._reason is not None

    @property
    def broken(self) -> BaseException | None:
        """What broke the run off, which is no failure of its flow."""
        return self._error or self.writer.broken

    @property
    def steps(self) -> Mapping[str, Step]:
        """How the steps stand, those of an earlier process included."""
        return Steps({**self._earlier, **{step: self._stands(step) for step in self._orders}})

    def step_of(self, step: str) -> Step | None:
        """How one step stands; None for one that is not there."""
        found = self._stands(step) if step in self._orders else self._earlier.get(step)
        return None if found is None else Step(found.state, read(found.value))

    def limit(self, total: int | None = None, each: Mapping[str, int] | None = None) -> None:
        """Bound how many steps run at once. Raises `UsageError` behind the first step, or for a limit below 1."""
        if self._orders:
            raise UsageError("limits are set before the first step: move the call up")
        self._limits = total, dict(each or {})
        Limits(*self._limits)

    def spawn(  # all that is known of a step  # noqa: PLR0913
        self,
        step: str,
        function: str,
        payload: Json = None,
        *,
        after: Iterable[str] = (),
        effects: bool = False,
        keys: Sequence[str] = (),
        priority: float = 0,
    ) -> None:
        """Add a step. Raises `UsageError` for a name that is taken, `UnknownName`."""
        if self.closed:
            raise UsageError(f"the run {self.run!r} is over: it takes no step {step!r}")
        if step in self._orders:
            raise UsageError(f"there is a step {step!r} already: choose another name")
        if function not in self._functions:
            raise UnknownName(f"no step function {function!r} is registered: known are {sorted(self._functions)}")
        needs = needs_of(step, after, self._orders) if after else ()
        given = payload if payload is None else kept(payload, f"the payload of the step {step!r}")
        self._orders[step] = _Order(self._functions[function], given, needs, effects, tuple(keys), priority)
        if self._scheduler is not None:
            self._scheduler.add(step, needs, end=self._recall(step))
            self._drive(self._scheduler)
        elif self._launching is None:
            self._launching = asyncio.get_running_loop().call_soon(self._launch)

    async def wait(self, *steps: str) -> Mapping[str, Step]:
        """How steps ended, all that were spawned when none is named. Raises what ended the run, if that is broken."""
        for step in steps:
            if step not in self._orders:
                raise UnknownName(f"there is no step {step!r} to wait for: spawn it first")
        self._started()
        while left := [step for step in steps if step not in self._outcomes]:
            for step in left:
                await self._end_of(step)
        if not steps:
            await self.settled()
        return Steps({step: self._stands(step) for step in steps or self._orders})

    async def settled(self) -> None:
        """Wait until all that was spawned has ended. Raises what broke that off."""
        self._started()
        await self._over()
        self._check()

    async def step(self, step: str, function: str, payload: Json = None, **options: Any) -> Json:
        """Spawn a step and wait for it. Raises `TaskFailed` where it did not succeed."""
        self.spawn(step, function, payload, **options)
        ended = (await self.wait(step))[step]
        if ended.state != SUCCEEDED:
            raise failed_of(step, ended.value)
        return ended.value

    async def emit(self, kind: str, value: Json = None) -> int:
        """Log something that happened, once. Raises `UsageError` for a kind that the log itself uses."""
        if kind in RESERVED:
            raise UsageError(f"{kind!r} is what the log itself tells of a run: choose another kind")
        number, self._emits = self._emits, self._emits + 1
        if number < len(self._emitted):
            return self._emitted[number]
        self._check()
        return await self.writer.write(Note(kind, kept(value, f"what is emitted as {kind!r}")))

    async def cancel(self, reason: str, step: str | None = None) -> bool:
        """Cancel the run, or a step, and return when that is stored; whether there was anything to cancel."""
        scheduler = self._started()
        if step is not None:
            if not scheduler.cancel(step, reason):
                return False
            await self._end_of(step)
            self._check()
            return True
        first = self._cancelling is None
        if self._cancelling is None:
            self._reason = reason
            self._cancelling = asyncio.get_running_loop().create_task(self._cancel(scheduler, reason))
        await asyncio.wait((self._cancelling,))
        self._check()
        return first

    async def retry(self, step: str) -> None:
        """Take back the end of a step that did not succeed. Raises `UsageError`."""
        scheduler = self._started()
        if step in self._orders:
            scheduler.retry(step)
            self._drive(scheduler)
            await asyncio.sleep(0)  # until it is heard
            await self.writer.write()
            return
        changes = reopening(self._earlier, step)
        await self.writer.write(*changes)
        self._earlier.update((change.step, Step(PENDING)) for change in changes)

    async def pause(self) -> None:
        """Start no more steps until `resume`."""
        if not self._paused:
            self._paused = True
            if self._scheduler is not None:
                self._scheduler.pause()
            await self.writer.write(Note(PAUSED))

    async def resume(self) -> None:
        """Go on after `pause`."""
        if self._paused:
            self._paused = False
            if self._scheduler is not None:
                self._scheduler.resume()
            await self.writer.write(Note(UNPAUSED))

    async def close(self, error: BaseException | None, *, complete: bool) -> None:
        """End the run as its flow ended, or interrupt what is left of it where that was not `complete`.

        Raises `StoreFailed` where the end cannot be stored.
        """
        self.closed = True
        if self._launching is not None:
            self._launching.cancel()
        if self._cancelling is not None:
            await asyncio.wait((self._cancelling,))
        elif self.broken or not complete:
            await self._interrupt()
        else:
            if error is not None and self._scheduler is not None:
                self._scheduler.stop(f"the flow failed: {error}")
                await self._over()
            if self._error is None:
                state, value = (RunState.SUCCEEDED, self.value) if error is None else (RunState.FAILED, fault_of(error))
                await self.writer.write(Note(ENDED, {"state": state.value, "value": value}))
        self.writer.ring()
        if self.broken is not None and self.broken is not error:
            raise self.broken

    async def told(self, *, complete: bool) -> None:
        """Wait until the log is told to the end, or leave it where that is of no use."""
        await self.teller.aclose(complete=complete)

    async def _interrupt(self) -> None:
        if self._driver is not None and not self._driver.done():
            self._driver.cancel("interrupted")
            await outlive(self._driver)
        with suppress(PenstockError):  # who takes the run over does the same
            await self.writer.write()
            await self.writer.write(*interrupted((await self._runs.look(self.run)).steps))

    async def _over(self) -> None:
        while self._driver is not None and not self._driver.done():
            await asyncio.wait((self._driver,))

    async def _cancel(self, scheduler: Scheduler, reason: str) -> None:
        scheduler.stop(reason)
        await self._over()
        if self._error is None:
            value = unfinished("cancelled", reason)
            await self.writer.write(Note(ENDED, {"state": RunState.CANCELLED.value, "value": value}))
        if self.task is not None and not self.closed:
            self.task.cancel(reason)

    def _stop(self, error: BaseException) -> None:
        """End the run for a reason that is none of its flow's."""
        self._error = self._error or error
        if self._driver is not None:
            self._driver.cancel("interrupted")

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _started(self) -> Scheduler:
        """The scheduler, which has all that was spawned."""
        self._check()
        if self._launching is not None:
            self._launching.cancel()
        return self._scheduler or self._launch()

    def _launch(self) -> Scheduler:
        self._launching = None
        orders = self._orders
        dependants: dict[str, list[str]] = {step: [] for step in orders}
        for step, order in orders.items():
            for need in order.needs:
                dependants[need].append(step)
        graph = Graph({step: order.needs for step, order in orders.items()}, dependants, [*orders])
        ended = {step: end for step in orders if (end := self._recall(step)) is not None}
        total, each = self._limits
        limits = Limits(total, each, lambda step: orders[step].keys, lambda step: orders[step].priority)
        scheduler = self._scheduler = Scheduler(
            graph, self._work, limits=limits, commit=self._commit, listener=self._hear, ended=ended
        )
        self._outcomes = scheduler.outcomes
        if self._paused:
            scheduler.pause()
        self._drive(scheduler)
        return scheduler

    def _drive(self, scheduler: Scheduler) -> None:
        if (self._driver is None or self._driver.done()) and self._error is None:
            self._driver = asyncio.get_running_loop().create_task(scheduler.run())
            self._driver.add_done_callback(self._rested)

    def _rested(self, driver: asyncio.Task[Any]) -> None:
        if not driver.cancelled() and (error := driver.exception()) is not None:
            self._error = self._error or error
        awaited, self._awaited = self._awaited, {}
        for futures in awaited.values():
            _wake(futures)

    def _recall(self, step: str) -> Outcome[Any] | None:
        """The end that a step had in an earlier process, or has because the run is cancelled."""
        earlier = self._earlier.pop(step, None)
        if earlier is not None and earlier.state not in (PENDING, RUNNING):
            self._recalled[step] = earlier
            if earlier.state == SUCCEEDED:
                self._orders[step].payload = None
            if (end := outcome_of(step, earlier)) is not None:
                return end
        return None if self._reason is None else Cancelled(self._reason)

    async def _work(self, step: str) -> msgspec.Raw | None:
        order, outcomes = self._orders[step], self._outcomes
        if order.effects:
            await self.writer.write(Change(step, RUNNING, EFFECTS))
        results: dict[str, Any] = {
            need: None if (given := outcomes[need].result) is None else read(given)  # type: ignore[union-attr]
            for need in order.needs
        }
        call, within = Call(self.run, step, read(order.payload), results), self.teller.within
        if within is None:
            value = await execute(order.function, call)
        else:
            value = await order.function(call, within.child(step))
        return value if value is None else kept(value, f"what the step {step!r} gave")

    def _commit(self, batch: Sequence[Ended]) -> asyncio.Future[int] | None:
        return self.writer.commit([change_of(ended.task, ended.end) for ended in batch])

    def _hear(self, heard: Heard) -> None:
        kind, step = type(heard), heard.task
        if kind is Started:
            if not self._orders[step].effects:
                self.writer.add(Change(step, RUNNING))
        elif isinstance(heard, Ended):
            if type(heard.end) is Finished:
                self._orders[step].payload = None
            elif type(heard.end) is Blocked and step not in self._recalled:
                self.writer.add(change_of(step, heard.end))
            if step in self._awaited:
                _wake(self._awaited.pop(step))
        else:
            self._recalled.pop(step, None)
            self.writer.add(Change(step, PENDING))

    async def _end_of(self, step: str) -> None:
        """Wait for the end of a step, or of all hope for one."""
        if step in self._outcomes:
            return
        self._check()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(step, []).append(future)
        await future
        self._check()

    def _stands(self, step: str) -> Step:
        end = self._outcomes.get(step)
        if end is None:
            running = self._scheduler is not None and self._scheduler.states[step] in (State.RUNNING, State.ENDING)
            return Step(RUNNING, EFFECTS if self._orders[step].effects else None) if running else Step(PENDING)
        if step in self._recalled:
            return self._recalled[step]
        ended = Step(SUCCEEDED, end.result) if type(end) is Finished else change_of(step, end)
        return ended if isinstance(ended, Step) else Step(ended.state, ended.value)


def _wake(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
