"""The HTTP client on real sockets: every framing, connections kept and not kept, TLS, and what is not HTTP."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.errors import TimedOut, Unavailable
from penstock.events import Chunks, Event
from penstock.llms.openai import Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatRequest
from penstock.net import Connection, HttpError, pool
from penstock.net.http import HIGH_WATER, IDLE_S, MAX_IDLE, _pools, request_head
from penstock.run import execute
from tests.net.conftest import Script, Served, serving, tls_of
from tests.rig.answers import plain_bytes
from tests.rig.upstream import Plain, Upstream, completion

ASK = ChatRequest.of("Hello")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def answering(*answers: bytes, then: float = 5.0) -> Script:
    """Gives one answer to each request, then waits for the peer to leave."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        async with asyncio.timeout(then):
            await reader.read()

    return script


async def exchange(connection: Connection) -> bytes:
    """One exchange on a connection: the body of its answer."""
    _, head = request_head("GET", "http://127.0.0.1/x", {}, 0)
    connection.send(head, b"")
    await connection.head()
    blocks = []
    while block := await connection.block():
        blocks.append(block)
    return b"".join(blocks)


async def get(served: Served) -> tuple[Connection, bytes]:
    """One exchange, its connection given back to the pool."""
    shared = await pool()
    connection = await shared.take(served.origin, 5)
    try:
        return connection, await exchange(connection)
    finally:
        shared.give(served.origin, connection)


BODIES: dict[str, tuple[bytes, bytes, bool]] = {
    "length": (OK, b"hi", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", True),
    "chunked": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n", b"hi", True),
    "trailers": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx: y\r\n\r\n", b"hi", True),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"hi", True),
    "asked to close": (OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), b"hi", False),
    "old version": (OK.replace(b"1.1", b"1.0"), b"hi", False),
}


@pytest.mark.parametrize("case", BODIES)
async def test_every_framing_is_read(case: str) -> None:
    answer, body, kept = BODIES[case]
    async with serving(answering(answer, OK)) as served:
        connection, got = await get(served)
        assert (connection.status, got) == (200, body)
        assert "link" not in connection.headers
        if kept:
            again, got = await get(served)
            assert again is connection
            assert got == b"hi"
        assert served.connections == 1


@pytest.mark.parametrize("case", ["length", "chunked", "trailers", "interim"])
async def test_every_framing_is_read_a_byte_at_a_time(case: str) -> None:
    answer, body, _ = BODIES[case]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in answer:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await reader.read()

    async with serving(script) as served:
        assert (await get(served))[1] == body


async def test_the_end_of_the_connection_ends_an_unframed_body() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhi")

    async with serving(script) as served:
        connection, got = await get(served)
        assert (got, connection.reusable) == (b"hi", False)


@pytest.mark.parametrize(
    ("answer", "started"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\ncontent-le", False),
        (b"NOT HTTP\r\n\r\n", False),
        (OK[:-1], True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhi", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nhi", True),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", False),
    ],
)
async def test_what_is_cut_or_not_http_fails_and_says_whether_it_had_begun(answer: bytes, started: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with serving(script) as served:
        with pytest.raises(HttpError) as raised:
            await asyncio.wait_for(get(served), 5)
        assert raised.value.started is started


async def test_a_connection_that_sent_more_than_its_answer_is_not_used_again() -> None:
    async with serving(answering(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", OK)) as served:
        connection, got = await get(served)
        assert (connection.headers["content-length"], got) == ("2", b"hi")
        again, got = await get(served)
        assert again is not connection
        assert got == b"hi"


async def test_a_kept_connection_on_which_something_unasked_comes_is_not_used_again() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(OK.replace(b"hi", b"no"))
        await reader.read()

    async with serving(script) as served:
        connection, _ = await get(served)
        async with asyncio.timeout(5):
            while connection.alive:
                await asyncio.sleep(0.01)
        assert (await get(served))[1] == b"hi"
        assert served.connections == 2


@pytest.mark.parametrize("busy", [True, False], ids=["while the loop is busy", "while the loop is idle"])
async def test_a_kept_connection_that_the_service_has_closed_is_replaced(busy: bool) -> None:
    with closing_server() as port:
        llm = Gpt(model="m", api_key="k", base_url=f"http://127.0.0.1:{port}/v1")
        for _ in range(3):
            assert (await execute(llm, ASK)).content == "Hi"
            time.sleep(0.1) if busy else await asyncio.sleep(0.1)
    (await pool()).close()


@contextmanager
def closing_server() -> Iterator[int]:
    """A server in a process of its own, which says that it keeps a connection and then closes it."""
    code = """if True:
        import socket, sys
        server = socket.create_server(("127.0.0.1", 0))
        print(server.getsockname()[1], flush=True)
        answer = bytes.fromhex(sys.argv[1])
        while True:
            peer, _ = server.accept()
            data = b""
            while b"}]" not in data:
                data += peer.recv(65536)
            peer.sendall(answer)
            peer.close()
    """
    answer = plain_bytes(Plain(completion("Hi"))).hex()
    with subprocess.Popen([sys.executable, "-c", code, answer], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def test_case_11_a_slow_listener_stops_the_service() -> None:
    line = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 10_000)
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for _ in range(1_000):
            writer.write(line)
            await writer.drain()
            sent += len(line)
        writer.write(b"data: [DONE]\n\n")

    async with serving(script) as served:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(event: Event) -> None:
            if isinstance(event, Chunks):
                begun.set()
                await go_on.wait()

        llm = Gpt(model="m", api_key="k", base_url=f"http://127.0.0.1:{served.port}/v1")
        task = asyncio.create_task(execute(llm, ASK, slow))
        await asyncio.wait_for(begun.wait(), 5)
        await asyncio.sleep(0.5)
        assert HIGH_WATER < sent < 1_000_000
        go_on.set()
        assert len((await asyncio.wait_for(task, 20)).content) == 10_000_000
        assert sent == 1_000 * len(line)


async def test_a_service_that_accepts_no_connection_is_given_up_within_the_limit() -> None:
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for peer in (first, second):  # fill the queue of those who wait to be accepted
            peer.setblocking(False)
            peer.connect_ex(listening.getsockname())
        llm = Gpt(
            model="m", api_key="k", base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1", limits=Limits(0.2)
        )
        began = time.monotonic()
        with pytest.raises(TimedOut, match=r"did not accept a connection within 0\.2 s"):
            await execute(llm, ASK)
        assert 0.18 <= time.monotonic() - began < 2


@pytest.mark.parametrize("url", ["ftp://a.test/x", "/v1/chat", "http://", "a.test:80"])
def test_what_is_no_http_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not an http or https address"):
        request_head("GET", url, {}, 0)


@pytest.mark.parametrize("headers", [{"x": "a\r\ny: b"}, {"x\n": "a"}, {"x": "a\rb"}])
def test_case_24_a_line_break_in_a_header_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="line break"):
        request_head("GET", "http://a.test/", headers, 0)


@pytest.mark.parametrize(
    ("url", "host", "path", "port"),
    [
        ("http://a.test", b"a.test", b"/", 80),
        ("https://a.test/v1/x?y=z", b"a.test", b"/v1/x?y=z", 443),
        ("http://a.test:8080/x", b"a.test:8080", b"/x", 8080),
        ("http://[::1]:81/x", b"[::1]:81", b"/x", 81),
        ("http://user:secret@a.test/x", b"a.test", b"/x", 80),
    ],
)
def test_a_head_names_host_and_path(url: str, host: bytes, path: bytes, port: int) -> None:
    origin, head = request_head("POST", url, {"a": "b"}, 7)
    assert head == b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-length: 7\r\na: b\r\n\r\n" % (path, host)
    assert origin[2] == port


async def test_idle_connections_are_closed_while_others_are_in_use() -> None:
    async with serving(answering(OK, OK)) as served, serving(answering(OK, OK)) as other:
        shared = await pool()
        kept = [await shared.take(served.origin, 5, fresh=True) for _ in range(3)]
        for connection in kept:
            await exchange(connection)
            shared.give(served.origin, connection)
        for connection in kept[:2]:
            connection.idle_since -= IDLE_S
        await get(other)
        assert [connection.alive for connection in kept] == [False, False, True]
        again, _ = await get(served)
        assert again is kept[2]


async def test_no_more_idle_connections_are_kept_than_the_most() -> None:
    async with serving(answering(OK)) as served:
        shared = await pool()
        kept = [await shared.take(served.origin, 5) for _ in range(MAX_IDLE // 16)]
        for connection in kept:
            await exchange(connection)
        for connection in kept * 17:
            shared.give(served.origin, connection)
        assert len(shared._idle[served.origin]) == MAX_IDLE


def test_an_event_loop_that_has_ended_is_let_go(upstream: Upstream) -> None:
    llm, before = Gpt(model="m", api_key="k", base_url=upstream.base_url), len(_pools._held)
    for _ in range(20):
        asyncio.run(execute(llm, ASK))
    gc.collect()
    assert len(_pools._held) == before


def test_the_pool_is_closed_with_its_event_loop(upstream: Upstream) -> None:
    llm = Gpt(model="m", api_key="k", base_url=upstream.base_url)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            assert asyncio.run(execute(llm, ASK)).content == "Hello"
        gc.collect()
    assert [str(warning.message) for warning in said] == []
    deadline = time.monotonic() + 5
    while upstream.open_connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (upstream.connections, upstream.open_connections) == (3, 0)


async def test_case_23_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    seen = bytearray()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        seen.extend(await reader.read())

    async with serving(script, tls_of(certificate)) as served:
        llm = Gpt(model="m", api_key="sk-test-key", base_url=f"https://127.0.0.1:{served.port}/v1")
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await execute(llm, ASK)
    assert not seen


async def test_tls_is_spoken_to_a_service_that_is_trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    answer = plain_bytes(Plain(completion("Hi")))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            writer.write(answer)
        await reader.read()

    async with serving(script, tls_of(certificate)) as served:
        llm = Gpt(model="m", api_key="sk-test-key", base_url=f"https://127.0.0.1:{served.port}/v1")
        for _ in range(2):
            assert (await execute(llm, ASK)).content == "Hi"
        assert served.connections == 1
