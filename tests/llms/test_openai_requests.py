"""What a service is sent: every field as it was written, the trace's context, and the key to nobody else."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import msgspec
import pytest
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, TraceState

from penstock.errors import BadAnswer, BadRequest, UnknownName, UsageError
from penstock.llms.openai import Gpt, Options
from penstock.llms.remote import RemoteLlm
from penstock.llms.services import SERVICES
from penstock.messages import ChatRequest
from penstock.run import execute, execute_stream
from tests.rig.upstream import Plain, Stream, Upstream, chunk, completion, text_stream

ASK = ChatRequest.of("Hello")
MESSAGES = [
    {"role": "developer", "content": "Be brief.", "name": "boss"},
    {"role": "user", "content": [{"type": "text", "text": "Grüße \U0001f680"}, {"type": "input_audio", "x": None}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "", "unknown": {"deep": [1, 2.0, True]}},
]
FIELDS: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": -0.5,
    "function_call": "auto",
    "functions": [{"name": "f", "parameters": {}}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 9007199254740993,
    "max_tokens": 16,
    "metadata": {"a": "b", "null": None},
    "modalities": ["text"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 1e-07,
    "prompt_cache_key": "k",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$defs": {}}, "strict": True}},
    "safety_identifier": "me",
    "seed": 2**70,
    "service_tier": "flex",
    "stop": ["\n", "\u2028"],
    "temperature": 0.0,
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x-order": 1}}}],
    "top_k": 40,
    "top_logprobs": 3,
    "top_p": 1.0,
    "user": "Zoë",
    "verbosity": "high",
    "web_search_options": {},
    "an_unknown_field": {"of": ["any", {"shape": None}]},
}


def gpt(upstream: Upstream, **options: Any) -> Gpt:
    return Gpt(**{"model": "m", "api_key": "sk-test-key", "base_url": upstream.base_url, **options})


def decoded(data: bytes) -> ChatRequest:
    """A request as it is made from a client's body."""
    fields = msgspec.json.decode(data)
    model, messages, stream = fields.pop("model"), fields.pop("messages"), fields.pop("stream", False)
    return ChatRequest(model=model, messages=messages, stream=stream, params=fields, data=data)


def as_text(value: object) -> str:
    """JSON text, in which 1, 1.0 and true differ."""
    return json.dumps(value)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("field", FIELDS)
async def test_row_a8_every_field_reaches_the_service(upstream: Upstream, field: str, stream: bool) -> None:
    request = ChatRequest(messages=MESSAGES, stream=stream, params={field: FIELDS[field]})  # type: ignore[arg-type]
    await execute(gpt(upstream), request)
    sent = upstream.chats[0].json
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    assert as_text(sent[field]) == as_text(FIELDS[field])
    assert as_text(sent["messages"]) == as_text(MESSAGES)
    assert {name: sent[name] for name in sent if name not in {field, "messages"}} == {"model": "m", **options}


@pytest.mark.parametrize("model", ["m", ""])
async def test_row_a8_a_body_that_needs_no_change_is_sent_as_the_same_bytes(upstream: Upstream, model: str) -> None:
    for extra in ({}, {"stream": True, "stream_options": {"include_usage": True}}, {"stream": False}):
        data = json.dumps({"messages": MESSAGES, "model": "m", **FIELDS, **extra}, indent=2).encode()
        await execute(gpt(upstream, model=model), decoded(data))
        assert upstream.chats[-1].body == data


@pytest.mark.parametrize(
    ("options", "extra", "changes"),
    [
        ({}, {"stream": True}, {"stream_options": {"include_usage": True}}),
        (
            {},
            {"stream": True, "stream_options": {"include_usage": False, "x": 1}},
            {"stream_options": {"include_usage": True, "x": 1}},
        ),
        ({"model": "other"}, {}, {"model": "other"}),
        ({"params": {"top_k": 1, "min_p": 0.5}}, {}, {"min_p": 0.5}),
    ],
    ids=["usage asked for", "usage refused by the client", "model", "defaults"],
)
async def test_row_a8_a_body_that_must_change_keeps_every_other_field(
    upstream: Upstream, options: dict[str, Any], extra: dict[str, Any], changes: dict[str, Any]
) -> None:
    body = {"messages": MESSAGES, "model": "m", **FIELDS, **extra}
    await execute(gpt(upstream, **options), decoded(json.dumps(body).encode()))
    assert json.dumps(upstream.chats[0].json, sort_keys=True) == json.dumps(body | changes, sort_keys=True)


async def test_row_a8_usage_is_not_asked_for_where_the_service_tells_it_anyway(upstream: Upstream) -> None:
    await execute(gpt(upstream, service="mistral"), ASK)
    assert "stream_options" not in upstream.chats[0].json


async def test_row_a2_an_execution_is_used_once_before_any_request_is_sent(upstream: Upstream) -> None:
    llm = gpt(upstream)
    execution = execute_stream(llm, ASK)
    with pytest.raises(RuntimeError, match="enter the execution first"):
        aiter(execution)
    with pytest.raises(RuntimeError, match="has not finished"):
        _ = execution.result
    assert upstream.requests == []
    async with execution:
        async for _ in execution:
            pass
        with pytest.raises(RuntimeError, match="single-use"):
            aiter(execution)
    with pytest.raises(RuntimeError, match="single-use"):
        await execution.__aenter__()
    assert execution.result.content == execution.content == "Hello"
    assert len(upstream.requests) == 1


async def test_row_a2_of_two_that_enter_at_once_one_is_refused(upstream: Upstream) -> None:
    execution = execute_stream(gpt(upstream), ASK)

    async def enter() -> str:
        async with execution:
            return "".join([str(type(event)) for event in [one async for one in execution]])

    results = await asyncio.gather(enter(), enter(), return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, BaseException)] == [RuntimeError]
    assert len(upstream.requests) == 1


async def test_row_a7_the_context_of_the_span_is_sent(upstream: Upstream) -> None:
    state = TraceState([("vendor", "x"), ("other", "y")])
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    await execute(gpt(upstream), ASK, parent=NonRecordingSpan(context))
    headers = upstream.chats[0].headers
    assert headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert headers["tracestate"] == "vendor=x,other=y"


async def test_row_a7_a_context_without_state_is_sent_without(upstream: Upstream) -> None:
    await execute(gpt(upstream), ASK, parent=NonRecordingSpan(SpanContext(1, 2, is_remote=True)))
    headers = upstream.chats[0].headers
    assert headers["traceparent"] == f"00-{1:032x}-{2:016x}-00"
    assert "tracestate" not in headers


@pytest.mark.parametrize("span", [None, INVALID_SPAN])
async def test_row_a7_without_a_span_nothing_is_sent(upstream: Upstream, span: Any) -> None:
    await execute(gpt(upstream), ASK, parent=span)
    assert "traceparent" not in upstream.chats[0].headers


async def test_the_head_names_path_host_key_and_own_headers(upstream: Upstream) -> None:
    await execute(gpt(upstream, base_url=f"{upstream.base_url}/", headers={"x-team": "red"}), ASK)
    (request,) = upstream.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    expected = {"host": f"127.0.0.1:{upstream.port}", "authorization": "Bearer sk-test-key", "x-team": "red"}
    assert expected.items() <= dict(request.headers).items()
    assert request.headers["content-type"] == "application/json"


async def test_azure_takes_its_key_in_a_header_of_its_own(upstream: Upstream) -> None:
    await execute(
        Gpt(model="m", service="azure", api_key="sk-test-key", base_url=f"http://127.0.0.1:{upstream.port}"), ASK
    )
    (request,) = upstream.requests
    assert request.path == "/openai/v1/chat/completions"
    assert request.headers["api-key"] == "sk-test-key"
    assert "authorization" not in request.headers


async def test_without_a_key_none_is_sent(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    await execute(Gpt(model="m", base_url=upstream.base_url), ASK)
    assert "authorization" not in upstream.chats[0].headers


@pytest.mark.parametrize("name", SERVICES)
async def test_each_service_reads_its_own_environment(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    row = SERVICES[name]
    monkeypatch.setenv(row.base_env, upstream.base_url)
    if row.key_env:
        monkeypatch.setenv(row.key_env, f"key-of-{name}")
    llm = Gpt(model="m", service=name)
    assert (await execute(llm, ASK)).content == "Hello"
    sent = upstream.chats[0].headers.get(row.key_header, "")
    assert sent.removeprefix("Bearer ") == (f"key-of-{name}" if row.key_env else "")
    assert llm.provider == name


def test_a_service_without_an_address_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    with pytest.raises(UsageError, match="give base_url or set AZURE_OPENAI_ENDPOINT"):
        Gpt(model="m", service="azure")


def test_an_unknown_service_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="no service 'nope'; known are anthropic, azure, deepseek"):
        Gpt(service="nope")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_case_23_a_redirect_is_not_followed(upstream: Upstream, status: int) -> None:
    location = {"location": f"http://localhost:{upstream.port}/v1/chat/completions"}
    upstream.script(Plain(b"", status=status, headers=location), Plain(completion("never")))
    with pytest.raises(BadAnswer) as raised:
        await execute(gpt(upstream), ASK)
    assert (raised.value.status, raised.value.retryable) == (status, False)
    assert len(upstream.requests) == 1


async def test_calls_share_one_connection(upstream: Upstream) -> None:
    llm = gpt(upstream)
    for stream in (True, False, True):
        await execute(llm, ChatRequest.of("Hello", stream=stream))
    upstream.script(Plain(b"{}", status=400), Stream(text_stream("a")))
    await asyncio.gather(execute(llm, ASK), return_exceptions=True)
    await execute(llm, ASK)
    assert (len(upstream.chats), upstream.connections) == (5, 1)


async def test_calls_at_once_have_a_connection_each_and_keep_them(upstream: Upstream) -> None:
    llm = gpt(upstream)
    for _ in range(3):
        upstream.script(*(Stream([chunk("a"), chunk(finish="stop")], think_s=0.1) for _ in range(5)))
        await asyncio.gather(*(execute(llm, ASK) for _ in range(5)))
    assert (len(upstream.chats), upstream.connections) == (15, 5)


async def test_a_connection_whose_answer_was_left_is_not_used_again(upstream: Upstream) -> None:
    upstream.script(Stream(text_stream("one two"), stall_after=2))
    llm = gpt(upstream)
    async with execute_stream(llm, ASK) as execution:
        async for _ in execution:
            break
    await asyncio.to_thread(upstream.wait_closed)
    assert (await execute(llm, ASK)).content == "Hello"
    assert upstream.connections == 2


async def test_one_llm_serves_one_event_loop_after_another(upstream: Upstream) -> None:
    llm = gpt(upstream)

    def other_loop() -> str:
        return asyncio.run(execute(llm, ASK)).content

    assert await asyncio.to_thread(other_loop) == (await execute(llm, ASK)).content == "Hello"
    assert await asyncio.to_thread(other_loop) == "Hello"


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SIGNED = {"google": {"thought_signature": "s"}}
THOUGHT = {"reasoning": "hm", "reasoning_content": "hm"}
ABROAD = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        **THOUGHT,
        "tool_calls": [CALL | {"extra_content": SIGNED | {"anthropic": {"x": 1}}}],
        "extra_content": {"anthropic": {"thinking": []}, "openai": {"reasoning": []}},
    },
    {"role": "tool", "tool_call_id": "c", "content": "1"},
]


@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "objects"])
@pytest.mark.parametrize(
    ("service", "address", "reasoning"),
    [
        ("groq", "", False),
        ("mistral", "", False),
        ("azure", "", False),
        ("openai", "https://api.openai.com/v1", False),
        ("openai", "https://eu.api.openai.com/v1", False),
        ("openai", "", True),
        ("deepseek", "", True),
        ("vllm", "", True),
    ],
)
def test_what_another_provider_left_is_sent_to_nobody_who_refuses_it(
    service: str, address: str, reasoning: bool, as_bytes: bool
) -> None:
    llm = Gpt(model="m", service=service, base_url=address or "http://127.0.0.1:9/v1")
    data = json.dumps({"model": "m", "messages": ABROAD}).encode()
    request = decoded(data) if as_bytes else ChatRequest(messages=ABROAD, stream=False)  # type: ignore[arg-type]
    user, turn, result = json.loads(llm._body(request))["messages"]
    call = {**CALL, "extra_content": SIGNED} if reasoning else CALL
    assert turn == {"role": "assistant", "content": None, "tool_calls": [call], **(THOUGHT if reasoning else {})}
    assert [user, result] == [ABROAD[0], ABROAD[2]]


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ("groq", {"role": "user", "content": "reasoning and extra_content"}),
        ("deepseek", {"role": "assistant", "content": "Yes.", **THOUGHT, "extra_content": SIGNED}),
        ("deepseek", {"role": "assistant", "content": "Yes.", "tool_calls": [CALL | {"extra_content": SIGNED}]}),
        ("deepseek", {"role": "assistant", "content": "Yes.", "tool_calls": ["?"], "extra_content": SIGNED}),
    ],
)
def test_where_nothing_is_left_out_the_same_bytes_are_sent(service: str, message: dict[str, Any]) -> None:
    data = json.dumps({"model": "m", "messages": [message], "reasoning_effort": "low"}, indent=2).encode()
    assert Gpt(model="m", service=service, base_url="http://127.0.0.1:9/v1")._body(decoded(data)) is data


def test_the_options_of_a_gpt_are_those_of_every_remote_llm() -> None:
    assert Options.__annotations__.keys() == inspect.signature(RemoteLlm).parameters.keys()


async def test_usage_is_asked_for_without_writing_the_request_anew(upstream: Upstream) -> None:
    body = b'{ "model": "m", "stream": true, "messages": [{"role": "user", "content": "Hi"}] } '
    request = ChatRequest(model="m", messages=[{"role": "user", "content": "Hi"}], data=body)
    await execute(Gpt(base_url=upstream.base_url), request)
    sent = upstream.requests[-1].body
    assert sent.startswith(body.rstrip()[:-1])
    assert json.loads(sent) == {**json.loads(body), "stream_options": {"include_usage": True}}


async def test_a_default_for_streams_stays_with_streams(upstream: Upstream) -> None:
    llm = Gpt(model="m", base_url=upstream.base_url, params={"stream_options": {"own": 1}})
    await execute(llm, ChatRequest.of("Hi", stream=False))
    assert "stream_options" not in upstream.requests[-1].json
    await execute(llm, ChatRequest.of("Hi"))
    assert upstream.requests[-1].json["stream_options"] == {"own": 1, "include_usage": True}


async def test_case_26_a_request_too_deep_to_be_written_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRequest, match="nested too deeply"):
        await execute(Gpt(model="m", base_url="http://127.0.0.1:9/v1"), ChatRequest.of("Hi", extra=deep))
    while isinstance(deep, list):  # taken apart by hand: the interpreter would do it recursively
        deep = deep[0]


@pytest.mark.parametrize("address", ["localhost:8080/v1", "ftp://host/v1", "http://", "http://user:word@host/v1"])
def test_an_address_that_cannot_be_called_is_refused_at_once(address: str) -> None:
    with pytest.raises(UsageError):
        Gpt(model="m", base_url=address)


def test_a_header_that_cannot_be_sent_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="line break"):
        Gpt(model="m", base_url="http://127.0.0.1:9/v1", headers={"x-a": "one\r\ntwo: three"})
