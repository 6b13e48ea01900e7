"""JSON Schemas: checked, closed to unknown keys, and their defaults filled into a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import jsonschema_rs

from penstock.errors import UsageError
from penstock.messages import is_array, is_object

Schema = dict[str, Any]
Fill = Callable[[Any], None]
_IN_PLACE = ("allOf", "anyOf", "oneOf")  # lists of schemas for the same value
_SAME = ("if", "then", "else")  # one schema for the same value
_COMPOSING = ("properties", "$ref", "allOf", "dependentSchemas", *_SAME)
_MAPS = ("properties", "patternProperties")  # schemas for parts of the value, by name
_PARTS = ("items", "contains", "additionalProperties", "unevaluatedItems", "unevaluatedProperties")
_DEFINITIONS = ("$defs", "definitions", "dependentSchemas")


def validator(schema: Schema) -> jsonschema_rs.Validator:
    """A validator of JSON values, formats included; nothing is fetched for it.

    Raises `UsageError` where the schema is broken or refers to another document.
    """
    try:
        return jsonschema_rs.Draft202012Validator(schema, offline=True, validate_formats=True, mask="value")
    except jsonschema_rs.ValidationError as error:
        where = "/".join(map(str, error.instance_path)) or "its top"
        raise UsageError(f"the JSON Schema is broken at {where}: {error.message}") from None


def closed(schema: Mapping[str, Any]) -> Schema:
    """A copy in which every object with `properties` refuses other keys, where it does not say otherwise."""
    copy = {key: deepcopy(value) for key, value in schema.items() if key != "$schema"}
    _close(copy, copy)
    return copy


def resolved(root: Mapping[str, Any], reference: str) -> Any:
    """What a local reference (`#`, `#/$defs/a`) points to; None where there is nothing."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if is_array(found) and name.isdigit():
            found = found[int(name)] if int(name) < len(found) else None
        else:
            found = found.get(name) if is_object(found) else None
    return found if reference.startswith("#") else None


def faces(schema: Any, root: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> Iterator[Schema]:
    """The schema and every one that speaks of the same value: references, alternatives, conditions."""
    if not is_object(schema):
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        yield from faces(resolved(root, reference), root, seen | {reference})
    for key in _IN_PLACE:
        for branch in schema.get(key, ()):
            yield from faces(branch, root, seen)
    for key in _SAME:
        yield from faces(schema.get(key), root, seen)


def _close(schema: Any, root: Schema, *, itself: bool = True) -> None:
    """Close a schema in place; `itself` is false for one that only adds to another."""
    if not is_object(schema):
        return
    parts = [part for key in _MAPS for part in schema.get(key, {}).values()]
    additions = list(schema.get("allOf", ()))
    choices = [branch for key in ("anyOf", "oneOf") for branch in schema.get(key, ())]
    if itself and not any(key in schema for key in _COMPOSING):
        parts += choices  # nothing is shared: each alternative is closed by itself
    else:
        additions += choices
        if itself and "additionalProperties" not in schema and "unevaluatedProperties" not in schema:
            _shut(schema, root)
    additions += [schema.get(key) for key in _SAME]
    additions += [part for key in _DEFINITIONS for part in schema.get(key, {}).values()]
    for part in additions:
        _close(part, root, itself=False)
    for part in (*parts, *(schema.get(key) for key in _PARTS), *schema.get("prefixItems", ())):
        _close(part, root)


def _shut(schema: Schema, root: Schema) -> None:
    """Refuse other keys: what is composed knows its keys only when all of its parts were looked at."""
    if not any(key in schema for key in ("$ref", *_IN_PLACE, *_SAME, "dependentSchemas")):
        if "properties" in schema:
            schema["additionalProperties"] = False
    elif any("properties" in face for face in faces(schema, root)):
        schema["unevaluatedProperties"] = False


def whole(value: Any, schema: Any, root: Mapping[str, Any]) -> Any:
    """The value with 3.0 as 3 where the schema asks for an integer: to JSON Schema they are the same."""
    known = list(faces(schema, root))
    if isinstance(value, float) and value.is_integer():
        words = {word for face in known for word in _words(face.get("type", ()))}
        return int(value) if "integer" in words and "number" not in words else value
    if is_array(value):
        parts = [face["items"] for face in known if "items" in face]
        return [whole(each, {"allOf": parts}, root) for each in value]
    if is_object(value):
        return {
            name: whole(part, {"allOf": [part_of(face, name) for face in known]}, root) for name, part in value.items()
        }
    return value


def part_of(schema: Schema, name: str) -> Any:
    """The schema of an object's value under this name, where there is one."""
    return schema.get("properties", {}).get(name, schema.get("additionalProperties"))


def _words(types: str | list[str]) -> list[str]:
    return [types] if isinstance(types, str) else types


class Filling:
    """Fills what a valid value leaves out with the defaults of a schema, at every level."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[str, Fill] = {}
        self._final: dict[str, Fill] = {}

    def of(self, schema: Any) -> Fill | None:
        """The function that fills a value in place, or None where the schema has no defaults."""
        if not is_object(schema):
            return None
        parts = [self._properties(schema), self._items(schema), self._reference(schema), self._choice(schema)]
        parts += [self.of(branch) for branch in schema.get("allOf", ())]
        fills = [part for part in parts if part is not None]
        if len(fills) < 2:
            return fills[0] if fills else None

        def fill_all(value: Any) -> None:
            for each in fills:
                each(value)

        return fill_all

    def _properties(self, schema: Schema) -> Fill | None:
        found: Mapping[str, Any] = schema.get("properties", {})
        defaults = {name: part["default"] for name, part in found.items() if is_object(part) and "default" in part}
        inner = {name: below for name, part in found.items() if (below := self.of(part)) is not None}
        others = self.of(schema.get("additionalProperties"))
        if not defaults and not inner and others is None:
            return None

        def fill(value: Any) -> None:
            if is_object(value):
                for name, default in defaults.items():
                    if name not in value:
                        value[name] = deepcopy(default)
                for name, below in inner.items():
                    if name in value:
                        below(value[name])
                if others is not None:
                    for name in value.keys() - found.keys():
                        others(value[name])

        return fill

    def _items(self, schema: Schema) -> Fill | None:
        below = self.of(schema.get("items"))
        if below is None:
            return None

        def fill(value: Any) -> None:
            if is_array(value):
                for item in value:
                    below(item)

        return fill

    def _reference(self, schema: Schema) -> Fill | None:
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return None
        if reference not in self._known:
            target = resolved(self._root, reference)
            if not _has_default(target, self._root):
                return None
            self._known[reference] = partial(self._filled, reference)  # a schema may refer to itself
            self._final[reference] = self.of(target) or _nothing
        return self._known[reference]

    def _filled(self, reference: str, value: Any) -> None:
        self._final[reference](value)

    def _choice(self, schema: Schema) -> Fill | None:
        branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        fills = [self.of(branch) for branch in branches]
        if not any(fills):
            return None
        shared = {key: self._root[key] for key in ("$defs", "definitions") if key in self._root}
        ways = [(validator(shared | branch).is_valid, fill) for branch, fill in zip(branches, fills, strict=True)]

        def fill(value: Any) -> None:
            below = next((below for fits, below in ways if fits(value)), None)
            if below is not None:
                below(value)

        return fill


def _nothing(_: Any) -> None: ...


def _has_default(schema: Any, root: Schema) -> bool:
    """Whether there is a default anywhere in the schema, or in one it refers to."""
    todo, seen = [schema], set[str]()
    while todo:
        part = todo.pop()
        if is_array(part):
            todo.extend(part)
        elif is_object(part):
            if "default" in part:
                return True
            reference = part.get("$ref")
            if isinstance(reference, str) and reference not in seen:
                seen.add(reference)
                todo.append(resolved(root, reference))
            todo.extend(part.values())
    return False
