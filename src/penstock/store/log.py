"""`Log`: the tables of a journal, where the last change of a step in the log of its run is its state."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import time
from typing import Any

import msgspec

from penstock.errors import Conflict, PenstockError, StoreFailed, UnknownName, UsageError
from penstock.store.commits import Table
from penstock.store.files import Owner, Schema, lives, process_of
from penstock.store.steps import ABSENT, BEGUN, PENDING, RESUMED, ROLLED_BACK, Logged, Look, RunRow, Step, Transitions

SPAN = 1 << 32  # an entry's key is its run's number times this, plus its offset: the log of a run lies together
SCHEMA = Schema(
    "journal",
    mark=0x506E7374,
    migrations=(
        (
            "CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, spec BLOB NOT NULL, at REAL)",
            "CREATE TABLE claims (run INTEGER PRIMARY KEY, owner TEXT NOT NULL)",
            "CREATE TABLE log (id INTEGER PRIMARY KEY, at REAL, step TEXT, state TEXT, kind TEXT, value BLOB)",
        ),
        (
            "CREATE INDEX notes ON log (id) WHERE step IS NULL",
            "CREATE TABLE requests (id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER, body BLOB, answer BLOB)",
        ),
    ),
)
INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)"
AT_ONCE = [INSERT + ", (?, ?, ?, ?, ?, ?)" * more for more in range(16)]  # one statement needs no BEGIN and COMMIT
KNOWN = "SELECT id, spec, owner FROM runs LEFT JOIN claims ON claims.run = runs.id WHERE name = ?"
RUNS = f"""
SELECT name, spec, at,
    (SELECT log.id FROM log WHERE log.id < (runs.id + 1) * {SPAN} ORDER BY log.id DESC LIMIT 1) % {SPAN}
FROM runs WHERE name = ?1 OR ?1 IS NULL ORDER BY id
"""  # noqa: S608

Row = tuple[str | None, str | None, str | None, bytes | None]
"""Step, state, kind and value of an entry."""


@dataclass(slots=True)
class _Held:
    """A run that is written here: its number, and what a write is checked against."""

    number: int
    transitions: Transitions
    states: dict[str, str] = field(default_factory=dict)
    offset: int = 0

    def follow(self, rows: Sequence[Row]) -> dict[str, str]:
        """Take the states of the rows, and give those from before. Raises `UsageError` where one may not follow."""
        before: dict[str, str] = {}
        for step, state, _, _ in rows:
            if step is None or state is None:
                continue
            now = self.states.get(step, ABSENT)
            if state not in self.transitions.get(now, ()):
                self.states.update(before)
                legal = ", ".join(sorted(self.transitions.get(now, ()))) or "nothing"
                raise UsageError(f"the step {step!r} is {now!r} and may not become {state!r}: legal is {legal}")
            before.setdefault(step, now)
            self.states[step] = state
        return before


class Log(Table):
    """The open file of a journal. What is refused is an error for an answer, and writes nothing."""

    def __init__(self, db: sqlite3.Connection, path: Path, *, inline: bool) -> None:
        super().__init__(db)
        self._path = path
        self._owner: Owner | None = None
        self._held: dict[str, _Held] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._undo: list[tuple[_Held, int, dict[str, str]]] = []
        self._begun: list[str] = []
        self._version = -1
        if inline:  # a checkpoint waits for the disk: the thread makes them
            db.execute("PRAGMA wal_autocheckpoint = 0")

    def together(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """The answers of all calls, made in one transaction; what they changed here is undone when it fails."""
        try:
            answers = [call(self) for call in calls]
            self._insert()
            if self._db.in_transaction:
                self._db.execute("COMMIT")
            self._undo.clear()
            self._begun.clear()
        finally:
            if self._undo or self._begun or self._db.in_transaction:
                self._restore()
        return answers

    def _start(self) -> None:
        """Be in a transaction that has what is noted by now."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        self._insert()

    def _insert(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        self.pages += 2 + (rows[-1][2] is None) + len(rows) // 64 + sum(len(row[-1]) for row in rows if row[-1]) // 2048
        if len(rows) > len(AT_ONCE):
            self._start()
            self._db.executemany(INSERT, rows)
        else:
            self._db.execute(AT_ONCE[len(rows) - 1], [*chain.from_iterable(rows)])

    def _restore(self) -> None:
        self._rows.clear()
        while self._undo:
            held, offset, before = self._undo.pop()
            held.offset = offset
            held.states.update(before)
        while self._begun:
            self._held.pop(self._begun.pop(), None)
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def nothing(self) -> None:
        """Answer that the file is open."""

    def begin(
        self, run: str, spec: bytes, steps: bytes, transitions: Transitions, *, raw: bool = False
    ) -> dict[str, Step] | Conflict:
        """Claim a run, which is made where it is not there, and give its steps; those to begin with come as JSON."""
        self._start()
        own = self._owner = self._owner or Owner(self._path)
        found = self._db.execute(KNOWN, (run,)).fetchone()
        if found is None:
            number = self._db.execute("INSERT INTO runs VALUES (NULL, ?, ?, ?)", (run, spec, time())).lastrowid or 0
            known, offset = dict.fromkeys(decoded(steps), Step(PENDING)), 0
        else:
            number, written, owner = found
            if written != spec:
                text = f"the run {run!r} was begun with another spec: begin this one under another name"
                return Conflict(text, code="idempotency_conflict")
            if self._goes_on(run, owner):
                return self._in_progress(run, owner)
            known, offset = folded(self._db, number, raw=raw), self._last(number)
        self._db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (number, own.name))
        self._db.execute("DELETE FROM requests WHERE run = ?", (number,))
        self._held[run] = held = _Held(number, transitions, {step: at.state for step, at in known.items()}, offset)
        self._begun.append(run)
        self._note(held, [(None, None, RESUMED, None) if offset else (None, None, BEGUN, steps)])
        return known

    def release(self, run: str) -> None:
        """Drop the claim of a run."""
        self._start()
        if (held := self._held.get(run)) and self._owner:
            self._db.execute("DELETE FROM claims WHERE run = ? AND owner = ?", (held.number, self._owner.name))
            del self._held[run]

    def remove(self, run: str) -> Conflict | UnknownName | None:
        """Delete a run that nobody holds, with its log."""
        self._start()
        found = self._db.execute(KNOWN, (run,)).fetchone()
        if found is None:
            return unknown(self._path, run)
        number, _, owner = found
        if self._goes_on(run, owner):
            return self._in_progress(run, owner)
        for statement in ("runs WHERE id", "claims WHERE run", "requests WHERE run"):
            self._db.execute(f"DELETE FROM {statement} = ?", (number,))  # noqa: S608
        self._db.execute("DELETE FROM log WHERE id >= ? AND id < ?", (number * SPAN, (number + 1) * SPAN))
        return None

    def write(self, run: str, rows: list[Row]) -> int | PenstockError:
        """Note entries, and give the last offset."""
        if (held := self._held.get(run)) is None:
            return _not_held(run)
        offset = held.offset
        try:
            before = held.follow(rows)
        except UsageError as error:
            return error
        self._undo.append((held, offset, before))
        self._note(held, rows)
        return held.offset

    def rollback(self, run: str, offset: int) -> dict[str, Step] | UsageError:
        """Note the states and values of an earlier offset again, and give the steps."""
        if (held := self._held.get(run)) is None:
            return _not_held(run)
        if not 0 < offset <= held.offset:
            return UsageError(f"the run {run!r} has no offset {offset!r}: give one from 1 to {held.offset}")
        self._start()
        then, now = folded(self._db, held.number, offset), folded(self._db, held.number)
        back = {step: then.get(step, Step(ABSENT)) for step in now}
        rows = [(step, to.state, None, encoded(to.value)) for step, to in back.items() if to != now[step]]
        self._undo.append((held, held.offset, dict(held.states)))
        held.states.update((step, to.state) for step, to in back.items())
        self._note(held, [(None, None, ROLLED_BACK, encoded({"to": offset})), *rows])
        return back

    def request(self, run: str, body: bytes) -> int | UnknownName:
        """Ask the owner of a run for something: the number of the request."""
        self._start()
        asked = self._db.execute("INSERT INTO requests (run, body) SELECT id, ? FROM runs WHERE name = ?", (body, run))
        return (asked.lastrowid or 0) if asked.rowcount else unknown(self._path, run)

    def answered(self, number: int) -> tuple[bool, bytes | None]:
        """Whether a request is still there, and its answer, with which it is removed."""
        found = self._db.execute("SELECT answer FROM requests WHERE id = ?", (number,)).fetchone()
        if found is not None and found[0] is not None:
            self.withdraw(number)
        return (False, None) if found is None else (True, found[0])

    def withdraw(self, number: int) -> None:
        """Remove a request."""
        self._start()
        self._db.execute("DELETE FROM requests WHERE id = ?", (number,))

    def requested(self) -> list[tuple[int, str, bytes]]:
        """The requests to be answered here, as number, run and body, where another process wrote since the last call.

        A question that costs next to nothing where none did.
        """
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return []
        names = {held.number: run for run, held in self._held.items()}
        asked = self._db.execute("SELECT id, run, body FROM requests WHERE answer IS NULL ORDER BY id").fetchall()
        self._version = version  # a read that failed is made again
        return [(number, names[run], body) for number, run, body in asked if run in names]

    def answer(self, number: int, answer: bytes) -> None:
        """Answer a request."""
        self._start()
        self._db.execute("UPDATE requests SET answer = ? WHERE id = ?", (answer, number))

    def close(self) -> None:
        """Close the file; the claims end with their owner."""
        super().close()
        if self._owner:
            self._owner.close()

    def _note(self, held: _Held, rows: Sequence[Row]) -> None:
        at, first = time(), held.number * SPAN + held.offset + 1
        self._rows += ((key, at, *row) for key, row in enumerate(rows, first))
        held.offset += len(rows)

    def _goes_on(self, run: str, owner: str | None) -> bool:
        """Whether a run is held, here or by another owner that lives."""
        mine = self._owner and self._owner.name
        return run in self._held or bool(owner and owner != mine and lives(self._path, owner))

    def _in_progress(self, run: str, owner: str) -> Conflict:
        text = f"the run {run!r} is held by the process {process_of(self._path, owner)}: wait for it, or stop it"
        return Conflict(text, code="in_progress")

    def _last(self, number: int) -> int:
        last = "SELECT id FROM log WHERE id < ? ORDER BY id DESC LIMIT 1"
        return int(self._db.execute(last, ((number + 1) * SPAN,)).fetchone()[0]) % SPAN


def folded(db: sqlite3.Connection, number: int, upto: int = SPAN - 1, *, raw: bool = False) -> dict[str, Step]:
    """How the steps of a run stand at an offset, in the order in which they were named; those `absent` by then too.

    Their values are not decoded if they are wanted `raw`.
    """
    opened: Callable[[bytes | None], Any] = _raw if raw else decoded
    first = number * SPAN
    (begun,) = db.execute("SELECT value FROM log WHERE id = ?", (first + 1,)).fetchone()
    steps = dict.fromkeys(decoded(begun), Step(PENDING))
    changes = "SELECT step, state, value FROM log WHERE id > ? AND id <= ? AND state IS NOT NULL ORDER BY id"
    last = {row[0]: row for row in db.execute(changes, (first, first + upto))}
    steps.update((step, Step(state, opened(value))) for step, state, value in last.values())
    return steps


def entries(db: sqlite3.Connection, number: int, after: int, limit: int) -> list[Logged]:
    """The log of a run behind an offset."""
    behind = "SELECT * FROM log WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
    rows = db.execute(behind, (number * SPAN + after, (number + 1) * SPAN, limit))
    return [Logged(key % SPAN, at, step, state, kind, decoded(value)) for key, at, step, state, kind, value in rows]


def listed(db: sqlite3.Connection, run: str | None = None, *, raw: bool = False) -> list[RunRow]:
    """All runs, the oldest first, or the one of a name; their specs not decoded if they are wanted `raw`."""
    opened: Callable[[bytes | None], Any] = _raw if raw else decoded
    return [RunRow(name, opened(spec), at, offset) for name, spec, at, offset in db.execute(RUNS, (run,))]


def notes(db: sqlite3.Connection, number: int) -> list[Logged]:
    """The notes of a run that are of no step."""
    rows = db.execute(
        "SELECT * FROM log INDEXED BY notes WHERE step IS NULL AND id > ? AND id < ? ORDER BY id",
        (number * SPAN, (number + 1) * SPAN),
    )
    return [Logged(key % SPAN, at, step, state, kind, decoded(value)) for key, at, step, state, kind, value in rows]


def seen(
    db: sqlite3.Connection, path: Path, run: str | None = None, *, steps: bool = False, raw: bool = False
) -> list[Look]:
    """All runs, the oldest first, or the one of a name; `steps` costs a look at the whole log."""
    where, names = ("", ()) if run is None else (" WHERE name = ?", (run,))
    found = db.execute(f"SELECT id, owner FROM runs LEFT JOIN claims ON run = id{where} ORDER BY id", names)  # noqa: S608
    return [
        Look(
            name=row.name,
            spec=row.spec,
            at=row.at,
            offset=row.offset,
            notes=notes(db, number),
            steps=folded(db, number) if steps else {},
            process=process_of(path, owner) if owner and lives(path, owner) else None,
        )
        for (number, owner), row in zip(found.fetchall(), listed(db, run, raw=raw), strict=True)
    ]


def encoded(value: Any) -> bytes | None:
    """A value as JSON, its keys in order. Raises `UsageError` when it is none."""
    if value is None:
        return None
    try:
        return msgspec.json.encode(value, order="deterministic")
    except RecursionError as error:
        raise UsageError(f"a {type(value).__name__} is nested too deeply to be written as JSON") from error
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise UsageError(f"{value!r:.80} cannot be written as JSON: {error}") from error


def decoded(text: bytes | None) -> Any:
    """The value of JSON that was written here. Raises `StoreFailed` when it was damaged."""
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise StoreFailed(f"a journal holds {text!r:.80}, which is no JSON: restore it from a backup") from error


def unknown(path: Path, run: str) -> UnknownName:
    """What is raised for a run that is not there."""
    return UnknownName(f"the journal {str(path)!r} has no run {run!r}: `runs` lists those it has")


def _raw(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)


def _not_held(run: str) -> UsageError:
    return UsageError(f"the run {run!r} is not held here: `begin` it first")
