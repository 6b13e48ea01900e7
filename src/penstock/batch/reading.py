"""`Reading`: the answer of one call while it arrives, and what it says about each item that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from time import monotonic
from typing import Any, TypeAlias

import msgspec

from penstock.batch.element import Element
from penstock.batch.items import Item, ItemId, Key
from penstock.batch.outcomes import FaultKind, ItemFault, words_of
from penstock.batch.planner import Lesson
from penstock.batch.scanner import Scanner
from penstock.batch.schema import ItemSchema, WrongElement, head_of
from penstock.batch.sharing import divided, divided_cost, with_rest
from penstock.errors import BadAnswer, PenstockError, TooLong
from penstock.events import Chunks, Event, Text, Used, summed
from penstock.messages import ChatReply, Usage

_log = logging.getLogger("penstock.batch")
SHOWN = 200
MOST_FAULTS = 1000
"""Of one call so many faults are noted; an answer that does not end has no end of them."""

Accept: TypeAlias = Callable[[Item, Any], Awaitable[None]]


@dataclass(slots=True)
class Asked:
    """What one call gave: who was accepted, what was wrong, and what each item has used of it.

    `error` is why it failed, `lesson` what a planner learns from it.
    """

    accepted: set[ItemId] = field(default_factory=set[ItemId])
    faults: dict[ItemId, list[ItemFault]] = field(default_factory=dict[ItemId, list[ItemFault]])
    foreign: list[ItemFault] = field(default_factory=list[ItemFault])
    usages: dict[ItemId, Usage] = field(default_factory=dict[ItemId, Usage])
    costs: dict[ItemId, Decimal | None] = field(default_factory=dict[ItemId, Decimal | None])
    error: Exception | None = None
    lesson: Lesson | None = None


class Reading:
    """Takes what a model tells in call `number`; `accept` is awaited with each value, in the order they close in.

    `weights` say how the prompt's tokens are divided among the items.
    """

    def __init__(
        self, number: int, items: Mapping[Key, Item], *, schema: ItemSchema, accept: Accept, weights: Sequence[int]
    ) -> None:
        self._asked = Asked()
        self._number, self._schema, self._accept, self._weights = number, schema, accept, weights
        self._items = {item.id: item for item in items.values()}
        self._by_key = {str(key): item for key, item in items.items()}
        self._scanner: Scanner[Any] = Scanner(msgspec.Raw, fields=schema.fields, keys=self._by_key)
        self._usage = Usage()
        self._cost: Decimal | None = Decimal(0)
        self._counted = False
        self._length, self._lengths = 0, dict.fromkeys(self._items, 0)
        self._blamed: set[ItemId] = set()
        self._faults = 0
        self._began, self._first_s, self._waited_s = monotonic(), 0.0, 0.0

    @property
    def begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self._length > 0

    def hear(self, event: Event) -> Awaitable[None] | None:
        """Take in what is told during the call: the answer's own words, and what anybody below it has used."""
        if isinstance(event, (Chunks, Text)):
            return None if event.path else self._read(event.text)
        if isinstance(event, Used):
            self._counted = True
            self._usage, self._cost = self._usage + event.usage, summed(self._cost, event)
        return None

    async def end(self, reply: ChatReply) -> Asked:
        """Take in that the answer has ended; what nobody told of it is read now."""
        if not self._length and (reading := self._read(reply.content)) is not None:
            await reading
        if not self._counted:
            self._usage, self._cost = reply.usage or Usage(partial=True), None
        ending = self._scanner.close()
        await self._take_all(ending.items)
        cut = reply.finish_reason == "length" or ending.end in ("truncated", "large")
        if cut:
            self._blame_rest(FaultKind.TRUNCATED, "the answer ended before this item")
        else:
            self._blame_rest(FaultKind.MISSING, "the answer has no element for this item")
        return self._whole(cut=cut)

    def fail(self, error: Exception) -> Asked:
        """Take in that the call failed: what was not accepted by then is still wanted."""
        self._asked.error = error
        if not isinstance(error, PenstockError):
            _log.error("call %d of a batch failed", self._number, exc_info=error)
        self._blame_rest(FaultKind.CALL, words_of(error))
        return self._whole()

    def _read(self, text: str) -> Awaitable[None] | None:
        """Take in a piece of the answer; what is awaited takes the elements that it completes."""
        self._length += len(text)
        elements = self._scanner.feed(text)
        if self._scanner.full:
            return self._take_last(elements)
        return self._take_all(elements) if elements else None

    async def _take_last(self, elements: Iterable[Element[Any]]) -> None:
        await self._take_all(elements)
        raise BadAnswer(f"{self._length} characters came, and no end: no more of the answer is read")

    async def _take_all(self, elements: Iterable[Element[Any]]) -> None:
        for element in elements:
            await self._take(element)

    async def _take(self, element: Element[Any]) -> None:
        """Take in one element: a value, or what is wrong with it."""
        text = element.text
        if element.fault is not None:
            kind = FaultKind.TRUNCATED if element.fault == "truncated" else FaultKind.MALFORMED
            named = self._schema.key_in(text) if element.key is None else element.key
            self._refuse(self._blamable(named), WrongElement(element.error, kind=kind), text, named)
            return
        head = head_of(text)
        named = element.key if head.agent_id is msgspec.UNSET else head.agent_id
        item = self._of(named)
        if item is None or item.id in self._asked.accepted:
            self._refuse(item, WrongElement("", kind=FaultKind.FOREIGN), text, named)
            return
        try:
            value = self._schema.value(text, head, item)
        except WrongElement as error:
            self._refuse(item, error, text, named)
        else:
            await self._give(item, value, len(text))

    async def _give(self, item: Item, value: Any, length: int) -> None:
        began = monotonic()
        if not self._asked.accepted:
            self._first_s = began - self._began
        self._asked.accepted.add(item.id)
        self._lengths[item.id] += length
        await self._accept(item, value)
        self._waited_s += monotonic() - began

    def _of(self, named: Any) -> Item | None:
        """Whose key this is, be it written as a number or as text."""
        if isinstance(named, bool) or not isinstance(named, int | str):
            return None
        return self._by_key.get(str(named))

    def _blamable(self, named: Any) -> Item | None:
        """Whose a damaged element is: of the one item that was asked for, where no key can be seen in it."""
        return next(iter(self._items.values())) if named is None and len(self._items) == 1 else self._of(named)

    def _refuse(self, item: Item | None, error: WrongElement, said: str, named: Any) -> None:
        """Note what is wrong with an element, with its item or with those that belong to nobody."""
        kind, message = error.kind, error.message
        if item is not None:
            self._lengths[item.id] += len(said)
            if item.id in self._asked.accepted:
                kind, message = FaultKind.DUPLICATE, "the item has a value already"
            self._blame(item.id, kind, message, said)
        elif kind is not FaultKind.TRUNCATED or named is not None:  # else the items that are not there say it
            if kind is FaultKind.FOREIGN or named is not None:
                kind, message = FaultKind.FOREIGN, f"nobody has the key {named!r:.100}"
            self._note(self._asked.foreign, kind, message, said)

    def _blame(self, item: ItemId, kind: FaultKind, message: str, said: str = "") -> None:
        self._blamed.add(item)
        self._note(self._asked.faults.setdefault(item, []), kind, message, said)

    def _note(self, faults: list[ItemFault], kind: FaultKind, message: str, said: str) -> None:
        self._faults += 1
        if self._faults <= MOST_FAULTS or not faults:
            faults.append(ItemFault(kind, message, self._number, said[:SHOWN]))

    def _blame_rest(self, kind: FaultKind, message: str) -> None:
        """Note what became of the items of which the answer says nothing."""
        for item in self._items:
            if item not in self._asked.accepted and item not in self._blamed:
                self._blame(item, kind, message)

    def _whole(self, *, cut: bool = False) -> Asked:
        """What the call gave, with what it used divided among its items."""
        asked, sizes = self._asked, list(self._lengths.values())
        usages = divided(self._usage, self._weights, with_rest(sizes, max(0, self._length - sum(sizes))))
        asked.usages = dict(zip(self._items, usages, strict=True))
        asked.costs = dict(zip(self._items, divided_cost(self._cost, usages), strict=True))
        if asked.error is None or isinstance(asked.error, TooLong):
            asked.lesson = Lesson(
                len(self._items),
                len(asked.accepted),
                seconds=monotonic() - self._began - self._waited_s,
                first_s=self._first_s,
                tokens=self._usage.completion,
                cut=cut,
            )
        return asked
