"""`Voting`: the same items asked for several times, each time in another order, and the majority's value for each.

What a model says of an item depends on where the item stands among the others. For values that are one of a few, as in
a classification, asking in several orders takes that out.

votes = await Voting(Batch(llm, Label), votes=5).run(items)
votes.get_plan(3), votes.agreement(3)
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from math import factorial
from typing import Any, TypeAlias

import msgspec

from penstock.batch.fallbacks import TIERS
from penstock.batch.items import BatchRequest, Item, ItemId, items_of, order_of
from penstock.batch.outcomes import BatchResponse, ItemOutcome
from penstock.errors import UnknownName, UsageError
from penstock.events import Item as Told
from penstock.messages import Usage
from penstock.run import Executor, Run, execute

By: TypeAlias = Callable[[Any], Any]
_encode = msgspec.json.Encoder(order="deterministic").encode


class Votes(BatchResponse, frozen=True):
    """The majority's outcomes; `agreements` are the shares of votes that stand behind each, from 0 to 1.

    An outcome's usage, cost, attempts and faults are those of all its votes; a fault's `call` counts within its vote.
    """

    agreements: tuple[float, ...] = ()

    def agreement(self, item: ItemId) -> float:
        """The share of all votes asked for that an item's value has. Raises `UnknownName`."""
        shares = {outcome.id: share for outcome, share in zip(self.outcomes, self.agreements, strict=True)}
        if item not in shares:
            raise UnknownName(f"the batch has no item {item!r}")
        return shares[item]


class Voting:
    """An executor from `BatchRequest` to `Votes`, which asks `votes` times, side by side, and tells each item's end.

    The first time the items stand in the order of their ids, then in others, which `seed` alone decides. Values are
    equal when their JSON is; `by(value)` gives the part that is voted on, where the rest may differ. The value is the
    first that was given of those that most votes are for; of several with as many, the one that the earliest vote is
    for. A fallback's value is no vote: it stands, with an agreement of 0, where no model gave any.
    """

    def __init__(
        self, batch: Executor[BatchRequest, BatchResponse], *, votes: int = 3, seed: int = 0, by: By | None = None
    ) -> None:
        if votes < 1:
            raise UsageError(f"votes={votes!r} decides nothing: give at least 1, better an odd number")
        self._batch, self._votes, self._seed = batch, votes, seed
        self._by = by

    async def run(self, items: Iterable[Any]) -> Votes:
        """The votes on items (`Item`s, mappings with an `id`, or pairs of id and data), sorted by id."""
        return await execute(self, BatchRequest.of(items_of(items)))

    async def __call__(self, request: BatchRequest, run: Run, /) -> Votes:
        """Ask as often as votes are wanted, count, and tell `Item(ItemOutcome)` for each item, in their order."""
        asking = [
            asyncio.ensure_future(self._batch(BatchRequest(order), run.child(f"vote-{number}")))
            for number, order in enumerate(orders(request.items, self._votes, self._seed), start=1)
        ]
        try:
            responses = await asyncio.gather(*asking)
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        found = [{outcome.id: outcome for outcome in response.outcomes} for response in responses]
        items = sorted((item.id for item in request.items), key=order_of)
        ends = [self._count([votes[item] for votes in found]) for item in items]
        for outcome, _ in ends:
            await run.emit(Told(outcome))
        foreign = tuple(fault for response in responses for fault in response.foreign)
        return Votes(tuple(outcome for outcome, _ in ends), foreign, tuple(share for _, share in ends))

    def _count(self, votes: Sequence[ItemOutcome]) -> tuple[ItemOutcome, float]:
        """What became of one item, and the share of votes behind it."""
        given = [(self._label(vote.value), vote) for vote in votes if vote.tier in TIERS]
        if not given:
            return _joined(next((vote for vote in votes if vote.ok), votes[0]), votes), 0.0
        # Of as many the one that was counted first comes first.
        label, count = Counter(label for label, _ in given).most_common(1)[0]
        return _joined(next(vote for own, vote in given if own == label), votes), count / self._votes

    def _label(self, value: Any) -> bytes:
        """What is compared: a value, or the part of it that is voted on, as JSON."""
        value = value if self._by is None else self._by(value)
        dump: Callable[..., Any] | None = getattr(value, "model_dump", None)
        return _encode(value if dump is None else dump(mode="json"))


def orders(items: Sequence[Item], count: int, seed: int) -> Iterator[tuple[Item, ...]]:
    """So many orders of items, first their own; none stands twice as long as there are others."""
    chance = random.Random(seed)  # noqa: S311  # to be repeatable is what it is for
    order, seen = list(range(len(items))), set[tuple[int, ...]]()
    for number in range(count):
        while tuple(order) in seen and number < factorial(min(len(order), 12)):
            chance.shuffle(order)
        seen.add(tuple(order))
        yield tuple(items[place] for place in order)


def _joined(chosen: ItemOutcome, votes: Sequence[ItemOutcome]) -> ItemOutcome:
    """An outcome with what all votes on its item took."""
    costs = [vote.cost for vote in votes]
    known = [cost for cost in costs if cost is not None]
    return msgspec.structs.replace(
        chosen,
        attempts=sum(vote.attempts for vote in votes),
        faults=tuple(fault for vote in votes for fault in vote.faults),
        usage=sum((vote.usage for vote in votes), Usage()),
        cost=sum(known, Decimal(0)) if len(known) == len(costs) else None,
    )
