"""Tasks as lines of a table; what does not fit the width is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import time
from typing import TYPE_CHECKING, NamedTuple

from penstock.cli.view import Board, Row, money, one_line, worded
from penstock.tasks.results import ExecutionStatus

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAMES_PER_S = 5
GAP = "  "
CUT, PLAIN_CUT = "…", "~"


class Look(NamedTuple):
    """How a status is drawn, where there is Unicode and where there is not; its colour, and that of its words."""

    symbol: str
    plain: str
    style: str
    words: str = "dim"


LOOKS: Mapping[ExecutionStatus, Look] = {
    ExecutionStatus.SUCCESS: Look("✓", "+", "green"),
    ExecutionStatus.IN_PROGRESS: Look("●", ">", "cyan", ""),
    ExecutionStatus.FAILED: Look("✗", "x", "bold red", "red"),
    ExecutionStatus.UNKNOWN: Look("?", "?", "bold magenta", "magenta"),
    ExecutionStatus.CANCELLED: Look("⊘", "-", "yellow"),
    ExecutionStatus.BLOCKED: Look("!", "!", "yellow"),
    ExecutionStatus.PENDING: Look("·", ".", "dim"),
}


class Column(NamedTuple):
    """A column of cells that are at most so wide, drawn where the terminal is at least `since` wide."""

    title: str
    since: int
    most: int
    right: bool = True


COLUMNS = (
    Column("status", 120, 11, right=False),
    Column("agent", 100, 20, right=False),
    Column("time", 0, 8),
    Column("tries", 80, 5),
    Column("tokens", 60, 10),
    Column("cost", 72, 10),
)


def table(rows: Sequence[Row], console: Console, *, head: bool = False, now: float | None = None) -> Text:
    """Rows as lines as wide as the console; those that run are drawn as they are `now`, where it is live."""
    from rich.cells import cell_len
    from rich.text import Text

    at, fancy, width = time() if now is None else now, unicode(console), console.width
    told = [_cells(row, at) for row in rows]
    wide_enough = [one for one in COLUMNS if width >= one.since and any(cells[one.title] for cells in told)]
    columns = [Column("task", 0, max(8, width // 4), right=False), *wide_enough]
    cells = [[column.title for column in columns]] if head else []
    cells += [[one[column.title] for column in columns] for one in told]
    widths = [
        max(min(column.most, max(map(cell_len, texts))), 6 if column.right else 0)
        for column, texts in zip(columns, zip(*cells, strict=True), strict=True)
    ]
    room = max(0, width - 1 - sum(widths) - len(GAP) * (len(widths) + 1))
    made = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(cells):
        row = rows[number - head] if number >= head else None
        fitted = GAP.join(
            fit(text, wide, right=column.right) if place else middled(text, wide)
            for place, (text, wide, column) in enumerate(zip(line, widths, columns, strict=True))
        )
        fitted = fitted if fancy else fitted.replace(CUT, PLAIN_CUT)
        if row is None:
            made.append(f" {GAP}{fitted}{GAP}output", "bold")
        else:
            look = LOOKS[row.status]
            made.append(symbol_of(row.status, fancy=fancy, now=now) + GAP, look.style)
            made.append(fitted + GAP, "dim" if row.status is ExecutionStatus.PENDING else "")
            words = _words(row, room)
            made.append(words if fancy else words.replace(CUT, PLAIN_CUT), look.words)
        made.append("\n" if number + 1 < len(cells) else "")
    return made


def fit(text: str, width: int, *, right: bool = False, end: bool = False) -> str:
    """A text of just this width: filled up, on the left for a number; or cut, and its `end` kept if that matters."""
    from rich.cells import cell_len, set_cell_size

    missing = width - cell_len(text)
    if missing >= 0:
        return " " * missing + text if right else text + " " * missing
    if width < 2:
        return set_cell_size(text, width)
    if not end:
        return set_cell_size(text, width - 1) + "…"
    while cell_len(text) > width - 1:
        text = text[1 + (cell_len(text) - width) // 2 :]
    return "…" + text + " " * (width - 1 - cell_len(text))


def middled(text: str, width: int) -> str:
    """A text of just this width: filled up, or without its middle, as what differs often stands at the end."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width or width < 5:
        return fit(text, width)
    first = width // 2
    return set_cell_size(text, first) + fit(text, width - first, end=True)


def symbol_of(status: ExecutionStatus, *, fancy: bool, now: float | None = None) -> str:
    """The symbol of a status; at a time `now`, that of a running one turns."""
    if fancy and status is ExecutionStatus.IN_PROGRESS and now is not None:
        return SPINNER[int(now * FRAMES_PER_S) % len(SPINNER)]
    return LOOKS[status].symbol if fancy else LOOKS[status].plain


def unicode(console: Console) -> bool:
    """Whether symbols can be printed there."""
    return console.encoding.lower().startswith("utf")


def clock(seconds: float | None) -> str:
    """A time as it is read: 4.2 s, 2:05, 1:02:05."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def totals(board: Board) -> str:
    """How many tasks stand how, and what all of them used."""
    return GAP.join([", ".join(f"{count} {worded(status)}" for status, count in counted(board)), *used(board)])


def brief_totals(board: Board, *, fancy: bool) -> str:
    """The same for a narrow terminal."""
    return GAP.join([*(f"{symbol_of(status, fancy=fancy)} {count}" for status, count in counted(board)), *used(board)])


def counted(board: Board) -> Iterator[tuple[ExecutionStatus, int]]:
    """How many tasks have each status that some have."""
    return ((status, board.counts[status]) for status in LOOKS if board.counts[status])


def used(board: Board) -> list[str]:
    """The tokens and the money of all tasks, where there are any."""
    tokens, cost = board.used()
    return [text for text in (f"{tokens:,} tokens" if tokens else "", money(cost)) if text]


def _cells(row: Row, now: float) -> dict[str, str]:
    return {
        "task": one_line(row.task),
        "status": worded(row.status),
        "agent": one_line(row.agent),
        "time": clock(row.lasts(now)),
        "tries": str(row.attempts) if row.attempts > 1 else "",
        "tokens": f"{row.tokens:,}" if row.tokens else "",
        "cost": money(row.cost),
    }


def _words(row: Row, width: int) -> str:
    """What is to be said of a task: of one that runs, the end of its text."""
    running = row.status is ExecutionStatus.IN_PROGRESS
    return fit(one_line(row.words), width, end=running).rstrip()
