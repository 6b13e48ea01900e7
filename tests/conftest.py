"""Fixtures with the real parts of `tests.rig`, and `require` for what no Python wheel brings."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.rig import dynamodb, mariadb
from tests.rig.node import NodeSdk
from tests.rig.otlp import Receiver, otlp_receiver
from tests.rig.postgres import Postgres, serve_postgres
from tests.rig.tiny_llm import TinyLlm, serve_tiny
from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream

# What was compiled is kept, also where the environment says not to: a hundred child processes would compile it again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

NEEDS = "needs "


def require(name: str, *, problem: str | None = None) -> None:
    """Skips the test when `name` is not here, or fails it when `PENSTOCK_REQUIRE` (comma-separated) names it.

    A command of that name on the PATH is looked for; for anything else, give the `problem`, or "" when there is none.
    """
    if problem is None:
        problem = "" if shutil.which(name) else f"no command {name!r} on the PATH"
    if not problem:
        return
    if name in os.environ.get("PENSTOCK_REQUIRE", "").split(","):
        pytest.fail(f"{problem}, and PENSTOCK_REQUIRE asks for it", pytrace=False)
    pytest.skip(f"{NEEDS}{name} ({problem})")


def settle() -> None:
    """Takes what is there to stay out of the collector's sight: a full collection takes 5 ms then, and 200 before."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Settles what was loaded."""
    settle()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Settles, between folders, what the tests of one have loaded, and pytest's reports of them."""
    if nextitem is not None and nextitem.path.parent != item.path.parent:
        settle()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says aloud what was not tested, in this process or in others that it started."""
    skipped = (str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ()))
    for said in sorted({reason.removeprefix("Skipped: ") for reason in skipped}):
        if said.startswith(NEEDS):
            name = said.removeprefix(NEEDS).partition(" ")[0]
            terminalreporter.write_line(f"NOT TESTED: what {said}; PENSTOCK_REQUIRE={name} makes it fail", yellow=True)


@pytest.fixture(scope="session")
def tiny_llm() -> Iterator[TinyLlm]:
    """llama.cpp's own server on a tiny model."""
    with serve_tiny() as served:
        yield served


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A scriptable upstream."""
    with run_upstream() as served:
        yield served


@pytest.fixture
def otlp() -> Iterator[Receiver]:
    """An OTLP receiver."""
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def node_sdk() -> Iterator[NodeSdk]:
    """The official Node SDK; skips without Node or without `npm install` in `tests/rig/node_sdk`."""
    require("node")
    sdk = NodeSdk()
    require("node", problem=sdk.problem())
    yield sdk
    sdk.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    with serve_postgres() as served:
        yield served


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[mariadb.MariaDb]:
    """A MariaDB server; skips where the system has none."""
    require("mariadb", problem=mariadb.problem())
    with mariadb.serve_mariadb() as served:
        yield served


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of moto's DynamoDB."""
    with dynamodb.serve_moto() as address:
        yield address


@pytest.fixture(scope="session")
def dynalite() -> Iterator[str]:
    """The address of dynalite; skips without Node or without `npm install` in `tests/rig/dynalite`."""
    require("node")
    require("dynalite", problem=dynamodb.dynalite_problem())
    with dynamodb.serve_dynalite() as address:
        yield address
