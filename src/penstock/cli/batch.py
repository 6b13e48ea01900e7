"""`penstock batch`: a value for each item of a file, few calls, shown as it goes; killed, it goes on where it was."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from penstock.batch.batch import Batch
from penstock.batch.items import BatchRequest, ItemId
from penstock.batch.outcomes import BatchResponse, FaultKind, ItemOutcome
from penstock.batch.plan import Plan
from penstock.batch.planner import Planner
from penstock.batch.schema import ItemSchema
from penstock.cli.batch_items import ACCEPTED, JOURNAL, Kept, Share, Sheet, Source, Waiting, rows_of, shares_of, text_of
from penstock.cli.chat import usual_model
from penstock.cli.ends import FAILED, complain
from penstock.cli.run import stoppable
from penstock.cli.view import money, one_line
from penstock.config import Catalog, Settings, load
from penstock.config.batches import Asked, cost_row, outcome_row, usage_row
from penstock.errors import UsageError
from penstock.events import Event, Item, Used, summed
from penstock.messages import Usage, is_object
from penstock.run import execute
from penstock.store.journal import Journal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

REFRESH_S, LINE_S = 0.2, 5.0
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
    config: str | None = None
    as_json: bool = False
    new: bool = False


def run_batch(items: str, options: Options) -> int:
    """Get the values of all items of a file, and show it; returns the exit code. Raises `UsageError`."""
    source = Source.of(items)
    output = options.output
    if output is not None and Path(output).exists() and Path(output).samefile(items):
        raise UsageError(f"{output!r} is the file of the items: name another one with -o")
    schema = ItemSchema(_schema(options.schema), acts=options.acts or ())
    instructions = _text(options.instructions)
    settings = load(options.config, os.environ)
    catalog = Catalog(settings, os.environ)

    async def work() -> int:
        model = options.model or await usual_model(catalog)
        asked = Asked(catalog, model, patience_s=PATIENCE_S)
        planner = Planner(options.size, latency_target_s=options.latency_s)
        batch = Batch(asked, schema, instructions=instructions, planner=planner, concurrent=1, model=model)
        spec = {"items": source.digest, "schema": schema.text, "instructions": instructions, "model": model}
        async with Journal(_folder(settings) / JOURNAL) as journal:
            kept = await Kept.begun(journal, spec, new=options.new)
            going = Going(source, kept, asked, as_json=options.as_json, output=output)
            return await going.done(batch, options.concurrent)

    return stoppable(work())


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


@dataclass(slots=True)
class Tally:
    """How far a batch is."""

    items: int
    accepted: int = 0
    failed: int = 0
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)
    before: int = 0
    began: float = field(default_factory=monotonic)

    def add(self, share: Share) -> None:
        """Count what an item used before this process."""
        self.usage = self.usage + share.usage
        self.cost = None if self.cost is None or share.cost is None else self.cost + Decimal(share.cost)

    def __str__(self) -> str:
        seconds = max(monotonic() - self.began, 1e-9)
        ended = self.accepted + self.failed
        rate = (ended - self.before) / seconds
        left = (self.items - ended) / rate if rate else None
        facts = [f"{self.failed:,} failed" if self.failed else "", f"{self.calls:,} call{'s' * (self.calls != 1)}"]
        facts += [f"{self.usage.total:,} tokens", money(self.cost), f"{rate:,.1f} items/s" if rate else ""]
        facts += [f"{left:,.0f} s left" if left else ""]
        return ", ".join(fact for fact in facts if fact)

    @property
    def report(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        counts = {"items": self.items, "accepted": self.accepted, "failed": self.items - self.accepted}
        return {**counts, "calls": self.calls, "usage": usage_row(self.usage), "cost_usd": cost_row(self.cost)}


class Going:
    """One run of a batch over a file: what is accepted is stored first, then counted and written."""

    def __init__(self, source: Source, kept: Kept, asked: Asked, *, as_json: bool, output: str | None) -> None:
        self._source, self._kept, self._asked = source, kept, asked
        self._sheet, self._as_json, self._output = Sheet(output), as_json, output
        self._tally = Tally(source.count)
        self._done: set[ItemId] = set()
        self._before = self._noted = 0
        self._failing, self._reason = 0, ""

    async def done(self, batch: Batch, concurrent: int) -> int:
        """Ask for what is missing, show it, and write all that there is; the exit code."""
        over = False
        try:
            await self._restore()
            shown = view_of(self._tally, str(self._source.path))
            try:
                await self._all(batch, concurrent)
                over = True
            finally:
                await shown.stop()
                if not over:
                    complain(f"{self._tally.accepted:,} of {self._tally.items:,} items have their values and are kept")
            return self._conclude()
        finally:
            self._sheet.close()

    async def _restore(self) -> None:
        """Take in what was stored before."""
        async for kind, value in self._kept.told():
            if kind == ACCEPTED:
                self._add(value)
                self._done.add(value["id"])
            else:
                shares = [(name, Share(*share)) for name, share in value["shares"]]
                self._sheet.share(shares)
                self._before += value["calls"]
                for _, share in shares:
                    self._tally.add(share)
        self._tally.accepted = self._tally.before = len(self._done)
        self._tally.calls = self._before

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

    def _hear(self, event: Event) -> Awaitable[None] | None:
        if isinstance(event, Used):
            self._tally.calls = self._before + self._asked.calls
            self._tally.usage = self._tally.usage + event.usage
            self._tally.cost = summed(self._tally.cost, event)
        elif isinstance(event, Item) and isinstance(event.value, ItemOutcome) and event.value.ok:
            return self._accept(outcome_row(event.value))
        return None

    async def _accept(self, row: dict[str, Any]) -> None:
        await self._kept.accept(row)
        self._tally.accepted += 1
        self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        self._sheet.add(row)
        if self._as_json:
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
        if self._output is not None or not self._as_json:
            self._sheet.finish()
        if self._as_json:
            print(json.dumps({"report": tally.report}), flush=True)
        complain(f"{tally.accepted:,} of {tally.items:,} items have values: {tally}")
        if self._reason:
            complain(f"stopped, as nothing but failures came: {one_line(self._reason)}")
        if tally.accepted < tally.items:
            complain("the same command asks again for those without")
        return 0 if tally.accepted == tally.items else FAILED


class Lines:
    """A line on stderr every few seconds, for those who have no terminal."""

    def __init__(self, tally: Tally, title: str) -> None:
        self._tally, self._title = tally, title
        self._telling = asyncio.ensure_future(self._tell())

    async def stop(self) -> None:
        """Tell no more."""
        self._telling.cancel()
        await asyncio.wait((self._telling,))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(LINE_S)
            ended = self._tally.accepted + self._tally.failed
            print(
                f"{self._title}: {ended:,} of {self._tally.items:,} items, {self._tally}", file=sys.stderr, flush=True
            )


class Bar:
    """A progress bar on the terminal."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        self._tally, self._progress = tally, progress
        self._task = progress.add_task("", total=tally.items, said="")
        progress.start()
        self._drawing = asyncio.ensure_future(self._draw())

    async def stop(self) -> None:
        """Give the terminal back, with the bar as it is."""
        self._drawing.cancel()
        await asyncio.wait((self._drawing,))
        self._update()
        self._progress.stop()

    async def _draw(self) -> None:
        while True:
            self._update()
            await asyncio.sleep(REFRESH_S)

    def _update(self) -> None:
        ended = self._tally.accepted + self._tally.failed
        self._progress.update(self._task, completed=ended, said=str(self._tally), refresh=True)


def view_of(tally: Tally, title: str) -> Lines | Bar:
    """What fits where the output goes: a bar on a terminal, else lines."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return Lines(tally, title)
    return bar_of(tally, console)


def bar_of(tally: Tally, console: Console) -> Bar:
    """A bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}", markup=False))
    return Bar(tally, Progress(*columns, console=console, auto_refresh=False))
