"""What holds for a declared statement on every SQL database, shown on real ones."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from penstock.tools.db.base import BaseDbExecutor
from penstock.tools.result import ToolResult
from tests.tools.db.shops import Shop

BY_ID = "SELECT id, name, price FROM item WHERE id = :id"
ID = {"id": "integer"}
NAME = {"name": "string"}


async def call(tool: BaseDbExecutor[Any], arguments: dict[str, Any] | str) -> ToolResult:
    try:
        return await tool.execute(arguments)
    finally:
        await tool.aclose()


def code_of(result: ToolResult) -> str:
    assert result.error is not None, result
    return result.error.code


async def closes_soon(tool: BaseDbExecutor[Any]) -> None:
    """Freeing waits for what runs: it returns soon only when the statement was really stopped."""
    began = monotonic()
    await tool.aclose()
    assert monotonic() - began < 2


async def test_row_b10_a_declared_statement_gives_rows_as_objects(shop: Shop) -> None:
    result = await call(shop.tool(BY_ID, ID), '{"id": 7}')
    assert result.content == [{"id": 7, "name": "item 7", "price": 7.25}]


async def test_row_b10_fetch_one_gives_the_first_row_or_nothing(shop: Shop) -> None:
    tool = shop.tool("SELECT id FROM item WHERE id >= :id ORDER BY id", ID, fetch="one")
    assert (await tool.execute({"id": 7})).content == {"id": 7}
    found = await call(tool, {"id": 10_001})
    assert found.ok
    assert found.content is None


async def test_row_b10_a_write_tells_how_many_rows_it_touched(shop: Shop) -> None:
    write = {"read_only": False}
    insert = shop.tool("INSERT INTO item (id, name) VALUES (:id, :name)", ID | NAME, **write)
    delete = shop.tool("DELETE FROM item WHERE id >= :id", ID, **write)
    for number in (20_001, 20_002):
        assert (await insert.execute({"id": number, "name": "new"})).content == {"affected": 1}
    await insert.aclose()
    assert (await call(delete, {"id": 20_001})).content == {"affected": 2}


async def test_row_b10_rows_beyond_max_rows_are_cut_with_a_warning(shop: Shop) -> None:
    result = await call(shop.tool("SELECT id FROM item ORDER BY id;", max_rows=100), {})
    assert [row["id"] for row in result.content] == [*range(1, 101)]
    assert result.warnings == ("only the first 100 rows are given: narrow the question",)


async def test_row_b10_as_many_rows_as_max_rows_are_no_warning(shop: Shop) -> None:
    result = await call(shop.tool("SELECT id FROM item WHERE id <= 100", max_rows=100), {})
    assert len(result.content) == 100
    assert result.warnings == ()


async def test_an_argument_left_out_is_null_and_one_used_twice_is_one(shop: Shop) -> None:
    optional = {"type": "object", "properties": {"id": {"type": "integer"}, "also": {"type": "integer"}}}
    statement = "SELECT id FROM item WHERE id = :id OR id = :also OR id = :id + 1 ORDER BY id"
    result = await call(shop.tool(statement, optional), {"id": 5})
    assert [row["id"] for row in result.content] == [5, 6]


async def test_two_columns_of_one_name_are_both_there(shop: Shop) -> None:
    result = await call(shop.tool("SELECT a.id, b.id FROM item a, item b WHERE a.id = 1 AND b.id = 2", fetch="one"), {})
    assert result.content == {"id": 1, "id_2": 2}


INJECTIONS = [
    "x'; DROP TABLE item; --",
    "' OR '1'='1",
    '" OR ""="',
    "\\' OR 1=1 -- ",
    "x\\",
    "%s %(name)s {0} :id $1 ?",
    "/* */ ; SELECT 1",
    "a\r\nb\tc",
    "\N{FULLWIDTH APOSTROPHE} OR 1=1",
    "\xbf' OR 1=1 -- ",
]


@pytest.mark.parametrize("text", INJECTIONS)
async def test_case_24_text_written_by_a_model_stays_a_value(shop: Shop, text: str) -> None:
    tool = shop.tool("SELECT count(*) AS n FROM item WHERE name = :name", NAME, fetch="one")
    assert (await call(tool, {"name": text})).content == {"n": 0}
    echo = shop.tool("SELECT :name AS said" if shop.name != "postgresql" else "SELECT :name::text AS said", NAME)
    assert (await call(echo, {"name": text})).content == [{"said": text}]


async def test_case_24_arrays_objects_and_keys_stay_values(shop: Shop) -> None:
    text = "SELECT {} AS said".format(":value::jsonb::text" if shop.name == "postgresql" else ":value")
    evil = "'); DROP TABLE item; --"
    schema = {"type": "object", "properties": {"value": {}}}
    for value in ([evil, 1], {evil: {evil: [evil]}}):
        said = (await call(shop.tool(text, schema), {"value": value})).content[0]["said"]
        assert evil in said
    assert (await call(shop.tool("SELECT count(*) AS n FROM item", fetch="one"), {})).content["n"] >= 10_000


async def test_case_24_a_number_or_flag_cannot_be_text(shop: Shop) -> None:
    tool = shop.tool(BY_ID, ID)
    for value in ("1 OR 1=1", [1], {"a": 1}, 1.5, True):
        assert code_of(await tool.execute({"id": value})) == "bad_arguments"
    await tool.aclose()


async def test_case_24_a_read_only_tool_cannot_write(shop: Shop) -> None:
    tricks = {
        "sqlite": [
            "WITH x AS (SELECT 1) INSERT INTO item SELECT 30001, 'x', 1",
            "PRAGMA query_only = OFF",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA writable_schema = ON",
            "PRAGMA user_version = 7",
            "EXPLAIN SELECT load_extension('x')",
            "SELECT load_extension('x')",
        ],
        "postgresql": [
            "WITH x AS (INSERT INTO item VALUES (30001, 'x', 1) RETURNING id) SELECT * FROM x",
            "WITH x AS (DELETE FROM item RETURNING id) SELECT count(*) FROM x",
            "SELECT * INTO copied FROM item",
            "SELECT id FROM item FOR UPDATE",
            "EXPLAIN ANALYZE DELETE FROM item",
            "SELECT set_config('transaction_read_only', 'off', true)",
            "SELECT lo_create(4711)",
            "SELECT nextval('counter')",
        ],
        "mysql": [
            "SELECT rename_all(1)",
            "EXPLAIN ANALYZE DELETE FROM item",
            "WITH x AS (SELECT 1) DELETE FROM item",
        ],
    }
    if shop.name == "postgresql":
        await shop.ask("CREATE SEQUENCE IF NOT EXISTS counter")
    for statement in tricks[shop.name]:
        result = await call(shop.tool(statement), {})
        assert not result.ok, statement
    left = await call(shop.tool("SELECT count(*) AS n, min(name) AS name FROM item WHERE id <= 10000", fetch="one"), {})
    assert left.content == {"n": 10_000, "name": "item 1"}


async def test_case_24_what_a_write_needs_is_refused_by_the_database_itself(shop: Shop) -> None:
    statement = {
        "sqlite": "WITH x AS (SELECT 1) DELETE FROM item",
        "postgresql": "WITH x AS (SELECT 1) SELECT * INTO copied FROM item",
        "mysql": "SELECT rename_all(1)",
    }[shop.name]
    found = code_of(await call(shop.tool(statement, fetch="affected"), {}))
    assert found == "read_only_violation"


async def test_a_runaway_statement_is_stopped_at_the_limit_and_the_next_one_answers(shop: Shop) -> None:
    tool = shop.tool(shop.endless, timeout_s=0.3)
    began = monotonic()
    assert code_of(await tool.execute({})) == "timeout"
    assert monotonic() - began < 1.5
    await closes_soon(tool)


async def test_case_1_a_cancelled_call_frees_its_connection(shop: Shop) -> None:
    statement = f"SELECT CASE WHEN :slow = 1 THEN ({shop.endless}) ELSE 0 END AS n"
    tool = shop.tool(statement, {"slow": "integer"}, pool_size=1)
    running = [asyncio.create_task(tool.execute({"slow": 1})) for _ in range(2)]
    await asyncio.sleep(0.2)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert all(task.cancelled() for task in running)
    began = monotonic()
    result = await tool.execute({"slow": 0})
    assert result.content is not None, result
    assert int(result.content[0]["n"]) == 0
    assert monotonic() - began < 1.5
    await closes_soon(tool)


async def test_case_20_failing_calls_leave_the_others_alone(shop: Shop) -> None:
    tool = shop.tool("INSERT INTO item (id, name) VALUES (:id, :name)", ID | NAME, read_only=False)
    calls = [tool.execute({"id": 1 if odd % 2 else 40_000 + odd, "name": "many"}) for odd in range(20)]
    results = await asyncio.gather(*calls)
    await tool.aclose()
    assert [result.ok for result in results] == [not odd % 2 for odd in range(20)]
    assert {code_of(result) for result in results if not result.ok} == {"constraint_violation"}
    assert (await call(shop.tool("DELETE FROM item WHERE id >= 40000", read_only=False), {})).content["affected"] == 10


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("SELECT * FROM nowhere", "missing_table"),
        ("SELECT absent FROM item", "missing_column"),
        ("SELECT * FROM item WHERE ORDER BY", "syntax_error"),
    ],
)
async def test_a_wrong_statement_is_an_error_that_says_what_is_wrong(shop: Shop, statement: str, code: str) -> None:
    result = await call(shop.tool(statement), {})
    assert code_of(result) == code
    assert result.error is not None
    assert not result.error.retryable


async def test_case_26_a_value_that_does_not_fit_is_an_error_not_a_crash(shop: Shop) -> None:
    tool = shop.tool("SELECT id FROM item WHERE id = :id AND name = :name", ID | NAME)
    for arguments in ({"id": 2**70, "name": "x"}, {"id": 1, "name": "\ud800"}):
        result = await tool.execute(arguments)
        assert result.ok or code_of(result) in ("invalid_value", "bad_arguments", "bad_return_value")
    assert (await tool.execute({"id": 1, "name": "item 1"})).content == [{"id": 1}]
    await tool.aclose()


async def test_a_hundred_calls_at_once_get_each_its_own_answer(shop: Shop) -> None:
    tool = shop.tool(BY_ID, ID, fetch="one", pool_size=3)
    results = await asyncio.gather(*(tool.execute({"id": number}) for number in range(1, 101)))
    await tool.aclose()
    assert [result.content["id"] for result in results] == [*range(1, 101)]


async def test_a_tool_answers_again_after_it_was_closed(shop: Shop) -> None:
    tool = shop.tool(BY_ID, ID)
    assert (await call(tool, {"id": 1})).ok
    assert (await call(tool, {"id": 2})).content[0]["name"] == "item 2"


def test_each_event_loop_has_its_own_connections(shop: Shop) -> None:
    tool = shop.tool(BY_ID, ID, fetch="one")

    async def ask() -> Any:
        return (await tool.execute({"id": 3})).content["id"]

    assert [asyncio.run(ask()) for _ in range(3)] == [3, 3, 3]


async def test_row_b10_a_write_that_returns_gives_its_rows(shop: Shop) -> None:
    insert = "INSERT INTO item (id, name) VALUES (:id, 'new') RETURNING id, name"
    tool = shop.tool(insert, {"id": "integer"}, read_only=False)
    result = await tool.execute({"id": 20_001})
    assert result.content == [{"id": 20_001, "name": "new"}], result.error
    await tool.aclose()
    remove = shop.tool("DELETE FROM item WHERE id = 20001", read_only=False)
    assert (await remove.execute({})).content == {"affected": 1}
    await remove.aclose()
