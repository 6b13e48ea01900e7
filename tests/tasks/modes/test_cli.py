"""Agents that are commands: what they are told, what they print, how they end."""

from __future__ import annotations

import json
import os
import resource
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import TaskFailed
from penstock.events import Used
from penstock.messages import Usage
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes.child import TAIL, run_child
from penstock.tasks.modes.cli import PASSED
from penstock.testing import Heard
from tests.tasks.modes.commands import done, exists, living, pids, printing, script

ECHO = """printf '{"status":"success","output":'; cat; printf '}'"""
OK = '{"status": "success", "output": "done"}'


async def failure(agent: AgentConfig) -> TaskFailed:
    with pytest.raises(TaskFailed) as raised:
        await done(agent)
    return raised.value


async def test_row_c5_a_command_finds_the_task_on_stdin() -> None:
    answer = await done(script(ECHO), results={"plan": {"rhyme": "aabb"}}, feedback=("It does not rhyme.",), last="Oh.")
    assert answer.agent == "poet"
    assert answer.output == {
        "task": {
            "id": "write",
            "title": "A poem",
            "description": "Write a poem.",
            "deliverables": ["poem.txt"],
            "success_criteria": ["It rhymes."],
            "inputs": {"lines": 4},
        },
        "results": {"plan": {"rhyme": "aabb"}},
        "feedback": ["It does not rhyme."],
        "last": "Oh.",
    }


async def test_row_c5_a_command_can_open_its_stdin_by_name() -> None:
    answer = await done(script(ECHO.replace("cat", "cat /dev/stdin")))
    assert answer.output["task"]["id"] == "write"
    assert "last" not in answer.output


async def test_row_c5_nobody_need_read_stdin() -> None:
    assert (await done(script(printing(OK)), results={"long": "x" * 3_000_000})).output == "done"


async def test_row_c5_what_a_command_used_is_told() -> None:
    usage = '{"prompt_tokens": 10, "completion_tokens": 5, "cost_usd": 0.25}'
    heard = Heard()
    await done(script(printing(OK[:-1] + f', "usage": {usage}}}')), heard)
    told = [event for event in heard.events if isinstance(event, Used)]
    assert told == [Used(usage=Usage(10, 5, 15), model="poet", provider="cli", cost=Decimal("0.25"))]


async def test_row_c5_what_a_command_that_failed_used_is_told_too() -> None:
    heard = Heard()
    with pytest.raises(TaskFailed):
        await done(script(printing('{"status": "failed", "usage": {"prompt_tokens": 7}}') + "exit 1"), heard)
    assert [event.usage.total_tokens for event in heard.events if isinstance(event, Used)] == [7]


SAYS_NO = printing('{"status": "failed", "error": "no rhyme found"}')


@pytest.mark.parametrize(
    ("text", "code", "said", "retryable"),
    [
        (SAYS_NO, "agent_failed", "no rhyme found", True),
        (SAYS_NO + "exit 1", "agent_failed", "exited with 1: no rhyme found", True),
        (printing(OK) + "exit 1", "agent_failed", "exited with 1: it gave no reason", True),
        ("echo first >&2; echo 'out of ink' >&2; exit 1", "agent_failed", "exited with 1: out of ink", True),
        (SAYS_NO + "exit 2", "agent_misconfigured", "no rhyme found", False),
        ("echo 'no such model' >&2; exit 2", "agent_misconfigured", "no such model", False),
        ("exit 127", "agent_failed", "exited with 127", True),
        ("kill -9 $$", "agent_failed", "was killed by SIGKILL", True),
        ("kill -40 $$", "agent_failed", "was killed by signal 40", True),
        (printing('{"status": "failed", "error": {"message": "no ink", "at": 3}}'), "agent_failed", "no ink", True),
    ],
)
async def test_row_c5_how_a_command_fails(text: str, code: str, said: str, retryable: bool) -> None:
    error = await failure(script(text))
    assert (error.code, error.retryable) == (code, retryable)
    assert "'poet'" in error.message
    assert said in error.message


async def test_row_c5_the_details_of_a_failure_say_what_is_known() -> None:
    error = await failure(
        script("echo 'out of ink' >&2; " + SAYS_NO.replace('"no rhyme found"', '{"line": 3}') + "exit 7")
    )
    assert error.details == {"exit_code": 7, "stderr": "out of ink", "error": {"line": 3}}
    long = await failure(script("yes 0123456789 | head -n 3000 >&2; echo end >&2; echo oops; exit 1"))
    assert long.details["stderr"].endswith("0123456789\nend")
    assert 3000 < len(long.details["stderr"]) <= 4000
    assert long.details["stdout"] == "oops\n"


async def test_case_21_of_endless_errors_only_the_end_is_kept() -> None:
    printed = await run_child(
        ["sh", "-c", "yes | head -c 1000000 >&2; echo end >&2"], stdin=b"", env=os.environ, cwd=None, most=0
    )
    assert len(printed.errors) == TAIL
    assert printed.errors.endswith(b"y\nend\n")


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        ("", "nothing was printed"),
        ("Here is your poem.", "begins 'Here is your poem."),
        ('["status"]', "Expected `object`, got `array`"),
        ('{"status": "done"}', "'done'"),
        ('{"output": "a poem"}', "`status`"),
        ('{"status": "success", "output": ' + "[" * 150 + "]" * 150 + "}", "nested more than 100 deep"),
        ('{"status": "success", "output": ' + "[" * 5000 + "]" * 5000 + "}", "nested more than 100 deep"),
        ('{"status": "success", "usage": {"prompt_tokens": -1}}', "no usage can be"),
        ('{"status": "success", "usage": {"cost_usd": "NaN"}}', "no usage can be"),
        (OK + OK, "trailing characters"),
    ],
)
async def test_row_c5_what_is_no_answer_is_shown(printed: str, problem: str) -> None:
    error = await failure(script(printing(printed)))
    assert (error.code, error.retryable) == ("bad_output", True)
    assert problem in error.message


async def test_row_c5_the_output_may_be_as_long_as_allowed_and_not_longer(tmp_path: Path) -> None:
    fits = OK.replace("done", "x" * (1024 - len(OK) + len("done")))
    assert (await done(script('printf %s "$0"', fits, max_output_kb=1))).output.startswith("xxx")
    error = await failure(script('printf %s "$0 "', fits, max_output_kb=1))
    assert (error.code, error.retryable) == ("output_too_large", False)
    assert "more than 1 kB" in error.message
    endless = await failure(script('echo $$ > "$0"; exec yes', tmp_path / "pid", max_output_kb=1))
    assert endless.code == "output_too_large"
    assert not exists(pids(tmp_path / "pid", 1)[0])


async def test_row_c5_a_command_sees_the_named_variables_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POET_KEY", "4711")
    monkeypatch.setenv("OTHER_KEY", "of no concern")
    await done(script('env > "$0"; ' + printing(OK), tmp_path / "env", env=("POET_KEY",)))
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    wanted = {name: os.environ[name] for name in (*PASSED, "POET_KEY") if name in os.environ}
    assert {name: value for name, value in seen.items() if name not in {"PWD", "OLDPWD", "SHLVL", "_"}} == wanted


async def test_row_c5_a_variable_that_is_not_set_stops_it_before_it_starts(tmp_path: Path) -> None:
    error = await failure(script('touch "$0"', tmp_path / "ran", env=("PATH", "NO_SUCH_KEY")))
    assert (error.code, error.retryable) == ("agent_misconfigured", False)
    assert "'NO_SUCH_KEY'" in error.message
    assert not (tmp_path / "ran").exists()


async def test_row_c5_a_command_works_in_its_folder(tmp_path: Path) -> None:
    where = (await done(script("""printf '{"status":"success","output":"%s"}' "$(pwd)" """, cwd=str(tmp_path)))).output
    assert where == str(tmp_path)


@pytest.mark.parametrize("wrong", ["absent", "not executable", "no program", "folder", "null"])
async def test_row_c5_a_command_that_cannot_start_is_misconfigured(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "agent"
    file.write_text("no program")
    file.chmod(0o755 if wrong == "no program" else 0o644)
    commands: dict[str, dict[str, Any]] = {
        "absent": {"command": (str(tmp_path / "absent"),)},
        "not executable": {"command": (str(file),)},
        "no program": {"command": (str(file),)},
        "folder": {"command": ("true",), "cwd": str(tmp_path / "absent")},
        "null": {"command": ("true", "a\0b")},
    }
    error = await failure(AgentConfig(name="poet", mode="cli", **commands[wrong]))
    assert (error.code, error.retryable) == ("agent_misconfigured", False)
    assert "'poet' cannot be started" in error.message


async def test_row_c5_a_start_for_which_there_is_no_room_may_be_tried_again() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(2)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        error = await failure(script("exit 0"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (error.code, error.retryable) == ("agent_failed", True)
    assert "Too many open files" in error.message


async def test_case_24_an_argument_is_no_shell() -> None:
    hostile = "; touch /never $(touch /never)"
    agent = AgentConfig(name="poet", mode="cli", command=("printf", '{"status":"success","output":"%s"}', hostile))
    assert (await done(agent)).output == hostile


async def test_row_c5_a_child_that_stays_behind_is_killed_and_hangs_nobody(tmp_path: Path) -> None:
    text = 'sleep 60 & echo $! > "$0"; ' + printing(OK)
    assert (await done(script(text, tmp_path / "pid"))).output == "done"
    assert not living(pids(tmp_path / "pid", 1))


async def test_row_c5_what_is_written_after_the_command_ended_still_counts() -> None:
    assert (await done(script(f"(sleep 0.05; echo '{json.dumps({'status': 'success', 'output': 1})}') &"))).output == 1
