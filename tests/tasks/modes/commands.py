"""Agents that are small shell scripts, and what is left of their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from penstock.run import execute
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes import Answer, Work
from penstock.tasks.modes.cli import cli
from penstock.tasks.task import AgentTask
from penstock.testing import Heard

TASK = AgentTask(
    id="write",
    title="A poem",
    description="Write a poem.",
    deliverables=("poem.txt",),
    success_criteria=("It rhymes.",),
    inputs={"lines": 4},
    priority=3,
)


def script(text: str, *arguments: object, **fields: Any) -> AgentConfig:
    """An agent that runs a shell script; its arguments are $0, $1 and so on."""
    return AgentConfig(name="poet", mode="cli", command=("sh", "-c", text, *map(str, arguments)), **fields)


def printing(answer: str) -> str:
    """A script that prints an answer."""
    return f"cat <<'END'\n{answer}\nEND\n"


async def done(agent: AgentConfig, heard: Heard | None = None, **work: Any) -> Answer:
    """What an agent of mode cli gives for the task."""
    return await execute(cli, Work(TASK, agent, **work), heard)


def pids(path: Path, count: int) -> list[int]:
    """The numbers that scripts wrote into a file, once there are so many."""
    found: list[str] = []
    for _ in range(500):
        found = path.read_text().split() if path.exists() else []
        if len(found) >= count:
            return [int(pid) for pid in found]
        time.sleep(0.01)
    raise AssertionError(f"only {found} of {count}")


def living(numbers: Iterable[int], seconds: float = 2.0) -> list[int]:
    """Those processes that still run after so long; a zombie that nobody reaped does not."""
    until = time.monotonic() + seconds
    while True:
        left = [pid for pid in numbers if _runs(pid)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether a process is there, if only as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return not Path("/proc/self").exists() and exists(pid)
    except ProcessLookupError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
