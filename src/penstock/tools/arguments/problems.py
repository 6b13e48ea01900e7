"""What is wrong with a value, in words that a model can act on: where, what was expected, what came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from math import isfinite
from typing import Any, Literal, TypeAlias

import jsonschema_rs
import msgspec
from pydantic_core import ErrorDetails

from penstock.errors import BadArguments
from penstock.messages import is_array, is_object
from penstock.tools.arguments.schema import faces, part_of

Wanted: TypeAlias = Literal["integer", "number", "boolean", ""]
Path: TypeAlias = tuple[str | int, ...]
WRONG = "wrong arguments: "
LISTED = 20  # problems that are told one by one
_TEXT = 300  # characters of one problem
_SHOWN = 60  # characters of a value or a key
_WANTED: dict[str, Wanted] = {"int_type": "integer", "float_type": "number", "bool_type": "boolean"}
_ARTICLES = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "string": "a string",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing that is wrong at `path`; `wanted` is the plain type that would have been right there."""

    path: Path
    text: str
    wanted: Wanted = ""

    @property
    def where(self) -> str:
        """The path as one writes it: `address.zip`, `items[3]`; empty for the value itself."""
        where = ""
        for step in self.path:
            where += f"[{step}]" if isinstance(step, int) else f".{_cut(step)}"
        return where.removeprefix(".")


def refusal(problems: Iterable[Problem]) -> BadArguments:
    """The error that lists the problems; beyond the first ones it only says that there are more."""
    listed = list(islice(problems, LISTED * 5))
    if len(listed) > 1:
        listed = list(dict.fromkeys(listed))
    details: list[dict[str, str]] = []
    told: list[str] = []
    for each in listed[:LISTED]:
        where, text = each.where, each.text
        details.append({"path": where, "problem": text})
        told.append(f"{where}: {text}" if where else text)
    if len(listed) > LISTED:
        told.append("and more")
    return BadArguments(WRONG + "; ".join(told), details=details)


def shown(value: Any) -> str:
    """A value in an error text: short, and never a whole object."""
    if isinstance(value, str):
        return _cut(repr(value[: _SHOWN + 1]), len(value))
    if isinstance(value, bool | None):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return "a very large number" if isinstance(value, int) and abs(value) >= 10**_SHOWN else _cut(repr(value))


def _cut(text: str, length: int = 0) -> str:
    if len(text) <= _SHOWN + 2:
        return text
    return f"{text[:_SHOWN]}... ({length} characters)" if length else f"{text[:_SHOWN]}..."


def typed_problems(errors: Sequence[ErrorDetails], value: Any, schema: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems from pydantic's errors; those of the members of a union become one."""
    grouped: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        grouped.setdefault(_place(error, value), []).append(error)
    for path, same in grouped.items():
        first = same[0]
        if first["type"] == "missing":
            yield Problem(path, "is required")
        elif first["type"] == "extra_forbidden":
            yield _unknown(path, schema)
        elif len(same) == 1:
            yield Problem(path, _expected(first), _WANTED.get(first["type"], ""))
        else:
            yield from _united(path, same)


def _united(path: Path, same: list[ErrorDetails]) -> Iterator[Problem]:
    texts = dict.fromkeys(_phrase(error["msg"]) for error in same)
    wanted: list[Wanted] = [_WANTED[error["type"]] for error in same if error["type"] in _WANTED]
    yield Problem(
        path, _limited(f"expected {' or '.join(texts)}, got {shown(same[0]['input'])}"), wanted[0] if wanted else ""
    )


def _place(error: ErrorDetails, value: Any) -> Path:
    """The error's place in the value; pydantic also names the union members and validators it went through."""
    path: list[str | int] = []
    last = len(error["loc"]) - 1
    for index, step in enumerate(error["loc"]):
        inside: Any = value
        if (is_object(value) and step in value) or (is_array(value) and isinstance(step, int) and step < len(value)):
            value = inside[step]
        elif not (index == last and error["type"] == "missing"):
            continue
        path.append(step)
    return tuple(path)


@lru_cache(256)
def _phrase(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    for prefix in ("a valid ", "an instance of "):
        text = text.removeprefix(prefix)
    return _ARTICLES.get(text, text)


def _expected(error: ErrorDetails) -> str:
    message = error["msg"]
    if not message.startswith("Input should be "):
        text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return _limited(f"{text[:1].lower()}{text[1:]}, got {shown(error['input'])}")
    return _limited(f"expected {_phrase(message)}, got {shown(error['input'])}")


def _limited(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def _unknown(path: Path, schema: Mapping[str, Any]) -> Problem:
    """An unknown key, with the keys that are known there and the closest of them."""
    allowed = list(_allowed(schema, path[:-1]))
    close = get_close_matches(str(path[-1])[:_SHOWN], allowed, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return Problem(path, _limited(f"unknown key; {hint}allowed are {', '.join(allowed) or 'none'}"))


def _allowed(schema: Mapping[str, Any], path: Path) -> dict[str, None]:
    level: list[Any] = [schema]
    for step in path:
        known = [face for part in level for face in faces(part, schema)]
        level = [face.get("items") if isinstance(step, int) else part_of(face, step) for face in known]
    return dict.fromkeys(name for part in level for face in faces(part, schema) for name in face.get("properties", ()))


def schema_problems(
    errors: Iterable[jsonschema_rs.ValidationError], value: Any, schema: Mapping[str, Any]
) -> Iterator[Problem]:
    """Problems from the errors of a JSON Schema's validator."""
    return (problem for error in errors for problem in _schema_problem(error, value, schema))


def _schema_problem(error: jsonschema_rs.ValidationError, value: Any, schema: Mapping[str, Any]) -> Iterator[Problem]:
    path, kind = tuple(error.instance_path), error.kind
    kinds = jsonschema_rs.ValidationErrorKind
    match kind:
        case kinds.Required():
            yield Problem((*path, kind.property), "is required")
        case kinds.AdditionalProperties() | kinds.UnevaluatedProperties():
            for name in kind.unexpected[: LISTED * 2]:
                yield _unknown((*path, name), schema)
        case kinds.Type():
            yield _mistyped(path, kind.types, _at(value, path))
        case kinds.Enum():
            options = " or ".join(shown(option) for option in kind.options)
            yield Problem(path, _limited(f"expected {options}, got {shown(_at(value, path))}"))
        case kinds.AnyOf() | kinds.OneOfNotValid():
            yield from _none_fits(path, kind.context, value, schema)
        case _:
            text = error.message.removeprefix("value ")
            yield Problem(path, _limited(f"{text}, got {shown(_at(value, path))}"))


def _none_fits(
    path: Path, branches: list[list[jsonschema_rs.ValidationError]], value: Any, schema: Mapping[str, Any]
) -> Iterator[Problem]:
    """What to say where no alternative fits: the types, or what is wrong with the closest one."""
    types: list[str] = []
    closest: list[jsonschema_rs.ValidationError] | None = None
    for errors in branches:
        kinds = [error.kind for error in errors if tuple(error.instance_path) == path]
        mistyped = next((kind for kind in kinds if isinstance(kind, jsonschema_rs.ValidationErrorKind.Type)), None)
        if mistyped is not None:
            types += mistyped.types
        elif closest is None or len(errors) < len(closest):
            closest = errors
    if closest is None:
        yield _mistyped(path, list(dict.fromkeys(types)), _at(value, path))
    else:
        for error in closest:
            yield from _schema_problem(error, value, schema)


def _mistyped(path: Path, types: list[str], value: Any) -> Problem:
    text = f"expected {' or '.join([_ARTICLES.get(each, each) for each in types])}, got {shown(value)}"
    wanted: Wanted = "integer" if "integer" in types else "number" if "number" in types else ""
    return Problem(path, text, "boolean" if not wanted and "boolean" in types else wanted)


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


class _Object(dict[str, Any]):
    """An object as it was written, with the keys that came twice."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        made.repeated = tuple(name for name, times in Counter(names).items() if times > 1)
    return made


def unreadable(text: str, reason: object) -> list[Problem]:
    """Why a text is not JSON as we take it: the places of repeated keys and NaN, else the parser's reason."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return [Problem((), _limited(f"the arguments are not JSON: {reason}"))]
    found = list(islice(_strange((), value), LISTED * 5))
    return found or [Problem((), _limited(f"the arguments are not JSON as it is accepted here: {reason}"))]


def _strange(path: Path, value: Any) -> Iterator[Problem]:
    if isinstance(value, _Object):
        for name in value.repeated:
            yield Problem((*path, name), "this key is written twice")
        for name, part in value.items():
            yield from _strange((*path, name), part)
    elif is_array(value):
        for place, part in enumerate(value):
            yield from _strange((*path, place), part)
    elif isinstance(value, float) and not isfinite(value):
        yield Problem(path, f"expected a finite number, got {value!r}")


def endless(value: Any) -> list[Problem]:
    """The places of numbers that are too large to be finite."""
    return list(islice(_endless((), value), LISTED * 5))


def _endless(path: Path, value: Any) -> Iterator[Problem]:
    if is_object(value):
        for name, part in value.items():
            yield from _endless((*path, name), part)
    elif is_array(value):
        for place, part in enumerate(value):
            yield from _endless((*path, place), part)
    elif isinstance(value, float) and not isfinite(value):
        yield Problem(path, "expected a finite number, got one that is too large")


def sample(value: Any, schema: Mapping[str, Any]) -> Any:
    """A value that is quickly explained: of each array the first items, of each object the known keys and some more."""
    known = frozenset(_names(schema))

    def shorter(part: Any) -> Any:
        if is_array(part):
            return [shorter(each) for each in part[: LISTED * 2]]
        if is_object(part):
            others = islice((name for name in part if name not in known), LISTED * 2)
            return {name: shorter(part[name]) for name in (*(name for name in known if name in part), *others)}
        return part

    return shorter(value)


def _names(schema: Any) -> Iterator[str]:
    """Every name that occurs in the schema, be it a property's or a keyword."""
    if is_object(schema):
        yield from schema
        for part in schema.values():
            yield from _names(part)
    elif is_array(schema):
        for part in schema:
            yield from _names(part)


def unquoted(value: Any, problems: Iterable[Problem]) -> bool:
    """Replace, in place, texts where a number or a flag was wanted and is written; true if there was one."""
    changed = False
    for problem in problems:
        if problem.wanted and problem.path:
            *above, last = problem.path
            holder: Any = _at(value, tuple(above))
            read = _unquote(holder[last], problem.wanted)
            if read is not None:
                holder[last], changed = read, True
    return changed


def _unquote(text: Any, wanted: Wanted) -> Any:
    """The number or flag that the text writes as JSON would, else None."""
    if not isinstance(text, str) or len(text) > 400:
        return None
    word = text.strip()
    if wanted == "boolean":
        return {"true": True, "false": False}.get(word.lower())
    try:
        read = json.loads(word)
    except (ValueError, RecursionError):
        return None
    if isinstance(read, bool) or not isinstance(read, int | float) or not isfinite(read):
        return None
    return None if wanted == "integer" and not isinstance(read, int) else read
