"""MySQL's and MariaDB's own cases: values, lost connections, locks, addresses, secrets."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncmy
import pytest
from asyncmy import errors
from pydantic_core import to_json

from penstock.errors import ToolTimeout, UsageError
from penstock.tools.db import MySqlExecutor, MySqlToolSpec
from penstock.tools.db.mysql import NUMBERS, address_of, translated
from tests.rig.mariadb import PASSWORD, MariaDb
from tests.tools.db.shops import Shop

ANYTHING: dict[str, Any] = {"type": "object", "properties": {"a": {}, "b": {}}}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("CAST(1.50 AS DECIMAL(10, 2))", 1.5),
        ("18446744073709551615", 2**64 - 1),
        ("CAST('2026-01-02' AS DATE)", "2026-01-02"),
        ("CAST('2026-01-02 03:04:05.5' AS DATETIME(1))", "2026-01-02T03:04:05.500000"),
        ("CAST('26:00:01' AS TIME)", "PT93601S"),
        ("x'00ff'", "AP8="),
        ("'é 🌊'", "é 🌊"),
        ("NULL", None),
        ("JSON_OBJECT('a', 1)", '{"a": 1}'),
    ],
)
async def test_values_come_back_as_json_carries_them(mysql: Shop, expression: str, expected: Any) -> None:
    tool = mysql.tool(f"SELECT {expression} AS v", fetch="one")
    assert (await tool.execute({})).content == {"v": expected}
    await tool.aclose()


@pytest.mark.parametrize("value", [1, 2**40, 1.5, True, "x", "é\x00'\\", None, [1, "'"], {"'": 1}])
async def test_case_24_values_are_bound_on_the_server(mysql: Shop, value: Any) -> None:
    tool = mysql.tool("SELECT :a AS a, :a AS b", ANYTHING, fetch="one")
    found = (await tool.execute({"a": value})).content
    await tool.aclose()
    assert found["a"] == found["b"]
    assert found["a"] == (value if isinstance(value, int | float | str | None) else to_json(value).decode())


async def test_a_connection_that_is_killed_is_an_error_to_repeat_where_that_is_safe(
    mysql: Shop, mariadb_server: MariaDb
) -> None:
    for read_only in (True, False):
        tool = mysql.tool("SELECT sleep(5)", read_only=read_only, fetch="all", retry=None)
        asking = asyncio.create_task(tool.execute({}))
        await asyncio.sleep(0.15)
        admin: Any = await asyncmy.connect(**address_of(mariadb_server.dsn))
        async with admin.cursor() as cursor:
            await cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE info LIKE '%sleep(5)%' AND id <> connection_id()"
            )
            for (number,) in await cursor.fetchall():
                await admin.kill(number)
        admin.close()
        error = (await asking).error
        assert error is not None
        assert (error.code, error.retryable) == ("connection_lost", read_only)
        await tool.aclose()


async def test_a_connection_the_server_closed_meanwhile_is_not_used_again(mysql: Shop, mariadb_server: MariaDb) -> None:
    tool = mysql.tool("SELECT connection_id() AS c", fetch="one", pool_size=1)
    first = (await tool.execute({})).content["c"]
    assert (await tool.execute({})).content["c"] == first
    admin: Any = await asyncmy.connect(**address_of(mariadb_server.dsn))
    await admin.kill(first)
    admin.close()
    await asyncio.sleep(0.1)
    again = await tool.execute({})
    await tool.aclose()
    assert again.ok
    assert again.content["c"] != first


async def test_a_cancel_reaches_the_server(mysql: Shop) -> None:
    tool = mysql.tool("SELECT sleep(30) AS nap")
    asking = asyncio.create_task(tool.execute({}))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await tool.aclose()
    await asyncio.sleep(0.05)
    left = (
        "SELECT count(*) AS n FROM information_schema.processlist WHERE info LIKE '%AS nap%' AND id <> connection_id()"
    )
    assert await mysql.ask(left) == [{"n": 0}]


async def test_the_server_itself_knows_the_time_limit(mysql: Shop) -> None:
    tool = mysql.tool("SELECT @@max_statement_time AS t", timeout_s=1.5)
    assert (await tool.execute({})).content == [{"t": 1.5}]
    await tool.aclose()


async def test_a_locked_row_is_an_error_to_try_again(mysql: Shop, mariadb_server: MariaDb) -> None:
    other: Any = await asyncmy.connect(**address_of(mariadb_server.dsn), autocommit=False)
    await other.query("SELECT * FROM item WHERE id = 1 FOR UPDATE")
    tool = mysql.tool("SELECT id FROM item WHERE id = 1 FOR UPDATE NOWAIT", read_only=False, fetch="all")
    error = (await tool.execute({})).error
    await other.rollback()
    other.close()
    assert error is not None
    assert (error.code, error.retryable) == ("database_locked", True)
    assert (await tool.execute({})).content == [{"id": 1}]
    await tool.aclose()


async def test_case_24_a_file_is_not_written(mysql: Shop) -> None:
    for target in ("OUTFILE", "DUMPFILE"):
        with pytest.raises(ValueError, match="writes a file"):
            mysql.tool(f"SELECT 1 INTO {target} '/x'")


async def test_case_25_no_error_and_no_repr_shows_the_password(mariadb_server: MariaDb) -> None:
    seen = []
    wrong = [
        mariadb_server.dsn.replace(PASSWORD, PASSWORD + "x"),
        mariadb_server.dsn.replace("/shop", f"/{PASSWORD}"),
        f"mysql://shop:{PASSWORD}@127.0.0.1:1/shop",
        f"mysql://shop:{PASSWORD}@127.0.0.1:x/shop",
        f"mysql://shop:{PASSWORD}@127.0.0.1/",
        f"mysql://shop:{PASSWORD}@127.0.0.1/shop?password={PASSWORD}",
        f"mysql://shop:{PASSWORD}@/shop?unix_socket=/nowhere/{PASSWORD}",
    ]
    for dsn in wrong:
        spec = MySqlToolSpec.model_validate({"tool_name": "t", "dsn": dsn, "statement": "SELECT 1"})
        seen += [repr(spec), spec.model_dump_json()]
        try:
            executor = MySqlExecutor(spec)
        except UsageError as error:
            seen.append(repr(error))
            continue
        result = await executor.execute({})
        assert result.error is not None
        seen.append(repr(result))
        await executor.aclose()
    parts = [PASSWORD[at : at + 8] for at in range(len(PASSWORD) - 7)]
    assert not [part for part in parts if part in "".join(seen)]


def test_an_address_names_host_or_socket() -> None:
    found = address_of("mysql://u%40x:p%2Fw@db.example:3307/shop")
    assert (found["user"], found["password"], found["host"], found["port"]) == ("u@x", "p/w", "db.example", 3307)
    assert address_of("mariadb://u@/shop?unix_socket=/run/s")["unix_socket"] == "/run/s"
    assert address_of("mysql://u@h/shop?ssl=true")["ssl"]
    with pytest.raises(UsageError, match="no address of MySQL"):
        address_of("postgresql://u@h/shop")


def test_an_error_is_repeated_only_where_nothing_was_done() -> None:
    for number, code in NUMBERS.items():
        error = translated(errors.OperationalError(number, "said"), safe=False)
        assert isinstance(error, ToolTimeout) or error.code == code
        assert error.retryable == (code in {"conflict", "database_locked", "too_many_connections", "unavailable"})


def test_every_kind_of_error_is_translated() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MySQLError)]
    assert len(kinds) >= 10
    for kind in [*kinds, EOFError, ConnectionResetError, ValueError]:
        assert translated(kind("said"), safe=True).message == "MySQL: said"
    codes = {kind.__name__: translated(kind("said"), safe=True).code for kind in kinds}
    assert {name for name, code in codes.items() if code == "database_error"} == {
        "MySQLError",
        "Warning",
        "Error",
        "DatabaseError",
        "InternalError",
        "OperationalError",
    }
