"""`timeout`: a limit on an executor's working time; time that the client takes to listen does not count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from types import TracebackType, coroutine
from typing import Any, Self, TypeVar

from penstock.errors import PenstockError, TimedOut, UsageError
from penstock.events import Event
from penstock.policies import Policy
from penstock.run import Executor, Run

PROMPT_S = 0.005
MOST_WATCHES = 64

Request = TypeVar("Request")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Deadline:
    """A time limit that can be paused: `with Deadline(30) as deadline`, or `await Deadline(30).over(work)`.

    Raises `TimeoutError` at its end, whatever error the work makes of that, and an error that is raised over a cancel
    does not take its place; with `async with` such errors pass as they are. With `idle_s`, each stretch between a
    `resume()` and the next `pause()` is limited too, the first one excepted. One timer serves the whole; it is not
    moved when the limit is.
    """

    __slots__ = (
        "_cancels",
        "_due",
        "_idle",
        "_idle_from",
        "_paused",
        "_seconds",
        "_since",
        "_task",
        "_timer",
        "_watch",
        "expired",
        "idled",
    )

    def __init__(self, seconds: float, *, idle_s: float | None = None) -> None:
        self._seconds = seconds
        self._due = monotonic() + seconds
        self._watch: _Watch | None = None
        self._idle = idle_s
        self._idle_from: float | None = None
        self._paused = 0
        self._since = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.expired = self.idled = False

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        self._cancels = task.cancelling() if task else 0
        if self._idle is None and monotonic() - self._due + self._seconds < PROMPT_S:
            self._watch = _watch(loop, self._seconds)
            self._watch.add(self, self._due)
        else:
            self._arm(self._left())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        if self._end() and error is not None:
            raise TimeoutError from error
        if isinstance(error, Exception) and task is not None and task.cancelling() > self._cancels:
            raise asyncio.CancelledError from error

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end() and kind is asyncio.CancelledError:
            raise TimeoutError from error

    @coroutine
    def over(self, work: Coroutine[Any, Any, Value]) -> Generator[Any, Any, Value]:
        """What `work` returns; its first step is taken at once, so that work which never waits costs no timer."""
        try:
            waiting = work.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        with self:
            try:
                while True:
                    try:
                        sent = yield waiting
                    except GeneratorExit:
                        work.close()
                        raise
                    except BaseException as error:  # thrown where the work waits, which decides what it means
                        waiting = work.throw(error)
                    else:
                        waiting = work.send(sent)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    @property
    def cancelled(self) -> bool:
        """Whether the task that works was cancelled since it began, by this limit or by anybody else."""
        return self._task is not None and self._task.cancelling() > self._cancels

    def pause(self) -> None:
        """Stop the clock; pauses nest."""
        self._paused += 1
        if self._paused == 1:
            self._since = monotonic()
            if self._watch is not None:  # where all end in the order they began: this one will not
                self._watch.waiting.pop(self, None)
                self._watch = None

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
            if self._timer is None and self._task is not None:
                self._arm(self._left())

    def touch(self) -> None:
        """Begin the idle stretch anew, where one has begun: a sign of life came."""
        if self._idle_from is not None:
            self._idle_from = monotonic()

    def _end(self) -> bool:
        """Stop the clock for good, also for a task that was left behind; whether the limit cancelled this one."""
        self._paused += 1
        if self._watch is not None:
            self._watch.waiting.pop(self, None)
            self._watch = None
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        return self.expired and task is not None and task.uncancel() <= self._cancels

    def _arm(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.check)

    def _left(self) -> float:
        due = self._due
        if self._idle is not None and self._idle_from is not None:
            due = min(due, self._idle_from + self._idle)
        return due - monotonic()

    def check(self) -> None:
        """Expire, or wait on: what a timer calls."""
        self._timer = self._watch = None
        if self._paused:
            return
        left = self._left()
        if left > 0:
            self._arm(left)
        else:
            self.idled = self._due > monotonic()
            self.expired = True
            if self._task is not None:
                self._task.cancel()


class _Watch:
    """The deadlines of one length, which end in the order they began: one timer serves them all."""

    __slots__ = ("_armed", "loop", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: dict[Deadline, float] = {}
        self._armed = False

    def add(self, deadline: Deadline, due: float) -> None:
        """Call `deadline.check()` at the moment `due` (monotonic, s), unless it is taken out of `waiting` before."""
        self.waiting[deadline] = due
        if not self._armed:
            self._armed = True
            self.loop.call_later(due - monotonic(), self._ring)

    def _ring(self) -> None:
        while self.waiting:
            first = next(iter(self.waiting))
            left = self.waiting[first] - monotonic()
            if left > 0:
                self.loop.call_later(left, self._ring)
                return
            del self.waiting[first]
            first.check()
        self._armed = False


_watches: dict[float, _Watch] = {}


def _watch(loop: asyncio.AbstractEventLoop, seconds: float) -> _Watch:
    """The watch over deadlines of this length in a loop."""
    found = _watches.get(seconds)
    if found is None or found.loop is not loop:
        if len(_watches) >= MOST_WATCHES:
            _watches.clear()  # each lives on while a deadline waits in it
        found = _watches[seconds] = _Watch(loop)
    return found


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
                return await deadline.over(executor(request, run.telling(tell)))
            except TimeoutError as late:
                if not deadline.expired:
                    raise
                raise error(f"not finished within {seconds:g} s") from late

        return call

    return policy
