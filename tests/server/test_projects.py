"""Projects over the API: begun, run in the background, looked at, cancelled, tried again; each for its owner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from penstock.config import projects
from penstock.errors import AgentUnavailable, CyclicPlan, PenstockError, StoreFailed, TaskFailed
from penstock.server.projects import JOURNAL, MOST_AT_ONCE
from penstock.server.wire import answer_of
from tests.rig.upstream import Plain, Upstream, completion
from tests.rig.upstream import upstream as run_upstream
from tests.server.gateway import KEY, access_log, error_of
from tests.server.projects import Desk, asked, desk, project, states, task, token

TOKENS = [
    token("anna", "acme"),
    token("ben", "acme"),
    token("carl", "other"),
    token("root", "house", "admin"),
    token("chatter", "acme", "chat"),
    {**token("dora", "slow"), "limit": {"requests_per_minute": 1}},
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """One upstream for the tests of this module."""
    with run_upstream() as served:
        yield served


@pytest.fixture(scope="module")
def anna(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A caller of one server with tokens."""
    with desk(upstream, tmp_path_factory.mktemp("kept"), tokens=TOKENS) as served:
        yield served.of("pk-anna-secret")


def test_a_project_runs_in_the_background_to_its_end(anna: Desk) -> None:
    with access_log() as log:
        name = anna.begin(project(task("a"), task("b", "a"), task("c", "a", agent=None, capabilities=["writing"])))
        row = anna.ended(name)
    assert name.startswith("proj_")
    assert (row["id"], row["object"], row["name"], row["status"]) == (name, "project", "notes", "succeeded")
    assert row["counts"] == {"success": 3}
    assert [(one["id"], one["output"], one["agent"], one["depends_on"]) for one in row["tasks"]] == [
        ("a", "did a", "writer", []),
        ("b", "did b", "writer", ["a"]),
        ("c", "did c", "writer", ["a"]),
    ]
    assert row["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in row["tasks"]) > 0
    assert row["created_at"] <= time.time()
    assert all(one["error"] is None and one["started_at"] < one["completed_at"] for one in row["tasks"])
    facts = next(one for one in log.rows if one["status"] == 202)
    assert (facts["path"], facts["by"], facts["project"], facts["tasks"]) == ("/v1/projects", "anna", name, 3)
    assert "say a" not in repr(log.rows)
    assert "did a" not in repr(log.rows)


PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown key": (project(task("a", agnet="writer")), "tasks[0].agnet", "did you mean 'agent'"),
    "unknown key of the project": (project(task("a"), gaol="x"), "gaol", "did you mean 'goal'"),
    "no tasks": ({"name": "n"}, "tasks", "required"),
    "an empty list": (project(), "tasks", "at least one"),
    "too many tasks": (project(*(task(f"t{number}") for number in range(1001))), "tasks", "at most 1000 tasks"),
    "no description": (project({"id": "a"}), "tasks[0].description", "required"),
    "a bad name": (project(task("a"), name="a b"), "name", "letters, digits"),
    "a wrong type": (project(task("a", priority="high")), "tasks[0].priority", "expected a number"),
    "an unknown dependency": (project(task("a"), task("b", "a", "x")), "tasks[1].depends_on[1]", "'x'"),
    "a cycle": (project(task("a", "c"), task("b", "a"), task("c", "b")), "tasks[0].depends_on[0]", "a -> c -> b -> a"),
    "itself": (project(task("a", "a")), "tasks[0].depends_on[0]", "circle"),
    "a name twice": (project(task("a"), task("a")), "tasks[1].id", "two tasks 'a'"),
    "an unknown agent": (project(task("a", agent="wrtier")), "tasks[0].agent", "did you mean 'writer'"),
    "an unknown usual agent": (project(task("a", agent=None), defaults={"agent": "x"}), "defaults.agent", "'x'"),
    "a disabled agent": (project(task("a", agent="off")), "tasks[0].agent", "disabled"),
    "an incapable agent": (
        project(task("a", capabilities=["writing", "flying"])),
        "tasks[0].capabilities[1]",
        "lacks 'flying'",
    ),
    "nobody capable": (
        project(task("a", agent=None, capabilities=["flying"])),
        "tasks[0].capabilities[0]",
        "no agent with 'flying'",
    ),
    "an unknown reviewer": (project(task("a", review="x")), "tasks[0].review", "no agent 'x'"),
    "a person": (project(task("a", agent="person")), "tasks[0].agent", "asks a person"),
    "a person in a hybrid": (project(task("a", agent="trio")), "tasks[0].agent", "asks a person"),
    "a person who reviews": (project(task("a", review="person")), "tasks[0].review", "asks a person"),
    "a person by capability": (
        project(task("a", agent=None, capabilities=["judging"])),
        "tasks[0].capabilities[0]",
        "",
    ),
    "a limit of nobody": (project(task("a"), limits={"agents": {"wrtier": 1}}), "limits.agents.wrtier", "did you mean"),
    "a limit of no provider": (project(task("a"), limits={"providers": {"x": 1}}), "limits.providers.x", "no provider"),
    "too many needs": (
        project(*(task(f"t{number}", *(f"t{need}" for need in range(number))) for number in range(143))),
        "tasks",
        "at most 10000",
    ),
    "too many at once": (project(task("a"), limits={"concurrent": 17}), "limits.concurrent", "at most 16"),
    "agents of its own": (
        project(task("a", agent="mine"), agents=[{"name": "mine", "mode": "cli", "command": ["true"]}]),
        "agents",
        "defines no agents",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_cannot_be_run_is_refused_with_its_place(problem: str, anna: Desk, upstream: Upstream) -> None:
    body, param, said = PROBLEMS[problem]
    before, calls = anna.ask("GET").json(), len(upstream.chats)
    answer = anna.ask("POST", "", body)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert said in error["message"]
    assert error["code"]
    assert (anna.ask("GET").json(), len(upstream.chats)) == (before, calls)


def test_several_problems_are_told_at_once(anna: Desk) -> None:
    told = error_of(anna.ask("POST", "", {"name": "", "tasks": [{"id": "a"}, {"id": "", "description": "x"}]}))
    for place in ("name", "tasks[0].description", "tasks[1].id"):
        assert f"{place}: " in told["message"]


HOSTILE = {
    "no JSON": b"{",
    "no object": b"[]",
    "a key twice": b'{"name": "n", "name": "m", "tasks": []}',
    "too deep": b'{"name":"n","tasks":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "NaN": b'{"name": "n", "tasks": [{"id": "a", "description": "d", "priority": NaN}]}',
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_case_26_a_hostile_body_is_refused(kind: str, anna: Desk) -> None:
    answer = anna.ask("POST", "", HOSTILE[kind])
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["type"] == "invalid_request_error"


def test_case_26_a_body_that_is_too_large_is_413(anna: Desk) -> None:
    assert anna.ask("POST", "", b" " * (21 << 20)).status_code == 413


def test_only_who_holds_the_scope_has_projects(anna: Desk) -> None:
    name = anna.begin(project(task("a")))
    for path, method in (("", "GET"), ("", "POST"), (f"/{name}", "GET"), (f"/{name}/cancel", "POST")):
        assert anna.of("pk-chatter-secret").ask(method, path).status_code == 403
        assert anna.of("wrong").ask(method, path).status_code == 401
        assert anna.of(None).ask(method, path).status_code == 401
    anna.ended(name)


def test_a_project_is_there_for_its_tenant_and_for_admins_only(anna: Desk) -> None:
    name = anna.begin(project(task("a"), task("b", "a", does="fail")))
    anna.ended(name)
    ben, carl, root = (anna.of(f"pk-{one}-secret") for one in ("ben", "carl", "root"))
    posted = ("/cancel", "/retry", "/pause", "/resume", "/tasks/b/cancel", "/tasks/b/retry")
    pages = [("GET", ""), ("GET", "/events"), *(("POST", path) for path in posted)]
    for method, path in pages:
        hidden, missing = carl.ask(method, f"/{name}{path}"), carl.ask(method, f"/proj_{'0' * 32}{path}")
        assert (hidden.status_code, error_of(hidden)["code"]) == (404, "project_not_found")
        assert hidden.text.replace(name, "") == missing.text.replace(f"proj_{'0' * 32}", "")
    for other in (ben, root):
        assert other.get(name)["id"] == name
        assert name in [one["id"] for one in other.ask("GET").json()["data"]]
        assert other.ask("POST", f"/{name}/cancel").json()["status"] == "failed"
    assert carl.ask("GET").json()["data"] == []


def test_the_newest_projects_are_listed_first_page_by_page(anna: Desk) -> None:
    carl = anna.of("pk-carl-secret")
    names = [carl.begin(project(task("a"), name=f"n{number}")) for number in range(5)][::-1]
    whole = carl.ask("GET").json()
    assert [one["id"] for one in whole["data"]] == names
    assert not whole["has_more"]
    assert set(whole["data"][0]) == {"id", "object", "name", "status", "created_at"}
    first = carl.ask("GET", "?limit=2").json()
    second = carl.ask("GET", f"?limit=3&after={first['data'][-1]['id']}").json()
    assert [one["id"] for one in first["data"] + second["data"]] == names
    assert (first["has_more"], second["has_more"]) == (True, False)
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("after=proj_x", "after")):
        answer = carl.ask("GET", f"?{query}")
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_case_15_one_key_begins_one_project(anna: Desk, upstream: Upstream) -> None:
    body = project(task("once"))
    with ThreadPoolExecutor(8) as pool:
        names = {*pool.map(lambda _: anna.begin(body, idempotency_key="k1"), range(8))}
    assert len(names) == 1
    anna.ended(names.pop())
    assert asked(upstream).count("once") == 1
    other = anna.ask("POST", "", project(task("twice")), idempotency_key="k1")
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_conflict")
    assert anna.of("pk-ben-secret").begin(body, idempotency_key="k1") not in names
    for key in ("", "k" * 256):
        answer = anna.ask("POST", "", body, idempotency_key=key)
        assert (answer.status_code, error_of(answer)["param"]) == (400, "idempotency-key")


def test_a_cancelled_project_stops_at_once_and_stays_so(anna: Desk, upstream: Upstream) -> None:
    gone = len(upstream.closed_early)
    name = anna.begin(project(task("a", does="slow 9"), task("b", "a")))
    anna.until(name, lambda row: states(row)["a"] == "in_progress")
    upstream.wait_requests(len(upstream.requests))
    assert anna.ask("POST", f"/{name}/cancel").status_code == 200
    row = anna.ended(name)
    assert (row["status"], states(row)) == ("cancelled", {"a": "cancelled", "b": "cancelled"})
    upstream.wait_closed(gone + 1)
    assert anna.ask("POST", f"/{name}/cancel").json()["status"] == "cancelled"


def test_a_failed_task_is_told_and_tried_again(anna: Desk, upstream: Upstream) -> None:
    name = anna.begin(project(task("good"), task("bad", "good", does="fail"), task("last", "bad")))
    row = anna.ended(name)
    assert row["status"] == "failed"
    assert states(row) == {"good": "success", "bad": "failed", "last": "blocked"}
    bad, last = row["tasks"][1]["error"], row["tasks"][2]["error"]
    assert bad["message"]
    assert (last["code"], "'bad'" in last["message"]) == ("blocked", True)
    refused = anna.ask("POST", f"/{name}/tasks/good/retry")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "not_retryable")
    missing = anna.ask("POST", f"/{name}/tasks/no/such/retry")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "task_not_found")
    upstream.script(*(upstream.default(one) for one in upstream.chats[:1]))  # the model has changed its mind
    assert anna.ask("POST", f"/{name}/tasks/bad/retry").status_code == 202
    assert states(anna.ended(name)) == {"good": "success", "bad": "success", "last": "success"}


def test_too_many_projects_of_one_tenant_are_refused(anna: Desk) -> None:
    root = anna.of("pk-root-secret")
    names = [root.begin(project(task("a", does="slow 9"))) for _ in range(MOST_AT_ONCE)]
    answer = root.ask("POST", "", project(task("a")))
    assert (answer.status_code, error_of(answer)["type"]) == (429, "rate_limit_error")
    assert "retry-after" in answer.headers
    anna.ended(anna.begin(project(task("a"))))
    for name in names:
        root.ask("POST", f"/{name}/cancel")
    for name in names:
        root.ended(name)
    root.ended(root.begin(project(task("a"))))


def test_tasks_are_done_on_behalf_of_who_began_the_project(anna: Desk) -> None:
    dora = anna.of("pk-dora-secret")
    row = dora.ended(dora.begin(project(task("a"), task("b", "a"))))
    assert states(row) == {"a": "success", "b": "failed"}
    assert row["tasks"][1]["error"]["type"] == "LimitReached"


def test_without_agents_there_are_no_projects(upstream: Upstream, tmp_path: Path) -> None:
    with desk(upstream, tmp_path / "kept", agents=[]) as served:
        answer = served.ask("POST", "", project(task("a")))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "no_agents")
        assert "agents" in error_of(answer)["message"]
        assert served.ask("GET").json() == {"object": "list", "data": [], "has_more": False}
        assert served.ask("GET", "/proj_x").status_code == 404
    assert not (tmp_path / "kept").exists()


def test_case_19_a_store_that_cannot_be_written_is_told(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with desk(upstream, tmp_path / "taken" / "kept") as served:
        answer = served.ask("POST", "", project(task("a")))
        assert (answer.status_code, error_of(answer)["code"]) == (500, "store_failed")


def test_case_25_an_agents_key_is_nowhere_but_in_its_requests(upstream: Upstream, tmp_path: Path) -> None:
    keyed = {"name": "writer", "provider": "openai", "model": "rig", "api_key": KEY, "base_url": upstream.base_url}
    with access_log() as log, desk(upstream, tmp_path, agents=[keyed]) as served:
        said = {"error": {"message": f"wrong key {KEY}", "type": "x", "param": None, "code": "x"}}
        upstream.script(Plain(completion("done")), Plain(said, status=401))
        name = served.begin(project(task("a"), task("b", "a")))
        row = served.ended(name)
        assert states(row) == {"a": "success", "b": "failed"}
        assert upstream.chats[-1].headers["authorization"] == f"Bearer {KEY}"
        told = f"{row}{log.rows}{served.stream(name)}".encode()
        assert KEY[:12].encode() not in told + b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_page_of_another_site_does_nothing_where_no_token_is_asked_for(upstream: Upstream, tmp_path: Path) -> None:
    with desk(upstream, tmp_path / "kept", server={"cors_origins": ["https://mine.example"]}) as served:
        body = project(task("a"))
        for origin in ("https://evil.example", "null", "http://[", f"{served.url}.evil.example"):
            refused = served.ask("POST", "", body, origin=origin, content_type="text/plain")
            assert (refused.status_code, error_of(refused)["code"]) == (403, "foreign_origin"), origin
        for origin in (served.url, "https://mine.example"):
            served.ended(served.ask("POST", "", body, origin=origin).json()["id"])
        for path in ("/v1/tools/add", "/v1/batch", "/v1/chat/completions"):
            refused = served.http.post(f"{served.url}{path}", content=b"{}", headers={"origin": "https://evil.example"})
            assert (refused.status_code, error_of(refused)["code"]) == (403, "foreign_origin"), path
            for origin in (served.url, "https://mine.example"):
                answer = served.http.post(f"{served.url}{path}", content=b"{}", headers={"origin": origin})
                assert answer.status_code in (400, 404), path


def test_projects_are_described(anna: Desk) -> None:
    paths = anna.http.get(f"{anna.url}/openapi.json").json()["paths"]
    found = {(path, method) for path, methods in paths.items() for method in methods if "projects" in path}
    assert found == {
        ("/v1/projects", "get"),
        ("/v1/projects", "post"),
        ("/v1/projects/{project}", "get"),
        ("/v1/projects/{project}/events", "get"),
        ("/v1/projects/{project}/cancel", "post"),
        ("/v1/projects/{project}/retry", "post"),
        ("/v1/projects/{project}/pause", "post"),
        ("/v1/projects/{project}/resume", "post"),
        ("/v1/projects/{project}/tasks/{task}/cancel", "post"),
        ("/v1/projects/{project}/tasks/{task}/retry", "post"),
    }
    begin = paths["/v1/projects"]["post"]
    assert {"202"} <= set(begin["responses"])
    example = begin["requestBody"]["content"]["application/json"]["schema"]["example"]
    assert anna.ended(anna.begin(example))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (TaskFailed("x", code="not_accepted", details={"task": "a"}), 502, "task_error", "not_accepted"),
        (AgentUnavailable("x"), 400, "invalid_request_error", "agent_unavailable"),
        (CyclicPlan("x"), 400, "invalid_request_error", "cyclic_plan"),
        (StoreFailed("x"), 500, "server_error", "store_failed"),
    ],
)
def test_what_goes_wrong_with_tasks_has_an_answer(error: PenstockError, status: int, kind: str, code: str) -> None:
    told = answer_of(error)
    said = told.body["error"]
    assert (told.status, said["type"], said["code"], said["message"]) == (status, kind, code, "x")
    assert said.get("details") == getattr(error, "details", None)


def test_the_journal_is_found_where_the_engine_makes_it() -> None:
    assert JOURNAL == projects.JOURNAL
