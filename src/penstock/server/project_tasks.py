"""What clients and the server itself do with the tasks of a project that is there."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from penstock.errors import Conflict, NotFound, UsageError

if TYPE_CHECKING:
    from penstock.tasks.engines import Engine, RunStatus

LOOK_S = 1.0
LOST = frozenset(("failed", "cancelled", "unknown"))


def demand_task(status: RunStatus, task: str | None) -> None:
    """Raise `NotFound` for what is no task of a project; None is all of them."""
    if task is not None and all(task != one["id"] for one in status.payload["project"]["tasks"]):
        raise NotFound(f"project {status.run!r} has no task {task[:100]!r}", param="task", code="task_not_found")


async def reopen(engine: Engine, run: str, task: str | None) -> None:
    """Take back the end of a task, or of all that did not succeed; raises `Conflict` where there is no such one."""
    steps = (await engine.status(run)).steps
    lost = [name for name in ([task] if task else steps) if name in steps and steps[name].state in LOST]
    refused: UsageError | None = None
    for one in [*lost]:
        try:
            await engine.retry(run, one)
        except UsageError as error:  # somebody else has taken it back meanwhile
            lost.remove(one)
            refused = error
    if not lost:
        what = f"no task of the project {run!r}" if task is None else f"the task {task!r} is none that"
        text = f"{what} failed, was cancelled or is unknown: there is nothing to do again"
        raise Conflict(text, param="task" if task else "id", code="not_retryable") from refused


async def settled(engine: Engine, run: str) -> None:
    """Pause a run, and return when none of its steps runs."""
    with suppress(UsageError):  # it has ended meanwhile
        await engine.pause(run)
        status = await engine.status(run)
        after, running = status.offset, {name for name, step in status.steps.items() if step.state == "running"}
        while running:
            for entry in await engine.events(run, after=after, wait_s=LOOK_S):
                after = entry.offset
                if entry.step is not None and entry.state is not None:
                    (running.add if entry.state == "running" else running.discard)(entry.step)
