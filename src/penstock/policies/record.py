"""`record`: hand what a run said and used to a store, once, when its end is fixed and before it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from penstock.events import Fold
from penstock.messages import ChatReply, Usage
from penstock.outcome import Failed, Outcome
from penstock.policies import Policy
from penstock.run import Executor, Principal, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Record:
    """One run as it ended: `reply` folds all that was said, complete or not; `seconds` is how long it took.

    `cost` is what it cost in USD; None where that is not known.
    """

    request: Any
    reply: ChatReply
    usage: Usage
    outcome: Outcome[Any]
    principal: Principal
    seconds: float
    cost: Decimal | None = None


Store: TypeAlias = Callable[[Record], Awaitable[None] | None]


def record(store: Store) -> Policy:
    """Call `store(record)` once for each call, when its run's end is fixed; if it raises, the run has failed.

    The outcome is that of the call where it failed, else that of its run.
    """

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            fold, began = Fold(), monotonic()
            seconds: float | None = None
            failure: Failed | None = None

            def close(outcome: Outcome[Any]) -> Awaitable[None] | None:
                took = monotonic() - began if seconds is None else seconds
                reply = fold.reply(fold.usage)
                return store(Record(request, reply, fold.usage, failure or outcome, run.principal, took, fold.cost))

            run.closing(close)
            try:
                return await executor(request, run.listening(fold.add))
            except Exception as error:  # noted, and raised again
                failure = Failed(error)
                raise
            finally:
                seconds = monotonic() - began

        return call

    return policy
