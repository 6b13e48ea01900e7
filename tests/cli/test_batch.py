"""`penstock batch`: the values of a file of items, what is kept of them, and what is asked for again."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from penstock.cli import batch_view
from penstock.cli.batch_items import MOST_BYTES, Sheet, Source
from penstock.cli.batch_kept import JOURNAL
from penstock.cli.batch_view import Tally, bar_of
from penstock.errors import UsageError
from penstock.messages import Usage
from tests.cli.conftest import Command, Done
from tests.rig.answers import Answer, Received
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

    def run(self, *options: str, file: str = "items.jsonl", given: str = "") -> Done:
        """Run the command on them, or on what is `given` on stdin."""
        words = ("batch", file, "-m", "rig", *options)
        return self._command(*words, folder=self.folder, env=self._env, stdin=given)

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
    done = desk.run("-i", "Be brave.")
    assert (done.returncode, len(desk.asked())) == (0, 1)  # another question
    assert "other instructions than before: a new batch; 5 values of the old one are kept as 'items-2'" in done.stderr
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
    said = {"items": 5, "accepted": 5, "failed": 0, "not_asked": 0, "calls": 1, "usage": usage, "cost_usd": None}
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


async def drawn(width: int) -> str:
    """The last line of a bar in a terminal of so many columns."""
    out = io.StringIO()
    tally = Tally(2000, began=time.monotonic() - 20, waiting=lambda: True)
    bar = bar_of(tally, Console(file=out, force_terminal=True, width=width))
    tally.accepted, tally.failed, tally.calls, tally.usage = 1300, 100, 2000, Usage(1000, 500, 1500)
    tally.cost = Decimal("0.25")
    await bar.stop()
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-1]


async def test_a_terminal_is_shown_a_bar_with_what_is_known() -> None:
    wide, usual, narrow = await drawn(200), await drawn(80), await drawn(30)
    told = "100 failed, waiting for the rate limit, 9 s left, 2,000 calls, 1,500 tokens, $0.2500, "
    assert re.search(rf"^(━|╸|╺)+ +1,400/2,000 {re.escape(told)}[\d.,]+ items/s *$", wide), wide
    assert wide.startswith(usual[: usual.index(" ")] + " ")  # a bar of one width
    assert re.search(r" 1,400/2,000 100 failed *$", usual), usual
    assert re.search(r"^(━|╸|╺)+ +1,400/2,000 *$", narrow), narrow


async def test_elsewhere_a_line_comes_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_view, "LINE_S", 0.01)
    shown = batch_view.view_of(Tally(10, accepted=2, before=2), "items.jsonl")
    await asyncio.sleep(0.05)
    await shown.stop()
    assert "items.jsonl: 2 of 10 items, 0 calls, 0 tokens" in capsys.readouterr().err


def test_waiting_for_the_rate_limit_of_a_service_is_shown(
    desk: Desk, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy_at_first(request: Received) -> Answer:
        return planner(fails=429 if len(upstream.chats) == 1 else 0)(request)

    monkeypatch.setattr(batch_view, "LINE_S", 0.01)
    upstream.default = busy_at_first
    done = desk.run("-o", "out.jsonl")
    assert done.returncode == 0
    assert "items.jsonl: 0 of 5 items, waiting for the rate limit, " in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is needed")
def test_a_full_disk_is_told_and_what_was_accepted_is_not_asked_for_again(desk: Desk) -> None:
    done = desk.run("-o", "/dev/full", "--size", "2", "--concurrent", "1")
    assert done.returncode == 1
    assert "StoreFailed: '/dev/full' cannot be written: No space left on device" in done.stderr
    before = {key for call in desk.asked() for key in call}
    assert desk.run("-o", "out.jsonl").returncode == 0
    assert {1} <= before - {key for call in desk.asked() for key in call}


def test_items_that_are_added_or_changed_are_asked_for_and_the_values_of_all_others_are_kept(desk: Desk) -> None:
    assert desk.run("-o", "out.jsonl").returncode == 0
    desk.asked()
    desk.write(*({"id": number, "hp": number} for number in (3, 1, 2)), {"id": 4, "hp": 44}, {"id": 5, "hp": 5})
    done = desk.run("-o", "out.jsonl")
    assert (done.returncode, desk.asked()) == (0, [[4, 5]])
    assert "1 item has other data than before: it is asked for again" in done.stderr
    assert "3 values are kept from before" in done.stderr
    assert ids(rows((desk.folder / "out.jsonl").read_text())) == [1, 2, 3, 4, 5]
    *found, last = rows(desk.run("--json").stdout)
    used = sum(row["usage"]["total_tokens"] for row in rows((desk.folder / "out.jsonl").read_text()))
    assert (sorted(ids(found)), desk.asked()) == ([1, 2, 3, 4, 5], [])
    assert last["report"]["usage"]["total_tokens"] == used == 90  # what an item used that is gone is not its own


def test_a_file_that_is_not_from_this_batch_is_not_written_over_unasked(desk: Desk) -> None:
    out = desk.folder / "out.jsonl"
    out.write_text("mine\n")
    done = desk.run("-o", "out.jsonl")
    assert (done.returncode, out.read_text(), desk.asked()) == (2, "mine\n", [])
    assert "'out.jsonl' is there, and not from this batch: name another file with -o" in done.stderr
    assert "no batch is kept" in desk.run("--list").stdout
    assert desk.run("-o", "out.jsonl", "--new").returncode == 0
    assert desk.run("-o", "out.jsonl").returncode == 0
    first, _ = out.read_text(), desk.asked()
    assert desk.run("-o", "out.jsonl", "-i", "Be brave.").returncode == 2
    assert (out.read_text(), desk.asked()) == (first, [])


def test_batches_that_are_kept_are_listed_and_removed(desk: Desk) -> None:
    assert (desk.run().returncode, desk.run("-i", "Be brave.").returncode) == (0, 0)
    lines = desk.run("--list").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["items", "5", "5"], ["items-2", "5", "5"]]
    found = json.loads(desk.run("--list", "--json").stdout)["batches"]
    assert [(one["name"], one["file"], one["model"], one["values"]) for one in found] == [
        ("items", "../items.jsonl", "rig", 5),
        ("items-2", "../items.jsonl", "rig", 5),
    ]
    assert desk.run("--remove", "items").returncode == 0
    assert [one["name"] for one in json.loads(desk.run("--list", "--json").stdout)["batches"]] == ["items-2"]
    assert desk.run("-o", "out.jsonl").returncode == 0
    assert desk.run("--remove", "items").returncode == 0
    assert desk.run("-o", "out.jsonl", "-i", "Be quick.").returncode == 2  # another of that name owns nothing
    done = desk.run("--remove", "nope")
    assert (done.returncode, "no batch 'nope' is kept: 'items-2'" in done.stderr) == (2, True)


def test_fields_of_requests_reach_the_model_and_make_another_batch(desk: Desk, upstream: Upstream) -> None:
    assert desk.run("-p", "temperature=0.5", "-p", "user=me").returncode == 0
    (request,) = upstream.chats
    assert (request.json["temperature"], request.json["user"]) == (0.5, "me")
    done = desk.run("-p", "temperature=0")
    assert "other parameters than before" in done.stderr
    assert len(upstream.chats) == 2


def test_items_come_from_stdin_too(desk: Desk) -> None:
    done = desk.run("-o", "out.jsonl", file="-", given='{"id": 1}\n{"id": 2}\n')
    assert (done.returncode, desk.asked()) == (0, [[1, 2]])
    done = desk.run("-o", "out.jsonl", file="-", given='{"id": 1}\n{"id": 3}\n')
    assert (done.returncode, desk.asked()) == (0, [[3]])
    assert desk.run("--list").stdout.splitlines()[1].split()[:3] == ["stdin", "2", "3"]
    assert desk.run(file="-", given="{").stderr.startswith("penstock: stdin:1: ")


def test_a_file_that_changes_while_it_is_read_ends_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    for later in ('{"id": 1}\n', '{"id": 1}\n{"id": 2, "hp": 3}\n'):
        path.write_text('{"id": 1}\n{"id": 2}\n')
        with Source.of(str(path)) as source:
            path.write_text(later)
            with pytest.raises(UsageError, match=r"items\.jsonl was changed while it was read"):
                list(source.items())


def test_a_file_of_outcomes_is_as_it_was_until_it_is_begun_and_written_by_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("what was there before\n")
    with closing(Sheet(str(path))) as sheet:
        with pytest.raises(UsageError, match=r"out\.jsonl' is being written by another process: wait for it"):
            Sheet(str(path))
        assert path.read_text() == "what was there before\n"
        sheet.begin()
        sheet.add({"id": 1})
        assert path.read_text() == '{"id":1}\n'
        sheet.finish()
    with closing(Sheet(str(path))):
        assert rows(path.read_text())[0]["id"] == 1


def test_a_name_that_only_the_demo_model_would_answer_to_is_refused(tmp_path: Path, command: Command) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": 1}\n')
    problem = "no model 'nope': nothing is configured, so that only 'penstock-demo' answers: set OPENAI_API_KEY"
    for words in (("batch", "items.jsonl"), ("chat", "Hi"), ("plan", "A goal")):
        done = command(*words, "-m", "nope", folder=tmp_path)
        assert (done.returncode, problem in done.stderr, done.stdout) == (1, True, ""), done
    done = command("chat", "Hi", "-m", "groq:llama", folder=tmp_path)
    assert done.stderr.strip().endswith("answers: set GROQ_API_KEY")
    for name in ("demo", "penstock-demo", "demo:any"):
        assert command("batch", "items.jsonl", "-m", name, folder=tmp_path).returncode == 0


WRONG = {
    "a list": (b'[\n{"id": 1}\n]\n', ":1: JSON over several lines: write one JSON object a line"),
    "a batch of OpenAI": (
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n',
        ":1: a request for a batch of OpenAI: write an item a line",
    ),
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
    "a schema that is none": (["--schema", "odd.json"], 2, "odd.json: the JSON Schema is broken"),
    "no acts": (["--acts", ""], 2, "--acts '' names no act"),
    "no latency": (["--latency", "0"], 2, "--latency 0 lets no call end"),
    "a field without a value": (["-p", "temperature"], 2, "'temperature' is no field of a request"),
    "a key": (["-p", "api_key=x"], 2, "the field 'api_key' is not yours to set here"),
    "a field of the batch's own": (["-p", "stream=false"], 2, "the field 'stream' is not yours to set here"),
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
    ended = re.search(r"0 of 400 items have values: (\d+) failed, (\d+) were never asked, \d+ calls?, ", done.stderr)
    assert ended is not None, done.stderr
    assert int(ended[1]) + int(ended[2]) == 400
    assert "s left" not in done.stderr
    assert "items/s" not in done.stderr
    assert len(upstream.chats) <= 12
