"""The service that the laws' HTTP tools ask."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from tests.rig.serving import serve_asgi

FAST: dict[str, tuple[int, bytes]] = {
    "/good/it": (200, b'{"said":"got it"}'),
    "/failing/it": (500, b'{"error":"no it"}'),
    "/good/graphql": (200, b'{"data":{"said":"got it"}}'),
    "/failing/graphql": (200, b'{"errors":[{"message":"no it"}]}'),
}


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answers what is known at once, and everything else when its client has left."""
    while (message := await receive()).get("more_body"):
        pass
    if scope["path"] not in FAST:
        while message["type"] != "http.disconnect":
            message = await receive()
        return
    await asyncio.sleep(0)
    status, body = FAST[scope["path"]]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="session")
def service() -> Generator[str]:
    with serve_asgi(answer, lifespan="off") as address:
        yield address
