"""What a client may do with a project that is there: cancel or retry tasks of it, pause it; and the times it has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream
from tests.server.gateway import error_of
from tests.server.projects import Desk, asked, desk, project, states, task


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """One upstream for the tests of this module."""
    with run_upstream() as served:
        yield served


@pytest.fixture(scope="module")
def served(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One server without tokens."""
    with desk(upstream, tmp_path_factory.mktemp("kept")) as found:
        yield found


def refusal(served: Desk, path: str) -> tuple[int, str]:
    answer = served.ask("POST", path)
    return answer.status_code, error_of(answer)["code"]


def moments(row: dict[str, Any]) -> tuple[datetime | None, datetime | None]:
    began, ended = (None if said is None else datetime.fromisoformat(said) for said in _both(row))
    return began, ended


def _both(row: dict[str, Any]) -> tuple[str | None, str | None]:
    return row["started_at"], row["completed_at"]


def test_one_task_is_cancelled_and_the_others_go_on(served: Desk) -> None:
    name = served.begin(project(task("long", does="slow 9"), task("next", "long"), task("other", does="slow 0.2")))
    served.until(name, lambda row: states(row)["long"] == "in_progress")
    answer = served.ask("POST", f"/{name}/tasks/long/cancel")
    assert (answer.status_code, states(answer.json())["long"]) == (200, "cancelled")
    row = served.ended(name)
    assert states(row) == {"long": "cancelled", "next": "blocked", "other": "success"}
    assert served.ask("POST", f"/{name}/tasks/other/cancel").json() == row
    assert refusal(served, f"/{name}/tasks/none/cancel") == (404, "task_not_found")


def test_all_that_did_not_succeed_runs_again(served: Desk, upstream: Upstream) -> None:
    name = served.begin(project(task("good"), task("x", does="fail"), task("y", "x"), task("z", "good", does="fail")))
    assert states(served.ended(name)) == {"good": "success", "x": "failed", "y": "blocked", "z": "failed"}
    sound = next(one for one, name in zip(upstream.chats, asked(upstream), strict=True) if name == "good")
    upstream.script(upstream.default(sound), upstream.default(sound))  # the model has changed its mind
    assert served.ask("POST", f"/{name}/retry").status_code == 202
    assert {*states(served.ended(name)).values()} == {"success"}
    assert asked(upstream).count("good") == 1
    assert refusal(served, f"/{name}/retry") == (409, "not_retryable")


def test_a_cancelled_project_goes_on_as_a_whole(served: Desk) -> None:
    name = served.begin(project(task("first", does="slow 0.4"), task("second", "first")))
    served.until(name, lambda row: states(row)["first"] == "in_progress")
    served.ask("POST", f"/{name}/cancel")
    assert {*states(served.ended(name)).values()} == {"cancelled"}
    assert served.ask("POST", f"/{name}/retry").json()["status"] in ("running", "succeeded")
    assert {*states(served.ended(name)).values()} == {"success"}


def test_a_paused_project_starts_no_more_tasks_until_it_is_resumed(served: Desk, upstream: Upstream) -> None:
    name = served.begin(project(task("now", does="slow 0.1"), task("later", "now")))
    served.until(name, lambda row: states(row)["now"] == "in_progress")
    assert served.ask("POST", f"/{name}/pause").json()["status"] == "paused"
    assert served.ask("POST", f"/{name}/pause").status_code == 200
    served.until(name, lambda row: states(row)["now"] == "success")
    assert (served.get(name)["status"], states(served.get(name))["later"]) == ("paused", "pending")
    assert "later" not in asked(upstream)
    assert served.ask("POST", f"/{name}/resume").json()["status"] in ("running", "succeeded")
    assert served.ended(name)["status"] == "succeeded"
    for what in ("pause", "resume"):
        assert refusal(served, f"/{name}/{what}") == (409, "not_running")


def test_what_runs_and_what_was_cancelled_have_their_times(served: Desk) -> None:
    name = served.begin(project(task("a"), task("b", "a", does="slow 9"), task("c", "b")))
    row = served.until(name, lambda row: states(row)["b"] == "in_progress")
    (done, _), (began, none), never = (moments(one) for one in row["tasks"])
    assert done is not None
    assert began is not None
    assert done < began
    assert none is None
    assert never == (None, None)
    assert row["completed_at"] is None
    served.ask("POST", f"/{name}/cancel")
    row = served.ended(name)
    last = served.ask("GET", f"/{name}/events").json()["data"][-1]["at"]
    _, (again, ended), never = (moments(one) for one in row["tasks"])
    completed = moments(row)[1]
    assert again == began
    assert ended is not None
    assert completed is not None
    assert began < ended <= completed
    assert completed.timestamp() == pytest.approx(last, abs=1e-5)
    assert never == (None, None)
