"""The root of a run: the one place that knows its listener and its closing hooks, and that tells its end, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from penstock.events import Event, Told
from penstock.outcome import Cancelled, Failed, Outcome

TAIL_S = 5.0

Listener: TypeAlias = Callable[[Event], Awaitable[None] | None]
Closing: TypeAlias = Callable[[Outcome[Any]], Awaitable[None] | None]

Value = TypeVar("Value")


class ListenerFailed(BaseException):
    """The listener of a run failed: stops the run past every policy, as a cancel does; its cause is the failure."""


class Root:
    """The one place that knows a run's listener and closing hooks, and tells its end."""

    __slots__ = ("_interrupted", "_listener", "failure", "hooks")

    def __init__(self, listener: Listener | None, hooks: Iterable[Closing]) -> None:
        self._listener = listener
        self._interrupted = False
        self.failure: Exception | None = None
        self.hooks: tuple[Closing, ...] = tuple(hooks)

    async def tell(self, event: Event) -> None:
        """Pass an event to the listener; not to one that failed, nor, while being cancelled, to one interrupted."""
        if not isinstance(event, Told):
            raise TypeError(f"{type(event).__name__} is told by the root alone")
        listener = self._listener
        if listener is None or (self._interrupted and _ending()):
            return
        try:
            if (taking := listener(event)) is not None:
                await taking
        except Exception as error:  # the client's fault, not the executor's: no policy may catch it
            self._listener, self.failure = None, error
            raise ListenerFailed(str(error)) from error
        except BaseException:  # cancelled: the run, or only a part that the executor goes on without
            self._interrupted = True
            raise

    async def settle(self, outcome: Outcome[Any]) -> Outcome[Any]:
        """Store the end, then tell it, through any number of cancels; the last of them then propagates.

        After a failed listener it is `Cancelled`, whatever the executor made of it. Plain functions are called here;
        the first that must be awaited moves the rest to a task of its own.
        """
        if self.failure is not None:
            outcome = Cancelled(f"listener failed: {self.failure}")
        if self._listener is None and not self.hooks:
            return outcome
        tail = self._tail(outcome)
        try:
            waiting = tail.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        task = asyncio.ensure_future(_bounded(tail, waiting))
        await outlive(task)
        return task.result()

    def _tail(self, outcome: Outcome[Any]) -> Generator[Awaitable[None], BaseException | None, Outcome[Any]]:
        """Call every closing hook, the newest first, then tell the outcome; yields what must be awaited."""
        listener, self._listener = self._listener, None  # a task the executor left behind is heard no more
        while self.hooks:
            hook, self.hooks = self.hooks[-1], self.hooks[:-1]
            try:
                if (storing := hook(outcome)) is not None:
                    yield storing
            except Exception as error:  # storing failed, whatever the reason: the end is failed
                outcome = Failed(error)
        if listener is not None:
            try:
                if (taking := listener(outcome)) is not None:
                    yield taking
            except Exception:  # the end is fixed: a listener that cannot hear it changes nothing
                return outcome
        return outcome


async def _bounded(tail: Generator[Awaitable[None], None, Value], waiting: Awaitable[None]) -> Value:
    """Await what the tail yields, 5 s for all of it: past that each fails with `TimeoutError`."""
    deadline = asyncio.get_running_loop().time() + TAIL_S
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await waiting
        except Exception as error:  # thrown where it was awaited, which decides what it means
            step = partial(tail.throw, error)
        except asyncio.CancelledError:  # its own, or of a loop that shuts down: the hooks after it are still called
            step = partial(tail.throw, RuntimeError("storing the end was cancelled"))
        else:
            step = partial(tail.send, None)
        try:
            waiting = step()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _ending() -> bool:
    """Whether the current task is being cancelled: what it tells now, it tells on its way out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def outlive(task: asyncio.Task[Any]) -> None:
    """Wait for a task's end even when cancelled meanwhile; the last cancel then propagates."""
    cancel: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        raise cancel


_ABANDONED: set[asyncio.Task[Any]] = set()


def abandon(root: Root) -> None:
    """Settle a run whose coroutine was closed, not awaited: in a task, as a closing coroutine cannot wait."""
    settling = root.settle(Cancelled("abandoned"))
    try:
        task = asyncio.get_running_loop().create_task(settling)
    except RuntimeError:  # closed after its loop: nobody is left to tell
        settling.close()
        return
    _ABANDONED.add(task)
    task.add_done_callback(_ABANDONED.discard)
