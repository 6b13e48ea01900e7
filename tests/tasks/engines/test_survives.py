"""A run whose process is killed, whose disk is full, whose journal is torn: it goes on from what is committed."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import StoreFailed
from penstock.store.journal import Journal
from penstock.tasks.engines import Call, Json, RunState, RunStatus
from penstock.tasks.engines.local import LocalEngine
from tests.tasks.engines.project import SIZE, effects, journal, needs, register, say
from tests.tasks.engines.rig import states

ROOT = Path(__file__).parents[3]
SEEDS = range(100 if os.environ.get("PENSTOCK_SOAK") else 10)


class Nursery:
    """A process that has imported what the run needs, and starts others."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.tasks.engines.project"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, folder: Path, sync: str = "normal", pace_s: float = 0.004) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder} {sync} r {pace_s}\n")
        self.process.stdin.flush()
        while not (said := self.read()).isdigit():  # what one before said at its end
            pass
        return int(said)

    async def killed(self, folder: Path, sync: str, chance: random.Random) -> None:
        """Start a process and kill it, at once or when it has called some steps, a moment later."""
        before, called = lines(folder / "called").total(), chance.choice([0, *range(SIZE)])
        child = self.start(folder, sync)
        there = Path(f"/proc/{child}")
        while called and there.exists() and lines(folder / "called").total() < before + called:
            await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0, 0.004 if called else 0.03))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        while there.exists():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.process.communicate(timeout=5)


def expected() -> dict[str, int]:
    """What the steps give where nothing is interrupted."""
    values: dict[str, int] = {}
    for number in range(SIZE):
        values[f"s{number}"] = number + sum(values[need] for need in needs(number)) % 97
    return values


def lines(file: Path) -> Counter[str]:
    return Counter(file.read_text().split()) if file.exists() else Counter()


async def seen(folder: Path) -> RunStatus | None:
    async with LocalEngine(journal(folder)) as engine:
        known = await engine.runs()
        return await engine.status("r") if known else None


async def finished(folder: Path) -> RunStatus:
    """The run, gone on with to its end."""
    async with LocalEngine(journal(folder)) as engine:
        register(engine, folder, pace_s=0)
        await engine.start("r", "project", "p")
        return await engine.wait("r")


@pytest.mark.soak
async def test_case_18_killed_at_any_moment_a_run_of_50_steps_ends_as_if_it_was_not(
    nursery: Nursery, tmp_path: Path
) -> None:
    kills = doubtful = 0
    for seed in SEEDS:
        chance, folder = random.Random(seed), tmp_path / str(seed)
        folder.mkdir()
        done: set[str] = set()
        for _ in range(chance.randrange(1, 4)):
            before = lines(folder / "called")
            await nursery.killed(folder, chance.choice(["normal", "normal", "full"]), chance)
            called = lines(folder / "called") - before
            assert not done & set(called), "a finished step ran again"
            if (status := await seen(folder)) is not None:
                now = {step for step, state in states(status.steps).items() if state == "succeeded"}
                assert done <= now
                done = now
                kills += status.state is RunState.INTERRUPTED
        before = lines(folder / "called")
        ended = await finished(folder)
        assert not done & set(lines(folder / "called") - before)
        assert max(lines(folder / "effects").values()) == 1
        unknown = [step for step, state in states(ended.steps).items() if state == "unknown"]
        assert all(effects(step) for step in unknown)
        assert {*lines(folder / "effects")} <= {
            *unknown,
            *(s for s in ended.steps if ended.steps[s].state == "succeeded"),
        }
        for step in unknown:
            async with LocalEngine(journal(folder)) as engine:
                await engine.retry("r", step)
        doubtful += len(unknown)
        ended = await finished(folder)
        assert ended.state is RunState.SUCCEEDED
        assert {step: each.value for step, each in ended.steps.items()} == expected()
        if not unknown:
            assert ended.value == sum(expected().values())
        async with LocalEngine(journal(folder)) as engine:
            assert [entry.value for entry in await engine.events("r", limit=9999) if entry.kind == "half"] == ["p"]
    assert kills > len(SEEDS) / 2
    assert doubtful


async def test_case_18_of_two_processes_that_start_one_run_exactly_one_proceeds(
    nursery: Nursery, tmp_path: Path
) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "wait").touch()
        for _ in range(2):
            nursery.start(folder, pace_s=0.02)
        await asyncio.sleep(0.03)
        (folder / "wait").unlink()
        assert [nursery.read(), nursery.read()] == ["in_progress", "succeeded"]
        assert lines(folder / "called") == dict.fromkeys(expected(), 1)


async def test_case_18_a_dead_process_is_seen_and_its_run_cancelled_by_another(
    nursery: Nursery, tmp_path: Path
) -> None:
    child = nursery.start(tmp_path)
    while not lines(tmp_path / "called"):
        await asyncio.sleep(0.002)
    async with LocalEngine(journal(tmp_path)) as engine:
        while len((await engine.status("r")).steps) < 5:
            await asyncio.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        while (await engine.status("r")).state is RunState.RUNNING:
            await asyncio.sleep(0.002)
        before = await engine.status("r")
        assert before.state is RunState.INTERRUPTED
        assert await engine.cancel("r", reason="too late")
        status = await engine.status("r")
        assert status.state is RunState.CANCELLED
        became = {"running": {"cancelled", "unknown"}, "succeeded": {"succeeded"}, "pending": {"cancelled"}}
        for step, state in states(status.steps).items():
            assert state in became[before.steps[step].state]
            assert state != "unknown" or effects(step)
        assert not await engine.cancel("r")


FULL = """
import asyncio, resource, sys
from pathlib import Path
from penstock.errors import StoreFailed
from tests.tasks.engines.test_survives import until_full
asyncio.run(until_full(Path(sys.argv[1]), sys.argv[2]))
"""


async def big(call: Call, _: object) -> Json:
    return "x" * 50_000


async def until_full(folder: Path, sync: str) -> None:
    """Fill what the system lets a file have, and go on when there is more."""
    called: list[str] = []

    async def counted(call: Call, run: object) -> Json:
        called.append(call.step)
        return await big(call, run)

    async with LocalEngine(journal(folder, sync)) as engine:
        engine.register("big", counted)
        for limit in (400_000, resource.RLIM_INFINITY):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                async with engine.open("r", "chain") as flow:
                    for number in range(20):
                        flow.spawn(f"s{number}", "big", after=[f"s{number - 1}"] if number else [])
                    await flow.wait()
            except StoreFailed as error:
                say(f"{type(error).__name__} {error}")
            status = await engine.status("r")
            say(f"{status.state.value} {Counter(states(status.steps).values())['succeeded']}")
        assert Counter(called).most_common(1)[0][1] <= 2
        assert len(called) <= 22


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_case_19_a_full_disk_ends_the_run_and_the_committed_steps_stay(sync: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path, sync], check=False, capture_output=True, text=True, env=environment
    )
    failed, interrupted, ended = done.stdout.splitlines()
    assert failed.startswith("StoreFailed the journal")
    state, count = interrupted.split()
    assert (state, 0 < int(count) < 12) == ("interrupted", True)
    assert ended == "succeeded 20", done.stderr


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A journal in the middle of a run, and what was written ahead of it."""
    folder = tmp_path_factory.mktemp("torn")

    async def write() -> bytes:
        async with LocalEngine(journal(folder)) as engine:
            register(engine, folder, pace_s=0)
            await engine.start("r", "project", "p")
            await engine.wait("r")
            shutil.copy(folder / "engine.db", folder / "copied")
            return (folder / "engine.db-wal").read_bytes()

    return folder / "copied", asyncio.run(write())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), flipped=st.none() | st.floats(0, 1))
def test_case_19_from_a_torn_journal_a_run_goes_on_to_the_same_end(
    cut: float, flipped: float | None, torn: tuple[Path, bytes], tmp_path: Path
) -> None:
    copied, ahead = torn
    for file in tmp_path.iterdir():
        file.unlink()
    shutil.copy(copied, tmp_path / "engine.db")
    written = bytearray(ahead[: round(cut * len(ahead))])
    if flipped is not None and written:
        written[min(int(flipped * len(written)), len(written) - 1)] ^= 1
    (tmp_path / "engine.db-wal").write_bytes(written)

    async def check() -> None:
        ended = await finished(tmp_path)
        unknown = [step for step, state in states(ended.steps).items() if state == "unknown"]
        async with LocalEngine(Journal(tmp_path / "engine.db")) as engine:
            for step in unknown:
                await engine.retry("r", step)
        ended = await finished(tmp_path)
        assert {step: each.value for step, each in ended.steps.items()} == expected()

    asyncio.run(check())
