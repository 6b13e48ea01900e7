"""What `penstock batch` reads and writes: the file of items, the journal of what was accepted, the file of outcomes."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

import msgspec

from penstock.batch.items import Item, ItemId, order_of
from penstock.batch.outcomes import BatchResponse
from penstock.config.batches import cost_row, outcome_row, usage_row
from penstock.errors import StoreFailed, UsageError
from penstock.messages import Usage, is_object
from penstock.store.journal import Journal
from penstock.store.steps import Note

JOURNAL = "batches.sqlite"
MOST_BYTES = 1_000_000
"""The longest line of a file of items."""
AHEAD = 1000
"""So many items are read ahead of those that are asked for, to find others of one's group."""
PAGE = 1000
ACCEPTED, USED = "accepted", "used"
_CONTROLS = {number: f"\\u{number:04x}" for number in range(0x7F, 0xA0)}
_encode, _decode = msgspec.json.encode, msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Source:
    """A file of items that was looked through: how many it has, and what its content is known by."""

    path: Path
    count: int
    digest: str

    @classmethod
    def of(cls, path: str) -> Source:
        """Look through a file. Raises `UsageError` with the file and the line of what is wrong."""
        digest, lines = hashlib.sha256(), dict[ItemId, int]()
        for number, line, item in _read(Path(path)):
            digest.update(line)
            if item.id in lines:
                raise _wrong(path, number, f"line {lines[item.id]} has the id {item.id!r} too: give each its own")
            lines[item.id] = number
        if not lines:
            raise UsageError(f"{path}: no items: write one JSON object a line")
        return cls(Path(path), len(lines), digest.hexdigest())

    def items(self) -> Iterator[Item]:
        """The items, one by one."""
        return (item for _, _, item in _read(self.path))


def _read(path: Path) -> Iterator[tuple[int, bytes, Item]]:
    try:
        with path.open("rb") as file:
            for number in count(1):
                line = file.readline(MOST_BYTES + 1)
                if not line:
                    return
                if len(line) > MOST_BYTES:
                    raise _wrong(path, number, f"the line is longer than {MOST_BYTES:,} bytes")
                body = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if body:
                    yield number, line, _item(path, number, body)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _item(path: Path, number: int, body: bytes) -> Item:
    try:
        found = _decode(body)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, number, f"no JSON: {error}") from error
    if not is_object(found):
        raise _wrong(path, number, 'no JSON object: write {"id": ..., ...}')
    rest = {name: value for name, value in found.items() if name not in {"id", "group"}}
    name = found["id"] if "id" in found else rest.pop("agent_id", number)
    group = found.get("group", "")
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        raise _wrong(path, number, f"the id {name!r:.80} names no item: give an integer or some text")
    if not isinstance(group, str):
        raise _wrong(path, number, f"the group {group!r:.80} is no text")
    return Item(name, rest["data"] if [*rest] == ["data"] else rest, group)


def _wrong(path: str | Path, number: int, problem: str) -> UsageError:
    return UsageError(f"{path}:{number}: {problem}")


class Waiting:
    """The items that are still to be asked for, read as they are needed."""

    def __init__(self, source: Source, done: Container[ItemId]) -> None:
        self._left = (item for item in source.items() if item.id not in done)
        self._near: list[Item] = []

    def take(self, most: int) -> list[Item]:
        """The next items, of one group; none where all have been taken."""
        self._near += islice(self._left, AHEAD - len(self._near))
        if not self._near:
            return []
        group, taken, rest = self._near[0].group, list[Item](), list[Item]()
        for item in self._near:
            (taken if item.group == group and len(taken) < most else rest).append(item)
        self._near = rest
        return taken


class Share(NamedTuple):
    """What an item used of the calls so far: tokens, and USD as text, None where a price is not known."""

    prompt: int = 0
    completion: int = 0
    total: int = 0
    cost: str | None = "0"

    def plus(self, other: Share) -> Share:
        """What both used."""
        cost = None if self.cost is None or other.cost is None else cost_row(Decimal(self.cost) + Decimal(other.cost))
        return Share(self.prompt + other.prompt, self.completion + other.completion, self.total + other.total, cost)

    @property
    def usage(self) -> Usage:
        """Its tokens."""
        return Usage(self.prompt, self.completion, self.total)


def shares_of(response: BatchResponse) -> list[tuple[ItemId, Share]]:
    """What each item of a response used."""
    return [
        (one.id, Share(one.usage.prompt, one.usage.completion, one.usage.total, cost_row(one.cost)))
        for one in response.outcomes
    ]


class Kept:
    """What is stored of a batch in a run of a journal, which this process holds."""

    def __init__(self, journal: Journal, run: str) -> None:
        self._journal, self.run = journal, run

    @classmethod
    async def begun(cls, journal: Journal, spec: dict[str, Any], *, new: bool) -> Kept:
        """Take up the newest run of this batch, or begin one. Raises `Conflict` where another process works on it."""
        name = f"batch-{hashlib.sha256(_encode(spec, order='sorted')).hexdigest()[:16]}"
        known = {row.name for row in await journal.runs()}
        names = [name, *(f"{name}-{number}" for number in range(2, len(known) + 3))]
        free = next(place for place, one in enumerate(names) if one not in known)
        run = names[free if new or not free else free - 1]
        await journal.begin(run, spec, ())
        return cls(journal, run)

    async def told(self) -> AsyncIterator[tuple[str, Any]]:
        """What was stored before, in order: of each item its row, of each call the shares of its items."""
        after = 0
        while entries := await self._journal.events(self.run, after=after, limit=PAGE):
            after = entries[-1].offset
            for entry in entries:
                if entry.kind == ACCEPTED:
                    yield ACCEPTED, _decode(entry.value)
                elif entry.kind == USED:
                    yield USED, entry.value

    async def accept(self, row: dict[str, Any]) -> None:
        """Store the row of an item that has its value; it is there when this returns."""
        text = _encode(row).decode()  # as it stands: a journal puts keys in order
        await self._journal.write(self.run, Note(ACCEPTED, text))

    async def used(self, shares: Iterable[tuple[ItemId, Share]], calls: int) -> None:
        """Store what the items of some calls used."""
        await self._journal.write(self.run, Note(USED, {"calls": calls, "shares": [*shares]}))


class Sheet:
    """The rows of outcomes, as lines of a file: as they end, and at last in the order of their ids.

    A row that comes again takes the place of the one before.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._file: BinaryIO = _made(self._path)
        self._places: dict[ItemId, tuple[int, int]] = {}
        self._end = 0
        self.shares: dict[ItemId, Share] = {}

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        line = _encode(row) + b"\n"
        with self._writing():
            self._file.write(line)
            self._file.flush()
        self._places[row["id"]] = self._end, len(line)
        self._end += len(line)

    def share(self, shares: Iterable[tuple[ItemId, Share]]) -> None:
        """Add what items used."""
        for name, share in shares:
            self.shares[name] = self.shares.get(name, Share()).plus(share)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the order of their ids, each with what its item used."""
        for name in sorted(self._places, key=order_of):
            start, size = self._places[name]
            share = self.shares.get(name, Share())
            row = _decode(os.pread(self._file.fileno(), size, start))
            yield {**row, "usage": usage_row(share.usage), "cost_usd": share.cost}

    def finish(self) -> None:
        """Put the sorted rows in place of the file; without one, print them."""
        if self._path is None:
            for row in self.rows():
                sys.stdout.write(text_of(row) + "\n")
            sys.stdout.flush()
            return
        fresh = self._path.with_name(f"{self._path.name}.new-{uuid4().hex}")
        with self._writing():
            try:
                with fresh.open("wb") as file:
                    file.writelines(_encode(row) + b"\n" for row in self.rows())
                fresh.replace(self._path)
            finally:
                fresh.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        with self._writing():
            self._file.close()

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            text = f"{str(self._path or tempfile.gettempdir())!r} cannot be written: {error.strerror}: what was "
            raise StoreFailed(text + "accepted is kept, and the same command goes on") from error


def _made(path: Path | None) -> BinaryIO:
    if path is None:
        return tempfile.TemporaryFile("w+b")
    try:
        return path.open("w+b")
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror}: name another file with -o") from error


def text_of(row: dict[str, Any]) -> str:
    """A row as a line of JSON in which nothing steers a terminal."""
    return _encode(row).decode().translate(_CONTROLS)


def rows_of(response: BatchResponse) -> Iterator[dict[str, Any]]:
    """The rows of the items that have no value."""
    return (outcome_row(outcome) for outcome in response.outcomes if not outcome.ok)
