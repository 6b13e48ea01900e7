"""`Work`: one run of a batch: rounds of calls, each about what is still missing, then the fallbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from penstock.batch.calls import Caller, tried
from penstock.batch.fallbacks import TIERS, Fallback
from penstock.batch.items import BatchRequest, Item, ItemId, order_of
from penstock.batch.outcomes import BatchResponse, FaultKind, ItemFault, ItemOutcome, words_of
from penstock.batch.patience import LONGEST_S
from penstock.batch.planner import Planner
from penstock.batch.reading import Asked
from penstock.errors import LimitReached, Refused, TooLong, Transient, Unauthorized, UsageError
from penstock.events import Item as Told
from penstock.messages import Usage
from penstock.outcome import Failed
from penstock.root import outlive
from penstock.run import Run

MOST_DOWN = 8
"""After so many calls in a row that failed, not all of them begun before the first, no more are made: the service is
down, or it takes no such calls. Once a call gave something only failures in passing count."""

_SAYS_WHY = (FaultKind.SCHEMA, FaultKind.MALFORMED)
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a batch is made of; `callers` are those of the fallbacks that are models, by name."""

    caller: Caller
    planner: Planner
    fallbacks: tuple[Fallback, ...]
    callers: dict[str, Caller]
    concurrent: int


@dataclass(slots=True)
class _State:
    """An item on its way."""

    item: Item
    attempts: int = 0
    faults: list[ItemFault] = field(default_factory=list[ItemFault])
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)
    value: Any = None
    tier: str = ""

    @property
    def cut(self) -> bool:
        return any(fault.kind is FaultKind.TRUNCATED for fault in self.faults)

    @property
    def problem(self) -> str:
        """What was wrong with the last answer about it; empty where that is nothing that it says itself."""
        wrong = (fault.message for fault in reversed(self.faults) if fault.kind in _SAYS_WHY)
        return next(wrong, "")

    def outcome(self) -> ItemOutcome:
        return ItemOutcome(
            id=self.item.id,
            value=self.value,
            tier=self.tier,
            attempts=self.attempts,
            faults=tuple(self.faults),
            usage=self.usage,
            cost=self.cost,
        )

    def add(self, asked: Asked) -> None:
        """Take in what a call cost it, and what was wrong."""
        self.faults += asked.faults.get(self.item.id, ())
        self.usage = self.usage + asked.usages[self.item.id]
        cost = asked.costs[self.item.id]
        self.cost = None if cost is None or self.cost is None else self.cost + cost


class Work:
    """One run of a batch; `done()` does it."""

    def __init__(self, setup: Setup, request: BatchRequest, run: Run) -> None:
        self._setup, self._run = setup, run
        self._states = {item.id: _State(item) for item in request.items}
        self._sizes = setup.caller.sizes(request.items)
        self._foreign: list[ItemFault] = []
        self._calls = self._down = self._since = 0
        self._answered = False
        self._stop: Exception | None = None

    async def done(self) -> BatchResponse:
        """Do all rounds, and give what became of the items."""
        left, largest = await self._round([state.item for state in self._states.values()])
        if largest > 3:
            left, _ = await self._round(left, most=largest // 2)
        if left:
            left, _ = await self._round(left, most=1)
        await self._each(iter(left), self._fall_back)
        outcomes = sorted((state.outcome() for state in self._states.values()), key=lambda one: order_of(one.id))
        return BatchResponse(tuple(outcomes), tuple(self._foreign))

    async def _round(self, items: Sequence[Item], *, most: int = 0) -> tuple[list[Item], int]:
        """Ask for items; gives those that are still wanted, and the size of the largest call that did not give all."""
        caller, lacking = self._setup.caller, [0]
        sizes = {**self._sizes, **self._larger(items)}
        calls = self._setup.planner.calls(items, shared=caller.shared, sizes=sizes, most=most)

        async def call(several: tuple[Item, ...]) -> None:
            await self._ask(caller, several, TIERS[len(several) == 1])
            if any(not self._states[item.id].tier for item in several):
                lacking.append(len(several))

        await self._each(calls, call)
        return [item for item in items if not self._states[item.id].tier], max(lacking)

    def _problems(self, items: Sequence[Item]) -> dict[ItemId, str]:
        """What was wrong with the last answers about items, where one was wrong."""
        return {item.id: problem for item in items if (problem := self._states[item.id].problem)}

    def _larger(self, items: Sequence[Item]) -> dict[ItemId, int]:
        """The sizes of those items that a prompt says more about than their data."""
        problems = self._problems(items)
        return self._setup.caller.sizes([item for item in items if item.id in problems], problems)

    async def _each(self, works: Iterator[Part], do: Callable[[Part], Awaitable[None]]) -> None:
        """Do several at a time."""

        async def some() -> None:
            for one in works:
                await do(one)

        await _together(some() for _ in range(min(self._setup.concurrent, len(self._states))))

    async def _ask(self, caller: Caller, items: tuple[Item, ...], tier: str) -> None:
        """Make one call, and take in what it gave."""
        if self._stop is not None and caller is self._setup.caller:
            return
        self._calls = number = self._calls + 1
        states = [self._states[item.id] for item in items]
        for state in states:
            state.attempts += 1

        async def accept(item: Item, value: Any) -> None:
            await self._end(self._states[item.id], value, tier)

        planner = self._setup.planner
        asked = await caller.ask(
            items,
            self._run.child(f"call-{self._calls}"),
            number=number,
            room=planner.room(len(items), roomy=any(state.cut for state in states)),
            accept=accept,
            problems=self._problems(items),
        )
        for state in states:
            state.add(asked)
        self._foreign += asked.foreign
        if caller is self._setup.caller:
            self._learn(asked, number)

    def _learn(self, asked: Asked, number: int) -> None:
        """Learn from a call, and stop asking where no further one can help."""
        error = asked.error
        if asked.lesson is not None:
            self._setup.planner.learn(asked.lesson)
        self._answered = self._answered or bool(asked.accepted)
        if isinstance(error, Transient) or self._hopeless(asked):
            self._since = self._since if self._down else self._calls
            self._down += 1
        else:
            self._down = 0
        down = self._down >= MOST_DOWN and number > self._since  # calls side by side all fail of one short fault
        if isinstance(error, LimitReached | Unauthorized) or down or _too_long(error):
            self._stop = error

    def _hopeless(self, asked: Asked) -> bool:
        """Whether a call failed in no passing way, for no reason of its items', and none before has ever given one."""
        own = isinstance(asked.error, TooLong | Refused) and len(asked.usages) > 1
        return asked.error is not None and not own and not self._answered

    async def _fall_back(self, item: Item) -> None:
        """Try the fallbacks in their order; without a value from one the item ends with its faults alone."""
        state = self._states[item.id]
        if self._stop is not None and not state.faults:
            text = f"not asked for, as no call can help: {words_of(self._stop)}"
            state.faults.append(ItemFault(FaultKind.CALL, text, self._calls))
        for fallback in self._setup.fallbacks:
            if (caller := self._setup.callers.get(fallback.name)) is not None:
                try:
                    await self._ask(caller, (item,), fallback.name)
                except UsageError as error:  # of this model alone: what the others gave is not lost for it
                    self._fault(state, fallback, error)
            else:
                await self._by_rule(fallback, state)
            if state.tier:
                return
        await self._run.emit(Told(state.outcome()))

    async def _by_rule(self, fallback: Fallback, state: _State) -> None:
        """Take what a rule or a default gives, where it is a value."""

        async def value() -> Any:
            return self._setup.caller.schema.checked(state.item, await fallback.value(state.item))

        ended = await tried(value())
        if isinstance(ended, Failed):
            self._fault(state, fallback, ended.error)
        else:
            await self._end(state, ended.result, fallback.name)

    def _fault(self, state: _State, fallback: Fallback, error: Exception) -> None:
        text = f"the fallback {fallback.name!r} gave no value: {type(error).__name__}: {error}"
        state.faults.append(ItemFault(FaultKind.FALLBACK, text, self._calls))

    async def _end(self, state: _State, value: Any, tier: str) -> None:
        state.value, state.tier = value, tier
        await self._run.emit(Told(state.outcome()))


def _too_long(error: Exception | None) -> bool:
    """Whether a service wants to be left alone for longer than anybody waits."""
    return isinstance(error, Transient) and error.retry_after is not None and error.retry_after > LONGEST_S


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all side by side; the first failure, or a cancel, stops the others and is raised when they have ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            await outlive(task)
            if not task.cancelled():
                task.exception()
