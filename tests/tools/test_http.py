"""HTTP tools against a real server: what they send, what becomes of each answer, and where they do not go."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.trace import TracerProvider

from penstock.errors import UsageError
from penstock.net import open_session
from penstock.run import execute
from penstock.tools.http import BaseHttpExecutor, HttpToolExecutor
from penstock.tools.http.answer import CHARSET, MAX_ERROR, decoded
from penstock.tools.http.spec import HttpToolSpec
from penstock.tools.result import ToolFault, ToolRequest
from tests.rig.hostile import Hostile, Names, Seen, bomb, endless, hostile, said, silence, to

OK = said(200, b'{"ok": true}', "application/json")


def tool(served: Hostile | str, **fields: Any) -> HttpToolExecutor:
    return HttpToolExecutor(spec(served, **fields))


def spec(served: Hostile | str, **fields: Any) -> HttpToolSpec:
    url = served if isinstance(served, str) else served.url
    names: dict[str, Any] = {name: {} for name in fields.pop("names", "")}
    said = {
        "tool_name": "t",
        "base_url": url,
        "allow_private": True,
        "parameters": {"type": "object", "properties": names, "additionalProperties": False},
    }
    return HttpToolSpec.model_validate(said | fields)


async def fault(executor: BaseHttpExecutor, args: dict[str, Any] | None = None) -> ToolFault:
    result = await executor.execute(args or {})
    assert result.content is None
    assert result.error is not None
    return result.error


async def test_row_b9_a_tool_sends_what_its_spec_says() -> None:
    async with hostile({"/v1/a%2Fb": OK}) as served:
        sends = tool(served, names="xyz", method="POST", path="/v1/{x}", query={"y": "{y}"}, headers={"X-Y": "{y}"})
        result = await sends.execute('{"x": "a/b", "y": 3, "z": [1]}')
        assert (result.content, result.error) == ({"ok": True}, None)
        request = served.seen[0]
    assert (request.method, request.target) == ("POST", "/v1/a%2Fb?y=3")
    assert (request.headers["x-y"], request.headers["content-type"]) == ("3", "application/json")
    assert json.loads(request.body) == {"z": [1]}


async def test_one_tool_serves_the_loops_of_several_threads() -> None:
    async with hostile({"*": OK}) as served:
        shared = tool(served)
        assert (await shared.execute({})).ok
        assert (await asyncio.to_thread(lambda: asyncio.run(shared.execute({})))).ok
        assert (await shared.execute({})).ok


async def test_a_traced_call_carries_its_trace() -> None:
    span = TracerProvider().get_tracer("t").start_span("caller")
    async with hostile({"*": OK}) as served:
        await execute(tool(served), ToolRequest({}), parent=span)
        await tool(served).execute({})
        traced, plain = (request.headers.get("traceparent") for request in served.seen)
    assert plain is None
    assert traced is not None
    assert traced.split("-")[1] == f"{span.get_span_context().trace_id:032x}"


ANSWERS: dict[str, tuple[bytes, dict[str, Any], Any]] = {
    "json": (OK, {}, {"ok": True}),
    "a kind of json": (said(200, b"[1]", "application/problem+json; charset=utf-8"), {}, [1]),
    "json with a mark": (said(200, b"\xef\xbb\xbf[1]", "application/json"), {}, [1]),
    "json that does not say so": (said(200, b"[1]"), {"expect": "json"}, [1]),
    "json as text": (said(200, b"[1]", "application/json"), {"expect": "text"}, "[1]"),
    "text": (said(200, "é".encode(), "text/plain"), {}, "é"),
    "text of another charset": (said(200, "é".encode("latin-1"), 'text/plain; charset="latin-1"'), {}, "é"),
    "text of no charset there is": (said(200, "é".encode(), "text/plain; charset=hex"), {}, "é"),
    "bytes as text": (said(200, b"a\0b"), {"expect": "text"}, "a\0b"),
    "nothing": (said(204), {}, None),
    "created": (said(201, b"[1]", "application/json"), {}, [1]),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_row_b9_an_answer_becomes_a_value(case: str) -> None:
    answer, fields, value = ANSWERS[case]
    async with hostile({"*": answer}) as served:
        result = await tool(served, **fields).execute({})
    assert (result.content, result.error, result.warnings) == (value, None, ())


SLOW = random.Random(1).randbytes(50_000).hex().encode()
CHARSETS = ["utf-8", "UTF-16LE", "utf_32", "us-ascii", "latin1", "iso-8859-15", "windows-1251", "cp874", "koi8-r"]
CHARSETS += ["Shift_JIS", "euc-jp", "euc-kr", "iso-2022-jp", "gb2312", "gbk", "gb18030", "big5", "tis-620"]


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "utf-7", "unicode_escape", "raw-unicode-escape"])
def test_case_21_a_charset_that_would_stop_the_event_loop_is_not_used(charset: str) -> None:
    began = time.process_time()
    assert decoded(b"\\u0041" + SLOW, charset) == "\\u0041" + SLOW.decode()
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("charset", CHARSETS)
def test_row_b9_text_is_read_in_the_charset_that_it_names(charset: str) -> None:
    assert CHARSET.fullmatch(charset)
    assert decoded("plain".encode(charset), charset) == "plain"


async def test_the_head_of_an_answer_has_no_value() -> None:
    async with hostile({"*": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"}) as served:
        assert (await tool(served, method="HEAD").execute({})).ok
        assert served.seen[0].method == "HEAD"


UNREADABLE: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "no json": (said(200, b"<html>", "application/json"), {}, "not_json"),
    "no utf-8": (said(200, b'"\xff"', "application/json"), {}, "not_json"),
    "too deep": (said(200, b"[" * 100_000, "application/json"), {}, "not_json"),
    "text for json": (said(200, b"<html>", "text/html"), {"expect": "json"}, "not_json"),
    "a picture": (said(200, b"\x89PNG\0\0", "image/png"), {}, "not_text"),
    "no http": (b"nonsense\r\n\r\n", {}, "bad_answer"),
    "a broken coding": (said(200, b"xxxx", content_encoding="gzip"), {}, "connection_lost"),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_row_b9_an_answer_that_is_none_is_a_typed_error(case: str) -> None:
    answer, fields, code = UNREADABLE[case]
    async with hostile({"*": answer}) as served:
        assert (await fault(tool(served, **fields))).code == code


STATUSES = {400: False, 401: False, 404: False, 409: False, 408: True, 425: True, 429: True, 500: True, 503: True}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_row_b9_status_and_body_are_kept(status: int, method: str) -> None:
    answer = said(status, b'{"why": "so"}', "application/json", retry_after="7")
    async with hostile({"*": answer}) as served:
        found = await fault(tool(served, method=method))
        safe = await fault(tool(served, method=method, idempotency={"safe": True}))
    assert found.code == f"http_{status}"
    assert '{"why": "so"}' in found.message
    assert found.details["status"] == status
    assert found.details["body"] == {"why": "so"}
    assert found.details["content_type"] == "application/json"
    assert found.details["retry_after_s"] == 7
    assert found.retryable is (STATUSES[status] and method != "POST")
    assert safe.retryable is STATUSES[status]


async def test_the_body_of_an_error_is_cut() -> None:
    async with hostile({"/json": said(500, b'"' + b"x" * 50_000 + b'"', "application/json"), "*": said(404)}) as served:
        long = await fault(tool(served, path="/json"))
        none = await fault(tool(served))
    assert len(long.details["body"]) == MAX_ERROR
    assert none.message == "the service answered 404 without a reason"


async def test_row_b7_a_refusal_in_passing_is_tried_again() -> None:
    answers = iter([said(503, retry_after="0"), said(429, retry_after="0"), OK])
    async with hostile({"*": lambda _: next(answers)}) as served:
        result = await tool(served, retry={"attempts": 3}).execute({})
        assert result.content == {"ok": True}
        assert len(served.seen) == 3


async def test_a_connection_that_was_never_opened_may_always_be_tried_again() -> None:
    found = await fault(tool("http://127.0.0.1:1", method="POST"))
    assert (found.code, found.retryable) == ("unreachable", True)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_was_lost_is_tried_again_where_that_is_safe(method: str) -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"

    async def half(_: Seen) -> AsyncIterator[bytes]:
        yield cut

    async with hostile({"*": half}) as served:
        found = await fault(tool(served, method=method))
    assert (found.code, found.retryable) == ("connection_lost", method == "GET")


async def test_case_21_a_body_beyond_the_limit_is_cut_with_a_marker() -> None:
    async with hostile({"*": endless()}) as served:
        result = await tool(served, max_response_bytes=50_000).execute({})
        await asyncio.wait_for(served.left.wait(), 1)
        assert served.sent < 10_000_000
    assert result.error is None
    assert result.content.endswith("\n[cut: longer than 50000 bytes]")
    assert len(result.content) == 50_000
    assert result.warnings == ("the body was cut at 50000 bytes",)


@pytest.mark.parametrize("answer", [endless("application/json"), bomb(50_000_000, "application/json")])
async def test_case_21_json_beyond_the_limit_is_a_typed_error(answer: Any) -> None:
    async with hostile({"*": answer}) as served:
        found = await fault(tool(served, max_response_bytes=50_000))
    assert (found.code, found.details["limit"]) == ("too_large", 50_000)


@pytest.mark.parametrize("answer", [silence, endless(pause_s=0.05)])
async def test_case_21_the_deadline_closes_the_connection(answer: Any) -> None:
    async with hostile({"*": answer}) as served:
        found = await fault(tool(served, timeout_s=0.2, max_response_bytes=10_000_000))
        assert found.code == "timeout"
        await asyncio.wait_for(served.left.wait(), 1)


async def test_case_1_a_cancelled_call_closes_its_connection() -> None:
    async with hostile({"*": silence}) as served:
        call = asyncio.create_task(tool(served).execute({}))
        while not served.seen:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait_for(served.left.wait(), 1)
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_case_22_a_private_origin_needs_to_be_allowed() -> None:
    async with hostile({"*": OK}) as served:
        found = await fault(tool(served, allow_private=False))
        assert (found.code, found.retryable) == ("address_denied", False)
        assert "allow_private" in found.message
        assert served.connections == 0


async def test_case_22_an_allowed_name_that_moves_to_another_kind_of_address_is_refused() -> None:
    names = Names({"tool.example": [["127.0.0.1"], ["169.254.169.254"]]})

    class Named(HttpToolExecutor):
        async def _get_session(self) -> aiohttp.ClientSession:
            return named

    async with hostile({"*": said(200, b"[1]", "application/json", connection="close")}) as served:
        url = f"http://tool.example:{served.port}"
        async with open_session(url, resolver=names) as named:
            executor = Named(spec(url))
            assert (await executor.execute({})).content == [1]
            assert isinstance(named.connector, aiohttp.TCPConnector)
            named.connector.clear_dns_cache()
            assert (await fault(executor)).code == "address_denied"


async def test_redirects_within_the_origin_are_followed() -> None:
    answers = {"/a": to("b/../c?x=1", 303), "/c": to("/d", 307), "/d": OK}
    async with hostile(answers) as served:
        result = await tool(served, method="POST", path="/a", names="n", headers={"x-own": "1"}).execute({"n": 1})
        assert result.content == {"ok": True}
        seen = served.seen
    assert [(request.method, request.target, request.body) for request in seen] == [
        ("POST", "/a", b'{"n":1}'),
        ("GET", "/c?x=1", b""),
        ("GET", "/d", b""),
    ]
    assert [request.headers["x-own"] for request in seen] == ["1", "1", "1"]
    assert [request.headers.get("content-type") for request in seen] == ["application/json", None, None]


async def test_a_body_is_sent_again_where_the_redirect_asks_for_it() -> None:
    async with hostile({"/a": to("/b", 308), "/b": OK}) as served:
        assert (await tool(served, method="POST", path="/a", names="n").execute({"n": 1})).ok
        assert [request.body for request in served.seen] == [b'{"n":1}', b'{"n":1}']


@pytest.mark.parametrize("most", [0, 1, 5])
async def test_no_more_redirects_are_followed_than_allowed(most: int) -> None:
    async with hostile({"*": to("/again")}) as served:
        found = await fault(tool(served, max_redirects=most))
        assert (found.code, len(served.seen)) == ("redirect_denied", most + 1)
        assert found.details == {"status": 302, "location": "/again"}


@pytest.mark.parametrize("redirects", ["same_origin", "public"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_case_22_a_redirect_to_a_private_address_opens_no_connection(redirects: str, status: int) -> None:
    async with hostile({"*": OK}) as inner, hostile({"*": to(inner.url, status)}) as outer:
        found = await fault(tool(outer, redirects=redirects))
        assert found.code == ("address_denied" if redirects == "public" else "redirect_denied")
        assert (inner.connections, outer.connections) == (0, 1)


@pytest.mark.parametrize("where", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1", "javascript:1", "//"])
async def test_case_22_a_redirect_elsewhere_than_to_http_is_refused(where: str) -> None:
    async with hostile({"*": to(where)}) as served:
        assert (await fault(tool(served, redirects="public"))).code == "redirect_denied"


class Open(HttpToolExecutor):
    """Connects anywhere: to see what would be sent to another origin that is public."""

    async def _get_session(self) -> aiohttp.ClientSession:
        return self.client

    client: aiohttp.ClientSession


async def test_case_25_another_origin_gets_neither_headers_nor_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TEST_KEY", "canary-0123456789")
    async with hostile({"*": OK}) as other, aiohttp.ClientSession() as client:
        async with hostile({"/get": to(other.url), "/post": to(other.url, 307), "/see": to(other.url, 303)}) as served:
            sealed = {"headers": {"x-key": "${PENSTOCK_TEST_KEY}", "x-own": "1"}, "redirects": "public"}
            found = []
            for method, path in (("GET", "/get"), ("POST", "/see"), ("POST", "/post")):
                executor = Open(spec(served, method=method, path=path, names="n", **sealed))
                executor.client = client
                found.append((await executor.execute({"n": "x"})).error)
        assert found[:2] == [None, None]
        assert found[2] is not None
        assert found[2].code == "redirect_denied"
        assert [(request.method, request.body) for request in other.seen] == [("GET", b""), ("GET", b"")]
        assert all(not {"x-key", "x-own", "content-type"} & set(request.headers) for request in other.seen)


@pytest.mark.parametrize("key", ["canary-0123456789-abcdef", "canary/01234/abcde", "canary+01234+abcde", "short"])
async def test_case_25_no_secret_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    monkeypatch.setenv("PENSTOCK_TEST_KEY", key)

    def echo(seen: Seen) -> bytes:
        kind = "application/json" if "json" in seen.target else "text/plain"
        shown = json.dumps({seen.headers["authorization"]: [seen.headers["authorization"]]})
        shown = shown.replace("/", "\\/").replace("+", "\\u002b" if "json" in kind else "+")
        status = 400 if "bad" in seen.target else 302 if "away" in seen.target else 200
        return said(status, shown.encode(), kind, location=f"//x/{key}")

    shown = []
    async with hostile({"*": echo}) as served:
        for path in ("/json", "/text", "/json-bad", "/text-bad", "/away"):
            executor = tool(served, path=path, headers={"Authorization": "Bearer ${PENSTOCK_TEST_KEY}"})
            result = await executor.execute({})
            shown.append(f"{result!r} {executor!r} {executor.spec!r} {executor.spec.model_dump_json()}")
        assert {request.headers["authorization"] for request in served.seen} == {f"Bearer {key}"}
    shown.append(caplog.text)
    for text in shown:
        plain = text.replace("\\\\", "\\").replace("\\/", "/").replace("\\u002b", "+")
        assert not [key[i : i + 8] for i in range(max(1, len(key) - 7)) if key[i : i + 8] in plain]


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("PENSTOCK_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("PENSTOCK_TEST_KEY", value)
    with pytest.raises(UsageError, match="'t' needs the environment variable PENSTOCK_TEST_KEY"):
        tool("https://api.example", headers={"Authorization": "Bearer ${PENSTOCK_TEST_KEY}"})
