"""The laws of an engine for those who watch and steer: cancel, pause, retry, events, roll-back, a new life."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import Conflict, TaskFailed, UnknownName, UsageError
from penstock.tasks.engines import Engine, Flow, Json, RunState
from tests.tasks.engines.rig import Steps, failing, states


async def test_row_c7_a_run_that_is_cancelled_ends_so_with_its_steps(engine: Engine, steps: Steps) -> None:
    async def held(flow: Flow, _: Json) -> Json:
        flow.spawn("a", "hold")
        flow.spawn("b", "hold", effects=True)
        flow.spawn("c", "hold", after=["a"])
        flow.spawn("d", "echo")
        await flow.wait()
        await asyncio.sleep(60)

    engine.register_flow("held", held)
    await engine.start("r", "held")
    await steps.until("a", "b", "d")
    assert await engine.cancel("r", reason="enough")
    ended = await engine.wait("r")
    assert ended.state is RunState.CANCELLED
    assert ended.value["code"] == "cancelled"
    assert ended.value["message"] == "enough"
    assert states(ended.steps) == {"a": "cancelled", "b": "cancelled", "c": "cancelled", "d": "succeeded"}
    assert ended.steps["c"].value["message"] == "enough"
    assert not await engine.cancel("r")
    await engine.start("r", "held")
    assert sorted(steps.called) == ["a", "b", "d"]


async def test_row_c7_the_flow_of_an_open_run_sees_the_cancel_as_the_end_of_its_steps(
    engine: Engine, steps: Steps
) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "hold")
        await steps.until("a")
        cancelling = asyncio.create_task(engine.cancel("r", reason="enough"))
        assert states(await flow.wait()) == {"a": "cancelled"}
        assert await cancelling
        assert (await engine.status("r")).state is RunState.CANCELLED
        with pytest.raises(TaskFailed, match="enough") as caught:
            await flow.step("late", "echo")
        assert caught.value.code == "cancelled"
    assert (await engine.status("r")).state is RunState.CANCELLED
    assert steps.called == ["a"]


async def test_row_c7_one_step_is_cancelled_and_the_others_go_on(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "hold")
        flow.spawn("b", "hold")
        flow.spawn("c", "echo", after=["a"])
        await steps.until("a", "b")
        assert await engine.cancel("r", "a", reason="not that")
        assert not await engine.cancel("r", "a")
        with pytest.raises(UnknownName):
            await engine.cancel("r", "nobody")
        assert states((await engine.status("r")).steps) == {"a": "cancelled", "b": "running", "c": "blocked"}
        steps.gate("b").set()
        assert states(await flow.wait()) == {"a": "cancelled", "b": "succeeded", "c": "blocked"}
    assert (await engine.status("r")).state is RunState.SUCCEEDED


async def test_row_c7_a_paused_run_starts_nothing_more(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "hold")
        flow.spawn("b", "echo", after=["a"])
        await steps.until("a")
        await engine.pause("r")
        await engine.pause("r")
        steps.gate("a").set()
        assert states(await flow.wait("a")) == {"a": "succeeded"}
        await asyncio.sleep(0.01)
        assert (await engine.status("r")).state is RunState.PAUSED
        assert steps.called == ["a"]
        await engine.resume("r")
        assert (await engine.status("r")).state is RunState.RUNNING
        await flow.wait()
    assert [entry.kind for entry in await engine.events("r") if entry.kind] == ["begun", "paused", "unpaused", "ended"]
    with pytest.raises(UsageError, match="does not go on"):
        await engine.pause("r")


async def test_row_c7_a_step_is_retried_while_its_run_goes_on(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("hold", "hold")
        flow.spawn("a", "fail")
        flow.spawn("b", "echo", after=["a"])
        flow.spawn("c", "echo", after=["b"])
        assert states(await flow.wait("c")) == {"c": "blocked"}
        for step in ("hold", "b"):
            with pytest.raises(UsageError):
                await engine.retry("r", step)
        steps.failing = False
        await engine.retry("r", "a")
        ended = await flow.wait("c", "a")
        assert states(ended) == {"c": "succeeded", "a": "succeeded"}
        with pytest.raises(UsageError):
            await engine.retry("r", "a")
        steps.gate("hold").set()
    logged = [entry.state for entry in await engine.events("r") if entry.step == "c"]
    assert logged == ["blocked", "pending", "running", "succeeded"]


async def test_row_c7_a_step_is_retried_when_its_run_has_ended(engine: Engine, steps: Steps) -> None:
    engine.register_flow("failing", failing)
    await engine.start("r", "failing")
    await engine.wait("r")
    for step, error in (("beside", UsageError), ("b", UsageError), ("nobody", UnknownName)):
        with pytest.raises(error):
            await engine.retry("r", step)
    assert (await engine.status("r")).state is RunState.SUCCEEDED
    steps.failing = False
    await engine.retry("r", "a")
    status = await engine.status("r")
    assert status.state is RunState.INTERRUPTED
    assert states(status.steps) == {"a": "pending", "beside": "succeeded", "b": "pending", "c": "pending"}
    await engine.start("r", "failing")
    ended = await engine.wait("r")
    assert set(dict(ended.value).values()) == {"succeeded"}
    assert steps.called == ["a", "beside", "a", "b", "c"]


async def test_row_c8_a_reader_who_left_goes_on_from_any_offset(engine: Engine, steps: Steps) -> None:
    engine.register_flow("failing", failing)
    await engine.start("r", "failing")
    await engine.wait("r")
    whole = await engine.events("r")
    assert [entry.offset for entry in whole] == list(range(1, len(whole) + 1))
    for offset in range(len(whole) + 1):
        assert await engine.events("r", after=offset) == whole[offset:]
        assert await engine.events("r", after=offset, limit=2, wait_s=9) == whole[offset : offset + 2]
    assert (await engine.status("r")).offset == len(whole)
    assert steps.called


async def test_row_c8_a_reader_waits_for_what_is_logged_next(engine: Engine, steps: Steps) -> None:
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "hold")
        await steps.until("a")
        offset = (await engine.status("r")).offset
        assert await engine.events("r", after=offset, wait_s=0.02) == []
        reading = asyncio.create_task(engine.events("r", after=offset, wait_s=5))
        await asyncio.sleep(0.02)
        steps.gate("a").set()
        assert [(entry.step, entry.state) for entry in await reading] == [("a", "succeeded")]


async def test_row_c8_what_a_flow_emits_is_logged_once(engine: Engine, steps: Steps) -> None:
    offsets: list[list[int]] = []

    async def emitting(flow: Flow, _: Json) -> Json:
        told = [await flow.emit("phase", {"n": 1})]
        await flow.step("a", "echo")
        offsets.append([*told, await flow.emit("phase", {"n": 2})])
        await flow.step("b", "fail")

    engine.register_flow("emitting", emitting)
    await engine.start("r", "emitting")
    assert (await engine.wait("r")).state is RunState.FAILED
    steps.failing = False
    await engine.retry("r", "b")
    await engine.start("r", "emitting")
    assert (await engine.wait("r")).state is RunState.SUCCEEDED
    assert offsets[0] == offsets[1]
    assert [entry.value for entry in await engine.events("r") if entry.kind == "phase"] == [{"n": 1}, {"n": 2}]
    async with engine.open("s", "f") as flow:
        with pytest.raises(UsageError, match="another kind"):
            await flow.emit("ended")


async def test_row_c8_two_runs_of_one_flow_are_logged_alike(engine: Engine, steps: Steps) -> None:
    engine.register_flow("failing", failing)
    told: list[list[Any]] = []
    for run in ("r", "s"):
        await engine.start(run, "failing")
        await engine.wait(run)
        told.append([(entry.step, entry.state, entry.kind, entry.value) for entry in await engine.events(run)])
    assert told[0] == told[1]
    assert [(status.run, status.state, status.steps) for status in await engine.runs()] == [
        ("r", RunState.SUCCEEDED, {}),
        ("s", RunState.SUCCEEDED, {}),
    ]
    assert steps.called


async def test_row_c7_a_flow_that_fails_cancels_what_runs_and_one_that_returns_waits_for_it(
    engine: Engine, steps: Steps
) -> None:
    async def fails(flow: Flow, _: Json) -> Json:
        flow.spawn("a", "hold")
        await steps.until("a")
        raise KeyError("gone")

    async def returns(flow: Flow, _: Json) -> Json:
        flow.spawn("b", "hold")
        return object() if flow.run == "s" else 1

    engine.register_flow("fails", fails)
    engine.register_flow("returns", returns)
    await engine.start("r", "fails")
    ended = await engine.wait("r")
    assert ended.state is RunState.FAILED
    assert ended.value["type"] == "KeyError"
    assert states(ended.steps) == {"a": "cancelled"}
    steps.gate("b").set()
    for run, state, step in (("s", RunState.FAILED, "cancelled"), ("t", RunState.SUCCEEDED, "succeeded")):
        await engine.start(run, "returns")
        ended = await engine.wait(run)
        assert (ended.state, states(ended.steps)) == (state, {"b": step})


async def test_row_c8_what_is_interrupted_is_not_lost_and_runs_again(engine: Engine, steps: Steps) -> None:
    async def be() -> None:
        async with engine.open("r", "f") as flow:
            flow.spawn("done", "echo")
            flow.spawn("a", "hold", after=["done"])
            flow.spawn("b", "hold", after=["done"], effects=True)
            flow.spawn("c", "echo", after=["b"])
            await flow.wait()

    being = asyncio.create_task(be())
    await steps.until("a", "b")
    being.cancel()
    await asyncio.wait((being,))
    assert being.cancelled()
    assert (await engine.status("r")).state is RunState.INTERRUPTED
    steps.gate("a").set()
    await be()
    ended = await engine.status("r")
    assert states(ended.steps) == {"done": "succeeded", "a": "succeeded", "b": "unknown", "c": "blocked"}
    assert ended.steps["b"].value["code"] == "outcome_unknown"
    assert steps.called == ["done", "a", "b", "a"]
    await engine.retry("r", "b")
    steps.gate("b").set()
    await be()
    assert set(states((await engine.status("r")).steps).values()) == {"succeeded"}
    assert steps.called == ["done", "a", "b", "a", "b", "c"]


async def test_row_c8_a_run_is_rolled_back_and_goes_on_from_there(engine: Engine, steps: Steps) -> None:
    async def three(flow: Flow, _: Json) -> Json:
        for name in "abc":
            await flow.step(name, "echo")
            await flow.emit("after", name)
        return "done"

    engine.register_flow("three", three)
    await engine.start("r", "three")
    await engine.wait("r")
    logged = await engine.events("r")
    (offset,) = [entry.offset for entry in logged if entry.value == "a" and entry.kind == "after"]
    await engine.rollback("r", offset)
    status = await engine.status("r")
    assert status.state is RunState.INTERRUPTED
    assert states(status.steps) == {"a": "succeeded"}
    await engine.start("r", "three")
    assert (await engine.wait("r")).value == "done"
    assert steps.called == ["a", "b", "c", "b", "c"]
    emitted = [entry.value for entry in await engine.events("r") if entry.kind == "after"]
    assert emitted == ["a", "b", "c", "b", "c"]
    await engine.rollback("r", logged[-1].offset)
    assert (await engine.status("r")).state is RunState.SUCCEEDED
    for wrong in (0, 10_000):
        with pytest.raises(UsageError, match="has no offset"):
            await engine.rollback("r", wrong)
    async with engine.open("s", "f"):
        with pytest.raises(Conflict):
            await engine.rollback("s", 1)
