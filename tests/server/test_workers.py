"""Several processes on one socket: each hears a signal once, and one that dies is started again, not forever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gateway import children, no_proc
from tests.rig.serving import ROOT, free_port
from tests.rig.upstream import Plain, Upstream, completion
from tests.server.gateway import chat, gateway_process

SUPERVISE = """if True:
    import socket, sys
    from penstock.server import serve
    serve.DEATHS_WITHIN_S = float(sys.argv[1])
    sys.exit(serve.supervise(["/bin/sh", "-c", sys.argv[3], sys.argv[4]], int(sys.argv[2]), socket.socket()))
"""


def supervised(folder: Path, script: str, *, workers: int, within_s: float = 60.0) -> subprocess.Popen[bytes]:
    """`supervise` in a process of its own, with shells for workers; `$0` is the folder."""
    command = [sys.executable, "-c", SUPERVISE, str(within_s), str(workers), script, str(folder)]
    variables = {**os.environ, "PYTHONPATH": "src"}
    return subprocess.Popen(command, env=variables, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)


def ended(process: subprocess.Popen[bytes], within_s: float = 10.0) -> int:
    """The exit code; whatever is left of the process's group is killed."""
    try:
        return process.wait(within_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_case_12_a_signal_to_the_whole_process_group_drains_the_workers(
    number: signal.Signals, upstream: Upstream
) -> None:
    upstream.default = lambda _: Plain(completion("late"), think_s=0.8)
    with gateway_process(upstream, "--workers", "2") as served:
        assert served.process is not None
        running = [asyncio.create_task(asyncio.to_thread(served.post, chat(stream=False))) for _ in range(4)]
        await asyncio.to_thread(upstream.wait_requests, 4)
        os.killpg(served.process.pid, number)
        for answer in running:
            assert (await answer).status_code == 200
        assert await asyncio.to_thread(served.process.popen.wait, 10) == 0
        assert "Traceback" not in served.process.stderr()


def test_case_12_a_signal_while_the_workers_are_started_reaches_all(tmp_path: Path) -> None:
    once = 'mkdir "$0/told" 2>/dev/null && kill -TERM $PPID; exec sleep 60'
    assert ended(supervised(tmp_path, once, workers=40)) == 0


@pytest.mark.skipif(bool(no_proc()), reason=no_proc())
@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_case_12_a_server_told_to_stop_as_it_starts_its_workers_ends(
    number: signal.Signals, after_s: float, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "penstock", "serve", "--port", str(free_port()), "--workers", "3"]
    variables = {**os.environ, "PYTHONPATH": "src"}
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        process = subprocess.Popen(command, env=variables, cwd=ROOT, stderr=stderr, start_new_session=True)
    try:
        until(lambda: bool(children(process.pid)))
        time.sleep(after_s)
        os.killpg(process.pid, number)
    finally:
        code = ended(process)
    assert (code, "Traceback" in said.read_text()) == (0, False)


def test_workers_that_die_again_and_again_are_given_up(tmp_path: Path) -> None:
    assert ended(supervised(tmp_path, 'echo >>"$0/starts"; exit 3', workers=2)) == 1
    assert 11 <= len((tmp_path / "starts").read_text()) <= 13


def test_all_workers_that_die_at_once_are_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    process = supervised(tmp_path, 'echo >>"$0/starts"; [ -e "$0/well" ] || exit 3; exec sleep 60', workers=1)
    try:
        until(lambda: starts.exists() and len(starts.read_text()) >= 2)
        (tmp_path / "well").touch()
        time.sleep(0.3)
        process.terminate()
    finally:
        code = ended(process)
    assert code == 0


def test_deaths_of_long_ago_are_forgotten(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    process = supervised(tmp_path, 'echo >>"$0/starts"; sleep 0.05; exit 3', workers=1, within_s=0.1)
    try:
        until(lambda: starts.exists() and len(starts.read_text()) >= 9)
        process.terminate()
    finally:
        code = ended(process)
    assert code == 0
