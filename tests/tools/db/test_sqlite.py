"""SQLite's own cases: locks, threads, files, and what its authorizer refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

from penstock.tools.db import SqliteExecutor, SqliteToolSpec
from penstock.tools.db.sqlite import CODES, translated

READ = "SELECT n FROM t ORDER BY n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a table of one number."""
    file = tmp_path / "data base?#.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, x)")
        connection.execute("INSERT INTO t VALUES (1, NULL)")
    connection.close()
    return file


def tool(path: Path, statement: str, **spec: object) -> SqliteExecutor:
    return SqliteExecutor(
        SqliteToolSpec.model_validate({"tool_name": "t", "path": str(path), "statement": statement, **spec})
    )


async def code(executor: SqliteExecutor, arguments: dict[str, object] | None = None) -> tuple[str, bool]:
    result = await executor.execute(arguments or {})
    await executor.aclose()
    assert result.error is not None, result
    return result.error.code, result.error.retryable


async def test_a_locked_database_is_an_error_to_try_again(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = monotonic()
    assert await code(tool(path, READ, lock_wait_s=0.05)) == ("database_locked", True)
    assert monotonic() - began < 1
    waits = tool(path, READ, lock_wait_s=5)
    asking = asyncio.create_task(waits.execute({}))
    await asyncio.sleep(0.1)
    other.execute("COMMIT")
    assert (await asking).content == [{"n": 1}]
    await waits.aclose()
    other.close()


async def test_a_locked_database_is_tried_again_where_the_spec_says_so(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    executor = tool(path, READ, lock_wait_s=0.01, retry={"attempts": 20, "base_s": 0.02, "max_s": 0.05})
    asking = asyncio.create_task(executor.execute({}))
    await asyncio.sleep(0.05)
    other.execute("COMMIT")
    other.close()
    assert (await asking).ok
    await executor.aclose()


async def test_a_reader_leaves_no_lock_behind(path: Path) -> None:
    executor = tool(path, "SELECT n FROM t, (SELECT 1 UNION SELECT 2)", max_rows=1)
    assert (await executor.execute({})).warnings
    with sqlite3.connect(path, timeout=0) as other:
        other.execute("INSERT INTO t VALUES (2, NULL)")
    other.close()
    await executor.aclose()


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA table_info(t)",
        "SELECT name FROM pragma_table_info('t')",
        "EXPLAIN QUERY PLAN SELECT * FROM t",
        "SELECT json_extract('{\"a\": 1}', '$.a') AS a",
    ],
)
async def test_what_only_tells_is_allowed(path: Path, statement: str) -> None:
    executor = tool(path, statement)
    assert (await executor.execute({})).content
    await executor.aclose()


async def test_case_24_a_full_text_search_reads_without_writing(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(said)")
        connection.execute("INSERT INTO words VALUES ('water flows')")
    connection.close()
    executor = tool(path, "SELECT said FROM words WHERE words MATCH :word", parameters={"word": "string"})
    assert (await executor.execute({"word": "flows"})).content == [{"said": "water flows"}]
    assert (await executor.execute({"word": '" OR'})).error is not None
    await executor.aclose()


async def test_case_24_a_trigger_or_a_view_gives_no_way_to_write(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIEW v AS SELECT n FROM t")
        connection.execute("CREATE TRIGGER w INSTEAD OF INSERT ON v BEGIN INSERT INTO t VALUES (NEW.n, NULL); END")
    connection.close()
    statement = "WITH x AS (SELECT 9) INSERT INTO v SELECT * FROM x"
    assert await code(tool(path, statement)) == ("read_only_violation", False)
    writes = tool(path, statement, read_only=False)
    assert (await writes.execute({})).ok
    await writes.aclose()


@pytest.mark.parametrize(
    "statement", ["VACUUM INTO 'copy.db'", "PRAGMA journal_mode = OFF", "SELECT load_extension('x')"]
)
async def test_case_24_a_writing_tool_reaches_no_other_file(path: Path, statement: str) -> None:
    assert (await code(tool(path, statement, read_only=False)))[0] in ("read_only_violation", "bad_statement")
    assert not Path("copy.db").exists()


async def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for read_only in (True, False):
        executor = tool(tmp_path / "none.db", READ, read_only=read_only, fetch="all")
        assert await code(executor) == ("unavailable", False)
    assert not (tmp_path / "none.db").exists()


async def test_case_19_a_file_that_is_no_database_is_a_typed_error(path: Path) -> None:
    path.write_bytes(b"not a database at all, not even close" * 100)
    assert (await code(tool(path, READ)))[0] == "database_damaged"


async def test_a_write_past_the_disk_is_a_typed_error(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    executor = tool(path, "INSERT INTO t VALUES (2, zeroblob(:size))", read_only=False, parameters={"size": "integer"})
    # SQLite counts a limit of its own like a full disk.
    connect = executor._connect

    def small() -> sqlite3.Connection:
        connection = connect()
        connection.set_authorizer(None)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    executor._threads._connect = small
    assert await code(executor, {"size": 100_000}) == ("disk_full", False)


async def test_a_long_statement_does_not_hold_up_short_ones(path: Path) -> None:
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"
    executor = tool(path, f"SELECT CASE WHEN :slow THEN ({endless}) ELSE 5 END AS n", parameters={"slow": "boolean"})
    slow = [asyncio.create_task(executor.execute({"slow": True})) for _ in range(2)]
    await asyncio.sleep(0.05)
    began = monotonic()
    assert (await executor.execute({"slow": False})).content == [{"n": 5}]
    assert monotonic() - began < 0.5
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await executor.aclose()


async def test_short_calls_share_one_thread_and_closing_ends_it(path: Path) -> None:
    executor = tool(path, READ)
    before = threading.active_count()
    for _ in range(50):
        assert (await executor.execute({})).ok
    assert threading.active_count() == before + 1
    await executor.aclose()
    for _ in range(100):
        if threading.active_count() == before:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the thread is still there")


async def test_a_thread_that_has_nothing_to_do_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.tools.db.sqlite_threads.IDLE_S", 0.02)
    executor = tool(path, READ)
    before = threading.active_count()
    assert (await executor.execute({})).ok
    await asyncio.sleep(0.2)
    assert threading.active_count() == before
    assert (await executor.execute({})).ok
    await executor.aclose()


async def test_a_relative_path_stays_where_it_was_when_the_tool_was_made(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(path, tmp_path / "plain.db")
    monkeypatch.chdir(tmp_path)
    executor = tool(Path("plain.db"), READ)
    os.chdir("/")
    assert (await executor.execute({})).ok
    await executor.aclose()


async def test_values_come_back_as_json_carries_them(path: Path) -> None:
    statement = "SELECT 1.5 AS f, x'00ff' AS b, NULL AS n, 9e999 AS inf, 'é' AS s, :o AS o, :l AS l"
    anything = {"type": "object", "properties": {"o": {}, "l": {}}}
    executor = tool(path, statement, parameters=anything, fetch="one")
    found = (await executor.execute({"o": {"a": [1]}, "l": True})).content
    assert found == {"f": 1.5, "b": "AP8=", "n": None, "inf": "inf", "s": "é", "o": '{"a":[1]}', "l": 1}
    await executor.aclose()


async def test_returning_gives_rows_and_counts_them(path: Path) -> None:
    statement = "INSERT INTO t VALUES (:n, NULL), (:n + 1, NULL) RETURNING n"
    rows = tool(path, statement, read_only=False, fetch="all", parameters={"n": "integer"})
    assert (await rows.execute({"n": 10})).content == [{"n": 10}, {"n": 11}]
    count = tool(path, statement, read_only=False, fetch="affected", parameters={"n": "integer"})
    assert (await count.execute({"n": 20})).content == {"affected": 2}
    await rows.aclose()
    await count.aclose()


@pytest.mark.parametrize("fetch", [{"fetch": "one"}, {"fetch": "all", "max_rows": 1}, {"fetch": "affected"}])
async def test_a_write_that_was_rolled_back_is_never_told_as_done(path: Path, fetch: dict[str, object]) -> None:
    executor = tool(
        path, "INSERT INTO t VALUES (7, 1), (8, 1), (9, 1) RETURNING n", read_only=False, lock_wait_s=0.05, **fetch
    )
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute(READ).fetchone()
    error = (await executor.execute({})).error
    assert error is not None
    assert (error.code, error.retryable) == ("database_locked", True)
    reader.execute("COMMIT")
    assert reader.execute(READ).fetchall() == [(1,)]
    result = await executor.execute({})
    assert result.content in ({"n": 7}, [{"n": 7}], {"affected": 3})
    assert bool(result.warnings) is ("max_rows" in fetch)
    assert len(reader.execute(READ).fetchall()) == 4
    reader.close()
    await executor.aclose()


async def test_a_statement_that_needs_too_much_memory_leaves_its_thread_at_work(path: Path) -> None:
    executor = tool(path, "SELECT CASE WHEN :much THEN take_all() ELSE 5 END AS n", parameters={"much": "boolean"})
    connect = executor._connect

    def greedy() -> sqlite3.Connection:
        connection = connect()
        connection.create_function("take_all", 0, take_all)
        return connection

    def take_all() -> None:
        raise MemoryError  # which sqlite3 passes on as SQLITE_NOMEM

    executor._threads._connect = greedy
    for _ in range(2):
        error = (await asyncio.wait_for(executor.execute({"much": True}), 2)).error
        assert error is not None
        assert (error.code, error.retryable) == ("out_of_resources", False)
        assert (await asyncio.wait_for(executor.execute({"much": False}), 2)).content == [{"n": 5}]
    await asyncio.wait_for(executor.aclose(), 2)


async def test_answers_that_nobody_waits_for_disturb_no_other(path: Path) -> None:
    executor, faults = tool(path, READ), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    asking = [asyncio.create_task(executor.execute({})) for _ in range(20)]
    await asyncio.sleep(0)
    for task in asking[::2]:
        task.cancel()
    await asyncio.wait(asking, timeout=2)
    await executor.aclose()
    assert all(task.result().ok for task in asking[1::2])
    assert faults == []


def test_a_loop_that_ended_meanwhile_leaves_the_thread_at_work(path: Path) -> None:
    executor = tool(path, "SELECT nap(:s) AS n", parameters={"s": "number"})
    connect = executor._connect

    def napping() -> sqlite3.Connection:
        connection = connect()
        connection.create_function("nap", 1, sleep)
        return connection

    async def leave() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(executor.execute({"s": 0.1}), 0.03)

    executor._threads._connect = napping
    asyncio.run(leave())
    assert asyncio.run(asyncio.wait_for(executor.execute({"s": 0}), 1)).ok
    asyncio.run(executor.aclose())


async def test_case_24_a_file_that_is_named_like_a_pragma_is_another_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    executor = tool(path, "VACUUM INTO :to", read_only=False, parameters={"to": "string"})
    assert (await executor.execute({"to": "table_info"})).error is not None
    await executor.aclose()
    assert not (tmp_path / "table_info").exists()


def test_every_code_of_sqlite_is_translated() -> None:
    """Those that are no errors of a statement, or that Python never lets through, stay `database_error`."""
    internal = {
        "ABORT",
        "EMPTY",
        "FORMAT",
        "INTERNAL",
        "MISUSE",
        "NOLFS",
        "NOMEM",
        "NOTFOUND",
        "NOTICE",
        "PROTOCOL",
        "WARNING",
    }
    not_codes = {"OK", "DENY", "IGNORE", "ROW", "DONE"}
    primary = {
        name.removeprefix("SQLITE_"): getattr(sqlite3, name) for name in dir(sqlite3) if name.startswith("SQLITE_")
    }
    actions = {name for name in primary if name.startswith(("CREATE_", "DROP_", "ALTER_", "LIMIT_", "DBCONFIG_"))}
    actions |= {"ANALYZE", "ATTACH", "DELETE", "DETACH", "FUNCTION", "INSERT", "PRAGMA", "READ", "RECURSIVE", "REINDEX"}
    actions |= {"SAVEPOINT", "SELECT", "TRANSACTION", "UPDATE"}
    codes = {name: code for name, code in primary.items() if name not in actions | not_codes and code < 256}
    assert {name for name, code in codes.items() if code not in CODES} == internal
    for code in codes.values():
        error = sqlite3.OperationalError("said")
        error.sqlite_errorcode, error.sqlite_errorname = code, "NAME"
        assert translated(error).message
