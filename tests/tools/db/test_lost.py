"""Servers that vanish while they are asked: deadlines hold, cancels arrive, and no write is repeated."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import pytest

from penstock.tools.db import (
    MySqlExecutor,
    MySqlToolSpec,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
    mysql,
    postgresql,
)
from penstock.tools.db.base import sent
from tests.rig.mariadb import MariaDb
from tests.rig.postgres import Postgres
from tests.tools.db.shops import Shop
from tests.tools.db.test_fields import dynamo

ANYTHING: dict[str, Any] = {"type": "object", "properties": {"a": {}}}
Open: TypeAlias = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass(slots=True)
class Line:
    """The way to a server, which can be cut: from then on nothing arrives, and nobody is told."""

    open: Open
    port: int = 0
    cut: bool = False
    stopped: bool = False
    _ends: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, there and back."""
        self._ends.append(writer)
        if self.stopped:
            writer.transport.abort()
        if self.cut:
            return
        answers, asks = await self.open()
        self._ends.append(asks)
        await asyncio.gather(self._pump(reader, asks), self._pump(answers, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if self.cut:
                    return
                sink.write(data)
        sink.close()

    def stop(self) -> None:
        """Break every connection off, also those that are still to come."""
        self.stopped = self.cut = True
        for end in self._ends:
            end.transport.abort()


@asynccontextmanager
async def line(open_server: Open) -> AsyncIterator[Line]:
    """A line to the server that this reaches."""
    found = Line(open_server)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        found.stop()
        server.close()


@dataclass(frozen=True, slots=True)
class Far:
    """A shop with a table `lost`, and how to reach its server; `dsn` has a place for the port of a line to it."""

    shop: Shop
    open: Open
    dsn: str
    statement: str

    @asynccontextmanager
    async def tool(self, first: Any = 1, **spec: Any) -> AsyncIterator[tuple[Line, Any]]:
        """A tool that writes, and the line it writes through; its first call has opened a connection."""
        await self.shop.ask("CREATE TABLE IF NOT EXISTS lost (a INT)")
        fields: dict[str, Any] = {"tool_name": "t", "read_only": False, "parameters": ANYTHING, "timeout_s": 3, **spec}
        async with line(self.open) as way:
            fields |= {"dsn": self.dsn.format(port=way.port), "statement": self.statement}
            tool: Any = (
                PostgreSqlExecutor(PostgreSqlToolSpec.model_validate(fields))
                if self.shop.name == "postgresql"
                else MySqlExecutor(MySqlToolSpec.model_validate(fields))
            )
            assert (await tool.execute({"a": first})).ok
            yield way, tool
            way.stop()
            await tool.aclose()


def far_postgresql(shop: Shop, server: Postgres) -> Far:
    file = Path(parse_qs(urlsplit(server.dsn).query)["host"][0]) / ".s.PGSQL.5432"
    dsn = "postgresql://postgres@127.0.0.1:{port}/postgres"
    statement = "INSERT INTO lost SELECT :a::int FROM pg_sleep(0.2)"
    return Far(shop, partial(asyncio.open_unix_connection, str(file)), dsn, statement)


def far_mysql(shop: Shop, server: MariaDb) -> Far:
    where = urlsplit(server.dsn)
    dsn = server.dsn.replace(f":{where.port}/", ":{port}/")
    opened = partial(asyncio.open_connection, where.hostname, where.port)
    return Far(shop, opened, dsn, "INSERT INTO lost SELECT :a + sleep(0.2)")


@pytest.fixture(params=["postgresql", "mysql"])
def far(request: pytest.FixtureRequest) -> Far:
    """Each of the servers in turn."""
    if request.param == "postgresql":
        return far_postgresql(request.getfixturevalue("postgresql"), request.getfixturevalue("postgres"))
    return far_mysql(request.getfixturevalue("mysql"), request.getfixturevalue("mariadb_server"))


async def test_the_deadline_of_a_call_holds_where_the_server_is_gone(far: Far) -> None:
    async with far.tool(timeout_s=0.3, retry={"attempts": 3, "base_s": 0.01}) as (way, tool):
        asking, began = asyncio.create_task(tool.execute({"a": 2})), monotonic()
        await asyncio.sleep(0.1)
        way.cut = True
        error = (await asking).error
        assert (error.code, error.retryable) == ("timeout", False)
        assert monotonic() - began < 1.2


async def test_an_attempt_that_overran_is_not_repeated_where_it_may_have_written(far: Far) -> None:
    retry = {"attempts": 3, "base_s": 0.01, "attempt_timeout_s": 0.4}
    async with far.tool(retry=retry) as (way, tool):
        asking, began = asyncio.create_task(tool.execute({"a": 2})), monotonic()
        await asyncio.sleep(0.1)
        way.cut = True
        assert (await asking).error.code == "timeout"
        assert monotonic() - began < 1.5  # a second attempt would wait for its connection until the deadline


async def test_a_cancel_arrives_where_the_server_is_gone(far: Far) -> None:
    async with far.tool() as (way, tool):
        asking = asyncio.create_task(tool.execute({"a": 2}))
        await asyncio.sleep(0.1)
        way.cut = True
        asking.cancel()
        await asyncio.wait([asking], timeout=2)
        assert asking.cancelled()
        way.cut = False
        assert (await tool.execute({"a": 3})).ok


async def test_a_connection_that_breaks_within_a_write_is_not_one_that_was_never_made(far: Far) -> None:
    async with far.tool() as (way, tool):
        asking = asyncio.create_task(tool.execute({"a": 2}))
        await asyncio.sleep(0.1)
        way.stop()
        error = (await asking).error
        assert (error.code, error.retryable) == ("connection_lost", False)


async def test_a_connection_that_breaks_while_much_is_sent_is_no_other_case(far: Far) -> None:
    longer = replace(far, statement="INSERT INTO lost SELECT length(:a)" + " + length(:a)" * 11)
    async with longer.tool(first="x") as (way, tool):
        way.cut = True
        asking = asyncio.create_task(tool.execute({"a": "x" * 900_000}))
        await asyncio.sleep(0.2)
        way.stop()
        error = (await asking).error
        assert (error.code, error.retryable) == ("connection_lost", False)


@pytest.mark.parametrize("translated", [mysql.translated, postgresql.translated])
def test_a_network_error_means_that_nothing_was_done_only_before_the_statement(translated: Any) -> None:
    with pytest.raises(EOFError, match="reset") as caught, sent():
        raise ConnectionResetError("reset")
    for safe in (True, False):
        assert translated(ConnectionResetError("reset"), safe=safe).retryable
        lost = translated(caught.value, safe=safe)
        assert (lost.code, lost.retryable) == ("connection_lost", safe)


async def test_a_request_that_is_reset_may_have_been_done() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the peer is told: reset
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for spec, safe in (({"operation": "put", "key": {}, "item": {"id": ":id"}, "read_only": False}, False), ({}, True)):
        tool = dynamo(endpoint_url=url, **spec)
        error = (await tool.execute({"id": "a"})).error
        assert error is not None
        assert (error.code, error.retryable) == ("connection_lost", safe)
        await tool.aclose()
    server.close()
