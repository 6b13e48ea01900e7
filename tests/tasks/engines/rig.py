"""The engines that the laws are tried on, and step functions that end when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.errors import TaskFailed
from penstock.events import Text
from penstock.run import Run
from penstock.store.journal import Journal
from penstock.tasks.engines import Call, Engine, Flow, Json
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.limits import Limits

Make = Callable[[Path], Engine]

ENGINES: dict[str, Make] = {
    "memory": lambda _: LocalEngine(),
    "journal, normal": lambda folder: LocalEngine(Journal(folder / "engine.db", sync="normal")),
    "journal, full": lambda folder: LocalEngine(Journal(folder / "engine.db", sync="full")),
}
"""How to make each engine in a folder; made there again, a durable one knows the runs of the one before."""


class Steps:
    """Step functions that keep what was called: `echo`, `fail` (until it is told not to), `hold` (until it may go)."""

    def __init__(self, engine: Engine) -> None:
        self.called: list[str] = []
        self.failing = True
        self.at_once = self.most = 0
        self.gates: dict[str, asyncio.Event] = {}
        for name in ("echo", "fail", "hold", "tell", "odd"):
            engine.register(name, getattr(self, name))

    def gate(self, step: str) -> asyncio.Event:
        return self.gates.setdefault(step, asyncio.Event())

    async def echo(self, call: Call, _: Run) -> Json:
        self.called.append(call.step)
        return {"payload": call.payload, "results": dict(call.results)}

    async def fail(self, call: Call, _: Run) -> Json:
        self.called.append(call.step)
        if self.failing:
            raise TaskFailed("it did not work", code="agent_failed", details={"step": call.step})
        return "worked"

    async def hold(self, call: Call, _: Run) -> Json:
        self.called.append(call.step)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            async with asyncio.timeout(5):
                await self.gate(call.step).wait()
        finally:
            self.at_once -= 1
        return call.step

    async def tell(self, call: Call, run: Run) -> Json:
        await run.emit(Text(f"I am {call.step}"))
        return call.step

    async def odd(self, call: Call, _: Run) -> Json:
        return {"a set": {call.step}, "limits": Limits()}

    async def until(self, *steps: str) -> None:
        """Wait until the steps were called."""
        async with asyncio.timeout(5):
            while not set(steps) <= set(self.called):
                await asyncio.sleep(0.002)


def states(steps: Any) -> dict[str, str]:
    """The state of each step."""
    return {name: step.state for name, step in steps.items()}


async def nothing(_: Flow, __: Json) -> Json:
    """A flow without steps."""
    return None


async def diamond(flow: Flow, payload: Json) -> Json:
    """Two steps beside each other, one before and one after them."""
    flow.spawn("top", "echo", payload)
    flow.spawn("left", "echo", after=["top"])
    flow.spawn("right", "echo", after=["top", "top"])
    flow.spawn("end", "echo", after=("left", "right"))
    return (await flow.wait("end"))["end"].value


async def failing(flow: Flow, _: Json) -> Json:
    """A step that fails, two that need it, and one that does not."""
    flow.spawn("a", "fail")
    flow.spawn("b", "echo", after=["a"])
    flow.spawn("c", "echo", after=["b"])
    flow.spawn("beside", "echo")
    return sorted(states(await flow.wait()).items())
