"""Tools that tests call in a process of its own."""

from __future__ import annotations

from penstock.tools.function import tool
from tests.tools.process_functions import spin


@tool(run_in="process", timeout_s=20)
def triple(value: int) -> int:
    """A tool, under whose name a process finds its function."""
    return value * 3


@tool(run_in="process", timeout_s=2)
def spins(notes: str) -> None:
    """A tool that never returns."""
    spin(notes)
