"""`penstock tools`, and what the other commands say of tools: as people and scripts run them."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.test_commands import COMMAND, environment, penstock
from tests.rig.serving import ROOT, running

SHOP = '''"""A shop."""

import asyncio
import time


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Both are whole.

    Args:
        a: the first of them
    """
    return a + b


async def count(n: int, pause_s: float = 0.0):
    """Count."""
    for number in range(n):
        yield f"{number} "
        await asyncio.sleep(pause_s)


async def rows(n: int):
    """Give rows."""
    for number in range(n):
        yield {"row": number}


def sleep(seconds: float) -> None:
    """Sleep in a thread."""
    open("sleeping", "w").close()
    time.sleep(seconds)


def pay(order: int) -> str:
    """Pay."""
    with open("paid", "a") as paid:
        print(order, file=paid)
    return "paid"


def fail() -> None:
    """Fail."""
    raise ValueError("no tea")
'''
CONFIG = """
tools:
  - {name: add, function: "corner_shop.tools:add"}
  - {name: count, function: "corner_shop.tools:count"}
  - {name: rows, function: "corner_shop.tools:rows"}
  - {name: sleep, function: "corner_shop.tools:sleep"}
  - {name: pay, function: "corner_shop.tools:pay", idempotency: {ledger: true}}
  - {name: fail, function: "corner_shop.tools:fail"}
  - {name: short, function: "corner_shop.tools:count", max_result_bytes: 10}
  - name: order
    description: The order of a number.
    sqlite: {path: shop.db, statement: "SELECT what FROM orders WHERE id = :id"}
    parameters: {id: integer}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: the configuration, a package and a database."""
    found = tmp_path_factory.mktemp("user")
    (found / "penstock.yaml").write_text(CONFIG)
    (found / "corner_shop").mkdir()
    (found / "corner_shop" / "__init__.py").touch()
    (found / "corner_shop" / "tools.py").write_text(SHOP)
    shop_db = sqlite3.connect(found / "shop.db")
    with shop_db:
        shop_db.execute("CREATE TABLE orders (id INTEGER, what TEXT)")
        shop_db.execute("INSERT INTO orders VALUES (7, 'tea')")
    shop_db.close()
    return found


def test_the_list_is_a_table(folder: Path, command: Command) -> None:
    done = command("tools", "list", folder=folder)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert lines[0] == ["tool", "kind", "arguments", "description"]
    assert lines[1] == ["add", "function", "a,", "[b]", "Add", "two", "numbers."]
    assert lines[-1] == ["order", "sqlite", "id", "The", "order", "of", "a", "number."]
    assert len(lines) == 9


def test_list_and_show_tell_the_same_as_json(folder: Path, command: Command) -> None:
    listed = json.loads(command("tools", "list", "--json", folder=folder).stdout)["tools"]
    shown = json.loads(command("tools", "show", "order", "--json", folder=folder).stdout)
    assert listed[-1] == shown
    assert (shown["kind"], shown["type"], shown["path"]) == ("sqlite", "standard", "shop.db")
    assert shown["parameters"]["required"] == ["id"]
    assert json.loads(command("tools", "show", "order", folder=folder).stdout) == shown


@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [
        (["add", '{"a": 2}'], 0, "3\n", ""),
        (["order", '{"id": 7}'], 0, '[{"what":"tea"}]\n', ""),
        (["count", '{"n": 3}'], 0, "0 1 2 \n", ""),
        (["rows", '{"n": 2}'], 0, '{"row":0}\n{"row":1}\n', ""),
        (["fail"], 1, "", "penstock: failed: ValueError: no tea\n"),
        (["add", '{"a": "x"}'], 2, "", "penstock: bad_arguments: wrong arguments: a: expected an integer, got 'x'\n"),
        (["add", "{a: 1}"], 2, "", "penstock: bad_arguments: "),
        (["nix"], 2, "", "penstock: no tool 'nix'; known are 'add', 'count'"),
        (["add", '{"a": 1}', "--key", "k"], 2, "", "penstock: the tool 'add' keeps no ledger"),
    ],
)
def test_a_call_prints_the_value_and_ends_with_its_code(
    folder: Path, command: Command, arguments: list[str], code: int, stdout: str, stderr: str
) -> None:
    done = command("tools", "call", *arguments, folder=folder)
    assert (done.returncode, done.stdout) == (code, stdout)
    assert done.stderr.startswith(stderr)
    assert "Traceback" not in done.stderr


def test_arguments_are_read_from_stdin_and_the_answer_may_be_json(folder: Path, command: Command) -> None:
    done = command("tools", "call", "add", "-", "--json", folder=folder, stdin='{"a": 40, "b": 2}')
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], said["content"], said["warnings"]) == (0, True, 42, [])
    done = command("tools", "call", "fail", "--json", folder=folder)
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], said["error"]["code"], done.stderr) == (1, False, "failed", "")


def test_a_warning_goes_to_stderr(folder: Path, command: Command) -> None:
    done = command("tools", "call", "short", '{"n": 20}', folder=folder)
    assert done.returncode == 0
    assert done.stderr == "penstock: warning: the value was cut to 10 bytes\n"


def test_a_stream_is_printed_as_it_comes(folder: Path) -> None:
    command = [*COMMAND, "tools", "call", "count", '{"n": 3, "pause_s": 20}']
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True) as running_call:
        assert running_call.stdout is not None
        assert running_call.stdout.read(2) == "0 "
        assert running_call.poll() is None
        running_call.send_signal(signal.SIGINT)
        assert running_call.wait(5) == 130


def test_ctrl_c_ends_with_130_at_once_even_where_a_thread_goes_on(folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "tools", "call", "sleep", '{"seconds": 30}'],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as sleeping:
        while not (folder / "sleeping").exists():
            time.sleep(0.01)
        sleeping.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = sleeping.communicate(timeout=10)
    assert sleeping.returncode == 130
    assert time.monotonic() - began < 2
    assert said == ""


def test_row_b8_a_call_under_one_key_runs_once_in_all_processes(folder: Path, command: Command) -> None:
    said = [penstock("tools", "call", "pay", '{"order": 1}', "--key", "k", folder=folder).stdout for _ in range(2)]
    assert said == ["paid\n", "paid\n"]
    assert (folder / "paid").read_text() == "1\n"
    other = command("tools", "call", "pay", '{"order": 2}', "--key", "k", folder=folder)
    assert other.returncode == 1
    assert "idempotency_conflict" in other.stderr
    assert [file.name for file in (folder / ".penstock").iterdir()] == ["ledger.db"]


def test_functions_are_found_beside_the_configuration_too(folder: Path, tmp_path: Path) -> None:
    done = penstock("tools", "call", "add", '{"a": 1}', "--config", str(folder / "penstock.yaml"), folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2\n")


@pytest.mark.parametrize(("asked", "code"), [(["list"], 0), (["show", "a"], 2), (["call", "a"], 2)])
def test_without_tools_the_section_is_named(tmp_path: Path, command: Command, asked: list[str], code: int) -> None:
    done = command("tools", *asked, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "penstock: no tool is configured: add the section `tools` to penstock.yaml\n"


def test_case_27_a_wrong_tool_is_told_in_one_line(tmp_path: Path, command: Command) -> None:
    (tmp_path / "penstock.yaml").write_text('tools:\n  - {name: a, function: "corner_shop.tools:add"}\n')
    for asked in (["check"], ["tools", "list"], ["serve", "--port", "0"], ["chat", "hello"]):
        done = command(*asked, folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "penstock: penstock.yaml:2: tools[0].function: 'corner_shop.tools:add' cannot be imported: "
            "ModuleNotFoundError: No module named 'corner_shop'\n"
        )


def test_check_shows_the_tools(folder: Path, command: Command) -> None:
    lines = [line.split() for line in command("check", folder=folder).stdout.splitlines()]
    assert ["tool", "kind", "type"] in lines
    assert ["order", "sqlite", "standard"] in lines
    said = json.loads(command("check", "--json", folder=folder).stdout)
    assert said["tools"][0] == {"name": "add", "kind": "function", "type": "standard"}


def test_the_greeting_names_the_tools_and_they_are_served(folder: Path) -> None:
    command = [*COMMAND, "serve", "--config", str(folder / "penstock.yaml"), "--port", "{port}"]
    env = {"PYTHONPATH": str(ROOT / "src")}
    with running(command, ready="http://127.0.0.1:{port}/health", env=env) as server:
        assert "  tools   add, count, rows, sleep, pay, fail, short, order\n" in server.stderr()
