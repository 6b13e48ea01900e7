"""What a report says of a project, and how it is shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from penstock.errors import TaskFailed, UnknownName, UsageError
from penstock.messages import Usage
from penstock.store.steps import Step
from penstock.tasks.engines import RunState, RunStatus
from penstock.tasks.project import Defaults, ProjectSpec
from penstock.tasks.report import Report, mermaid, report_of, result_of, tree
from penstock.tasks.results import ExecutionResult, ExecutionStatus, Fault
from penstock.tasks.task import AgentTask

START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


def task(name: str, *needs: str, **fields: Any) -> AgentTask:
    return AgentTask(id=name, description=f"do {name}", depends_on=needs, **fields)


def spec(*tasks: AgentTask, **fields: Any) -> ProjectSpec:
    return ProjectSpec(name="site", tasks=tasks, **fields)


def result(name: str, begin: float = 0, end: float = 1, **fields: Any) -> ExecutionResult:
    known: dict[str, Any] = {
        "status": ExecutionStatus.SUCCESS,
        "agent": "writer",
        "output": f"{name} is done",
        "attempts": 1,
        "usage": Usage(10, 5, 15),
        "cost": Decimal("0.25"),
        "started_at": START + timedelta(seconds=begin),
        "completed_at": START + timedelta(seconds=end),
    }
    return ExecutionResult(task=name, **{**known, **fields})


def succeeded(name: str, begin: float = 0, end: float = 1, **fields: Any) -> Step:
    return Step("succeeded", msgspec.to_builtins(result(name, begin, end, **fields)))


def failed(name: str, **fields: Any) -> Step:
    inner = Fault("BadAnswer", "the answer was cut", retryable=True)
    whole = result(name, status=ExecutionStatus.FAILED, output=None, error=inner, **fields)
    error = TaskFailed("the answer was cut", code="agent_failed", details=msgspec.to_builtins(whole))
    return Step("failed", msgspec.to_builtins(Fault.of(error)))


DIAMOND = spec(task("d", "b", "c"), task("a"), task("b", "a"), task("c", "a"))
BLOCKED = Step("blocked", msgspec.to_builtins(Fault("TaskFailed", "it needs 'b'", "blocked")))


def status(project: ProjectSpec, state: RunState = RunState.FAILED, /, **steps: Step) -> RunStatus:
    return RunStatus(run="site-2", flow="project", payload=project.payload(), state=state, steps=steps, at=5.0)


def mixed() -> Report:
    steps = {"a": succeeded("a", 0, 2), "b": failed("b", cost=Decimal("0.5")), "c": succeeded("c", 2, 3)}
    return report_of(status(DIAMOND, RunState.FAILED, **steps, d=BLOCKED))


def test_row_c7_a_report_has_every_task_in_the_order_of_the_graph_and_sums() -> None:
    report = mixed()
    assert [one.task for one in report.results] == ["a", "b", "c", "d"]
    assert (report.name, report.run, report.state, report.ok) == ("site", "site-2", RunState.FAILED, False)
    assert report.counts == {"success": 2, "failed": 1, "blocked": 1}
    assert (report.usage.total, report.cost) == (45, Decimal("1.00"))
    assert (report.started_at, report.completed_at, report.duration) == (START, START + timedelta(seconds=3), 3)
    assert report.critical == ("a", "b")
    assert report["c"].output == "c is done"
    with pytest.raises(UnknownName, match="no task 'x'"):
        report["x"]


def test_row_c7_a_report_says_why_a_task_is_blocked_and_what_a_failed_one_had_used() -> None:
    report = mixed()
    assert report.blocked == {"d": "blocked (blocked): it needs 'b'"}
    error = report["b"].error
    assert error == Fault("BadAnswer", "the answer was cut", retryable=True)
    assert (report["b"].usage.total, report["b"].attempts) == (15, 1)


def test_row_c7_the_critical_path_goes_through_the_longest_of_what_a_task_needs() -> None:
    steps = {"a": succeeded("a", 0, 1), "b": succeeded("b", 1, 2), "c": succeeded("c", 1, 6), "d": succeeded("d", 6, 7)}
    assert report_of(status(DIAMOND, RunState.SUCCEEDED, **steps)).critical == ("a", "c", "d")
    slow = {**steps, "b": succeeded("b", 1, 9), "d": succeeded("d", 9, 10)}
    assert report_of(status(DIAMOND, RunState.SUCCEEDED, **slow)).critical == ("a", "b", "d")


def test_a_cost_that_is_not_known_is_not_nothing() -> None:
    report = report_of(status(spec(task("a"), task("b")), a=succeeded("a"), b=succeeded("b", cost=None)))
    assert report.cost is None
    assert "unknown cost" in report.summary()


@pytest.mark.parametrize("state", RunState)
def test_a_report_that_goes_on_has_no_end(state: RunState) -> None:
    report = report_of(status(spec(task("a"), task("b", "a")), state, a=succeeded("a", 0, 4)))
    over = state in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)
    assert report.duration == (4 if over else None)


def test_a_project_that_has_not_begun_is_all_pending() -> None:
    report = report_of(status(DIAMOND, RunState.RUNNING))
    assert report.counts == {"pending": 4}
    assert report.critical == ()
    assert report.started_at == datetime.fromtimestamp(5, UTC)


def test_a_step_that_the_project_does_not_have_stands_at_the_end() -> None:
    report = report_of(status(spec(task("a")), later=succeeded("later"), a=succeeded("a")))
    assert [one.task for one in report.results] == ["a", "later"]


@pytest.mark.parametrize(
    ("step", "expected", "code", "message"),
    [
        (
            Step("cancelled", {"type": "E", "message": "the user said so"}),
            ExecutionStatus.CANCELLED,
            "cancelled",
            "the user said so",
        ),
        (Step("cancelled"), ExecutionStatus.CANCELLED, "cancelled", "cancelled"),
        (Step("unknown"), ExecutionStatus.UNKNOWN, "outcome_unknown", "unknown"),
        (
            Step("failed", msgspec.to_builtins(Fault("LimitReached", "all spent", "budget"))),
            ExecutionStatus.FAILED,
            "budget",
            "all spent",
        ),
        (
            Step("failed", msgspec.to_builtins(Fault("KeyError", "'x'", details={"task": "other"}))),
            ExecutionStatus.FAILED,
            "agent_failed",
            "'x'",
        ),
    ],
)
def test_a_fault_without_a_result_is_one_all_the_same(
    step: Step, expected: ExecutionStatus, code: str, message: str
) -> None:
    found = result_of("t", step)
    assert (found.task, found.status) == ("t", expected)
    assert found.error is not None
    assert (found.error.code, found.error.message) == (code, message)


@pytest.mark.parametrize(
    ("state", "expected"), [("pending", ExecutionStatus.PENDING), ("running", ExecutionStatus.IN_PROGRESS)]
)
def test_a_task_that_has_not_ended_has_no_error(state: str, expected: ExecutionStatus) -> None:
    assert result_of("t", Step(state)) == ExecutionResult(task="t", status=expected)


def test_a_report_is_json_and_comes_back() -> None:
    report = mixed()
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert msgspec.to_builtins(report)["counts"] == {"success": 2, "failed": 1, "blocked": 1}


def test_a_report_in_one_line() -> None:
    assert mixed().summary() == "failed: 2 of 4 tasks succeeded, 1 failed, 1 blocked; 45 tokens; $1.0000; 3.0 s"


def test_a_report_as_markdown() -> None:
    steps = {"a|b": succeeded("a|b", output="two\nlines", end=2), "b": failed("b")}
    steps["c"] = succeeded("c", output={"n": [1]})
    project = spec(task("a|b"), task("b", "a|b"), task("c", "a|b"), task("d", "b"))
    text = report_of(status(project, RunState.FAILED, **steps, d=BLOCKED)).markdown()
    assert text.startswith("# Project site\n\nfailed: 2 of 4 tasks succeeded")
    assert "| a\\|b | writer | success | 1 | 15 | $0.2500 | 2.0 |" in text
    assert "- `b`: failed (BadAnswer): the answer was cut" in text
    assert "The longest way through it: a|b -> b." in text
    assert "### a|b\n\ntwo\nlines\n" in text
    assert '### c\n\n```json\n{\n  "n": [\n    1\n  ]\n}\n```\n' in text


def test_a_payload_that_is_no_project_is_refused_without_its_values() -> None:
    with pytest.raises(UsageError, match=r"no project: tasks\.0\.description: Field required") as caught:
        report_of(
            RunStatus(run="r", flow="f", payload={"name": "p", "tasks": [{"id": "s3cret"}]}, state=RunState.FAILED)
        )
    assert "s3cret" not in str(caught.value)


def test_the_graph_as_a_mermaid_flowchart() -> None:
    project = spec(task('say "hi"', agent="a<b"), task("z", 'say "hi"'), defaults=Defaults(agent="writer"))
    assert mermaid(project) == (
        'flowchart TD\n    t0["say #quot;hi#quot;<br/>a#lt;b"]\n    t1["z<br/>writer"]\n    t0 --> t1\n'
    )
    lines = mermaid(DIAMOND, mixed().results).splitlines()
    assert '    t0["a<br/>writer<br/>success, 2.0 s"]:::success' in lines
    assert "    t1 --> t3" in lines
    assert [line.split()[1] for line in lines if "classDef" in line] == ["success", "failed", "blocked"]


def test_the_graph_as_a_tree_has_each_task_once_below_its_last_need() -> None:
    assert tree(DIAMOND, mixed().results) == (
        "a  (writer; success, 2.0 s)\n  b  (writer; failed, 1.0 s)\n  c  (writer; success, 1.0 s)\n"
        "    d  (blocked; also after b)\n"
    )
    assert tree(spec(task("x"), task("y"))) == "x\ny\n"


def test_a_chain_of_ten_thousand_is_reported_and_drawn_without_recursion() -> None:
    tasks = [task(f"t{n}", *([f"t{n - 1}"] if n else [])) for n in range(10_000)]
    project = spec(*reversed(tasks))
    report = report_of(status(project, t0=succeeded("t0"), t1=succeeded("t1", 1, 2)))
    assert report.counts == {"success": 2, "pending": 9_998}
    assert report.critical == ("t0", "t1")
    drawn = tree(project, report.results).splitlines()
    assert drawn[-1].strip() == "t9999  (pending)"
    assert max(map(len, drawn)) < 100
    assert mermaid(project).count("-->") == 9_999
