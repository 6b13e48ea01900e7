"""What the scheduler of tasks costs beside graphlib and a TaskGroup: with limits, a listener, and ends committed.

Both sides are given the same plan and start from its names: the graph is checked and made within the time. Work is a
coroutine function that returns at once, so that nothing but the scheduling is left.
"""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Any

from benchmarks.table import Figure
from penstock.tasks.graph import graph_of
from penstock.tasks.limits import Limits
from penstock.tasks.scheduler import Commit, Scheduler
from penstock.tasks.states import Change, Ended

TITLE = "Tasks, in memory (best of the rounds)"
ROUNDS = 7
MANY = 100_000
FEW = 5_000
SLEEP_S = 0.05
AT_ONCE = 50

Plan = dict[str, list[str]]
Side = Callable[[Plan], Coroutine[Any, Any, None]]


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


def seconds(side: Side, plan: Plan) -> float:
    """How long one run takes, the event loop's own start left out."""

    async def timed() -> float:
        started = perf_counter()
        await side(plan)
        return perf_counter() - started

    gc.collect()
    return asyncio.run(timed())


def least(plan: Plan, sides: Sequence[Side], rounds: int) -> list[float]:
    """Microseconds a task of each side in its best round; the sides take turns."""
    best = [float("inf")] * len(sides)
    for _, number in product(range(rounds), range(len(sides))):
        best[number] = min(best[number], seconds(sides[number], plan) / len(plan) * 1e6)
    return best


def apart(side: str, size: int) -> tuple[float, float]:
    """Seconds, and MB of memory at the peak beyond the plan's own, of one run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tasks", side, str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    took, grown = map(float, done.stdout.split())
    return took, grown


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in this process, one task after the other and side by side; very many tasks in processes of their own."""
    rounds, many = (1, FEW) if quick else (ROUNDS, MANY)
    figures: list[Figure] = []
    for name, plan in (
        ("chain of 1,000", chain(1_000)),
        ("1 to 1,000 to 1", fan(1_000)),
        ("layers of 5,000", layers(5_000)),
    ):
        bare, ours, committed = least(plan, [floor(), scheduled(), scheduled(commit=stored)], rounds)
        figures += [
            Figure(f"a task, {name}", ours, "us", bare, 2 * bare),
            Figure(f"a task, {name}, ends committed", committed, "us", bare),
        ]
    bare, ours = least(chain(10_000), [floor(), scheduled()], min(rounds, 3))
    figures.append(Figure("a task, chain of 10,000", ours, "us", bare, 2 * bare))
    sleepers: Plan = {f"t{number}": [] for number in range(200)}
    bare, ours = (each * len(sleepers) / 1e6 for each in least(sleepers, [floor(asleep), scheduled(asleep)], rounds))
    figures.append(Figure(f"200 tasks of 50 ms, {AT_ONCE} at once", ours, "s", bare, 0.21))
    (bare, bare_mb), (ours, ours_mb) = apart("floor", many), apart("scheduled", many)
    return [
        *figures,
        Figure(f"{many:,} tasks in layers", ours, "s", bare),
        Figure(f"{many:,} tasks in layers, memory", ours_mb, "MB", bare_mb),
    ]


def main(side: str, size: str) -> None:
    """Print what `apart` asks for."""
    plan = layers(int(size))
    before = getrusage(RUSAGE_SELF).ru_maxrss
    took = seconds(scheduled() if side == "scheduled" else floor(), plan)
    print(took, (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
