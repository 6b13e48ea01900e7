"""The command line, run as it is by people and by scripts: processes, exit codes, stdout and stderr."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.config import load, schema
from tests.cli.conftest import Command
from tests.rig.answers import Plain, Stream
from tests.rig.serving import ROOT
from tests.rig.upstream import Upstream, chunk, error_body, model_list, text_stream

COMMAND = [sys.executable, "-m", "penstock"]
KEY = "sk-canary-0123456789"
STARTS_S = 30.0


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with no provider in it but those given."""
    kept = {
        name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_BASE_URL", "_ENDPOINT"))
    }
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", **variables}


def penstock(
    *arguments: str, folder: Path, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(**(env or {})),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def upstream_env(upstream: Upstream) -> dict[str, str]:
    return {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": KEY}


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = penstock("--version", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("penstock ")


def test_the_version_is_printed_without_loading_the_command_line(tmp_path: Path) -> None:
    script = "import sys; sys.argv[1:] = ['--version']; from penstock.cli import main; main(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert not {"typer", "rich", "pydantic", "yaml"} & {*done.stdout.split()}


@pytest.mark.parametrize("asked", [[], ["serve"], ["chat"], ["check"], ["token"], ["token", "new"]])
def test_every_command_explains_itself(tmp_path: Path, asked: list[str], command: Command) -> None:
    done = command(*asked, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Usage: penstock" in done.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["serve", "--nope"], ["serve", "--port", "x"], ["token", "new"]])
def test_wrong_usage_ends_with_2(tmp_path: Path, arguments: list[str], command: Command) -> None:
    done = command(*arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_chat_streams_the_demo_model_when_nothing_is_set(tmp_path: Path) -> None:
    done = penstock("chat", "What is 2+3?", folder=tmp_path)
    assert done.returncode == 0
    assert "5" in done.stdout
    assert done.stdout.endswith("\n")


def test_chat_reads_its_prompt_from_a_pipe(upstream: Upstream, tmp_path: Path) -> None:
    done = penstock("chat", folder=tmp_path, env=upstream_env(upstream), stdin="one two\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two\n", "")


def test_chat_asks_the_named_model_with_the_system_message(
    upstream: Upstream, tmp_path: Path, command: Command
) -> None:
    command("chat", "hi", "--model", "openai:m1", "--system", "be brief", folder=tmp_path, env=upstream_env(upstream))
    asked = upstream.chats[-1]
    assert asked.json["model"] == "m1"
    assert [message["content"] for message in asked.json["messages"]] == ["be brief", "hi"]
    assert asked.headers["authorization"] == f"Bearer {KEY}"


def test_chat_answers_in_json(upstream: Upstream, tmp_path: Path, command: Command) -> None:
    done = command("chat", "grüße", "--json", folder=tmp_path, env=upstream_env(upstream))
    said = json.loads(done.stdout)
    assert (said["model"], said["content"], said["finish_reason"]) == ("echo", "grüße", "stop")
    assert said["usage"]["completion_tokens"] == 1


def test_chat_takes_the_first_configured_model(upstream: Upstream, tmp_path: Path, command: Command) -> None:
    rows = f"[{{name: a, llm: 'openai:x', base_url: '{upstream.base_url}'}}, {{name: b, llm: demo}}]"
    (tmp_path / "penstock.yaml").write_text(f"models: {rows}")
    assert command("chat", "hi", folder=tmp_path).stdout == "hi\n"
    assert upstream.chats[-1].json["model"] == "x"


def test_chat_asks_which_model_when_there_are_several(upstream: Upstream, tmp_path: Path, command: Command) -> None:
    upstream.models = Plain(model_list("a", "b"))
    done = command("chat", "hi", folder=tmp_path, env=upstream_env(upstream))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "penstock: say which model with --model: there are a, b\n"


def test_chat_leaves_reasoning_out_of_pipes(upstream: Upstream, tmp_path: Path, command: Command) -> None:
    upstream.script(Stream([chunk(role="assistant", reasoning_content="hmm"), *text_stream("yes")]))
    assert command("chat", "hi", folder=tmp_path, env=upstream_env(upstream)).stdout == "yes\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "no prompt"), (["hi", "--config", "none.yaml"], "none.yaml: cannot be read")],
)
def test_chat_without_what_it_needs_ends_with_2(
    tmp_path: Path, arguments: list[str], words: str, command: Command
) -> None:
    done = command("chat", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_chat_tells_a_failure_on_stderr_and_ends_with_1(
    upstream: Upstream, tmp_path: Path, options: list[str], command: Command
) -> None:
    upstream.script(Plain(error_body(f"bad key {KEY}"), status=401))
    done = command("chat", "hi", *options, folder=tmp_path, env=upstream_env(upstream))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("penstock: Unauthorized: ")
    assert "bad key ***" in done.stderr
    assert "Traceback" not in done.stderr


def test_chat_shows_a_cut_answer_as_a_failure(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Stream(text_stream("one two three"), cut_after=3))
    done = penstock("chat", "hi", folder=tmp_path, env=upstream_env(upstream))
    assert done.returncode == 1
    assert done.stdout == "one two\n"
    assert "BadAnswer" in done.stderr


def test_chat_stops_quietly_when_nobody_reads_on(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Stream(text_stream("word " * 2000), delay_s=0.001))
    shell = f"{sys.executable} -m penstock chat hi | head -c 4"
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=tmp_path,
        env=environment(**upstream_env(upstream)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("word", "")
    assert len(upstream.wait_closed()) == 1


def test_ctrl_c_cancels_the_answer_and_ends_with_130(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Stream(text_stream("one two three"), stall_after=3))
    env = environment(**upstream_env(upstream))
    with subprocess.Popen(
        [*COMMAND, "chat", "hi"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read(7) == "one two"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=STARTS_S)
    assert (child.returncode, out, err) == (130, "\n", "")
    assert len(upstream.wait_closed()) == 1


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, master: int, child: subprocess.Popen[bytes]) -> None:
        self._master, self.child, self._unread = master, child, ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """What the command writes, up to the first such text."""
        deadline = time.monotonic() + STARTS_S
        while text not in self._unread:
            assert time.monotonic() < deadline, self._unread
            try:
                self._unread += os.read(self._master, 65536).decode("utf-8", "replace")
            except OSError as error:  # the child closed its side
                raise AssertionError(self._unread) from error
        before, _, self._unread = self._unread.partition(text)
        return before + text


@contextmanager
def terminal(*arguments: str, folder: Path, env: Mapping[str, str]) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    variables = environment(TERM="dumb", **env)
    child = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=variables,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, child)
    finally:
        child.kill()
        child.wait()
        os.close(master)


def test_a_conversation_remembers_its_turns_until_the_end_of_input(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Stream(text_stream("One.")), Plain(error_body("busy"), status=503), Stream(text_stream("Two.")))
    with terminal("chat", folder=tmp_path, env=upstream_env(upstream)) as screen:
        for typed, answer in (("first", "One."), ("lost", "Unavailable"), ("second", "Two.")):
            screen.until("> ")
            screen.type(f"{typed}\n")
            screen.until(answer)
        screen.until("> ")
        screen.type("\x04")
        assert screen.child.wait(STARTS_S) == 0
    said = [(message["role"], message["content"]) for message in upstream.chats[-1].json["messages"]]
    assert said == [("user", "first"), ("assistant", "One."), ("user", "second")]


def test_ctrl_c_stops_an_answer_and_not_the_conversation(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Stream(text_stream("one two three"), stall_after=3), Stream(text_stream("Done.")))
    with terminal("chat", folder=tmp_path, env=upstream_env(upstream)) as screen:
        screen.until("> ")
        screen.type("hi\n")
        screen.until("two")
        screen.child.send_signal(signal.SIGINT)
        screen.until("penstock: stopped")
        screen.until("> ")
        screen.type("again\n")
        screen.until("Done.")
        screen.until("> ")
        # The moment between a prompt and its reading swallows a signal; a person presses again.
        while screen.child.poll() is None:
            screen.child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                screen.child.wait(0.5)
        assert screen.child.returncode == 130


def test_reasoning_is_dimmed_and_controls_are_removed_on_a_terminal(upstream: Upstream, tmp_path: Path) -> None:
    thought = chunk(role="assistant", reasoning_content="hmm")
    upstream.script(Stream([thought, *text_stream("y\x1b[31mes\x07.")]))
    with terminal("chat", "hi", folder=tmp_path, env=upstream_env(upstream)) as screen:
        assert screen.until("mes.").endswith("\x1b[2mhmm\x1b[22m\r\n\r\ny[31mes.")
        assert screen.child.wait(STARTS_S) == 0


FILE = """
auth: {tokens: [{name: alice, value: "${TOKEN}", scopes: [chat, admin]}]}
models:
  - {name: fast, llm: "openai:gpt-5-mini", api_key: "${OPENAI_API_KEY}", retry: {attempts: 2}}
  - {name: toy, llm: demo, limit: {concurrent: 3}}
"""
FILE_ENV = {"TOKEN": "pk-canary-9876543210", "OPENAI_API_KEY": KEY, "GEMINI_API_KEY": KEY, "GOOGLE_API_KEY": KEY}


def test_check_shows_models_policies_and_tokens(tmp_path: Path, command: Command) -> None:
    (tmp_path / "penstock.yaml").write_text(FILE)
    done = command("check", folder=tmp_path, env=FILE_ENV)
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["ok"]
    assert ["fast", "openai:gpt-5-mini", "https://api.openai.com/v1", "retry"] in [row[:4] for row in rows]
    assert any(row[:1] == ["toy"] and "concurrent" in row for row in rows)
    assert "auth: alice (chat admin)" in done.stdout
    assert "GOOGLE_API_KEY and GEMINI_API_KEY are both set" in done.stderr


def test_check_answers_in_json(tmp_path: Path, command: Command) -> None:
    (tmp_path / "other.yaml").write_text(FILE)
    said = json.loads(command("check", "--json", "--config", "other.yaml", folder=tmp_path, env=FILE_ENV).stdout)
    assert said["ok"]
    assert [(one["name"], one["order"][0]) for one in said["models"]] == [
        ("fast", "retry up to 2 attempts"),
        ("toy", "limit 3 concurrent"),
    ]
    assert said["auth"] == [{"name": "alice", "scopes": ["chat", "admin"]}]


@pytest.mark.parametrize("asked", [["check"], ["serve"], ["chat", "hi"]])
def test_case_27_every_command_refuses_a_wrong_file_with_2(tmp_path: Path, asked: list[str], command: Command) -> None:
    (tmp_path / "penstock.yaml").write_text("server:\n  prot: 1\n")
    done = command(*asked, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "penstock: penstock.yaml:2: server.prot: unknown key 'prot': did you mean 'port'?\n"


def test_check_tells_a_mistake_in_json(tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("server:\n  prot: 1\n")
    done = penstock("check", "--json", folder=tmp_path)
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"]) == (2, False)
    assert (said["error"]["file"], said["error"]["line"], said["error"]["key"]) == ("penstock.yaml", 2, "server.prot")


def test_check_prints_the_schema(tmp_path: Path, command: Command) -> None:
    assert json.loads(command("check", "--schema", folder=tmp_path).stdout) == schema()


def test_serve_refuses_another_host_without_tokens(tmp_path: Path, command: Command) -> None:
    done = command("serve", "--host", "0.0.0.0", folder=tmp_path)
    assert done.returncode == 2
    assert "command line: --host: the host '0.0.0.0' can be reached from other machines" in done.stderr


def test_case_25_no_command_shows_a_secret(tmp_path: Path, command: Command) -> None:
    (tmp_path / "penstock.yaml").write_text(FILE)
    for asked in (
        ["check"],
        ["check", "--json"],
        ["chat", "hi", "--model", "toy"],
        ["chat", "hi", "--model", "nope"],
    ):
        done = command(*asked, folder=tmp_path, env=FILE_ENV)
        shown = done.stdout + done.stderr
        for secret in FILE_ENV.values():
            assert not any(secret[at : at + 8] in shown for at in range(len(secret) - 7))


def token_row(text: str) -> dict[str, Any]:
    row: dict[str, Any] = yaml.safe_load(text)["auth"]["tokens"][0]
    return row


def test_a_new_token_comes_with_the_lines_that_let_it_in(tmp_path: Path, command: Command) -> None:
    done = command("token", "new", "a: {b}", "--scopes", "chat,tools", "--tenant", "t", folder=tmp_path)
    token, _, lines = done.stdout.partition("\n")
    assert done.returncode == 0
    assert token.startswith("pk-")
    assert len(token) >= 43
    row = token_row(lines[lines.index("auth:") :])
    assert row == {
        "name": "a: {b}",
        "hash": f"sha256:{hashlib.sha256(token.encode()).hexdigest()}",
        "scopes": ["chat", "tools"],
        "tenant": "t",
    }
    (tmp_path / "penstock.yaml").write_text(lines[lines.index("auth:") :])
    assert load(str(tmp_path / "penstock.yaml"), {}).auth.tokens[0].hash == row["hash"]


def test_a_new_token_in_json(tmp_path: Path, command: Command) -> None:
    said = json.loads(command("token", "new", "bob", "--json", folder=tmp_path).stdout)
    assert said["hash"] == f"sha256:{hashlib.sha256(said['token'].encode()).hexdigest()}"
    assert (said["name"], said["scopes"]) == ("bob", ["chat"])


@pytest.mark.parametrize(
    ("arguments", "words"), [(["bob", "--scopes", "a b"], "'a b' is not one word"), ([""], "name: ''")]
)
def test_a_token_that_cannot_be_configured_is_not_made(
    tmp_path: Path, arguments: list[str], words: str, command: Command
) -> None:
    done = command("token", "new", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_prompt_that_is_not_utf_8_is_told_in_one_line() -> None:
    command = [sys.executable, "-m", "penstock", "chat"]
    ended = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert ended.stderr.decode().strip() == "penstock: the prompt is not UTF-8 text (character 4)"
