"""`penstock token new`: a token, and the hash that the configuration holds instead of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from penstock.config.settings import TokenSettings
from penstock.errors import UsageError


def new(name: str, *, scopes: Sequence[str], tenant: str | None, as_json: bool) -> None:
    """Print a fresh token and its line for `auth.tokens`; raises `UsageError`."""
    from penstock.server.auth import new_token

    token, digest = new_token()
    entry: dict[str, object] = {"name": name, "hash": digest, "scopes": [scope.strip() for scope in scopes]}
    if tenant is not None:
        entry["tenant"] = tenant
    _checked(entry)
    if as_json:
        print(json.dumps({**entry, "token": token}))
        return
    line = ", ".join(f"{key}: {json.dumps(value)}" for key, value in entry.items())
    print(f"{token}\n\nShown this once. What penstock.yaml needs:\n\nauth:\n  tokens:\n    - {{{line}}}")


def _checked(entry: dict[str, object]) -> None:
    try:
        TokenSettings.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
    else:
        return
    expected = "one word" if first["type"] == "string_pattern_mismatch" else "text that is not empty"
    raise UsageError(f"{first['loc'][0]}: {first['input']!r} is not {expected}")
