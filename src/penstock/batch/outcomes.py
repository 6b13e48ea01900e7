"""What becomes of the items of a batch: one `ItemOutcome` for each, with all that went wrong on the way."""

from __future__ import annotations

from bisect import bisect_left
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec

from penstock.batch.items import ItemId, order_of
from penstock.errors import PenstockError, UnknownName
from penstock.messages import Usage


class FaultKind(StrEnum):
    """What can be wrong with an item's part of an answer, or with an element that belongs to nobody (`FOREIGN`)."""

    MALFORMED = "malformed"
    SCHEMA = "schema"
    DUPLICATE = "duplicate"
    FOREIGN = "foreign"
    MISSING = "missing"
    TRUNCATED = "truncated"
    CALL = "call"
    FALLBACK = "fallback"


def words_of(error: Exception) -> str:
    """What an error says; of one that is not Penstock's only what it is, as its text may be nobody's business."""
    said = str(error) if isinstance(error, PenstockError) else "unexpected: the log says more"
    return f"{type(error).__name__}: {said}"


class ItemFault(msgspec.Struct, frozen=True):
    """One thing that went wrong in one call: what, in words, in which call (counted from 1), what was said (its start).

    Of a `CALL` the call itself failed, of a `FALLBACK` its rule: the error's class and message are the words; of a call
    whose error is not Penstock's the class alone, and the rest is logged.
    """

    kind: FaultKind
    message: str
    call: int
    said: str = ""


class ItemOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one item ended: its value, or none.

    `tier` is what gave the value: "batch", "single", or the name of a fallback; empty where nothing did. `attempts` are
    the calls that asked for it, `faults` what was wrong in them. `usage` and `cost` (USD, None where a price is not
    known) are its share of those calls: the shares of all items are exactly what the calls used.
    """

    id: ItemId
    value: Any = None
    tier: str = ""
    attempts: int = 0
    faults: tuple[ItemFault, ...] = ()
    usage: Usage = msgspec.field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return bool(self.tier)


class BatchResponse(msgspec.Struct, frozen=True):
    """The outcomes of all items, in the order of their ids; `foreign` are elements of answers that belong to nobody."""

    outcomes: tuple[ItemOutcome, ...] = ()
    foreign: tuple[ItemFault, ...] = ()

    def __len__(self) -> int:
        return len(self.outcomes)

    def get_plan(self, item: ItemId) -> Any:
        """The value of an item; None where it has none. Raises `UnknownName`."""
        if isinstance(item, bool):  # else it were the number that it equals
            raise UnknownName(f"the batch has no item {item!r}")
        place = bisect_left(self.outcomes, order_of(item), key=lambda outcome: order_of(outcome.id))
        if place == len(self.outcomes) or order_of(self.outcomes[place].id) != order_of(item):
            raise UnknownName(f"the batch has no item {item!r}")
        return self.outcomes[place].value

    @property
    def usage(self) -> Usage:
        """What all calls used."""
        return sum((outcome.usage for outcome in self.outcomes), Usage())

    @property
    def cost(self) -> Decimal | None:
        """What all calls cost in USD; None as soon as one is not known."""
        costs = [outcome.cost for outcome in self.outcomes]
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal(0)) if len(known) == len(costs) else None
