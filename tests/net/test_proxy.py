"""https through the proxy that the environment names: a real tunnel, and every way in which it fails."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.errors import Unavailable
from penstock.llms.openai import Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatRequest
from penstock.net.proxy import proxy_for
from penstock.run import execute
from tests.net.conftest import Served, serving, tls_of
from tests.rig.answers import plain_bytes
from tests.rig.upstream import Plain, completion

ASK = ChatRequest.of("Hello")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service that answers every request."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        writer.write(plain_bytes(Plain(completion("Hi"))))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def tunnelling() -> AsyncIterator[Served]:
    """A proxy that opens every tunnel it is asked for; `heads` are the requests."""
    heads: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        host, port = head.split(b" ")[1].rsplit(b":", 1)
        inside = await asyncio.open_connection(host.decode(), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, inside[1]), pump(inside[0], writer), return_exceptions=True)

    async with serving(proxy) as served:
        served.heads = heads
        yield served


def llm(service: Served) -> Gpt:
    limits = Limits(connect_s=2, total_s=5)
    return Gpt(model="m", api_key="sk-test-key", base_url=f"https://127.0.0.1:{service.port}/v1", limits=limits)


@pytest.fixture(autouse=True)
def _trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


async def test_https_goes_through_the_tunnel_and_keeps_it(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answer, tls_of(certificate)) as service, tunnelling() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:s%3Acret@127.0.0.1:{proxy.port}")
        ask = llm(service)
        assert (await execute(ask, ASK)).content == "Hi"
        assert (await execute(ask, ASK)).content == "Hi"
        [head] = proxy.heads
        assert head.startswith(f"CONNECT 127.0.0.1:{service.port} HTTP/1.1\r\n".encode())
        assert b"proxy-authorization: Basic " + base64.b64encode(b"ann:s:cret") in head
        assert b"sk-test-key" not in head
        assert service.connections == 1


async def test_a_host_that_no_proxy_names_is_dialled_directly(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(answer, tls_of(certificate)) as service, tunnelling() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert (await execute(llm(service), ASK)).content == "Hi"
        assert not proxy.heads


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "SSH-2.0"),
        (b"x" * 20_000, "xxxx"),
        (b"", "closed the connection"),
    ],
    ids=["refused", "not http", "endless", "closed"],
)
async def test_a_proxy_that_opens_no_tunnel_is_told(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, told: str
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    async with serving(answer, tls_of(certificate)) as service, serving(refuse) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        with pytest.raises(Unavailable, match=told):
            await execute(llm(service), ASK)
        assert service.connections == 0


async def test_a_proxy_of_another_kind_is_refused(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answer, tls_of(certificate)) as service:
        monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
        with pytest.raises(Unavailable, match="not an http address"):
            await execute(llm(service), ASK)


def test_without_a_variable_there_is_no_proxy() -> None:
    assert proxy_for("api.openai.com", 443) is None
