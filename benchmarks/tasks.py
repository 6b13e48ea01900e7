"""What the scheduler of tasks, and the engine with its journal, cost beside graphlib and a TaskGroup.

All sides are given the same plan and start from its names: the graph is checked and made within the time. Work is a
coroutine function that returns at once, so that nothing but the scheduling is left. The engine's side is a run, from
its beginning to its end in the log; only the file is opened before.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.table import Figure
from penstock.run import Run
from penstock.store.files import Sync
from penstock.store.journal import Journal
from penstock.tasks.engines import Call
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.graph import graph_of
from penstock.tasks.limits import Limits
from penstock.tasks.scheduler import Commit, Scheduler
from penstock.tasks.states import Change, Ended

TITLE = "Tasks (best of the rounds)"
ROUNDS = 7
MANY = 100_000
FEW = 5_000
SLEEP_S = 0.05
AT_ONCE = 50

Plan = dict[str, list[str]]
Side = Callable[[Plan], Coroutine[Any, Any, float | None]]
"""Does a plan; where that needs preparing, it says itself how many seconds it took."""


def chain(length: int) -> Plan:
    return {f"t{number}": [f"t{number - 1}"] if number else [] for number in range(length)}


def fan(width: int) -> Plan:
    """One task, then `width` that need it, then one that needs all of those."""
    wide = [f"t{number}" for number in range(width)]
    return {"first": [], **{task: ["first"] for task in wide}, "last": wide}


def layers(size: int, width: int = 100) -> Plan:
    """Layers in which each task needs 4 of the three layers before."""
    chance, plan = random.Random(11), Plan()
    names = [f"t{number}" for number in range(size)]
    for number, name in enumerate(names):
        start = number - number % width
        before = names[max(0, start - 3 * width) : start]
        plan[name] = chance.sample(before, 4) if before else []
    return plan


async def at_once(task: str) -> str:
    return task


async def asleep(task: str) -> str:
    await asyncio.sleep(SLEEP_S)
    return task


def hear(_: Change) -> None:
    """Listen as cheaply as a function can."""


async def stored(_: Sequence[Ended]) -> None:
    """Commit nothing: what remains is the price of awaiting it."""


def scheduled(work: Callable[[str], Coroutine[Any, Any, str]] = at_once, *, commit: Commit | None = None) -> Side:
    """Penstock's side: limited in total and by agent, so widely that nothing waits unless work sleeps."""
    limits = Limits(AT_ONCE if work is asleep else MANY, {"agent": MANY}, keys_of=lambda _: ("agent",))

    async def run(plan: Plan) -> None:
        outcomes = await Scheduler(graph_of(plan), work, limits=limits, commit=commit, listener=hear).run()
        assert len(outcomes) == len(plan)

    return run


def floor(work: Callable[[str], Coroutine[Any, Any, str]] = at_once) -> Side:
    """The other side: the standard library alone, without listener, outcomes, and, unless work sleeps, limits."""

    async def run(plan: Plan) -> None:
        sorter = TopologicalSorter(plan)
        sorter.prepare()
        over: asyncio.Queue[str] = asyncio.Queue()
        places = asyncio.Semaphore(AT_ONCE)

        async def job(task: str) -> None:
            if work is asleep:
                async with places:
                    await work(task)
            else:
                await work(task)
            over.put_nowait(task)

        async with asyncio.TaskGroup() as group:
            while sorter.is_active():
                for task in sorter.get_ready():
                    group.create_task(job(task))
                sorter.done(await over.get())
                while not over.empty():
                    sorter.done(over.get_nowait())

    return run


async def no_step(_: Call, __: Run, /) -> None:
    """Do nothing, as a step."""


def engine(sync: Sync | None = None, *, size: bool = False) -> Side:
    """The engine's side: in memory, or with a journal; `size` prints the megabytes of its file."""

    async def run(plan: Plan) -> float:
        with TemporaryDirectory() as folder:
            journal = None if sync is None else Journal(Path(folder, "journal.db"), sync=sync)
            async with LocalEngine(journal) as local:
                local.register("nothing", no_step)
                await local.runs()
                started = perf_counter()
                async with local.open("r", "plan") as flow:
                    flow.limit(MANY, {"agent": MANY})
                    for task, needs in plan.items():
                        flow.spawn(task, "nothing", after=needs, keys=("agent",))
                    steps = await flow.wait()
                took = perf_counter() - started
                assert len(steps) == len(plan)
            if size:
                print((await asyncio.to_thread(Path(folder, "journal.db").stat)).st_size / 1e6)
        return took

    return run


async def synced(plan: Plan) -> float:
    """The floor of what waits for the disk: a row for each task, and a commit for each row."""
    with TemporaryDirectory() as folder, closing(sqlite3.connect(Path(folder, "rows.db"), isolation_level=None)) as db:
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = full",
            "CREATE TABLE log (id INTEGER PRIMARY KEY, at REAL, step TEXT, state TEXT, kind TEXT, value BLOB)",
        ):
            db.execute(statement)
        started = perf_counter()
        for number, task in enumerate(plan):
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", (number, started, task, "succeeded", None, None))
        return perf_counter() - started


def seconds(side: Side, plan: Plan) -> float:
    """How long one run takes, the event loop's own start left out."""

    async def timed() -> float:
        started = perf_counter()
        took = await side(plan)
        return perf_counter() - started if took is None else took

    gc.collect()
    return asyncio.run(timed())


def least(plan: Plan, sides: Sequence[Side], rounds: int) -> list[float]:
    """Microseconds a task of each side in its best round; the sides take turns."""
    best = [float("inf")] * len(sides)
    for _, number in product(range(rounds), range(len(sides))):
        best[number] = min(best[number], seconds(sides[number], plan) / len(plan) * 1e6)
    return best


def apart(side: str, size: int) -> list[float]:
    """Seconds, MB of memory at the peak beyond the plan's own, and MB of the file, of one run in its own process."""
    command = [sys.executable, "-m", "benchmarks.tasks", side, str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    *file, took, grown = map(float, done.stdout.split())
    return [took, grown, *file]


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in this process, one task after the other and side by side; very many tasks in processes of their own."""
    rounds, many = (1, FEW) if quick else (ROUNDS, MANY)
    figures: list[Figure] = []
    for name, plan, wide in (
        ("chain of 1,000", chain(1_000), False),
        ("1 to 1,000 to 1", fan(1_000), True),
        ("layers of 5,000", layers(5_000), True),
    ):
        sides = [floor(), scheduled(), scheduled(commit=stored), engine(), engine("normal")]
        bare, ours, committed, memory, journal = least(plan, sides, rounds)
        figures += [
            Figure(f"a task, {name}", ours, "us", bare, 2 * bare),
            Figure(f"a task, {name}, ends committed", committed, "us", bare),
            Figure(f"a step, {name}, engine in memory", memory, "us", bare, 2 * bare),
            Figure(f"a step, {name}, journal", journal, "us", bare, (4 if wide else 6) * bare),
        ]
    bare, ours = least(chain(300), [synced, engine("full")], rounds)
    figures.append(Figure("a step, chain of 300, journal that waits for the disk", ours, "us", bare, 1.2 * bare))
    bare, ours, memory = least(chain(10_000), [floor(), scheduled(), engine()], min(rounds, 3))
    figures.append(Figure("a task, chain of 10,000", ours, "us", bare, 2 * bare))
    figures.append(Figure("a step, chain of 10,000, engine in memory", memory, "us", bare, 2 * bare))
    sleepers: Plan = {f"t{number}": [] for number in range(200)}
    bare, ours = (each * len(sleepers) / 1e6 for each in least(sleepers, [floor(asleep), scheduled(asleep)], rounds))
    figures.append(Figure(f"200 tasks of 50 ms, {AT_ONCE} at once", ours, "s", bare, 0.21))
    floors = apart("floor", many)
    for side, words in (("scheduled", "tasks"), ("memory", "steps in memory"), ("journal", "steps with a journal")):
        took, grown, *file = apart(side, many)
        figures.append(Figure(f"{many:,} {words}, in layers", took, "s", floors[0]))
        figures.append(Figure(f"{many:,} {words}, in layers, memory", grown, "MB", floors[1]))
        figures += [Figure(f"{many:,} {words}, in layers, file", size, "MB") for size in file]
    return figures


def main(side: str, size: str) -> None:
    """Print what `apart` asks for."""
    sides = {
        "floor": floor(),
        "scheduled": scheduled(),
        "memory": engine(),
        "journal": engine("normal", size=True),
    }
    plan = layers(int(size))
    before = getrusage(RUSAGE_SELF).ru_maxrss
    took = seconds(sides[side], plan)
    print(took, (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
