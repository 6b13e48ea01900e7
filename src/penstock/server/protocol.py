"""uvicorn's HTTP protocol with what answers need of their connection, and a limit on a request's head."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.server.client import CONNECTION

PIPELINED = 16
UNSENT_BYTES = 128 * 1024
_UNSENT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # not on every system
MOST_HEAD = 64 * 1024
_OFFER = re.compile(rb"(?i)\r\n(?:upgrade|http2-settings):[^\r\n]*(?=\r\n|\Z)")
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    b'{"error":{"message":"the head of the request is larger than 64 KB","type":"invalid_request_error",'
    b'"param":null,"code":"head_too_large"}}'
)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also tells an answer that its client left, and lets it give the client up."""

    lost: Callable[[], None] | None = None
    _head: int | None = 0
    """Bytes of a request's head that were read so far; None between its head and its end."""
    _moved = False
    """Whether the read in hand completed a head or a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Keep the kernel from queueing megabytes for a client that reads slowly."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if _UNSENT is not None and sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, _UNSENT, UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        """Parse what was read; a head that grows without end is refused, an offer to speak another protocol ignored."""
        if self._head is not None and b"pgrade" in data:
            head, end, body = data.partition(b"\r\n\r\n")
            data = _OFFER.sub(b"", head) + end + body
        self._moved = False
        super().data_received(data)
        if self._head is not None and not self._moved:
            self._head += len(data)
            if self._head > MOST_HEAD and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """Offer this connection to the application."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Read on while a few requests wait for the answer before theirs: an unread connection tells of no leaving."""
        self._head, self._moved = None, True
        super().on_headers_complete()
        if self.pipeline and len(self.pipeline) <= PIPELINED:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """Expect the head of another request."""
        super().on_message_complete()
        self._head, self._moved = 0, True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the answer in progress."""
        super().connection_lost(exc)
        if self.lost is not None:
            self.lost()

    def listen(self) -> None:
        """Read on, where a large body made uvicorn pause."""
        self.flow.resume_reading()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def pending(self) -> int:
        """How many bytes were written that have not left."""
        return self.transport.get_write_buffer_size()

    async def drained(self) -> None:
        """Wait until the system has taken all that was written, or the connection is lost."""
        if self not in self.connections or not self.transport.get_write_buffer_size():
            return
        low, high = self.transport.get_write_buffer_limits()
        self.transport.set_write_buffer_limits(high=0)
        try:
            await self.flow.drain()
        finally:
            if self in self.connections:
                self.transport.set_write_buffer_limits(high, low)
