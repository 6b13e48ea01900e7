"""A process that runs a project on a journal, to be killed: python -m tests.tasks.run_project JOURNAL DONE SECONDS.

Each task writes its name into the file DONE, after as many seconds.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from penstock.messages import ChatReply, ChatRequest, Choice
from penstock.run import Run
from penstock.store.journal import Journal
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.report import Report
from tests.tasks.projects import executor, named, task

COUNT = 24


class Scribe:
    """A model that writes down which tasks it did."""

    def __init__(self, done: Path, seconds: float) -> None:
        self.done, self.seconds = done, seconds

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Do one task."""
        await asyncio.sleep(self.seconds)
        with self.done.open("a") as file:
            file.write(f"{named(request)}\n")
        return ChatReply(choices=(Choice(content=f"{named(request)} is done", finish_reason="stop"),))


async def go_on(journal: Path, done: Path, seconds: float) -> Report:
    """Run the project, or what is left of it."""
    async with (
        LocalEngine(Journal(journal)) as engine,
        ProjectOrchestrator(executor(Scribe(done, seconds)), name="killed", engine=engine) as project,
    ):
        project.add(*(task(f"t{n}", *([f"t{n // 2}"] if n > 1 else [])) for n in range(1, COUNT + 1)))
        return await project.run()


if __name__ == "__main__":
    asyncio.run(go_on(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
