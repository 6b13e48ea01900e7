"""PostgreSQL's own cases: settings that outlive a call, lost connections, types, secrets."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import asyncpg
import pytest
from asyncpg import exceptions

from penstock.errors import ToolTimeout, UsageError
from penstock.tools.db import PostgreSqlExecutor, PostgreSqlToolSpec
from penstock.tools.db.postgresql import STATES, translated
from penstock.tools.result import ToolContext
from tests.rig.postgres import PASSWORD, Postgres
from tests.tools.db.shops import Shop

OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
ANYTHING: dict[str, Any] = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}, "d": {}}}


async def value(shop: Shop, expression: str, **arguments: Any) -> Any:
    tool = shop.tool(f"SELECT {expression} AS v", ANYTHING, fetch="one")
    result = await tool.execute(arguments)
    await tool.aclose()
    return result.content["v"] if result.ok else result.error


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1.50::numeric", 1.5),
        ("12345678901234567890.5::numeric::text", "12345678901234567890.5"),
        ("2::numeric", 2),
        ("'NaN'::float8", "nan"),
        ("date '2026-01-02'", "2026-01-02"),
        ("timestamp '2026-01-02 03:04:05.5'", "2026-01-02T03:04:05.5"),
        ("timestamptz '2026-01-02 03:04:05+00' AT TIME ZONE 'UTC'", "2026-01-02T03:04:05"),
        ("time '03:04'", "03:04:00"),
        ("interval '1 day 2 hours'", "P1DT2H"),
        ("'infinity'::date", "infinity"),
        (r"'\x00ff'::bytea", "AP8="),
        ("'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ("'{\"a\": [1, null]}'::jsonb", {"a": [1, None]}),
        ("array[1, 2]", [1, 2]),
        ("row(1, 'x')", [1, "x"]),
        ("'10.0.0.1'::inet", "10.0.0.1"),
        ("(SELECT item FROM item WHERE id = 1)", {"id": 1, "name": "item 1", "price": 1.25}),
        ("NULL", None),
    ],
)
async def test_values_come_back_as_json_carries_them(postgresql: Shop, expression: str, expected: Any) -> None:
    assert await value(postgresql, expression) == expected


async def test_arguments_take_the_type_of_their_place(postgresql: Shop) -> None:
    assert await value(postgresql, ":a::date + 1", a="2026-01-31") == "2026-02-01"
    assert await value(postgresql, "2 = ANY(:a::int[])", a=[1, 2]) is True
    assert await value(postgresql, ":a::jsonb -> 'k'", a={"k": [1]}) == [1]
    assert await value(postgresql, ":a::numeric * 2", a=0.1) == 0.2
    wrong = await value(postgresql, ":a::date", a="yesterday-ish")
    assert wrong.code == "invalid_value"
    assert (await value(postgresql, ":a::int", a="x")).code == "invalid_value"


async def test_case_24_a_setting_that_would_let_the_next_call_write_does_not_reach_it(postgresql: Shop) -> None:
    statement = (
        "SELECT set_config(:a, :b, false) AS set, pg_backend_pid() AS pid,"
        " current_setting('transaction_read_only') AS now"
    )
    tool = postgresql.tool(statement, ANYTHING, fetch="one", pool_size=1)
    first = (await tool.execute({"a": "default_transaction_read_only", "b": "off"})).content
    second = (await tool.execute({"a": "application_name", "b": "x"})).content
    third = (await tool.execute({"a": "application_name", "b": "x"})).content
    await tool.aclose()
    assert (first["set"], first["now"], second["now"]) == ("off", "on", "on")
    assert first["pid"] != second["pid"] == third["pid"]


@pytest.mark.parametrize("statement", ["DO $$ BEGIN COMMIT; DELETE FROM item; END $$", "CALL p()", "COPY item TO '/x'"])
def test_case_24_what_could_end_its_transaction_is_refused_beforehand(statement: str) -> None:
    with pytest.raises(ValueError, match="does not only read"):
        PostgreSqlToolSpec.model_validate({"tool_name": "t", "dsn": "${X}", "statement": statement})


async def test_a_connection_that_is_killed_is_an_error_to_repeat_where_that_is_safe(postgresql: Shop) -> None:
    for read_only in (True, False):
        tool = postgresql.tool("SELECT pg_sleep(5)", read_only=read_only, fetch="all")
        asking = asyncio.create_task(tool.execute({}))
        await asyncio.sleep(0.15)
        kill = f"SELECT pg_terminate_backend(pid) {OTHERS} AND query LIKE '%sleep(5)%'"
        await postgresql.ask(kill)
        error = (await asking).error
        assert error is not None
        assert (error.code, error.retryable) == ("connection_lost", read_only)
        await tool.aclose()


async def test_a_server_that_restarts_is_asked_again_by_a_retry(postgresql: Shop, postgres: Postgres) -> None:
    tool = postgresql.tool("SELECT count(*) AS n FROM item WHERE id <= 10000", retry={"attempts": 3, "base_s": 0.01})
    assert (await tool.execute({})).ok
    await asyncio.to_thread(postgres.restart)
    assert (await tool.execute({})).content == [{"n": 10_000}]
    await tool.aclose()


async def test_a_cancel_reaches_the_server(postgresql: Shop) -> None:
    tool = postgresql.tool("SELECT pg_sleep(30) AS nap")
    asking = asyncio.create_task(tool.execute({}))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.sleep(0)
    asking.cancel()  # the second one does not hold up the first
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.1)
    active = f"SELECT count(*) AS n {OTHERS} AND state = 'active' AND query LIKE '%AS nap%'"
    assert await postgresql.ask(active) == [{"n": 0}]
    await tool.aclose()


async def test_a_cancelled_call_leaves_its_connection_to_the_next_with_nothing_set(postgresql: Shop) -> None:
    statement = "SELECT pg_backend_pid() AS pid, current_setting('work_mem') AS before,"
    statement += " CASE WHEN :a THEN set_config('work_mem', '9MB', false) END AS set, pg_sleep(:b)::text AS nap"
    tool = postgresql.tool(statement, ANYTHING, fetch="one", pool_size=1, read_only=False)
    first = (await tool.execute({"a": True, "b": 0})).content
    asking = asyncio.create_task(tool.execute({"a": False, "b": 30}))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    second = (await asyncio.wait_for(tool.execute({"a": False, "b": 0}), 2)).content
    await tool.aclose()
    assert first["pid"] == second["pid"]
    assert (first["set"], second["before"]) == ("9MB", first["before"])


async def test_a_call_that_is_dropped_leaves_its_place_to_the_next(postgresql: Shop) -> None:
    tool = postgresql.tool("SELECT pg_backend_pid() AS pid, pg_sleep(:a)::text AS nap", ANYTHING, pool_size=1)
    first = (await tool.execute({"a": 0})).content
    dropped: Any = tool._execute_db_operation({"a": 1}, ToolContext(), 1.0)
    dropped.send(None)  # it waits for the server now
    dropped.close()
    second = (await asyncio.wait_for(tool.execute({"a": 0}), 0.8)).content
    await tool.aclose()
    assert first[0]["pid"] != second[0]["pid"]


async def test_a_table_that_changes_is_read_as_it_is_now(postgresql: Shop) -> None:
    await postgresql.ask("CREATE TABLE changing AS SELECT 1 AS a")
    tool = postgresql.tool("SELECT * FROM changing")
    assert (await tool.execute({})).content == [{"a": 1}]
    await postgresql.ask("ALTER TABLE changing ADD COLUMN b text DEFAULT 'x'")
    assert (await tool.execute({})).content == [{"a": 1, "b": "x"}]
    await tool.aclose()


async def test_the_server_itself_knows_the_time_limit(postgresql: Shop) -> None:
    tool = postgresql.tool("SELECT current_setting('statement_timeout') AS t", timeout_s=1.5)
    assert (await tool.execute({})).content == [{"t": "1500ms"}]
    await tool.aclose()


async def test_a_long_answer_is_cut_by_the_server(postgresql: Shop) -> None:
    tool = postgresql.tool("SELECT 1 AS n FROM item a, item b, item c", max_rows=2, timeout_s=5)
    result = await tool.execute({})
    await tool.aclose()
    assert result.content == [{"n": 1}, {"n": 1}]


async def test_case_25_no_error_and_no_repr_shows_the_password(
    postgres: Postgres, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PG_WORD", PASSWORD)
    wrong = [
        postgres.dsn.replace("/postgres?", f"/{PASSWORD}?"),
        postgres.dsn.replace("host=", "host=/nowhere"),
        f"postgresql://u:{PASSWORD}@127.0.0.1:1/x",
        f"postgresql://u:{PASSWORD}@[::1/x",
        f"postgresql://u:a/{PASSWORD}@h:x{PASSWORD}/x",
        "postgresql://u:${PG_WORD}@127.0.0.1:1/${PG_WORD}",
    ]
    seen = []
    for dsn in wrong:
        spec = PostgreSqlToolSpec(tool_name="t", dsn=dsn, statement="SELECT 1")
        seen += [repr(spec), str(spec.model_dump()), spec.model_dump_json()]
        try:
            executor = PostgreSqlExecutor(spec)
        except UsageError as error:
            seen.append(repr(error))
            continue
        result = await executor.execute({})
        assert result.error is not None
        seen += [repr(result), repr(executor)]
        await executor.aclose()
    text = caplog.text + "".join(seen)
    parts = [PASSWORD[at : at + 8] for at in range(len(PASSWORD) - 7)]
    assert not [part for part in parts if part in text]


def test_a_reference_is_shown_and_read_when_the_tool_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PostgreSqlToolSpec.model_validate({"tool_name": "t", "dsn": "${SHOP_DSN}", "statement": "SELECT 1"})
    assert PostgreSqlToolSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(UsageError, match="'SHOP_DSN' is not set"):
        PostgreSqlExecutor(spec)
    monkeypatch.setenv("SHOP_DSN", "mysql://u:secretsecret@h/d")
    with pytest.raises(UsageError, match="no address of PostgreSQL") as caught:
        PostgreSqlExecutor(spec)
    assert "secret" not in str(caught.value)


async def test_a_login_that_is_refused_says_so(postgres: Postgres) -> None:
    dsn = postgres.dsn.replace("postgresql://postgres", "postgresql://nobody")
    executor = PostgreSqlExecutor(PostgreSqlToolSpec(tool_name="t", dsn=dsn, statement="SELECT 1"))
    error = (await executor.execute({})).error
    await executor.aclose()
    assert error is not None
    assert error.code == "login_refused"


STATED: list[Any] = [
    kind
    for kind in vars(exceptions).values()
    if isinstance(kind, type) and issubclass(kind, asyncpg.PostgresError) and getattr(kind, "sqlstate", None)
]
# Classes of conditions that a single statement of a tool does not meet, or that only say that the server is at fault.
REST = {
    "03",
    "09",
    "0A",
    "0B",
    "0F",
    "0L",
    "0P",
    "0Z",
    "10",
    "20",
    "24",
    "25",
    "26",
    "27",
    "2B",
    "2D",
    "2F",
    "34",
    "3B",
}
REST |= {"3F", "55", "58", "72", "F0", "HV", "XX"}


def test_every_class_of_state_is_translated_or_named() -> None:
    states = {str(kind.sqlstate) for kind in STATED}
    assert {state[:2] for state in states if not {state, state[:2]} & set(STATES)} == REST
    assert {state for state in STATES if not any(one.startswith(state) for one in states)} == set()


def test_an_error_is_repeated_only_where_nothing_was_done() -> None:
    for kind in STATED:
        error = translated(kind("said"), safe=False)
        assert isinstance(error, ToolTimeout) or error.message == "PostgreSQL: said"
        assert error.retryable == (error.code in {"conflict", "database_locked", "too_many_connections", "unavailable"})
