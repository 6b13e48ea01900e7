"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""

from __future__ import annotations

import sys
from io import TextIOWrapper


def main() -> None:
    """Run the command line on the arguments of this process, and exit."""
    if sys.argv[1:] == ["--version"]:  # the one answer that needs no command line
        print(f"penstock {version()}")
        return
    from penstock.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # whatever has to be said must not end in a traceback
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="penstock")


def version() -> str:
    """The installed version of Penstock."""
    from importlib import metadata

    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:  # run from its sources
        return "(not installed)"
