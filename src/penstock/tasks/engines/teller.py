"""`Teller`: tells the log of a run to whoever it runs for, in order and to the end, however slowly that one listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from penstock.events import Item
from penstock.run import Run
from penstock.tasks.engines.writer import SOON_S, Runs, Writer

PAGE = 1000


class Teller:
    """Reads the log behind what is told already, which may be far behind what is written: it holds no entries."""

    def __init__(self, runs: Runs, run: str, writer: Writer, failed: Callable[[BaseException], None]) -> None:
        self._runs, self._run, self._writer, self._failed = runs, run, writer, failed
        self._telling: asyncio.Task[None] | None = None
        self._last = asyncio.Event()
        self.within: Run | None = None
        self.offset = 0

    def tell(self, within: Run | None) -> None:
        """Tell what is logged from now on to a run (of an execution), or to nobody."""
        self.within = within
        if within is not None and self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell())
            self._telling.add_done_callback(self._over)

    async def aclose(self, *, complete: bool) -> None:
        """Tell what is left, or where that is not wanted leave it."""
        self._last.set()
        self._writer.ring()
        if self._telling is not None:
            if not complete:
                self._telling.cancel()
            try:
                await asyncio.wait((self._telling,))
            finally:
                self._telling.cancel()

    async def _tell(self) -> None:
        while True:
            last, writes = self._last.is_set(), self._writer.writes
            entries = await self._runs.events(self._run, after=self.offset, limit=PAGE)
            for entry in entries:
                if self.within is not None:
                    await self.within.emit(Item(value=entry))
                self.offset = entry.offset
            if len(entries) == PAGE:
                continue
            if last:
                return
            await self._writer.beyond(writes)
            with suppress(TimeoutError):  # what is written meanwhile is read with it
                await asyncio.wait_for(self._last.wait(), SOON_S)

    def _over(self, telling: asyncio.Task[None]) -> None:
        if not telling.cancelled() and (error := telling.exception()) is not None:
            self._failed(error)
