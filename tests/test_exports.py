"""The face of the package: the names a user imports, and what importing them costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import penstock
from penstock.events import Event
from penstock.outcome import Outcome
from penstock.root import Listener
from penstock.run import LOCAL

FACE = Path(penstock.__file__)
ALIASES = (Event, Listener, Outcome, LOCAL)
HEAVY = {"aiohttp", "fastapi", "httptools", "opentelemetry", "pydantic", "rich", "typer", "uvicorn", "uvloop", "yaml"}
WATCH = """
import sys
done = []
def note(name, arguments):
    if name.startswith(("socket.", "subprocess.", "os.system")):
        done.append(name)
    elif name == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        done.append(f"{name} {arguments[0]}")
sys.dont_write_bytecode = True
sys.addaudithook(note)
before = {*sys.modules}
import penstock
print(*done, *{name.partition(".")[0] for name in {*sys.modules} - before}, sep="\\n")
"""


def bound_names() -> set[str]:
    """Every public name that the face binds, those for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FACE.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("penstock"):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_all_names_what_is_there_and_nothing_else() -> None:
    assert list(penstock.__all__) == sorted(penstock.__all__, key=lambda name: (not name.isupper(), name))
    assert set(penstock.__all__) == bound_names()
    assert len(set(penstock.__all__)) == len(penstock.__all__)


@pytest.mark.parametrize("name", penstock.__all__)
def test_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    found = getattr(penstock, name)
    if any(found is alias for alias in ALIASES):
        return
    assert found.__name__ == name
    assert inspect.getdoc(found)
    assert (found.__doc__ or "").strip()


def test_a_star_import_gives_every_name() -> None:
    names: dict[str, object] = {}
    exec("from penstock import *", names)
    assert set(penstock.__all__) <= set(names)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'penstock' has no attribute 'Claud'"):
        _ = penstock.Claud


def test_importing_loads_nothing_heavy_opens_nothing_and_writes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCH],
        capture_output=True,
        text=True,
        check=True,
        cwd=FACE.parents[2],
        env={"PYTHONPATH": str(FACE.parents[1])},
    ).stdout.split("\n")
    assert "penstock" in done
    assert not [line for line in done if line in HEAVY or line.startswith(("socket.", "subprocess.", "os.", "open "))]
