"""`past`: what the log of a run comes to, and what follows for a run that nobody runs."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import TaskFailed, UsageError
from penstock.store.steps import Change, Logged, Note, Step
from penstock.tasks.engines import RunState
from penstock.tasks.engines.past import cancelling, fault_of, past_of, reopening, unfinished
from penstock.tasks.engines.values import plain


def noted(*kinds: str | tuple[str, Any]) -> list[Logged]:
    """Notes at the offsets 1, 2, 3 ..."""
    pairs = [kind if isinstance(kind, tuple) else (kind, None) for kind in kinds]
    return [Logged(offset, 0.0, None, None, kind, value) for offset, (kind, value) in enumerate(pairs, 1)]


def test_a_roll_back_takes_back_ends_and_emits_also_those_of_a_roll_back() -> None:
    ended = ("ended", {"state": "succeeded", "value": 7})
    log = noted("begun", "x", "x", ended, "resumed", ("rolled_back", {"to": 2}), "y", "paused")
    past = past_of(log)
    assert (past.ended, past.paused, past.emitted) == (None, True, [2, 7])
    again = [*log, Logged(9, 0.0, None, None, "rolled_back", {"to": 5})]
    past = past_of(again)
    assert (past.ended, past.value, past.paused, past.emitted) == (RunState.SUCCEEDED, 7, False, [2, 3])
    assert past_of([*again, *noted("reopened")]).ended is None


def test_a_run_that_nobody_runs_is_cancelled_and_what_may_have_had_effects_is_not_called_so() -> None:
    steps = {
        "done": Step("succeeded", 1),
        "runs": Step("running"),
        "pays": Step("running", {"effects": True}),
        "waits": Step("pending"),
    }
    changes = cancelling(steps, "late", None)
    assert {one.step: one.state for one in changes if isinstance(one, Change)} == {
        "runs": "cancelled",
        "pays": "unknown",
        "waits": "cancelled",
    }
    assert isinstance(changes[-1], Note)
    assert changes[-1].value["value"]["message"] == "late"
    assert [one.step for one in cancelling(steps, "late", "pays")] == ["pays"]
    assert cancelling(steps, "late", "done") == []
    assert [(one.step, one.state) for one in cancelling(steps, "late", "later") if isinstance(one, Change)] == [
        ("later", "cancelled")
    ]


def test_a_retry_takes_back_a_step_and_those_it_blocked_only() -> None:
    steps = {
        "a": Step("unknown", unfinished("outcome_unknown", "who knows")),
        "b": Step("blocked", unfinished("blocked", "", {"by": "a", "via": "a"})),
        "c": Step("blocked", unfinished("blocked", "", {"by": "x", "via": "b"})),
    }
    assert reopening(steps, "a") == [Change("a", "pending"), Change("b", "pending")]
    with pytest.raises(UsageError, match="'b' is blocked: only one that failed"):
        reopening(steps, "b")


def test_a_fault_is_json_whatever_the_error_holds() -> None:
    fault = fault_of(TaskFailed("odd \ud800", code="agent_failed", details=object(), retryable=True))
    assert fault == {"type": "TaskFailed", "message": "odd ?", "code": "agent_failed", "retryable": True}
    nested: Any = None
    for _ in range(5_000):
        nested = [nested]
    with pytest.raises(UsageError, match="the value is no JSON: a list is nested too deeply"):
        plain(nested, "the value")
