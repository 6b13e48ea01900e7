"""`LocalEngine` where it is more than the laws: several processes, listeners, many steps, what breaks a run off."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from penstock.errors import Conflict, StoreFailed, UnknownName, UsageError
from penstock.events import Event, Item, Text
from penstock.run import Run, execute, execute_stream
from penstock.store.journal import Journal
from penstock.store.steps import Logged
from penstock.tasks.engines import Call, Flow, Json, RunState
from penstock.tasks.engines.local import LocalEngine
from tests.tasks.engines.rig import Steps, nothing, states


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.db"


@pytest.fixture(params=["memory", "journal"])
async def engine(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[LocalEngine]:
    async with LocalEngine(Journal(path) if request.param == "journal" else None) as engine:
        yield engine


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.tasks.engines.requests.ATTEND_S", 0.01)
    monkeypatch.setattr("penstock.tasks.engines.requests.POLL_S", 0.005)


async def held(flow: Flow, _: Json) -> Json:
    flow.spawn("a", "hold")
    flow.spawn("b", "fail")
    flow.spawn("c", "echo", after=["a"])
    return sorted(states(await flow.wait()).items())


async def heard(engine: LocalEngine, run: str, flow: str) -> list[Event]:
    """What a listener hears of a run."""
    events: list[Event] = []

    async def work(_: None, within: Run, /) -> None:
        await engine.start(run, flow, within=within)
        await engine.wait(run)

    async def slow(event: Event) -> None:
        await asyncio.sleep(0.001)
        events.append(event)

    await execute(work, None, slow)
    return events


@pytest.mark.usefixtures("soon")
async def test_row_c8_what_one_process_asks_the_one_that_runs_does(path: Path) -> None:
    async with LocalEngine(Journal(path)) as here, LocalEngine(Journal(path)) as there:
        steps = Steps(here)
        for engine in (here, there):
            engine.register_flow("held", held)
            engine.register_flow("other", nothing)
        await here.start("r", "held")
        await steps.until("a", "b")
        with pytest.raises(Conflict, match="is held by the process") as caught:
            await there.start("r", "held")
        assert caught.value.code == "in_progress"
        with pytest.raises(Conflict) as caught:
            await there.start("r", "other")
        assert caught.value.code == "idempotency_conflict"
        with pytest.raises(UsageError, match="not started here"):
            await there.wait("r")
        while states((status := await there.status("r")).steps) != {"a": "running", "b": "failed"}:
            await asyncio.sleep(0.002)
        assert status.state is RunState.RUNNING
        reading = asyncio.create_task(there.events("r", after=status.offset, wait_s=5))
        await there.pause("r")
        assert [entry.kind for entry in await reading] == ["paused"]
        assert [status.state for status in await there.runs()] == [RunState.PAUSED]
        with pytest.raises(UsageError, match="'a' is running: only"):
            await there.retry("r", "a")
        with pytest.raises(UnknownName, match="nobody"):
            await there.cancel("r", "nobody")
        with pytest.raises(Conflict):
            await there.rollback("r", 1)
        steps.failing = False
        await there.retry("r", "b")
        assert steps.called == ["a", "b"]
        await there.resume("r")
        await steps.until("b")
        assert await there.cancel("r", "a", reason="from afar")
        assert not await there.cancel("r", "a")
        assert dict((await here.wait("r")).value) == {"a": "cancelled", "b": "succeeded", "c": "blocked"}
        await here.start("s", "held")
        await steps.until("a")
        assert await there.cancel("s", reason="from afar")
        assert (await there.status("s")).value["message"] == "from afar"
        assert not await there.cancel("s")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM requests").fetchall() == []


@pytest.mark.usefixtures("soon")
async def test_row_c8_who_asks_a_process_that_gives_the_run_back_does_it_himself(path: Path) -> None:
    here, there = LocalEngine(Journal(path)), LocalEngine(Journal(path))
    steps = Steps(here)
    here.register_flow("held", held)
    await here.start("r", "held")
    await steps.until("a", "b")
    closing_it = asyncio.create_task(here.aclose())
    assert await there.cancel("r", reason="late")
    await closing_it
    assert (await there.status("r")).state is RunState.CANCELLED
    await there.aclose()


async def test_looking_for_requests_costs_nothing_while_nobody_writes(path: Path) -> None:
    async with LocalEngine(Journal(path)) as engine:
        steps = Steps(engine)
        engine.register_flow("held", held)
        await engine.start("r", "held")
        await steps.until("a")
        journal = Journal(path)
        assert await journal.requested() == []
        number = await journal.request("r", {"what": "resume"})
        assert await journal.answered(number) == (True, None)
        while (answer := await journal.answered(number)) == (True, None):
            await asyncio.sleep(0.01)
        assert answer == (True, {"done": True})
        assert await journal.answered(number) == (False, None)
        await journal.aclose()


async def test_a_listener_hears_each_step_at_its_path_and_the_log_in_order(engine: LocalEngine) -> None:
    Steps(engine)

    async def telling(flow: Flow, _: Json) -> Json:
        flow.spawn("a", "tell")
        flow.spawn("b", "tell", after=["a"])
        await flow.emit("half", 1)
        await flow.wait()

    engine.register_flow("telling", telling)
    events = await heard(engine, "r", "telling")
    assert [(event.path, event.text) for event in events if isinstance(event, Text)] == [
        ("a", "I am a"),
        ("b", "I am b"),
    ]
    log = [event.value for event in events if isinstance(event, Item) and not event.path]
    assert all(isinstance(entry, Logged) for entry in log)
    assert log == await engine.events("r")


async def test_a_slow_listener_loses_nothing_and_one_who_comes_back_hears_the_new_life(engine: LocalEngine) -> None:
    steps = Steps(engine)

    async def wide(flow: Flow, _: Json) -> Json:
        for number in range(60):
            flow.spawn(f"{number}", "echo")
        await flow.wait()
        await flow.step("last", "fail")

    engine.register_flow("wide", wide)
    first = [event.value for event in await heard(engine, "r", "wide") if isinstance(event, Item)]
    assert first == await engine.events("r")
    steps.failing = False
    await engine.retry("r", "last")
    again = [event.value for event in await heard(engine, "r", "wide") if isinstance(event, Item)]
    whole = await engine.events("r")
    assert again[0].kind == "resumed"
    assert again == [entry for entry in whole if entry.offset >= again[0].offset]


async def test_a_listener_hears_that_its_run_is_cancelled(engine: LocalEngine) -> None:
    steps = Steps(engine)
    engine.register_flow("held", held)
    hearing = asyncio.create_task(heard(engine, "r", "held"))
    await steps.until("a")
    await engine.cancel("r", reason="enough")
    last = (await hearing)[-2]
    assert isinstance(last, Item)
    assert (last.value.kind, last.value.value["state"]) == ("ended", "cancelled")


@pytest.mark.parametrize("at", ["log", "step"])
async def test_a_listener_that_fails_interrupts_the_run(at: str, engine: LocalEngine) -> None:
    steps = Steps(engine)

    def listener(event: Event) -> None:
        if (at == "step" and isinstance(event, Text)) or (at == "log" and isinstance(event, Item)):
            raise ValueError("hung up")

    async def work(_: None, within: Run, /) -> None:
        async with engine.open("r", "f") as flow:
            flow.within = within
            flow.spawn("a", "tell")
            flow.spawn("b", "hold")
            await flow.wait()

    with pytest.raises(ValueError, match="hung up"):
        await execute(work, None, listener)
    assert (await engine.status("r")).state is RunState.INTERRUPTED
    steps.gate("b").set()
    async with engine.open("r", "f") as flow:
        flow.spawn("a", "tell")
        flow.spawn("b", "hold")
        assert set(states(await flow.wait()).values()) == {"succeeded"}


async def test_a_step_without_a_listener_is_a_root_of_its_own(engine: LocalEngine) -> None:
    closed: list[str] = []

    async def closing_up(call: Call, run: Run, /) -> Json:
        run.closing(lambda outcome: closed.append(f"{call.step} {type(outcome).__name__}"))
        return run.path

    engine.register("closing", closing_up)
    async with engine.open("r", "f") as flow:
        assert await flow.step("a", "closing") == ""
    assert closed == ["a Finished"]


async def test_whoever_leaves_early_interrupts_what_runs(engine: LocalEngine) -> None:
    steps = Steps(engine)

    async def work(_: None, within: Run, /) -> None:
        async with engine.open("r", "f") as flow:
            flow.within = within
            flow.spawn("a", "hold")
            await flow.wait()

    async with execute_stream(work, None) as execution:
        async for event in execution:
            if isinstance(event, Item) and event.value.state == "running":
                break
    assert steps.at_once == 0
    assert (await engine.status("r")).state is RunState.INTERRUPTED


async def test_row_c8_closing_the_engine_interrupts_its_runs(path: Path) -> None:
    engine = LocalEngine(Journal(path))
    steps = Steps(engine)
    engine.register_flow("held", held)
    await engine.start("r", "held")
    await steps.until("a", "b")
    await engine.aclose()
    async with LocalEngine(Journal(path)) as again:
        assert (await again.status("r")).state is RunState.INTERRUPTED
        steps = Steps(again)
        again.register_flow("held", held)
        await again.start("r", "held")
        steps.gate("a").set()
        ended = await again.wait("r")
        assert dict(ended.value) == {"a": "succeeded", "b": "failed", "c": "succeeded"}
        assert steps.called == ["a", "c"]


async def test_row_c8_a_step_that_an_earlier_process_ended_is_retried_before_the_flow_comes_to_it(
    engine: LocalEngine,
) -> None:
    steps = Steps(engine)

    with pytest.raises(asyncio.CancelledError):
        async with engine.open("r", "two") as flow:
            flow.spawn("second", "fail")
            flow.spawn("third", "echo", after=["second"])
            await flow.wait()
            raise asyncio.CancelledError
    async with engine.open("r", "two") as flow:
        steps.failing = False
        with pytest.raises(UnknownName):
            await engine.retry("r", "nobody")
        await engine.retry("r", "second")
        assert states(flow.steps) == {"second": "pending", "third": "pending"}
        flow.spawn("second", "fail")
        assert states(await flow.wait()) == {"second": "succeeded"}
    assert states((await engine.status("r")).steps) == {"second": "succeeded", "third": "pending"}


async def test_a_chain_of_10_000_and_a_fan_of_20_000(tmp_path: Path) -> None:
    async def count(call: Call, _: Run, /) -> Json:
        return len(call.results)

    for journal, length, width in ((None, 10_000, 20_000), (Journal(tmp_path / "engine.db"), 1_000, 2_000)):
        async with LocalEngine(journal) as engine:
            engine.register("count", count)
            async with engine.open("chain", "f") as flow:
                for number in range(length):
                    flow.spawn(f"{number}", "count", after=[f"{number - 1}"] if number else [])
                assert (await flow.wait(f"{length - 1}"))[f"{length - 1}"].value == 1
            async with engine.open("fan", "f") as flow:
                flow.spawn("first", "count")
                for number in range(width):
                    flow.spawn(f"{number}", "count", after=["first"])
                assert await flow.step("last", "count", after=[f"{number}" for number in range(width)]) == width
            await engine.rollback("chain", length)
            async with engine.open("chain", "f") as flow:
                for number in range(length):
                    flow.spawn(f"{number}", "count", after=[f"{number - 1}"] if number else [])
                assert set(states(await flow.wait()).values()) == {"succeeded"}


async def test_row_c8_a_journal_that_cannot_be_written_breaks_a_run_off(path: Path) -> None:
    async with LocalEngine(Journal(path)) as engine:
        steps = Steps(engine)
        engine.register_flow("held", held)
        await engine.start("r", "held")
        await steps.until("a", "b")
        with closing(sqlite3.connect(path)) as db:
            db.execute("ALTER TABLE log RENAME TO gone")
        steps.gate("a").set()
        with pytest.raises(StoreFailed, match="no such table"):
            await engine.wait("r")
        with closing(sqlite3.connect(path)) as db:
            db.execute("ALTER TABLE gone RENAME TO log")
        assert (await engine.status("r")).state is RunState.INTERRUPTED
        await engine.start("r", "held")
        assert (await engine.wait("r")).state is RunState.SUCCEEDED


async def test_row_c8_a_run_is_given_back_once_the_journal_can_be_written_again(path: Path) -> None:
    async def emitting(flow: Flow, _: Json) -> Json:
        await flow.step("a", "hold")
        await flow.emit("beyond")

    async with LocalEngine(Journal(path)) as engine:
        steps = Steps(engine)
        engine.register_flow("emitting", emitting)
        await engine.start("r", "emitting")
        await steps.until("a")
        with closing(sqlite3.connect(path)) as db:
            for name, what in (("one", "INSERT ON log"), ("two", "DELETE ON claims")):
                db.execute(f"CREATE TRIGGER {name} BEFORE {what} BEGIN SELECT RAISE(FAIL, 'no room'); END")
        steps.gate("a").set()
        async with asyncio.timeout(5):
            with pytest.raises(StoreFailed, match="no room"):
                await engine.wait("r")
            with pytest.raises(StoreFailed, match="no room"):
                await engine.cancel("r")
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TRIGGER one")
            db.execute("DROP TRIGGER two")
        assert (await engine.status("r")).state is RunState.INTERRUPTED
        await engine.start("r", "emitting")
        assert (await engine.wait("r")).state is RunState.SUCCEEDED


@pytest.mark.parametrize("engine", ["journal"], indirect=True)
async def test_a_flow_that_raises_what_broke_its_log_is_broken_off(engine: LocalEngine, path: Path) -> None:
    async def emitting(flow: Flow, _: Json) -> Json:
        await flow.emit("one")
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TRIGGER one BEFORE INSERT ON log BEGIN SELECT RAISE(FAIL, 'no room'); END")
        await flow.emit("two")

    engine.register_flow("emitting", emitting)
    await engine.start("r", "emitting")
    with pytest.raises(StoreFailed, match="no room"):
        await engine.wait("r")
    assert (await engine.status("r")).state is RunState.INTERRUPTED
