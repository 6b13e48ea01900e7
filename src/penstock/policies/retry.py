"""`retry`: repeat a call that failed in passing, before anything of it was told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec

from penstock.errors import PenstockError, UsageError
from penstock.events import Chunks, Event, Item, Reasoning, Retrying, Text
from penstock.policies import Policy
from penstock.run import Emit, Executor, Run

ANSWERS = (Chunks, Text, Item, Reasoning)
Request = TypeVar("Request")
Result = TypeVar("Result")


class Start(msgspec.Struct, gc=False):
    """The start of an answer, which may be made again until a part of it is told: `Start.of(run)`, by who calls.

    `run.telling(start.tell)` is the run to make it on.
    """

    _emit: Emit
    _task: asyncio.Task[Any] | None
    _cancels: int
    spoke: bool = False

    @classmethod
    def of(cls, run: Run) -> Start:
        """The start of what is told on a run."""
        task = asyncio.current_task()
        return cls(run.emit, task, task.cancelling() if task else 0)

    def tell(self, event: Event) -> Awaitable[None]:
        """Take in what is told, and pass it on: no coroutine of its own, which would cost more than all the rest."""
        if not self.spoke:
            self.spoke = isinstance(event, ANSWERS)
        return self._emit(event)

    @property
    def cancelled(self) -> bool:
        """Whether the call is cancelled, though an error was raised over it: nobody wants more of it."""
        return self._task is not None and self._task.cancelling() > self._cancels

    @property
    def over(self) -> bool:
        """Whether it cannot be made again."""
        return self.spoke or self.cancelled


def retry(*, attempts: int = 3, base_s: float = 0.5, max_s: float = 30.0, silent: bool = False) -> Policy:
    """Call at most `attempts` times while the error is `retryable`, with exponential back-off and full jitter.

    Waits the error's `retry_after` where it has one, and gives up when that is more than `max_s` seconds. Once the
    executor has told any part of an answer, its failure is final: an answer never starts twice. `silent` says that the
    executor tells nothing, and spares listening to it.
    """
    if attempts < 1:
        raise UsageError(f"attempts is {attempts}: the first call is one, so write 1 or more")

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            start, attempt = Start.of(run), 1
            heard = run if silent else run.telling(start.tell)
            while True:
                try:
                    return await executor(request, heard)
                except PenstockError as error:
                    if attempt == attempts or start.over or not error.retryable or (error.retry_after or 0) > max_s:
                        raise
                    wait = _wait(error, min(max_s, base_s * 2 ** (attempt - 1)))
                    attempt += 1
                    await run.emit(Retrying(attempt=attempt, wait_s=wait, error=error))
                await asyncio.sleep(wait)

        return call

    return policy


def _wait(error: PenstockError, limit: float) -> float:
    return error.retry_after if error.retry_after is not None else random.uniform(0, limit)  # noqa: S311  # jitter
