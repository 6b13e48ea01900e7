"""What is shown of a run: what is known of its tasks, how it fits a terminal, and a terminal it is drawn on."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from penstock.cli.live import Screen, shown
from penstock.cli.tables import clock, fit, table
from penstock.cli.view import Board, one_line, said, unsteering
from penstock.errors import Unavailable
from penstock.events import Retrying, Text, Used
from penstock.messages import Usage
from penstock.store.steps import Logged, Step
from penstock.tasks.project import ProjectSpec
from penstock.tasks.results import ExecutionResult, ExecutionStatus, Fault
from tests.cli.projects import seen, written
from tests.cli.test_commands import COMMAND, STARTS_S, environment

CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def board_of(*names: str, steps: Mapping[str, Step] | None = None) -> Board:
    tasks = [{"id": name, "description": "Do it.", "agent": "writer"} for name in names]
    return Board(ProjectSpec.model_validate({"name": "site", "tasks": tasks}), steps or {})


def entry(step: str, state: str, value: Any = None, *, at: float = 100.0) -> Logged:
    return Logged(1, at, step, state, None, value)


def result(task: str, **fields: Any) -> ExecutionResult:
    return ExecutionResult(task=task, status=ExecutionStatus.SUCCESS, **{"attempts": 1, "output": "done", **fields})


def success(task: str, **fields: Any) -> Logged:
    return entry(task, "succeeded", msgspec.to_builtins(result(task, **fields)))


def on(width: int, height: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, height=height, force_terminal=True, color_system="truecolor"), out


def test_a_board_follows_the_log_and_what_tasks_tell() -> None:
    board = board_of("a", "b/c", "b")
    board.log(entry("a", "running"))
    board.log(entry("b/c", "running"))
    board.hear(Text("one ", path="a/writer"))
    board.hear(Text("two", path="a/writer/llm"))
    board.hear(Text("three", path="b/c/writer"))
    board.hear(Used(usage=Usage(1, 2, 3), cost=Decimal("0.5"), path="a/writer"))
    board.hear(Text("nobody's", path="d"))
    assert [(row.words, row.tokens) for row in board.rows.values()] == [("one two", 3), ("three", 0), ("", 0)]
    assert [*board.running] == ["a", "b/c"]
    board.hear(Retrying(attempt=2, wait_s=1.5, error=Unavailable("busy"), path="a"))
    assert (board.rows["a"].attempts, board.rows["a"].words) == (2, "again in 1.5 s: busy ")
    board.log(success("a", attempts=2, usage=Usage(2, 2, 4), cost=Decimal("0.75")))
    assert (board.used(), board.ended, board.counts[ExecutionStatus.SUCCESS]) == ((4, Decimal("0.75")), 1, 1)
    board.log(success("b/c", cost=None))
    assert board.used() == (4, None)


def test_a_task_that_is_taken_back_has_not_begun() -> None:
    board = board_of("a")
    fault = Fault("TaskFailed", "no", "agent_failed", details=msgspec.to_builtins(result("a", usage=Usage(2, 2, 4))))
    board.log(entry("a", "running"))
    board.log(entry("a", "failed", msgspec.to_builtins(fault), at=103.0))
    assert [*board.troubles] == ["a"]
    assert board.rows["a"].words.startswith("agent_failed") or board.rows["a"].tokens == 4
    board.log(entry("a", "pending"))
    row = board.rows["a"]
    assert (row.tokens, row.attempts, row.words, row.lasts(200.0), [*board.troubles]) == (0, 0, "", None, [])
    board.log(entry("a", "running", at=200.0))
    assert row.lasts(201.5) == 1.5


def test_steps_that_the_file_does_not_name_are_seen_and_may_go() -> None:
    board = board_of("a", steps={"late": Step("running")})
    assert [(row.task, row.status, row.lasts(1.0)) for row in board.running.values()] == [("late", "in_progress", None)]
    board.log(entry("late", "absent"))
    assert [*board.rows] == ["a"]
    assert board.counts.total() == 1


@pytest.mark.parametrize("width", [8, 20, 40, 60, 72, 80, 100, 120, 200])
@pytest.mark.parametrize("height", [3, 6, 20])
def test_what_is_drawn_fits_the_terminal(width: int, height: int) -> None:
    names = [f"task-{'long-' * (number % 5)}{number}" for number in range(12)]
    board = board_of(*names)
    for name in names[:9]:
        board.log(entry(name, "running"))
        board.hear(Text("wörter 世界 \x1b[2J\n" * 30, path=name))
    board.log(success(names[0], output="世" * 300, usage=Usage(1, 1, 1_000_000), cost=Decimal("12.5"), attempts=3))
    board.log(entry(names[1], "failed", msgspec.to_builtins(Fault("TaskFailed", "x" * 300, "agent_failed"))))
    console, out = on(width, height)
    console.print(Screen(board, "a-project-of-some-name", console).frame())
    lines = CODES.sub("", out.getvalue()).split("\n")[:-1]
    assert len(lines) < max(height, 4)
    assert max(map(cell_len, lines)) <= width
    assert "\x1b[2J" not in out.getvalue()


def test_of_many_tasks_those_that_run_are_shown_and_then_those_that_failed() -> None:
    board = board_of(*map(str, range(10_000)))
    for name in ("7", "77", "777"):
        board.log(entry(name, "running"))
    board.log(entry("5", "failed"))
    assert [row.task for row in shown(board, 5)] == ["7", "77", "777", "5"]
    assert [row.task for row in shown(board, 2)] == ["7", "77"]
    assert len(shown(board, 10_000)) == 10_000
    assert shown(board, -1) == []


def test_columns_come_with_the_width_and_only_where_they_say_something() -> None:
    board = board_of("a")
    board.log(success("a", usage=Usage(1, 1, 2)))
    heads = []
    for width in (40, 60, 120):
        console, out = on(width, 20)
        console.print(table([*board.rows.values()], console, head=True))
        heads.append(CODES.sub("", out.getvalue()).split("\n")[0].split())
    assert heads == [["task", "output"], ["task", "tokens", "output"], ["task", "status", "agent", "tokens", "output"]]


def test_texts_are_brought_to_one_line_that_cannot_steer_a_terminal() -> None:
    assert one_line("a\x1b[31m\r\nb\u202e\tc") == "a [31m b c"
    assert one_line({"a": [1]}) == '{"a":[1]}'
    assert one_line(None) == ""
    assert len(one_line("x" * 10_000)) == 300
    assert unsteering("a\n\x1b[31mb\tä\x07") == "a\n[31mb\tä"


@pytest.mark.parametrize(
    ("text", "options", "fitted"),
    [
        ("ab", {}, "ab   "),
        ("ab", {"right": True}, "   ab"),
        ("abcdef", {}, "abcd…"),
        ("abcdef", {"end": True}, "…cdef"),
        ("世界世界", {}, "世界…"),
        ("世界世界", {"end": True}, "…世界"),
    ],
)
def test_a_text_is_brought_to_a_width(text: str, options: dict[str, bool], fitted: str) -> None:
    assert fit(text, 5, **options) == fitted


def test_times_are_short() -> None:
    assert [clock(one) for one in (None, 0.04, 59.94, 60.0, 3725.0)] == ["", "0.0 s", "59.9 s", "1:00", "1:02:05"]


def test_a_line_says_what_a_task_took() -> None:
    board = board_of("a")
    row = board.log(entry("a", "running"))
    assert row is not None
    assert said(row) == "a: in progress (writer)"
    board.log(success("a", attempts=2, usage=Usage(1, 1, 1234), cost=Decimal("0.01")))
    assert said(row) == "a: success (0.0 s, 1,234 tokens, $0.0100, 2 attempts)"


class Terminal:
    """A command that has a terminal as its own, as a shell gives it."""

    def __init__(self, master: int, child: subprocess.Popen[bytes]) -> None:
        self._master, self.child, self.text = master, child, ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> None:
        """Read on until such a text has come behind what was waited for before."""
        deadline, at = time.monotonic() + STARTS_S, len(self.text)
        while text not in self.text[at:]:
            assert time.monotonic() < deadline, self.text
            try:
                self.text += CODES.sub("", os.read(self._master, 65536).decode("utf-8", "replace"))
            except OSError as error:  # the child closed its side
                raise AssertionError(self.text) from error


@contextmanager
def terminal(*arguments: str, folder: Path, size: tuple[int, int] = (24, 80)) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    variables = environment(TERM="xterm-256color")
    variables.pop("COLUMNS")
    child = subprocess.Popen(
        ["sh", "-c", 'exec < "$0" && exec "$@"', os.ttyname(slave), *COMMAND, *arguments],
        cwd=folder,
        env=variables,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,  # whose first terminal, once opened, is its own
    )
    os.close(slave)
    try:
        yield Terminal(master, child)
    finally:
        child.kill()
        child.wait()
        os.close(master)


def test_the_view_gives_the_terminal_to_a_question_and_takes_it_back(tmp_path: Path) -> None:
    (tmp_path / "project.yaml").write_text(
        "name: talk\n"
        "agents: [{name: me, mode: interactive}, {name: writer, provider: demo, params: {pace_s: 0.005}}]\n"
        "tasks:\n"
        "  - {id: ask, description: Your name, agent: me}\n"
        "  - {id: use, description: Hi, agent: writer, depends_on: [ask]}\n"
    )
    with terminal("run", "project.yaml", folder=tmp_path) as screen:
        screen.until("Your name")
        asked = len(screen.text)
        time.sleep(0.45)  # for longer than two frames take
        screen.type("Ada\n\n")
        screen.until("read all: penstock project report talk")
        assert screen.child.wait(10) == 0
    while_asked, _, after = screen.text[asked:].partition("Ada")
    assert "talk" not in while_asked
    assert re.search(r"talk .* [01]/2", after)
    assert re.search(r"✓  ask .* Ada", after)


def test_ctrl_c_stops_what_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    written(tmp_path, "slow")
    with terminal("run", "project.yaml", folder=tmp_path, size=(12, 60)) as screen:
        screen.until("1/3")
        process = int(seen(tmp_path / "pid"))
        screen.type("\x03")
        screen.until("`penstock project resume site` goes on")
        assert screen.child.wait(10) == 130
    assert "Traceback" not in screen.text
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_sigterm_stops_it_in_the_same_way_and_nohup_holds(tmp_path: Path) -> None:
    written(tmp_path, "slow")
    child = subprocess.Popen(
        ["nohup", *COMMAND, "run", "project.yaml"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    process = int(seen(tmp_path / "pid"))
    child.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.stderr is not None
    last = next(line for line in child.stderr if line.startswith("penstock: "))
    with pytest.raises(ProcessLookupError):  # by the time it is said
        os.kill(process, 0)
    assert last.startswith("penstock: interrupted, 1 of 3 tasks have ended: `penstock project resume site`")
    child.communicate(timeout=20)
    assert child.returncode == 130
