"""What a JSON schema says, as far as the demo model reads it, and how two schemas become one.

The keywords are those of JSON Schema 2020-12 (https://json-schema.org/draft/2020-12/json-schema-validation).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

Kind: TypeAlias = Literal["null", "boolean", "integer", "number", "string", "array", "object"]
Number: TypeAlias = int | float
MOST_OPTIONS = 64


class Schema(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One schema; keywords that are not named here are not looked at."""

    ref: str | None = msgspec.field(default=None, name="$ref")
    type: Kind | list[Kind] | None = None
    const: Any = UNSET
    enum: list[Any] | None = None
    default: Any = UNSET
    all_of: list[Sub] | None = None
    any_of: list[Sub] | None = None
    one_of: list[Sub] | None = None
    not_: Sub | None = msgspec.field(default=None, name="not")
    minimum: Number | None = None
    maximum: Number | None = None
    exclusive_minimum: Number | None = None
    exclusive_maximum: Number | None = None
    multiple_of: Number | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    format: str | None = None
    items: Sub | None = None
    prefix_items: list[Sub] | None = None
    min_items: int | None = None
    max_items: int | None = None
    unique_items: bool | None = None
    properties: dict[str, Sub] | None = None
    pattern_properties: dict[str, Sub] | None = None
    additional_properties: Sub | None = None
    required: list[str] | None = None
    min_properties: int | None = None
    max_properties: int | None = None

    @property
    def kinds(self) -> list[Kind]:
        """The types it names, or the one its keywords speak of, or all."""
        if self.type is not None:
            return self.type if isinstance(self.type, list) else [self.type]
        return [
            kind for kind, words in _SPOKEN_OF.items() if any(getattr(self, word) is not None for word in words)
        ] or _ALL

    def child(self, name: str) -> Schema:
        """What the value of a property must fit, patterns of names left out."""
        if self.properties and name in self.properties:
            return as_schema(self.properties[name])
        return as_schema(True if self.additional_properties is None else self.additional_properties)

    def item(self, index: int) -> Schema:
        """What an item must fit."""
        prefix = self.prefix_items or []
        if index < len(prefix):
            return as_schema(prefix[index])
        return as_schema(True if self.items is None else self.items)


Sub: TypeAlias = Schema | bool
_ALL: list[Kind] = ["null", "boolean", "integer", "number", "string", "array", "object"]
_SPOKEN_OF: dict[Kind, tuple[str, ...]] = {
    "object": ("properties", "pattern_properties", "additional_properties", "required", "min_properties"),
    "array": ("items", "prefix_items", "min_items", "max_items", "unique_items"),
    "string": ("min_length", "max_length", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusive_minimum", "exclusive_maximum", "multiple_of"),
}

NOTHING = Schema(enum=[])


def as_schema(schema: Sub, /) -> Schema:
    """`true` as the schema that everything fits, `false` as the one that nothing fits."""
    if isinstance(schema, bool):
        return Schema() if schema else NOTHING
    return schema


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def merged(one: Schema, other: Schema) -> Schema:
    """A schema that fits only what fits both, where the keywords can be joined; else it keeps the first's."""
    changes: dict[str, Any] = {}
    for name in Schema.__struct_fields__:
        ours, theirs = getattr(one, name), getattr(other, name)
        if _said(theirs):
            join = _JOINS.get(name)
            if not _said(ours):
                changes[name] = theirs
            elif join is not None:
                changes[name] = join(ours, theirs)
    if one.properties is not None or other.properties is not None:
        changes["properties"] = _joined_properties(one, other)
    if one.const is not UNSET and other.const is not UNSET and not equal(one.const, other.const):
        changes["enum"] = []
    return msgspec.structs.replace(one, **changes)


def _said(value: Any) -> bool:
    return value is not None and not isinstance(value, UnsetType)


def _common_kinds(one: Kind | list[Kind], other: Kind | list[Kind]) -> list[Kind]:
    ours: list[Kind] = one if isinstance(one, list) else [one]
    theirs: list[Kind] = other if isinstance(other, list) else [other]
    both: list[Kind] = [kind for kind in ours if kind in theirs or (kind == "integer" and "number" in theirs)]
    return both + [kind for kind in theirs if kind == "integer" and "number" in ours and kind not in ours]


def _both(one: Sub, other: Sub, /) -> Schema:
    return Schema(all_of=[one, other])


def _each_with_each(ours: list[Sub], theirs: list[Sub]) -> list[Any]:
    if len(ours) * len(theirs) > MOST_OPTIONS:
        return ours
    return [_both(one, other) for one, other in product(ours, theirs)]


def _joined_properties(one: Schema, other: Schema) -> dict[str, Schema]:
    names = {**(one.properties or {}), **(other.properties or {})}
    return {name: _both(one.child(name), other.child(name)) for name in names}


_JOINS: dict[str, Callable[[Any, Any], Any]] = {
    "type": _common_kinds,
    "enum": lambda ours, theirs: [value for value in ours if any(equal(value, known) for known in theirs)],
    "any_of": _each_with_each,
    "one_of": _each_with_each,
    "items": _both,
    "additional_properties": _both,
    "pattern_properties": lambda ours, theirs: {**theirs, **ours},
    "required": lambda ours, theirs: list(dict.fromkeys([*ours, *theirs])),
    "not_": lambda ours, theirs: Schema(any_of=[ours, theirs]),
    "unique_items": lambda ours, theirs: ours or theirs,
    **dict.fromkeys(("minimum", "exclusive_minimum", "min_length", "min_items", "min_properties", "multiple_of"), max),
    **dict.fromkeys(("maximum", "exclusive_maximum", "max_length", "max_items", "max_properties"), min),
}
