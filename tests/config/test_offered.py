"""Providers of other packages: found by entry point, made from a model's keys, refused with file, line and key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.config import Catalog, Settings, load
from penstock.errors import ConfigError
from penstock.llms import LLMS
from penstock.messages import ChatRequest
from penstock.run import execute

CODE = """
from penstock import BaseLlm


class Quiet(BaseLlm):
    provider = "shelf"

    async def generate_content_async(self, messages, **params):
        return repr(vars(self))


class Open(Quiet):
    def __init__(self, **options):
        self.options = options
        super().__init__(model=options.pop("model"))


class Passing(Quiet):
    def __init__(self, *, region="here", **options):
        super().__init__(**options)


class Placed(Quiet):
    def __init__(self, *, model, region):
        super().__init__(model=model)


class Fixed(Quiet):
    def __init__(self):
        super().__init__(model="fixed")
"""
POINTS = """
[penstock.llms]
quiet = penstock_shelf:Quiet
open = penstock_shelf:Open
passing = penstock_shelf:Passing
placed = penstock_shelf:Placed
fixed = penstock_shelf:Fixed
slip = penstock_shelf:Quite
gone = penstock_gone:Gone
paid = penstock_paid:Paid [money]
anthropic = penstock_shelf:Quiet
openai = penstock_shelf:Quiet
"""
SECRET = "sk-canary-0123456789"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers providers; what the registry remembers of them is forgotten afterwards."""
    folder = tmp_path / "site"
    metadata = folder / "penstock_shelf-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "penstock_shelf.py").write_text(CODE)
    (folder / "penstock_paid.py").write_text("import penstock_money\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: penstock-shelf\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "penstock_shelf", raising=False)
    monkeypatch.setattr(LLMS, "_values", dict(LLMS._values))
    return folder


def written(folder: Path, llm: str, keys: str = "") -> str:
    """A file with one model; `keys` begin on its line 4."""
    path = folder / "penstock.yaml"
    path.write_text(f"models:\n  - name: mine\n    llm: {llm}\n    {keys}\n", "utf-8")
    return str(path)


def catalog(folder: Path, llm: str, keys: str = "", env: Mapping[str, str] | None = None) -> Catalog:
    return Catalog(load(written(folder, llm, keys), env or {}), env or {})


async def test_an_installed_package_offers_a_provider(shelf: Path, tmp_path: Path) -> None:
    served = catalog(tmp_path, "quiet:q-1")
    reply = await execute(served.find("mine"), ChatRequest.of("hello", model="mine"))
    assert "'model': 'q-1'" in reply.content
    assert served.served[0].order == ("shelf:q-1",)
    assert [model.owned_by for model in await served.models()] == ["shelf"]


def test_a_service_is_made_by_penstock_whatever_is_offered_under_its_name(shelf: Path, tmp_path: Path) -> None:
    assert type(catalog(tmp_path, "openai:x").served[0].llm).__name__ == "Gpt"


ALL_KEYS = (
    "api_key: ${KEY}\n    base_url: http://127.0.0.1:9/v1\n    headers: {X-A: b}\n    params: {temperature: 0}\n"
    "    timeout_s: 5\n    idle_timeout_s: 4\n    connect_timeout_s: 3\n    retry: {attempts: 2}"
)


def test_a_provider_is_made_from_the_keys_that_are_written(shelf: Path, tmp_path: Path) -> None:
    made: Any = catalog(tmp_path, "open:o/1", ALL_KEYS, {"KEY": SECRET}).served[0].llm
    assert made.model == "o/1"
    assert made.options == {
        "api_key": SECRET,
        "base_url": "http://127.0.0.1:9/v1",
        "headers": {"x-a": "b"},
        "params": {"temperature": 0},
        "timeout_s": 5.0,
        "idle_timeout_s": 4.0,
        "connect_timeout_s": 3.0,
    }
    bare: Any = catalog(tmp_path, "open:o").served[0].llm
    assert bare.options == {}


REFUSED = {
    "key": ("quiet:q", "api_key: ${KEY}", 4, "api_key", "the provider 'quiet' does not take 'api_key': remove it"),
    "headers": ("quiet:q", "headers: {A: b}", 4, "headers", "does not take 'headers'"),
    "time": ("quiet:q", "retry: {}\n    timeout_s: 5", 5, "timeout_s", "does not take 'timeout_s'"),
    "handed on": ("passing:q", "params: {top_p: 1}", 4, "params", "the provider 'passing' does not take 'params'"),
    "needs more": ("placed:q", "", 3, "llm", "the provider 'placed' cannot be made: "),
    "no model": ("fixed:q", "", 3, "llm", "unexpected keyword argument 'model'"),
    "slip": ("slip:q", "", 3, "llm", "the provider 'slip' cannot be loaded: "),
    "gone": ("gone:q", "", 3, "llm", "penstock_gone"),
    "paid": ("paid:q", "", 3, "llm", "pip install 'penstock-shelf[money]'"),
    "model missing": ("quiet", "", 3, "llm", "name the model too, as in quiet:MODEL"),
    "unknown": ("quite:q", "", 3, "llm", "no service 'quite': services are anthropic, azure, deepseek, demo, "),
}


@pytest.mark.parametrize(("llm", "keys", "line", "key", "words"), REFUSED.values(), ids=REFUSED)
def test_a_provider_that_cannot_be_made_is_refused_with_line_and_key(
    shelf: Path, tmp_path: Path, llm: str, keys: str, line: int, key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, llm, keys), {"KEY": SECRET})
    error = caught.value
    assert (error.file, error.line, error.key) == (str(tmp_path / "penstock.yaml"), line, f"models[0].{key}")
    assert words in error.problem
    assert SECRET not in str(error)


def test_settings_without_a_file_are_refused_by_the_models_name(shelf: Path) -> None:
    settings = Settings.model_validate({"models": [{"name": "mine", "llm": "quiet:q", "timeout_s": 1.0}]})
    with pytest.raises(ConfigError, match="the model 'mine': timeout_s: the provider 'quiet' does not take"):
        Catalog(settings, {})


def test_check_shows_a_provider_of_another_package(shelf: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(shelf), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "check", "--config", written(tmp_path, "quiet:q")],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "shelf:q" in done.stdout
