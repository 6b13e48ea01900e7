"""Tools over HTTP: listed and called by those who may, with honest answers and nothing of them in the log."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from penstock.config import Settings
from penstock.server.app import App
from penstock.server.protocol import Protocol
from penstock.server.serve import application
from tests.rig.hostile import Hostile, Seen, hostile, said, silence
from tests.rig.serving import serve_asgi
from tests.server.gateway import AccessLog, Gateway, access_log
from tests.server.shop import EVENTS

TIMES = 20
WITHIN_S = 1.0
DEEP = 10_000
SHOP = "tests.server.shop"
CANARY = "k-canary-8f3b61d09ac2"
TOOLS: list[dict[str, Any]] = [
    {"name": name, "function": f"{SHOP}:{name}"} for name in ("add", "wait", "count", "rows", "fail")
] + [
    {"name": "brief", "function": f"{SHOP}:wait", "timeout_s": 0.1},
    {"name": "alone", "function": f"{SHOP}:wait", "limit": {"concurrent": 1}},
    {"name": "pay", "function": f"{SHOP}:pay", "permissions": ["orders"], "idempotency": {"ledger": True}},
    {"name": "slow_pay", "function": f"{SHOP}:wait", "idempotency": {"ledger": True}},
]
TOKENS = [
    {"name": "alice", "value": "pk-alice", "scopes": ["tools"]},
    {"name": "bob", "value": "pk-bob", "scopes": ["tools", "orders"]},
    {"name": "carol", "value": "pk-carol", "scopes": ["tools", "orders"]},
    {"name": "dave", "value": "pk-dave", "scopes": ["chat"]},
]


@contextmanager
def serving(folder: Any, *, tools: list[dict[str, Any]] = TOOLS, **sections: Any) -> Generator[tuple[Gateway, App]]:
    """The server with tools, in a thread."""
    settings = {"tools": tools, "store": {"dir": str(folder)}, **sections}
    app = application(Settings.model_validate(settings))
    with serve_asgi(app, log_config=None, http=Protocol) as url, httpx.Client(timeout=20, trust_env=False) as http:
        yield Gateway(url=url, http=http), app


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One server without tokens for the tests of this module."""
    with serving(tmp_path_factory.mktemp("store")) as (found, _):
        yield found


@pytest.fixture
def log() -> Iterator[AccessLog]:
    with access_log() as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    EVENTS.clear()


def call(served: Gateway, name: str, arguments: Any, **headers: str) -> httpx.Response:
    return served.post(arguments, path=f"/v1/tools/{name}", **headers)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object of an answer, which has all four fields."""
    found: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(found)
    return found


def noted(what: str, within_s: float = 3) -> bool:
    end = time.monotonic() + within_s
    while what not in EVENTS and time.monotonic() < end:
        time.sleep(0.005)
    return what in EVENTS


def raw_call(name: str, body: bytes, **headers: str) -> bytes:
    lines = [f"POST /v1/tools/{name} HTTP/1.1", "host: penstock", f"content-length: {len(body)}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def opened(served: Gateway, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_tools_are_listed_as_a_chat_request_takes_them(served: Gateway, prefix: str) -> None:
    answer = served.get(f"{prefix}/tools").json()
    assert answer["object"] == "list"
    assert [row["function"]["name"] for row in answer["data"]] == [tool["name"] for tool in TOOLS]
    assert answer["data"][0] == {
        "id": "add",
        "object": "tool",
        "version": "1",
        "owner": "",
        "permissions": [],
        "return_target": "llm",
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_a_call_answers_with_the_value(served: Gateway, prefix: str) -> None:
    answer = served.post({"a": 2}, path=f"{prefix}/tools/add")
    found = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert found.pop("id").startswith("toolres_")
    assert 0 < found.pop("latency_s") < 5
    assert found == {"object": "tool.result", "tool": "add", "content": 3, "warnings": []}


@pytest.mark.parametrize(("name", "value"), [("count", "0 1 2 "), ("rows", [{"row": 0}, {"row": 1}, {"row": 2}])])
def test_row_b11_a_stream_is_answered_as_its_value(served: Gateway, name: str, value: Any) -> None:
    answer = call(served, name, {"n": 3})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["content"] == value


FAILURES: list[tuple[str, Any, int, str, str, Any]] = [
    ("nix", {}, 404, "invalid_request_error", "tool_not_found", None),
    ("add/more", {"a": 1}, 404, "invalid_request_error", "tool_not_found", None),
    ("fail", {"how": "raise"}, 502, "tool_error", "failed", {"type": "ValueError"}),
    ("fail", {"how": "failed"}, 502, "tool_error", "closed", {"opens": 9}),
    ("fail", {"how": "object"}, 502, "tool_error", "bad_return_value", None),
    ("fail", {"how": "limit"}, 429, "rate_limit_error", "rate_limit_exceeded", None),
    ("brief", {"seconds": 5}, 504, "tool_error", "timeout", {"outcome": "unknown", "stopped": True}),
]


@pytest.mark.parametrize(("name", "arguments", "status", "kind", "code", "details"), FAILURES)
def test_a_failure_has_its_status_and_code(
    served: Gateway, name: str, arguments: Any, status: int, kind: str, code: str, details: Any
) -> None:
    answer = call(served, name, arguments)
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["code"], error.get("details")) == (status, kind, code, details)
    assert answer.headers.get("retry-after") == {"limit": "7", "failed": "2"}.get(arguments.get("how", ""))


def test_row_b2_wrong_arguments_are_all_listed_with_their_paths(served: Gateway) -> None:
    answer = call(served, "add", {"a": "x", "c": 1})
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "bad_arguments", "arguments")
    assert [problem["path"] for problem in error["details"]] == ["a", "c"]
    assert all(problem["problem"] in error["message"] for problem in error["details"])


BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"hello",
    "not an object": b"[1]",
    "cut": b'{"a": ',
    "two values": b'{"a": 1} {}',
    "not UTF-8": b'{"a": "\xff"}',
    "duplicate keys": b'{"a": 1, "a": 2}',
    "NaN": b'{"a": NaN}',
    "infinite": b'{"a": 1e999}',
    "deep": b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a": ' * DEEP + b"1" + b"}" * DEEP,
    "many digits": b'{"a": ' + b"9" * 100_000 + b"}",
    "many keys": json.dumps({f"k{n}": n for n in range(20_000)}).encode(),
    "a long key": json.dumps({"k" * 500_000: 1}).encode(),
    "wrong type": b'{"a": {"b": [1]}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_case_26_bad_bodies_are_refused_quickly(served: Gateway, body: bytes) -> None:
    began = time.monotonic()
    answer = call(served, "add", body)
    assert time.monotonic() - began < 0.3
    assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_arguments")
    assert len(answer.content) < 20_000


def test_case_26_a_body_that_is_too_large_is_refused(tmp_path: Any) -> None:
    with serving(tmp_path, server={"max_body_mb": 0.01}) as (served, _):
        answer = call(served, "add", b'{"a": ' + b"1" * 20_000 + b"}")
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_are_told_to_use_post(served: Gateway, method: str) -> None:
    answer = served.get("/v1/tools/add", method=method)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert served.get("/v1/tools", method="POST").status_code == 405


def test_scopes_and_permissions_decide_who_sees_and_calls_a_tool(tmp_path: Any) -> None:
    with serving(tmp_path, auth={"tokens": TOKENS}) as (served, _):
        alice, bob, dave = ({"authorization": f"Bearer pk-{name}"} for name in ("alice", "bob", "dave"))
        listed = [
            [row["function"]["name"] for row in served.get("/v1/tools", **one).json()["data"]] for one in (alice, bob)
        ]
        assert ["pay" in names for names in listed] == [False, True]
        assert [len(names) for names in listed] == [len(TOOLS) - 1, len(TOOLS)]
        denied = call(served, "pay", {"order": 1}, **alice)
        assert (denied.status_code, error_of(denied)["type"]) == (403, "permission_error")
        assert error_of(denied)["code"] == "denied"
        assert call(served, "pay", {"order": 1}, **bob).json()["content"] == "bob paid 1"
        for answer in (served.get("/v1/tools", **dave), call(served, "add", {"a": 1}, **dave)):
            assert (answer.status_code, error_of(answer)["code"]) == (403, "insufficient_scope")
        for answer in (served.get("/v1/tools"), call(served, "add", {"a": 1})):
            assert (answer.status_code, error_of(answer)["code"]) == (401, "missing_token")
        assert "pay" not in error_of(call(served, "nix", {}, **alice))["message"]


def test_row_b8_a_call_under_one_key_runs_once_for_each_caller(tmp_path: Any) -> None:
    with serving(tmp_path, auth={"tokens": TOKENS}) as (served, _):
        bob, carol = ({"authorization": f"Bearer pk-{name}", "idempotency_key": "k1"} for name in ("bob", "carol"))
        assert [call(served, "pay", {"order": 1}, **bob).json()["content"] for _ in range(2)] == ["bob paid 1"] * 2
        conflict = call(served, "pay", {"order": 2}, **bob)
        assert (conflict.status_code, error_of(conflict)["code"]) == (409, "idempotency_conflict")
        assert call(served, "pay", {"order": 1}, **carol).json()["content"] == "carol paid 1"
        assert EVENTS == ["paid 1", "paid 1"]
        assert (tmp_path / "ledger.db").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]


def test_row_b8_a_key_whose_call_still_runs_joins_it(served: Gateway) -> None:
    answers: list[httpx.Response] = []
    first = threading.Thread(
        target=lambda: answers.append(call(served, "slow_pay", {"seconds": 0.5}, idempotency_key="k2"))
    )
    first.start()
    assert noted("began")
    second = call(served, "slow_pay", {"seconds": 0.5}, idempotency_key="k2")
    first.join()
    assert answers[0].json()["content"] == "waited"
    assert second.json()["content"] == "waited"
    assert EVENTS.count("began") == 1


@pytest.mark.parametrize(("name", "key"), [("add", "k"), ("slow_pay", ""), ("slow_pay", "k" * 256)])
def test_a_key_that_cannot_count_is_refused(served: Gateway, name: str, key: str) -> None:
    answer = call(served, name, {"a": 1, "seconds": 0}, idempotency_key=key)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "idempotency-key")
    assert EVENTS == []


def test_case_17_a_call_beyond_the_limit_says_when_to_come_back(served: Gateway) -> None:
    first = threading.Thread(target=call, args=(served, "alone", {"seconds": 0.3}))
    first.start()
    assert noted("began")
    answer = call(served, "alone", {"seconds": 0})
    first.join()
    assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert call(served, "alone", {"seconds": 0}).status_code == 200


def test_case_12_a_draining_server_takes_no_calls(tmp_path: Any) -> None:
    with serving(tmp_path) as (served, app):
        running = threading.Thread(target=call, args=(served, "wait", {"seconds": 0.3}))
        running.start()
        assert noted("began")
        app.drain()
        answer = call(served, "add", {"a": 1})
        running.join()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "shutting_down")
    assert answer.headers["retry-after"]
    assert "done" in EVENTS


async def test_case_01_a_client_that_leaves_cancels_the_function(served: Gateway, log: AccessLog) -> None:
    for _ in range(TIMES):
        EVENTS.clear()
        _, writer = await opened(served, raw_call("wait", b'{"seconds": 20}'))
        assert await asyncio.to_thread(noted, "began")
        writer.transport.abort()
        assert await asyncio.to_thread(noted, "cancelled", WITHIN_S)
    await log.row(TIMES)
    assert {(row["status"], row["cancelled"], row["tool"]) for row in log.rows} == {(499, "the client left", "wait")}


def shop_tool(server: Hostile, **fields: Any) -> dict[str, Any]:
    headers = {"authorization": "Bearer ${SHOP_KEY}"}
    address = {"base_url": server.url, "path": "/", "allow_private": True, "headers": headers}
    return {"name": "shop", "http": address, **fields}


async def test_case_01_a_client_that_leaves_closes_the_connection_of_an_http_tool(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", CANARY)
    async with hostile({"/": silence}) as server:
        with serving(tmp_path, tools=[shop_tool(server)]) as (served, _):
            for number in range(TIMES):
                server.left.clear()
                _, writer = await opened(served, raw_call("shop", b"{}"))
                async with asyncio.timeout(5):
                    while len(server.seen) <= number:
                        await asyncio.sleep(0.002)
                writer.transport.abort()
                await asyncio.wait_for(server.left.wait(), WITHIN_S)


async def test_case_03_a_call_may_finish_without_its_client(served: Gateway) -> None:
    _, writer = await opened(served, raw_call("wait", b'{"seconds": 0.3}', x_disconnect_policy="finish"))
    assert await asyncio.to_thread(noted, "began")
    writer.transport.abort()
    assert await asyncio.to_thread(noted, "done")
    assert "cancelled" not in EVENTS


async def test_no_heartbeat_comes_before_a_json_answer(tmp_path: Any) -> None:
    with serving(tmp_path, server={"heartbeat_s": 0.05}) as (served, _):
        reader, writer = await opened(served, raw_call("wait", b'{"seconds": 0.4}', connection="close"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(body)["content"] == "waited"


async def test_the_log_names_the_tool_and_shows_no_arguments(served: Gateway, log: AccessLog) -> None:
    call(served, "add", {"a": 424242})
    call(served, "add", {"a": "a-private-text"})
    call(served, "fail", {"how": "raise"})
    call(served, "a-private-name", {})
    await log.row(4)
    assert [(row["path"], row.get("tool"), row["status"]) for row in log.rows[:3]] == [
        ("/v1/tools/{name}", name, status) for name, status in (("add", 200), ("add", 400), ("fail", 502))
    ]
    assert [row.get("error") for row in log.rows[:3]] == [None, "BadArguments: bad_arguments", "ToolFailed: failed"]
    assert log.rows[3]["path"] == "/v1/tools/{name}"
    assert "424242" not in str(log.rows)
    assert "a-private-text" not in str(log.rows)


async def test_case_25_a_tools_secret_is_never_told(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOP_KEY", CANARY)

    def leak(seen: Seen) -> bytes:
        status = (200, 401, 500, 302)[len(server.seen) % 4]
        body = json.dumps({"you sent": seen.headers["authorization"], "part": CANARY[3:14]}).encode()
        return said(status, body, "application/json", location=f"https://x.y/{CANARY}", x_said=CANARY)

    async with hostile({"/": leak}) as server:
        with serving(tmp_path, tools=[shop_tool(server)]) as (served, app), access_log() as log:
            answers = [await asyncio.to_thread(call, served, "shop", {}) for _ in range(4)]
            answers += [
                await asyncio.to_thread(served.get, path)
                for path in ("/v1/tools", "/openapi.json", "/v1/tools/nix", "/v1/models")
            ]
            await log.row(5)
        shown = repr(app) + repr(vars(app)) + "".join(repr(vars(tool)) for tool in app.tools.values())
    assert sorted({answer.status_code for answer in answers}) == [200, 403, 405, 502]
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {CANARY}"}
    said_anywhere = [*(answer.text + str(answer.headers) for answer in answers), str(log.rows), shown, caplog.text]
    for text in (*said_anywhere, *capfd.readouterr()):
        assert not any(CANARY[at : at + 8] in text for at in range(len(CANARY) - 7))


def test_the_openapi_page_describes_both_endpoints(served: Gateway) -> None:
    paths = served.get("/openapi.json").json()["paths"]
    assert "get" in paths["/v1/tools"]
    described = paths["/v1/tools/{name}"]["post"]
    assert {"name", "Idempotency-Key", "X-Disconnect-Policy"} <= {one["name"] for one in described["parameters"]}
    value = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(value["required"]) == set(call(served, "add", {"a": 1}).json())


def test_case_3_a_call_that_is_kept_in_a_ledger_goes_on_when_its_client_leaves(served: Gateway) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.url}/v1/tools/slow_pay",
            content='{"seconds": 0.3}',
            headers={"idempotency-key": "left"},
            timeout=0.1,
            trust_env=False,
        )
    time.sleep(0.4)
    again = call(served, "slow_pay", {"seconds": 0.3}, idempotency_key="left")
    assert again.status_code == 200, again.text


def test_what_a_function_raises_stands_in_the_log_with_its_place(
    served: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    assert call(served, "fail", {"how": "raise"}).status_code == 502
    [record] = [record for record in caplog.records if record.getMessage() == "the executor failed"]
    assert record.exc_info is not None
