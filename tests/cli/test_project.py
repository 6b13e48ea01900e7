"""`penstock project`: what is told of runs, and what can be done with them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from penstock.tasks.project import ProjectSpec
from tests.cli.conftest import Command
from tests.cli.projects import left_behind, ran, stands, written
from tests.docs.pages import DOCS, rows
from tests.docs.test_pages import keys
from tests.docs.test_pages import written as written_default


@pytest.fixture
def failed(tmp_path: Path, command: Command) -> Path:
    """A folder with a run of which one task failed."""
    written(tmp_path, "bad")
    assert command("run", "project.yaml", folder=tmp_path).returncode == 1
    return tmp_path


@pytest.mark.parametrize("name", ["status", "report", "graph", "events", "retry", "cancel"])
def test_without_any_run_it_says_how_to_begin_one(tmp_path: Path, command: Command, name: str) -> None:
    done = command("project", name, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no project has been run yet" in done.stderr
    assert not (tmp_path / ".penstock").exists()


def test_runs_are_listed_the_newest_first(failed: Path, command: Command) -> None:
    command("run", "project.yaml", folder=failed)
    rows = [row.split()[:3] for row in command("project", "list", folder=failed).stdout.splitlines()]
    assert rows == [["run", "state", "tasks"], ["site-2", "failed", "1/3"], ["site", "failed", "1/3"]]
    told = json.loads(command("project", "list", "--json", folder=failed).stdout)["runs"]
    assert [(one["run"], one["project"], one["state"]) for one in told] == [
        ("site", "site", "failed"),
        ("site-2", "site", "failed"),
    ]


def test_without_a_name_it_is_the_newest_run(failed: Path, command: Command) -> None:
    (failed / "go").touch()
    command("run", "project.yaml", folder=failed)
    assert "site-2: succeeded: 3 of 3" in command("project", "status", folder=failed).stdout
    assert "site: failed: 1 of 3" in command("project", "status", "site", folder=failed).stdout
    unknown = command("project", "status", "sight", folder=failed)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "penstock: there is no run 'sight': there are 'site-2', 'site'\n"


def test_the_status_shows_each_task_and_as_json_no_outputs(failed: Path, command: Command) -> None:
    done = command("project", "status", folder=failed)
    assert done.returncode == 0
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:4]] == [
        ["✓", "plan", "success"],
        ["✗", "write", "failed"],
        ["!", "check", "blocked"],
    ]
    told = json.loads(command("project", "status", "--json", folder=failed).stdout)
    assert (told["run"], told["state"], told["offset"]) == ("site", "failed", stands(failed).offset)
    assert [(task["task"], task["status"]) for task in told["tasks"]] == [
        ("plan", "success"),
        ("write", "failed"),
        ("check", "blocked"),
    ]
    assert "done so" not in json.dumps(told)


def test_the_report_is_markdown_or_json_on_stdout_or_in_a_file(failed: Path, command: Command) -> None:
    text = command("project", "report", folder=failed).stdout
    assert text.startswith("# Project site\n")
    assert "done so" in text
    assert command("project", "report", "-o", "r.md", folder=failed).stdout == "written to r.md\n"
    assert (failed / "r.md").read_text() == text
    told = json.loads(command("project", "report", "--json", folder=failed).stdout)
    assert told["results"][0]["output"] == "done so"
    refused = command("project", "report", "-o", "none/r.md", folder=failed)
    assert refused.returncode == 2
    assert "cannot be written to 'none/r.md'" in refused.stderr


def test_the_graph_is_a_tree_or_a_flowchart(failed: Path, command: Command) -> None:
    lines = command("project", "graph", folder=failed).stdout.splitlines()
    assert [line.partition("(")[0].rstrip() for line in lines] == ["plan", "  write", "    check"]
    assert command("project", "graph", "--mermaid", folder=failed).stdout.startswith("flowchart TD\n")


def test_the_log_is_printed_with_its_offsets(failed: Path, command: Command) -> None:
    lines = command("project", "events", folder=failed).stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [*range(1, len(lines) + 1)]
    assert any(line.endswith("plan succeeded: done so") for line in lines)
    assert any("write failed: agent_failed: " in line for line in lines)
    later = command("project", "events", "--after", "3", "--json", folder=failed).stdout.splitlines()
    assert [json.loads(line)["offset"] for line in later] == [*range(4, len(lines) + 1)]


def test_what_failed_is_done_again_with_the_agents_of_its_file(
    failed: Path, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (failed / "go").touch()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "penstock.yaml").write_text(f"store: {{dir: {failed / '.penstock'}}}\n")
    done = command("project", "retry", folder=elsewhere)
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "site: 1 success, 2 pending"
    assert done.stdout.splitlines()[-1] == "read all: penstock project report site"
    assert ran(failed) == ["quick", "bad", "bad", "quick"]
    over = command("project", "retry", folder=failed)
    assert (over.returncode, over.stdout) == (2, "")
    assert "nothing to do again in the run 'site' (succeeded)" in over.stderr


def test_a_single_task_is_done_again(failed: Path, command: Command) -> None:
    still = command("project", "retry", "site", "write", folder=failed)
    assert still.returncode == 1
    assert ran(failed) == ["quick", "bad", "bad"]
    for task, words in (("plan", "only one that failed"), ("wrote", "no task 'wrote': it has 'plan'")):
        refused = command("project", "retry", "site", task, folder=failed)
        assert refused.returncode == 2
        assert words in refused.stderr


def test_a_project_file_that_has_moved_is_named_to_do_it_again(failed: Path, command: Command) -> None:
    (failed / "go").touch()
    (failed / "project.yaml").rename(failed / "moved.yaml")
    refused = command("project", "retry", folder=failed)
    assert refused.returncode == 2
    assert "project.yaml' is gone, and with it its agents: say where it is now with --file" in refused.stderr
    assert command("project", "retry", "--file", "moved.yaml", folder=failed).returncode == 0


def test_what_may_have_happened_is_done_again_only_when_asked_for(tmp_path: Path, command: Command) -> None:
    file = written(tmp_path, "slow")
    file.write_text(file.read_text().replace("slow, mode: cli, effects: false", "slow, mode: cli"))
    left_behind(tmp_path)
    done = command("run", "project.yaml", "--resume", folder=tmp_path)
    assert done.returncode == 1
    assert "1 unknown, 1 blocked" in done.stdout
    assert ran(tmp_path) == ["quick", "slow"]
    (tmp_path / "go").touch()
    advice = "write may have had its effects: look, then `penstock project retry site write`\n"
    assert done.stdout.endswith(f"read all: penstock project report site\n{advice}")
    refused = command("project", "retry", folder=tmp_path)
    assert (refused.returncode, refused.stderr, ran(tmp_path)) == (2, f"penstock: {advice}", ["quick", "slow"])
    assert command("project", "retry", "site", "write", folder=tmp_path).returncode == 0
    assert ran(tmp_path) == ["quick", "slow", "slow", "quick"]


def test_a_run_that_nobody_runs_is_cancelled_once(tmp_path: Path, command: Command) -> None:
    written(tmp_path, "slow")
    left_behind(tmp_path)
    done = command("project", "cancel", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "cancelled: the run 'site'\n")
    assert stands(tmp_path).state == "cancelled"
    again = command("project", "cancel", "site", folder=tmp_path)
    assert (again.returncode, again.stderr) == (1, "penstock: the run 'site' has ended already\n")
    again = command("project", "cancel", folder=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "nothing to cancel: no run has been left unfinished" in again.stderr


def test_a_run_goes_back_and_on_from_there(failed: Path, command: Command) -> None:
    entries = [json.loads(line) for line in command("project", "events", "--json", folder=failed).stdout.splitlines()]
    planned = next(one["offset"] for one in entries if (one["step"], one["state"]) == ("plan", "succeeded"))
    (failed / "go").touch()
    done = command("project", "rollback", "site", str(planned), folder=failed)
    assert done.returncode == 0
    assert done.stdout.startswith(f"site is as it was at {planned}: interrupted: 1 of 3 tasks succeeded, 2 pending")
    assert done.stdout.endswith("go on with it: penstock project resume site\n")
    assert command("run", "project.yaml", "--resume", folder=failed).returncode == 0
    assert ran(failed) == ["quick", "bad", "bad", "quick"]
    refused = command("project", "rollback", "site", "999", folder=failed)
    assert refused.returncode == 2
    assert "no offset 999" in refused.stderr


def test_row_c8_a_run_is_removed_unless_it_goes_on(failed: Path, command: Command) -> None:
    command("run", "project.yaml", folder=failed)
    done = command("project", "remove", "site", folder=failed)
    assert (done.returncode, done.stdout) == (0, "removed: the run 'site'\n")
    again = command("project", "remove", "site", folder=failed)
    assert (again.returncode, again.stderr) == (2, "penstock: there is no run 'site': there are 'site-2'\n")
    told = command("project", "remove", "site-2", "--json", folder=failed)
    assert (told.returncode, json.loads(told.stdout)) == (0, {"removed": "site-2"})
    assert "no project has been run yet" in command("project", "status", folder=failed).stderr
    assert command("project", "remove", folder=failed).returncode == 2


def test_the_journal_is_copied_whole_and_over_nothing(failed: Path, command: Command) -> None:
    done = command("project", "backup", "copy.sqlite", folder=failed)
    assert done.returncode == 0
    with sqlite3.connect(failed / "copy.sqlite") as copy:
        assert copy.execute("SELECT name FROM runs").fetchall() == [("site",)]
    again = command("project", "backup", "copy.sqlite", folder=failed)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_only_the_user_reads_the_folder_of_the_journal(failed: Path) -> None:
    assert (failed / ".penstock").stat().st_mode & 0o077 == 0


def test_projects_md_names_every_key_with_its_default_and_no_other() -> None:
    told = {row[0]: row[2] for row in rows(DOCS / "projects.md") if len(row) == 4 and row[0] != "key"}
    known = {key: written_default(field) or "none" for key, field in keys(ProjectSpec)}
    known |= dict.fromkeys(("limits.agents", "limits.providers", "tasks[].inputs"), "{}")
    assert told == {**known, "agents": "[]"}
