"""`penstock record` and `penstock serve --replay`: what they say at start, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli.record import example, folders, prepare, replayed, said
from penstock.config import Catalog, Settings
from penstock.errors import ConfigError, StoreFailed
from penstock.llms.replay import Replay, recording
from penstock.messages import ChatRequest
from penstock.run import execute
from penstock.testing import ScriptedLlm
from tests.cli.test_commands import penstock


async def recorded(folder: Path, *prompts: str) -> Path:
    llm = ScriptedLlm("hello", policies=[recording(folder)])
    for prompt in prompts:
        await execute(llm, ChatRequest.of(prompt, model="fast", temperature=0))
    return folder


def of(**recordings: str) -> Settings:
    return Settings.model_validate({"recordings": recordings, "models": [{"name": "own", "llm": "demo"}]})


def test_the_command_line_replaces_both_folders() -> None:
    assert folders(None, None) is None
    assert folders("a", None) == {"record": "a", "replay": None}
    assert folders(None, "b") == {"record": None, "replay": "b"}


def test_what_is_recorded_is_said_and_its_folder_made(tmp_path: Path) -> None:
    settings = of(record=str(tmp_path / "new"))
    assert said(settings, Catalog(settings, {}))["records"].startswith(
        f"every exchange in {tmp_path / 'new'}: `penstock"
    )
    assert not (tmp_path / "new").exists(), "a catalog is also made to check a configuration"
    prepare(settings)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="nothing can be recorded in"):
        prepare(of(record=str(tmp_path / "file")))


async def test_what_is_replayed_is_said_with_a_request_to_try(tmp_path: Path) -> None:
    settings = of(replay=str(await recorded(tmp_path, "a longer prompt", "short")))
    catalog = Catalog(settings, {})
    replay = replayed(catalog)
    assert replay is not None
    assert said(settings, catalog) == {
        "replays": f"2 exchanges recorded in {tmp_path}, without a key or a network; nothing else"
    }
    assert example(replay) == {
        "model": "fast",
        "stream": True,
        "messages": [{"role": "user", "content": "short"}],
        "temperature": 0,
    }
    assert [model.id for model in await catalog.models()] == ["fast"]
    await recorded(tmp_path / "long", "x" * 2000)
    assert example(Replay(tmp_path / "long")) == {}


def test_without_recordings_nothing_is_said() -> None:
    settings = Settings()
    catalog = Catalog(settings, {})
    assert (said(settings, catalog), replayed(catalog)) == ({}, None)


async def test_replaying_what_is_not_there_ends_with_2(tmp_path: Path) -> None:
    done = penstock("serve", "--replay", "none", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "penstock: none: no such folder: `penstock record` makes it\n"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "one.json").write_text('{"penstock": 1,\n')
    with pytest.raises(ConfigError, match=r"half.one\.json:2: not a whole JSON document"):
        Catalog(of(replay=str(tmp_path / "half")), {})


def test_recording_where_nothing_can_be_written_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = penstock("record", "file", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("penstock: StoreFailed: nothing can be recorded in 'file': ")


async def test_chat_answers_from_recordings_that_the_configuration_names(tmp_path: Path) -> None:
    await recorded(tmp_path / "shop", "hi")
    (tmp_path / "penstock.yaml").write_text("models: [{name: any, llm: 'replay:shop#fast'}]\n")
    asked = ChatRequest.of("hi", model="any")
    file = next((tmp_path / "shop").iterdir())
    fields = json.loads(file.read_text())
    fields["request"]["params"] = {}
    file.write_text(json.dumps(fields))
    done = penstock("chat", "hi", "--model", asked.model, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
