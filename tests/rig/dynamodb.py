"""Two servers that speak DynamoDB's wire: moto from a wheel, dynalite from npm."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path

from tests.rig.serving import HOST, running

FOLDER = Path(__file__).with_name("dynalite")


def dynalite_problem() -> str:
    """Why dynalite cannot be run here, or an empty text."""
    if (FOLDER / "node_modules" / "dynalite").is_dir():
        return ""
    return "dynalite is not installed; run `npm install --prefix tests/rig/dynalite`"


@contextlib.contextmanager
def serve_moto() -> Generator[str]:
    """Runs moto's server; yields its address."""
    serve = "import sys, moto.server; moto.server.main(sys.argv[1:])"
    with running([sys.executable, "-c", serve, "-H", HOST, "-p", "{port}"], ready="Running on") as process:
        yield process.base_url


@contextlib.contextmanager
def serve_dynalite() -> Generator[str]:
    """Runs dynalite; yields its address."""
    script = str(FOLDER / "node_modules" / "dynalite" / "cli.js")
    at_once = ["--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0"]
    with running(["node", script, "--host", HOST, "--port", "{port}", *at_once], ready="listening at") as process:
        yield process.base_url
