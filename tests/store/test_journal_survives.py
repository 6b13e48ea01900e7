"""`Journal` when the process is killed, the disk is full, the folder read-only, the file torn or damaged."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import Conflict, StoreFailed
from penstock.store.journal import Journal
from penstock.store.steps import PENDING, RUNNING, SUCCEEDED, Change, Note, Step

ROOT = Path(__file__).parents[2]
SEEDS = range(100 if os.environ.get("PENSTOCK_SOAK") else 10)
IMPORTS = """
import asyncio, os, resource, sys
from pathlib import Path
from penstock.errors import StoreFailed
from penstock.store.journal import Journal
from penstock.store.steps import *
"""
CHAIN = """
async def main(path, sync, acknowledged):
    async with Journal(path, sync=sync) as journal:
        steps = await journal.begin("chain", {"endless": True}, ["0"])
        number = len(steps) - 1
        if steps[str(number)].state == "running":
            await journal.write("chain", Change(str(number), "pending"))
        await journal.write("chain", Change(str(number), "running"))
        while True:
            then = str(number + 1)
            done = Change(str(number), "succeeded", {"text": "x" * (number % 50) * 100})
            more = Change(then, "pending"), Change(then, "running")
            await journal.write("chain", done, *more, at_once=number % 2 == 0)
            os.write(acknowledged, b"%d\\n" % number)
            number += 1

for line in sys.stdin:  # each a process of its own, which imports nothing again
    path, sync = line.split()
    acknowledged = os.open(path + ".told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if (child := os.fork()) == 0:
        asyncio.run(main(path, sync, acknowledged))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""
FULL = """
async def main():
    async with Journal(sys.argv[1], sync=sys.argv[2]) as journal:
        await journal.begin("r", None, "abc")
        await journal.write("r", Change("a", RUNNING), Change("a", SUCCEEDED, "kept"))
        if len(sys.argv) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        for write in [Change("b", RUNNING), Change("b", SUCCEEDED, "x" * 3_000_000)]:
            try:
                await journal.write("r", write)
            except StoreFailed as error:
                print(error, flush=True)
        print({step: stands.state for step, stands in (await journal.steps("r")).items()}, flush=True)
        print(await journal.write("r", Change("b", SUCCEEDED, "short"), Change("c", RUNNING)), flush=True)

asyncio.run(main())
"""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own, which imports what a journal needs first."""
    command = [sys.executable, "-c", IMPORTS + textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def told(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return said(process)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def whole_chain(path: Path) -> int:
    """How many steps of a chain are done, where all before the last are, and each with its value."""
    async with Journal(path) as journal:
        steps = await journal.begin("chain", {"endless": True}, ["0"])
        logged = await journal.events("chain", limit=100_000)
    *done, last = steps.items()
    assert [(name, step.state) for name, step in done] == [(str(number), SUCCEEDED) for number in range(len(done))]
    assert all(step.value == {"text": "x" * (int(name) % 50) * 100} for name, step in done)
    assert last[0] == str(len(done))
    assert last[1].state in {PENDING, RUNNING}
    assert [one.offset for one in logged] == list(range(1, len(logged) + 1))
    return len(done)


@pytest.mark.soak
async def test_case_18_killed_at_any_moment_no_committed_step_is_lost_and_none_is_torn(tmp_path: Path) -> None:
    nursery, lives = child(CHAIN), 0
    for seed in SEEDS:
        chance = random.Random(seed)
        path = tmp_path / f"{seed}.db"
        for _ in range(2):  # the second goes on where the first was killed
            process = int(told(nursery, f"{path} {chance.choice(['normal', 'normal', 'full'])}"))
            await asyncio.sleep(chance.uniform(0.005, 0.06))
            os.kill(process, signal.SIGKILL)
            assert said(nursery) == "dead"
            acknowledged = [int(line) for line in Path(f"{path}.told").read_text().split()]
            assert acknowledged == list(range(len(acknowledged)))
            done = await whole_chain(path) if path.exists() else 0
            assert done - len(acknowledged) in {0, 1}
            if done > len(acknowledged):  # committed, and killed before it could tell
                with Path(f"{path}.told").open("a") as file:
                    file.write(f"{done - 1}\n")
            lives += done
        assert not list(tmp_path.glob("*.owner-*"))
    assert lives > 20 * len(SEEDS)
    nursery.communicate(timeout=5)


async def test_case_18_a_run_is_taken_over_when_its_owner_is_dead_and_not_before(path: Path) -> None:
    nursery = child(CHAIN)
    process = int(told(nursery, f"{path} normal"))
    while not (told_file := Path(f"{path}.told")).exists() or not told_file.read_text():
        await asyncio.sleep(0.01)
    async with Journal(path) as journal:
        for _ in range(2):
            with pytest.raises(Conflict, match=f"the run 'chain' is held by the process {process}: ") as caught:
                await journal.begin("chain", {"endless": True}, ["0"])
            assert caught.value.code == "in_progress"
        assert await journal.steps("chain")
        os.kill(process, signal.SIGKILL)
        assert said(nursery) == "dead"
        steps = await journal.begin("chain", {"endless": True}, ["0"])
        assert [*steps.values()][-1] == Step(RUNNING)
        assert (await journal.events("chain", limit=100_000))[-1].kind == "resumed"
        assert len(list(path.parent.glob("*.owner-*"))) == 1
    nursery.communicate(timeout=5)


async def kept(path: Path) -> None:
    async with Journal(path) as journal:
        steps = await journal.begin("r", None, "abc")
        assert list(steps.values()) == [Step(SUCCEEDED, "kept"), Step(SUCCEEDED, "short"), Step(RUNNING)]


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_case_19_a_full_disk_is_a_typed_error_and_the_last_committed_state_opens(sync: str, path: Path) -> None:
    process = child(FULL, path, sync)
    assert re.match(rf"the journal '{re.escape(str(path))}': \w+", said(process))
    assert said(process) == "{'a': 'succeeded', 'b': 'running', 'c': 'pending'}"
    assert said(process) == "6"
    process.communicate(timeout=5)
    await kept(path)


async def test_case_19_a_device_without_room_says_so(tmp_path: Path) -> None:
    inside = tmp_path / "device"
    inside.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {inside} && touch {inside}/there"
    command = f'{mount} && "$@"; status=$?; cp {inside}/journal.db* {tmp_path}; exit $status'
    script = IMPORTS + FULL
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            command,
            "sh",
            sys.executable,
            "-c",
            script,
            inside / "journal.db",
            "normal",
            "-",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("the system allows no mount in a namespace of one's own")
    assert done.stdout.splitlines() == [
        f"the journal '{inside}/journal.db': database or disk is full: make room on the disk and try again",
        "{'a': 'succeeded', 'b': 'running', 'c': 'pending'}",
        "6",
    ]
    await kept(tmp_path / "journal.db")


async def test_case_19_a_read_only_folder_is_a_typed_error() -> None:
    script = """
    async def main():
        if os.geteuid() == 0:
            os.seteuid(65534)
        for name in ("there.db", "new.db"):
            try:
                async with Journal(Path(sys.argv[1]) / name) as journal:
                    await journal.begin("r", None, "ab")
            except StoreFailed as error:
                print(error, flush=True)

    asyncio.run(main())
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        async with Journal(folder / "there.db") as journal:
            await journal.begin("r", None, "ab")
        (folder / "there.db").chmod(0o444)
        folder.chmod(0o555)
        process = child(script, folder)
        assert re.match(r"the journal '.*there\.db': .*: make the file and its folder .*writable", said(process))
        assert re.match(r"the journal '.*new\.db': .*: make the file and its folder .*writable", said(process))
        process.communicate(timeout=5)
        folder.chmod(0o755)
        (folder / "there.db").chmod(0o644)
        async with Journal(folder / "there.db") as journal:
            assert len(await journal.begin("r", None, "ab")) == 2


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file as it was at a kill, and what was written ahead of it."""
    path = tmp_path_factory.mktemp("torn") / "journal.db"

    async def write() -> bytes:
        async with Journal(path) as journal:
            await journal.begin("r", None, map(str, range(31)))
            await journal.write("r", Change("0", RUNNING))
            for number in range(30):
                value = "x" * random.Random(number).choice([10, 500, 9000])
                await journal.write("r", Change(str(number), SUCCEEDED, value), Change(str(number + 1), RUNNING))
            copied = path.with_name("copied.db")
            shutil.copy(path, copied)
            return path.with_name("journal.db-wal").read_bytes()

    return path.with_name("copied.db"), asyncio.run(write())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flipped=st.none() | st.floats(0, 1), bit=st.integers(0, 7))
def test_case_19_a_torn_write_loses_at_most_the_end(
    cut: float, flipped: float | None, bit: int, torn: tuple[Path, bytes], tmp_path: Path
) -> None:
    copied, ahead = torn
    path = tmp_path / "journal.db"
    shutil.copy(copied, path)
    written = bytearray(ahead[: round(cut * len(ahead))])
    if flipped is not None and written:
        written[min(int(flipped * len(written)), len(written) - 1)] ^= 1 << bit
    path.with_name("journal.db-wal").write_bytes(written)
    path.with_name("journal.db-shm").unlink(missing_ok=True)

    async def check() -> None:
        async with Journal(path) as journal:
            steps = await journal.begin("r", None, map(str, range(31)))
            states = [step.state for step in steps.values()]
            ended = states.count(SUCCEEDED)
            running = [RUNNING] if RUNNING in states else []
            assert states == [SUCCEEDED] * ended + running + [PENDING] * (31 - ended - len(running))
            assert running or not ended
            assert all(len(step.value) in {10, 500, 9000} for step in steps.values() if step.state == SUCCEEDED)
            assert await journal.write("r", Note("goes on")) == (await journal.runs())[0].offset

    asyncio.run(check())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_case_19_a_damaged_file_is_a_typed_error_or_opens(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    said: list[str] = []

    async def check() -> None:
        if not (whole := path.with_name("whole.db")).exists():
            async with Journal(whole) as journal:
                await journal.begin("r", None, map(str, range(300)))
                await journal.write("r", *(Change(str(number), RUNNING, "x" * 100) for number in range(300)))
        damaged = bytearray(whole.read_bytes())
        start = data.draw(st.integers(0, len(damaged) - 1))
        length = data.draw(st.integers(1, 5000))
        damaged[start : start + length] = data.draw(st.sampled_from([b"", b"\xff" * length, bytes(length)]))
        path.write_bytes(damaged)
        try:
            async with Journal(path) as journal:
                await journal.begin("r", None, map(str, range(300)))
                await journal.events("r")
                await journal.steps("r")
                await journal.runs()
        except StoreFailed as error:
            said.append(error.message)

    asyncio.run(check())
    assert all(str(path) in text or "which is no JSON" in text for text in said)
    for file in tmp_path.glob("journal.db*"):
        file.unlink()


async def test_case_19_a_file_that_is_no_journal_is_a_typed_error(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 1000)
    journal = Journal(path)
    for _ in range(2):
        with pytest.raises(StoreFailed, match=r"file is not a database: it is not a journal: give another path"):
            await journal.begin("r", None, "ab")
    path.unlink()
    assert len(await journal.begin("r", None, "ab")) == 2
    await journal.aclose()
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed, match=r"the journal '.*journal\.db'"):
        await Journal(tmp_path / "file" / "journal.db").runs()
