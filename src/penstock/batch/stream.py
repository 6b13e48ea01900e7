"""`Outcomes`: the outcomes of a batch, pulled one by one while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from penstock.batch.outcomes import BatchResponse, ItemOutcome
from penstock.events import Event
from penstock.events import Item as Told
from penstock.run import Execution


class Outcomes:
    """The outcomes of a batch as they end: `async with batch.stream(items) as outcomes: async for outcome in outcomes`.

    Leaving the block early stops the batch and waits for its end. Without the block the batch begins with the first
    outcome that is asked for, and a loop that is left early stops it. `response` is the whole, with the final usage and
    cost of each item, once all have ended.
    """

    def __init__(self, execution: Execution[BatchResponse]) -> None:
        self._execution = execution
        self._entered = False

    async def __aenter__(self) -> Self:
        self._entered = True
        await self._execution.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._execution.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[ItemOutcome]:
        return self._told() if self._entered else self._whole()

    async def _told(self) -> AsyncIterator[ItemOutcome]:
        async for event in self._execution:
            if (outcome := outcome_of(event)) is not None:
                yield outcome

    async def _whole(self) -> AsyncIterator[ItemOutcome]:
        async with self:  # in a task of its own, so that nothing of it is seen here while this generator waits
            async for outcome in self._told():
                yield outcome

    @property
    def response(self) -> BatchResponse:
        """What became of all items; raises what ended the batch, and `RuntimeError` until it has ended."""
        return self._execution.result


def outcome_of(event: Event) -> ItemOutcome | None:
    """The outcome that an event tells of the batch itself; None for any other event."""
    if isinstance(event, Told) and not event.path and isinstance(event.value, ItemOutcome):
        return event.value
    return None
