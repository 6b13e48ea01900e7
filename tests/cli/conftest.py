"""Commands run in this process, which takes a tenth of the time of a process of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.app import app

PROVIDER = ("_API_KEY", "_BASE_URL", "_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in a folder, with no provider in the environment but those given."""

    def run(*arguments: str, folder: Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Done:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        for name in ("corner_shop", "corner_shop.tools"):
            sys.modules.pop(name, None)
        variables = {name: None for name in os.environ if name.endswith(PROVIDER)} | {"COLUMNS": "200", **(env or {})}
        runner = CliRunner(env=variables)
        done = runner.invoke(app, arguments, input=stdin, catch_exceptions=False, prog_name="penstock")
        return Done(done.exit_code, done.stdout, done.stderr)

    return run
