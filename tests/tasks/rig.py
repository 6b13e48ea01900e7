"""Work that ends when a test says so, and a journal that commits when a test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from penstock.tasks.graph import graph_of
from penstock.tasks.scheduler import Scheduler
from penstock.tasks.states import Ended
from tests.tasks.plans import Plan


class Work:
    """Work that is told when to end: `gates` names the tasks that wait, all others return at once, or fail."""

    def __init__(self, *gates: str) -> None:
        self.gates = {gate: asyncio.Event() for gate in gates}
        self.failing: dict[str, BaseException] = {}
        self.begun: list[str] = []
        self.cleaned: list[str] = []

    async def __call__(self, task: str) -> str:
        self.begun.append(task)
        try:
            if task in self.gates:
                await self.gates[task].wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            self.cleaned.append(task)
            raise
        if task in self.failing:
            raise self.failing[task]
        return task.upper()


class Journal:
    """What was committed, in batches; `gate` holds the next commit back, `error` fails it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self, ended: Sequence[Ended]) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.batches.append([each.task for each in ended])


async def quiet() -> None:
    """Let everything happen that can."""
    for _ in range(12):
        await asyncio.sleep(0)


def running(plan: Plan, work: Work, **options: Any) -> tuple[Scheduler, asyncio.Task[Any]]:
    scheduler = Scheduler(graph_of(plan), work, **options)
    return scheduler, asyncio.create_task(scheduler.run())
