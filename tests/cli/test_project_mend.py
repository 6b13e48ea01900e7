"""`penstock project`: which run goes on, with which limits, what is cancelled, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest

from penstock.cli.advice import wrapped
from penstock.cli.mend import cancelled
from penstock.cli.tables import middled
from penstock.config.projects import JOURNAL
from penstock.store.journal import Journal
from penstock.store.steps import Change, Note
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.engines.past import EFFECTS, LEGAL
from tests.cli.conftest import Command
from tests.cli.projects import ran, seen, stands, written
from tests.cli.test_commands import COMMAND, environment, penstock

BUDGET = """\
name: site
agents: [{name: clerk, provider: demo}]
limits: {budget: {tokens: TOKENS}}
defaults: {agent: clerk}
tasks:
  - {id: a, description: Write two lines.}
  - {id: b, description: Write two more., depends_on: [a]}
"""


def died(folder: Path, *, effects: bool = False, run: str = "site", flow: str = "project") -> None:
    """Leave a run in the journal as a killed process does, with its task `write` in progress."""
    tasks = [
        {"id": "plan", "description": "Plan it."},
        {"id": "write", "description": "Write it.", "agent": "slow", "depends_on": ["plan"]},
        {"id": "check", "description": "Check it.", "depends_on": ["write"]},
    ]
    payload = {"name": "site", "defaults": {"agent": "quick"}, "tasks": tasks}
    spec = {"flow": flow, "payload": payload if flow == "project" else {"project": payload, "owner": "ann", "by": "x"}}

    async def work() -> None:
        (folder / ".penstock").mkdir(exist_ok=True)
        async with Journal(folder / ".penstock" / JOURNAL) as journal:
            await journal.begin(run, spec, (), transitions=LEGAL)
            done = {"task": "plan", "agent": "quick", "status": "success", "output": "x", "attempts": 1}
            await journal.write(
                run,
                Note("file", str(folder / "project.yaml")),
                Change("plan", "running"),
                Change("plan", "succeeded", done),
                Change("write", "running", EFFECTS if effects else None),
            )
            await journal.release(run)

    asyncio.run(work())


def test_an_older_run_goes_on_by_its_name_and_the_newest_is_left_alone(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "slow")
    died(tmp_path)
    died(tmp_path, run="site-2")
    (tmp_path / "go").touch()
    refused = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert (refused.returncode, ran(tmp_path)) == (2, [])
    assert "several runs of it have not ended, 'site-2', 'site': say which" in refused.stderr
    assert "several runs have not ended" in command("project", "resume", folder=tmp_path).stderr
    assert command("project", "resume", "site", folder=tmp_path).returncode == 0
    assert (ran(tmp_path), stands(tmp_path, "site-2").state) == (["slow", "quick"], "interrupted")
    ended = command("project", "resume", "site", folder=tmp_path)
    assert ended.returncode == 2
    assert "the run 'site' has ended (succeeded)" in ended.stderr
    assert command("project", "resume", folder=tmp_path).returncode == 0
    assert stands(tmp_path, "site-2").state == "succeeded"


@pytest.mark.parametrize("effects", [False, True])
def test_the_tasks_of_a_dead_process_are_not_in_progress(tmp_path: Path, command: Command, effects: bool) -> None:
    written(tmp_path, "slow")
    died(tmp_path, effects=effects)
    lines = command("project", "status", folder=tmp_path).stdout.splitlines()
    assert "in progress" not in "\n".join(lines)
    row = next(line for line in lines if " write " in line)
    if effects:
        assert "unknown" in row
        assert lines[-1] == "write may have had its effects: look, then `penstock project retry site write`"
        assert not any("resume" in line for line in lines)
        (tmp_path / "go").touch()
        assert command("project", "retry", "site", "write", folder=tmp_path).returncode == 0
    else:
        assert row.split()[2] == "pending"
        assert row.endswith("interrupted")
        assert lines[-1] == "go on with it: penstock project resume site"


def test_a_raised_budget_of_the_file_holds_and_what_else_changed_is_said(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "project.yaml"
    file.write_text(BUDGET.replace("TOKENS", "1"))
    assert command("run", "project.yaml", folder=tmp_path).returncode == 1
    assert command("project", "retry", folder=tmp_path).returncode == 1
    file.write_text(BUDGET.replace("TOKENS", "100000").replace("{agent: clerk}", "{agent: clerk, timeout_s: 9}"))
    done = command("project", "retry", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "limits.budget is what" in done.stderr
    assert "(defaults changed): the run keeps what it began with, `penstock run" in done.stderr
    assert "--new` begins anew" in done.stderr


def test_without_a_name_nothing_of_a_server_is_cancelled(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "slow")
    died(tmp_path, run="proj_1", flow="served")
    refused = command("project", "cancel", folder=tmp_path)
    assert (refused.returncode, stands(tmp_path, "proj_1").state) == (2, "interrupted")
    for run in ("site", "site-2"):
        died(tmp_path, run=run)
    several = command("project", "cancel", folder=tmp_path)
    assert several.returncode == 2
    assert "'site-2', 'site': name the one to cancel" in several.stderr
    lines = [line.split() for line in command("project", "list", "--limit", "3", folder=tmp_path).stdout.splitlines()]
    assert lines[-1][:3] + lines[-1][-2:] == ["proj_1", "interrupted", "1/3", "site", "ann"]
    told = json.loads(command("project", "list", "--limit", "1", "--json", folder=tmp_path).stdout)
    assert (told["more"], [one["run"] for one in told["runs"]]) == (2, ["site-2"])


def test_a_task_that_has_not_begun_is_cancelled_in_a_run_that_nobody_runs(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "slow")
    died(tmp_path)
    done = command("project", "cancel", "site", "check", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "cancelled: the task 'check' of 'site'\n")
    assert "no task 'chek'" in command("project", "cancel", "site", "chek", folder=tmp_path).stderr
    (tmp_path / "go").touch()
    assert command("project", "resume", "site", folder=tmp_path).returncode == 1
    assert ran(tmp_path) == ["slow"]
    assert stands(tmp_path).steps["check"].state == "cancelled"


@pytest.mark.parametrize("task", [None, "write"])
def test_what_somebody_else_cancels_at_the_same_time_is_cancelled(tmp_path: Path, task: str | None) -> None:
    died(tmp_path)

    async def work() -> tuple[bool, bool]:
        async with LocalEngine(Journal(tmp_path / ".penstock" / JOURNAL)) as engine:
            before = await engine.status("site")
            assert await engine.cancel("site", task)
            return await cancelled(engine, before, task), await cancelled(engine, await engine.status("site"), task)

    assert asyncio.run(work()) == (True, False)


def test_why_a_task_failed_is_said_in_full_and_the_log_in_short_or_in_full(tmp_path: Path, command: Command) -> None:
    reason = "because " * 60 + "of this"
    answer = json.dumps({"status": "failed", "error": reason})
    (tmp_path / "answer").write_text(answer)
    (tmp_path / "project.yaml").write_text(
        "name: site\nagents: [{name: sad, mode: cli, command: [cat, answer]}]\n"
        "tasks: [{id: one, description: Write., agent: sad}]\n"
    )
    done = command("run", "project.yaml", folder=tmp_path)
    assert reason in done.stdout
    assert reason in command("project", "status", folder=tmp_path).stdout
    short = command("project", "events", folder=tmp_path).stdout
    assert max(map(len, short.splitlines())) <= 200
    assert reason not in short
    assert reason in command("project", "events", "--full", folder=tmp_path).stdout


def test_lines_are_broken_between_words_and_long_names_in_the_middle() -> None:
    lines = wrapped("look, then `penstock project retry site write-it-all` and so on, and on", 40)
    assert [len(line) < 40 for line in lines] == [True] * len(lines)
    assert " ".join(line.strip() for line in lines).endswith("site write-it-all` and so on, and on")
    names = [middled(f"write-the-long-chapter-{number}", 12) for number in (1, 2)]
    assert names == ["write-…ter-1", "write-…ter-2"]


def test_text_that_the_terminal_has_no_letters_for_is_no_traceback(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace("id: plan", "id: 計画").replace("[plan]", "[計画]"))
    done = penstock("run", "project.yaml", folder=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\u8a08" in done.stdout


def test_what_may_have_happened_is_the_advice_after_an_interrupt(tmp_path: Path) -> None:
    file = written(tmp_path, "slow")
    file.write_text(file.read_text().replace("slow, mode: cli, effects: false", "slow, mode: cli"))
    child = subprocess.Popen(
        [*COMMAND, "run", "project.yaml"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    seen(tmp_path / "pid")
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert said.splitlines()[-2:] == [
        "penstock: interrupted, 2 of 3 tasks have ended",
        "penstock: write may have had its effects: look, then `penstock project retry site write`",
    ]


def test_a_file_is_checked_and_nothing_of_it_runs(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path)
    done = command("run", "project.yaml", "--check", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "plan  (quick)",
        "  write  (quick)",
        "    check  (quick)",
        "site: 3 tasks, nothing has run",
    ]
    told = json.loads(command("run", "project.yaml", "--check", "--json", folder=tmp_path).stdout)
    assert told["agents"] == dict.fromkeys(("plan", "write", "check"), "quick")
    file.write_text(file.read_text().replace("[plan]", "[check]"))
    assert command("run", "project.yaml", "--check", folder=tmp_path).returncode == 2
    assert (ran(tmp_path), (tmp_path / ".penstock").exists()) == ([], False)


def test_the_agents_of_the_configuration_are_listed(tmp_path: Path, command: Command) -> None:
    (tmp_path / "penstock.yaml").write_text(
        "agents: [{name: clerk, provider: demo}, {name: press, mode: cli, command: [sh, press.sh]}]\n"
    )
    lines = [line.split() for line in command("check", folder=tmp_path).stdout.splitlines()]
    assert ["clerk", "api", "demo"] in lines
    assert ["press", "cli", "sh"] in lines
    told = json.loads(command("check", "--json", folder=tmp_path).stdout)
    assert [one["name"] for one in told["agents"]] == ["clerk", "press"]


def test_nothing_to_resume_makes_no_folder(tmp_path: Path, command: Command) -> None:
    written(tmp_path)
    left = command("project", "resume", folder=tmp_path)
    assert left.returncode == 2
    assert f"in '{tmp_path / '.penstock'}'" in left.stderr
    assert not (tmp_path / ".penstock").exists()
    other = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert f"in '{tmp_path / '.penstock'}'" in other.stderr
    assert not (tmp_path / ".penstock").exists()
