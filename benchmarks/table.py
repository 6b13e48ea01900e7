"""A figure beside its floor and its target, and the table that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; `floor` is what the same run measured without Penstock, `target` what it may be at most."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    target: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the value exceeds its target."""
        return self.target is not None and self.value > self.target


def show(console: Console, title: str, figures: Iterable[Figure]) -> None:
    """Print the figures as a table; a missed target is red and says so."""
    from rich.table import Table  # here, as a measured process that imports `Figure` must not pay for it

    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("measured", "floor", "ratio", "target"):
        table.add_column(heading, justify="right")
    for figure in figures:
        ratio = f"{figure.value / figure.floor:.1f}" if figure.floor else ""
        target = "" if figure.target is None else f"<= {_short(figure.target)}" + " missed" * figure.missed
        floor = "" if figure.floor is None else _short(figure.floor)
        measured = f"{_short(figure.value)} {figure.unit}"
        table.add_row(figure.name, measured, floor, ratio, target, style="red" if figure.missed else None)
    console.print(table)


def _short(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
