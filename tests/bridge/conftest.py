"""The LiteLLM bridge: `make bridge` tests it where its package is installed, `make test` passes it by."""

from __future__ import annotations

from collections.abc import Generator
from importlib.util import find_spec

import pytest

from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as running

collect_ignore_glob = [] if find_spec("litellm") else ["test_*.py"]


@pytest.fixture
def upstream() -> Generator[Upstream]:
    with running() as started:
        yield started
