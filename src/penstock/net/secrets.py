"""Secrets that are bound to the host they may be sent to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from penstock.errors import UsageError

LEAK = 8
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""`${NAME}`, which stands for a variable of the environment."""


class Secret:
    """A key that shows itself to its own host only; printing, logging or pickling it shows nothing."""

    __slots__ = ("_origin", "_value")

    def __init__(self, value: str, *, origin: str) -> None:
        self._value, self._origin = value, origin_of(origin)
        if not (value.isascii() and value.isprintable()):
            raise UsageError(
                f"the key for {self._origin!r} holds a line break or a letter that no header can carry: copy it again"
            )

    def reveal(self, url: str) -> str:
        """The key, for a request to `url`; raises `UsageError` when that is not its own scheme, host and port."""
        if origin_of(url) != self._origin:
            raise UsageError(f"this key belongs to {self._origin!r} and is not sent to {origin_of(url)!r}")
        return self._value

    def scrub(self, text: str) -> str:
        """The text without the key, or any eight characters of it."""
        if not self._value:
            return text
        if len(self._value) < LEAK:
            return text.replace(self._value, "***")
        marked = [False] * len(text)
        for start in range(len(self._value) - LEAK + 1):
            at = text.find(self._value[start : start + LEAK])
            while at >= 0:
                marked[at : at + LEAK] = [True] * LEAK
                at = text.find(self._value[start : start + LEAK], at + 1)
        if True not in marked:
            return text
        return "".join(
            "" if hidden and index and marked[index - 1] else "***" if hidden else char
            for index, (char, hidden) in enumerate(zip(text, marked, strict=True))
        )

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled: pass the name of its environment variable instead")


def variables(env: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """A look-up in `env`, by default that of the process, which shows nothing of it; "" for what is not set."""
    found = os.environ if env is None else env

    def look_up(name: str) -> str:
        return found.get(name, "").strip("\r\n")

    return look_up


@lru_cache(maxsize=256)
def origin_of(url: str) -> str:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"
