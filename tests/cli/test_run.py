"""`penstock run`: what is checked before, what is shown meanwhile, how it ends, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.projects import left_behind, ran, stands, written
from tests.rig.answers import Plain
from tests.rig.upstream import Upstream, error_body

KEY = "sk-canary-0123456789"


def test_a_project_is_run_with_a_line_for_each_change_and_a_report(tmp_path: Path, command: Command) -> None:
    written(tmp_path)
    done = command("run", "project.yaml", folder=tmp_path)
    assert done.returncode == 0
    first, *changes = done.stderr.splitlines()
    assert first == "site: 3 pending"
    assert [line.split(" s  ", 1)[1].split(" (")[0] for line in changes] == [
        f"{task}: {status}" for task in ("plan", "write", "check") for status in ("in progress", "success")
    ]
    head, *rows, summary, where = done.stdout.splitlines()
    assert head.split() == ["task", "status", "agent", "time", "output"]
    assert [row.split()[:4] for row in rows] == [["✓", name, "success", "quick"] for name in ("plan", "write", "check")]
    assert all(row.endswith("done so") for row in rows)
    assert summary.startswith("succeeded: 3 of 3 tasks succeeded")
    assert where == "read all: penstock project report site"
    assert ran(tmp_path) == ["quick"] * 3


def test_each_run_of_a_project_has_a_name_of_its_own(tmp_path: Path, command: Command) -> None:
    written(tmp_path)
    for name in ("site", "site-2", "site-3"):
        done = command("run", "project.yaml", folder=tmp_path)
        assert done.stdout.splitlines()[-1] == f"read all: penstock project report {name}"


def test_a_task_that_fails_ends_it_with_1_and_blocks_what_needs_it(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "bad")
    done = command("run", "project.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert "write: failed (" in done.stderr
    assert "check: blocked: " in done.stderr
    assert "failed: 1 of 3 tasks succeeded, 1 failed, 1 blocked" in done.stdout
    assert done.stdout.endswith("do again what failed: penstock project retry site\n")


def test_as_json_it_is_the_whole_log_and_then_the_report(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "bad")
    done = command("run", "project.yaml", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    *entries, last = map(json.loads, done.stdout.splitlines())
    assert [entry["offset"] for entry in entries] == [*range(1, len(entries) + 1)]
    assert [(entry["step"], entry["state"]) for entry in entries if entry["step"]] == [
        ("plan", "running"),
        ("plan", "succeeded"),
        ("write", "running"),
        ("write", "failed"),
        ("check", "blocked"),
    ]
    assert entries[-1]["kind"] == "ended"
    report = last["report"]
    assert (report["run"], report["state"], report["counts"]) == (
        "site",
        "failed",
        {"success": 1, "failed": 1, "blocked": 1},
    )
    assert report["results"][0]["output"] == "done so"


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (
            ("agent: quick}", "agent: quik}"),
            [],
            "project.yaml:6: defaults.agent: no agent 'quik': did you mean 'quick'?",
        ),
        (("[plan]", "[check]"), [], "circle"),
        (("name: site", "nam: site"), [], "unknown key 'nam'"),
        ((), ["--resume"], "nothing to resume of the project 'site' in '"),
        ((), ["--resume", "--new"], "not both"),
        ((), ["--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    tmp_path: Path, command: Command, change: tuple[str, str] | tuple[()], options: list[str], words: str
) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace(*change) if change else file.read_text())
    done = command("run", "project.yaml", *options, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("penstock: ")
    assert words in done.stderr
    assert ran(tmp_path) == []
    assert not (tmp_path / ".penstock").exists()


def test_no_more_tasks_run_at_once_than_asked_for(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace("[plan]", "[]").replace("[write]", "[]"))
    done = command("run", "project.yaml", "--concurrent", "1", folder=tmp_path)
    running = 0
    for line in done.stderr.splitlines()[1:]:
        running += 1 if "in progress" in line else -1
        assert 0 <= running <= 1
    assert command("run", "project.yaml", "--concurrent", "0", folder=tmp_path).returncode == 2


def test_what_was_interrupted_goes_on_where_it_was(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "slow")
    left_behind(tmp_path)
    assert ran(tmp_path) == ["quick", "slow"]
    refused = command("run", "project.yaml", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        "penstock: the run 'site' is interrupted: `penstock project resume site` goes on with it, "
        "--new begins another\n"
    )
    (tmp_path / "go").touch()
    done = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "site: 1 success, 2 pending"
    assert "plan: in progress" not in done.stderr
    assert ran(tmp_path) == ["quick", "slow", "slow", "quick"]
    again = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert again.returncode == 2
    assert f"nothing to resume of the project 'site' in '{tmp_path / '.penstock'}': 'site' succeeded" in again.stderr


def test_a_new_run_may_begin_beside_one_that_was_interrupted(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "slow")
    left_behind(tmp_path)
    (tmp_path / "go").touch()
    done = command("run", "project.yaml", "--new", folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "read all: penstock project report site-2")
    assert command("run", "project.yaml", "--resume", folder=tmp_path).stdout.endswith("report site\n")


def test_a_file_that_changed_is_not_gone_on_with(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path, "slow")
    left_behind(tmp_path)
    text = file.read_text()
    file.write_text(text.replace("Plan it.", "Plan all.").replace("id: check", "id: proof") + "goal: Another.\n")
    done = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "penstock: project.yaml has changed since the run 'site' began (tasks added: 'proof'; tasks removed: 'check'; "
        "tasks changed: 'plan'; goal changed): bring it back to go on, or begin anew with --new\n"
    )
    file.write_text(text + "limits: {concurrent: 2}\n")
    (tmp_path / "go").touch()
    done = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("penstock: it goes on with limits.concurrent 8, with which it began\n")


def test_the_run_of_a_project_with_a_like_name_is_left_alone(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path, "slow")
    file.write_text(file.read_text().replace("name: site", "name: site-2"))
    left_behind(tmp_path, "site-2")
    written(tmp_path)
    assert "nothing to resume" in command("run", "project.yaml", "--resume", folder=tmp_path).stderr
    for name in ("site", "site-3"):
        done = command("run", "project.yaml", folder=tmp_path)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"read all: penstock project report {name}")
    assert stands(tmp_path, "site-2").state == "interrupted"


@pytest.mark.parametrize("key", ["defaults", "limits"])
def test_a_file_that_says_other_defaults_or_limits_is_not_gone_on_with(
    tmp_path: Path, command: Command, key: str
) -> None:
    file = written(tmp_path, "slow")
    left_behind(tmp_path)
    text = file.read_text()
    if key == "defaults":
        file.write_text(text.replace("{agent: quick}", "{agent: quick, timeout_s: 60}"))
    else:
        file.write_text(text + "limits: {agents: {quick: 1}, concurrent: 2}\n")
    done = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert done.returncode == 2
    assert f"has changed since the run 'site' began ({key} changed)" in done.stderr


def test_what_goes_on_may_be_narrower_or_wider_than_it_began(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path, "slow")
    file.write_text(file.read_text().replace("[plan]", "[]").replace("[write]", "[plan]") + "limits: {concurrent: 2}\n")
    left_behind(tmp_path)
    (tmp_path / "go").touch()
    done = command("run", "project.yaml", "--resume", "--concurrent", "1", folder=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0][:5]) == (0, "site:")
    running = 0
    for line in done.stderr.splitlines()[1:]:
        running += 1 if "in progress" in line else -1
        assert 0 <= running <= 1
    assert stands(tmp_path).payload["limits"] == {"concurrent": 2}


def test_agents_may_change_between(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path, "slow")
    left_behind(tmp_path)
    file.write_text(file.read_text().replace("slow.sh", "quick.sh"))
    assert command("run", "project.yaml", "--resume", folder=tmp_path).returncode == 0
    assert ran(tmp_path) == ["quick", "slow", "quick", "quick"]


def test_no_key_is_shown_or_stored(tmp_path: Path, command: Command, upstream: Upstream) -> None:
    upstream.script(Plain(error_body(f"the key {KEY} is wrong"), status=401))
    (tmp_path / "project.yaml").write_text(
        "name: site\n"
        "agents: [{name: a, provider: openai, model: m, api_key: '${SHOP_KEY}', base_url: '${SHOP_URL}'}]\n"
        "tasks: [{id: one, description: Write., agent: a}]\n"
    )
    env = {"SHOP_KEY": KEY, "SHOP_URL": upstream.base_url}
    done = command("run", "project.yaml", "--json", folder=tmp_path, env=env)
    assert done.returncode == 1
    assert upstream.chats[-1].headers["authorization"] == f"Bearer {KEY}"
    told = [done, *(command("project", name, folder=tmp_path) for name in ("status", "report", "events"))]
    stored = b"".join(file.read_bytes() for file in (tmp_path / ".penstock").iterdir())
    assert stands(tmp_path).steps["one"].state == "failed"
    for text in (*(one.stdout + one.stderr for one in told), stored.decode("utf-8", "replace")):
        assert KEY[:12] not in text
