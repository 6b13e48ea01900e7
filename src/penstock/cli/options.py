"""The options that several commands have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def _importable(config: str | None) -> str | None:
    """Let functions that are tools be imported from the folder of the configuration, else from the current one."""
    for folder in (str(Path.cwd()), str(Path(config or "penstock.yaml").absolute().parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return config


Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", callback=_importable, help="default: penstock.yaml where it exists"),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
