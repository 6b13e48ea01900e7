"""How far a batch is, as `penstock batch` shows it: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from time import monotonic
from typing import TYPE_CHECKING, Any

from penstock.cli.batch_items import Share
from penstock.cli.view import money
from penstock.config.batches import cost_row, usage_row
from penstock.messages import Usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

REFRESH_S, LINE_S = 0.2, 5.0
BAR = 30
"""Columns of a bar, where the terminal has them."""


def _no() -> bool:
    return False


@dataclass(slots=True)
class Tally:
    """How far a batch is; `waiting()` says whether nothing but a rate limit keeps a call from starting."""

    items: int
    accepted: int = 0
    failed: int = 0
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)
    before: int = 0
    began: float = field(default_factory=monotonic)
    waiting: Callable[[], bool] = _no

    def add(self, share: Share) -> None:
        """Count what an item used before this process."""
        self.usage = self.usage + share.usage
        self.cost = None if self.cost is None or share.cost is None else self.cost + Decimal(share.cost)

    @property
    def ended(self) -> int:
        """The items that have ended, with a value or without."""
        return self.accepted + self.failed

    @property
    def count(self) -> str:
        """How many have ended."""
        return f"{self.ended:,}/{self.items:,}"

    @property
    def going(self) -> list[str]:
        """What is known while it goes on, in the order of what matters."""
        left = (self.items - self.ended) / rate if (rate := self._rate(self.ended)) else 0
        facts = [self._failed, "waiting for the rate limit" if self.waiting() else ""]
        facts += [f"{left:,.0f} s left" if left >= 1 else "", *self._used]
        return [fact for fact in facts if fact]

    @property
    def summary(self) -> str:
        """What became of it."""
        open_items = self.items - self.ended
        asked = f"{open_items:,} {'was' if open_items == 1 else 'were'} never asked" if open_items else ""
        facts = [self._failed, asked, *self._used]
        return f"{self.accepted:,} of {self.items:,} items have values: {', '.join(fact for fact in facts if fact)}"

    @property
    def report(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        counts = {"items": self.items, "accepted": self.accepted, "failed": self.failed}
        counts |= {"not_asked": self.items - self.ended, "calls": self.calls}
        return {**counts, "usage": usage_row(self.usage), "cost_usd": cost_row(self.cost)}

    @property
    def _failed(self) -> str:
        return f"{self.failed:,} failed" if self.failed else ""

    @property
    def _used(self) -> Iterable[str]:
        rate = self._rate(self.accepted)
        yield f"{self.calls:,} call{'s' * (self.calls != 1)}"
        yield f"{self.usage.total:,} tokens"
        yield money(self.cost)
        yield f"{rate:,.1f} items/s" if rate else ""

    def _rate(self, ended: int) -> float:
        return (ended - self.before) / max(monotonic() - self.began, 1e-9)


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
            tally = self._tally
            said = ", ".join((f"{tally.ended:,} of {tally.items:,} items", *tally.going))
            print(f"{self._title}: {said}", file=sys.stderr, flush=True)


class Bar:
    """A progress bar on the terminal, in one line."""

    def __init__(self, tally: Tally, progress: Progress, room: Callable[[], int]) -> None:
        self._tally, self._progress, self._room = tally, progress, room
        self._task = progress.add_task("", total=tally.items, count=tally.count, said="")
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
        said = fitting(self._tally.going, self._room())
        count = self._tally.count
        self._progress.update(self._task, completed=self._tally.ended, count=count, said=said, refresh=True)


def fitting(facts: Iterable[str], room: int) -> str:
    """As many of the facts as there is room for."""
    said = ""
    for fact in facts:
        more = f"{said}, {fact}" if said else fact
        if len(more) > room:
            break
        said = more
    return said


def view_of(tally: Tally, title: str) -> Lines | Bar:
    """What fits where the output goes: a bar on a terminal, else lines."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return Lines(tally, title)
    return bar_of(tally, console)


def bar_of(tally: Tally, console: Console) -> Bar:
    """A bar on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn

    widest = len(f"{tally.items:,}/{tally.items:,}")
    width = max(min(BAR, console.width - widest - 3), 1)
    count = TextColumn(f"{{task.fields[count]:>{widest}}}", markup=False)
    columns = (BarColumn(width), count, TextColumn("{task.fields[said]}", markup=False))
    progress = Progress(*columns, console=console, auto_refresh=False)
    return Bar(tally, progress, lambda: console.width - width - widest - 3)
