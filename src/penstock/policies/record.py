"""`record`: hand what a run said and used to a store, once, when its end is fixed and before it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from penstock.events import Fold
from penstock.messages import ChatReply, Usage
from penstock.outcome import Outcome
from penstock.policies import Policy
from penstock.run import Executor, Principal, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Record:
    """One run as it ended: `reply` folds all that was said, complete or not; `seconds` is how long it took."""

    request: Any
    reply: ChatReply
    usage: Usage
    outcome: Outcome[Any]
    principal: Principal
    seconds: float


Store: TypeAlias = Callable[[Record], Awaitable[None] | None]


def record(store: Store) -> Policy:
    """Call `store(record)` once for each run, also for a failed or cancelled one; if it raises, the run has failed."""

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            fold, began = Fold(), monotonic()

            def close(outcome: Outcome[Any]) -> Awaitable[None] | None:
                reply = fold.reply(fold.usage)
                return store(Record(request, reply, fold.usage, outcome, run.principal, monotonic() - began))

            run.closing(close)
            return await executor(request, run.listening(fold.add))

        return call

    return policy
