"""`PerLoop`: one value for each event loop, freed with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from penstock.net.loops import PerLoop


class Made:
    """Values that are counted as they are made and freed; with `failing` the first is not made."""

    def __init__(self, *, failing: bool = False) -> None:
        self.failing, self.count, self.freed = failing, 0, list[int]()
        self.kept = PerLoop(self.make, self.free)

    async def make(self) -> int:
        await asyncio.sleep(0)
        if self.failing:
            self.failing = False
            raise ConnectionError("not yet")
        self.count += 1
        return self.count

    async def free(self, value: int) -> None:
        await asyncio.sleep(0)
        self.freed.append(value)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_each_loop_has_one_value_which_is_freed_with_it(run: Callable[..., Any]) -> None:
    made = Made()

    async def ask() -> set[int]:
        return set(await asyncio.gather(*(made.kept.get() for _ in range(5))))

    assert [run(ask()), run(ask())] == [{1}, {2}]
    assert made.freed == [1, 2]


async def test_what_could_not_be_made_is_tried_again() -> None:
    made = Made(failing=True)
    with pytest.raises(ConnectionError):
        await made.kept.get()
    assert await made.kept.get() == await made.kept.get() == 1


async def test_a_value_that_was_freed_is_made_anew() -> None:
    made = Made()
    await made.kept.aclose()
    assert await made.kept.get() == 1
    await made.kept.aclose()
    await made.kept.aclose()
    assert (made.freed, await made.kept.get()) == ([1], 2)
