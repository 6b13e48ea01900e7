"""How a command ends badly: one line on stderr, and the exit code that goes with it."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

import typer

from penstock.errors import PenstockError, UsageError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


@contextmanager
def reported() -> Generator[None, None, None]:
    """Turn errors into a line on stderr and an exit code: 2 for wrong usage or configuration, else 1.

    An interrupt (130) and a reader who left (1) are typer's to end, without a word.
    """
    try:
        yield
    except PenstockError as error:
        complain(error.message if isinstance(error, UsageError) else f"{type(error).__name__}: {error.message}")
        raise typer.Exit(USAGE if isinstance(error, UsageError) else FAILED) from None


def complain(message: str) -> None:
    """Say a line on stderr."""
    print(f"penstock: {message}", file=sys.stderr, flush=True)
