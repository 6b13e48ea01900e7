"""`SqliteLedger`: real files, several ledgers on one, and what is left of processes that were killed."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import Conflict, StoreFailed
from penstock.policies.idempotency import Entry, MemoryLedger, State, idempotency
from penstock.run import Run, execute
from penstock.store import ledger as ledger_module
from penstock.store.ledger import SqliteLedger

ROOT = Path(__file__).parents[2]
CHILD = """
import asyncio, sys
from pathlib import Path
from penstock.policies.idempotency import idempotency
from penstock.run import execute
from penstock.store.ledger import SqliteLedger

ledger, effects, step = SqliteLedger(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

async def effect(request, run):
    if step == "before":
        print("ready", flush=True)
        await asyncio.sleep(60)
    with effects.open("a") as file:
        file.write(request + "\\n")
    if step == "after":
        print("ready", flush=True)
        await asyncio.sleep(60)
    return request

async def main():
    executor = idempotency(ledger, key=lambda request, _: request)(effect)
    print(await execute(executor, "pay"), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.mark.parametrize("step", ["before", "after", "end"])
async def test_case_18_killed_between_claim_and_commit_it_is_unknown_and_not_run_again(
    step: str, path: Path, tmp_path: Path
) -> None:
    effects = tmp_path / "effects"
    process = child(CHILD, path, effects, step)
    assert said(process) == ("pay" if step == "end" else "ready")

    async def effect(request: str, run: Run) -> str:
        with effects.open("a") as file:
            file.write(request + "\n")
        return request

    ledger = SqliteLedger(path)
    executor = idempotency(ledger, key=lambda request, _: str(request))(effect)
    if step != "end":
        with pytest.raises(Conflict) as caught:
            await execute(executor, "pay")
        assert caught.value.code == "in_progress"
        killed(process)
        for _ in range(2):
            with pytest.raises(Conflict) as caught:
                await execute(executor, "pay")
            assert caught.value.code == "outcome_unknown"
        (entry,) = await ledger.entries("unknown")
        assert entry.key.endswith('"pay"]')
    else:
        killed(process)
        assert await execute(executor, "pay") == "pay"
    assert (effects.read_text() if effects.exists() else "") == ("" if step == "before" else "pay\n")
    assert len(list(tmp_path.glob("*.owner-*"))) == 1  # the killed one's is gone
    await ledger.aclose()
    assert not list(tmp_path.glob("*.owner-*"))


async def test_a_killed_process_is_found_by_the_operators_listing(path: Path, tmp_path: Path) -> None:
    process = child(CHILD, path, tmp_path / "effects", "after")
    said(process)
    ledger = SqliteLedger(path)
    assert await ledger.entries("unknown") == []
    (running,) = await ledger.entries("running")
    assert not await ledger.forget(running.key)
    killed(process)
    assert [entry.key for entry in await ledger.entries("unknown")] == [running.key]
    assert await ledger.forget(running.key)
    assert not await ledger.forget(running.key)
    assert await ledger.claim(running.key, "f") is None
    await ledger.aclose()


async def test_several_processes_share_a_file_and_each_key_has_one_claim(path: Path) -> None:
    script = """
    import asyncio, sys
    from penstock.store.ledger import SqliteLedger

    async def main():
        ledger = SqliteLedger(sys.argv[1])
        claims = await asyncio.gather(*(ledger.claim(f"k{number}", "f") for number in range(200)))
        print(sum(claim is None for claim in claims), flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
    processes = [child(script, path) for _ in range(4)]
    assert sum(int(said(process)) for process in processes) == 200
    for process in processes:
        killed(process)
    ledger = SqliteLedger(path)
    assert len(await ledger.entries("unknown")) == 200
    await ledger.aclose()


async def test_an_entry_goes_through_its_states_and_survives_a_new_start(path: Path) -> None:
    ledger = SqliteLedger(path)
    for key in ("done", "failed", "doubted", "released"):
        assert await ledger.claim(key, "f") is None
    await ledger.commit("done", b"\x00result", failed=False, ttl_s=60)
    await ledger.commit("failed", b"why", failed=True, ttl_s=60)
    await ledger.doubt("doubted")
    await ledger.release("released")
    await ledger.aclose()
    again = SqliteLedger(path)
    found = [await again.claim(key, "g") for key in ("done", "failed", "doubted", "released")]
    states = [entry and (entry.state, entry.fingerprint, entry.value) for entry in found]
    assert states == [("done", "f", b"\x00result"), ("failed", "f", b"why"), ("unknown", "f", b""), None]
    await again.aclose()


async def test_two_ledgers_of_one_process_see_each_other_alive(path: Path) -> None:
    one, two = SqliteLedger(path), SqliteLedger(path)
    await one.claim("k", "f")
    for _ in range(2):
        entry = await two.claim("k", "f")
        assert entry is not None
        assert entry.state == "running"
    await one.aclose()
    entry = await two.claim("k", "f")
    assert entry is not None
    assert entry.state == "unknown"
    await two.aclose()


async def test_entries_are_dropped_when_they_are_too_old_and_unknown_ones_never(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(ledger_module, "time", lambda: now)
    ledger = SqliteLedger(path)
    await asyncio.gather(*(ledger.claim(f"k{number}", "f") for number in range(300)))
    await asyncio.gather(*(ledger.commit(f"k{number}", b"x", failed=False, ttl_s=60) for number in range(300)))
    await ledger.claim("u", "f")
    await ledger.doubt("u")
    now += 59
    assert await ledger.claim("k0", "f") is not None
    now += 1
    assert await ledger.entries("done") == []
    assert await ledger.claim("k299", "f") is None
    for _ in range(5):
        await ledger.entries("done")
    assert [entry.key for entry in await ledger.entries("unknown")] == ["u"]
    await ledger.aclose()
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT count(*) FROM entries").fetchone() == (2,)
    plain.close()


async def test_what_is_asked_at_once_is_written_in_few_transactions(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.claim("first", "f")
    wal = path.with_name(path.name + "-wal")
    before = wal.stat().st_size
    assert await asyncio.gather(*(ledger.claim(f"k{number}", "f") for number in range(500))) == [None] * 500
    alone = 3 * 4096 * 500  # a page of the table and one of each index, each time
    assert wal.stat().st_size - before < alone / 5
    await ledger.aclose()


async def test_it_writes_ahead_and_waits_for_the_disk(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.claim("k", "f")
    table = ledger._table
    assert table is not None

    def ask(name: str) -> object:
        return table._db.execute(f"PRAGMA {name}").fetchone()[0]

    loop, thread = asyncio.get_running_loop(), ledger._thread
    said_by = [await loop.run_in_executor(thread, ask, name) for name in ("journal_mode", "synchronous")]
    assert said_by == ["wal", 2]
    await ledger.aclose()


async def test_case_19_a_full_disk_is_a_typed_error_and_the_last_committed_state_opens(path: Path) -> None:
    script = """
    import asyncio, resource, sys
    from penstock.errors import StoreFailed
    from penstock.store.ledger import SqliteLedger

    async def main():
        ledger = SqliteLedger(sys.argv[1])
        await ledger.claim("a", "f")
        await ledger.commit("a", b"kept", failed=False, ttl_s=60)
        await ledger.claim("b", "f")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            await ledger.commit("b", b"x" * 1_000_000, failed=False, ttl_s=60)
        except StoreFailed as error:
            print(type(error).__name__, error, flush=True)
        print((await ledger.claim("b", "f")).state, flush=True)
        print((await ledger.claim("a", "f")).value.decode(), flush=True)

    asyncio.run(main())
    """
    process = child(script, path)
    assert re.match(rf"StoreFailed the ledger '{re.escape(str(path))}': \w+", said(process))
    assert said(process) == "unknown"
    assert said(process) == "kept"
    process.communicate()
    assert process.returncode == 0
    ledger = SqliteLedger(path)
    assert [entry.value for entry in await ledger.entries("done")] == [b"kept"]
    assert [entry.key for entry in await ledger.entries("unknown")] == ["b"]
    await ledger.aclose()


async def test_case_19_a_torn_write_loses_at_most_what_was_not_committed(path: Path, tmp_path: Path) -> None:
    ledger, chance = SqliteLedger(path), random.Random(19)
    for number in range(20):
        await ledger.claim(f"k{number:02}", "f")
    wal = path.with_name(path.name + "-wal")
    for turn in range(15):
        copied = tmp_path / f"torn{turn}.db"
        shutil.copy(path, copied)
        torn = bytearray(wal.read_bytes()[: chance.randrange(wal.stat().st_size)])
        if torn and turn % 2:
            torn[chance.randrange(len(torn) * 9 // 10, len(torn))] ^= 0xFF
        copied.with_name(copied.name + "-wal").write_bytes(torn)
        again = SqliteLedger(copied)
        keys = [entry.key for entry in await again.entries("unknown")]
        assert keys == [f"k{number:02}" for number in range(len(keys))]
        assert await again.claim("next", "f") is None
        await again.aclose()
    await ledger.aclose()


async def test_case_19_a_file_that_is_no_ledger_is_a_typed_error(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 1000)
    ledger = SqliteLedger(path)
    for _ in range(2):
        with pytest.raises(StoreFailed, match=r"file is not a database: it is not a ledger: give another path"):
            await ledger.claim("k", "f")
    path.unlink()
    assert await ledger.claim("k", "f") is None
    await ledger.aclose()


async def test_a_ledger_of_another_version_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA user_version = 7")
    plain.close()
    ledger = SqliteLedger(path)
    with pytest.raises(StoreFailed, match=r"was written by another version \(7\): give another path"):
        await ledger.claim("k", "f")
    await ledger.aclose()


async def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ledger = SqliteLedger(tmp_path / "file" / "ledger.db")
    with pytest.raises(StoreFailed, match=r"ledger\.db"):
        await ledger.claim("k", "f")
    await ledger.aclose()


async def test_one_that_fails_does_not_harm_what_is_written_with_it(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ledger.claim("mine", "f")
    answers = await asyncio.gather(
        ledger.claim("a", "f"),
        ledger.commit("nobody's", b"", failed=False, ttl_s=1),
        ledger.claim("\ud800", "f"),
        ledger.commit("mine", b"x", failed=False, ttl_s=60),
        ledger.claim("b", "f"),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [type(None), StoreFailed, StoreFailed, type(None), type(None)]
    assert sorted(entry.key for entry in await ledger.entries("running")) == ["a", "b"]
    assert [entry.key for entry in await ledger.entries("done")] == ["mine"]
    await ledger.aclose()


def test_a_ledger_outlives_the_loops_it_is_used_from(path: Path) -> None:
    ledger = SqliteLedger(path)

    async def leave_one_behind() -> None:
        asking = asyncio.ensure_future(ledger.claim("left", "f"))
        await asyncio.sleep(0)
        asking.cancel()

    for number in range(3):
        asyncio.run(leave_one_behind())
        assert asyncio.run(ledger.claim(f"k{number}", "f")) is None
    asyncio.run(ledger.aclose())
    asyncio.run(ledger.aclose())


ACTIONS = st.tuples(
    st.sampled_from(["claim", "commit", "fail", "release", "doubt", "forget", "list"]), st.sampled_from("abc")
)


def plain(entry: Entry | None) -> tuple[str, str, str, bytes] | None:
    return None if entry is None else (entry.key, entry.fingerprint, entry.state, entry.value)


class Driven:
    """A ledger that is told what to do by name; what is not claimed is not settled."""

    def __init__(self, ledger: MemoryLedger | SqliteLedger) -> None:
        self.ledger, self.held = ledger, set[str]()

    async def act(self, what: str, key: str) -> object:
        if what == "list":
            states: tuple[State, ...] = ("done", "failed", "unknown")
            return [sorted(map(str, map(plain, await self.ledger.entries(state)))) for state in states]
        if what == "forget":
            return await self.ledger.forget(key)
        if what == "claim":
            entry = await self.ledger.claim(key, key * 2)
            self.held |= {key} if entry is None else set()
            return plain(entry)
        if key in self.held:
            self.held.discard(key)
            await self.settle(what, key)
        return None

    async def settle(self, what: str, key: str) -> None:
        if what == "release":
            await self.ledger.release(key)
        elif what == "doubt":
            await self.ledger.doubt(key)
        else:
            await self.ledger.commit(key, b"x", failed=what == "fail", ttl_s=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=25))
def test_the_durable_ledger_and_the_one_in_memory_give_the_same(actions: list[tuple[str, str]], tmp_path: Path) -> None:
    async def check() -> None:
        ledger = SqliteLedger(tmp_path / uuid4().hex / "ledger.db")
        durable, memory = Driven(ledger), Driven(MemoryLedger())
        try:
            for what, key in actions:
                assert await durable.act(what, key) == await memory.act(what, key)
        finally:
            await ledger.aclose()

    asyncio.run(check())
