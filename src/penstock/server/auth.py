"""Bearer tokens: only their hashes are kept, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.errors import Forbidden, Unauthenticated
from penstock.run import LOCAL, Principal

PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class Token:
    """A token's hash ("sha256:" and hex digits) and the principal who holds it."""

    hash: str
    principal: Principal


class Auth:
    """Finds the principal of a request. Without any token configured everybody is `local`."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens = [(bytes.fromhex(token.hash.removeprefix(PREFIX)), token.principal) for token in tokens]

    def principal(self, authorization: bytes | None) -> Principal:
        """Who sent this `Authorization` header; raises `Unauthenticated`."""
        if not self._tokens:
            return LOCAL
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("a token is needed: send 'Authorization: Bearer <token>'", code="missing_token")
        digest, found = hashlib.sha256(token.strip()).digest(), None
        for known, principal in self._tokens:  # all of them, so that the time does not tell which
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Unauthenticated("this token is not known", code="invalid_api_key")
        return found


def demand(principal: Principal, scope: str) -> None:
    """Raise `Forbidden` unless the scope is held."""
    if not principal.holds(scope):
        raise Forbidden(f"this needs the scope {scope!r}, which {principal.name!r} does not hold")


def new_token() -> tuple[str, str]:
    """A fresh token and its hash."""
    token = f"pk-{secrets.token_urlsafe(32)}"
    return token, hash_of(token)


def hash_of(token: str) -> str:
    """A token's hash as the configuration holds it."""
    return PREFIX + hashlib.sha256(token.encode()).hexdigest()


def demand_origin(principal: Principal, headers: Mapping[bytes, bytes], origins: frozenset[bytes]) -> None:
    """Refuse a page of another site: where no token is asked for, its reader's browser would do as it says."""
    origin = headers.get(b"origin")
    if principal is not LOCAL or origin is None or {origin, b"*"} & origins:
        return
    if origin.partition(b"://")[2] != headers.get(b"host"):
        text = f"a page of {origin[:100].decode('latin-1')!r} may not do this: name it in server.cors_origins"
        raise Forbidden(text, code="foreign_origin")
