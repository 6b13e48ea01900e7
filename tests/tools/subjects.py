"""Every kind of tool in three forms, for the laws: one that gives a value, one that fails, one that takes long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from penstock.tools import (
    BaseToolExecutor,
    DynamoDBExecutor,
    DynamoDbToolSpec,
    FunctionExecutorFactory,
    FunctionToolSpec,
    HttpToolExecutor,
    HttpToolSpec,
    MySqlExecutor,
    MySqlToolSpec,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
    SqliteExecutor,
    SqliteToolSpec,
)
from tests.docs.pages import DOCS, blocks

SLOW_S = 30.0
TEXT = {"text": {"type": "string"}}


@dataclass(frozen=True)
class Subject:
    """`make(form, **fields)` gives a tool of a form ("good", "failing", "slow") with these fields of its spec.

    `arguments` are right for all forms, and `value` is what the good one gives for them.
    """

    make: Callable[..., BaseToolExecutor[Any]]
    arguments: dict[str, Any]
    value: Any


Maker = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Subject]]


def good(text: str) -> str:
    return f"got {text}"


def failing(text: str) -> str:
    raise ValueError(f"no {text}")


def slow(text: str) -> str:
    time.sleep(SLOW_S)
    return text


async def a_good(text: str) -> str:
    await asyncio.sleep(0)
    return good(text)


async def a_failing(text: str) -> str:
    await asyncio.sleep(0)
    return failing(text)


async def a_slow(text: str) -> str:
    await asyncio.sleep(SLOW_S)
    return text


async def s_good(text: str) -> AsyncGenerator[str, None]:
    for piece in ("got ", text):
        yield piece


async def s_failing(text: str) -> AsyncGenerator[str, None]:
    yield "got "
    failing(text)


async def s_slow(text: str) -> AsyncGenerator[str, None]:
    yield text
    await asyncio.sleep(SLOW_S)


async def b_good(items: list[dict[str, str]]) -> list[str]:
    return [good(**item) for item in items]


async def b_failing(items: list[dict[str, str]]) -> list[str]:
    return [failing(**item) for item in items]


async def b_slow(items: list[dict[str, str]]) -> list[str]:
    await asyncio.sleep(SLOW_S)
    return [item["text"] for item in items]


def functions(*forms: Callable[..., Any], type_: str = "standard", **usual: Any) -> Maker:
    """A kind of function tool from its three functions."""
    table = dict(zip(("good", "failing", "slow"), forms, strict=True))

    def make(form: str, **fields: Any) -> BaseToolExecutor[Any]:
        spec = FunctionToolSpec(tool_name=form, **{**usual, **fields})
        made = FunctionExecutorFactory.create_executor(spec, table[form], executor_type=type_)
        assert isinstance(made, BaseToolExecutor)
        return made

    @asynccontextmanager
    async def subject(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
        yield Subject(make, {"text": "it"}, "got it")

    return subject


@cache
def documented() -> dict[str, Any]:
    """What the page on tools defines of its own executors."""
    found: dict[str, Any] = {}
    for block in blocks(DOCS / "tools.md"):
        if block.language == "python" and re.search(r"^class .*(Executor|Spec)\(", block.text, re.MULTILINE):
            exec(compile(block.text, "tools.md", "exec"), found)
    return found


def own(name: str, value: Any) -> Maker:
    """An executor of the page that calls a function."""

    def make(form: str, **fields: Any) -> BaseToolExecutor[Any]:
        func = {"good": a_good, "failing": a_failing, "slow": a_slow}[form]
        made = documented()[name](FunctionToolSpec(tool_name=form, **fields), func)
        assert isinstance(made, BaseToolExecutor)
        return made

    @asynccontextmanager
    async def subject(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
        yield Subject(make, {"text": "it"}, value)

    return subject


def asked(make: Callable[..., BaseToolExecutor[Any]], path: str) -> Maker:
    """An HTTP tool whose address names its form."""

    @asynccontextmanager
    async def subject(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
        address = request.getfixturevalue("service")

        def at(form: str, **fields: Any) -> BaseToolExecutor[Any]:
            url = f"{address}/{form}{path}"
            about = {"tool_name": form, "allow_private": True, "parameters": TEXT, "base_url": url}
            return make(**{**about, **fields})

        yield Subject(at, {"text": "it"}, {"said": "got it"})

    return subject


def stated(make: Callable[..., BaseToolExecutor[Any]], *statements: str, server: str = "") -> Maker:
    """A database tool from its three statements; `server` is the fixture that gives its address."""
    table = dict(zip(("good", "failing", "slow"), statements, strict=True))

    @asynccontextmanager
    async def subject(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
        folder: Path = request.getfixturevalue("tmp_path")
        sqlite3.connect(folder / "laws.db").close()
        where = {"dsn": request.getfixturevalue(server).dsn} if server else {"path": str(folder / "laws.db")}
        made: list[BaseToolExecutor[Any]] = []

        def tool(form: str, **fields: Any) -> BaseToolExecutor[Any]:
            about = {"tool_name": form, "parameters": TEXT, "statement": table[form], "fetch": "one"}
            made.append(make(**{**where, **about, **fields}))
            return made[-1]

        yield Subject(tool, {"text": "it"}, {"said": "got it"})
        for one in made:
            await one.aclose()

    return subject


@asynccontextmanager
async def documents(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
    """The page's document database: a folder that is right, one with a broken file, one whose file gives nothing."""
    folder: Path = request.getfixturevalue("tmp_path")
    for form in ("good", "failing", "slow"):
        (folder / form).mkdir()
    (folder / "good" / "1.json").write_text('{"text": "it", "n": 1}')
    (folder / "failing" / "1.json").write_text("{")
    pipe = folder / "slow" / "1.json"
    os.mkfifo(pipe)

    def make(form: str, **fields: Any) -> BaseToolExecutor[Any]:
        spec = documented()["DocumentsToolSpec"]
        about = {"tool_name": form, "parameters": TEXT, "folder": str(folder / form)}
        made = documented()["DocumentsExecutor"](spec(**{**about, **fields}))
        assert isinstance(made, BaseToolExecutor)
        return made

    try:
        yield Subject(make, {"text": "it"}, [{"text": "it", "n": 1}])
    finally:
        pipe.rename(folder / "pipe")
        for _ in range(50):  # lets go of every thread that reads it
            with contextlib.suppress(OSError):
                os.close(os.open(folder / "pipe", os.O_WRONLY | os.O_NONBLOCK))
            await asyncio.sleep(0.002)


async def make_table(tool: DynamoDBExecutor) -> None:
    """The tool's table, with one item."""
    client, name = await tool._client.get(), tool.spec.table
    await client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "text", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "text", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    await client.put_item(TableName=name, Item={"text": {"S": "it"}, "said": {"S": "got it"}})


@asynccontextmanager
async def dynamo(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
    """A table with one item; one that is missing; a service that says nothing."""
    address, silent = request.getfixturevalue("moto"), request.getfixturevalue("service")
    keys = {"region": "eu-west-1", "access_key_id": "${LAWS_KEY}", "secret_access_key": "${LAWS_KEY}"}
    os.environ["LAWS_KEY"] = "laws"
    table = f"laws{uuid.uuid4().hex}"
    made: list[DynamoDBExecutor] = []

    def make(form: str, **fields: Any) -> DynamoDBExecutor:
        where = {"endpoint_url": silent if form == "slow" else address, "table": "none" if form == "failing" else table}
        about = {"tool_name": form, "parameters": TEXT, "operation": "get", "key": {"text": ":text"}, **keys}
        made.append(DynamoDBExecutor(DynamoDbToolSpec(**{**about, **where, **fields})))
        return made[-1]

    await make_table(make("good"))
    yield Subject(make, {"text": "it"}, {"text": "it", "said": "got it"})
    for one in made:
        await one.aclose()


def http(**fields: Any) -> BaseToolExecutor[Any]:
    return HttpToolExecutor(HttpToolSpec(**fields, path="/{text}"))


def graphql(**fields: Any) -> BaseToolExecutor[Any]:
    made = documented()["GraphQlExecutor"](HttpToolSpec(**fields))
    assert isinstance(made, BaseToolExecutor)
    return made


ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) + length(:text) AS n FROM c"

SUBJECTS: dict[str, Maker] = {
    "async function": functions(a_good, a_failing, a_slow),
    "function in a thread": functions(good, failing, slow),
    "function in a process": functions(good, failing, slow, run_in="process"),
    "cached": functions(a_good, a_failing, a_slow, type_="cached"),
    "streaming": functions(s_good, s_failing, s_slow, type_="streaming"),
    "batching": functions(b_good, b_failing, b_slow, type_="batching", parameters=TEXT),
    "HTTP": asked(http, ""),
    "SQLite": stated(
        lambda **spec: SqliteExecutor(SqliteToolSpec(**spec)),
        "SELECT 'got ' || :text AS said",
        "SELECT json(:text) AS said",
        ENDLESS,
    ),
    "PostgreSQL": stated(
        lambda **spec: PostgreSqlExecutor(PostgreSqlToolSpec(**spec)),
        "SELECT 'got ' || :text::text AS said",
        "SELECT 1 / (length(:text::text) - 2) AS said",
        "SELECT pg_sleep(30), :text::text AS said",
        server="postgres",
    ),
    "MySQL": stated(
        lambda **spec: MySqlExecutor(MySqlToolSpec(**spec)),
        "SELECT concat('got ', :text) AS said",
        "SELECT said FROM nowhere WHERE said = :text",
        "SELECT sleep(30), :text AS said",
        server="mariadb_server",
    ),
    "DynamoDB": dynamo,
    "documented: cached": own("RememberingExecutor", "got it"),
    "documented: streaming": own("WordsExecutor", "got it "),
    "documented: GraphQL": asked(graphql, "/graphql"),
    "documented: documents": documents,
}
