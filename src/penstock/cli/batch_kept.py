"""What is kept of the batches of `penstock batch`: values by what was asked for, and which batch wrote a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from penstock.batch.items import ItemId
from penstock.cli.batch_items import STDIN, Share
from penstock.cli.view import unsteering
from penstock.errors import Conflict, UnknownName, UsageError
from penstock.store.journal import Journal
from penstock.store.steps import Logged, Note, RunRow

JOURNAL = "batches.sqlite"
ACCEPTED, USED, ITEMS = "accepted", "used", "items"
PAGE = 1000
COLUMNS = ("name", "items", "values", "began", "file", "model")
_encode, _decode = msgspec.json.encode, msgspec.json.decode


class Kept:
    """What is stored of a batch in a run of a journal, which this process holds.

    `others` says how an older batch of the same file differs, where this one is new; it is empty elsewhere.
    """

    def __init__(self, journal: Journal, run: str, *, fresh: bool, others: str = "") -> None:
        self._journal, self.run, self.others = journal, run, others
        self._fresh = fresh

    @classmethod
    async def begun(cls, journal: Journal, spec: dict[str, Any], *, new: bool) -> Kept:
        """Take up the newest run of this batch, or begin one.

        Raises `UsageError` where another process works on it.
        """
        rows = await journal.runs()
        same = [row.name for row in rows if row.spec == spec]
        fresh = new or not same
        run = _free(spec["file"], rows) if fresh else same[-1]
        try:
            await journal.begin(run, spec, ())
        except Conflict as error:
            process = (await journal.look(run, steps=False)).process
            if process is None:
                raise
            text = f"this batch is being run by the process {process}: wait for it, or stop it"
            raise UsageError(text) from error
        return cls(journal, run, fresh=fresh, others="" if same else await _others(journal, spec, rows))

    async def own(self, output: str, *, new: bool) -> None:
        """Note that this batch writes a file. Raises `UsageError` for one that holds what it did not write."""
        path, held = _looked_at(output)
        mark = f"output:{blake2b(os.fsencode(path), digest_size=8).hexdigest()}"
        owner = next((row.spec.get("of") for row in await self._journal.runs() if row.name == mark), None)
        if owner == self.run:
            return
        if held and not new:
            text = f"{output!r} is there, and not from this batch: name another file with -o, remove it, or begin anew"
            raise UsageError(f"{text} with --new, which writes over it")
        if owner is not None:
            await self._journal.remove(mark)
        await self._journal.begin(mark, {"output": str(path), "of": self.run}, ())
        await self._journal.release(mark)

    async def leave(self) -> None:
        """Give the run back; one that was begun for nothing is gone."""
        await self._journal.release(self.run)
        if self._fresh:
            await self._journal.remove(self.run)

    async def told(self) -> AsyncIterator[tuple[str, Any]]:
        """What was stored before, in order: of each item its row and digest, of each call the shares of its items."""
        async for entry in _log(self._journal, self.run):
            if entry.kind == ACCEPTED:
                yield ACCEPTED, (_decode(entry.value["row"]), entry.value["of"])
            elif entry.kind == USED:
                yield USED, entry.value

    async def counted(self, items: int) -> None:
        """Store how many items the file has now."""
        await self._journal.write(self.run, Note(ITEMS, items))

    async def accept(self, row: dict[str, Any], digest: str) -> None:
        """Store the row of an item that has its value; it is there when this returns."""
        text = _encode(row).decode()  # as it stands: a journal puts keys in order
        await self._journal.write(self.run, Note(ACCEPTED, {"row": text, "of": digest}))

    async def used(self, shares: Iterable[tuple[ItemId, Share]], calls: int) -> None:
        """Store what the items of some calls used."""
        await self._journal.write(self.run, Note(USED, {"calls": calls, "shares": [*shares]}))


async def listed(journal: Journal) -> list[dict[str, Any]]:
    """The batches that are kept, the oldest first: name, file, model, items, values, and when each began."""
    found = list[dict[str, Any]]()
    for row in await journal.runs():
        if "file" in row.spec:
            items, values = await _counts(journal, row.name)
            began = datetime.fromtimestamp(row.at).astimezone().isoformat(" ", "minutes")
            about = {name: row.spec[name] for name in ("file", "model")}
            found.append({"name": row.name, **about, "items": items, "values": values, "began": began})
    return found


async def removed(journal: Journal, name: str) -> None:
    """Remove a batch with its values, not its output. Raises `UnknownName`, and `Conflict` while one runs it."""
    rows = await journal.runs()
    names = [row.name for row in rows if "file" in row.spec]
    if name not in names:
        raise UnknownName(f"no batch {name!r} is kept: {', '.join(map(repr, names)) or 'none is'}")
    await journal.remove(name)
    for row in rows:
        if row.spec.get("of") == name:
            await journal.remove(row.name)


def shown(batches: Sequence[Mapping[str, Any]]) -> str:
    """Batches as a table."""
    if not batches:
        return "no batch is kept"
    lines = [COLUMNS, *(tuple(_cell(one[column]) for column in COLUMNS) for one in batches)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(unsteering("  ".join(map(str.ljust, line, widths)).rstrip()) for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def place_of(path: Path, folder: Path) -> str:
    """How the file of a batch is known beside its journal: it stays the same when both are moved."""
    return STDIN if str(path) == STDIN else os.path.relpath(path.resolve(), folder.resolve())


def _looked_at(output: str) -> tuple[Path, bool]:
    """Where a file is, and whether there is something in it."""
    path = Path(output).resolve()
    return path, path.is_file() and path.stat().st_size > 0


def _free(file: str, rows: Sequence[RunRow]) -> str:
    """A name for a batch of a file that no run has."""
    known = {row.name for row in rows}
    stem = "stdin" if file == STDIN else re.sub(r"[^\w.-]", "_", Path(file).stem)
    names = (stem, *(f"{stem}-{number}" for number in range(2, len(known) + 3)))
    return next(name for name in names if name not in known)


async def _others(journal: Journal, spec: Mapping[str, Any], rows: Sequence[RunRow]) -> str:
    """How the newest other batch of the same file differs."""
    before = [row for row in rows if row.spec.get("file") == spec["file"]]
    if not before:
        return ""
    last = before[-1]
    names = " and ".join(name for name in spec if last.spec.get(name) != spec[name])
    _, values = await _counts(journal, last.name)
    return f"other {names} than before: a new batch; {values:,} values of the old one are kept as {last.name!r}"


async def _counts(journal: Journal, run: str) -> tuple[int, int]:
    """How many items the file of a batch had, and how many have a value."""
    items, names = 0, set[ItemId]()
    async for entry in _log(journal, run):
        if entry.kind == ITEMS:
            items = entry.value
        elif entry.kind == ACCEPTED:
            names.add(json.loads(entry.value["row"])["id"])
    return items, len(names)


async def _log(journal: Journal, run: str) -> AsyncIterator[Logged]:
    after = 0
    while entries := await journal.events(run, after=after, limit=PAGE):
        after = entries[-1].offset
        for entry in entries:
            yield entry
