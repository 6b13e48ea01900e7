"""One HTTP exchange with an LLM service: the seam between the wires above and the HTTP client below.

Nothing else in `llms` knows the client; another one needs `Exchange`'s methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

from penstock.errors import LlmError, TimedOut
from penstock.llms.failures import from_network
from penstock.net import Connection, HttpError, Pool, pool
from penstock.net.http import request_head

STALE_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds a call may take: to connect, between two pieces once the answer has begun, in all."""

    connect_s: float = 10.0
    idle_s: float = 60.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where exchanges go: an address, the provider's name for errors, and the limits."""

    url: str
    provider: str
    limits: Limits
    method: str = "POST"


class Exchange:
    """A request and its answer: `async with Exchange(...) as answer`, then `read()` it whole or `block()` by block.

    Leaving early closes the connection, which tells the service to stop. Failures are raised as `LlmError`.
    """

    __slots__ = ("_body", "_connection", "_headers", "_origin", "_pool", "_target", "headers", "status")

    def __init__(self, target: Target, *, headers: Mapping[str, str], body: bytes = b"") -> None:
        self._target, self._headers, self._body = target, headers, body
        self._connection: Connection | None = None
        self._pool: Pool
        self.status = 0
        self.headers: Mapping[str, str] = {}

    async def __aenter__(self) -> Self:
        target = self._target
        self._pool = await pool()
        self._origin, head = request_head(target.method, target.url, self._headers, len(self._body))
        try:
            if not await self._ask(head):
                await self._ask(head, fresh=True)
        except TimeoutError as error:
            text = f"{target.provider} did not accept a connection within {target.limits.connect_s:g} s"
            raise TimedOut(text, provider=target.provider) from error
        except (HttpError, OSError) as error:
            raise from_network(error, target.provider) from error
        return self

    async def _ask(self, head: bytes, *, fresh: bool = False) -> bool:
        """Send the request and wait for the head of the answer; false when the service had closed a kept connection.

        It does so at any moment, and what it closed at once without a byte it has not read.
        """
        connection = self._connection = await self._pool.take(self._origin, self._target.limits.connect_s, fresh=fresh)
        sent = monotonic()
        try:
            connection.send(head, self._body)
            await connection.head()
            self.status, self.headers = connection.status, connection.headers
        except HttpError:
            if connection.stale and monotonic() - sent < STALE_S:
                return False
            raise
        finally:
            if not self.status:  # failed, or cancelled, be it in the moment that the head came
                connection.abort()
        return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._pool.give(self._origin, self._connection)

    async def block(self) -> bytes:
        """What the last network reads brought; empty at the end."""
        if self._connection is None:
            return b""
        try:
            return await self._connection.block()
        except HttpError as error:
            raise from_network(error, self._target.provider) from error

    async def read(self, limit: int) -> bytes:
        """The whole body; of a longer one no more blocks once `limit` bytes have come."""
        parts: list[bytes] = []
        size = 0
        while size < limit and (part := await self.block()):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    async def drain(self, seconds: float = 0.25) -> None:
        """Wait shortly for the end of an answer that is complete, so that its connection can be used again."""
        if self._connection is None or self._connection.complete:
            return
        try:
            async with asyncio.timeout(seconds):
                while await self.block():
                    pass
        except (TimeoutError, LlmError):
            return
