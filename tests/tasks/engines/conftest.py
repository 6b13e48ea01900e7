"""Each engine there is, with step functions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.tasks.engines import Engine
from tests.tasks.engines.rig import ENGINES, Steps


@pytest.fixture(params=list(ENGINES))
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    engine = ENGINES[request.param](tmp_path)
    yield engine
    await engine.aclose()


@pytest.fixture
def steps(engine: Engine) -> Steps:
    return Steps(engine)
