"""A run of 50 steps, many of them with effects, and processes that do it until they are killed.

As a program it reads lines, `FOLDER SYNC RUN PACE_S`, and starts for each a process that imports nothing again.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from penstock.errors import Conflict, PenstockError
from penstock.run import Run
from penstock.store.journal import Journal
from penstock.tasks.engines import Call, Engine, Flow, Json
from penstock.tasks.engines.local import LocalEngine

SIZE = 50


def needs(number: int) -> list[str]:
    """What a step needs: up to three of those before it."""
    chance = random.Random(number)
    return [f"s{other}" for other in sorted(chance.sample(range(number), min(number, chance.randrange(4))))]


def effects(step: str) -> bool:
    """Whether a step leaves a line in a file, which nobody takes back."""
    return int(step[1:]) % 3 == 0


async def project(flow: Flow, payload: Json) -> Json:
    """50 steps, a word in the middle, and the sum of all."""
    flow.limit(8)
    for number in range(SIZE):
        flow.spawn(f"s{number}", "work", number, after=needs(number), effects=effects(f"s{number}"))
    await flow.wait("s9")
    await flow.emit("half", payload)
    ended = await flow.wait()
    return sum(step.value or 0 for step in ended.values() if step.state == "succeeded")


def register(engine: Engine, folder: Path, pace_s: float) -> None:
    """Let an engine do the run; who is called and which effects there are is appended to files."""

    async def work(call: Call, _: Run, /) -> Json:
        with (folder / "called").open("a") as file:
            file.write(call.step + "\n")
        await asyncio.sleep(random.random() * pace_s)
        if effects(call.step):
            with (folder / "effects").open("a") as file:
                file.write(call.step + "\n")
        await asyncio.sleep(random.random() * pace_s)
        return call.payload + sum(call.results.values()) % 97

    engine.register("work", work)
    engine.register_flow("project", project)


def journal(folder: Path, sync: str = "normal") -> Journal:
    """The journal in a folder."""
    return Journal(folder / "engine.db", sync="full" if sync == "full" else "normal")


def say(text: str) -> None:
    """Tell the process that started this one."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def live(folder: Path, sync: str, run: str, pace_s: float) -> None:
    """Start the run, or go on with it, once nothing says to wait, and say how that went."""
    while (folder / "wait").exists():
        await asyncio.sleep(0.001)
    async with LocalEngine(journal(folder, sync)) as engine:
        register(engine, folder, pace_s)
        try:
            await engine.start(run, "project", "p")
        except Conflict as conflict:
            say(f"{conflict.code}")
            return
        say((await engine.wait(run)).state.value)


def main() -> None:
    """Start the processes."""
    for line in sys.stdin:
        folder, sync, run, pace_s = line.split()
        if (child := os.fork()) == 0:
            try:
                asyncio.run(live(Path(folder), sync, run, float(pace_s)))
            except PenstockError as error:
                say(repr(error))
            os._exit(0)
        say(str(child))


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    main()
