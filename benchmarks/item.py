"""A web server with one fixed JSON answer, as cheap as asyncio can be: what HTTP tools are measured against.

`python -m benchmarks.item --port 9000`
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import msgspec
import uvloop

ITEMS = msgspec.json.encode({"ok": True, "items": [{"id": number, "name": f"item {number}"} for number in range(20)]})
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ITEMS) + ITEMS
END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """Answers each request that has no body."""

    def __init__(self) -> None:
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        *whole, self._begun = (self._begun + data).split(END)
        self._transport.write(ANSWER * len(whole))


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
