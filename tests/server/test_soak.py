"""Many requests, some of whose clients leave: everything that was taken for them is given back."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.rig.upstream import Upstream
from tests.server.gateway import Gateway, chat, gateway_process, raw_chat

FULL = bool(os.environ.get("PENSTOCK_SOAK"))
REQUESTS = 200_000 if FULL else 2000
WARM_UP = REQUESTS // 2
LEAVING = 0.1
AT_ONCE = 20
MOST_GROWTH_KB = 20_000 if FULL else 5000


async def client(served: Gateway, count: int, chance: random.Random) -> None:
    """Sends requests on kept connections; leaves some of them before their end."""
    parts = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    for _ in range(count):
        writer.write(raw_chat(stream=chance.random() < 0.7))
        if chance.random() < LEAVING:
            await asyncio.sleep(chance.random() * 0.01)
            writer.transport.abort()
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            continue
        head = await reader.readuntil(b"\r\n\r\n")
        if b"chunked" in head:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
    writer.transport.abort()


async def load(served: Gateway, count: int, seed: int) -> None:
    async with asyncio.TaskGroup() as clients:
        for n in range(AT_ONCE):
            clients.create_task(client(served, count // AT_ONCE, random.Random(seed + n)))


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
async def test_case_13_nothing_is_left_of_many_requests(upstream: Upstream) -> None:
    with gateway_process(upstream) as served:
        assert served.process is not None
        pid = served.process.pid
        assert served.post(chat()).status_code == 200
        served.http.close()
        idle = open_files(pid)
        await load(served, WARM_UP, seed=1)
        warm = resident_kb(pid)
        await load(served, REQUESTS - WARM_UP, seed=2)
        grown = resident_kb(pid) - warm
        async with asyncio.timeout(5):  # what stays open are the kept connections to the upstream
            while open_files(pid) > idle + AT_ONCE:
                await asyncio.sleep(0.05)
        assert grown < MOST_GROWTH_KB
        assert "Traceback" not in served.process.stderr()
        log = served.process.stderr()
        assert log.count(" status=200 ") > REQUESTS * (1 - 2 * LEAVING)
        assert " status=499 " in log
        assert " status=5" not in log
