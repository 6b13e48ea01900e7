"""`penstock project` on a run that goes on in another process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from tests.cli.conftest import Command
from tests.cli.projects import seen, stands, written
from tests.cli.test_commands import COMMAND, environment


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the project of a folder, from when its slow task runs."""
    written(folder, "slow")
    child = subprocess.Popen(
        [*COMMAND, "run", "project.yaml"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen(folder / "pid")
        yield child
    finally:
        child.kill()
        child.communicate()


def test_it_is_watched_until_it_has_ended(tmp_path: Path, command: Command) -> None:
    with running(tmp_path) as child:
        stood = command("project", "status", folder=tmp_path)
        assert "site: running: 1 of 3 tasks succeeded" in stood.stdout
        assert [line.split()[:3] for line in stood.stdout.splitlines()[1:3]] == [
            ["✓", "plan", "success"],
            ["●", "write", "in"],
        ]
        refused = command("run", "project.yaml", folder=tmp_path)
        assert refused.returncode == 2
        assert "another process runs it; `penstock project status site --follow` shows it" in refused.stderr
        refused = command("project", "remove", "site", folder=tmp_path)
        assert refused.returncode == 2
        assert "the run 'site' is held by the process" in refused.stderr
        Timer(0.3, (tmp_path / "go").touch).start()
        followed = command("project", "status", "--follow", folder=tmp_path)
        assert child.wait(10) == 0
    assert followed.returncode == 0
    assert followed.stderr.splitlines()[0] == "site: 1 success, 1 in progress, 1 pending"
    assert "check: success" in followed.stderr
    assert "site: succeeded: 3 of 3" in followed.stdout


def test_it_is_cancelled_where_it_runs(tmp_path: Path, command: Command) -> None:
    with running(tmp_path) as child:
        done = command("project", "cancel", folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, "cancelled: the run 'site'\n")
        out, _ = child.communicate(timeout=20)
        assert child.returncode == 1
    assert "cancelled: 1 of 3 tasks succeeded" in out
    assert stands(tmp_path).state == "cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen(tmp_path / "pid")), 0)


def test_a_task_of_it_is_cancelled_and_what_needs_it_is_blocked(tmp_path: Path, command: Command) -> None:
    with running(tmp_path) as child:
        done = command("project", "cancel", "site", "write", folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, "cancelled: the task 'write' of 'site'\n")
        assert child.wait(20) == 1
    assert [step.state for step in stands(tmp_path).steps.values()] == ["succeeded", "cancelled", "blocked"]
