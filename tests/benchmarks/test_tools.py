"""The tools benchmark: short, and for what it compares, as no figure of a test machine means anything."""

from __future__ import annotations

import asyncio
import gc
import math

import pytest

from benchmarks import tools
from benchmarks.table import Figure
from penstock.root import Root


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return tools.measure(quick=True)


def test_every_part_is_measured_beside_its_floor(figures: list[Figure]) -> None:
    compared = [figure for figure in figures if figure.floor is not None]
    parts = {figure.name.split()[0].rstrip(",") for figure in compared}
    assert parts == {"function", "by", "HTTP", "SQLite", "PostgreSQL", "ledger"}
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in compared)


def test_no_wrong_arguments_are_let_through(figures: list[Figure]) -> None:
    caught = next(figure for figure in figures if figure.name.startswith("wrong arguments"))
    assert (caught.value, caught.target) == (0, 0)


@pytest.mark.parametrize("text", tools.WRONG.values(), ids=tools.WRONG.keys())
def test_what_is_called_wrong_differs_from_what_is_right(text: str) -> None:
    assert text != tools.GOOD


async def test_a_call_that_fails_stops_the_measurement() -> None:
    call = tools.asking(tools.function(tools.order), lambda: tools.WRONG["type"])
    with pytest.raises(RuntimeError, match="'order' failed"):
        await call()


async def test_a_refused_call_leaves_nothing_for_the_collector() -> None:
    tool = tools.function(tools.order)
    gc.collect()
    gc.disable()
    try:
        before = roots()
        for _ in range(10):
            assert not (await tool.execute(tools.WRONG["type"])).ok
        assert roots() == before
    finally:
        gc.enable()


def roots() -> int:
    return sum(isinstance(each, Root) for each in gc.get_objects())


async def test_a_case_costs_the_time_of_one_call() -> None:
    found = await tools.in_turns(
        {"slow": lambda: asyncio.sleep(0.01), "fast": lambda: asyncio.sleep(0)},
        times=100,
        quick=True,
        clock=asyncio.get_running_loop().time,
    )
    assert found["slow"] >= 10_000 > found["fast"]
