"""The laws of an engine for the runs it keeps: how they are looked at meanwhile, listed, and forgotten."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from penstock.errors import Conflict, UnknownName, UsageError
from penstock.tasks.engines import Engine, Flow, Json, RunState
from tests.tasks.engines.rig import Steps, diamond, states


class Named(msgspec.Struct):
    name: str


async def test_row_c8_the_status_may_be_asked_at_any_moment(engine: Engine, steps: Steps) -> None:
    async def many(flow: Flow, _: Json) -> Json:
        for number in range(20):
            flow.spawn(f"{number}", "fail" if number == 9 else "echo", after=[f"{number - 4}"] if number > 3 else [])
        return len(await flow.wait())

    engine.register_flow("many", many)
    seen: set[RunState] = set()
    for run in map(str, range(5)):
        await engine.start(run, "many")
        async with asyncio.timeout(5):
            while not seen & {RunState.SUCCEEDED, RunState.INTERRUPTED, RunState.FAILED}:
                status, _ = await asyncio.gather(engine.status(run), engine.events(run, after=3, wait_s=0.001))
                seen.add(status.state)
        assert seen <= {RunState.RUNNING, RunState.SUCCEEDED}
        seen.clear()
    assert "19" in steps.called


async def test_row_c8_a_run_is_forgotten_once_it_does_not_go_on(engine: Engine, steps: Steps) -> None:
    engine.register_flow("diamond", diamond)
    await engine.start("kept", "diamond", 1)
    await engine.wait("kept")
    async with engine.open("r", "f", {"n": 1}) as flow:
        flow.spawn("a", "hold")
        await steps.until("a")
        with pytest.raises(Conflict) as caught:
            await engine.forget("r")
        assert caught.value.code == "in_progress"
        steps.gate("a").set()
    await engine.forget("r")
    for ask in (engine.status, engine.events, engine.forget, engine.cancel):
        with pytest.raises(UnknownName):
            await ask("r")
    assert [one.run for one in await engine.runs()] == ["kept"]
    await engine.start("r", "diamond", 2)
    ended = await engine.wait("r")
    assert (ended.payload, states(ended.steps)["end"]) == (2, "succeeded")
    assert [entry.kind for entry in await engine.events("r") if entry.kind] == ["begun", "ended"]
    assert len((await engine.status("kept")).steps) == 4


async def test_row_c8_runs_are_listed_without_reading_what_they_were_given(engine: Engine, steps: Steps) -> None:
    engine.register_flow("diamond", diamond)
    await engine.start("r", "diamond", {"name": "site", "tasks": [1, 2]})
    await engine.wait("r")
    assert len(steps.called) == 4
    (listed,) = await engine.runs(payloads=False)
    assert isinstance(listed.payload, msgspec.Raw)
    (known,) = await engine.runs()
    assert known.payload == {"name": "site", "tasks": [1, 2]}
    assert msgspec.structs.replace(listed, payload=known.payload) == known
    for one in (listed, known):
        assert one.part(Named) == Named("site")
        with pytest.raises(UsageError, match="the run 'r' is another one"):
            one.part(list[int])


async def test_row_c7_one_step_is_looked_at_by_its_name(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        assert flow.step_of("a") is None
        flow.spawn("a", "hold", {"n": 1})
        await steps.until("a")
        assert flow.step_of("a") == flow.steps["a"]
        steps.gate("a").set()
        await flow.wait("a")
        step = flow.step_of("a")
        assert step is not None
        assert (step.state, step.value, dict(flow.steps)) == ("succeeded", "a", {"a": step})
        with pytest.raises(KeyError):
            flow.steps["b"]
    async with engine.open("r", "f") as flow:
        assert flow.step_of("a") == step


async def test_row_c7_what_a_step_is_given_is_its_own(engine: Engine, steps: Steps) -> None:
    payload = {"list": [1]}

    async with engine.open("r", "f") as flow:
        flow.spawn("a", "echo", payload)
        payload["list"].append(2)
        flow.spawn("b", "echo", after=["a"])
        flow.spawn("c", "echo", after=["a", "b"])
        ended = await flow.wait()
    assert ended["a"].value == {"payload": {"list": [1]}, "results": {}}
    ended["a"].value["payload"]["list"].append(3)
    assert ended["c"].value["results"] == {"a": ended["a"].value, "b": ended["b"].value}
    assert steps.called == ["a", "b", "c"]
