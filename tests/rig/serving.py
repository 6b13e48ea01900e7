"""Starts real servers for tests: an ASGI application on uvicorn in a thread, or any command as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
STARTS_WITHIN_S = 30.0
ENDS_WITHIN_S = 3.0
POLL_S = 0.01
MEASURED = "COVERAGE_PROCESS_CONFIG"  # set where coverage measures the children


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class _Server(uvicorn.Server):
    """uvicorn that looks every few milliseconds, not ten times a second, whether it is to stop and has stopped."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(POLL_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)
        while (self.server_state.connections or self.server_state.tasks) and not self.force_exit:
            await asyncio.sleep(POLL_S)
        if not self.force_exit:
            await self.lifespan.shutdown()


@contextlib.contextmanager
def serve_asgi(app: Any, **settings: Any) -> Generator[str]:
    """Serves an ASGI application on uvicorn with uvloop and httptools in a thread; yields its base URL.

    `settings` go to `uvicorn.Config`, for example `lifespan="off"`.
    """
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    usual: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "log_level": "warning"}
    config = uvicorn.Config(app, **(usual | settings))
    server = _Server(config)

    def run() -> None:
        # uvicorn exits when an application does not start; that is told below.
        with contextlib.suppress(SystemExit):
            server.run(sockets=[listener])

    thread = threading.Thread(target=run, name="uvicorn", daemon=True)
    thread.start()
    try:
        _until(lambda: server.started, alive=thread.is_alive, what="uvicorn")
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = True
        thread.join(5.0)
        server.force_exit = True
        thread.join(5.0)
        listener.close()
    if thread.is_alive():
        raise RuntimeError("uvicorn did not stop within 10 s; a request of the application ignores its cancellation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A child process with its output in two files."""

    popen: subprocess.Popen[bytes]
    port: int
    out: Path
    err: Path

    @property
    def base_url(self) -> str:
        """Where the child listens if its command names `{port}`."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The child's process id, which is its process group too."""
        return self.popen.pid

    def stdout(self) -> str:
        """What the child has written to standard output so far."""
        return self.out.read_text(errors="replace")

    def stderr(self) -> str:
        """What the child has written to standard error so far."""
        return self.err.read_text(errors="replace")

    def terminate(self, timeout_s: float = 30.0) -> int:
        """Sends SIGTERM and returns the exit code; raises `subprocess.TimeoutExpired` past `timeout_s`."""
        self.popen.terminate()
        return self.popen.wait(timeout_s)


@contextlib.contextmanager
def running(
    cmd: Sequence[str],
    *,
    ready: str,
    env: Mapping[str, str] | None = None,
    within_s: float = STARTS_WITHIN_S,
    cwd: Path = ROOT,
) -> Generator[Process]:
    """Runs a command, by default from the project's root, and yields it once it is ready; ends its group afterwards.

    `{port}` stands for a free port in `cmd`, `ready` and the values of `env`. `ready` is a URL that answers 200, or a
    text in the output. `env` is laid over this process's environment. Raises `RuntimeError`, with the output, if the
    child ends first, and `TimeoutError` if it is not ready in time.
    """
    port = free_port()
    cmd, ready = [_with_port(part, port) for part in cmd], _with_port(ready, port)
    variables = {**os.environ, **{name: _with_port(value, port) for name, value in (env or {}).items()}}
    with tempfile.TemporaryDirectory(prefix="rig-") as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(cmd, env=variables, cwd=cwd, stdout=stdout, stderr=stderr, start_new_session=True)
        child = Process(popen=popen, port=port, out=out, err=err)
        try:
            _wait_ready(child, ready, within_s)
            yield child
        finally:
            _kill_group(popen)


def _with_port(text: str, port: int) -> str:
    return text.replace("{port}", str(port))


def _wait_ready(child: Process, ready: str, within_s: float) -> None:
    def is_ready() -> bool:
        if ready.startswith("http://"):
            return answers(ready)
        return ready in child.stdout() or ready in child.stderr()

    try:
        _until(is_ready, alive=lambda: child.popen.poll() is None, what=repr(child.popen.args), within_s=within_s)
    except (RuntimeError, TimeoutError) as error:
        error.add_note(f"stdout:\n{child.stdout()}\nstderr:\n{child.stderr()}")
        raise


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    if MEASURED in os.environ:  # asked first, so that the child can write down what it ran
        popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(ENDS_WITHIN_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200; asked past any proxy of the environment."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or HOST, parts.port, timeout=1.0)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _until(
    condition: Callable[[], bool], *, alive: Callable[[], bool], what: str, within_s: float = STARTS_WITHIN_S
) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if not alive():
            raise RuntimeError(f"{what} ended before it was ready")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready within {within_s:g} s")
        time.sleep(POLL_S)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The smallest ASGI application: 200 and the path."""
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})


if __name__ == "__main__":
    with serve_asgi(hello, lifespan="off") as url:
        sys.stdout.write(f"READY {url}\n")
        sys.stdout.flush()
        threading.Event().wait()
