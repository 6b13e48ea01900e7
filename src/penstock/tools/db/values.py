"""What databases give, as values that JSON carries: decided here for every driver.

Numbers stay numbers: a decimal becomes an int or a float where that is exact, and stays a `Decimal`, which JSON shows
as text, where it is not. Dates and times become ISO 8601 text, durations too; bytes become base64 text; UUIDs,
addresses and what is left become text; NaN and the infinities become "nan", "inf" and "-inf".
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

from pydantic_core import to_json

_PLAIN = frozenset({int, str, bool, type(None)})
_FAR = 400  # digits: past that an int costs more than it tells


def plain(value: Any) -> Any:  # noqa: PLR0911  # one for each kind
    """A database's value as one that JSON carries."""
    if type(value) in _PLAIN:
        return value
    match value:
        case float():
            return value if math.isfinite(value) else str(value)
        case Decimal():
            return number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return f"PT{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "S"
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case list() | tuple() | set() | frozenset():
            return [plain(one) for one in cast("Iterable[Any]", value)]
        case _ if hasattr(value, "items"):  # a mapping, or the record of a composite type
            return {str(key): plain(one) for key, one in value.items()}
        case _:
            return str(value)


def number(value: Decimal) -> int | float | Decimal | str:
    """A decimal as int or float where that loses nothing, else as it is; what is no number as text."""
    if not value.is_finite():
        return str(value).lower()
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and exponent >= 0:
        return int(value) if exponent <= _FAR else value
    near = float(value)
    return near if Decimal(repr(near)) == value else value


def distinct(names: Sequence[str]) -> list[str]:
    """Column names; the second `id` is called `id_2`."""
    if len(set(names)) == len(names):
        return list(names)
    found: list[str] = []
    for name in names:
        unique, count = name, 1
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found.append(unique)
    return found


def rows_of(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    """Rows as objects of plain values."""
    keys = distinct(names)
    return [
        {key: one if type(one) in _PLAIN else plain(one) for key, one in zip(keys, row, strict=True)} for row in rows
    ]


def bound(value: Any) -> Any:
    """An argument as an SQL driver binds it: arrays and objects as JSON text, dates and the like as ISO text."""
    if type(value) in _PLAIN or isinstance(value, float | bytes):
        return value
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return to_json(value).decode()
    return plain(value)
