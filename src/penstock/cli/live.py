"""How a run is shown while it goes on: a table on a terminal, a line for each change elsewhere, or JSON."""

from __future__ import annotations

import asyncio
import sys
from itertools import islice
from time import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from penstock.cli.tables import brief_totals, clock, table, totals, unicode
from penstock.cli.view import PENDING, Board, Row, one_line, said
from penstock.store.steps import Logged

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REFRESH_S = 0.2
AROUND = 3  # lines above and below the tasks, and the cursor's


class View(Protocol):
    """What shows a run, between `start` and `stop`, which may come in turns."""

    def start(self) -> None:
        """Begin to show."""
        ...

    def tell(self, entry: Logged) -> None:
        """Show an entry of the log."""
        ...

    def stop(self, *, keep: bool = False) -> None:
        """Give the terminal back, and `keep` there what was shown last."""
        ...


class Entries:
    """The log as JSON, an entry a line, on stdout."""

    def start(self) -> None:
        """Nothing comes before the first entry."""

    def tell(self, entry: Logged) -> None:
        """Print an entry."""
        print(msgspec.json.encode(entry).decode(), flush=True)

    def stop(self, *, keep: bool = False) -> None:
        """Nothing is open."""


class Lines:
    """A line on stderr for each task that starts or ends, with the seconds since the view began."""

    def __init__(self, board: Board, title: str) -> None:
        self._board, self._began = board, time()
        self._head = f"{one_line(title)}: {totals(board)}"

    def start(self) -> None:
        """Say once how it stands."""
        if self._head:
            print(self._head, file=sys.stderr, flush=True)
        self._head = ""

    def tell(self, entry: Logged) -> None:
        """Print what changed."""
        self.start()
        row = self._board.log(entry)
        if row is not None and row.status is not PENDING:
            seconds = max(0.0, entry.at - self._began)
            print(f"{seconds:7.1f} s  {said(row)}", file=sys.stderr, flush=True)

    def stop(self, *, keep: bool = False) -> None:
        """Nothing is open."""


class Screen:
    """The table on a terminal, drawn a few times a second, however much happens."""

    def __init__(self, board: Board, title: str, console: Console) -> None:
        self._board, self._title, self._console = board, title, console
        self._began = time()
        self._live: Live | None = None
        self._drawing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Draw from now on."""
        from rich.live import Live

        live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        live.start()
        self._live, self._drawing = live, asyncio.get_running_loop().create_task(self._draw(live))

    def tell(self, entry: Logged) -> None:
        """Take in what changed."""
        self._board.log(entry)

    def stop(self, *, keep: bool = False) -> None:
        """Draw no more."""
        live, self._live = self._live, None
        if live is None:
            return
        if self._drawing is not None:
            self._drawing.cancel()
        live.transient = not keep
        live.update(self.frame())
        live.stop()

    async def _draw(self, live: Live) -> None:
        while True:
            live.update(self.frame(), refresh=True)
            await asyncio.sleep(REFRESH_S)

    def frame(self) -> RenderableType:
        """What is to be seen now, no higher and no wider than the terminal."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now, board, size = time(), self._board, self._console.size
        top = Table.grid(padding=(0, 2, 0, 0), expand=True)
        top.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, size.width // 3))
        top.add_column(no_wrap=True)
        top.add_column(ratio=1)
        top.add_column(no_wrap=True)
        tone = "red" if board.troubles else "green"
        bar = ProgressBar(len(board.rows) or 1, board.ended, complete_style=tone, finished_style=tone)
        top.add_row(
            Text(one_line(self._title), "bold"), clock(now - self._began), bar, f"{board.ended}/{len(board.rows)}"
        )
        rows = shown(board, size.height - AROUND)
        body = [table(rows, self._console, now=now)] if rows else []
        below = totals(board)
        if len(below) > size.width:
            below = brief_totals(board, fancy=unicode(self._console))
        return Group(top, *body, Text(below, no_wrap=True, overflow="ellipsis"))


def shown(board: Board, room: int) -> list[Row]:
    """The rows there is room for: all, else those that run, and then those that failed last."""
    if len(board.rows) <= room:
        return [*board.rows.values()]
    some = [*islice(board.running.values(), max(0, room))]
    return [*some, *islice(reversed(board.troubles.values()), max(0, room - len(some)))]


def view_of(board: Board, title: str, *, as_json: bool) -> View:
    """What fits where the output goes: JSON if it is asked for, the table on a terminal, else lines."""
    if as_json:
        return Entries()
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return Screen(board, title, console)
    return Lines(board, title)
