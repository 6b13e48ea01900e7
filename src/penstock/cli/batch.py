"""`penstock batch`: a value for each item of a file, few calls, shown as it goes; killed, it goes on where it was."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from penstock.batch.batch import Batch
from penstock.batch.items import BatchRequest, ItemId
from penstock.batch.outcomes import BatchResponse, FaultKind, ItemOutcome
from penstock.batch.plan import Plan
from penstock.batch.planner import Planner
from penstock.batch.schema import ItemSchema
from penstock.cli.batch_items import Share, Sheet, Source, Waiting, rows_of, shares_of, text_of
from penstock.cli.batch_kept import ACCEPTED, JOURNAL, Kept, listed, place_of, removed, shown
from penstock.cli.batch_view import Tally, view_of
from penstock.cli.chat import usual_model
from penstock.cli.ends import FAILED, complain
from penstock.cli.run import stoppable
from penstock.cli.view import one_line
from penstock.config import Catalog, Settings, load
from penstock.config.batches import Asked, outcome_row, refused
from penstock.errors import RateLimited, UsageError
from penstock.events import Event, Item, Retrying, Used, summed
from penstock.messages import is_object
from penstock.run import execute
from penstock.store.journal import Journal

PATIENCE_S = 90.0
"""How long a call waits for the model's own limit of a minute."""
GIVE_UP = 3
"""So many rounds in a row, all of whose calls fail, end a batch early; more where more run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a batch is run with, as it was given."""

    schema: str | None = None
    acts: str | None = None
    model: str | None = None
    instructions: str = ""
    output: str | None = None
    size: int = 10
    concurrent: int = 4
    latency_s: float | None = None
    params: Sequence[str] = ()
    config: str | None = None
    as_json: bool = False
    new: bool = False


def run_batch(items: str, options: Options) -> int:
    """Get the values of all items of a file, and show it; returns the exit code. Raises `UsageError`."""
    output = options.output
    if output is not None and Path(output).exists() and Path(items).exists() and Path(output).samefile(items):
        raise UsageError(f"{output!r} is the file of the items: name another one with -o")
    with Source.of(items) as source:
        return stoppable(_done(source, items, options))


async def _done(source: Source, items: str, options: Options) -> int:
    schema, instructions, params = _type(options), _text(options.instructions), _params(options.params)
    planner = Planner(options.size, latency_target_s=_latency(options.latency_s))
    settings = load(options.config, os.environ)
    catalog = Catalog(settings, os.environ)
    model = catalog.meant(options.model) if options.model else await usual_model(catalog)
    asked = Asked(catalog, model, patience_s=PATIENCE_S)
    batch = Batch(asked, schema, instructions=instructions, planner=planner, concurrent=1, model=model, params=params)
    folder = _folder(settings)
    spec: dict[str, Any] = {"file": place_of(Path(items), folder), "schema": schema.text, "instructions": instructions}
    spec |= {"model": model, "parameters": params}
    async with Journal(folder / JOURNAL) as journal:
        kept = await Kept.begun(journal, spec, new=options.new)
        sheet = await _sheet(kept, options)
        return await Going(source, kept, asked, sheet=sheet, options=options).done(batch)


async def _sheet(kept: Kept, options: Options) -> Sheet:
    """The output, which no other process writes and no other batch wrote; without one the batch is given back."""
    with ExitStack() as undone:
        try:
            sheet = Sheet(options.output)
            undone.callback(sheet.close)
            if options.output is not None:
                await kept.own(options.output, new=options.new)
        except UsageError:
            await kept.leave()
            raise
        undone.pop_all()
        return sheet


def tell_batches(options: Options, *, remove: str | None = None) -> int:
    """List the batches that are kept, or remove one of them. Raises `UsageError`, and `Conflict` while one runs it."""
    settings = load(options.config, os.environ)

    async def work() -> int:
        async with Journal(_folder(settings) / JOURNAL) as journal:
            if remove is not None:
                await removed(journal, remove)
                complain(f"the batch {remove!r} and its values are removed")
                return 0
            batches = await listed(journal)
        print(json.dumps({"batches": batches}) if options.as_json else shown(batches))
        return 0

    return stoppable(work())


def _type(options: Options) -> ItemSchema:
    """The type of the values. Raises `UsageError` with the file where one is wrong."""
    if options.acts is not None and not options.acts.strip(" |"):
        raise UsageError(f"--acts {options.acts!r} names no act: give some, as in 'MoveTo|Attack', or leave it out")
    if options.schema is None or options.acts is not None:
        return ItemSchema(_schema(options.schema), acts=options.acts or ())
    try:
        return ItemSchema(_schema(options.schema))
    except UsageError as error:
        text = error.message if options.schema in error.message else f"{options.schema}: {error.message}"
        raise UsageError(text) from error


def _latency(seconds: float | None) -> float | None:
    if seconds is not None and not seconds > 0:
        raise UsageError(f"--latency {seconds:g} lets no call end: give seconds, more than 0")
    return seconds


def _params(given: Sequence[str]) -> dict[str, Any]:
    """Fields of the requests: each value is JSON, or else text. Raises `UsageError`."""
    params: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not name or not equals:
            raise UsageError(f"{one!r} is no field of a request: write NAME=VALUE, as in temperature=0")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    if name := refused(params):
        raise UsageError(f"the field {name!r} is not yours to set here: leave it out")
    return params


def _folder(settings: Settings) -> Path:
    folder = Path(settings.store.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"nothing can be kept in {str(folder)!r}: {error.strerror}: set store.dir") from error
    return folder


def _schema(path: str | None) -> Any:
    if path is None:
        return Plan
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"the schema {path!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON: {error}") from error
    if not is_object(found):
        raise UsageError(f"{path}: no JSON Schema: it is an object")
    return found


def _text(given: str) -> str:
    """Instructions as they are, or those of a file after an @."""
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"the instructions {given[1:]!r} cannot be read: {error}") from error


class Going:
    """One run of a batch over a file: what is accepted is stored first, then counted and written."""

    def __init__(self, source: Source, kept: Kept, asked: Asked, *, sheet: Sheet, options: Options) -> None:
        self._source, self._kept, self._asked = source, kept, asked
        self._sheet, self._options = sheet, options
        self._tally = Tally(source.count, waiting=self._waits)
        self._left_alone = 0.0
        self._done: set[ItemId] = set()
        self._before = self._noted = 0
        self._failing, self._reason = 0, ""

    async def done(self, batch: Batch) -> int:
        """Ask for what is missing, show it, and write all that there is; the exit code."""
        over = False
        try:
            self._sheet.begin()
            await self._kept.counted(self._source.count)
            await self._restore()
            shown = view_of(self._tally, self._source.title)
            try:
                await self._all(batch, self._options.concurrent)
                over = True
            finally:
                await shown.stop()
                if not over:
                    kept = f"{self._tally.accepted:,} of {self._tally.items:,} items have their values, which are kept"
                    complain(f"{kept}: the same command goes on")
            return self._conclude()
        finally:
            self._sheet.close()

    async def _restore(self) -> None:
        """Take in what was stored before of items that are as they were, and tell of it."""
        digests, stale = self._source.digests, set[ItemId]()
        async for kind, value in self._kept.told():
            if kind == ACCEPTED:
                row, digest = value
                if digests.get(row["id"]) == bytes.fromhex(digest):
                    self._add(row)
                    self._done.add(row["id"])
                elif row["id"] in digests:
                    stale.add(row["id"])
            else:
                shares = [(name, Share(*share)) for name, share in value["shares"] if name in digests]
                self._sheet.share(shares)
                self._before += value["calls"]
                for _, share in shares:
                    self._tally.add(share)
        self._tally.accepted = self._tally.before = len(self._done)
        self._tally.calls = self._before
        self._tell_kept(len(stale - self._done))

    def _tell_kept(self, stale: int) -> None:
        if self._kept.others:
            complain(self._kept.others)
        if stale:
            who = "1 item has" if stale == 1 else f"{stale:,} items have"
            complain(f"{who} other data than before: {'it is' if stale == 1 else 'they are'} asked for again")
        if self._done:
            done = len(self._done)
            complain(f"{done:,} value{'s are' if done > 1 else ' is'} kept from before")

    async def _all(self, batch: Batch, concurrent: int) -> None:
        waiting = Waiting(self._source, self._done)
        workers = [asyncio.ensure_future(self._work(batch, waiting, concurrent)) for _ in range(concurrent)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _work(self, batch: Batch, waiting: Waiting, concurrent: int) -> None:
        """Ask for the items of one call after the other, and at once for those of them that are missing."""
        while not self._reason and (items := waiting.take(batch.planner.size)):
            response = await execute(batch, BatchRequest.of(items), self._hear)
            shares = shares_of(response)
            calls, self._noted = self._asked.calls - self._noted, self._asked.calls
            await self._kept.used(shares, calls)
            self._sheet.share(shares)
            for row in rows_of(response):
                self._tally.failed += 1
                self._add(row)
            self._judge(response, max(GIVE_UP, concurrent))

    def _waits(self) -> bool:
        """Whether a limit of the model's, or its service, is waited for."""
        return self._asked.waiting > 0 or monotonic() < self._left_alone

    def _hear(self, event: Event) -> Awaitable[None] | None:
        if isinstance(event, Retrying) and isinstance(event.error, RateLimited):
            self._left_alone = max(self._left_alone, monotonic() + event.wait_s)
        elif isinstance(event, Used):
            self._tally.calls = self._before + self._asked.calls
            self._tally.usage = self._tally.usage + event.usage
            self._tally.cost = summed(self._tally.cost, event)
        elif isinstance(event, Item) and isinstance(event.value, ItemOutcome) and event.value.ok:
            return self._accept(outcome_row(event.value))
        return None

    async def _accept(self, row: dict[str, Any]) -> None:
        await self._kept.accept(row, self._source.digests[row["id"]].hex())
        self._tally.accepted += 1
        self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        self._sheet.add(row)
        if self._options.as_json:
            print(text_of(row), flush=True)

    def _judge(self, response: BatchResponse, most: int) -> None:
        """End the batch where calls do nothing but fail."""
        faults = [fault for outcome in response.outcomes for fault in outcome.faults]
        if any(outcome.ok for outcome in response.outcomes) or any(one.kind is not FaultKind.CALL for one in faults):
            self._failing = 0
            return
        self._failing += 1
        if self._failing >= most:
            self._reason = faults[-1].message if faults else "a limit was reached"

    def _conclude(self) -> int:
        tally = self._tally
        tally.calls = self._before + self._asked.calls
        if self._options.output is not None or not self._options.as_json:
            self._sheet.finish()
        if self._options.as_json:
            print(json.dumps({"report": tally.report}), flush=True)
        complain(tally.summary)
        if self._reason:
            complain(f"stopped, as nothing but failures came: {one_line(self._reason)}")
        if tally.accepted < tally.items:
            complain("the same command asks again for those without")
        return 0 if tally.accepted == tally.items else FAILED
