"""The items of a batch: in one order, whoever queued them first, and each with the key that an answer names it by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias, TypeGuard

import msgspec

from penstock.errors import UsageError
from penstock.messages import is_object

ItemId: TypeAlias = int | str
Key: TypeAlias = int | str

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_LARGEST = 2**53
"""Integers beyond it are not the same in every JSON reader."""


class Item(msgspec.Struct, frozen=True):
    """One item: the caller's id, and what a model is told of it (JSON). Items of different `group`s share no prompt."""

    id: ItemId
    data: Any
    group: str = ""


class BatchRequest(msgspec.Struct, frozen=True):
    """Items in the order of their ids, integers before strings; `of` makes one."""

    items: tuple[Item, ...]

    @classmethod
    def of(cls, items: Iterable[Any]) -> BatchRequest:
        """A request of items in any order: `Item`s, objects with an `id`, or pairs of an id and data.

        Raises `UsageError` for what is none of these, and for an id that is neither number nor text, or stands twice.
        """
        found = list(items_of(items))
        seen: set[ItemId] = set()
        for item in found:
            given: Any = item.id
            if isinstance(given, bool) or not isinstance(given, int | str) or given == "":
                raise UsageError(f"the id {given!r} names no item: give an integer or some text")
            if item.id in seen:
                raise UsageError(f"two items have the id {item.id!r}: give each one of its own")
            seen.add(item.id)
        return cls(tuple(sorted(found, key=lambda item: order_of(item.id))))

    def __len__(self) -> int:
        return len(self.items)


def items_of(given: Iterable[Any]) -> Iterator[Item]:
    """Items as they are, objects or pydantic models with an `id` (see `item_of`), or pairs of an id and data.

    Raises `UsageError` for what is none of these.
    """
    several: Any = given
    if not isinstance(several, Iterable):
        raise UsageError(f"{given!r:.80} holds no items: give a list of them")
    for one in map(plain, given):
        if isinstance(one, Item):
            yield one
        elif is_object(one) and "id" in one:
            yield item_of(one, one["id"])
        elif _is_pair(one):
            yield Item(one[0], one[1])
        else:
            raise UsageError(f"{one!r:.80} is no item: give an Item, an object with an 'id', or a pair of id and data")


def item_of(told: Mapping[str, Any], name: ItemId) -> Item:
    """The item of this name that an object tells of: its `group` is text, all else but the `id` is its data.

    Where a member `data` is all else, that is the data. Raises `UsageError` for a group that is no text.
    """
    group = told.get("group", "")
    if not isinstance(group, str):
        raise UsageError(f"the group {group!r:.80} of the item {name!r:.80} is no text: give some")
    rest = {member: value for member, value in told.items() if member not in {"id", "group"}}
    return Item(name, rest["data"] if rest.keys() == {"data"} else rest, group)


def plain(value: Any) -> Any:
    """A pydantic model as JSON types; any other value as it is."""
    dump = None if isinstance(value, type) else getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json")


def _is_pair(given: Any) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(given, tuple) and given[2:] == () != given[1:]


def order_of(item: ItemId) -> tuple[bool, int | str]:
    """Where an id stands among others: integers by size, then strings."""
    return isinstance(item, str), item


def keys_of(items: Sequence[Item], *, text: bool = False) -> dict[Key, Item]:
    """The items by the keys that an answer names them by: their own ids where a model can repeat them, else opaque.

    A key never says where an item stands. An id that is text but reads like another's integer gets an opaque one.
    With `text` all keys are strings.
    """
    integers = {str(item.id) for item in items if isinstance(item.id, int)}
    own = {item.id for item in items if _repeatable(item.id, integers)}
    keys: dict[Key, Item] = {}
    for item in items:
        key = item.id if item.id in own else _opaque(item.id, own, keys)
        keys[str(key) if text else key] = item
    return keys


def _repeatable(item: ItemId, integers: AbstractSet[str]) -> bool:
    if isinstance(item, int):
        return abs(item) < _LARGEST
    return _TOKEN.fullmatch(item) is not None and item not in integers


def _opaque(item: ItemId, own: Container[Key], keys: Container[Key]) -> str:
    digest = hashlib.sha256(repr(item).encode()).hexdigest()
    size = 8
    while (key := f"k{digest[:size]}") in own or key in keys:
        size += 1
    return key
