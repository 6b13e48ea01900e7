"""`penstock plan`: what is shown and saved of a proposed project, and that nothing runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.cli.plan import plan
from penstock.config import load
from penstock.config.projects import read_project
from penstock.errors import BadAnswer, NotFound, UsageError
from penstock.llms import LLMS
from penstock.testing import ScriptedLlm
from tests.cli.conftest import PROVIDER

GOAL = "Open a shop for ${X}. Then close it."


class Sly(ScriptedLlm):
    """A model that answers with what steers a terminal, and with a reference to a variable."""

    def __init__(self, *, model: str = "") -> None:
        tasks = [{"id": "a", "title": "Go \x1b[31m${HOME}\nnow", "depends_on": []}]
        super().__init__("no plan" if model == "useless" else json.dumps({"tasks": tasks}), model=model)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.endswith(PROVIDER)]:
        monkeypatch.delenv(name)
    LLMS.register("sly", Sly)
    yield
    LLMS.unregister("sly")


def propose(model: str | None = None, config: str | None = None, output: str | None = None, **flags: Any) -> int:
    return plan(GOAL, model=model, config=config, output=output, as_json=flags.get("as_json", False))


def test_a_plan_is_shown_and_saved_and_can_be_run_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert propose() == 0
    shown = capsys.readouterr().out
    assert "open-a-shop-for-x-then" in shown
    assert "Prepare: Open a shop" in shown
    assert shown.splitlines()[-1] == "saved as project.yaml; nothing has run yet. To run it: penstock run project.yaml"
    spec, (agent,) = read_project("project.yaml", {})
    assert (spec.goal, len(spec.tasks)) == (GOAL, 2)
    assert (agent.name, agent.provider) == ("assistant", "demo")
    assert (tmp_path / "project.yaml").read_text("utf-8") in shown
    assert [one.name for one in tmp_path.iterdir()] == ["project.yaml"]


def test_configured_agents_stay_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "models: [{name: fast, llm: demo}]\nagents: [{name: ana, model: fast}]"
    (tmp_path / "my shop.yaml").write_text(text, "utf-8")
    propose(config="my shop.yaml", output="plan.yaml")
    assert "penstock run plan.yaml --config 'my shop.yaml'" in capsys.readouterr().out
    spec, agents = read_project("plan.yaml", {}, settings=load("my shop.yaml", {}))
    assert agents == ()
    assert {task.agent for task in spec.tasks} == {"ana"}


def test_a_configured_model_without_agents_works_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("models: [{name: first, llm: demo}, {name: fast, llm: demo}]", "utf-8")
    propose("fast")
    _, (agent,) = read_project("project.yaml", {}, settings=load(None, {}))
    assert (agent.model, agent.provider) == ("fast", "")


def test_as_json_nothing_is_saved_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    propose(as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["command"]) == (None, None)
    assert not [*tmp_path.iterdir()]
    propose(as_json=True, output="p.yaml")
    said = json.loads(capsys.readouterr().out)
    assert (said["file"], said["command"]) == ("p.yaml", "penstock run p.yaml")
    assert yaml.safe_load((tmp_path / "p.yaml").read_text("utf-8")) == said["project"]


def test_a_file_that_is_there_stays_and_no_model_is_asked(tmp_path: Path) -> None:
    (tmp_path / "project.yaml").write_text("mine", "utf-8")
    with pytest.raises(UsageError, match=r"'project\.yaml' is there already: name another file with -o"):
        propose("no-such-model", config="no-such-file.yaml")
    assert (tmp_path / "project.yaml").read_text("utf-8") == "mine"


def test_a_file_that_cannot_be_written_is_told() -> None:
    with pytest.raises(UsageError, match=r"'no/where\.yaml' cannot be written: No such file"):
        propose(output="no/where.yaml")


def test_a_models_text_steers_neither_terminal_nor_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "penstock.yaml").write_text("models: [{name: m, llm: 'sly:x'}]", "utf-8")
    propose()
    assert "\x1b" not in capsys.readouterr().out
    spec, _ = read_project("project.yaml", {}, settings=load(None, {}))
    assert spec.tasks[0].title == "Go \x1b[31m${HOME}\nnow"


def test_a_model_that_gives_no_plan_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("models: [{name: m, llm: 'sly:useless'}]", "utf-8")
    with pytest.raises(BadAnswer, match="try another model"):
        propose()
    assert not (tmp_path / "project.yaml").exists()
    with pytest.raises(NotFound, match="serves 'm'"):
        propose("zzz")
