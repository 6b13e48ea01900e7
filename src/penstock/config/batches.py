"""What the command line and the server share of batches: a model of the catalog as they ask it, outcomes as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from penstock.batch.outcomes import ItemFault, ItemOutcome
from penstock.chat.passthrough import DENIED, STATEFUL
from penstock.errors import LimitReached, PenstockError
from penstock.llms.prices import usd
from penstock.messages import ChatReply, ChatRequest, Usage
from penstock.run import Executor, Run

if TYPE_CHECKING:
    from penstock.llms.prices import ModelInfo

_OWN = frozenset(("messages", "model", "stream", "stream_options", "response_format", "n", "tools", "functions"))


class Models(Protocol):
    """Where a batch finds its model; `penstock.config.Catalog` is one. Each raises `NotFound`."""

    def find(self, model: str) -> Executor[ChatRequest, ChatReply]:
        """The executor that answers for a model name."""
        ...

    def provider(self, model: str) -> str:
        """Whose it is."""
        ...

    def info(self, model: str) -> ModelInfo | None:
        """What is known of it."""
        ...


class Asked:
    """A model of the catalog as a batch asks it: whose it is, what is known of it, and in `calls` how often it was.

    `waiting` are the calls that wait for a rate limit now, `failures` has the last error of each kind that came.
    Where a rate is used up it waits for the next call, but for no longer than `patience_s` seconds; a budget is not
    waited for. Raises `NotFound` for a name that the catalog does not have.
    """

    def __init__(self, catalog: Models, model: str, *, patience_s: float = 0.0) -> None:
        self._chat = catalog.find(model)
        self.provider = catalog.provider(model)
        self._info = catalog.info(model)
        self._patience_s = patience_s
        self.calls = self.waiting = 0
        self.failures: dict[type[PenstockError], PenstockError] = {}

    def info_of(self, _: str) -> ModelInfo | None:
        """What is known of it, whatever it is called."""
        return self._info

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Ask it."""
        self.calls += 1
        while True:
            try:
                return await self._chat(request, run)
            except PenstockError as error:
                wait_s = error.retry_after if isinstance(error, LimitReached) and error.limit != "budget" else None
                if wait_s is None or wait_s > self._patience_s:
                    self.failures[type(error)] = error
                    raise
            self.waiting += 1
            try:
                await asyncio.sleep(wait_s)
            finally:
                self.waiting -= 1


def refused(params: Mapping[str, Any]) -> str:
    """The first field of some requests that only a batch itself, or the configuration, may set; empty for none."""
    return next((name for name in params if name in _OWN or name in DENIED or name in STATEFUL), "")


def outcome_row(outcome: ItemOutcome) -> dict[str, Any]:
    """How an item ended, as JSON types: its value where it has one, and what was wrong on the way."""
    row: dict[str, Any] = {"id": outcome.id}
    if outcome.ok:
        row |= {"value": msgspec.to_builtins(outcome.value), "tier": outcome.tier}
    row["attempts"] = outcome.attempts
    if outcome.faults or not outcome.ok:
        row["faults"] = [fault_row(fault) for fault in outcome.faults]
    return row


def fault_row(fault: ItemFault) -> dict[str, Any]:
    """What was wrong, as JSON types."""
    row = {"kind": fault.kind.value, "message": fault.message, "call": fault.call}
    return {**row, "said": fault.said} if fault.said else row


def usage_row(usage: Usage) -> dict[str, int]:
    """The tokens of an item or of a whole batch, as JSON types."""
    found = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": usage.total}
    return {**found, "cached_tokens": usage.cached} if usage.cached else found


def cost_row(cost: Decimal | None) -> str | None:
    """USD as text; None where a price is not known."""
    return None if cost is None else usd(cost)
