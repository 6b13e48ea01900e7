"""`Waiting`: puts items that several callers wait for into common calls, and gives each caller its own outcome.

async with Waiting(Batch(llm, Plan)) as waiting:
    outcome = await waiting.submit((7, snapshot))      # from as many tasks as there are
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeAlias

from penstock.batch.items import BatchRequest, Item, ItemId, items_of
from penstock.batch.outcomes import BatchResponse, ItemOutcome
from penstock.batch.prompt import line
from penstock.batch.stream import outcome_of
from penstock.errors import UsageError
from penstock.events import Event, Used
from penstock.events import Item as Told
from penstock.run import Executor, Principal, Run, execute


@dataclass(slots=True, eq=False)
class _Waiter:
    """One caller and its item: what is known of it so far, and where it is on its way."""

    number: int
    item: Item
    line: _Line
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: ItemOutcome | None = None
    error: BaseException | None = None
    late: bool = False
    timer: asyncio.TimerHandle | None = None
    flight: _Flight | None = None

    def end(self, outcome: ItemOutcome | None = None, error: BaseException | None = None) -> None:
        """Say how it ended; what was heard before counts where there is nothing better."""
        self.outcome = outcome or self.outcome
        self.error = error
        self.heard.set()
        self.ended.set()


@dataclass(slots=True, eq=False)
class _Flight:
    """The items of one common call, with who waits for them."""

    waiters: dict[ItemId, _Waiter]
    present: set[_Waiter]
    task: asyncio.Task[BatchResponse] | None = None

    def hear(self, event: Event) -> None:
        """Hand an outcome to who waits for it."""
        if (outcome := outcome_of(event)) is not None:
            self.waiters[outcome.id].outcome = outcome
            self.waiters[outcome.id].heard.set()

    def leave(self, waiter: _Waiter) -> None:
        """Let go of a waiter; when the last has gone, and not all have what they came for, nobody pays for the rest."""
        self.present.discard(waiter)
        lacking = any(one.outcome is None for one in self.waiters.values())
        if self.task is not None and lacking and not self.present:
            self.task.cancel("nobody waits for it")


_Line: TypeAlias = tuple[str, Principal]
"""What callers must have in common to share a call: their items' group, and on whose behalf they ask."""


class Waiting:
    """An executor from one `Item` to its `ItemOutcome`, which shares calls of `batch` with others that wait.

    Two or more items go out together as soon as a place is free, at most `size` of them; one alone waits `linger_s`
    seconds for company. There are `concurrent` places: while they are taken, items gather. Items of different groups,
    or asked for on behalf of different principals, never share a call, nor do two with the same id. A caller that
    leaves takes its item along where it was not asked for yet; when all callers of a call have left, it is cancelled.

    Each caller is told `Item(ItemOutcome)` as its value closes, and returns when the whole call has ended, with its
    share of usage and cost, which it tells as `Used`. With `early` it returns at once, without them.

    Give `size` the `max_batch_size` of the batch's planner: a larger one is cut into several calls, and all their
    callers wait for the last. A failed call raises nothing: look at `outcome.ok`, as the items of a `Batch` do. Keep
    one for as long as callers come, in one event loop; leaving the block sends what waits, and waits for its end.
    """

    def __init__(
        self,
        batch: Executor[BatchRequest, BatchResponse],
        *,
        size: int = 10,
        linger_s: float = 0.02,
        concurrent: int = 4,
        early: bool = False,
    ) -> None:
        if size < 1 or concurrent < 1 or linger_s < 0:
            text = f"size={size!r}, concurrent={concurrent!r}, linger_s={linger_s!r} let nothing through"
            raise UsageError(f"{text}: give at least 1, 1 and 0")
        self._batch, self._size, self._linger_s, self._concurrent = batch, size, linger_s, concurrent
        self._early = early
        self._numbers = count()
        self._lines: dict[_Line, dict[int, _Waiter]] = {}
        self._flights: set[_Flight] = set()
        self._context = copy_context()  # a call that several share belongs to none of them
        self._closed = self._due = False

    async def submit(self, item: Any) -> ItemOutcome:
        """The outcome of an item (an `Item`, a mapping with an `id`, or a pair of id and data).

        Raises `UsageError` for what is none of these, and after the end; a call that fails is told by the outcome.
        """
        (one,) = items_of([item])
        return await execute(self, one)

    async def __call__(self, item: Item, run: Run, /) -> ItemOutcome:
        """Wait for company, then for the outcome."""
        waiter = self._enter(item, run.principal)
        try:
            await waiter.heard.wait()
            if waiter.outcome is None:
                raise waiter.error or _closed(item)
            await run.emit(Told(waiter.outcome))
            if not self._early:
                await waiter.ended.wait()
                await run.emit(Used(usage=waiter.outcome.usage, cost=waiter.outcome.cost))
            return waiter.outcome
        finally:
            self._leave(waiter)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop()
        await self.aclose()

    async def aclose(self) -> None:
        """Take no more items, send those that wait, and wait until all have ended; when cancelled, stop them."""
        self._closed = True
        self._send()
        try:
            while self._flights:
                await asyncio.wait([flight.task for flight in self._flights if flight.task is not None])
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._stop()
            raise

    def _stop(self) -> None:
        """Cancel what runs, and turn away who waits."""
        self._closed = True
        for waiting in self._lines.values():
            for waiter in waiting.values():
                waiter.end()
        self._lines.clear()
        for flight in self._flights:
            if flight.task is not None:
                flight.task.cancel("closed")

    def _enter(self, item: Item, principal: Principal) -> _Waiter:
        if self._closed:
            raise _closed(item)
        BatchRequest.of([item])  # a bad id or data that is no JSON is refused before it can spoil the others' call
        line(item.id, item)
        waiter = _Waiter(next(self._numbers), item, (item.group, principal))
        self._lines.setdefault(waiter.line, {})[waiter.number] = waiter
        waiter.timer = asyncio.get_running_loop().call_later(self._linger_s, self._lapse, waiter)
        self._soon()
        return waiter

    def _lapse(self, waiter: _Waiter) -> None:
        waiter.late = True
        self._send()

    def _leave(self, waiter: _Waiter) -> None:
        """Forget a caller, and its item where it still waits."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        if waiter.flight is not None:
            waiter.flight.leave(waiter)
        elif (waiting := self._lines.get(waiter.line)) is not None:
            self._take(waiting, [waiter])

    def _soon(self) -> None:
        """Look once for all that enter in this turn of the loop, so that those go together."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        """Start calls while there are places and items that need not wait; the oldest first."""
        self._due = False
        while len(self._flights) < self._concurrent:
            ready = [waiting for waiting in self._lines.values() if self._ready(waiting)]
            if not ready:
                return
            waiting = min(ready, key=lambda waiting: next(iter(waiting)))
            together: dict[ItemId, _Waiter] = {}
            for waiter in waiting.values():
                together.setdefault(waiter.item.id, waiter)
                if len(together) == self._size:
                    break
            self._take(waiting, together.values())
            self._start(_Flight(together, set(together.values())))

    def _ready(self, waiting: dict[int, _Waiter]) -> bool:
        first = next(iter(waiting.values()))
        if self._closed or first.late or self._size == 1:
            return True
        return any(waiter.item.id != first.item.id for waiter in waiting.values())

    def _take(self, waiting: dict[int, _Waiter], waiters: Iterable[_Waiter]) -> None:
        """Take waiters out of their line, and an empty line away."""
        for waiter in waiters:
            waiting.pop(waiter.number, None)
            if not waiting:
                self._lines.pop(waiter.line, None)

    def _start(self, flight: _Flight) -> None:
        """Make one call."""
        for waiter in flight.waiters.values():
            waiter.flight = flight
        principal = next(iter(flight.waiters.values())).line[1]
        request = BatchRequest.of(waiter.item for waiter in flight.waiters.values())
        call = execute(self._batch, request, flight.hear, principal=principal)
        flight.task = asyncio.get_running_loop().create_task(call, context=self._context.copy())
        flight.task.add_done_callback(partial(self._land, flight))
        self._flights.add(flight)

    def _land(self, flight: _Flight, task: asyncio.Task[BatchResponse]) -> None:
        """Hand out what a call gave, and use its place."""
        self._flights.discard(flight)
        error = None if task.cancelled() else task.exception()
        ended = () if task.cancelled() or error is not None else task.result().outcomes
        outcomes = {outcome.id: outcome for outcome in ended}
        for waiter in flight.waiters.values():
            waiter.end(outcomes.get(waiter.item.id), error)
        self._send()


def _closed(item: Item) -> UsageError:
    return UsageError(f"the item {item.id!r} has no outcome: the `Waiting` is closed, or its call was cancelled")
