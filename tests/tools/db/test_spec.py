"""Specs of database tools: what they refuse, show and hide; and what a custom driver inherits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.errors import MissingExtra, ToolFailed, UsageError
from penstock.tools.db import (
    BaseDbExecutor,
    DbToolSpec,
    MySqlToolSpec,
    PerLoop,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
    SqliteToolSpec,
    SqlToolSpec,
)
from penstock.tools.db.base import Failures, failed
from penstock.tools.result import ToolContext

SQL: dict[type[SqlToolSpec], dict[str, Any]] = {
    SqliteToolSpec: {"path": "x.db"},
    PostgreSqlToolSpec: {"dsn": "postgresql://u:hidden-word@h/d"},
    MySqlToolSpec: {"dsn": "mysql://u:hidden-word@h/d"},
}


@pytest.fixture(params=SQL, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[SqlToolSpec]:
    """Each kind of SQL tool."""
    found: type[SqlToolSpec] = request.param
    return found


def made(kind: type[SqlToolSpec], statement: str, **spec: Any) -> SqlToolSpec:
    return kind.model_validate({"tool_name": "t", "statement": statement, **SQL[kind], **spec})


@pytest.mark.parametrize(
    "parameters", [None, {"id": "integer"}, {"type": "object", "properties": {"id": {"type": "integer"}}}]
)
def test_a_parameter_that_is_not_declared_is_refused(kind: type[SqlToolSpec], parameters: Any) -> None:
    with pytest.raises(ValueError, match="no parameter is called 'nobody'"):
        made(kind, "SELECT :nobody", parameters=parameters)
    if parameters:
        assert made(kind, "SELECT :id", parameters=parameters).parameter_names == {"id"}


@pytest.mark.parametrize("statement", ["DELETE FROM t", "insert into t values (1)", "DROP TABLE t", "(DELETE FROM t)"])
def test_case_24_a_statement_that_writes_needs_to_say_so(kind: type[SqlToolSpec], statement: str) -> None:
    with pytest.raises(ValueError, match="read_only: false"):
        made(kind, statement)
    assert made(kind, statement, read_only=False).fetches == "affected"


def test_two_statements_are_refused(kind: type[SqlToolSpec]) -> None:
    with pytest.raises(ValueError, match="one statement only"):
        made(kind, "SELECT 1; DROP TABLE t")


def test_the_driver_of_a_kind_is_its_own(kind: type[SqlToolSpec]) -> None:
    assert made(kind, "SELECT 1").driver == kind.dialect
    with pytest.raises(ValueError, match="driver"):
        made(kind, "SELECT 1", driver="other")


def test_case_25_a_dsn_is_never_shown(kind: type[SqlToolSpec]) -> None:
    spec = made(kind, "SELECT 1")
    assert "hidden" not in repr(spec) + str(spec) + spec.model_dump_json() + str(spec.model_dump())


def test_a_retry_is_known_to_be_safe_where_nothing_is_written() -> None:
    for read_only in (True, False):
        spec = DbToolSpec(tool_name="t", driver="mine", read_only=read_only)
        assert BaseDbExecutor(spec).safe is read_only


class Documents(BaseDbExecutor[DbToolSpec]):
    """A driver of one's own: a store of documents in memory, with what a call needs held for each loop."""

    freed = 0

    def __init__(self, spec: DbToolSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._store = PerLoop(self._open, self._free)

    async def _open(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"a": {"title": "Water"}}

    async def _free(self, store: dict[str, Any]) -> None:
        self.freed += 1

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        store = await self._store.get()
        if args["id"] not in store:
            raise ToolFailed(f"no document {args['id']!r}", code="not_found")
        assert ctx.principal is not None
        return {**store[args["id"]], "for": ctx.principal.name, "in_time": 0 < timeout <= 5}

    async def aclose(self) -> None:
        await self._store.aclose()


class Streams(BaseDbExecutor[DbToolSpec]):
    """A driver whose rows come one after another."""

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> AsyncIterator[Any]:
        for number in range(3):
            yield {"n": number}


async def test_a_driver_of_ones_own_inherits_the_pipeline() -> None:
    spec = DbToolSpec.model_validate(
        {"tool_name": "t", "driver": "mine", "parameters": {"id": "string"}, "timeout_s": 5}
    )
    tool = Documents(spec)
    found = await asyncio.gather(*(tool.execute({"id": "a"}) for _ in range(3)))
    assert {str(result.content) for result in found} == {"{'title': 'Water', 'for': 'local', 'in_time': True}"}
    error = (await tool.execute({"id": "b"})).error
    assert error is not None
    assert error.code == "not_found"
    await tool.aclose()
    await tool.aclose()
    assert tool.freed == 1
    streams = Streams(DbToolSpec(tool_name="t", driver="mine"))
    assert (await streams.execute({})).content == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_what_a_loop_holds_is_freed_with_it() -> None:
    tool = Documents(DbToolSpec.model_validate({"tool_name": "t", "driver": "mine", "parameters": {"id": "string"}}))
    for _ in range(2):
        assert asyncio.run(tool.execute({"id": "a"})).ok
    assert tool.freed == 2


async def test_a_driver_that_asks_nothing_says_so() -> None:
    error = (await BaseDbExecutor(DbToolSpec(tool_name="t", driver="mine")).execute({})).error
    assert error is not None
    assert "_execute_db_operation" in error.message


def test_a_driver_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'penstock\[postgresql\]'"):
        PostgreSqlExecutor(
            PostgreSqlToolSpec.model_validate({"tool_name": "t", "statement": "SELECT 1", "dsn": "postgresql://h/d"})
        )


def test_case_25_secrets_are_taken_out_of_text_and_details() -> None:
    failures = Failures(
        lambda _: failed("at canary-word and wörtlich-geheim", "x", hint="canary-word", n=1),
        ["canary-word", "wörtlich-geheim"],
    )
    found = failures.of(ValueError())
    assert str(found) == "at *** and ***"
    assert found.details == {"hint": "***", "n": 1}


def test_an_address_that_cannot_be_read_is_refused_without_showing_it() -> None:
    spec = PostgreSqlToolSpec.model_validate(
        {"tool_name": "t", "statement": "SELECT 1", "dsn": "postgresql://u:hidden-word@[h/d"}
    )
    with pytest.raises(UsageError) as caught:
        PostgreSqlExecutor(spec)
    assert "hidden" not in str(caught.value)
