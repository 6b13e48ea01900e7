"""What starting costs: `import penstock` in a fresh process, and a server that is ready and idle."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import sleep
from typing import TYPE_CHECKING, Any

from benchmarks.child import environment, serving
from benchmarks.table import Figure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

TITLE = "Start (median of the rounds)"
ROUNDS = 5
SETTLE_S = 1.0

IMPORT = """
from time import perf_counter
started = perf_counter()
import {module}
took = perf_counter() - started
status = open("/proc/self/status").read()
print(took * 1e3, int(status.split("VmRSS:")[1].split()[0]) / 1024)
"""


async def bare(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer every request with 200: uvicorn's own cost, the floor of a server."""
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def importing(module: str) -> tuple[float, float]:
    """Milliseconds of the import and resident MB of the process after it."""
    script = IMPORT.format(module=module)
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    took, size = printed.stdout.split()
    return float(took), float(size)


def started(*command: str) -> tuple[float, float]:
    """Seconds from the start of a server's process to its first 200 on /health, and its resident MB when idle."""
    with serving(*command) as server:
        sleep(SETTLE_S)
        return server.ready_s, server.resident_mb()


def middle(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The median of both columns."""
    first, second = zip(*pairs, strict=True)
    return median(first), median(second)


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in child processes; floors are a bare interpreter and a bare uvicorn. Sizes come from /proc (Linux)."""
    rounds = 1 if quick else ROUNDS
    modules = ("sys", "penstock", "openai")
    imports = {module: middle(importing(module) for _ in range(rounds)) for module in modules}
    floor = middle(started("uvicorn", "benchmarks.start:bare", "--no-access-log") for _ in range(rounds))
    server = middle(started("penstock", "serve") for _ in range(rounds))
    return [
        Figure("import penstock", imports["penstock"][0], "ms", target=150),
        Figure("memory after import penstock", imports["penstock"][1], "MB", imports["sys"][1], 30),
        Figure("import openai, for comparison", imports["openai"][0], "ms"),
        Figure("memory after import openai", imports["openai"][1], "MB", imports["sys"][1]),
        Figure("server ready", server[0], "s", floor[0], 1.5),
        Figure("server's memory, idle", server[1], "MB", floor[1], 70),
    ]
