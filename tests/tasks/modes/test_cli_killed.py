"""Commands that are stopped, with all that they started."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from penstock.errors import TaskFailed
from penstock.policies.timeout import timeout
from penstock.run import execute
from penstock.tasks.modes import Work, child
from penstock.tasks.modes.cli import cli
from tests.tasks.modes.commands import TASK, done, exists, living, pids, printing, script

FAMILY = """
trap '' TERM
sh -c 'trap "" TERM; echo $$ >> "$0"; sleep 60; :' "$0" &
sh -c 'echo $$ >> "$0"; exec sleep 60' "$0" &
echo $$ > "$0.first"
sleep 60; :
"""
PARENT = """
import asyncio, os, sys
from penstock.tasks.modes.child import run_child
asyncio.run(run_child(sys.argv[1:], stdin=b"", env=dict(os.environ), cwd=None, most=1000))
"""


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ignores SIGTERM is killed sooner."""
    monkeypatch.setattr(child, "GRACE_S", 0.2)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_row_c5_the_deadline_kills_a_command_and_all_its_children(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def main(file: Path, limit_s: float) -> None:
        late = timeout(limit_s, error=lambda text: TaskFailed(text, code="timeout"))
        with pytest.raises(TaskFailed) as raised:
            await execute(late(cli), Work(TASK, script(FAMILY, file)))
        assert raised.value.code == "timeout"

    file = tmp_path
    for limit_s in (0.15, 0.6, 2.4):  # the children must be there by then, also on a machine that is busy
        file = tmp_path / f"pids-{limit_s}"
        began = time.monotonic()
        run(main(file, limit_s))
        assert time.monotonic() - began < limit_s + 0.85
        if file.exists() and len(file.read_text().split()) == 2:
            break
    assert not living(pids(file, 2))
    assert not exists(pids(tmp_path / f"{file.name}.first", 1)[0])


@pytest.mark.usefixtures("short_grace")
async def test_row_c5_cancels_in_a_row_leave_nobody_behind(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    task = asyncio.create_task(done(script(FAMILY, file)))
    family = await asyncio.to_thread(pids, file, 2)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
    assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not living(family)


async def test_row_c5_a_cancel_before_the_start_leaves_nobody_behind(tmp_path: Path) -> None:
    for steps in range(4):
        task = asyncio.create_task(done(script('echo $$ >> "$0"; exec sleep 60', tmp_path / "pids")))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    started = tmp_path / "pids"
    assert not living(map(int, started.read_text().split() if started.exists() else []))


async def test_row_c5_a_stopped_command_may_tidy_up(tmp_path: Path) -> None:
    text = """trap 'echo tidy > "$0"; exit 0' TERM; echo $$ > "$1"; while :; do sleep 0.01; done"""
    task = asyncio.create_task(done(script(text, tmp_path / "tidied", tmp_path / "pid")))
    [pid] = await asyncio.to_thread(pids, tmp_path / "pid", 1)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "tidied").read_text() == "tidy\n"
    assert not exists(pid)
    assert time.monotonic() - began < child.GRACE_S / 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not show who started whom")
async def test_row_c5_a_descendant_that_left_the_group_is_killed_too(tmp_path: Path) -> None:
    away = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    text = f"""{sys.executable} -S -E -c '{away}' >> "$0" & echo $$ >> "$0"; wait"""
    task = asyncio.create_task(done(script(text, tmp_path / "pids")))
    family = await asyncio.to_thread(pids, tmp_path / "pids", 2)
    assert len({os.getpgid(pid) for pid in family}) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not living(family)


def test_row_c5_a_command_dies_with_a_process_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "sh", "-c", FAMILY, str(file)])
    family = pids(file, 2) + pids(tmp_path / "pids.first", 1)
    time.sleep(0.1)
    parent.kill()
    parent.wait()
    assert not living(family)


async def test_row_c5_commands_leave_no_descriptors_open() -> None:
    def opened() -> int:
        return sum(1 for _ in Path("/dev/fd").iterdir())

    agent = script(printing('{"status": "success"}'))
    await done(agent)
    before = opened()
    for _ in range(5):
        await done(agent)
        with pytest.raises(TaskFailed):
            await done(script("exit 1"))
    assert opened() == before
