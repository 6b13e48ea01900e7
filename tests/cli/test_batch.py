"""`penstock batch`: the values of a file of items, what is kept of them, and what is asked for again."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from penstock.cli import batch
from penstock.cli.batch import Tally, bar_of
from penstock.cli.batch_items import JOURNAL, MOST_BYTES
from penstock.messages import Usage
from tests.cli.conftest import Command, Done
from tests.rig.batches import asked, data, plan_of, planner
from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A model with a plan for each item."""
    with run_upstream() as served:
        served.default = planner()
        yield served


class Desk:
    """A folder with a file of items, whose model is the upstream."""

    def __init__(self, folder: Path, command: Command, upstream: Upstream) -> None:
        self.folder, self._command, self._upstream = folder, command, upstream
        self._env = {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk-test"}

    def write(self, *items: Any) -> None:
        """Write the items, each as JSON."""
        (self.folder / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))

    def run(self, *options: str) -> Done:
        """Run the command on them."""
        return self._command("batch", "items.jsonl", "-m", "rig", *options, folder=self.folder, env=self._env)

    def asked(self) -> list[list[int | str]]:
        """The items of each call since the last time, in order."""
        calls = [asked(request) for request in self._upstream.chats]
        self._upstream.requests.clear()
        return sorted(calls, key=str)


@pytest.fixture
def desk(tmp_path: Path, command: Command, upstream: Upstream) -> Desk:
    """A folder with five items."""
    made = Desk(tmp_path, command, upstream)
    made.write(*({"id": number, "hp": number} for number in (3, 1, 2, 10, 4)))
    return made


def rows(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def ids(found: Iterable[Any]) -> list[Any]:
    return [row["id"] for row in found]


def test_the_file_has_each_value_sorted_by_id_with_what_it_used(desk: Desk) -> None:
    done = desk.run("-o", "out.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("penstock: 5 of 5 items have values: 1 call, 75 tokens, ")
    found = rows((desk.folder / "out.jsonl").read_text())
    assert ids(found) == [1, 2, 3, 4, 10]
    assert all(row["value"] == {**plan_of(row["id"]), "plan_id": ""} for row in found)
    assert all((row["tier"], row["attempts"]) == ("batch", 1) for row in found)
    assert sum(row["usage"]["total_tokens"] for row in found) == 75
    assert [path.name for path in desk.folder.iterdir() if "new-" in path.name] == []


def test_a_finished_batch_is_printed_again_without_a_call_and_anew_with_one(desk: Desk) -> None:
    first = desk.run()
    assert desk.asked() == [[1, 2, 3, 4, 10]]
    again = desk.run("--size", "2", "--concurrent", "1")
    assert (again.stdout, again.returncode, desk.asked()) == (first.stdout, 0, [])
    assert desk.run("--new", "--size", "3", "--concurrent", "1").returncode == 0
    assert desk.asked() == [[1, 2, 3], [4, 10]]
    assert (desk.run().stdout != "", desk.asked()) == (True, [])  # of the newest
    assert desk.run("-i", "Be brave.").returncode == 0
    assert len(desk.asked()) == 1  # another question
    assert (desk.folder / ".penstock" / JOURNAL).exists()


def test_the_items_without_a_value_are_told_and_alone_asked_for_again(desk: Desk, upstream: Upstream) -> None:
    upstream.default = planner(without=(2, 10))
    done = desk.run("-o", "out.jsonl")
    assert done.returncode == 1
    assert "3 of 5 items have values: 2 failed, 4 calls" in done.stderr
    assert "the same command asks again" in done.stderr
    found = {row["id"]: row for row in rows((desk.folder / "out.jsonl").read_text())}
    assert {fault["kind"] for fault in found[2]["faults"]} == {"missing"}
    assert "value" not in found[2]
    assert [*found] == [1, 2, 3, 4, 10]
    desk.asked()
    upstream.default = planner()
    done = desk.run("-o", "out.jsonl")
    assert (done.returncode, desk.asked()) == (0, [[2, 10]])
    assert "5 of 5 items have values: 5 calls" in done.stderr
    again = {row["id"]: row for row in rows((desk.folder / "out.jsonl").read_text())}
    assert again[2]["usage"]["total_tokens"] > found[2]["usage"]["total_tokens"]  # of both times
    assert again[1] == found[1]


def test_as_json_each_outcome_comes_as_it_ends_and_the_report_last(desk: Desk) -> None:
    *found, last = rows(desk.run("--json").stdout)
    assert sorted(ids(found)) == [1, 2, 3, 4, 10]
    usage = {"prompt_tokens": 50, "completion_tokens": 25, "total_tokens": 75}
    said = {"items": 5, "accepted": 5, "failed": 0, "calls": 1, "usage": usage, "cost_usd": None}
    assert last == {"report": said}
    assert rows(desk.run("--json").stdout)[-1] == last


def test_a_line_has_an_id_an_agent_or_its_number_and_any_data(desk: Desk, upstream: Upstream) -> None:
    lines = [{"id": "a", "data": [1]}, {"agent_id": 7, "hp": 3}, {"hp": 4}, {"id": "b", "data": 1, "hp": 2}]
    desk.write(*lines)
    assert desk.run().returncode == 0
    (request,) = upstream.chats
    assert dict(zip(asked(request), data(request), strict=True)) == {
        3: {"hp": 4},
        7: {"hp": 3},
        "a": [1],
        "b": {"data": 1, "hp": 2},
    }


def test_groups_share_no_call_wherever_their_items_stand(desk: Desk) -> None:
    desk.write(*({"id": number, "group": "xy"[number % 2]} for number in range(6)))
    assert desk.run("--size", "3").returncode == 0
    assert desk.asked() == [[0, 2, 4], [1, 3, 5]]


async def test_a_terminal_is_shown_a_bar_with_what_is_known() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    tally = Tally(10, began=time.monotonic() - 2)
    bar = bar_of(tally, console)
    tally.accepted, tally.failed, tally.calls, tally.usage = 3, 1, 2, Usage(1000, 500, 1500)
    tally.cost = Decimal("0.25")
    await bar.stop()
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert "0/10" in shown
    assert re.search(r" 4/10 1 failed, 2 calls, 1,500 tokens, \$0\.2500, \d\.\d items/s, 3 s left", shown), shown


async def test_elsewhere_a_line_comes_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "LINE_S", 0.01)
    shown = batch.view_of(Tally(10, accepted=2), "items.jsonl")
    await asyncio.sleep(0.05)
    await shown.stop()
    assert "items.jsonl: 2 of 10 items, 0 calls, 0 tokens" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is needed")
def test_a_full_disk_is_told_and_what_was_accepted_is_not_asked_for_again(desk: Desk) -> None:
    done = desk.run("-o", "/dev/full", "--size", "2", "--concurrent", "1")
    assert done.returncode == 1
    assert "StoreFailed: '/dev/full' cannot be written: No space left on device" in done.stderr
    before = {key for call in desk.asked() for key in call}
    assert desk.run("-o", "out.jsonl").returncode == 0
    assert {1} <= before - {key for call in desk.asked() for key in call}


WRONG = {
    "no JSON": (b'{"id": 1}\n\n{"id": 2\n', ":3: no JSON: "),
    "no object": (b"[1]\n", ":1: no JSON object: "),
    "no id": (b'{"id": true}\n', ":1: the id True names no item"),
    "an empty id": (b'{"id": ""}\n', ":1: the id '' names no item"),
    "no group": (b'{"id": 1, "group": 2}\n', ":1: the group 2 is no text"),
    "an id twice": (b'{"id": 1}\n{"id": 2}\n{"agent_id": 1}\n', ":3: line 1 has the id 1 too"),
    "a number that is an id": (b'{"id": 2}\n{"hp": 1}\n', ":2: line 1 has the id 2 too"),
    "too large": (b'{"id": 1}\n"' + b"x" * MOST_BYTES + b'"\n', ":2: the line is longer than 1,000,000 bytes"),
    "no UTF-8": (b'{"id": "\xff"}\n', ":1: no JSON: "),
    "nothing": (b"\n\n", ": no items"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_file_and_line_before_any_call(desk: Desk, name: str) -> None:
    content, problem = WRONG[name]
    (desk.folder / "items.jsonl").write_bytes(content)
    done = desk.run("-o", "out.jsonl")
    assert (done.returncode, desk.asked(), (desk.folder / "out.jsonl").exists()) == (2, [], False)
    assert done.stderr.startswith(f"penstock: items.jsonl{problem}")


OPTIONS = {
    "no such schema": (["--schema", "none.json"], 2, "the schema 'none.json' cannot be read"),
    "a schema that is no JSON": (["--schema", "torn.json"], 2, "torn.json: no JSON"),
    "a schema that is none": (["--schema", "odd.json"], 2, "the JSON Schema is broken"),
    "acts beside a schema": (["--schema", "hp.json", "--acts", "Go"], 2, "acts are for plans"),
    "no such instructions": (["-i", "@none.txt"], 2, "the instructions 'none.txt' cannot be read"),
    "the items overwritten": (["-o", "./items.jsonl"], 2, "is the file of the items"),
    "nowhere to write": (["-o", "none/out.jsonl"], 2, "cannot be written"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_cannot_be_used_are_refused_before_any_call(desk: Desk, name: str) -> None:
    options, code, problem = OPTIONS[name]
    (desk.folder / "torn.json").write_text("{")
    (desk.folder / "odd.json").write_text('{"type": "odd"}')
    (desk.folder / "hp.json").write_text('{"type": "object"}')
    done = desk.run(*options)
    assert (done.returncode, desk.asked()) == (code, [])
    assert problem in done.stderr


def test_a_schema_acts_and_instructions_reach_the_model(desk: Desk, upstream: Upstream) -> None:
    schema = {"type": "object", "required": ["steps"], "properties": {"agent_id": {}, "steps": {"type": "array"}}}
    (desk.folder / "plan.json").write_text(json.dumps(schema))
    (desk.folder / "how.txt").write_text("Be quick about it.")
    assert desk.run("--schema", "plan.json", "-i", "@how.txt").returncode == 0
    (request,) = upstream.chats
    assert "Be quick about it." in json.dumps(request.json)
    done = desk.run("--acts", "Stay|Hide")  # the model says: Go
    assert done.returncode == 1
    assert "Stay, Hide" in json.dumps(upstream.chats[-1].json)
    assert {fault["kind"] for row in rows(done.stdout) for fault in row["faults"]} == {"schema"}


def test_calls_that_do_nothing_but_fail_end_the_batch_early(desk: Desk, upstream: Upstream) -> None:
    upstream.default = planner(fails=401)
    desk.write(*({"id": number} for number in range(400)))
    done = desk.run("-o", "out.jsonl")
    assert done.returncode == 1
    assert "stopped, as nothing but failures came: Unauthorized" in done.stderr
    assert "0 of 400 items have values" in done.stderr
    assert len(upstream.chats) <= 12
