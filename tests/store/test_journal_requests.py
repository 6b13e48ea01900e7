"""`Journal` for those who do not hold a run: how it stands, who holds it, what they ask; files from before that."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from penstock.errors import Conflict, StoreFailed, UnknownName
from penstock.store.files import Schema, Sync, opened
from penstock.store.journal import Journal
from penstock.store.log import SCHEMA, SPAN, Log
from penstock.store.steps import RUNNING, TRANSITIONS, Change, Note, Step


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def test_a_look_shows_steps_notes_and_who_holds_the_run(path: Path) -> None:
    async with Journal(path) as journal, Journal(path) as other:
        await journal.begin("r", {"goal": 1}, ["a"])
        await journal.begin("s", None, [])
        await journal.write("r", Change("a", RUNNING), Note("of a step", 1, "a"), Note("of the run", 2))
        look = await other.look("r")
        assert (look.name, look.spec, look.offset, look.process) == ("r", {"goal": 1}, 4, os.getpid())
        assert look.steps == {"a": Step(RUNNING)}
        assert [(note.offset, note.kind) for note in look.notes] == [(1, "begun"), (4, "of the run")]
        assert (await other.look("r", steps=False)).steps == {}
        await journal.release("r")
        assert [(each.name, each.process, each.steps) for each in await other.looks()] == [
            ("r", None, {}),
            ("s", os.getpid(), {}),
        ]
        with pytest.raises(UnknownName):
            await other.look("nobody")
    async with Journal(path) as again:
        assert (await again.look("s")).process is None


async def test_a_request_is_answered_once_by_who_holds_the_run(path: Path) -> None:
    async with Journal(path) as journal, Journal(path) as other:
        await journal.begin("r", None, [])
        await other.begin("s", None, [])
        assert await journal.requested() == []
        number = await other.request("r", {"what": "stop"})
        assert await other.requested() == []
        assert await other.answered(number) == (True, None)
        assert await journal.requested() == [(number, "r", {"what": "stop"})]
        assert await journal.requested() == []
        await journal.answer(number, [True])
        assert await other.answered(number) == (True, [True])
        assert await other.answered(number) == (False, None)


async def test_requests_end_with_the_time_for_which_a_run_was_held(path: Path) -> None:
    async with Journal(path) as journal, Journal(path) as other:
        await journal.begin("r", None, [])
        first = await other.request("r", 1)
        withdrawn = await other.request("r", 2)
        await other.withdraw(withdrawn)
        assert await other.answered(withdrawn) == (False, None)
        await journal.release("r")
        await other.begin("r", None, [])
        assert await other.answered(first) == (False, None)
        assert await journal.request("r", 3) > withdrawn


async def test_requests_that_could_not_be_read_are_read_again(path: Path) -> None:
    async with Journal(path) as other:
        await other.runs()
        with closing(opened(path, SCHEMA, "normal")) as db:
            log = Log(db, path, inline=True)
            log.together([lambda held: held.begin("r", b"null", b"[]", TRANSITIONS)])
            number = await other.request("r", 1)
            db.set_authorizer(lambda _, table, *__: sqlite3.SQLITE_DENY if table == "requests" else sqlite3.SQLITE_OK)
            with pytest.raises(sqlite3.DatabaseError, match="prohibited"):
                log.requested()
            db.set_authorizer(None)
            assert log.requested() == [(number, "r", b"1")]
            log.close()


async def test_nothing_is_asked_of_a_run_that_is_not_there(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.begin("r", None, [])
        await journal.request("r", 1)
        with pytest.raises(UnknownName, match="no run 's'"):
            await journal.request("s", 1)


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_row_c8_a_run_is_removed_with_all_that_is_of_it(path: Path, sync: Sync) -> None:
    async with Journal(path, sync=sync) as journal, Journal(path, sync=sync) as other:
        for run in ("first", "r", "last"):
            await journal.begin(run, run, ["a"])
            await journal.write(run, Change("a", RUNNING), Note("kept", run))
        await other.request("r", 1)
        for each in (journal, other):
            with pytest.raises(Conflict, match=f"held by the process {os.getpid()}") as caught:
                await each.remove("r")
            assert caught.value.code == "in_progress"
        await journal.release("r")
        await other.remove("r")
        with pytest.raises(UnknownName, match="no run 'r'"):
            await other.remove("r")
        assert [run.name for run in await journal.runs()] == ["first", "last"]
        assert [len(await other.events(run)) for run in ("first", "last")] == [3, 3]
        await journal.release("last")
        await journal.remove("last")
        assert await other.begin("again", None, []) == {}
        assert [entry.kind for entry in await other.events("again")] == ["begun"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM log").fetchone() == (4,)
        assert db.execute("SELECT count(*) FROM requests").fetchone() == (0,)


async def test_row_c8_of_two_who_remove_and_take_a_run_one_does(path: Path) -> None:
    async with Journal(path) as journal, Journal(path) as other:
        await journal.begin("r", None, ["a"])
        await journal.release("r")
        taking = asyncio.create_task(other.begin("r", None, ["b"]))
        try:
            await journal.remove("r")
        except Conflict:
            assert list(await taking) == ["a"]
        else:
            assert list(await taking) == ["b"]


async def test_a_damaged_journal_is_not_copied(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.begin("r", None, [])
        await journal.write("r", *(Note("n", "x" * 900) for _ in range(200)))
    text = bytearray(path.read_bytes())
    text[8 * 4096 : 30 * 4096] = os.urandom(22 * 4096)
    path.write_bytes(text)
    async with Journal(path) as journal:
        with pytest.raises(StoreFailed, match="damaged"):
            await journal.backup(path.with_name("copy"))
    assert [file.name for file in path.parent.glob("copy*")] == []


async def test_a_file_of_the_first_version_is_brought_to_this_one(path: Path) -> None:
    before = Schema(SCHEMA.what, SCHEMA.mark, SCHEMA.migrations[:1])
    with closing(opened(path, before, "normal")) as db:
        db.execute("INSERT INTO runs VALUES (1, 'r', x'6e756c6c', 1.5)")
        for offset, *entry in (
            (1, None, None, "begun", b'["a"]'),
            (2, "a", RUNNING, None, None),
            (3, None, None, "kept", b"1"),
        ):
            db.execute("INSERT INTO log VALUES (?, 1.5, ?, ?, ?, ?)", (SPAN + offset, *entry))
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    async with Journal(path) as journal:
        look = await journal.look("r")
        assert [(note.kind, note.at) for note in look.notes] == [("begun", 1.5), ("kept", 1.5)]
        assert (look.steps, look.process) == ({"a": Step(RUNNING)}, None)
        assert await journal.begin("r", None, ["a"]) == look.steps
        assert await journal.request("r", None) == 1
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
