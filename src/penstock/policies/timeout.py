"""`timeout`: a limit on an executor's working time; time that the client takes to listen does not count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from penstock.errors import PenstockError, TimedOut, UsageError
from penstock.events import Event
from penstock.policies import Policy
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


class Deadline:
    """A block's time limit that can be paused: `async with Deadline(30) as deadline`; raises `TimeoutError` at its end.

    With `idle_s`, each stretch between a `resume()` and the next `pause()` is limited too, the first one excepted.
    One timer serves the whole block; it is not moved when the limit is.
    """

    __slots__ = ("_due", "_idle", "_idle_from", "_paused", "_scope", "_since", "_timer", "idled")

    def __init__(self, seconds: float, *, idle_s: float | None = None) -> None:
        self._due = monotonic() + seconds
        self._idle = idle_s
        self._idle_from: float | None = None
        self._paused = 0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._scope = asyncio.timeout(None)
        self.idled = False

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._arm(self._due - monotonic())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()  # for good: a task that the block left behind must not start the clock again
        if self._timer is not None:
            self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)

    @property
    def expired(self) -> bool:
        """Whether the limit was reached."""
        return self._scope.expired()

    def pause(self) -> None:
        """Stop the clock; pauses nest."""
        self._paused += 1
        if self._paused == 1:
            self._since = monotonic()

    def resume(self) -> None:
        """Let the clock go on."""
        self._paused -= 1
        if self._paused == 0:
            now = monotonic()
            self._due += now - self._since
            if self._idle is not None:
                first, self._idle_from = self._idle_from is None, now
                if first and self._timer is not None:
                    self._timer.cancel()
                    self._arm(min(self._due - now, self._idle))
            if self._timer is None:
                self._arm(self._left())

    def touch(self) -> None:
        """Begin the idle stretch anew, where one has begun: a sign of life came."""
        if self._idle_from is not None:
            self._idle_from = monotonic()

    def _arm(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._check)

    def _left(self) -> float:
        due = self._due
        if self._idle is not None and self._idle_from is not None:
            due = min(due, self._idle_from + self._idle)
        return due - monotonic()

    def _check(self) -> None:
        self._timer = None
        if self._paused:
            return
        left = self._left()
        if left > 0:
            self._arm(left)
        else:
            self.idled = self._due > monotonic()
            self._scope.reschedule(asyncio.get_running_loop().time())


def timeout(seconds: float, *, error: Callable[[str], PenstockError] = TimedOut) -> Policy:
    """Stop the executor after `seconds` of its own time and raise `error(message)`."""
    if seconds <= 0:
        raise UsageError(f"a timeout of {seconds:g} s leaves no time: write more than 0")

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            deadline = Deadline(seconds)
            emit = run.emit

            async def tell(event: Event) -> None:
                deadline.pause()
                try:
                    await emit(event)
                finally:
                    deadline.resume()

            try:
                async with deadline:
                    return await executor(request, run.telling(tell))
            except TimeoutError as late:
                if not deadline.expired:
                    raise
                raise error(f"not finished within {seconds:g} s") from late

        return call

    return policy
