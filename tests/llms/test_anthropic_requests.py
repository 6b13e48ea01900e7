"""What `Claude` sends: each field and part translated, forwarded or refused, none dropped."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest

from penstock.errors import BadRequest
from penstock.llms.anthropic import BUDGETS, DEFAULT_MAX_TOKENS, JSON_ONLY, Claude
from penstock.messages import ChatRequest
from penstock.run import execute
from tests.rig.native import native_answer
from tests.rig.native.scenarios import PNG, SCHEMA, WEATHER
from tests.rig.upstream import Upstream

HELLO: Any = {"role": "user", "content": "Hello"}
IMAGE: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
PDF = base64.b64encode(b"%PDF-1.4").decode()
CACHED = {"cache_control": {"type": "ephemeral"}}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "Does weather.",
    "input_schema": WEATHER["function"]["parameters"],
}
CLOSED = {"additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "description": "A trip."}}

LIMITED = {"type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 5}}}
TOLD = {
    "type": "object",
    "properties": {"days": {"type": "integer", "description": "(minimum: 1, maximum: 5)"}},
    **CLOSED,
}


def sent(*messages: Any, model: str = "claude-opus-4-8", **params: Any) -> dict[str, Any]:
    """The body of a request."""
    llm = Claude(model=model, api_key="sk-test-key", base_url="http://127.0.0.1:9")
    body = llm._body(ChatRequest.of(messages or [HELLO], stream=False, **params))  # pyright: ignore[reportPrivateUsage]
    decoded: dict[str, Any] = json.loads(body)
    assert decoded.pop("model") == model
    return decoded


def fields(**params: Any) -> dict[str, Any]:
    """The fields beside the messages."""
    body = sent(**params)
    assert body.pop("messages") == [HELLO]
    if body["max_tokens"] == DEFAULT_MAX_TOKENS:
        del body["max_tokens"]
    return body


TRANSLATED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"max_tokens": 7}, {"max_tokens": 7}),
    ({"max_tokens": 7, "max_completion_tokens": 9}, {"max_tokens": 9}),
    ({"stop": "END"}, {"stop_sequences": ["END"]}),
    ({"stop": ["", "END", "\n"]}, {"stop_sequences": ["END"]}),
    ({"stop": " "}, {}),
    ({"stop": ["A", "B"], "stop_sequences": ["C"]}, {"stop_sequences": ["A", "B", "C"]}),
    ({"temperature": 0.5, "top_p": 0.9, "top_k": 40}, {"temperature": 0.5, "top_p": 0.9, "top_k": 40}),
    ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
    ({"user": "u-1", "safety_identifier": "s-1"}, {"metadata": {"user_id": "s-1"}}),
    ({"metadata": {"user_id": "m-1"}, "user": "u-1"}, {"metadata": {"user_id": "m-1"}}),
    ({"metadata": {"team": "a", "user_id": "m-1"}}, {"metadata": {"user_id": "m-1"}}),
    ({"metadata": {"team": "a"}}, {}),
    ({"service_tier": "auto"}, {"service_tier": "auto"}),
    ({"service_tier": "default"}, {"service_tier": "standard_only"}),
    ({"tools": [WEATHER]}, {"tools": [TOOL]}),
    ({"tools": [{**WEATHER, **CACHED}]}, {"tools": [{**TOOL, **CACHED}]}),
    (
        {"tools": [{"type": "function", "function": {"name": "now", "strict": True}}]},
        {"tools": [{"name": "now", "strict": True, "input_schema": {"type": "object", "properties": {}, **CLOSED}}]},
    ),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ),
    ({"tools": [WEATHER], "tool_choice": "auto"}, {"tools": [TOOL], "tool_choice": {"type": "auto"}}),
    ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": {"type": "none"}}),
    ({"tools": [WEATHER], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": {"type": "any"}}),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}},
    ),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "any"}, "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
    ),
    (
        {"tools": [WEATHER], "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    ({"tools": [WEATHER], "parallel_tool_calls": True}, {"tools": [TOOL]}),
    ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {}),
    ({"response_format": {"type": "text"}}, {}),
    ({"response_format": {"type": "json_object"}}, {"system": JSON_ONLY}),
    (
        {"response_format": FORMAT, "output_config": {"effort": "low"}},
        {
            "output_config": {
                "format": {"type": "json_schema", "schema": {"description": "A trip.", **SCHEMA}},
                "effort": "low",
            }
        },
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": LIMITED}}},
        {"output_config": {"format": {"type": "json_schema", "schema": TOLD}}},
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": LIMITED}}]},
        {"tools": [{"name": "f", "strict": True, "input_schema": TOLD}]},
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": False, "parameters": LIMITED}}]},
        {"tools": [{"name": "f", "input_schema": LIMITED}]},
    ),
    ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
    (
        {"reasoning_effort": "minimal"},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
    ),
    (
        {"reasoning_effort": "high", "response_format": {**FORMAT, "json_schema": {"schema": SCHEMA}}},
        {
            "thinking": {"type": "adaptive"},
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "high"},
        },
    ),
    (
        {"reasoning_effort": "max", "thinking": {"type": "adaptive", "display": "summarized"}},
        {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "max"}},
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 2000}, **CACHED, "speed": "fast"},
        {"thinking": {"type": "enabled", "budget_tokens": 2000}, **CACHED, "speed": "fast"},
    ),
    (
        {"system": [{"type": "text", "text": "Be brief.", **CACHED}]},
        {"system": [{"type": "text", "text": "Be brief.", **CACHED}]},
    ),
    ({"system": ["Be brief."]}, {"system": "Be brief."}),
    ({"stream_options": {"include_usage": True}}, {}),
    (
        {"n": 1, "logprobs": False, "top_logprobs": 0, "presence_penalty": 0.0, "frequency_penalty": 0, "seed": None},
        {},
    ),
    ({"logit_bias": {}, "store": False, "modalities": ["text"], "verbosity": "medium", "functions": []}, {}),
]


@pytest.mark.parametrize(("params", "expected"), TRANSLATED)
def test_row_a8_each_field_is_translated_or_forwarded(params: dict[str, Any], expected: dict[str, Any]) -> None:
    assert fields(**params) == expected


REFUSED: list[tuple[str, Any]] = [
    ("n", 2),
    ("logprobs", True),
    ("top_logprobs", 3),
    ("logit_bias", {"50256": -100}),
    ("presence_penalty", 0.5),
    ("frequency_penalty", -1),
    ("seed", 7),
    ("store", True),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "alloy"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("verbosity", "low"),
    ("web_search_options", {}),
    ("prompt_cache_key", "k"),
    ("service_tier", "flex"),
    ("service_tier", ["auto"]),
    ("reasoning_effort", "enormous"),
    ("reasoning_effort", ["low"]),
    ("tool_choice", {"type": "allowed_tools"}),
    ("tool_choice", "weather"),
    ("tool_choice", {"type": "function", "function": 5}),
    ("tool_choice", {"type": "function", "function": {"name": ["weather"]}}),
    ("response_format", {"type": "xml"}),
    ("response_format", "json"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
    ("response_format", {"type": "json_schema", "json_schema": "x"}),
    ("tools", {"type": "function"}),
    ("stop", 5),
    ("stop", ["END", 5]),
    ("metadata", "x"),
    ("system", 5),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_row_a8_what_the_wire_cannot_say_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadRequest) as raised:
        sent(**{name: value})
    error = raised.value
    assert (error.status, error.param, error.provider, error.retryable) == (400, name, "anthropic", False)
    assert error.code in ("unsupported_parameter", "invalid_value")


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom", "custom": {"name": "grammar"}}, "tools[1]"),
        ({"type": "function", "function": {"name": "f", "parameters": "x"}}, "tools[1].function.parameters"),
        ({"type": "function", "function": {"name": 5}}, "tools[1].function.name"),
        ({"type": "function", "function": "weather"}, "tools[1]"),
        ("weather", "tools[1]"),
    ],
)
def test_row_a8_a_tool_that_cannot_be_offered_is_named(tool: Any, param: str) -> None:
    with pytest.raises(BadRequest) as raised:
        sent(tools=[WEATHER, tool])
    assert raised.value.param == param


@pytest.mark.parametrize("value", ["x", 5, None, [1], {"a": {"b": 1}}, True])
@pytest.mark.parametrize(
    "name",
    ["metadata", "output_config", "stop", "user", "max_tokens", "thinking", "reasoning_effort", "tools", "tool_choice"],
)
def test_case_26_values_of_wrong_types_are_sent_or_refused(name: str, value: Any) -> None:
    also: dict[str, Any] = {"user": "u", "response_format": FORMAT, "reasoning_effort": "low", name: value}
    for model in ("claude-opus-4-8", "claude-sonnet-4-5"):
        with contextlib.suppress(BadRequest):
            assert sent(model=model, **also)["messages"] == [HELLO]


@pytest.mark.parametrize(
    "model", ["claude-sonnet-4-5", "claude-opus-4-1-20250805", "claude-3-7-sonnet-latest", "claude-sonnet-4@20250514"]
)
def test_a_model_before_adaptive_thinking_gets_a_budget(model: str) -> None:
    for effort, budget in BUDGETS.items():
        body = sent(model=model, reasoning_effort=effort, max_tokens=64_000)
        assert body["thinking"] == {"type": "enabled", "budget_tokens": budget}
        assert "output_config" not in body
    assert sent(model=model, reasoning_effort="max")["thinking"]["budget_tokens"] < DEFAULT_MAX_TOKENS
    assert sent(model=model, reasoning_effort="high", max_tokens=4000)["thinking"]["budget_tokens"] == 2000
    with pytest.raises(BadRequest, match="max_tokens above 1024"):
        sent(model=model, reasoning_effort="low", max_tokens=1024)
    off = {"type": "disabled"}
    assert sent(model=model, reasoning_effort="low", max_tokens=9, thinking=off)["thinking"] == off


@pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-sonnet-4-6-20260201", "claude-haiku-5-5", "another"])
def test_a_newer_model_gets_an_effort(model: str) -> None:
    body = sent(model=model, reasoning_effort="xhigh")
    assert (body["thinking"], body["output_config"]) == ({"type": "adaptive"}, {"effort": "xhigh"})


@pytest.mark.parametrize(
    ("model", "most"),
    [("claude-3-haiku-20240307", 4096), ("claude-3-5-sonnet-latest", 8192), ("claude-opus-4-8", DEFAULT_MAX_TOKENS)],
)
def test_an_answer_without_a_limit_ends_where_its_model_does(model: str, most: int) -> None:
    assert sent(model=model)["max_tokens"] == sent(model=model, max_tokens=None)["max_tokens"] == most
    assert sent(model=model, max_tokens=most + 1)["max_tokens"] == most + 1


def test_system_messages_go_to_the_top_wherever_they_stand() -> None:
    developer: Any = {"role": "developer", "content": [{"type": "text", "text": "Be kind.", **CACHED}]}
    body = sent({"role": "system", "content": "Be brief."}, HELLO, developer, system="Be true.")
    assert body["messages"] == [HELLO]
    texts = [{"type": "text", "text": text} for text in ("Be true.", "Be brief.", "Be kind.")]
    assert body["system"] == [*texts[:2], {**texts[2], **CACHED}]


def test_turns_of_one_role_become_one_and_empty_ones_go() -> None:
    empty: Any = {"role": "assistant", "content": ""}
    body = sent(HELLO, empty, {"role": "user", "content": "again"}, {"role": "system", "content": ""})
    texts = [{"type": "text", "text": text} for text in ("Hello", "again")]
    assert body["messages"] == [{"role": "user", "content": texts}]
    assert "system" not in body


def test_results_of_tools_are_one_turn_with_what_the_user_says_next() -> None:
    call: Any = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{"}}
    more: Any = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}}
    body = sent(
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call, more], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": [IMAGE], "name": "f", **CACHED},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
        HELLO,
    )
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    first = {"type": "tool_result", "tool_use_id": "functions_f_0", "content": [picture], **CACHED}
    second = {"type": "tool_result", "tool_use_id": "call_2", "content": ""}
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "functions_f_0", "name": "f", "input": {"INVALID_JSON": "{"}},
                {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
            ],
        },
        {"role": "user", "content": [first, second, {"type": "text", "text": "Hello"}]},
    ]


def _file(data: str, name: str = "") -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": data, **({"filename": name} if name else {})}}


TEXT_FILE = base64.b64encode("Grüße".encode()).decode()
PARTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "text", "text": "a", **CACHED}, {"type": "text", "text": "a", **CACHED}),
    (
        {**IMAGE, **CACHED},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}, **CACHED},
    ),
    (
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "high"}},
        {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
    ),
    (
        _file(f"data:application/pdf;base64,{PDF}", "a.pdf"),
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "a.pdf",
        },
    ),
    (
        _file("https://a.example/b.pdf"),
        {"type": "document", "source": {"type": "url", "url": "https://a.example/b.pdf"}},
    ),
    (
        _file(f"data:text/plain;base64,{TEXT_FILE}"),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"}},
    ),
    (
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    ),
    ({"type": "search_result", "source": "s"}, {"type": "search_result", "source": "s"}),
]


@pytest.mark.parametrize(("part", "block"), PARTS)
def test_row_c2_each_part_becomes_a_block(part: dict[str, Any], block: dict[str, Any]) -> None:
    assert sent({"role": "user", "content": [part]})["messages"] == [{"role": "user", "content": [block]}]


UNSAYABLE: list[tuple[Any, str]] = [
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]},
        ".content[0]",
    ),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "gs://b/c.png"}}]}, ".content[0]"),
    ({"role": "user", "content": [{**IMAGE, "image_url": {**IMAGE["image_url"], "detail": "low"}}]}, ".content[0]"),
    ({"role": "user", "content": ["x", _file("data:application/zip;base64,eA==")]}, ".content[0]"),
    ({"role": "user", "content": [{"type": "text", "text": "a"}, _file("eA==", "a.zip")]}, ".content[1]"),
    ({"role": "user", "content": [_file("data:text/plain;base64,/w==")]}, ".content[0]"),
    ({"role": "user", "content": [_file("data:text/plain,abc")]}, ".content[0]"),
    ({"role": "user", "content": "Hello", "mood": "good"}, ".mood"),
    ({"role": "system", "content": [IMAGE]}, ""),
    ({"role": "function", "name": "f", "content": "x"}, ".role"),
    ({"role": "tool", "content": "x"}, ".tool_call_id"),
    ({"role": "assistant", "tool_calls": [{"id": "x", "type": "custom"}]}, ".tool_calls[0]"),
    ({"role": "assistant", "audio": {"id": "audio_1"}}, ".audio"),
]


@pytest.mark.parametrize(("message", "where"), UNSAYABLE)
def test_row_a8_what_no_block_can_say_is_refused_where_it_stands(message: Any, where: str) -> None:
    with pytest.raises(BadRequest) as raised:
        sent(HELLO, message)
    assert raised.value.param == f"messages[1]{where}"
    assert raised.value.provider == "anthropic"


def test_cache_control_of_a_message_goes_to_its_last_block() -> None:
    body = sent({"role": "user", "content": "Hello", **CACHED})
    assert body["messages"][0]["content"] == [{"type": "text", "text": "Hello", **CACHED}]


async def test_a_body_nested_too_deeply_is_refused(upstream: Upstream) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    upstream.default = native_answer
    with pytest.raises(BadRequest, match="nested too deeply"):
        await execute(Claude(model="text", base_url=upstream.base_url, api_key="k"), ChatRequest.of("Hello", deep=deep))
    assert not upstream.requests


def test_defaults_are_under_what_a_request_says() -> None:
    llm = Claude(model="m", api_key="k", base_url="http://127.0.0.1:9", params={"max_tokens": 5, "top_k": 3})
    body = json.loads(llm._body(ChatRequest.of("Hello", max_tokens=6)))  # pyright: ignore[reportPrivateUsage]
    assert (body["max_tokens"], body["top_k"], body["stream"]) == (6, 3, True)
