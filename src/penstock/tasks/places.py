"""`Places`: how many tasks each agent does at once; who finds no place waits for one, in order."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from weakref import WeakKeyDictionary

from penstock.tasks.agents import AgentConfig


class Places:
    """The places of agents, in each event loop; an agent whose limit was changed has new ones for the next tasks."""

    def __init__(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], asyncio.Semaphore]]
        self._loops = WeakKeyDictionary()

    def of(self, agent: AgentConfig) -> AbstractAsyncContextManager[None]:
        """A place for one task of the agent, once there is one: `async with places.of(agent): ...`."""
        if agent.concurrent is None:
            return nullcontext()
        here = self._loops.setdefault(asyncio.get_running_loop(), {})
        return here.setdefault((agent.name, agent.concurrent), asyncio.Semaphore(agent.concurrent))
