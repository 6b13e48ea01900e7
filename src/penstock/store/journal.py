"""`Journal`: the durable state of runs, each a set of steps and the log of all that happened to them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from penstock.errors import PenstockError, StoreFailed, UsageError
from penstock.store.commits import Commits
from penstock.store.files import FOREIGN, Sync, opened
from penstock.store.log import SCHEMA, Log, Row, decoded, encoded, entries, folded, listed, seen, unknown
from penstock.store.steps import ABSENT, TRANSITIONS, Change, Logged, Look, Note, RunRow, Step, Transitions

Answer = TypeVar("Answer")
MUCH = 1 << 30  # bytes: work that is never done on the event loop


class Journal(Commits[Log]):
    """Runs in an SQLite file that several processes may share, each run written by one of them at a time.

    A write returns when it is committed, and all that is written at one moment is one transaction. With `sync`
    `normal` no commit is lost when the process is killed, a loss of power may take the last ones; `full` waits for the
    disk each time. The file is opened, or made, when it is first used. Raises `StoreFailed` when it cannot be read or
    written; what was committed before stays.
    """

    def __init__(self, path: str | Path, *, sync: Sync = "normal") -> None:
        super().__init__(path, SCHEMA, inline=sync == "normal")
        self._sync: Sync = sync

    async def __aenter__(self) -> Self:
        await self._ask(Log.nothing)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def begin(
        self, run: str, spec: Any, steps: Iterable[str], *, transitions: Transitions = TRANSITIONS, raw: bool = False
    ) -> dict[str, Step]:
        """Take a run, so that this journal may write it, and give its steps: those of a new one are all `pending`.

        Raises `Conflict` when the run has another spec (`idempotency_conflict`) or is held by a living owner
        (`in_progress`, the text says its process id). One whose owner is gone is taken over, with the steps it had,
        whose values are `msgspec.Raw` if they are wanted `raw`.
        """
        named = list(steps)
        if len(set(named)) < len(named):
            raise UsageError(f"the steps of {run!r} have one name twice: give each a name of its own")
        body, names = encoded(spec) or b"null", encoded(named) or b"[]"
        taken: list[Any] = []

        def take(log: Log) -> Any:
            taken[:] = [log.begin(run, body, names, transitions, raw=raw)]
            return taken[0]

        try:
            return _present(await self._ask(take, MUCH))
        except asyncio.CancelledError:  # nobody knows of it: give it back, where it was not refused
            self._ask(lambda log: log.release(run) if taken and isinstance(taken[0], dict) else None, MUCH)
            raise

    async def release(self, run: str) -> None:
        """Give a run back, for others to begin."""
        await self._ask(lambda log: log.release(run), MUCH)

    async def remove(self, run: str) -> None:
        """Remove a run with its log, whose room in the file is used again.

        Raises `UnknownName`, and `Conflict` (`in_progress`) for one that a living owner holds.
        """
        await self._ask(lambda log: log.remove(run), MUCH)

    def write(self, run: str, *changes: Change | Note, at_once: bool = False) -> asyncio.Future[int]:
        """Commit changes and notes together, or none of them; to be awaited: the offset of the last.

        A writer who gathers the changes of a moment himself writes them `at_once`, others share a transaction. One
        whose caller is cancelled is written all the same. Raises `UsageError` for a transition that is not legal,
        a run that is not held here, a value that is no JSON.
        """
        rows: list[Row] = []
        size = 0
        for one in changes:
            value = encoded(one.value)
            rows.append(
                (one.step, one.state, None, value) if isinstance(one, Change) else (one.step, None, one.kind, value)
            )
            size += 100 + len(value or b"")
        return self._ask(lambda log: log.write(run, rows), size, at_once=at_once)

    async def rollback(self, run: str, offset: int) -> dict[str, Step]:
        """Bring a run that is held here back to an offset of its log, which only grows, and give its steps.

        The offset is one that a write gave, or 1 for the beginning. What was `running` then is so again. Raises
        `UsageError` for an offset that the log does not have.
        """
        return _present(await self._ask(lambda log: log.rollback(run, offset), MUCH))

    async def steps(self, run: str) -> dict[str, Step]:
        """How the steps of a run stand, in the order in which they were named. Raises `UnknownName`."""
        return _present(await self._read(lambda db: folded(db, self._number(db, run))))

    async def events(self, run: str, *, after: int = 0, limit: int = 1000) -> list[Logged]:
        """The log of a run behind an offset, at most `limit` entries. Raises `UnknownName`."""
        return await self._read(lambda db: entries(db, self._number(db, run), after, limit))

    async def runs(self) -> list[RunRow]:
        """All runs, the oldest first."""
        return await self._read(listed)

    async def look(self, run: str, *, steps: bool = True) -> Look:
        """How a run stands at this moment, and who holds it; cheaper without its steps. Raises `UnknownName`."""

        def read(db: sqlite3.Connection) -> Look:
            self._number(db, run)
            return seen(db, self._path, run, steps=steps)[0]

        look = await self._read(read)
        return replace(look, steps=_present(look.steps))

    async def looks(self, *, raw: bool = False) -> list[Look]:
        """All runs as they stand at this moment, the oldest first, without their steps.

        Their specs are `msgspec.Raw` if they are wanted `raw`, which is cheaper.
        """
        return await self._read(lambda db: seen(db, self._path, raw=raw))

    async def request(self, run: str, body: Any) -> int:
        """Ask the process that holds a run for something (JSON): the number under which `answered` has the answer.

        Raises `UnknownName`.
        """
        asked = encoded(body) or b"null"
        return int(await self._ask(lambda log: log.request(run, asked)))

    async def answered(self, number: int) -> tuple[bool, Any]:
        """Whether a request is still there, and its answer, None as long as there is none; given once.

        One that is gone was not answered: the run has another holder.
        """
        there, answer = await self._ask(lambda log: log.answered(number))
        return there, decoded(answer)

    async def withdraw(self, number: int) -> None:
        """Take back a request."""
        await self._ask(lambda log: log.withdraw(number))

    async def requested(self) -> list[tuple[int, str, Any]]:
        """What others ask of the runs held here, as number, run and body; looks only if another process wrote."""
        asked = await self._ask(Log.requested, at_once=True)
        return [(number, run, decoded(body)) for number, run, body in asked]

    async def answer(self, number: int, answer: Any) -> None:
        """Answer a request; the answer is JSON and not None."""
        said = encoded(answer) or b"false"
        await self._ask(lambda log: log.answer(number, said))

    async def backup(self, path: str | Path) -> None:
        """Copy the journal as it is at this moment to a new file, while it is written.

        Raises `UsageError` when there is a file already.
        """
        await self._read(lambda db: _copy(db, Path(path).absolute()))

    def _open(self) -> Log:
        return Log(opened(self._path, SCHEMA, self._sync), self._path, inline=self._inline)

    async def _read(self, reader: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """What is read over a connection of its own, for which no writer waits."""
        if self._table is None:
            await self._ask(Log.nothing)
        return await asyncio.to_thread(self._reading, reader)

    def _reading(self, reader: Callable[[sqlite3.Connection], Answer]) -> Answer:
        try:
            with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
                db.execute("BEGIN")
                return reader(db)
        except PenstockError:
            raise
        except FOREIGN as error:
            raise SCHEMA.failure(self._path, error) from error

    def _number(self, db: sqlite3.Connection, run: str) -> int:
        found = db.execute("SELECT id FROM runs WHERE name = ?", (run,)).fetchone()
        if found is None:
            raise unknown(self._path, run)
        return int(found[0])


def _present(steps: dict[str, Step]) -> dict[str, Step]:
    return {name: step for name, step in steps.items() if step.state != ABSENT}


def _copy(db: sqlite3.Connection, target: Path) -> None:
    """Copy a database beside its target, and name it when it is whole."""
    if target.exists():
        raise UsageError(f"{str(target)!r} is there already: give another path")
    fresh = target.with_name(f"{target.name}.new-{uuid4().hex}")
    try:
        with closing(sqlite3.connect(fresh)) as copied:
            db.backup(copied)
            (found,) = copied.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise StoreFailed(f"the journal is damaged, and was not copied: {found}: restore it from a backup")
        fresh.rename(target)
    finally:
        fresh.unlink(missing_ok=True)
