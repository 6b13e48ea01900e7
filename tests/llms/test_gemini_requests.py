"""What Google's wire is sent: each field under its name there, or a refusal that says which; the key in a header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.errors import BadRequest
from penstock.llms.gemini import UNSIGNED, Gemini
from penstock.messages import ChatRequest, Message
from penstock.run import execute
from tests.rig.native import SCENARIOS, native_answer
from tests.rig.native.scenarios import CLOCK, PNG, SCHEMA, WEATHER
from tests.rig.upstream import Plain, Upstream
from tests.rig.upstream import upstream as run_upstream

KEY = "key-of-google-4f9a7c1e2b"
DONE: dict[str, Any] = {"candidates": [{"content": {"parts": [{"text": "ok"}]}, "finishReason": "STOP"}]}
HELLO = [{"role": "user", "parts": [{"text": "Hello"}]}]
STRICT = {"type": "function", "function": {"name": "f", "strict": True, "parameters": None}}
ALLOWED = {"tools": [{"type": "function", "function": {"name": "weather"}}]}
DECLARED = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "parametersJsonSchema": tool["function"]["parameters"],
    }
    for tool in (WEATHER, CLOCK)
]


def calling(**config: Any) -> dict[str, Any]:
    return {"toolConfig": {"functionCallingConfig": config}}


def config(**fields: Any) -> dict[str, Any]:
    return {"generationConfig": fields}


def thinking(**fields: Any) -> dict[str, Any]:
    return config(thinkingConfig=fields)


JSON = "application/json"
FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.0}, config(temperature=0.0)),
    ({"top_p": 1.0, "top_k": 40}, config(topP=1.0, topK=40)),
    ({"max_tokens": 16}, config(maxOutputTokens=16)),
    ({"max_completion_tokens": 17}, config(maxOutputTokens=17)),
    ({"frequency_penalty": -0.5, "presence_penalty": 1e-07}, config(frequencyPenalty=-0.5, presencePenalty=1e-07)),
    ({"n": 2, "seed": 7}, config(candidateCount=2, seed=7)),
    ({"stop": "END"}, config(stopSequences=["END"])),
    ({"stop": ["\n", "\u2028"]}, config(stopSequences=["\n", "\u2028"])),
    ({"logprobs": True, "top_logprobs": 3}, config(responseLogprobs=True, logprobs=3)),
    ({"verbosity": "medium", "functions": [], "metadata": {}, "top_logprobs": 0}, {}),
    ({"logprobs": False, "top_logprobs": None, "stream_options": {"include_usage": True}}, {}),
    (
        {"modalities": ["text"], "parallel_tool_calls": True, "logit_bias": {}, "store": False, "tool_choice": "auto"},
        {},
    ),
    ({"response_format": {"type": "text"}, "service_tier": "auto", "user": None, "tools": []}, {}),
    ({"response_format": {"type": "json_object"}}, config(responseMimeType=JSON)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}},
        config(responseMimeType=JSON, responseJsonSchema=SCHEMA),
    ),
    ({"reasoning_effort": "none"}, thinking(thinkingBudget=0)),
    ({"reasoning_effort": "minimal"}, thinking(thinkingLevel="MINIMAL", includeThoughts=True)),
    ({"reasoning_effort": "xhigh"}, thinking(thinkingLevel="HIGH", includeThoughts=True)),
    ({"user": "Zo\u00eb", "safety_identifier": "me"}, {}),
    ({"service_tier": "default"}, {"serviceTier": "standard"}),
    ({"service_tier": "flex"}, {"serviceTier": "flex"}),
    ({"metadata": {"team": "red"}}, {"labels": {"team": "red"}}),
    ({"web_search_options": {}}, {"tools": [{"googleSearch": {}}]}),
    ({"tools": [WEATHER, CLOCK]}, {"tools": [{"functionDeclarations": DECLARED}]}),
    ({"tools": [{"urlContext": {}}, WEATHER]}, {"tools": [{"functionDeclarations": DECLARED[:1]}, {"urlContext": {}}]}),
    (
        {"tools": [WEATHER], "web_search_options": {}},
        {"tools": [{"functionDeclarations": DECLARED[:1]}, {"googleSearch": {}}]},
    ),
    ({"tools": [STRICT]}, {"tools": [{"functionDeclarations": [{"name": "f"}]}], **calling(mode="VALIDATED")}),
    (
        {"tool_choice": "required", "tools": [STRICT]},
        {"tools": [{"functionDeclarations": [{"name": "f"}]}], **calling(mode="ANY")},
    ),
    ({"tool_choice": "none"}, calling(mode="NONE")),
    ({"tool_choice": WEATHER}, calling(mode="ANY", allowedFunctionNames=["weather"])),
    (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", **ALLOWED}}},
        calling(mode="ANY", allowedFunctionNames=["weather"]),
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", **ALLOWED}}},
        calling(mode="VALIDATED", allowedFunctionNames=["weather"]),
    ),
    (
        {"safetySettings": [{"category": "X", "threshold": "Y"}], "cachedContent": "cachedContents/1"},
        {"safetySettings": [{"category": "X", "threshold": "Y"}], "cachedContent": "cachedContents/1"},
    ),
    (
        {"temperature": 1, "generationConfig": {"mediaResolution": "M", "stopSequences": ["A"]}, "stop": "B"},
        config(temperature=1, mediaResolution="M", stopSequences=["B", "A"]),
    ),
    (
        {"generationConfig": {"thinkingConfig": {"includeThoughts": False}}, "reasoning_effort": "low"},
        thinking(thinkingLevel="LOW", includeThoughts=False),
    ),
    ({"an_unknown_field": {"of": [None, 1.0]}}, {"an_unknown_field": {"of": [None, 1.0]}}),
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"audio": {"voice": "alloy"}}, "audio", "unsupported_parameter"),
    ({"contents": []}, "contents", "unsupported_parameter"),
    ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"logit_bias": {"50256": -100}}, "logit_bias", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "unsupported_parameter"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction", "unsupported_parameter"),
    ({"prompt_cache_key": "k"}, "prompt_cache_key", "unsupported_parameter"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention", "unsupported_parameter"),
    ({"systemInstruction": {}}, "systemInstruction", "unsupported_parameter"),
    ({"verbosity": "high"}, "verbosity", "unsupported_parameter"),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options", "unsupported_parameter"),
    ({"response_format": {"type": "grammar"}}, "response_format", "unsupported_parameter"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
    ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
    ({"reasoning_effort": {}}, "reasoning_effort", "invalid_value"),
    ({"tools": {}}, "tools", "invalid_value"),
    ({"tools": [WEATHER, {"type": "custom", "custom": {"name": "f"}}]}, "tools[1]", "unsupported_parameter"),
    ({"tools": [1]}, "tools[0]", "unsupported_parameter"),
    ({"tool_choice": "sometimes"}, "tool_choice", "unsupported_parameter"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [1]}}}, "tool_choice", "invalid_value"),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Upstream]:
    with run_upstream() as up:
        yield up


@pytest.fixture
def upstream(served: Upstream) -> Upstream:
    served.requests.clear()
    return served


def gemini(upstream: Upstream, **options: Any) -> Gemini:
    upstream.default = lambda _: Plain(DONE)
    return Gemini(**{"model": "m", "api_key": KEY, "base_url": f"http://127.0.0.1:{upstream.port}", **options})


async def sent(upstream: Upstream, *messages: Any, model: str = "m", **params: Any) -> dict[str, Any]:
    """The body that a request becomes."""
    said: Any = messages or "Hello"
    await execute(gemini(upstream, model=model), ChatRequest.of(said, stream=False, **params))
    return upstream.chats[-1].json


async def refusal(upstream: Upstream, *messages: Any, **params: Any) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        await sent(upstream, *messages, **params)
    assert upstream.requests == []
    assert (raised.value.status, raised.value.provider, raised.value.type) == (400, "gemini", "invalid_request_error")
    return raised.value


@pytest.mark.parametrize(("params", "body"), FIELDS, ids=lambda case: "+".join(case) if isinstance(case, dict) else "")
async def test_row_a8_every_field_reaches_google(
    upstream: Upstream, params: dict[str, Any], body: dict[str, Any]
) -> None:
    before = json.dumps(params)
    assert json.dumps(await sent(upstream, **params), sort_keys=True) == json.dumps(
        {"contents": HELLO, **body}, sort_keys=True
    )
    assert json.dumps(params) == before


@pytest.mark.parametrize(("params", "param", "code"), REFUSED, ids=lambda case: str(case)[:40])
async def test_row_a8_what_google_has_no_word_for_is_refused(
    upstream: Upstream, params: dict[str, Any], param: str, code: str
) -> None:
    error = await refusal(upstream, **params)
    assert (error.param, error.code) == (param, code)
    assert param in error.message


async def test_row_a8_defaults_are_sent_and_a_request_overrides_them(upstream: Upstream) -> None:
    llm = gemini(upstream, params={"temperature": 0.1, "top_p": 0.2, "seed": 1})
    await execute(llm, ChatRequest.of("Hello", stream=False, temperature=0.9, seed=None))
    assert upstream.chats[-1].json == {"contents": HELLO, **config(temperature=0.9, topP=0.2)}


@pytest.mark.parametrize(
    ("model", "effort", "thinks"),
    [
        ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192}),
        ("gemini-2.5-pro", "max", {"thinkingBudget": 24576}),
        ("models/gemini-2.0-flash", "medium", {"thinkingBudget": 8192}),
        ("gemini-3-pro", "max", {"thinkingLevel": "HIGH"}),
    ],
)
async def test_models_before_gemini_3_are_given_tokens_to_think_with(
    upstream: Upstream, model: str, effort: str, thinks: dict[str, Any]
) -> None:
    body = await sent(upstream, model=model, reasoning_effort=effort)
    assert body["generationConfig"] == {"thinkingConfig": {**thinks, "includeThoughts": True}}


MEDIA: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "text", "text": "x", "partMetadata": {"a": 1}}, {"text": "x", "partMetadata": {"a": 1}}),
    (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        {
            "inlineData": {"mimeType": "image/png", "data": PNG},
            "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"},
        },
    ),
    (
        {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg?size=1", "detail": "auto"}},
        {"fileData": {"fileUri": "https://example.com/a.jpg?size=1", "mimeType": "image/jpeg"}},
    ),
    ({"type": "image_url", "image_url": {"url": "gs://b/a"}}, {"fileData": {"fileUri": "gs://b/a"}}),
    (
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}},
    ),
    (
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}},
    ),
    (
        {"type": "file", "file": {"file_id": "https://example.com/v1beta/files/a1"}},
        {"fileData": {"fileUri": "https://example.com/v1beta/files/a1"}},
    ),
    (
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"fileData": {"fileUri": "https://example.com/a.mp4", "mimeType": "video/mp4"}},
    ),
    (
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}},
    ),
    (
        {"type": "fileData", "fileData": {"fileUri": "x"}, "videoMetadata": {}},
        {"fileData": {"fileUri": "x"}, "videoMetadata": {}},
    ),
]


@pytest.mark.parametrize(
    ("part", "google"), MEDIA, ids=lambda part: next(iter(part.values())) if "type" in part else ""
)
async def test_row_c2_parts_of_a_message_become_googles(
    upstream: Upstream, part: dict[str, Any], google: dict[str, Any]
) -> None:
    body = await sent(upstream, {"role": "user", "content": [part]})
    assert body["contents"] == [{"role": "user", "parts": [google]}]


BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"role": "user", "content": "x", "audio": {"id": "a"}}, "messages[0].audio"),
    ({"role": "user", "content": [{"type": "hologram"}]}, "messages[0].content[0]"),
    ({"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}, "messages[0].content[0]"),
    (
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://e/a.png", "detail": "original"}}],
        },
        "messages[0].content[0]",
    ),
    ({"role": "tool", "content": "x", "tool_call_id": "nobody"}, "messages[0].tool_call_id"),
]


@pytest.mark.parametrize(("message", "param"), BAD_MESSAGES, ids=lambda case: case if isinstance(case, str) else "")
async def test_row_a8_a_message_that_google_has_no_word_for_is_refused(
    upstream: Upstream, message: dict[str, Any], param: str
) -> None:
    assert (await refusal(upstream, message)).param == param


async def test_row_c2_system_messages_are_one_instruction_wherever_they_stand(upstream: Upstream) -> None:
    said = [
        {"role": "developer", "content": "A"},
        {"role": "user", "content": "Hello"},
        {"role": "system", "content": "B"},
    ]
    body = await sent(upstream, *said)
    assert body == {"contents": HELLO, "systemInstruction": {"parts": [{"text": "A"}, {"text": "B"}]}}


async def test_row_c2_what_a_tool_shows_goes_beside_what_it_says(upstream: Upstream) -> None:
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "[1]"}}
    body = await sent(
        upstream,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "[1, 2]"}, shown]},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "content": ""},
    )
    result = {
        "id": "c1",
        "name": "look",
        "response": {"output": "[1, 2]"},
        "parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}],
    }
    assert body["contents"] == [
        {"role": "model", "parts": [{"functionCall": {"id": "c1", "name": "look", "args": {"INVALID_JSON": "[1]"}}}]},
        {"role": "user", "parts": [{"functionResponse": result}]},
        {"role": "user", "parts": [{"text": "Go on."}]},
        {"role": "model", "parts": [{"text": ""}]},
    ]


def asked_again(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of the model's first turn."""
    return next(turn["parts"] for turn in body["contents"] if turn["role"] == "model")


@pytest.mark.parametrize("stream", [True, False])
async def test_row_c2_signatures_go_back_where_they_came_from(upstream: Upstream, stream: bool) -> None:
    llm = gemini(upstream, model="gemini-3-pro")
    upstream.default = native_answer
    scenario = SCENARIOS["reasoning"]
    first = await execute(
        gemini_of(upstream, "reasoning"), ChatRequest.of(scenario.messages, stream=stream, **scenario.params)
    )
    told: Message = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    upstream.default = lambda _: Plain(DONE)
    wired = json.loads(json.dumps([*scenario.messages, first.message, told]))  # as a client sends it
    await execute(llm, ChatRequest.of(wired, stream=False, **scenario.params))
    call = {"id": "call_1", "name": "weather", "args": {"city": 'Par\u00eds "fr"'}}
    assert asked_again(upstream.chats[-1].json) == [{"functionCall": call, "thoughtSignature": scenario.signature}]


def gemini_of(upstream: Upstream, model: str) -> Gemini:
    return Gemini(model=model, api_key=KEY, base_url=f"http://127.0.0.1:{upstream.port}")


async def test_row_c2_the_signature_of_a_text_and_parts_of_googles_own_go_back(upstream: Upstream) -> None:
    code = {"executableCode": {"language": "PYTHON", "code": "1"}}
    parts = [code, {"text": "It is "}, {"text": "1.", "thoughtSignature": "c2ln"}]
    upstream.script(Plain({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}))
    first = await execute(gemini(upstream), ChatRequest.of("Hello", stream=False))
    body = await sent(upstream, {"role": "user", "content": "Hello"}, first.message)
    assert asked_again(body) == [code, {"text": "It is 1.", "thoughtSignature": "c2ln"}]


@pytest.mark.parametrize(
    ("model", "signed"),
    [("gemini-3-pro", True), ("gemini-flash-latest", True), ("gemini-2.5-pro", False), ("m", False)],
)
async def test_the_first_call_without_a_signature_is_marked_for_models_that_check(
    upstream: Upstream, model: str, signed: bool
) -> None:
    body = await sent(upstream, *SCENARIOS["tool result"].messages, model=model)
    calls = [part for part in asked_again(body) if "functionCall" in part]
    assert [call.get("thoughtSignature") for call in calls] == [UNSIGNED if signed else None, None]


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-3-pro", "gemini-3-pro"),
        ("models/gemini-3-pro", "gemini-3-pro"),
        ("a b/c?d#e%2F\u00eb", "a%20b%2Fc%3Fd%23e%252F%C3%AB"),
    ],
)
@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent?alt=sse"])
async def test_case_23_a_models_name_is_one_segment_of_the_path(
    upstream: Upstream, model: str, path: str, verb: str
) -> None:
    llm = gemini(upstream, model="")
    await execute(llm, ChatRequest.of("Hello", model=model, stream="alt" in verb))
    (request,) = upstream.requests
    assert request.path == f"/v1beta/models/{path}:{verb}"
    assert request.headers["x-goog-api-key"] == KEY
    assert "authorization" not in request.headers


@pytest.mark.parametrize("model", ["", "..", "../files", "a/../../b", "models/"])
async def test_case_23_a_name_that_leads_elsewhere_is_refused(upstream: Upstream, model: str) -> None:
    with pytest.raises(BadRequest, match="no name of a model"):
        await execute(gemini(upstream, model=""), ChatRequest.of("Hello", model=model))
    assert upstream.requests == []


async def test_row_c3_googles_variable_wins_over_geminis(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_BASE_URL", f"http://127.0.0.1:{upstream.port}")
    monkeypatch.setenv("GEMINI_API_KEY", "key-of-gemini")
    monkeypatch.setenv("GOOGLE_API_KEY", "key-of-google")
    upstream.default = lambda _: Plain(DONE)
    await execute(Gemini(model="m"), ChatRequest.of("Hello", stream=False))
    assert upstream.requests[-1].headers["x-goog-api-key"] == "key-of-google"
