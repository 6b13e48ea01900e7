"""The processes that are measured: started alone in an empty folder, pinned where asked, their CPU and memory read."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

READY_WITHIN_S = 30.0
STOPS_WITHIN_S = 10.0
ROOT = Path(__file__).parents[1]
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Child:
    """A server in a process of its own; `ready_s` is the time from its start to its first 200 on /health."""

    pid: int
    port: int
    ready_s: float

    def cpu_s(self) -> float:
        """CPU seconds that all threads of all its processes have had so far, from the scheduler's own books."""
        spent = 0
        for pid in self.pids():
            for thread in (PROC / str(pid) / "task").iterdir():
                with suppress(OSError):  # a thread that just ended
                    spent += int((thread / "schedstat").read_text().split()[0])
        return spent / 1e9

    def resident_mb(self) -> float:
        """The resident size of all its processes."""
        sizes = [(PROC / str(pid) / "status").read_text().split("VmRSS:")[1].split()[0] for pid in self.pids()]
        return sum(map(int, sizes)) / 1024

    def pids(self) -> list[int]:
        """The process and all that it started, directly or not."""
        children: dict[int, list[int]] = {}
        for path in PROC.glob("[0-9]*/stat"):
            with suppress(OSError):  # a process that just ended
                parent = int(path.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.parent.name))
        found = [self.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found


@contextmanager
def serving(*command: str, env: Mapping[str, str] | None = None, core: int | None = None) -> Generator[Child]:
    """Run `python -m command --port PORT` until it says 200 on /health; end it afterwards.

    Raises `RuntimeError` with its output when it is not ready in time.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        started = perf_counter()
        line = [sys.executable, "-m", *command, "--port", str(port)]
        process = subprocess.Popen(line, cwd=folder, env={**environment(), **(env or {})}, stdout=log, stderr=log)
        pin(process.pid, core)
        try:
            while not healthy(port):
                if process.poll() is not None or perf_counter() - started > READY_WITHIN_S:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} is not ready:\n{log.read().decode()}")
                sleep(0.005)
            yield Child(process.pid, port, perf_counter() - started)
        finally:
            process.terminate()
            try:
                process.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def pin(pid: int, core: int | None) -> None:
    """Keep a process that was just started on one core, where the system can."""
    if core is not None and sys.platform == "linux":
        os.sched_setaffinity(pid, {core})


def cores() -> tuple[int | None, int | None]:
    """Two different cores, for what is measured and for what measures it; none where there are not two to pin to."""
    allowed = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else (None, None)


def environment() -> dict[str, str]:
    """The environment without any provider, so that the demo model is served."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_BASE_URL", "_HOST"))}
    kept["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    return kept


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    """Whether /health says 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
