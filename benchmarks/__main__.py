"""Runs the named benchmarks, or all of them: `python -m benchmarks contract start`; `--quick` takes seconds."""

from __future__ import annotations

import platform
import sys
from importlib import import_module

from rich.console import Console

from benchmarks.table import show

BENCHMARKS = ("batch", "contract", "gateway", "start", "tasks", "tools", "wires")
QUICK = "--quick"


def main(arguments: list[str]) -> int:
    """Measure and print one table for each name; 2 when a name is unknown."""
    names = [argument for argument in arguments if argument != QUICK]
    console = Console(highlight=False)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        console.print(f"no benchmark is called {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
        return 2
    console.print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}", style="dim")
    for name in names or BENCHMARKS:
        console.print(f"measuring {name} ...", style="dim")
        benchmark = import_module(f"benchmarks.{name}")
        show(console, benchmark.TITLE, benchmark.measure(quick=QUICK in arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
