"""Batches over the API: each outcome as it closes, the whole at once, refusals, leaving, the log."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from penstock.server.batch import MOST_ITEMS
from tests.rig.answers import Answer, Received
from tests.rig.batches import asked, plan_of, planner
from tests.rig.upstream import Upstream
from tests.server.gateway import Calm, Gateway, access_log, error_of, gateway

TOKENS = [{"name": name, "value": f"pk-{name}-secret", "scopes": [name]} for name in ("chat", "tools")]


def body(*ids: Any, **more: Any) -> dict[str, Any]:
    """A batch's body."""
    return {"model": "rig", "items": [{"id": name, "data": {"hp": 3}} for name in ids], **more}


def post(served: Gateway, asked: Any, path: str = "/v1/batch", **headers: str) -> Any:
    return served.post(asked, path=path, **headers)


@contextmanager
def streamed(served: Gateway, *ids: Any, **more: Any) -> Generator[Iterator[str]]:
    """The lines of a streamed batch as they come."""
    with served.http.stream("POST", f"{served.url}/v1/batch", json=body(*ids, stream=True, **more)) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.iter_lines()


def events(lines: Iterator[str]) -> list[tuple[str, Any]]:
    """Name and data of each event."""
    found, name = list[tuple[str, Any]](), ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            said = line.removeprefix("data: ")
            found.append((name, said if said == "[DONE]" else json.loads(said)))
            name = ""
    return found


@pytest.fixture
def upstream(calm: Calm) -> Upstream:
    """A model with a plan for each item."""
    found = calm.cleared()
    found.default = planner()
    return found


@pytest.fixture
def served(calm: Calm) -> Gateway:
    """The server before it."""
    return calm.served


@pytest.mark.parametrize("path", ["/v1/batch", "/batch"])
def test_a_batch_answers_with_all_outcomes_sorted_by_id(served: Gateway, upstream: Upstream, path: str) -> None:
    answer = post(served, body(3, "b", 1, "a key with spaces"), path)
    assert answer.status_code == 200
    said = answer.json()
    assert (said["object"], said["model"], said["items"], said["accepted"], said["calls"]) == ("batch", "rig", 4, 4, 1)
    assert [row["id"] for row in said["outcomes"]] == [1, 3, "a key with spaces", "b"]
    assert said["outcomes"][0]["value"] == {**plan_of(1), "plan_id": ""}
    assert said["outcomes"][2]["value"]["agent_id"] == "a key with spaces"
    assert sum(row["usage"]["total_tokens"] for row in said["outcomes"]) == said["usage"]["total_tokens"] == 60
    assert (said["foreign"], said["cost_usd"], said["failed"]) == ([], None, 0)
    assert len(upstream.chats) == 1


def test_row_d4_each_outcome_is_sent_as_it_closes(served: Gateway, upstream: Upstream) -> None:
    gate = threading.Event()
    upstream.default = planner(gate=gate)
    with streamed(served, 2, 1) as lines:
        assert next(lines) == "event: outcome"
        assert json.loads(next(lines).removeprefix("data: "))["id"] == 1  # while the model is silent
        gate.set()
        upstream.release()
        found = events(lines)
    assert [name for name, _ in found] == ["outcome", "end", ""]
    assert found[0][1]["id"] == 2
    end = found[1][1]
    assert (end["object"], end["items"], end["accepted"], end["calls"]) == ("batch", 2, 2, 1)
    assert sum(share["usage"]["total_tokens"] for share in end["shares"]) == end["usage"]["total_tokens"] == 30
    assert found[2][1] == "[DONE]"


def test_row_d5_only_what_is_missing_is_asked_for_again_and_told_where_it_stays_so(
    served: Gateway, upstream: Upstream
) -> None:
    upstream.default = planner(without=(2,))
    with streamed(served, *range(6)) as lines:
        found = events(lines)
    rows = {row["id"]: row for name, row in found if name == "outcome"}
    assert sorted(rows) == [*range(6)]
    assert {fault["kind"] for fault in rows[2]["faults"]} == {"missing"}
    assert "value" not in rows[2]
    assert rows[2]["attempts"] == len(upstream.chats) > 1
    assert all(asked(request) == [2] for request in upstream.chats[1:])
    assert found[-2][1]["accepted"] == 5


def test_calls_are_as_large_as_asked_for_and_of_one_group(served: Gateway, upstream: Upstream) -> None:
    items = [{"id": number, "data": 1, "group": "xy"[number % 2]} for number in range(8)]
    assert post(served, {"model": "rig", "items": items, "max_batch_size": 3}).status_code == 200
    assert sorted(asked(request) for request in upstream.chats) == [[0, 2, 4], [1, 3, 5], [6], [7]]


def test_a_schema_acts_and_instructions_are_kept_to(served: Gateway, upstream: Upstream) -> None:
    schema = {"type": "object", "required": ["hp"], "properties": {"hp": {"type": "integer"}}}
    said = post(served, body(1, schema=schema, instructions="Be brief.")).json()
    assert "Be brief." in json.dumps(upstream.chats[0].json)
    assert {fault["kind"] for fault in said["outcomes"][0]["faults"]} == {"schema"}
    for acts in ("Stay|Hide", ["Stay", "Hide"]):
        said = post(served, body(1, acts=acts)).json()
        assert (said["accepted"], said["outcomes"][0]["faults"][0]["kind"]) == (0, "schema")
    assert post(served, body(1, acts="Go|Hide")).json()["accepted"] == 1


def test_params_are_fields_of_each_request(served: Gateway, upstream: Upstream) -> None:
    assert post(served, body(1, params={"temperature": 0.5, "max_tokens": 77})).json()["accepted"] == 1
    (request,) = upstream.chats
    assert (request.json["temperature"], request.json["max_tokens"]) == (0.5, 77)


PROBLEMS: dict[str, tuple[Any, str | None, str]] = {
    "no JSON": (b"{", None, "invalid_json"),
    "a key twice": (b'{"model": "rig", "model": "rig", "items": []}', None, "invalid_json"),
    "no items": (body(), "items", "invalid_type"),
    "no model": ({"items": [{"id": 1, "data": 1}]}, "model", "missing_required_parameter"),
    "no data": ({"model": "rig", "items": [{"id": 1}]}, "items[0].data", "missing_required_parameter"),
    "an unknown field": (body(1, modle=1), "modle", "unknown_parameter"),
    "one of an item": ({"model": "rig", "items": [{"id": 1, "data": 1, "x": 1}]}, "items[0].x", "unknown_parameter"),
    "an id that is none": (body(1, True), "items[1].id", "invalid_type"),
    "an empty id": (body(1, ""), "items[1].id", "invalid_value"),
    "an id twice": (body(1, 2, 1), "items[2].id", "duplicate_id"),
    "too many": (body(*range(MOST_ITEMS + 1)), "items", "too_many_items"),
    "a bad schema": (body(1, schema={"type": "odd"}), "schema", "invalid_value"),
    "a schema elsewhere": (body(1, schema={"$ref": "http://127.0.0.1:9/s"}), "schema", "invalid_value"),
    "acts and a schema": (body(1, schema={"type": "object"}, acts="Go"), "acts", "invalid_value"),
    "a key": (body(1, params={"api_key": "x"}), "params.api_key", "unsupported_value"),
    "messages": (body(1, params={"messages": []}), "params.messages", "unsupported_value"),
    "no params": (body(1, params=1), "params", "invalid_type"),
    "no size": (body(1, max_batch_size=0), "max_batch_size", "invalid_type"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_case_26_what_is_wrong_is_told_with_its_place(served: Gateway, upstream: Upstream, name: str) -> None:
    sent, param, code = PROBLEMS[name]
    answer = post(served, sent)
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert upstream.chats == []


def test_an_idempotency_key_is_refused_as_it_would_keep_nothing_from_running_twice(served: Gateway) -> None:
    answer = post(served, body(1), idempotency_key="k")
    assert (answer.status_code, error_of(answer)["param"]) == (400, "idempotency-key")


def test_an_unknown_model_is_not_found_as_in_chat(served: Gateway) -> None:
    answer = post(served, body(1, model="nobody"))
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


def test_where_every_call_fails_in_one_way_the_whole_answer_is_that_error(served: Gateway, upstream: Upstream) -> None:
    upstream.default = planner(fails=401)
    answer, chat = (
        post(served, body(1, 2)),
        served.post({"model": "rig", "messages": [{"role": "user", "content": ""}]}),
    )
    assert (answer.status_code, error_of(answer)) == (chat.status_code, error_of(chat))
    assert answer.status_code >= 500
    with streamed(served, 1, 2) as lines:
        found = events(lines)
    assert {fault["kind"] for _, row in found[:2] for fault in row["faults"]} == {"call"}
    assert (found[2][1]["accepted"], found[2][1]["failed"]) == (0, 2)
    assert found[3][1] == "[DONE]"


def test_where_one_item_has_a_value_or_a_model_answered_the_failures_are_told_item_by_item(
    served: Gateway, upstream: Upstream
) -> None:
    def half(request: Received) -> Answer:
        return planner(fails=401 if 1 in asked(request) else 0)(request)

    upstream.default = half
    answer = post(served, body(1, 2, max_batch_size=1))
    said = answer.json()
    assert (answer.status_code, said["accepted"], said["failed"]) == (200, 1, 1)
    assert {fault["kind"] for fault in said["outcomes"][0]["faults"]} == {"call"}

    def first(request: Received) -> Answer:
        return planner(fails=401 if len(upstream.chats) > 1 else 0, without=(1,))(request)

    upstream.default = first
    upstream.requests.clear()
    answer = post(served, body(1))
    assert [fault["kind"] for fault in answer.json()["outcomes"][0]["faults"]] == ["missing", "call"]
    assert (answer.status_code, answer.json()["failed"]) == (200, 1)


def test_the_log_has_the_numbers_and_nothing_of_the_items(served: Gateway, upstream: Upstream) -> None:
    with access_log() as log:
        post(served, body(1, "canary", instructions="canary"))
    (facts,) = log.rows
    assert (facts["path"], facts["items"], facts["accepted"], facts["calls"]) == ("/v1/batch", 2, 2, 1)
    assert (facts["in"], facts["out"], facts["llm"]) == (20, 10, "openai:rig")
    assert "canary" not in repr(facts)


async def test_case_01_a_client_that_leaves_ends_the_calls(served: Gateway, upstream: Upstream) -> None:
    upstream.default = planner(delay_s=0.1)
    sent = json.dumps(body(*range(40), stream=True)).encode()
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with access_log() as log:
        writer.write(b"POST /v1/batch HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(sent), sent))
        await asyncio.wait_for(reader.readuntil(b"event: outcome"), 5)
        await asyncio.to_thread(upstream.wait_requests, 4)
        left_at = time.monotonic()
        writer.transport.abort()
        closed = await asyncio.to_thread(upstream.wait_closed, 4)
        await asyncio.sleep(0.05)
    assert all(one.at - left_at < 1 for one in closed)
    (facts,) = log.rows
    assert facts["cancelled"] == "the client left"
    assert 1 <= facts["accepted"] <= 4


def test_heartbeats_come_while_nothing_else_does_and_a_stop_ends_without_the_end_mark(upstream: Upstream) -> None:
    upstream.default = planner(delay_s=0.2)
    stops = list[Any]()

    def front(app: Any) -> Any:
        async def call(scope: Any, receive: Any, send: Any) -> None:
            stops[:] = [asyncio.get_running_loop(), app.stop]
            await app(scope, receive, send)

        return call

    with gateway(upstream, server={"heartbeat_s": 0.05}, front=front) as served, streamed(served, 1, 2) as lines:
        assert next(lines) == ": ping"
        assert next(line for line in lines if line.startswith("event")) == "event: outcome"
        assert json.loads(next(lines).removeprefix("data: "))["id"] == 1
        assert [next(lines), next(lines)] == ["", ": ping"]
        loop, stop = stops
        loop.call_soon_threadsafe(stop, "the server is shutting down")
        found = events(lines)
    assert [(name, data["error"]["code"]) for name, data in found] == [("", "shutting_down")]


def test_the_scope_is_that_of_chat_and_other_methods_are_told_to_use_post(upstream: Upstream) -> None:
    with gateway(upstream, tokens=TOKENS) as served:
        assert post(served, body(1), authorization="Bearer pk-chat-secret").status_code == 200
        answer = post(served, body(1), authorization="Bearer pk-tools-secret")
        assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")
        assert post(served, body(1)).status_code == 401
        assert served.get("/v1/batch", authorization="Bearer pk-chat-secret").status_code == 405


def test_the_openapi_page_describes_it(served: Gateway) -> None:
    described = served.get("/openapi.json").json()["paths"]["/v1/batch"]["post"]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["model", "items"]
    assert schema["properties"]["items"]["maxItems"] == MOST_ITEMS
    assert set(described["responses"]) == {"200", "4XX", "5XX"}
