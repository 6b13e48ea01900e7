"""Penstock's own server in front of the scripted upstream: in a thread, or as the process that users start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import yaml

from penstock.config import Settings
from penstock.server.protocol import Protocol
from penstock.server.serve import application
from tests.rig.answers import Stream, stream_writes
from tests.rig.serving import Process, running, serve_asgi
from tests.rig.upstream import Upstream, echo

KEY = "sk-canary-upstream-0123456789abcdef"
NO_DRAIN = {"drain_s": 0.05}  # for a process that is told to stop when nothing runs: it ends half a second sooner
MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running server and a plain client for it."""

    url: str
    http: httpx.Client
    process: Process | None = None

    def sdk(self, **options: Any) -> openai.OpenAI:
        """The official client, which tries once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="sk-client", max_retries=0, **options)

    def async_sdk(self, **options: Any) -> openai.AsyncOpenAI:
        """The official asynchronous client, which tries once."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="sk-client", max_retries=0, **options)

    def post(self, body: Any, *, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        """One chat request; bytes are sent as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} | {name.replace("_", "-"): said for name, said in headers.items()}
        return self.http.post(f"{self.url}{path}", content=content, headers=sent)

    def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        """One request without a body."""
        sent = {name.replace("_", "-"): said for name, said in headers.items()}
        return self.http.request(method, f"{self.url}{path}", headers=sent)

    async def open(self, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which a chat request has been sent."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(raw_chat(**fields))
        await writer.drain()
        return reader, writer


def chat(*, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": "rig", "messages": MESSAGES, "stream": stream, **fields}


def raw_chat(*, headers: Mapping[str, str] | None = None, **fields: Any) -> bytes:
    """A chat request as it stands on the wire."""
    body = json.dumps(chat(**fields)).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: penstock", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", *(f"{name}: {said}" for name, said in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def settings_of(
    base_url: str,
    *,
    server: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    tokens: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What `penstock.yaml` says for one model of the upstream."""
    row = {"name": "rig", "llm": "openai:rig", "api_key": KEY, "base_url": base_url, **(model or {})}
    return {"server": dict(server or {}), "auth": {"tokens": list(tokens)}, "models": [row]}


@contextlib.contextmanager
def gateway(
    upstream: Upstream,
    *,
    front: Callable[[Any], Any] | None = None,
    plain: bool = False,
    **settings: Any,
) -> Generator[Gateway]:
    """The server in a thread. `front` puts a middleware before it; `plain` leaves uvicorn's own protocol in place."""
    app = application(Settings.model_validate(settings_of(upstream.base_url, **settings)))
    options: dict[str, Any] = {} if plain else {"http": Protocol}
    with serve_asgi(front(app) if front else app, log_config=None, **options) as url, _http() as http:
        yield Gateway(url=url, http=http)


def _http() -> httpx.Client:
    return httpx.Client(timeout=20, trust_env=False, verify=False)


@contextlib.contextmanager
def gateway_process(upstream: Upstream, *arguments: str, **settings: Any) -> Generator[Gateway]:
    """The server as its own process, with a configuration file."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        file = Path(folder, "penstock.yaml")
        file.write_text(yaml.safe_dump(settings_of(upstream.base_url, **settings)))
        serve = [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--port", "{port}", *arguments]
        ready = "http://127.0.0.1:{port}/health"
        with running(serve, ready=ready, env={"PYTHONPATH": "src"}) as process, _http() as http:
            yield Gateway(url=process.base_url, http=http, process=process)


@dataclass(frozen=True, slots=True)
class Calm:
    """A server and an upstream for many tests that leave nothing running behind."""

    upstream: Upstream
    served: Gateway

    def cleared(self) -> Upstream:
        """The upstream as if it were new."""
        self.upstream.requests.clear()
        self.upstream.closed_early.clear()
        self.upstream.default = echo
        self.upstream._script.clear()
        return self.upstream


class AccessLog(logging.Handler):
    """Keeps the facts of each request as they are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.rows.append(record.__dict__["fields"])

    async def row(self, count: int = 1) -> dict[str, Any]:
        """The row of the request that ended as number `count`."""
        async with asyncio.timeout(5):
            while len(self.rows) < count:
                await asyncio.sleep(0.005)
        return self.rows[count - 1]


@contextlib.contextmanager
def access_log() -> Generator[AccessLog]:
    """Listens to the log of requests."""
    logger, log = logging.getLogger("penstock.access"), AccessLog()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
        logger.propagate = propagate


def sse_bytes(answer: Stream) -> bytes:
    """The body that a stream of the upstream has, without its framing."""
    return b"".join(dechunked(b"".join(pieces)) for pieces in stream_writes(answer))


def dechunked(data: bytes) -> bytes:
    """A chunked body's content; raises `ValueError` where a chunk is broken."""
    found: list[bytes] = []
    while data:
        head, _, data = data.partition(b"\r\n")
        size = int(head, 16)
        found.append(data[:size])
        if data[size : size + 2] != b"\r\n":
            raise ValueError(f"a chunk of {size} bytes is not whole")
        data = data[size + 2 :]
    return b"".join(found)


def events_of(body: bytes) -> list[Any]:
    """The JSON of each event of a stream, `"[DONE]"` for the end mark; comments are left out."""
    found: list[Any] = []
    for event in body.split(b"\n\n"):
        if event.startswith(b"data: "):
            data = event.removeprefix(b"data: ")
            found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return found


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object of an answer, which has all four fields."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    return error
