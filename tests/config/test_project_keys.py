"""A key that a service repeats is in no result, wherever the key was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.config import Catalog, Settings
from penstock.config.projects import make_tasks, open_engine
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import report_of
from penstock.tasks.task import AgentTask
from tests.rig.answers import Plain, Received
from tests.rig.upstream import Upstream, completion

KEY = "cnry-7f3aQ9zLx2Wm5TgH"
PIECES = [KEY[start : start + 8] for start in range(len(KEY) - 7)]
MODEL = {"name": "fast", "llm": "openai:m"}
PLAIN = {"name": "a", "model": "fast"}
OWN = {"name": "a", "provider": "openai", "model": "m"}
DOWN = {
    "name": "down",
    "llm": "openai:m",
    "api_key": "other-0123456789",
    "base_url": "http://127.0.0.1:9",
    "retry": {"attempts": 1},
}


def written(origin: str, url: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    """A configuration with the key in one place, and the environment of its process."""
    keyed, variables = {"api_key": KEY, "base_url": url}, {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}
    headers = {"X-Api-Key": KEY, "X-Title": "I was called"}
    places = {"deployments": [{"llm": "openai:n", **keyed}]}
    said: dict[str, tuple[dict[str, Any], Mapping[str, str]]] = {
        "the agent": ({"agents": [OWN | keyed]}, {}),
        "its model": ({"agents": [PLAIN], "models": [MODEL | keyed]}, {}),
        "a deployment": ({"agents": [PLAIN], "models": [MODEL | places]}, {}),
        "a fallback": (
            {"agents": [PLAIN | {"model": "down"}], "models": [DOWN | {"fallback": ["fast"]}, MODEL | keyed]},
            {},
        ),
        "a header": ({"agents": [PLAIN], "models": [MODEL | {"base_url": url, "headers": headers}]}, {}),
        "the environment": ({"agents": [OWN]}, variables),
        "the environment, no model": ({"agents": [PLAIN | {"model": "openai:m"}]}, variables),
    }
    return said[origin]


@pytest.mark.parametrize(
    "origin",
    [
        "the agent",
        "its model",
        "a deployment",
        "a fallback",
        "a header",
        "the environment",
        "the environment, no model",
    ],
)
async def test_row_c10_a_key_that_is_repeated_is_in_no_result(
    origin: str, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(received: Received) -> Plain:
        sent = received.headers.get("x-api-key") or received.headers["authorization"]
        return Plain(completion(f"I was called with {sent}."))

    upstream.default = say
    said, env = written(origin, upstream.base_url)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings = Settings.model_validate({**said, "store": {"dir": str(tmp_path)}})
    executor = make_tasks(settings, Catalog(settings, env), env=env)
    spec = ProjectSpec(name="p", tasks=(AgentTask(id="t", description="Say hello.", agent="a"),))
    async with open_engine(settings, executor) as engine:
        await engine.start("p", "project", spec.payload())
        report = report_of(await engine.wait("p"))
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode("latin-1")
    assert report.results[0].output in (
        f"I was called with {one}." for one in ("***", "Bearer ***", "Bearer [key of a]")
    )
    assert not [piece for piece in PIECES if piece in f"{report}{stored}"]
