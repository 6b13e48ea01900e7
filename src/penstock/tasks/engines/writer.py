"""`Writer`: the log of a run that goes on here, in which what happened at one moment is written at once."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from penstock.store.journal import Journal
from penstock.store.steps import Change, Note
from penstock.tasks.engines.memory import Memory

SOON_S = 0.02

Runs: TypeAlias = Journal | Memory


class Writer:
    """Writes the log of one run. Once a write fails, `broken` says why, and what comes after is not to be trusted."""

    def __init__(self, runs: Runs, run: str) -> None:
        self._runs, self._run = runs, run
        self._lasting = isinstance(runs, Journal)  # without one, nothing is lost by writing it later
        self._gathered: list[Change | Note] = []
        self._due = False
        self._bell: asyncio.Event | None = None
        self.broken: BaseException | None = None
        self.writes = 0

    def add(self, change: Change | Note) -> None:
        """Write a change soon, or with the next that cannot wait."""
        self._gathered.append(change)
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(SOON_S, self._soon)

    def commit(self, changes: list[Change | Note]) -> asyncio.Future[int] | None:
        """Write changes on which others wait, and return what is to be awaited; None where that is done already.

        Raises what broke the log before.
        """
        if not self._lasting and self._due:
            self._gathered += changes
            return None
        written = self.write(*changes)
        return None if written.done() and written.exception() is None else written

    def write(self, *changes: Change | Note) -> asyncio.Future[int]:
        """Write changes now, behind those that were added; to be awaited: the offset of the last.

        Raises what broke the log before.
        """
        if self.broken is not None:
            raise self.broken
        gathered, self._gathered = self._gathered, []
        written = self._runs.write(self._run, *gathered, *changes, at_once=True)
        if written.done():
            self._over(written)
        else:
            written.add_done_callback(self._over)
        return written

    async def flush(self) -> None:
        """Write what was added, so that a reader finds it, unless the log is broken."""
        if self._gathered and self.broken is None:
            await self.write()

    def ring(self) -> None:
        """Wake those who wait for something to read."""
        self.writes += 1
        if self._bell is not None:
            self._bell.set()
            self._bell = None

    async def beyond(self, writes: int) -> None:
        """Wait until more was written than so many times."""
        while self.writes <= writes:
            self._bell = self._bell or asyncio.Event()
            await self._bell.wait()

    def _soon(self) -> None:
        self._due = False
        if self._gathered and self.broken is None:
            self.write()

    def _over(self, written: asyncio.Future[int]) -> None:
        if not written.cancelled() and (error := written.exception()) is not None:
            self.broken = self.broken or error
        self.ring()
