"""`Planner`: which items share a call: as many as pay, fit and arrive in time, and none of different groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import msgspec

from penstock.batch.items import Item, ItemId
from penstock.errors import UsageError
from penstock.llms.prices import BYTES_A_TOKEN, ModelInfo

LEAST_SAVED = 0.1
SMOOTHING = 0.3
SPARE = 64
THOUGHT = 8192
"""Tokens of an answer that are kept free beside those of its items; more for a model that may reason before it."""


class Lesson(msgspec.Struct, frozen=True):
    """How a call went: items asked for and accepted, its seconds and those to its first value, the tokens it gave.

    `cut`: its answer ended too early.
    """

    asked: int
    accepted: int
    seconds: float = 0.0
    first_s: float = 0.0
    tokens: int = 0
    cut: bool = False


class Planner:
    """Cuts items into calls of a size that it learns: one more after a good call, half as many after a bad one.

    A call is good when every item of it was accepted, within `latency_target_s` seconds where that is given. One call
    never holds more than `max_batch_size` items, more output than `max_output_tokens` (of which an item is expected to
    take as many as the ones before it did), a longer prompt than `max_prompt_tokens`, or more than is expected to
    arrive within the target. Where what the calls share is so small that a common call saves less than a tenth of the
    prompts, each item has a call of its own: those run side by side and end sooner.

    `tokens_per_item` is what the answer about one item is expected to take before any has come: give it where values
    are long, as a first answer that is cut costs its rest a second call. Limits that are not given are those of the
    model, where its name is known. It learns over all that it plans: give each model its own, and keep it as long as
    its `Batch`. Raises `UsageError` for sizes that let nothing through.
    """

    def __init__(
        self,
        max_batch_size: int = 10,
        *,
        latency_target_s: float | None = None,
        max_output_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        tokens_per_item: float = 200.0,
    ) -> None:
        if max_batch_size < 1 or tokens_per_item <= 0:
            text = f"max_batch_size={max_batch_size!r}, tokens_per_item={tokens_per_item!r} let nothing through"
            raise UsageError(f"{text}: give at least 1, and more than 0")
        self.max_batch_size = self.size = max_batch_size
        self.tokens_per_item = tokens_per_item
        self._target_s = latency_target_s
        self._given = self._max_output, self._max_prompt = max_output_tokens, max_prompt_tokens
        self._spare = SPARE
        self._first_s = self._item_s = 0.0

    def within(self, model: ModelInfo | None) -> None:
        """Keep to what this model can take and give, and no longer to another's, where no other limit was given."""
        model = model or ModelInfo()
        self._max_output, self._max_prompt = self._given
        self._max_output = self._max_output or model.max_output_tokens
        if model.context_window is not None:
            room = min(self._max_output or model.context_window, model.context_window // 2)
            self._max_prompt = self._max_prompt or model.context_window - room
        self._spare = THOUGHT if "reasoning" in model.capabilities else SPARE

    def calls(
        self, items: Iterable[Item], *, shared: int = 0, sizes: Mapping[ItemId, int] | None = None, most: int = 0
    ) -> Iterator[tuple[Item, ...]]:
        """The items of each call, in order, at most `most` where that is given; the size is that of the moment.

        `shared` and `sizes` are bytes of a prompt: what all calls say, and what each item adds.
        """
        sizes = sizes or {}
        for _, several in groupby(sorted(items, key=lambda item: item.group), key=lambda item: item.group):
            members = [*several]
            each = [sizes.get(item.id, 0) for item in members]
            together = self._pays(shared, each)
            start = 0
            while start < len(members):
                size = min(self._fitting(), most or self.max_batch_size) if together else 1
                end = start + self._short(shared, each[start : start + size])
                yield tuple(members[start:end])
                start = end

    def room(self, items: int, *, roomy: bool = False) -> int:
        """The `max_tokens` of an answer about so many items: half as many again as they are expected to take.

        `roomy`: eight times that, for items whose answer was cut before.
        """
        wanted = int((8 if roomy else 1) * 1.5 * self.tokens_per_item * items) + self._spare
        return wanted if self._max_output is None else min(wanted, self._max_output)

    def learn(self, call: Lesson) -> None:
        """Take in how a call went. One that had fewer items than it might have says nothing about the size."""
        if call.tokens and (call.accepted or call.cut):
            each = call.tokens / (call.accepted or 0.5)
            longer = call.cut and each > self.tokens_per_item
            self.tokens_per_item = each if longer else _smoothed(self.tokens_per_item, each)
        if call.accepted > 1:
            self._first_s = _smoothed(self._first_s, call.first_s)
            self._item_s = _smoothed(self._item_s, (call.seconds - call.first_s) / (call.accepted - 1))
        if call.asked < self.size:
            return
        if call.accepted < call.asked or (self._target_s is not None and call.seconds > self._target_s):
            self.size = min(self.size, max(1, call.asked // 2))
        else:
            self.size = min(self.max_batch_size, self.size + 1)

    def _fitting(self) -> int:
        """How many items are expected to arrive within the limits."""
        size = self.size
        if self._max_output is not None:
            size = min(size, int((self._max_output - self._spare) / self.tokens_per_item))
        if self._target_s is not None and self._item_s:
            size = min(size, 1 + int((self._target_s - self._first_s) / self._item_s))
        return max(1, size)

    def _short(self, shared: int, sizes: Sequence[int]) -> int:
        """How many of these items a prompt has room for, one at least."""
        if self._max_prompt is None:
            return len(sizes)
        left, count = self._max_prompt * BYTES_A_TOKEN - shared, 0
        while count < len(sizes) and sizes[count] <= left:
            left -= sizes[count]
            count += 1
        return max(1, count)

    def _pays(self, shared: int, sizes: Sequence[int]) -> bool:
        alone = shared * len(sizes) + sum(sizes)
        return not alone or shared * (len(sizes) - 1) >= LEAST_SAVED * alone


def _smoothed(known: float, seen: float) -> float:
    return known + SMOOTHING * (seen - known) if known else seen
