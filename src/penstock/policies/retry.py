"""`retry`: repeat a call that failed in passing, before anything of it was told."""

from __future__ import annotations

import asyncio
import random
from typing import TypeVar

from penstock.errors import PenstockError, UsageError
from penstock.events import Chunks, Event, Item, Reasoning, Retrying, Text
from penstock.policies import Policy
from penstock.run import Executor, Run

ANSWERS = (Chunks, Text, Item, Reasoning)
Request = TypeVar("Request")
Result = TypeVar("Result")


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
            spoke = False

            def note(event: Event) -> None:
                nonlocal spoke
                if isinstance(event, ANSWERS):
                    spoke = True

            task = asyncio.current_task()
            cancels = task.cancelling() if task else 0
            heard = run if silent else run.listening(note)
            for attempt in range(1, attempts):
                try:
                    return await executor(request, heard)
                except PenstockError as error:
                    if spoke or not error.retryable or (error.retry_after or 0) > max_s:
                        raise
                    if task is not None and task.cancelling() > cancels:  # raised over a cancel: nobody wants more
                        raise
                    wait = _wait(error, min(max_s, base_s * 2 ** (attempt - 1)))
                    await run.emit(Retrying(attempt=attempt + 1, wait_s=wait, error=error))
                await asyncio.sleep(wait)
            return await executor(request, heard)

        return call

    return policy


def _wait(error: PenstockError, limit: float) -> float:
    return error.retry_after if error.retry_after is not None else random.uniform(0, limit)  # noqa: S311  # jitter
