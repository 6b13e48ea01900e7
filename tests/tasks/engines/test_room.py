"""How much an engine holds on to: of a run that is over nothing, of steps their JSON."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import pytest

from penstock.run import Run
from penstock.store.journal import Journal
from penstock.tasks.engines import Call, Json
from penstock.tasks.engines.local import LocalEngine
from tests.tasks.engines.rig import Steps, nothing

GIVEN = {"task": {"id": "one", "description": "Write the page."}, "bounds": {"timeout_s": 5.0}}
RESULT = {
    "task": "one",
    "agent": "writer",
    "status": "success",
    "output": "The page is written, and it says what it was to say.",
    "attempts": 1,
    "usage": {"input": 100, "output": 50, "cached": 0},
    "cost": "0.0012",
    "started_at": "2026-01-01T10:00:00Z",
    "completed_at": "2026-01-01T10:00:02Z",
}


@pytest.mark.parametrize("durable", [False, True])
async def test_nothing_is_held_of_runs_that_are_over(durable: bool, tmp_path: Path) -> None:
    async with LocalEngine(Journal(tmp_path / "j") if durable else None) as engine:
        Steps(engine)
        engine.register_flow("nothing", nothing)
        for number in range(20):
            await engine.start(f"{number}", "nothing")
            await engine.wait(f"{number}")
        await asyncio.sleep(0)
        gc.collect()
        held = [one for one in gc.get_objects() if isinstance(one, asyncio.Task) and "_live" in repr(one.get_coro())]
        assert held == []


async def test_what_is_in_memory_ends_with_its_engine() -> None:
    engine = LocalEngine()
    async with engine.open("r", "f"):
        assert [one.run for one in await engine.runs()] == ["r"]
    await engine.aclose()
    assert await engine.runs() == []


async def test_steps_that_have_ended_take_the_room_of_their_json() -> None:
    async def give(_: Call, __: Run, /) -> Json:
        return RESULT

    async with LocalEngine() as engine:
        engine.register("give", give)
        async with engine.open("r", "f") as flow:
            for number in range(100):  # what is made once
                flow.spawn(f"first {number}", "give", GIVEN)
            await flow.wait()
            gc.collect()
            tracemalloc.start()
            for number in range(1_000):
                flow.spawn(f"{number}", "give", GIVEN)
            await flow.wait()
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0] / 1_000
            tracemalloc.stop()
    assert taken < 1_600
