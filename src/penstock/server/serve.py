"""Runs the application on uvicorn: one process or several, drained before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.config import Catalog, Settings
from penstock.run import Principal
from penstock.server.app import App, Options
from penstock.server.auth import Auth, Token, hash_of
from penstock.server.log import configure
from penstock.server.respond import CONNECTION, Manner
from penstock.server.tracing import export_to, flush

KEEP_ALIVE_S = 75
SETTLE_S = 0.5
PIPELINED = 16
UNSENT_BYTES = 128 * 1024
_UNSENT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # not on every system
LAST_S = 1.0
_log = logging.getLogger("penstock.server")


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also tells an answer that its client left, and lets it give the client up."""

    lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Keep the kernel from queueing megabytes for a client that reads slowly."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if _UNSENT is not None and sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, _UNSENT, UNSENT_BYTES)

    def on_message_begin(self) -> None:
        """Offer this connection to the application."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        """Read on while a few requests wait for the answer before theirs: an unread connection tells of no leaving."""
        super().on_headers_complete()
        if self.pipeline and len(self.pipeline) <= PIPELINED:
            self.flow.resume_reading()

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


class Server(uvicorn.Server):
    """uvicorn with a drain: on the first signal new requests are refused while running ones may finish."""

    def __init__(self, config: uvicorn.Config, app: App, *, drain_s: float) -> None:
        super().__init__(config)
        self._app, self._drain_s = app, drain_s
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Drain on SIGTERM and SIGINT; a second signal stops at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Begin to drain, or stop at once when already draining."""
        if self._draining is not None:
            self._end_runs("the server was told to stop at once")
            self.should_exit = True
            return
        self._app.drain()
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        _log.info("draining: %d requests are running, %g s to finish", len(self._app.running), self._drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                # a moment for requests that are on their way, which get their 503
                await asyncio.sleep(min(SETTLE_S, self._drain_s / 2))
                await self._app.idle.wait()
        self._end_runs("the server is shutting down")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                await self._app.idle.wait()
        self.should_exit = True

    def _end_runs(self, reason: str) -> None:
        for answer in list(self._app.running):
            answer.stop(reason)


def run(settings: Settings, *, config_path: str | None = None, fd: int | None = None) -> int:
    """Serve until a signal, with as many processes as the settings say; returns the exit code.

    `fd` is a listening socket that was handed down: this process is one of several.
    """
    server = settings.server
    configure(server.log)
    try:
        sock = socket.socket(fileno=fd) if fd is not None else bind(server.host, server.port)
    except OSError as error:
        _log.error("cannot listen on %s port %d: %s", server.host, server.port, error.strerror)
        return 1
    if fd is None and server.workers > 1:
        config = ["--config", config_path] if config_path else []
        address = ["--host", server.host, "--port", str(server.port), "--log", server.log, "--workers", "1"]
        return supervise([sys.executable, "-m", "penstock", "serve", *config, *address], server.workers, sock)
    if settings.tracing.otlp is not None:
        export_to(settings.tracing.otlp)
    serve(application(settings), sock, drain_s=server.drain_s)
    if settings.tracing.otlp is not None:
        flush()
    return 0


def application(settings: Settings) -> App:
    """The ASGI application that the settings describe."""
    server, tracing = settings.server, settings.tracing
    tokens = [
        Token(
            token.hash or hash_of(token.value.get_secret_value() if token.value else ""),
            Principal(token.name, token.tenant or token.name, frozenset(token.scopes)),
        )
        for token in settings.auth.tokens
    ]
    options = Options(
        auth=Auth(tokens),
        manner=Manner(server.disconnect, server.heartbeat_s, server.write_stall_s),
        max_body_mb=server.max_body_mb,
        cors_origins=tuple(server.cors_origins),
        traced=tracing.otlp is not None,
        trace_content=tracing.content,
    )
    return App(Catalog(settings, os.environ), options)


def serve(app: App, sock: socket.socket, *, drain_s: float) -> None:
    """Serve on a bound socket in this process until a signal; returns when drained."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
        backlog=4096,
    )
    gc.collect()
    gc.freeze()  # what was loaded stays: the collector need not look through it at every full collection
    Server(config, app, drain_s=drain_s).run(sockets=[sock])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket at host and port; port 0 takes a free one. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock


def supervise(command: Sequence[str], workers: int, sock: socket.socket) -> int:
    """Run `workers` child processes of `command` on one socket, start a dead one again, pass signals on; returns 0."""
    stopping = False
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command_line = [*command, "--fd", str(sock.fileno())]
        return subprocess.Popen(command_line, pass_fds=[sock.fileno()])  # noqa: S603  # this program itself

    def stop(number: int, _: Any) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    children += [start() for _ in range(workers)]
    failures = 0
    while any(child.poll() is None for child in children):
        with contextlib.suppress(subprocess.TimeoutExpired):
            children[0].wait(0.2)
        for place, child in enumerate(children):
            if not stopping and child.poll() is not None:
                failures += 1
                _log.error("worker %d ended with code %s", child.pid, child.returncode)
                if failures > 5 * workers:
                    stop(signal.SIGTERM, None)
                    return 1
                children[place] = start()
    return 0
