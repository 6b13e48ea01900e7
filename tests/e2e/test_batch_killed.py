"""`penstock batch` killed in the middle: nothing is lost that was stored, and nothing of it is asked for again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.batch_kept import ACCEPTED, JOURNAL
from penstock.store.journal import Journal
from tests.e2e.gateway import environment
from tests.rig.batches import asked, planner
from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream

ENDS_S = 60.0
ITEMS = 10_000 if os.environ.get("PENSTOCK_SOAK") else 1_500


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A model with a plan for each item."""
    with run_upstream() as served:
        served.default = planner()
        yield served


def start(folder: Path, upstream: Upstream, *options: str) -> subprocess.Popen[str]:
    env = {**os.environ, **environment(), "OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk-test"}
    command = [sys.executable, "-m", "penstock", "batch", "items.jsonl", "-m", "rig", "-o", "out.jsonl", *options]
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def written(folder: Path, count: int) -> None:
    (folder / "items.jsonl").write_text("".join(f'{{"id": {number}, "hp": 3}}\n' for number in range(count)))


def stored(folder: Path) -> list[int]:
    """The items whose values the journal has, in the order in which they were accepted."""

    async def read() -> list[Any]:
        async with Journal(folder / ".penstock" / JOURNAL) as journal:
            (run,) = [row for row in await journal.runs() if "file" in row.spec]
            return await journal.events(run.name, limit=100_000)

    return [json.loads(entry.value["row"])["id"] for entry in asyncio.run(read()) if entry.kind == ACCEPTED]


def wait_for(child: subprocess.Popen[str], folder: Path, lines: int) -> None:
    """Return when so many outcomes have been written."""
    deadline, out = time.monotonic() + ENDS_S, folder / "out.jsonl"
    while not out.exists() or out.read_bytes().count(b"\n") < lines:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.soak
def test_case_18_a_batch_is_killed_twice_and_no_stored_item_is_asked_for_again(
    tmp_path: Path, upstream: Upstream
) -> None:
    count = ITEMS
    written(tmp_path, count)
    known: set[int] = set()
    for part in (4, 2):
        with start(tmp_path, upstream, "--size", "20") as child:
            wait_for(child, tmp_path, count // part)
            child.kill()
        assert child.wait() == -signal.SIGKILL
        torn = (tmp_path / "out.jsonl").read_text().rpartition("\n")[0].splitlines()
        kept = stored(tmp_path)
        assert known <= {json.loads(line)["id"] for line in torn} <= set(kept)  # stored before it is counted
        assert len(kept) == len(set(kept)) < count
        assert not known & {key for request in upstream.chats for key in asked(request)}
        known = set(kept)
        upstream.requests.clear()
    with start(tmp_path, upstream, "--size", "20") as child:
        _, said = child.communicate(timeout=ENDS_S)
    assert f"{len(known):,} values are kept from before" in said
    assert (child.returncode, f"{count:,} of {count:,} items have values" in said) == (0, True), said
    again = [key for request in upstream.chats for key in asked(request)]
    assert sorted(again) == sorted(set(range(count)) - known)
    assert sorted(stored(tmp_path)) == [*range(count)]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [*range(count)]
    assert all(row["value"]["agent_id"] == row["id"] for row in rows)


def test_one_that_is_interrupted_says_what_is_kept_and_holds_its_run_and_output_until_then(
    tmp_path: Path, upstream: Upstream
) -> None:
    written(tmp_path, 400)
    upstream.default = planner(delay_s=0.05)
    with start(tmp_path, upstream) as child:
        wait_for(child, tmp_path, 20)
        with start(tmp_path, upstream) as other:
            _, said = other.communicate(timeout=ENDS_S)
        assert f"batch is being run by the process {child.pid}: wait for it, or stop it" in said
        assert other.returncode == 2
        with start(tmp_path, upstream, "-i", "Be brave.", "--new") as other:
            _, said = other.communicate(timeout=ENDS_S)
        assert "'out.jsonl' is being written by another process: wait for it, or name another file with -o" in said
        assert (other.returncode, "Be brave" in str([request.json for request in upstream.chats])) == (2, False)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=ENDS_S)
    assert child.returncode == 130
    kept = len(stored(tmp_path))  # of the one batch there is
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == kept
    assert f"{kept} of 400 items have their values, which are kept: the same command goes on" in said
    assert 20 <= kept < 400
