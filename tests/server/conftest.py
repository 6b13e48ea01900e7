"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.upstream import upstream as run_upstream
from tests.server.gateway import Calm, gateway


@pytest.fixture(scope="module")
def calm() -> Iterator[Calm]:
    """One server for the tests of a module."""
    with run_upstream() as upstream, gateway(upstream) as served:
        yield Calm(upstream, served)
