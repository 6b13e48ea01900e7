"""What belongs to an event loop, such as a pool of connections: made late, freed with the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Value = TypeVar("Value")


class _Held(Generic[Value]):
    """What one loop has, and the generator that keeps it."""

    def __init__(self) -> None:
        self.opening = asyncio.Lock()
        self.keeper: AsyncGenerator[Value, None] | None = None
        self.value: Value | None = None


class PerLoop(Generic[Value]):
    """One value for each event loop, from `make()`; given to `free` when the loop ends, or at `aclose`."""

    def __init__(self, make: Callable[[], Awaitable[Value]], free: Callable[[Value], Awaitable[None]]) -> None:
        self._make, self._free = make, free
        self._held: WeakKeyDictionary[asyncio.AbstractEventLoop, _Held[Value]] = WeakKeyDictionary()

    async def get(self) -> Value:
        """The running loop's own; raises what making it raises, and then tries again at the next call."""
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        if held is None:
            held = self._held[loop] = _Held()
        if held.value is None:
            async with held.opening:
                if held.value is None:
                    # A loop closes the async generators it has seen when it ends, and with it what this one keeps.
                    keeper = self._keep(loop)
                    held.value = await anext(keeper)
                    held.keeper = keeper
        return held.value

    async def aclose(self) -> None:
        """Free the running loop's own, if it has one."""
        held = self._held.get(asyncio.get_running_loop())
        if held is not None and held.keeper is not None:
            await held.keeper.aclose()

    async def _keep(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[Value, None]:
        value = await self._make()
        try:
            yield value
        finally:
            self._held.pop(loop, None)  # the value may hold its loop: weak keys alone never let go
            await self._free(value)
