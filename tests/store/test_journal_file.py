"""`Journal` and its file: what a transaction holds, who works where, backups, versions, several writers."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from penstock.errors import StoreFailed, UsageError
from penstock.store import journal as journal_module
from penstock.store.files import Schema
from penstock.store.journal import Journal
from penstock.store.ledger import SqliteLedger
from penstock.store.log import SCHEMA
from penstock.store.steps import (
    PENDING,
    RUNNING,
    Change,
    Note,
    Step,
)

SPEC = {"tasks": ["a", "b", "c"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal(path) as opened:
        yield opened


def watched(journal: Journal) -> list[tuple[str, bool]]:
    """What the database is told from now on, and whether the event loop's thread tells it."""
    told: list[tuple[str, bool]] = []
    here = threading.get_ident()
    assert journal._table is not None
    journal._table._db.set_trace_callback(lambda text: told.append((text.split()[0], threading.get_ident() == here)))
    return told


async def test_journals_of_several_threads_write_one_file(path: Path) -> None:
    def work(number: int) -> None:
        async def chain() -> None:
            async with Journal(path) as journal:
                await journal.begin(f"r{number}", None, [])
                for step in range(100):
                    await journal.write(f"r{number}", Change(str(step), PENDING), Note("told", step))

        asyncio.run(chain())

    await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(3)))
    async with Journal(path) as journal:
        assert [(run.name, run.offset) for run in sorted(await journal.runs(), key=lambda run: run.name)] == [
            (f"r{number}", 201) for number in range(3)
        ]


async def test_an_owner_whose_lock_was_removed_cannot_write_behind_the_next(path: Path, journal: Journal) -> None:
    await journal.begin("r", SPEC, "ab")
    (lock,) = path.parent.glob("*.owner-*")
    lock.unlink()
    async with Journal(path) as other:
        await other.begin("r", SPEC, "ab")
        with pytest.raises(StoreFailed, match="another process has taken over"):
            await journal.write("r", Change("a", RUNNING))
        await other.write("r", Change("b", RUNNING))
        assert await other.steps("r") == {"a": Step(PENDING), "b": Step(RUNNING)}


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_what_is_written_at_one_moment_shares_transactions(sync: Literal["normal", "full"], path: Path) -> None:
    async with Journal(path, sync=sync) as journal:
        await journal.begin("r", None, map(str, range(200)))
        told = watched(journal)
        offsets = await asyncio.gather(*(journal.write("r", Change(str(n), RUNNING)) for n in range(200)))
        assert offsets == list(range(2, 202))
        commits = sum(word == "COMMIT" for word, _ in told) or sum(word == "INSERT" for word, _ in told)
        assert commits <= (1 if sync == "normal" else 20)


@pytest.mark.parametrize(
    ("sync", "values", "here"), [("normal", [1], True), ("normal", ["x" * 100_000], False), ("full", [1], False)]
)
async def test_the_event_loop_waits_for_no_disk_and_no_large_write(
    sync: Literal["normal", "full"], values: list[Any], here: bool, path: Path
) -> None:
    async with Journal(path, sync=sync) as journal:
        await journal.begin("r", None, [])
        assert journal._table is not None
        (level,) = journal._table._db.execute("PRAGMA synchronous").fetchone()
        assert level == {"normal": 1, "full": 2}[sync]
        told = watched(journal)
        for value in values:
            await journal.write("r", Note("told", value))
        assert {place for _, place in told} == {here}


async def test_checkpoints_are_made_in_the_thread(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.store.commits.CHECKPOINT_PAGES", 100)
    async with Journal(path) as journal:
        await journal.begin("r", None, [])
        assert journal._table is not None
        assert journal._table._db.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
        told = watched(journal)
        for number in range(500):
            await journal.write("r", Note("told", number), at_once=True)
            await asyncio.sleep(0)
        assert {place for word, place in told if word == "PRAGMA"} == {False}
        assert path.with_name(path.name + "-wal").stat().st_size < 800 * 4096  # of 1,500 pages written


async def test_a_file_that_another_process_writes_does_not_hold_up_the_loop(path: Path, journal: Journal) -> None:
    await journal.begin("r", None, [])
    blocking = sqlite3.connect(path, isolation_level=None)
    blocking.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(journal.write("r", Note("waits"), at_once=True))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not writing.done()
    assert [one.kind for one in await journal.events("r")] == ["begun"]
    blocking.execute("COMMIT")
    blocking.close()
    assert await writing == 2


async def test_an_answer_that_fails_unforeseen_leaves_the_file_usable(path: Path) -> None:
    async with Journal(path, sync="full") as journal:
        with pytest.raises(StoreFailed, match="could not answer"):
            await journal._ask(lambda _: 1 // 0)
        await journal.begin("r", None, [])
        assert await journal.write("r", Note("goes on")) == 2


async def test_a_cancelled_write_is_made_all_the_same(journal: Journal) -> None:
    await journal.begin("r", None, [])
    writing = asyncio.ensure_future(journal.write("r", Note("kept")))
    writing.cancel()
    await journal.write("r", Note("next"))
    assert [one.kind for one in await journal.events("r")] == ["begun", "kept", "next"]


async def test_row_c8_a_backup_taken_while_it_is_written_is_whole(path: Path, journal: Journal) -> None:
    await journal.begin("r", None, [])
    copied = path.with_name("copied.db")

    async def write() -> None:
        for number in range(300):
            await journal.write("r", Change(str(number), PENDING), Change(str(number), RUNNING))

    writing = asyncio.ensure_future(write())
    await asyncio.sleep(0.005)
    await journal.backup(copied)
    await writing
    with pytest.raises(UsageError, match=r"copied\.db' is there already"):
        await journal.backup(copied)
    async with Journal(copied) as again:
        steps = await again.begin("r", None, [])
        assert list(steps.items()) == [(str(number), Step(RUNNING)) for number in range(len(steps))]
    assert len(await journal.steps("r")) == 300
    with pytest.raises(StoreFailed, match="unable to open database file"):
        await journal.backup(path.parent / "nowhere" / "copied.db")
    assert not list(path.parent.glob("*.new-*"))


async def test_a_newer_version_is_refused_and_an_older_one_migrated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Journal(path) as journal:
        await journal.begin("r", SPEC, "ab")
    done: list[int] = []
    more = (*SCHEMA.migrations, ("CREATE TABLE more (id INTEGER)",), lambda db: done.append(db.total_changes))
    newer = Schema(SCHEMA.what, SCHEMA.mark, more)
    monkeypatch.setattr(journal_module, "SCHEMA", newer)
    for _ in range(2):
        async with Journal(path) as journal:
            assert len(await journal.begin("r", SPEC, "ab")) == 2
    assert len(done) == 1
    monkeypatch.undo()
    with pytest.raises(StoreFailed, match=r"was written by another version \(4\): give another path"):
        await Journal(path).runs()


async def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    shop, ledger = tmp_path / "shop.db", SqliteLedger(tmp_path / "ledger.db")
    with sqlite3.connect(shop) as plain:
        plain.execute("CREATE TABLE orders (id INTEGER)")
    plain.close()
    await ledger.claim("k", "f")
    await ledger.aclose()
    for path in (shop, tmp_path / "ledger.db"):
        with pytest.raises(StoreFailed, match="holds something else: it is not a journal: give another path"):
            await Journal(path).runs()
    with sqlite3.connect(shop) as plain:
        assert [name for (name,) in plain.execute("SELECT name FROM sqlite_master")] == ["orders"]
    plain.close()
