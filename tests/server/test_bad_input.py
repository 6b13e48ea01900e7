"""Bodies that are wrong, huge or hostile: refused in OpenAI's shape, quickly, and never with a 500."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.chat.passthrough import DENIED
from tests.rig.upstream import Upstream
from tests.server.gateway import MESSAGES, Calm, Gateway, chat, error_of, gateway

WITHIN_S = 0.3
DEEP = 10_000
HI = '[{"role": "user", "content": "hi"}]'


@pytest.fixture
def served(calm: Calm) -> Gateway:
    return calm.served


@pytest.fixture
def upstream(calm: Calm) -> Upstream:
    return calm.cleared()


BODIES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "invalid_json"),
    "not JSON": ("hello", "invalid_json"),
    "cut": ('{"model": "rig", "messages": [', "invalid_json"),
    "two values": (f'{{"model": "rig", "messages": {HI}}} {{}}', "invalid_json"),
    "not UTF-8": (b'{"model": "\xff\xfe", "messages": []}', "invalid_json"),
    "UTF-16": (json.dumps({"model": "rig"}).encode("utf-16"), "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "invalid_json"),
    "a lone surrogate": (f'{{"model": "\\ud800", "messages": {HI}}}', "invalid_json"),
    "an array": ("[]", "invalid_type"),
    "a text": ('"chat"', "invalid_type"),
    "null": ("null", "invalid_type"),
    "a number": ("3", "invalid_type"),
    "NaN": (f'{{"model": "rig", "messages": {HI}, "temperature": NaN}}', "invalid_json"),
    "Infinity": (f'{{"model": "rig", "messages": {HI}, "temperature": -Infinity}}', "invalid_json"),
    "a number too large": (f'{{"model": "rig", "messages": {HI}, "temperature": 1e999}}', "invalid_type"),
    "a number too long": (f'{{"model": "rig", "messages": {HI}, "seed": {"9" * 5000}}}', "invalid_type"),
    "a key twice at the top": (f'{{"model": "rig", "model": "rig", "messages": {HI}}}', "invalid_json"),
    "a key twice in a message": ('{"model": "rig", "messages": [{"role": "user", "role": "system"}]}', "invalid_json"),
    "a key twice in a part": (
        '{"model":"rig","messages":[{"role":"user","content":[{"type":"text","type":"x"}]}]}',
        "invalid_json",
    ),
    "a key twice in a tool": (f'{{"model":"rig","messages":{HI},"tools":[{{"a":{{"b":1,"b":2}}}}]}}', "invalid_json"),
    "a key twice, escaped": (f'{{"model": "rig", "\\u006dodel": "x", "messages": {HI}}}', "invalid_json"),
    "deep arrays": ("[" * DEEP + "]" * DEEP, "invalid_json"),
    "deep objects": ('{"a":' * DEEP + "1" + "}" * DEEP, "invalid_json"),
    "a deep field": (f'{{"model": "rig", "messages": {HI}, "x": {"[" * DEEP}{"]" * DEEP}}}', "invalid_json"),
    "an unknown model": (f'{{"model": "other", "messages": {HI}}}', "model_not_found"),
    "a long unknown model": (f'{{"model": "{"m" * 100_000}", "messages": {HI}}}', "model_not_found"),
    "no model": (f'{{"messages": {HI}}}', "missing_required_parameter"),
    "no messages": ('{"model": "rig"}', "missing_required_parameter"),
    "no role": ('{"model": "rig", "messages": [{"content": "hi"}]}', "missing_required_parameter"),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_case_26_a_bad_body_is_refused(name: str, served: Gateway, upstream: Upstream) -> None:
    body, code = BODIES[name]
    began = time.monotonic()
    answer = served.post(body if isinstance(body, bytes) else body.encode())
    took = time.monotonic() - began
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = error_of(answer)
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500
    assert took < WITHIN_S
    assert upstream.requests == []


WRONG: dict[str, list[Any]] = {
    "model": [None, 1, "", [], {}],
    "messages": [None, 1, "hi", [], {}, [1], ["hi"], [None], [[]]],
    "stream": [1, "true", []],
    "stream_options": [1, "x", [], {"include_usage": "yes"}],
    "temperature": ["hot", [], {}, True],
    "top_p": ["x", []],
    "n": ["1", 1.5, []],
    "max_tokens": ["10", 1.5, []],
    "max_completion_tokens": ["10", {}],
    "stop": [1, [1], {}],
    "seed": ["1", []],
    "presence_penalty": ["x", []],
    "frequency_penalty": ["x", []],
    "logprobs": [1, "yes"],
    "top_logprobs": ["x", 1.5],
    "parallel_tool_calls": [1, "yes"],
    "tools": [1, "x", {}, ["x"], [1]],
    "tool_choice": [1, []],
    "response_format": ["json", 1, []],
    "user": [1, []],
}


def test_case_26_a_field_of_the_wrong_type_is_named(served: Gateway, upstream: Upstream) -> None:
    for field, value in [(field, value) for field, values in WRONG.items() for value in values]:
        began = time.monotonic()
        answer = served.post(chat() | {field: value})
        assert time.monotonic() - began < WITHIN_S, (field, value)
        assert answer.status_code == 400, (field, value, answer.text)
        error = error_of(answer)
        assert (error["param"] or "").startswith(field), (field, value, error)
        assert error["code"] == "invalid_type", (field, value, error)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "message",
    [
        {"role": 1},
        {"role": "user", "content": 1},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"text": "no type"}]},
        {"role": "user", "name": 1},
        {"role": "assistant", "tool_calls": "x"},
    ],
)
def test_case_26_a_wrong_message_is_named(message: dict[str, Any], served: Gateway, upstream: Upstream) -> None:
    answer = served.post(chat(messages=[*MESSAGES, message]))
    assert answer.status_code == 400
    assert error_of(answer)["param"].startswith("messages")
    assert upstream.requests == []


@pytest.mark.parametrize("framing", ["declared", "declared but never sent", "chunked without a length"])
async def test_case_26_a_body_over_the_limit_is_413(framing: str, upstream: Upstream) -> None:
    with gateway(upstream, server={"max_body_mb": 0.5}) as served:
        parts = urlsplit(served.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        length = "transfer-encoding: chunked" if framing.startswith("chunked") else "content-length: 600000"
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n".encode())
        if framing == "declared":
            writer.write(b"x" * 600_000)
        elif framing.startswith("chunked"):
            for _ in range(60):
                writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        began = time.monotonic()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert time.monotonic() - began < WITHIN_S
        assert head.startswith(b"HTTP/1.1 413")
        length = next(line for line in head.decode().split("\r\n") if line.startswith("content-length"))
        error = json.loads(await reader.readexactly(int(length.split(":")[1])))["error"]
        assert error["code"] == "request_too_large"
        assert "0.5 MB" in error["message"]
        writer.close()
    assert upstream.requests == []


def test_case_26_a_body_just_under_the_limit_passes(upstream: Upstream) -> None:
    with gateway(upstream, server={"max_body_mb": 0.5}) as served:
        assert served.post(chat(stream=False, padding="x" * 520_000)).status_code == 200


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(["model", "messages", "stream", "tools", "n", "stop", "stream_options", "user", "x", "store"])
_MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), _JSON | st.just("user"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(_FIELDS, _JSON, max_size=4),
    messages=st.lists(_MESSAGE, max_size=2) | st.none(),
    cut=st.integers(min_value=0, max_value=400),
)
def test_case_26_no_body_is_answered_with_a_500(
    fields: dict[str, Any], messages: list[Any] | None, cut: int, served: Gateway
) -> None:
    asked = chat() | fields | ({} if messages is None else {"messages": messages})
    body = json.dumps(asked).encode()
    for sent in (body, body[:cut]):
        answer = served.post(sent)
        assert answer.status_code < 500, (sent, answer.text)
        if answer.status_code >= 400:
            error_of(answer)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60))
def test_case_26_no_bytes_are_answered_with_a_500(body: bytes, served: Gateway) -> None:
    assert served.post(body).status_code == 400


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "at the top": lambda name: chat() | {name: "http://evil"},
    "nested": lambda name: chat(options={"deep": [{"deeper": {name: "x"}}]}),
    "in a message": lambda name: chat(messages=[{**MESSAGES[0], name: "x"}]),
    "in a message's part": lambda name: chat(
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi", "more": {name: "x"}}]}]
    ),
    "in stream_options": lambda name: chat(stream_options={name: "x"}),
}


@pytest.mark.parametrize("stream", [True, False])
def test_case_23_keys_and_addresses_in_a_body_are_refused(stream: bool, served: Gateway, upstream: Upstream) -> None:
    for name in sorted(DENIED):
        escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
        for place, make in PLACES.items():
            body = json.dumps(make(name) | {"stream": stream})
            for sent in (body, body.replace(f'"{name}"', f'"{escaped}"'), body.replace(" ", "")):
                answer = served.post(sent.encode())
                assert answer.status_code == 400, (place, sent)
                error = error_of(answer)
                assert (error["code"], error["param"].rsplit(".", 1)[-1]) == ("unsupported_value", name), (place, sent)
    assert upstream.requests == []


def test_case_23_their_names_are_free_where_the_user_defines_names(served: Gateway, upstream: Upstream) -> None:
    schema = {"type": "object", "properties": {"api_key": {"type": "string"}, "base_url": {"type": "string"}}}
    fields: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "login", "parameters": schema}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "metadata": {"api_key": "the user's own"},
    }
    assert served.post(chat(**fields)).status_code == 200
    assert {name: upstream.chats[0].json[name] for name in fields} == fields
    said = [{"role": "user", "content": 'what is "api_key" or base_url or \\u0061pi_key?'}]
    assert served.post(chat(messages=said)).status_code == 200


def test_case_23_a_model_may_allow_one(upstream: Upstream) -> None:
    with gateway(upstream, model={"allow": ["extra_headers"]}) as served:
        assert served.post(chat(extra_headers={"a": "b"})).status_code == 200
        assert served.post(chat(base_url="http://evil")).status_code == 400
    assert len(upstream.chats) == 1
