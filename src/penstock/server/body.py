"""Reads the body of a request, within its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from penstock.errors import TooLarge
from penstock.server.client import ClientGone, Receive


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int, within_s: float) -> bytes:
    """The body; raises `TooLarge` once it is known to exceed `limit` bytes, `ClientGone` where it does not end."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(within_s):
            return await _read(receive, limit)
    except TimeoutError:
        raise ClientGone("did not send its whole request in time") from None


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("left while it sent its request")
        more = message.get("more_body", False)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit / 1024 / 1024:g} MB", code="request_too_large")
