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
from collections import deque
from collections.abc import Generator, Sequence
from time import monotonic
from types import FrameType

import uvicorn

from penstock.config import Catalog, Settings
from penstock.config.tools import make_tools
from penstock.run import Principal
from penstock.server.app import App, Options
from penstock.server.auth import Auth, Token, hash_of
from penstock.server.client import Manner
from penstock.server.log import configure
from penstock.server.projects import Projects
from penstock.server.protocol import Protocol
from penstock.server.tracing import export_to, flush

KEEP_ALIVE_S = 75
SETTLE_S = 0.5
LAST_S = 1.0
SAME_SIGNAL_S = 1.0
DEATHS = 5
DEATHS_WITHIN_S = 60.0
_log = logging.getLogger("penstock.server")


class Server(uvicorn.Server):
    """uvicorn with a drain: on the first signal new requests are refused while running ones may finish."""

    def __init__(self, config: uvicorn.Config, app: App, *, drain_s: float) -> None:
        super().__init__(config)
        self._app, self._drain_s = app, drain_s
        self._draining: asyncio.Task[None] | None = None
        self._told = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Drain on SIGTERM and SIGINT; a second signal, a second or more later, stops at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which `_Children` had blocked
        try:
            yield
        finally:
            for handler in logging.getLogger().handlers:
                handler.flush()  # from here on a signal may end the process
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # uvicorn's signature
        """Begin to drain, or stop at once when already draining."""
        if self._draining is None:
            self._told = monotonic()
            self._app.drain()
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        elif monotonic() - self._told >= SAME_SIGNAL_S:  # a worker hears a terminal's Ctrl-C from its parent too
            self._app.stop("the server was told to stop at once")
            self.should_exit = True

    async def _drain(self) -> None:
        _log.info("draining: %d requests are running, %g s to finish", len(self._app.running), self._drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                # a moment for requests that are on their way, which get their 503
                await asyncio.sleep(min(SETTLE_S, self._drain_s / 2))
                await self._app.settled()
        self._app.stop("the server is shutting down")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                await self._app.idle.wait()
        self.should_exit = True


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
        folders = [part for name, path in settings.recordings if path for part in (f"--{name}", path)]
        return supervise([sys.executable, "-m", "penstock", "serve", *config, *address, *folders], server.workers, sock)
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
    tools = make_tools(settings.tools, os.environ, directory=settings.store.dir, trace_content=tracing.content)
    catalog = Catalog(settings, os.environ)
    return App(catalog, options, tools=tools, projects=Projects(settings, catalog))


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
    """Run `workers` child processes of `command` on one socket, start a dead one again, and pass signals on.

    Returns when all have ended: 0 after a signal, 1 when more than `DEATHS` for each worker died within a minute.
    """
    children = _Children(command, workers, sock.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, children.stop)
    return children.run()


class _Children:
    """Processes that share a listening socket; as many as wanted until they are told to stop."""

    def __init__(self, command: Sequence[str], wanted: int, fd: int) -> None:
        self._command, self._wanted, self._fd = [*command, "--fd", str(fd)], wanted, fd
        self._living: list[subprocess.Popen[bytes]] = []
        self._deaths: deque[float] = deque(maxlen=DEATHS * wanted + 1)
        self._signal: int | None = None

    def stop(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on, and start no more."""
        self._signal = number
        for child in self._living:
            child.send_signal(number)

    def run(self) -> int:
        code = 0
        while True:
            self._bury()
            if self._signal is None and self._dying():
                _log.error("the workers die again and again: giving up")
                code = 1
                self.stop(signal.SIGTERM, None)
            while self._signal is None and len(self._living) < self._wanted:
                self._start()
            if not self._living:
                return code
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._living[0].wait(0.2)

    def _start(self) -> None:
        # Inherited: a terminal's Ctrl-C waits for a worker that is not there yet, rather than break into its imports.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child = subprocess.Popen(self._command, pass_fds=[self._fd])  # noqa: S603  # this program itself
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._living.append(child)
        if self._signal is not None:  # it came before this one was in the list
            child.send_signal(self._signal)

    def _bury(self) -> None:
        for child in [child for child in self._living if child.poll() is not None]:
            self._living.remove(child)
            if self._signal is None:
                _log.error("worker %d ended with code %s", child.pid, child.returncode)
                self._deaths.append(monotonic())

    def _dying(self) -> bool:
        deaths = self._deaths
        return len(deaths) == deaths.maxlen and monotonic() - deaths[0] < DEATHS_WITHIN_S
