"""`Memory`: what an engine asks of a journal, without a file: the runs end with the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import time
from typing import Any

import msgspec

from penstock.errors import Conflict, UnknownName, UsageError
from penstock.store.log import decoded, encoded
from penstock.store.steps import (
    ABSENT,
    BEGUN,
    RESUMED,
    ROLLED_BACK,
    TRANSITIONS,
    Change,
    Logged,
    Look,
    Note,
    Step,
    Transitions,
)
from penstock.tasks.engines.values import read


class _Kept:
    """One run: its spec, when it began, its log, and whether it is held."""

    __slots__ = ("at", "entries", "held", "spec")

    def __init__(self, spec: bytes) -> None:
        self.spec, self.at, self.held = spec, time(), True
        self.entries: list[tuple[float, Change | Note]] = []

    def add(self, changes: Iterable[Change | Note]) -> int:
        at = time()
        self.entries += [(at, one) for one in changes]
        return len(self.entries)

    def steps(self, upto: int | None = None) -> dict[str, Step]:
        last = {one.step: one for _, one in self.entries[:upto] if isinstance(one, Change)}
        return {step: Step(one.state, one.value) for step, one in last.items() if one.state != ABSENT}

    def logged(self, after: int, limit: int) -> list[Logged]:
        found = enumerate(self.entries[after : after + limit], after + 1)
        return [
            Logged(offset, at, one.step, one.state, None, read(one.value))
            if isinstance(one, Change)
            else Logged(offset, at, one.step, None, one.kind, read(one.value))
            for offset, (at, one) in found
        ]

    def look(self, run: str, *, steps: bool = False, raw: bool = False) -> Look:
        entries = enumerate(self.entries, 1)
        return Look(
            name=run,
            spec=msgspec.Raw(self.spec) if raw else decoded(self.spec),
            at=self.at,
            offset=len(self.entries),
            notes=[
                Logged(offset, at, None, None, one.kind, read(one.value))
                for offset, (at, one) in entries
                if isinstance(one, Note) and one.step is None
            ],
            steps={name: Step(step.state, read(step.value)) for name, step in self.steps().items()} if steps else {},
            process=0 if self.held else None,
        )


class Memory:
    """Runs with their logs, which are written and read as those of a `Journal` are."""

    def __init__(self) -> None:
        self._runs: dict[str, _Kept] = {}

    async def begin(
        self,
        run: str,
        spec: Any,
        steps: Iterable[str],  # noqa: ARG002 as a journal's
        *,
        transitions: Transitions = TRANSITIONS,  # noqa: ARG002
        raw: bool = False,  # noqa: ARG002  # they are as they were written
    ) -> dict[str, Step]:
        """Take a run, and give its steps. Raises `Conflict` as a journal does."""
        kept, body = self._runs.get(run), encoded(spec) or b"null"
        if kept is None:
            kept = self._runs[run] = _Kept(body)
            kept.add([Note(BEGUN)])
            return {}
        if kept.spec != body:
            text = f"the run {run!r} was begun with another spec: begin this one under another name"
            raise Conflict(text, code="idempotency_conflict")
        if kept.held:
            raise Conflict(f"the run {run!r} goes on: wait for it, or stop it", code="in_progress")
        kept.held = True
        kept.add([Note(RESUMED)])
        return kept.steps()

    async def release(self, run: str) -> None:
        """Give a run back."""
        self._kept(run).held = False

    async def remove(self, run: str) -> None:
        """Remove a run with its log. Raises `UnknownName`, `Conflict` for one that is held."""
        if self._kept(run).held:
            raise Conflict(f"the run {run!r} goes on: wait for it, or cancel it", code="in_progress")
        del self._runs[run]

    def write(self, run: str, *changes: Change | Note, at_once: bool = False) -> asyncio.Future[int]:  # noqa: ARG002
        """Log changes and notes: the offset of the last."""
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        written.set_result(self._runs[run].add(changes))
        return written

    async def rollback(self, run: str, offset: int) -> dict[str, Step]:
        """Bring a run back to an offset. Raises `UsageError` for one that the log does not have."""
        kept = self._kept(run)
        if not 0 < offset <= len(kept.entries):
            raise UsageError(f"the run {run!r} has no offset {offset!r}: give one from 1 to {len(kept.entries)}")
        then, now = kept.steps(offset), kept.steps()
        back = {step: then.get(step, Step(ABSENT)) for step in now}
        changes = [Change(step, to.state, to.value) for step, to in back.items() if to != now[step]]
        kept.add([Note(ROLLED_BACK, {"to": offset}), *changes])
        return then

    async def look(self, run: str, *, steps: bool = True) -> Look:
        """How a run stands. Raises `UnknownName`."""
        return self._kept(run).look(run, steps=steps)

    async def looks(self, *, raw: bool = False) -> list[Look]:
        """All runs, the oldest first, without their steps; their specs not decoded if they are wanted `raw`."""
        return [kept.look(run, raw=raw) for run, kept in self._runs.items()]

    async def events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Logged]:
        """The log of a run behind an offset. Raises `UnknownName`."""
        return self._kept(run).logged(after, limit)

    async def aclose(self) -> None:
        """Forget all runs."""
        self._runs.clear()

    def _kept(self, run: str) -> _Kept:
        if run not in self._runs:
            raise UnknownName(f"there is no run {run!r}: `runs` lists those there are")
        return self._runs[run]
