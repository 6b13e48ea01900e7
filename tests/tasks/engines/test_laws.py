"""The laws of an engine, which each row of `ENGINES` passes: what runs when, and what it is given."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import Conflict, TaskFailed, UnknownName, UsageError
from penstock.tasks.engines import Engine, Flow, Json, RunState
from tests.tasks.engines.rig import Steps, diamond, failing, nothing, states


async def test_row_c7_what_a_step_gave_reaches_those_that_come_after_it(engine: Engine, steps: Steps) -> None:
    engine.register_flow("diamond", diamond)
    await engine.start("r", "diamond", {"goal": [1, None]})
    ended = await engine.wait("r")
    top = {"payload": {"goal": [1, None]}, "results": {}}
    side = {"payload": None, "results": {"top": top}}
    assert ended.state is RunState.SUCCEEDED
    assert ended.value == {"payload": None, "results": {"left": side, "right": side}}
    assert ended.steps["end"].value == ended.value
    assert (ended.flow, ended.payload, ended.run) == ("diamond", {"goal": [1, None]}, "r")
    assert steps.called == ["top", "left", "right", "end"]


async def test_row_c7_a_long_chain_and_a_wide_fan_end_in_order(engine: Engine, steps: Steps) -> None:
    async with engine.open("chain", "chain") as flow:
        for number in range(150):
            flow.spawn(f"{number}", "echo" if number < 2 else "tell", after=[f"{number - 1}"] if number else [])
        ended = await flow.wait()
    assert set(states(ended).values()) == {"succeeded"}
    assert list((await engine.status("chain")).steps) == [str(number) for number in range(150)]
    async with engine.open("fan", "fan") as flow:
        for number in range(150):
            flow.spawn(f"{number}", "tell")
        flow.spawn("last", "echo", after=[f"{number}" for number in range(150)])
        assert len((await flow.wait("last"))["last"].value["results"]) == 150
    assert steps.called == ["0", "1", "last"]


async def test_row_c7_as_wide_as_allowed_and_the_important_first(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.limit(3, {"agent": 2})
        for number in range(4):
            flow.spawn(f"a{number}", "hold", keys=["agent"], priority=number)
        for number in range(4):
            flow.spawn(f"b{number}", "hold")
        await steps.until("a3", "a2", "b0")
        for name in [*flow.steps]:
            steps.gate(name).set()
        await flow.wait()
    assert steps.most == 3
    assert steps.called == ["a3", "a2", "b0", "a1", "a0", "b1", "b2", "b3"]
    with pytest.raises(UsageError, match="before the first step"):
        flow.limit(1)


async def test_row_c7_a_failure_blocks_what_needs_it_with_the_reason_and_nothing_else(
    engine: Engine, steps: Steps
) -> None:
    engine.register_flow("failing", failing)
    await engine.start("r", "failing")
    ended = await engine.wait("r")
    assert ended.state is RunState.SUCCEEDED
    assert dict(ended.value) == {"a": "failed", "b": "blocked", "c": "blocked", "beside": "succeeded"}
    assert ended.steps["a"].value == {
        "type": "TaskFailed",
        "message": "it did not work",
        "code": "agent_failed",
        "details": {"step": "a"},
    }
    assert ended.steps["c"].value["code"] == "blocked"
    assert ended.steps["c"].value["details"] == {"by": "a", "via": "b"}
    assert "'c' needs 'a', through 'b'" in ended.steps["c"].value["message"]
    assert steps.called == ["a", "beside"]


async def test_row_c7_a_step_that_is_waited_for_gives_its_value_or_raises_its_fault(
    engine: Engine, steps: Steps
) -> None:
    async def one_by_one(flow: Flow, _: Json) -> Json:
        first = await flow.step("first", "echo", 1)
        again = await flow.step("second", "echo", first["payload"], after=["first"])
        await flow.step("third", "fail", after=["second"])
        return again

    engine.register_flow("one by one", one_by_one)
    await engine.start("r", "one by one")
    ended = await engine.wait("r")
    assert ended.state is RunState.FAILED
    assert ended.value == {**ended.steps["third"].value}
    assert ended.steps["second"].value["results"]["first"]["payload"] == 1
    assert steps.called == ["first", "second", "third"]


async def test_row_c7_what_is_no_json_fails_with_a_clear_error(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "odd")
        with pytest.raises(UsageError, match="the payload of the step 'b' is no JSON"):
            flow.spawn("b", "echo", {"x": object()})
        with pytest.raises(TaskFailed, match="what the step 'c' gave is no JSON"):
            await flow.step("c", "odd")
        fault = (await flow.wait("a"))["a"].value
        assert fault["type"] == "UsageError"
    assert not steps.called


async def test_row_c7_names_are_checked_before_anything_runs(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "echo")
        with pytest.raises(UsageError, match="already"):
            flow.spawn("a", "echo")
        with pytest.raises(UnknownName):
            flow.spawn("b", "echo", after=["nobody"])
        with pytest.raises(UnknownName, match="no step function 'nothing'"):
            flow.spawn("b", "nothing")
        with pytest.raises(UnknownName):
            await flow.wait("nobody")
        assert not steps.called
    with pytest.raises(UnknownName, match="no flow 'nobody'"):
        await engine.start("s", "nobody")
    for ask in (engine.status, engine.events, engine.pause, engine.cancel):
        with pytest.raises(UnknownName):
            await ask("nobody")
    with pytest.raises(UsageError, match="over"):
        flow.spawn("late", "echo")


async def test_case_18_to_start_twice_is_to_start_once(engine: Engine, steps: Steps) -> None:
    engine.register_flow("diamond", diamond)
    engine.register_flow("other", nothing)
    await asyncio.gather(*(engine.start("r", "diamond", 1) for _ in range(3)))
    await engine.wait("r")
    await engine.start("r", "diamond", 1)
    for another, payload in (("diamond", 2), ("other", 1)):
        with pytest.raises(Conflict) as caught:
            await engine.start("r", another, payload)
        assert caught.value.code == "idempotency_conflict"
    assert steps.called == ["top", "left", "right", "end"]
    assert [entry.kind for entry in await engine.events("r") if entry.kind] == ["begun", "ended"]
    async with engine.open("o", "f") as flow:
        flow.spawn("a", "hold")
        with pytest.raises(Conflict) as caught:
            async with engine.open("o", "f"):
                pytest.fail("two flows of one run")
        assert caught.value.code == "in_progress"
        steps.gate("a").set()
