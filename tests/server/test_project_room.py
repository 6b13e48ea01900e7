"""How much goes on at once: projects of a tenant that are taken up, commands; and what a look at them costs."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.config import Catalog, Settings
from penstock.errors import Invalid, LimitReached
from penstock.run import Principal
from penstock.server import project_check
from penstock.server import projects as served
from penstock.server.projects import SERVED, Projects
from penstock.store.journal import Journal
from penstock.tasks.engines import Flow, RunStatus
from penstock.tasks.engines.local import LocalEngine

ANNA = Principal("anna")
SAID = """echo '{"status": "success", "output": 1}'"""
SLOW = {"name": "w", "mode": "cli", "command": ["sh", "-c", f"sleep 0.15; {SAID}"], "effects": False}


def kept(folder: Path, *agents: dict[str, Any]) -> Projects:
    settings = Settings.model_validate({"agents": agents or [SLOW], "store": {"dir": str(folder)}})
    return Projects(settings, Catalog(settings, {}))


def body(*tasks: str, **more: Any) -> bytes:
    rows = [{"id": name, "description": "x", "agent": "w"} for name in tasks]
    return json.dumps({"name": "p", "tasks": rows, **more}).encode()


async def left_behind(folder: Path, count: int) -> list[str]:
    """Projects whose process ended in the middle."""
    names = [f"proj_{number:02}" for number in range(count)]

    async def never(_flow: Flow, _: Any) -> None:
        await asyncio.Event().wait()

    async with LocalEngine(Journal(folder / served.JOURNAL)) as engine:
        engine.register_flow(SERVED, never)
        for name in names:
            payload = {"project": json.loads(body("a")), "owner": "anna", "by": "anna"}
            await engine.start(name, SERVED, payload)
    return names


async def ended(found: Projects, *names: str) -> list[RunStatus]:
    async with asyncio.timeout(5):
        while True:
            rows = [(await found.find(ANNA, name))[1] for name in names]
            if all(row.state == "succeeded" for row in rows):
                return rows
            await asyncio.sleep(0.02)


async def test_what_a_crash_left_behind_is_taken_up_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MOST_AT_ONCE", 2)
    names = await left_behind(tmp_path, 5)
    found, most = kept(tmp_path), 0
    found.take_up()
    async with asyncio.timeout(5):
        while True:
            rows = await found.list(ANNA, 10)
            most = max(most, sum(row.state == "running" for row in rows))
            if all(row.state == "succeeded" for row in rows):
                break
            await found.find(ANNA, names[-1])  # a look does not take it up sooner
            await asyncio.sleep(0.01)
    await found.aclose()
    assert most == 2


async def test_commands_of_one_agent_are_bounded_where_it_does_not_say_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "MOST_PROCESSES", 2)
    running = tmp_path / "running"
    running.mkdir()
    script = """touch $$; n=$(ls | wc -l); sleep 0.05; rm $$; echo '{"status": "success", "output": '$n'}'"""
    agent = {"name": "w", "mode": "cli", "command": ["sh", "-c", script], "cwd": str(running), "effects": False}
    found = kept(tmp_path / "kept", agent)
    names = [(await found.begin(ANNA, body("a", "b", "c"))).run for _ in range(2)]
    rows = await ended(found, *names)
    seen = [int(step.value["output"]) for row in rows for step in row.steps.values()]
    await found.aclose()
    assert len(seen) == 6
    assert max(seen) <= 2


async def test_a_look_at_the_owner_loads_no_results(tmp_path: Path) -> None:
    found = kept(tmp_path)
    name = (await found.begin(ANNA, body("a"))).run
    await ended(found, name)
    engine, row = await found.find(ANNA, name, tasks=False)
    assert not row.steps
    (listed,) = await found.list(ANNA, 5)
    assert isinstance(listed.payload, msgspec.Raw)
    assert (await engine.status(name)).steps
    await found.aclose()


async def test_a_project_tried_again_as_it_ends_is_still_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(engine: LocalEngine, run: str) -> RunStatus:
        status = await wait(engine, run)
        await asyncio.sleep(0.1)  # as on a busy machine
        return status

    wait = LocalEngine.wait
    monkeypatch.setattr(LocalEngine, "wait", late)
    monkeypatch.setattr(served, "MOST_AT_ONCE", 1)
    flag = tmp_path / "flag"
    command = ["sh", "-c", f"test -e {flag} && sleep 0.3 && {SAID}"]
    found = kept(tmp_path / "kept", {"name": "w", "mode": "cli", "command": command, "effects": False})
    name = (await found.begin(ANNA, body("a"))).run
    engine, _ = await found.find(ANNA, name)
    while (await engine.status(name)).state != "failed":
        await asyncio.sleep(0)
    flag.touch()
    await found.retry(ANNA, name, "a")
    await asyncio.sleep(0.15)  # who followed it before has seen by now that it had ended
    with pytest.raises(LimitReached):
        await found.begin(ANNA, body("b"))
    await ended(found, name)
    await found.aclose()


HELD = """
import asyncio, sys
from penstock.errors import TaskFailed
from penstock.store.journal import Journal
from penstock.tasks.engines.local import LocalEngine

async def work(call, run):
    if call.step == "a":
        raise TaskFailed("no")
    await asyncio.Event().wait()

async def served(flow, payload):
    flow.spawn("a", "work")
    flow.spawn("b", "work")
    await flow.wait("a")
    print("there", flush=True)
    await flow.wait()

async def main():
    async with LocalEngine(Journal(sys.argv[1])) as engine:
        engine.register("work", work)
        engine.register_flow("served", served)
        tasks = [{"id": name, "description": "x", "agent": "w"} for name in "ab"]
        payload = {"project": {"name": "p", "tasks": tasks}, "owner": "anna", "by": "anna"}
        await engine.start("proj_held", "served", payload)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_that_is_stopped_holds_up_nobody_but_who_asks_it(tmp_path: Path) -> None:
    command = (sys.executable, "-c", HELD, str(tmp_path / served.JOURNAL))
    other = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env={"PYTHONPATH": "src"})
    assert other.stdout is not None
    try:
        assert await other.stdout.readline() == b"there\n"
        found = kept(tmp_path)
        await found.find(ANNA, "proj_held")
        other.send_signal(signal.SIGSTOP)
        asking = asyncio.create_task(found.retry(ANNA, "proj_held", "a"))
        await asyncio.wait((asking,), timeout=0.1)
        async with asyncio.timeout(3):
            await ended(found, (await found.begin(ANNA, body("a"))).run)
        assert not asking.done()
    finally:
        other.kill()
        await other.wait()
    await asking
    (row,) = await ended(found, "proj_held")
    assert {step.state for step in row.steps.values()} == {"succeeded"}
    await found.aclose()


async def test_a_large_project_is_checked_while_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_check, "MOST_NEEDS", 1_000_000)
    found = kept(tmp_path)
    await ended(found, (await found.begin(ANNA, body("a"))).run)
    tasks = [
        {"id": f"t{n}", "description": "x", "agent": "w", "depends_on": [f"t{m}" for m in range(n)]} for n in range(600)
    ]
    tasks[-1]["agent"] = "none"
    checking = asyncio.create_task(found.begin(ANNA, json.dumps({"name": "p", "tasks": tasks}).encode()))
    turns = 0
    while not checking.done():
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(Invalid, match="no agent 'none'"):
        await checking
    assert turns > 5
    await found.aclose()
