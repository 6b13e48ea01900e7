"""Values as DynamoDB's wire has them, each under the letter of its type, and back."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from penstock.messages import is_array, is_object
from penstock.tools.db.spec import ARGUMENT
from penstock.tools.db.values import number, plain

ABSENT = object()


def wired(value: Any) -> dict[str, Any]:  # noqa: PLR0911  # one for each kind
    """A value for the wire; raises `ValueError` for a number that DynamoDB has not."""
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case float() if not math.isfinite(value):
            raise ValueError(f"DynamoDB has no number {value!r}")
        case int() | float() | Decimal():
            return {"N": str(value)}
        case str():
            return {"S": value}
        case bytes():
            return {"B": value}
        case _ if is_object(value):
            return {"M": {str(key): wired(one) for key, one in value.items()}}
        case _ if is_array(value):
            return {"L": [wired(one) for one in value]}
        case _:
            return {"S": str(plain(value))}


def unwired(value: Mapping[str, Any]) -> Any:  # noqa: PLR0911  # one for each kind
    """A value of the wire as JSON carries it: sets as sorted lists, bytes as base64, numbers as numbers."""
    kind, held = next(iter(value.items()))
    match kind:
        case "N":
            return number(Decimal(held))
        case "B":
            return base64.b64encode(held).decode()
        case "NULL":
            return None
        case "M":
            return attributes(held)
        case "L":
            return [unwired(one) for one in held]
        case "NS":
            return [number(one) for one in sorted(map(Decimal, held))]
        case "SS":
            return sorted(held)
        case "BS":
            return [base64.b64encode(one).decode() for one in sorted(held)]
        case _:
            return held


def attributes(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of the wire as an object."""
    return {name: unwired(value) for name, value in item.items()}


def filled(template: Any, args: Mapping[str, Any]) -> Any:
    """A template with its ":name"s replaced by arguments; `ABSENT`, and no entry, for one that was not given."""
    if isinstance(template, str):
        found = ARGUMENT.fullmatch(template)
        return template if found is None else args.get(found[1], ABSENT)
    if is_object(template):
        pairs = ((key, filled(one, args)) for key, one in template.items())
        return {key: one for key, one in pairs if one is not ABSENT}
    if is_array(template):
        return [one for one in (filled(item, args) for item in template) if one is not ABSENT]
    return template
