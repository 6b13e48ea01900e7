"""Projects as people run them: the example of the README, killed in the middle, and gone on with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from penstock.config.projects import JOURNAL
from penstock.store.journal import Journal
from penstock.store.steps import Logged
from tests.e2e.gateway import environment
from tests.rig.serving import ROOT

EXAMPLE = ROOT / "examples" / "project.yaml"
STARTS_S = 30.0


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments],
        cwd=folder,
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def entries(child: subprocess.Popen[str], until: int) -> list[dict[str, object]]:
    """What the log of a run says, until so many tasks more have succeeded."""
    assert child.stdout is not None
    found: list[dict[str, object]] = []
    deadline = time.monotonic() + STARTS_S
    while sum(entry["state"] == "succeeded" for entry in found) < until:
        assert time.monotonic() < deadline
        found.append(json.loads(child.stdout.readline()))
    return found


def test_case_18_the_example_is_killed_twice_and_each_of_its_tasks_is_done_once(tmp_path: Path) -> None:
    text = EXAMPLE.read_text("utf-8")
    assert "pace_s: 0.06" in text
    (tmp_path / "project.yaml").write_text(text.replace("pace_s: 0.06", "pace_s: 0.004"))
    run = ("run", "project.yaml", "--json")
    with start(*run, folder=tmp_path) as first:
        entries(first, 3)
        os.kill(first.pid, signal.SIGSTOP)  # it lives, and holds the run
        with start(*run, "--resume", folder=tmp_path) as second:
            _, said = second.communicate(timeout=STARTS_S)
        assert (second.returncode, said) == (
            1,
            f"penstock: the run 'release' is held by the process {first.pid}: wait for it, or stop it\n",
        )
        first.kill()
    with start(*run, "--resume", folder=tmp_path) as third:
        entries(third, 4)
        third.kill()
    with start("run", "project.yaml", "--resume", folder=tmp_path) as last:
        out, shown = last.communicate(timeout=STARTS_S)
    assert last.returncode == 0, shown
    assert "12 of 12 tasks succeeded" in out
    lines = asyncio.run(logged(tmp_path / ".penstock" / JOURNAL))
    assert [line.offset for line in lines] == [*range(1, len(lines) + 1)]
    assert [line.kind for line in lines].count("resumed") == 2
    done = Counter(line.step for line in lines if line.state == "succeeded")
    assert (len(done), done.total()) == (12, 12)


async def logged(path: Path) -> list[Logged]:
    async with Journal(path) as journal:
        return await journal.events("release")
