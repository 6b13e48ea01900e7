"""What `penstock batch` reads and writes: the file of items, and the file of outcomes."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
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

STDIN = "-"
MOST_BYTES = 1_000_000
"""The longest line of a file of items."""
AHEAD = 1000
"""So many items are read ahead of those that are asked for, to find others of one's group."""
OPENAI = {"custom_id", "method", "url", "body"}
_CONTROLS = {number: f"\\u{number:04x}" for number in range(0x7F, 0xA0)}
_encode, _decode = msgspec.json.encode, msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Source:
    """A file of items that was looked through: what each item is known by, besides its id."""

    path: Path
    title: str
    digests: Mapping[ItemId, bytes]

    @classmethod
    @contextmanager
    def of(cls, path: str) -> Generator[Source]:
        """Look through a file, or stdin for "-". Raises `UsageError` with the file and the line of what is wrong."""
        with _readable(path) as file:
            title = "stdin" if path == STDIN else path
            yield cls(file, title, _looked_through(file, title))

    @property
    def count(self) -> int:
        """How many items it has."""
        return len(self.digests)

    def items(self) -> Iterator[Item]:
        """The items, one by one. Raises `UsageError` where the file is not what it was."""
        changed = UsageError(f"{self.title} was changed while it was read: the same command goes on with what is there")
        seen = 0
        for _, item in _read(self.path, self.title):
            seen += 1
            if self.digests.get(item.id) != _digest(item):
                raise changed
            yield item
        if seen != self.count:
            raise changed


def _looked_through(path: Path, title: str) -> dict[ItemId, bytes]:
    """What each item of a file is known by."""
    digests, lines = dict[ItemId, bytes](), dict[ItemId, int]()
    for number, item in _read(path, title):
        if item.id in lines:
            raise _wrong(title, number, f"line {lines[item.id]} has the id {item.id!r} too: give each its own")
        lines[item.id], digests[item.id] = number, _digest(item)
    if not lines:
        raise UsageError(f"{title}: no items: write one JSON object a line")
    return digests


def _digest(item: Item) -> bytes:
    return blake2b(_encode([item.data, item.group], order="sorted"), digest_size=12).digest()


@contextmanager
def _readable(path: str) -> Generator[Path]:
    """A file that can be read as often as is needed."""
    if path != STDIN:
        yield Path(path)
        return
    with tempfile.NamedTemporaryFile("wb") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


def _read(path: Path, title: str) -> Iterator[tuple[int, Item]]:
    try:
        with path.open("rb") as file:
            for number in count(1):
                line = file.readline(MOST_BYTES + 1)
                if not line:
                    return
                if len(line) > MOST_BYTES:
                    raise _wrong(title, number, f"the line is longer than {MOST_BYTES:,} bytes")
                body = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if body:
                    yield number, _item(title, number, body)
    except OSError as error:
        raise UsageError(f"{title!r} cannot be read: {error.strerror}") from error


def _item(title: str, number: int, body: bytes) -> Item:
    try:
        found = _decode(body)
    except (ValueError, RecursionError) as error:
        if body in {b"[", b"{"}:
            text = "JSON over several lines: write one JSON object a line, without a list around them"
            raise _wrong(title, number, text) from error
        raise _wrong(title, number, f"no JSON: {error}: write one JSON object a line") from error
    if not is_object(found):
        raise _wrong(title, number, 'no JSON object: write one a line, as {"id": ..., ...}')
    if found.keys() >= OPENAI:
        text = 'a request for a batch of OpenAI: write an item a line, as {"id": ..., "data": ...}'
        raise _wrong(title, number, text)
    rest = {name: value for name, value in found.items() if name not in {"id", "group"}}
    name = found["id"] if "id" in found else rest.pop("agent_id", number)
    group = found.get("group", "")
    if isinstance(name, bool) or not isinstance(name, int | str) or name == "":
        raise _wrong(title, number, f"the id {name!r:.80} names no item: give an integer or some text")
    if not isinstance(group, str):
        raise _wrong(title, number, f"the group {group!r:.80} is no text")
    return Item(name, rest["data"] if [*rest] == ["data"] else rest, group)


def _wrong(title: str, number: int, problem: str) -> UsageError:
    return UsageError(f"{title}:{number}: {problem}")


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


class Sheet:
    """The rows of outcomes, as lines of a file: as they end, and at last in the order of their ids.

    A row that comes again takes the place of the one before. A file is written by one process at a time: raises
    `UsageError` where another one writes it; and it is as it was until `begin`.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._file: BinaryIO = _made(self._path)
        self._places: dict[ItemId, tuple[int, int]] = {}
        self._end = 0
        self.shares: dict[ItemId, Share] = {}

    def begin(self) -> None:
        """Take away what the file holds."""
        with self._writing():
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._file.truncate()

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
        while True:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            _lock(file, path)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()  # another process has just put its own in that place
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {error.strerror}: name another file with -o") from error


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        text = f"{str(path)!r} is being written by another process: wait for it, or name another file with -o"
        raise UsageError(text) from error


def text_of(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON in which nothing steers a terminal."""
    return _encode(row).decode().translate(_CONTROLS)


def rows_of(response: BatchResponse) -> Iterator[dict[str, Any]]:
    """The rows of the items that have no value."""
    return (outcome_row(outcome) for outcome in response.outcomes if not outcome.ok)
