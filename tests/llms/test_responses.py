"""What `Gpt(api="responses")` asks: the chat request in the words of the Responses API, or a clear no."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openai.types.responses.response_create_params import ResponseCreateParams
from pydantic import TypeAdapter

from penstock.errors import BadRequest, UsageError
from penstock.llms.openai import Gpt
from penstock.messages import ChatRequest, Message
from penstock.run import execute
from tests.rig.native import SCENARIOS, native_answer
from tests.rig.native.scenarios import CLOCK, PARIS, PNG, SCHEMA, WEATHER
from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream

ASK: list[Message] = [{"role": "user", "content": "Hello"}]
ALWAYS = {"include": ["reasoning.encrypted_content"], "store": False}
PARAMETERS = WEATHER["function"]["parameters"]
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "opaque"}


@pytest.fixture(scope="module")
def serving() -> Iterator[Upstream]:
    """One service for all tests of this file."""
    with run_upstream() as served:
        yield served


@pytest.fixture
def upstream(serving: Upstream) -> Upstream:
    """The service as if it were new."""
    serving.requests.clear()
    serving.default = native_answer
    return serving


def gpt(upstream: Upstream, **options: Any) -> Gpt:
    return Gpt(**{"api": "responses", "model": "image", "api_key": "sk-test", "base_url": upstream.base_url, **options})


async def sent(upstream: Upstream, messages: list[Any] = ASK, **params: Any) -> dict[str, Any]:
    """What a request looks like when it arrives, without what every one holds."""
    await execute(gpt(upstream), ChatRequest(messages=messages, params=params, stream=False))
    (received,) = upstream.chats
    assert received.path == "/v1/responses"
    body = received.json
    assert body.pop("model") == "image"
    assert body.pop("stream") is False
    if messages is ASK:
        assert body.pop("input") == [{"type": "message", "role": "user", "content": "Hello"}]
    return body


FUNCTION = {"type": "function", "name": "weather", "description": "Does weather.", "parameters": PARAMETERS}
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "null is nothing": ({"temperature": None, "stop": None, "max_tokens": None, "n": None}, {}),
    "what asks for nothing": (
        {"n": 1, "stop": [], "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "store": False},
        {},
    ),
    "sampling": ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    "max_tokens": ({"max_tokens": 50}, {"max_output_tokens": 50}),
    "max_completion_tokens": ({"max_completion_tokens": 60, "max_tokens": 50}, {"max_output_tokens": 60}),
    "effort": ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low", "summary": "auto"}}),
    "no effort": ({"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}}),
    "a summary of its own": (
        {"reasoning_effort": "low", "reasoning": {"summary": "detailed"}},
        {"reasoning": {"effort": "low", "summary": "detailed"}},
    ),
    "no summary": ({"reasoning_effort": "low", "reasoning": {"summary": None}}, {"reasoning": {"effort": "low"}}),
    "verbosity": ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
    "a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}},
    ),
    "any JSON": (
        {"response_format": {"type": "json_object"}, "verbosity": "high"},
        {"text": {"format": {"type": "json_object"}, "verbosity": "high"}},
    ),
    "a tool": ({"tools": [WEATHER]}, {"tools": [{**FUNCTION, "strict": False}]}),
    "a strict tool": (
        {"tools": [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]},
        {"tools": [{**FUNCTION, "strict": True}]},
    ),
    "a tool without parameters": (
        {"tools": [{"type": "function", "function": {"name": "now"}}]},
        {
            "tools": [
                {
                    "type": "function",
                    "name": "now",
                    "parameters": {"type": "object", "properties": {}},
                    "strict": False,
                }
            ]
        },
    ),
    "a tool of the service": ({"tools": [{"type": "web_search"}]}, {"tools": [{"type": "web_search"}]}),
    "any tool": ({"tool_choice": "required"}, {"tool_choice": "required"}),
    "a tool of the service's": ({"tool_choice": {"type": "web_search"}}, {"tool_choice": {"type": "web_search"}}),
    "one tool": (
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tool_choice": {"type": "function", "name": "weather"}},
    ),
    "some tools": (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]},
            }
        },
        {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "weather"}],
            }
        },
    ),
    "as they are": (
        dict(given := {"parallel_tool_calls": False, "user": "u", "metadata": {"a": "b"}, "service_tier": "flex"}),
        dict(given),
    ),
    "unknown": ({"prompt_cache_key": "k", "truncation": "auto"}, {"prompt_cache_key": "k", "truncation": "auto"}),
    "options of the stream": (
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"stream_options": {"include_obfuscation": False}},
    ),
    "include more": (
        {"include": ["web_search_call.action.sources"]},
        {"include": ["web_search_call.action.sources", "reasoning.encrypted_content"]},
    ),
    "include nothing": ({"include": []}, {"include": []}),
}


@pytest.mark.parametrize("case", FIELDS)
async def test_row_c2_a_field_is_said_in_the_words_of_this_wire(upstream: Upstream, case: str) -> None:
    params, expected = FIELDS[case]
    assert await sent(upstream, **params) == {**ALWAYS, **expected}


@pytest.mark.parametrize(("model", "include"), [("gpt-4o", []), ("gpt-5-mini", ["reasoning.encrypted_content"])])
async def test_a_model_that_cannot_reason_is_not_asked_for_it(model: str, include: list[str]) -> None:
    llm = Gpt(api="responses", model=model, api_key="sk-test")
    body = msgspec.json.decode(llm._body(ChatRequest.of("Hello")))
    assert body["include"] == include


def calls(*names: str) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": "{}"}
    return [{"id": name, "type": "function", "function": function} for name in names]


def called(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": "weather", "arguments": "{}"}


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text}


def thought(index: int, name: str) -> dict[str, Any]:
    return {**THOUGHT, "id": name, "index": index}


def remembered(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"extra_content": {"openai": {"reasoning": list(entries)}, "google": {"x": 1}}}


AFTER: Message = {"role": "user", "content": "And?"}
TURNS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "text": ({"content": "Yes."}, [said("Yes.")]),
    "text in parts": ({"content": [{"type": "text", "text": "Y"}, {"type": "text", "text": "es."}]}, [said("Yes.")]),
    "nothing": ({"content": ""}, []),
    "a refusal": ({"content": None, "refusal": "No."}, [said("No.")]),
    "a refusal in parts": ({"content": [{"type": "refusal", "refusal": "No."}]}, [said("No.")]),
    "calls": ({"content": "Let me.", "tool_calls": calls("a", "b")}, [said("Let me."), called("a"), called("b")]),
    "reasoning before": ({"content": "Yes.", **remembered(thought(0, "rs_1"))}, [THOUGHT, said("Yes.")]),
    "reasoning between": (
        {"content": None, "tool_calls": calls("a", "b"), **remembered(thought(2, "rs_2"), thought(0, "rs_1"))},
        [THOUGHT, called("a"), {**THOUGHT, "id": "rs_2"}, called("b")],
    ),
    "reasoning that led to nothing": (
        {"content": "Y", **remembered(thought(0, "rs_1"), thought(2, "rs_2"))},
        [THOUGHT, said("Y")],
    ),
    "the reasoning of another": (
        {"content": "Y", "reasoning_content": "hm", "extra_content": {"google": {}}},
        [said("Y")],
    ),
}


@pytest.mark.parametrize("case", TURNS)
async def test_row_c2_a_turn_comes_back_as_its_items(upstream: Upstream, case: str) -> None:
    turn, items = TURNS[case]
    body = await sent(upstream, [{"role": "assistant", **turn}, AFTER])
    assert body["input"] == [*items, {"type": "message", **AFTER}]


async def test_row_c2_every_role_and_part_has_its_item(upstream: Upstream) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="}},
        {"type": "input_text", "text": "as it is"},
    ]
    messages: list[Any] = [
        {"role": "system", "content": "Be brief.", "name": "boss"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": parts, "phase": "x"},
        {"role": "assistant", "content": None, "tool_calls": calls("a", "b")},
        {"role": "tool", "tool_call_id": "a", "content": "sunny", "name": "weather"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "late"}]},
    ]
    body = await sent(upstream, messages)
    assert body["input"] == [
        {"type": "message", "role": "system", "content": "Be brief."},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        {
            "type": "message",
            "role": "user",
            "phase": "x",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="},
                {"type": "input_text", "text": "as it is"},
            ],
        },
        called("a"),
        called("b"),
        {"type": "function_call_output", "call_id": "a", "output": "sunny"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "late"}]},
    ]


NO_WORDS: dict[str, Any] = {
    "audio": {"voice": "x"},
    "background": True,
    "frequency_penalty": 0.1,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"1": 5},
    "logprobs": True,
    "modalities": ["text", "audio"],
    "n": 2,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -1,
    "seed": 0,
    "stop": "END",
    "store": True,
    "tools": [{"type": "custom", "custom": {"name": "x"}}],
    "top_logprobs": 3,
    "web_search_options": {},
}
NO_MESSAGE: dict[str, tuple[str, Any]] = {
    "audio": ("messages[0].content[0]", {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}),
    "a function's result": ("messages[0].role", {"role": "function", "name": "f", "content": "1"}),
    "a part that is no text": ("messages[0].content[0]", {"role": "assistant", "content": [{"type": "image_url"}]}),
    "a custom call": (
        "messages[0].tool_calls[0]",
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "x", "input": ""}}]},
    ),
}


async def refused(upstream: Upstream, request: ChatRequest) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        await execute(gpt(upstream), request)
    assert (raised.value.status, raised.value.code) == (400, "unsupported_parameter")
    assert raised.value.provider == "openai"
    assert not upstream.requests, "nothing is sent"
    return raised.value


@pytest.mark.parametrize("param", NO_WORDS)
async def test_row_c2_what_this_wire_cannot_say_is_refused(upstream: Upstream, param: str) -> None:
    error = await refused(upstream, ChatRequest(messages=ASK, params={param: NO_WORDS[param]}))
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


@pytest.mark.parametrize("case", NO_MESSAGE)
async def test_row_c2_a_message_that_this_wire_cannot_say_is_refused(upstream: Upstream, case: str) -> None:
    param, message = NO_MESSAGE[case]
    assert (await refused(upstream, ChatRequest(messages=[message]))).param == param


@functools.cache
def request_type() -> TypeAdapter[Any]:
    return TypeAdapter(ResponseCreateParams)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.failure is None])
async def test_row_c2_what_is_sent_is_what_the_official_sdk_may_send(
    upstream: Upstream, name: str, stream: bool
) -> None:
    scenario = SCENARIOS[name]
    params = {key: value for key, value in scenario.params.items() if key != "stop"}
    messages: list[Any] = [*scenario.messages, {"role": "assistant", "content": "Yes.", **remembered(thought(0, "r"))}]
    llm = gpt(upstream, model="text")
    await execute(llm, ChatRequest(messages=[*messages, AFTER], params=params, stream=stream))
    body = upstream.chats[0].json
    assert body["stream"] is stream
    checked = request_type().validate_python(body)
    assert set(checked) == set(body)
    for field in ("input", "tools"):
        assert len(list(checked.get(field, []))) == len(body.get(field, [])), "each item fits its type"


async def test_defaults_lie_under_the_request(upstream: Upstream) -> None:
    llm = gpt(upstream, params={"max_tokens": 5, "reasoning_effort": "high"}, model="")
    await execute(llm, ChatRequest.of("Hello", model="text", max_tokens=9))
    body = upstream.chats[0].json
    assert (body["model"], body["stream"], body["max_output_tokens"]) == ("text", True, 9)
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}


async def test_row_c2_reasoning_is_kept_over_turns(upstream: Upstream) -> None:
    scenario = SCENARIOS["reasoning"]
    llm = gpt(upstream, model="reasoning")
    for stream in (True, False):
        upstream.requests.clear()
        reply = await execute(llm, ChatRequest(messages=scenario.messages, stream=stream))
        result: Message = {"role": "tool", "tool_call_id": PARIS.id, "content": "sunny"}
        again: list[Message] = [*scenario.messages, reply.message, result]
        await execute(llm, ChatRequest(messages=again, params={"tools": [WEATHER, CLOCK]}))
        _, reasoning, call, output = upstream.chats[1].json["input"]
        assert reasoning == {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Let me think."}],
            "encrypted_content": scenario.signature,
        }
        assert (call["type"], call["arguments"], output["type"]) == (
            "function_call",
            PARIS.arguments,
            "function_call_output",
        )


def test_an_unknown_api_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no api 'completions'; known are chat, responses"):
        Gpt(api="completions")  # type: ignore[arg-type]  # that is the mistake
