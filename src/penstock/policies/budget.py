"""`budget`: calls until an amount is spent, with room reserved for those that are running."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

from penstock.errors import LimitReached, UsageError
from penstock.events import Event, Used
from penstock.policies import Policy
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


def total_tokens(used: Used) -> int:
    """The tokens of prompt and answer."""
    return used.usage.total


class _Hold:
    """The room of one running call: what it told so far, and what it was estimated to cost (None: it was not)."""

    __slots__ = ("_account", "_estimate", "active", "priced", "told")

    def __init__(self, account: _Account, estimate: Any) -> None:
        self._account, self._estimate = account, estimate
        self.told: Any = 0
        self.active = self.priced = True

    def count(self, event: Event) -> None:
        """Spend what an event says."""
        if isinstance(event, Used):
            cost = self._account.cost(event)
            if cost is None:
                cost = self._estimate  # as much as it may have cost at most
            if cost is None:
                self.priced = False
                self._account.lose(event.model)
                return
            self.told += cost
            self._account.spend(cost)
            if self._account.dearest is not None:
                self._account.learn(self.told)

    @property
    def left(self) -> Any:
        """What it may still cost; None where nobody knows."""
        expected = self._account.dearest if self._estimate is None else self._estimate
        return None if expected is None else max(0, expected - self.told)


class _Account:
    """What is spent of an amount, what the running calls may still cost, and who waits for one of them to end.

    Numbers are `Any`: whatever kind `cost` gives, int, float or Decimal.
    """

    def __init__(self, amount: Any, cost: Callable[[Used], Any], window_s: float | None, name: str) -> None:
        self._amount, self.cost, self._window_s = amount, cost, window_s
        self._named = f"{amount} {name}".rstrip()
        self._spent: Any = 0
        self._unpriced: str | None = None
        self.dearest: Any = None
        self._until: float | None = None
        self._running: set[_Hold] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, estimate: Any) -> _Hold:
        """Wait until there is room for a call; raises `LimitReached` when all is spent."""
        waited = False
        while True:
            self.check()
            if not self._full():
                break
            await self._turn(first=waited)
            waited = True
        hold = _Hold(self, estimate)
        self._running.add(hold)
        self._wake()
        return hold

    def leave(self, hold: _Hold, *, ended: bool) -> None:
        """Give back the room that a call did not need; one that did not end by itself does not say what one costs."""
        hold.active = False
        self._running.discard(hold)
        if ended:
            self.learn(hold.told)
        self._wake()

    def learn(self, told: Any) -> None:
        """Take in that a call costs as much as this."""
        self.dearest = max(told, self.dearest or 0)

    def check(self) -> None:
        """Raise `LimitReached` when all is spent, or nobody knows what is."""
        left = self._roll()
        if self._unpriced is not None:
            text = f"the price of the model {self._unpriced!r} is unknown, and so is what is spent of {self._named}"
        elif self._spent >= self._amount:
            text = f"the budget of {self._named} is used up: {self._spent} is spent"
        else:
            return
        self._wake()
        raise LimitReached(text, limit="budget", retry_after=left)

    def spend(self, cost: Any) -> None:
        """Add what an event cost."""
        self._roll()
        self._spent += cost
        if self._spent >= self._amount:
            self._wake()

    def lose(self, model: str) -> None:
        """Take in that a call of this model cost nobody knows what."""
        self._roll()
        self._unpriced = model
        self._wake()

    def _full(self) -> bool:
        reserved = [hold.left for hold in self._running]
        return None in reserved or bool(self._spent + sum(reserved) >= self._amount)

    def _roll(self) -> float | None:
        """Begin the next window where it is time; seconds until the one after it."""
        if self._window_s is None:
            return None
        now = monotonic()
        if self._until is None or now >= self._until:
            self._until, self._spent, self._unpriced = now + self._window_s, 0, None
        return self._until - now

    async def _turn(self, *, first: bool) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # its turn had come: the next one's, then
                self._wake()
            raise

    def _wake(self) -> None:
        """Let the first that waits look again; it wakes the next when it gets in or is refused."""
        while self._waiting:
            if not (place := self._waiting.popleft()).done():
                place.set_result(None)
                return


class _Counted:
    """A call while it runs, which the calls inside of it find in `outer`; leaving it gives its room back."""

    __slots__ = ("_account", "_hold", "_outer", "_token")

    def __init__(self, account: _Account, hold: _Hold, outer: ContextVar[_Hold | None]) -> None:
        self._account, self._hold, self._outer = account, hold, outer

    def __enter__(self) -> None:
        self._token = self._outer.set(self._hold)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold = self._hold
        refused = isinstance(error, LimitReached) and not hold.told
        ended = hold.priced and not refused and (error is None or isinstance(error, Exception))
        self._account.leave(hold, ended=ended)
        with suppress(ValueError):  # it ends in another context, where a hold that is not active means nothing
            self._outer.reset(self._token)


def budget(
    amount: Any,
    *,
    cost: Callable[[Used], Any] = total_tokens,
    estimate: Callable[[Any], Any] | None = None,
    window_s: float | None = None,
    name: str = "",
) -> Policy:
    """Refuse calls with `LimitReached(limit="budget")` once `amount` is spent; `cost` says what a `Used` costs.

    Each call reserves what it is expected to cost: `estimate(request)`, else as much as the dearest so far, and until
    one has ended calls go one at a time. A call for which the running ones leave no room waits for one of them to end,
    so that the spend exceeds the amount by one call at most where none costs more than expected. While all that ended
    were free, or failed before they told what they used, the next ones are expected to be free, too, and go together:
    give `estimate` where that may be wrong. What was told counts, however a call ends; a refused one costs nothing. A
    call inside another one of the same budget counts with that.

    Where `cost` gives None the price is unknown, not 0: the call counts as its estimate, and without one what is spent
    is unknown from then on, and the next calls are refused, until the window ends. Numbers may be int, float or
    Decimal, of one kind. After `window_s` seconds the spend begins again at 0. `name` stands behind the amount in the
    error, as in "USD of alice". Executors that are given the same policy share it. Raises `UsageError` for an amount or
    a time of 0.
    """
    if not amount > 0 or not (window_s is None or window_s > 0):
        raise UsageError(f"amount={amount!r}, window_s={window_s!r} let nothing through: give more than 0")
    account = _Account(amount, cost, window_s, name)
    outer: ContextVar[_Hold | None] = ContextVar("penstock_budget", default=None)

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            if (around := outer.get()) is not None and around.active:
                account.check()
                return await executor(request, run)
            hold = await account.enter(None if estimate is None else estimate(request))
            with _Counted(account, hold, outer):
                return await executor(request, run.listening(hold.count))

        return call

    return policy
