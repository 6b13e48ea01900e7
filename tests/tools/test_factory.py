"""The three factories: executor types by name, the built-in ones for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UnknownName, UsageError
from penstock.policies import Policy
from penstock.run import Executor, Run
from penstock.tools.db import (
    BaseDbExecutor,
    DbToolSpec,
    DynamoDBExecutor,
    MySqlExecutor,
    PostgreSqlExecutor,
    SqliteExecutor,
    SqliteToolSpec,
)
from penstock.tools.factory import DbExecutorFactory, ExecutorFactory, FunctionExecutorFactory, HttpExecutorFactory
from penstock.tools.function import BaseFunctionExecutor, FunctionToolExecutor, FunctionToolSpec
from penstock.tools.function.batching import BatchingFunctionExecutor, CachedFunctionExecutor, StreamingFunctionExecutor
from penstock.tools.http import BaseHttpExecutor, HttpToolExecutor
from penstock.tools.http.spec import HttpToolSpec
from penstock.tools.result import ToolContext, ToolRequest

SPEC = FunctionToolSpec(tool_name="add")
FACTORIES = [FunctionExecutorFactory, HttpExecutorFactory, DbExecutorFactory]
BUILT_IN = [(factory, name) for factory in FACTORIES for name in factory.copy().list_executor_types()]


def add(a: int, b: int) -> int:
    return a + b


class Shouting(BaseFunctionExecutor):
    """A custom executor."""

    async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        return f"{self.func(**args)}!"


class GraphQl(BaseHttpExecutor):
    """A custom executor."""


class Documents(BaseDbExecutor[Any]):
    """A custom executor."""


def test_row_b4_the_types_of_each_factory() -> None:
    assert FunctionExecutorFactory.list_executor_types() == ["batching", "cached", "default", "standard", "streaming"]
    assert HttpExecutorFactory.list_executor_types() == ["default", "standard"]
    assert DbExecutorFactory.list_executor_types() == ["dynamodb", "mysql", "postgresql", "sqlite"]
    assert all(type(factory) is ExecutorFactory for factory in FACTORIES)


@pytest.mark.parametrize(
    ("factory", "name", "cls"),
    [
        (FunctionExecutorFactory, "standard", FunctionToolExecutor),
        (FunctionExecutorFactory, " Default ", FunctionToolExecutor),
        (FunctionExecutorFactory, "CACHED", CachedFunctionExecutor),
        (FunctionExecutorFactory, "Streaming", StreamingFunctionExecutor),
        (FunctionExecutorFactory, "batching", BatchingFunctionExecutor),
        (HttpExecutorFactory, "Standard", HttpToolExecutor),
        (HttpExecutorFactory, "default", HttpToolExecutor),
        (DbExecutorFactory, "SQLite", SqliteExecutor),
        (DbExecutorFactory, "PostgreSQL", PostgreSqlExecutor),
        (DbExecutorFactory, "MySQL", MySqlExecutor),
        (DbExecutorFactory, "DynamoDB", DynamoDBExecutor),
    ],
)
def test_row_b4_a_class_is_found_by_name_whatever_its_case(factory: ExecutorFactory, name: str, cls: type) -> None:
    assert factory.get_executor_class(name) is cls


async def test_row_b4_an_executor_is_made_by_type_and_is_standard_without_one() -> None:
    for arguments in ({}, {"executor_type": "standard"}, {"executor_type": "DEFAULT"}):
        made = FunctionExecutorFactory.create_executor(SPEC, add, **arguments)
        assert type(made) is FunctionToolExecutor
        assert (await made.execute({"a": 1, "b": 2})).content == 3
    assert type(FunctionExecutorFactory.create_executor(SPEC, add, "cached")) is CachedFunctionExecutor
    http = HttpToolSpec(tool_name="get", base_url="https://example.com", path="/")
    assert type(HttpExecutorFactory.create_executor(http)) is HttpToolExecutor
    assert type(HttpExecutorFactory.create_executor(http, executor_type="standard")) is HttpToolExecutor


async def test_row_b4_a_database_executor_is_chosen_by_the_driver_of_its_spec(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    spec = SqliteToolSpec(tool_name="one", path=str(tmp_path / "a.db"), statement="SELECT 1 AS n")
    for made in (DbExecutorFactory.get_executor(spec), DbExecutorFactory.create_executor(spec)):
        assert type(made) is SqliteExecutor
        await made.aclose()


async def test_row_b4_a_type_that_was_added_is_found_replaced_and_removed() -> None:
    own = FunctionExecutorFactory.copy()
    own.register("Shouting", Shouting)
    made = own.create_executor(SPEC, add, executor_type="SHOUTING")
    assert (await made.execute({"a": 1, "b": 2})).content == "3!"
    own.register("shouting", FunctionToolExecutor)
    assert own.get_executor_class("shouting") is FunctionToolExecutor
    own.unregister(" Shouting")
    with pytest.raises(UnknownName):
        own.get_executor_class("shouting")
    assert "shouting" not in FunctionExecutorFactory.list_executor_types()


async def test_row_b4_a_driver_that_was_added_is_found_by_its_spec() -> None:
    own = DbExecutorFactory.copy()
    own.register("documents", Documents)
    assert type(own.get_executor(DbToolSpec(tool_name="find", driver="Documents"))) is Documents


@pytest.mark.parametrize(("factory", "name"), BUILT_IN)
def test_row_b4_what_is_built_in_can_be_neither_removed_nor_replaced(factory: ExecutorFactory, name: str) -> None:
    bases = {"function": Shouting, "http": GraphQl, "db": Documents}
    own = factory.copy()
    with pytest.raises(ValueError, match="is built in and stays"):
        own.unregister(name.upper())
    with pytest.raises(ValueError, match="is built in and stays"):
        own.register(f" {name.title()}", bases[own._kind])
    assert own.get_executor_class(name) is factory.get_executor_class(name)


@pytest.mark.parametrize("name", ["", "  ", "nope"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_row_b4_an_empty_or_unknown_name_is_a_value_error_with_the_known_ones(
    factory: ExecutorFactory, name: str
) -> None:
    known = ", ".join(factory.list_executor_types())
    for ask in (factory.get_executor_class, factory.unregister):
        with pytest.raises(ValueError, match=f"known are {known}"):
            ask(name)
    with pytest.raises(ValueError, match=f"known are {known}"):
        factory.create_executor(SPEC, add, executor_type=name)


def test_row_b4_an_empty_name_is_not_added() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        FunctionExecutorFactory.copy().register(" ", Shouting)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("cls", [dict, Shouting, GraphQl, Documents, Shouting.__init__, None])
def test_row_b4_a_class_of_another_kind_is_a_type_error(factory: ExecutorFactory, cls: Any) -> None:
    own = factory.copy()
    fits = {"function": Shouting, "http": GraphQl, "db": Documents}[own._kind]
    if cls is fits:
        own.register("own", cls)
        assert own.get_executor_class("own") is cls
    else:
        with pytest.raises(TypeError, match=f"must extend {fits.__mro__[1].__name__}"):
            own.register("own", cls)
        assert own.list_executor_types() == factory.list_executor_types()


def test_row_b4_a_function_is_asked_for_where_it_is_needed_and_nowhere_else() -> None:
    with pytest.raises(UsageError, match="'add' of kind 'function' needs a function"):
        FunctionExecutorFactory.create_executor(SPEC)
    with pytest.raises(UsageError, match="takes no function"):
        HttpExecutorFactory.create_executor(
            HttpToolSpec(tool_name="get", base_url="https://example.com", path="/"), add
        )


async def test_row_b4_options_are_passed_on() -> None:
    heard: list[Any] = []

    def listening() -> Policy:
        def policy(executor: Executor[Any, Any]) -> Executor[Any, Any]:
            async def call(request: ToolRequest, run: Run, /) -> Any:
                heard.append(request.arguments)
                return await executor(request, run)

            return call

        return policy

    made = FunctionExecutorFactory.create_executor(SPEC, add, policies=[listening()], trace_content=True)
    await made.execute({"a": 1, "b": 2})
    assert heard == [{"a": 1, "b": 2}]
