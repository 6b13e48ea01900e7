"""One client that misbehaves: how soon the upstream learns that it left, and what it costs when it stops reading."""

from __future__ import annotations

import http.client
import math
import socket
from time import monotonic, sleep

import msgspec

from benchmarks.child import Child
from benchmarks.load import chat
from benchmarks.shape import word
from benchmarks.upstream import Books

POLL_S = 0.002
LOOK_S = 0.1
SEEN_WITHIN_S = 5.0
READ = 3


def leaving(peer: Child, upstream: Child, model: str, *, stream: bool, reading: bool) -> float:
    """Milliseconds from the client's close to the upstream's seeing it; infinite when the answer went on to its end.

    The client leaves after its third chunk when `reading`, else once the upstream has its request.
    """
    before = books(upstream)
    with socket.create_connection(("127.0.0.1", peer.port), SEEN_WITHIN_S) as client:
        client.sendall(chat(model, stream=stream))
        got = b""
        while reading and word(READ - 1).encode() not in got:
            data = client.recv(65536)
            if not data:
                raise RuntimeError(f"the stream was cut after {got!r}")
            got += data
        until = monotonic() + SEEN_WITHIN_S
        while books(upstream).started == before.started and monotonic() < until:
            sleep(POLL_S)
        sleep(POLL_S)
        left = monotonic()
    while monotonic() - left < SEEN_WITHIN_S:
        now = books(upstream)
        if now.left > before.left:
            return (now.left_at - left) * 1e3
        if now.finished > before.finished:
            break
        sleep(POLL_S)
    return math.inf


def stalled(peer: Child, model: str, seconds: float) -> float:
    """MB by which the peer grows while a client that reads no more holds a long stream."""
    before = most = peer.resident_mb()
    with socket.create_connection(("127.0.0.1", peer.port), SEEN_WITHIN_S) as client:
        client.sendall(chat(model, stream=True))
        client.recv(1000)
        until = monotonic() + seconds
        while monotonic() < until:
            sleep(LOOK_S)
            most = max(most, peer.resident_mb())
    return most - before


def books(upstream: Child) -> Books:
    """What the upstream has counted so far."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=SEEN_WITHIN_S)
    try:
        connection.request("GET", "/stats")
        return msgspec.json.decode(connection.getresponse().read(), type=Books)
    finally:
        connection.close()
