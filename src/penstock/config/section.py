"""What every section of `penstock.yaml` is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

_FLAGS = {"true": True, "false": False}
Name = Annotated[str, Field(min_length=1, max_length=256)]


class FromEnvironment(str):
    """Text that came from a `${NAME}`: it may stand for a number or a flag, and is never shown."""

    __slots__ = ()


def number(value: Any) -> Any:
    """A number, where text from a variable is one; anything else as it is."""
    if isinstance(value, FromEnvironment):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def flag(value: Any) -> Any:
    """True or false, where text from a variable says so; anything else as it is."""
    return _FLAGS.get(value.lower(), value) if isinstance(value, FromEnvironment) else value


class Section(BaseModel):
    """A mapping with known keys only, values of the written type, and no value in any message."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


def unknown_key(key: object, known: Iterable[str]) -> str:
    """What to say of a key that nobody knows."""
    names = sorted(known)
    near = difflib.get_close_matches(str(key), names, 1, 0.6)
    if near:
        return f"unknown key {key!r}: did you mean {near[0]!r}?"
    return f"unknown key {key!r}: known here are {', '.join(names)}"
