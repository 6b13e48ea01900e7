"""The smallest valid instance of a JSON schema, and whether a value fits one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET

from penstock.errors import BadRequest
from penstock.llms.demo.schema import NOTHING, Kind, Schema, Sub, as_schema, equal, merged
from penstock.llms.demo.text import FORMATS, has_format, matches, sample
from penstock.messages import is_array

MOST_STEPS = 20_000
TRIES = 64
Inside: TypeAlias = tuple[str, ...]
_KINDS: dict[Kind, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int, float),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def _is(kind: Kind, value: Any) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if not isinstance(value, _KINDS[kind]):
        return False
    return kind != "integer" or not isinstance(value, float) or value.is_integer()


class Instances:
    """Makes and checks values for one schema document; `root` is its JSON, which `#/...` refers to.

    Work is bounded: a document that asks for too much raises `BadRequest`, as one that is mistyped does.
    """

    def __init__(self, root: Any) -> None:
        self._root: Any = root
        self._steps = 0
        self._targets: dict[str, Schema] = {}
        self.schema = self._read(root)

    def smallest(self, schema: Schema | None = None) -> Any:
        """The smallest value found that fits; raises `BadRequest` where none is found."""
        try:
            for value in self._values(schema or self.schema, ()):
                return value
        except RecursionError:
            raise _refusal("is too deep") from None
        raise _refusal("has no instance that the demo model can find")

    def fits(self, value: Any, schema: Schema | None = None) -> bool:
        """Whether a value fits."""
        try:
            return self._fits(value, schema or self.schema)
        except RecursionError:
            raise _refusal("is too deep") from None

    def opened(self, schema: Schema) -> Schema:
        """The schema with what it refers to merged in."""
        opened = self._open(schema, ())
        return NOTHING if opened is None else opened[0]

    def _read(self, found: Any) -> Schema:
        try:
            return as_schema(msgspec.convert(found, Schema | bool))
        except (msgspec.ValidationError, RecursionError) as error:
            raise _refusal(f"cannot be read: {error}") from None

    def _step(self, count: int = 1) -> None:
        self._steps += count
        if self._steps > MOST_STEPS:
            raise _refusal("asks for too much")

    def _target(self, ref: str) -> Schema:
        if ref not in self._targets:
            found = self._root
            try:
                for step in ref.removeprefix("#").split("/")[1:]:
                    name = step.replace("~1", "/").replace("~0", "~")
                    found = found[int(name) if is_array(found) else name]
            except (LookupError, TypeError, ValueError):
                raise _refusal(f"refers to {ref!r}, which it does not contain") from None
            self._targets[ref] = self._read(found)
        return self._targets[ref]

    def _open(self, schema: Schema, inside: Inside) -> tuple[Schema, Inside] | None:
        """The schema with `$ref` and `allOf` merged in, and the references passed; None when it leads back to one."""
        while schema.ref is not None or schema.all_of is not None:
            self._step()
            if schema.ref is not None:
                if schema.ref in inside:
                    return None
                inside = _further(inside, schema.ref)
                schema = merged(msgspec.structs.replace(schema, ref=None), self._target(schema.ref))
            else:
                outer, parts = inside, schema.all_of or []
                schema = msgspec.structs.replace(schema, all_of=None)
                for part in parts:
                    opened = self._open(as_schema(part), outer)
                    if opened is None:
                        return None
                    schema, inside = merged(schema, opened[0]), inside + opened[1][len(outer) :]
        return schema, inside

    def _values(self, schema: Schema, inside: Inside) -> Iterator[Any]:
        for value in self._guesses(schema, inside):
            if self._fits(value, schema):
                yield value

    def _guesses(self, schema: Schema, inside: Inside) -> Iterator[Any]:
        self._step()
        opened = self._open(schema, inside)
        if opened is None:
            return
        schema, inside = opened
        if schema.const is not UNSET:
            yield schema.const
        elif schema.enum is not None:
            yield from schema.enum
        elif schema.any_of is not None or schema.one_of is not None:
            name = "any_of" if schema.any_of is not None else "one_of"
            rest = msgspec.structs.replace(schema, **{name: None})
            for option in getattr(schema, name):
                yield from self._guesses(Schema(all_of=[rest, option]), inside)
        else:
            yield from chain.from_iterable(self._of_kind(kind, schema, inside) for kind in schema.kinds)

    def _of_kind(self, kind: Kind, schema: Schema, inside: Inside) -> Iterator[Any]:
        match kind:
            case "null":
                yield None
            case "boolean":
                yield from (False, True)
            case "integer" | "number":
                yield from _numbers(schema, kind)
            case "string":
                self._step((schema.min_length or 0) // 100)
                yield from _strings(schema)
            case "array":
                yield from self._arrays(schema, inside)
            case "object":
                yield from self._objects(schema, inside)

    def _arrays(self, schema: Schema, inside: Inside) -> Iterator[list[Any]]:
        array: list[Any] = []
        for index in range(schema.min_items or 0):
            for value in islice(self._values(schema.item(index), inside), TRIES + (schema.min_items or 0)):
                if not schema.unique_items or not any(equal(value, known) for known in array):
                    array.append(value)
                    break
            else:
                return
        yield array

    def _objects(self, schema: Schema, inside: Inside) -> Iterator[dict[str, Any]]:
        names = [name for name in schema.properties or () if name in (schema.required or ())]
        names = list(dict.fromkeys([*names, *(schema.required or ())]))
        spare = (
            name for name in chain(schema.properties or (), (f"key{n}" for n in range(1, TRIES))) if name not in names
        )
        names += islice(spare, max(0, (schema.min_properties or 0) - len(names)))
        first: dict[str, Any] = {}
        for name in names:
            for value in self._values(self._property(schema, name), inside):
                first[name] = value
                break
            else:
                return
        yield first
        for name in [*names, *(name for name in schema.properties or () if name not in names)]:
            for value in islice(self._values(self._property(schema, name), inside), TRIES):
                yield {**first, name: value}

    def _property(self, schema: Schema, name: str) -> Schema:
        patterns = schema.pattern_properties or {}
        applying = [part for pattern, part in patterns.items() if matches(pattern, name)]
        known = name in (schema.properties or {}) or not applying
        return Schema(all_of=[*([schema.child(name)] if known else []), *applying])

    def _fits(self, value: Any, schema: Schema) -> bool:
        self._step()
        if schema.ref is not None and not self._fits(value, self._target(schema.ref)):
            return False
        if schema.type is not None and not any(_is(kind, value) for kind in schema.kinds):
            return False
        if schema.const is not UNSET and not equal(value, schema.const):
            return False
        if schema.enum is not None and not any(equal(value, known) for known in schema.enum):
            return False
        return self._fits_parts(value, schema) and self._fits_kind(value, schema)

    def _fits_parts(self, value: Any, schema: Schema) -> bool:
        def holds(part: Sub) -> bool:
            return self._fits(value, as_schema(part))

        return (
            all(holds(part) for part in schema.all_of or ())
            and (schema.any_of is None or any(holds(part) for part in schema.any_of))
            and (schema.one_of is None or sum(holds(part) for part in schema.one_of) == 1)
            and (schema.not_ is None or not holds(schema.not_))
        )

    def _fits_kind(self, value: Any, schema: Schema) -> bool:
        if value is None or isinstance(value, bool):
            return True
        if isinstance(value, int | float):
            return _number_fits(value, schema)
        if isinstance(value, str):
            return _string_fits(value, schema)
        return self._array_fits(value, schema) if is_array(value) else self._object_fits(value, schema)

    def _array_fits(self, array: list[Any], schema: Schema) -> bool:
        if not _between(len(array), schema.min_items, schema.max_items):
            return False
        if schema.unique_items and any(equal(item, known) for n, item in enumerate(array) for known in array[:n]):
            return False
        return all(self._fits(item, schema.item(index)) for index, item in enumerate(array))

    def _object_fits(self, found: dict[str, Any], schema: Schema) -> bool:
        return (
            all(name in found for name in schema.required or ())
            and _between(len(found), schema.min_properties, schema.max_properties)
            and all(self._fits(value, self._property(schema, name)) for name, value in found.items())
        )


def _further(inside: Inside, ref: str) -> Inside:
    return (*inside, ref)


def _refusal(problem: str) -> BadRequest:
    return BadRequest(f"the JSON schema {problem}; simplify it, or use a real model", provider="demo", status=400)


def _between(count: int, least: int | None, most: int | None) -> bool:
    return (least is None or count >= least) and (most is None or count <= most)


def _exact(number: float) -> Fraction:
    return Fraction(str(number))


def _number_fits(value: float, schema: Schema) -> bool:
    if schema.multiple_of and _exact(value) % _exact(schema.multiple_of) != 0:
        return False
    return (
        (schema.minimum is None or value >= schema.minimum)
        and (schema.maximum is None or value <= schema.maximum)
        and (schema.exclusive_minimum is None or value > schema.exclusive_minimum)
        and (schema.exclusive_maximum is None or value < schema.exclusive_maximum)
    )


def _string_fits(value: str, schema: Schema) -> bool:
    return (
        _between(len(value), schema.min_length, schema.max_length)
        and (schema.pattern is None or matches(schema.pattern, value))
        and (schema.format is None or has_format(schema.format, value))
    )


def _numbers(schema: Schema, kind: Kind) -> Iterator[float]:
    """Numbers that may fit: zero, then multiples up from the lower bound or down from the upper, then those between."""
    low = [_exact(bound) for bound in (schema.minimum, schema.exclusive_minimum) if bound is not None]
    high = [_exact(bound) for bound in (schema.maximum, schema.exclusive_maximum) if bound is not None]
    step = _exact(schema.multiple_of or 1)
    up = math.ceil(max(low, default=Fraction(0)) / step)
    down = math.floor(min([*high, Fraction(0)]) / step)
    guesses = [(up + n) * step for n in range(TRIES)] if low or not high else []
    guesses += [(down - n) * step for n in range(TRIES)] if not low else []
    guesses += [*low, *high]
    if low and high:
        guesses += [max(low) + (min(high) - max(low)) * Fraction(n, 8) for n in (4, 3, 5)]
    if not low or max(low) <= 0:
        guesses.insert(0, Fraction(0))
    for guess in dict.fromkeys(guesses):
        if guess.denominator == 1:
            yield int(guess)
        elif kind == "number":
            yield float(guess)


def _strings(schema: Schema) -> Iterator[str]:
    """Texts that may fit: the sample of the format or pattern, else as few letters as allowed, then longer ones."""
    least = schema.min_length or 0
    if schema.format in FORMATS:
        yield FORMATS[schema.format][0]
    text = sample(schema.pattern) if schema.pattern is not None else ""
    yield text
    for more in range(TRIES):
        yield text.ljust(least + more, text[-1:] or "a")
    yield from (f"{n}".rjust(least, "a") for n in range(TRIES))
