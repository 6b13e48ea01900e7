"""The chat endpoint as OpenAI's clients read it: the conventions of the wire, one by one."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.rig.upstream import Plain, Silence, Stream, Upstream, chunk, completion, text_stream, usage_of
from tests.server.gateway import KEY, MESSAGES, Calm, Gateway, chat, error_of, events_of, gateway, sse_bytes

USAGE = usage_of(prompt=5, completion=7)
ASKING = {"stream_options": {"include_usage": True}}


@pytest.fixture
def served(calm: Calm) -> Gateway:
    return calm.served


@pytest.fixture
def upstream(calm: Calm) -> Upstream:
    return calm.cleared()


def streamed(served: Gateway, upstream: Upstream, *chunks: Any, **fields: Any) -> list[Any]:
    """The events of an answer for which the upstream sends these chunks."""
    upstream.script(Stream(chunks))
    answer = served.post(chat(**fields))
    assert answer.status_code == 200, answer.text
    events = events_of(answer.content)
    assert events[-1] == "[DONE]"
    return events[:-1]


def test_row_a1_a_clean_stream_is_passed_on_byte_for_byte(served: Gateway, upstream: Upstream) -> None:
    answer = Stream(text_stream("one two three"))
    upstream.script(answer)
    assert served.post(chat()).content == sse_bytes(answer)


def test_row_a1_a_clean_answer_is_passed_on_byte_for_byte(served: Gateway, upstream: Upstream) -> None:
    body = b'{"id": "x", "object":"chat.completion","created":1,"model":"m","odd": [1.50],\n "choices":[{"index":0,'
    body += b'"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
    upstream.script(Plain(body))
    assert served.post(chat(stream=False)).content == body


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_row_a1_the_path_may_lack_its_version(path: str, stream: bool, served: Gateway) -> None:
    answer = served.post(chat(stream=stream), path=path)
    assert answer.status_code == 200
    assert b"three" in answer.content


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405(method: str, served: Gateway) -> None:
    answer = served.get("/v1/chat/completions", method)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert method == "HEAD" or error_of(answer)["code"] == "method_not_allowed"


def test_the_headers_of_a_stream(served: Gateway) -> None:
    headers = served.post(chat()).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])


@pytest.mark.parametrize("stream", [True, False])
def test_a_given_request_id_comes_back(stream: bool, served: Gateway) -> None:
    assert served.post(chat(stream=stream), x_request_id="abc-1.2:3").headers["x-request-id"] == "abc-1.2:3"
    assert served.post(b"{", x_request_id="abc").headers["x-request-id"] == "abc"
    assert served.get("/v1/models", x_request_id="abc").headers["x-request-id"] == "abc"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a;b"])
def test_an_unfit_request_id_is_replaced(given: str, served: Gateway) -> None:
    assert served.post(chat(), x_request_id=given).headers["x-request-id"].startswith("req_")


def test_each_choice_begins_with_its_role(served: Gateway, upstream: Upstream) -> None:
    events = streamed(
        served,
        upstream,
        chunk("a"),
        chunk("b", index=1),
        chunk("c"),
        chunk(finish="stop"),
        chunk(finish="stop", index=1),
    )
    roles = [(choice["index"], choice["delta"].get("role")) for event in events for choice in event["choices"]]
    assert roles == [(0, "assistant"), (1, "assistant"), (0, None), (0, None), (1, None)]


def test_every_chunk_has_the_required_fields(served: Gateway, upstream: Upstream) -> None:
    bare: list[Any] = [
        {"choices": [{"delta": {"content": "a"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    events = streamed(served, upstream, *bare, **ASKING)
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[0]["id"].startswith("chatcmpl-")
    assert events[0]["choices"][0]["index"] == 0


USAGES = {
    "in a chunk of its own": [*text_stream("a b"), chunk(usage=USAGE)],
    "on the last chunk": [*text_stream("a b")[:-1], chunk(finish="stop", usage=USAGE)],
    "on every chunk": [{**piece, "usage": USAGE} for piece in text_stream("a b")],
    "twice": [*text_stream("a b"), chunk(usage=USAGE), chunk(usage=USAGE)],
    "before the end": [chunk("a"), chunk(usage=USAGE), chunk("b"), chunk(finish="stop")],
    "on the last chunk and again": [chunk("a b"), chunk(finish="stop", usage=USAGE), chunk(usage=USAGE)],
}


@pytest.mark.parametrize("name", list(USAGES))
def test_usage_is_told_once_and_last_and_only_on_request(name: str, served: Gateway, upstream: Upstream) -> None:
    asked = streamed(served, upstream, *USAGES[name], **ASKING)
    assert [event for event in asked if event.get("usage")] == asked[-1:]
    assert asked[-1]["choices"] == []
    assert {field: asked[-1]["usage"][field] for field in USAGE} == USAGE
    unasked = streamed(served, upstream, *USAGES[name])
    assert [event for event in unasked if event.get("usage") or not event["choices"]] == []
    for events in (asked, unasked):
        said = [c["delta"].get("content") or "" for event in events for c in event["choices"]]
        assert "".join(said).replace(" ", "") == "ab"


def test_the_upstream_is_asked_for_usage_in_any_case(served: Gateway, upstream: Upstream) -> None:
    streamed(served, upstream, *text_stream("a"))
    streamed(served, upstream, *text_stream("a"), stream_options={"include_usage": False, "other": 1})
    served.post(chat(stream=False))
    assert upstream.chats[0].json["stream_options"] == {"include_usage": True}
    assert upstream.chats[1].json["stream_options"] == {"include_usage": True, "other": 1}
    assert "stream_options" not in upstream.chats[2].json


@pytest.mark.parametrize("stream", [True, False])
def test_unknown_fields_are_forwarded(stream: bool, served: Gateway, upstream: Upstream) -> None:
    fields = {"temperature": 0.5, "grammar": "root ::= x", "nested": {"deep": [1, None, {"a": "é"}]}, "top_k": 3}
    served.post(chat(stream=stream, **fields))
    sent = upstream.chats[0].json
    assert {name: sent[name] for name in fields} == fields
    assert (sent["messages"], sent["model"], sent.get("stream", False)) == (MESSAGES, "rig", stream)
    assert upstream.chats[0].headers["authorization"] == f"Bearer {KEY}"


def test_no_header_of_the_client_reaches_the_upstream(served: Gateway, upstream: Upstream) -> None:
    served.post(chat(), authorization="Bearer sk-of-the-client", cookie="a=b", x_forwarded_for="10.0.0.1", api_key="k")
    assert set(upstream.chats[0].headers) == {"host", "content-length", "content-type", "user-agent", "authorization"}
    assert "sk-of-the-client" not in str(upstream.chats[0].headers)


@pytest.mark.parametrize("field", ["store", "previous_response_id", "background", "conversation"])
def test_stateful_fields_are_refused(field: str, served: Gateway, upstream: Upstream) -> None:
    answer = served.post(chat() | {field: "yes"})
    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (field, "unsupported_value")
    assert upstream.chats == []
    assert served.post(chat() | {field: None}).status_code == 200


@pytest.mark.parametrize(
    ("header", "value"), [("x_routing_mode", "agent"), ("x_conversation_id", "c1"), ("idempotency_key", "k1")]
)
def test_headers_of_unbuilt_features_are_refused(header: str, value: str, served: Gateway, upstream: Upstream) -> None:
    answer = served.post(chat(), **{header: value})
    assert answer.status_code == 400
    assert (error_of(answer)["param"], error_of(answer)["code"]) == (header.replace("_", "-"), "unsupported_value")
    assert upstream.chats == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", ["reasoning_content", "reasoning", "<think>"])
def test_reasoning_stands_in_both_fields_and_never_in_content(
    form: str, stream: bool, served: Gateway, upstream: Upstream
) -> None:
    if stream and form == "<think>":
        pieces = [chunk(part) for part in ("<thi", "nk>why ", "not</th", "ink>", "\n\nbe", "cause")]
    else:
        thought: Any = {form: "why not"}
        pieces = [chunk(**thought), chunk("because")] if stream else []
    whole = completion("<think>why not</think>because" if form == "<think>" else "because")
    if form != "<think>":
        whole["choices"][0]["message"][form] = "why not"
    upstream.script(Stream([*pieces, chunk(finish="stop")]) if stream else Plain(whole))
    answer = served.post(chat(stream=stream))
    if stream:
        said = [event["choices"][0]["delta"] for event in events_of(answer.content)[:-1]]
    else:
        said = [answer.json()["choices"][0]["message"]]
    for field, text in (("content", "because"), ("reasoning", "why not"), ("reasoning_content", "why not")):
        assert "".join(part.get(field) or "" for part in said) == text, field


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [(429, {"retry-after": "7"}, "7"), (429, {}, "1"), (503, {"retry-after": "3"}, "3"), (503, {}, "1")],
)
def test_429_and_503_say_when_to_come_back(
    status: int, headers: dict[str, str], wait: str, stream: bool, served: Gateway, upstream: Upstream
) -> None:
    upstream.script(Plain({"error": {"message": "slow down"}}, status=status, headers=headers))
    answer = served.post(chat(stream=stream))
    assert (answer.status_code, answer.headers["retry-after"]) == (status, wait)
    assert error_of(answer)["message"] == "slow down"


def test_the_upstreams_own_words_reach_the_client(served: Gateway, upstream: Upstream) -> None:
    said = {"message": "bad temperature", "type": "invalid_request_error", "param": "temperature", "code": "too_hot"}
    upstream.script(Plain({"error": said}, status=422))
    answer = served.post(chat(temperature=9))
    assert (answer.status_code, error_of(answer)) == (422, said)


def test_case_17_the_limit_answers_429(upstream: Upstream) -> None:
    with gateway(upstream, model={"limit": {"requests_per_minute": 3}}) as served:
        answers = [served.post(chat(stream=n % 2 == 0)) for n in range(6)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429, 429]
    assert len(upstream.chats) == 3
    assert error_of(answers[3])["type"] == "rate_limit_error"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_case_29_the_trace_goes_on_with_tracing_off(served: Gateway, upstream: Upstream) -> None:
    served.post(chat(), traceparent=TRACE, tracestate="a=1,b=2")
    sent = upstream.chats[0].headers
    assert sent["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert sent["tracestate"] == "a=1,b=2"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        TRACE.upper(),
        TRACE[:-1],
        f"{TRACE}-x",
        TRACE.replace("00-4bf", "ff-4bf"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)
def test_case_29_a_malformed_traceparent_is_ignored(given: str, served: Gateway, upstream: Upstream) -> None:
    assert served.post(chat(), traceparent=given).status_code == 200
    assert "traceparent" not in upstream.chats[0].headers


async def test_case_28_a_client_that_leaves_a_traced_stream_leaves_no_noise(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.default = lambda _: Silence()
    with gateway(upstream) as served:
        for n in range(5):
            _, writer = await served.open(headers={"traceparent": TRACE})
            await asyncio.to_thread(upstream.wait_requests, n + 1)
            writer.transport.abort()
            await asyncio.to_thread(upstream.wait_closed, n + 1)
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []
