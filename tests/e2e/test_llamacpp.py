"""The same request to llama.cpp itself and to Penstock in front of it: the same answer, field by field."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.gateway import ADD, HELLO, PLAN, essence, request
from tests.rig.serving import Process
from tests.rig.tiny_llm import MODEL, TinyLlm
from tests.rig.wire import JsonObject

TALK: Any = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "grüße "}, {"type": "text", "text": "🚀"}]},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": 'a "quoted" line\nand another'},
]
CALLED: Any = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
]
CASES: dict[str, tuple[str, JsonObject]] = {
    "greedy": ("length", {}),
    "sampled": ("stop", {"seed": 7, "temperature": 0.9, "max_tokens": 200}),
    "one_token": ("length", {"max_tokens": 1}),
    "max_completion_tokens": ("length", {"max_tokens": None, "max_completion_tokens": 5}),
    "stop": ("stop", {"stop": ["]]]"]}),
    "logprobs": ("length", {"logprobs": True, "top_logprobs": 3, "max_tokens": 4}),
    "schema": ("stop", {"response_format": PLAN, "max_tokens": 200}),
    "json_object": ("stop", {"response_format": {"type": "json_object"}, "max_tokens": 100}),
    "tools": ("tool_calls", {"tools": [ADD], "max_tokens": 200}),
    "required": ("tool_calls", {"tools": [ADD], "tool_choice": "required", "max_tokens": 200}),
    "no_tools": ("length", {"tools": [ADD], "tool_choice": "none"}),
    "after_a_tool": ("length", {"tools": [ADD], "messages": CALLED}),
    "talk": ("length", {"messages": TALK}),
    "unknown_fields": ("length", {"nobody_knows": {"deep": [1, None]}, "repeat_penalty": 1.5, "min_p": 0.2}),
    "other_model": ("length", {"model": "some/other:name"}),
    "two": ("length", {"n": 2, "max_tokens": 6}),
}
BOTH = pytest.mark.parametrize(("finish", "fields"), CASES.values(), ids=CASES)


def whole(sdk: openai.OpenAI, **fields: Any) -> JsonObject:
    asked = {name: value for name, value in request(**fields).items() if value is not None}
    said: Any = sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_body=asked)
    return dict(said.to_dict())


def streamed(sdk: openai.OpenAI, **fields: Any) -> list[JsonObject]:
    asked = {name: value for name, value in request(**fields).items() if value is not None}
    with sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=True, extra_body=asked) as stream:
        return [dict(chunk.to_dict()) for chunk in stream]


def by_choice(chunks: list[JsonObject]) -> dict[int, list[JsonObject]]:
    """The chunks of each choice in their order; those of two choices come mixed by chance. No choice is -1."""
    found = defaultdict(list)
    for chunk in chunks:
        found[chunk["choices"][0]["index"] if chunk["choices"] else -1].append(essence(chunk))
    return dict(found)


@BOTH
def test_a_whole_answer_is_the_one_of_the_server_behind(
    direct: openai.OpenAI, through: openai.OpenAI, finish: str, fields: JsonObject
) -> None:
    said = whole(through, **fields)
    assert essence(said) == essence(whole(direct, **fields))
    assert {choice["finish_reason"] for choice in said["choices"]} == {finish}
    assert len(said["choices"]) == fields.get("n", 1)


@BOTH
@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_is_the_one_of_the_server_behind(
    direct: openai.OpenAI, through: openai.OpenAI, finish: str, fields: JsonObject, usage: bool
) -> None:
    asked = {**fields, "stream_options": {"include_usage": True} if usage else None}
    said, expected = by_choice(streamed(through, **asked)), by_choice(streamed(direct, **asked))
    if "n" in fields and usage:  # llama.cpp tells the usage of each choice, where the API tells it once
        del expected[-1][:-1]
    assert said == expected
    assert {chunks[-1]["choices"][0]["finish_reason"] for index, chunks in said.items() if index >= 0} == {finish}


@pytest.mark.parametrize("name", ["greedy", "tools", "two"])
def test_the_usage_chunk_comes_once_at_the_end_and_only_when_asked_for(through: openai.OpenAI, name: str) -> None:
    fields = CASES[name][1]
    for _ in range(3):
        chunks = streamed(through, **fields, stream_options={"include_usage": True})
        assert [bool(chunk.get("usage")) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-1]["choices"] == []
    for options in (None, {"include_usage": False}):
        assert not any("usage" in chunk for chunk in streamed(through, **fields, stream_options=options))


def data_lines(base_url: str, **fields: Any) -> list[bytes]:
    answer = httpx.post(f"{base_url}/chat/completions", json=request(stream=True, **fields), timeout=20.0)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.content.split(b"\n\n")
    assert lines[-2].strip() == b"data: [DONE]"
    own = [(rb'"id":"chatcmpl-\w+"', b'"id":""'), (rb'"created":\d+', b'"created":0'), (rb',"timings":{[^}]*}', b"")]
    for pattern, replacement in own:
        lines = [re.sub(pattern, replacement, line) for line in lines]
    return lines


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("name", ["greedy", "logprobs", "talk"])
def test_the_law_of_bytes_chunks_are_forwarded_as_they_came(
    tiny_llm: TinyLlm, gateway: Process, name: str, usage: bool
) -> None:
    asked: JsonObject = {**CASES[name][1], "stream_options": {"include_usage": usage}}
    said = data_lines(f"{gateway.base_url}/v1", **asked)
    expected = data_lines(tiny_llm.base_url, **asked)
    assert [line for line in said if line.strip()] == [line for line in expected if line.strip()]


@pytest.mark.parametrize("name", ["sampled", "schema", "tools", "talk"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_case_07_streamed_and_whole_are_equal(through: openai.OpenAI, name: str, seed: int) -> None:
    fields = CASES[name][1] | {"seed": seed, "temperature": 0.9}
    reply: Any = whole(through, **fields)
    message = reply["choices"][0]["message"]
    asked = request(**fields)
    messages = asked.pop("messages")
    with through.chat.completions.stream(
        model=MODEL, messages=messages, stream_options={"include_usage": True}, extra_body=asked
    ) as stream:
        for _ in stream:
            pass
        folded: Any = stream.current_completion_snapshot.to_dict()
    choice = folded["choices"][0]
    assert choice["finish_reason"] == reply["choices"][0]["finish_reason"]
    assert (choice["message"].get("content") or "") == (message["content"] or "")
    assert calls_of(choice["message"]) == calls_of(message)
    assert folded["usage"] == reply["usage"]


def calls_of(message: JsonObject) -> list[tuple[str, Any]]:
    calls = message.get("tool_calls") or []
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loop_with_a_tool_goes_as_it_does_without_us(
    direct: openai.OpenAI, through: openai.OpenAI, seed: int
) -> None:
    fields: JsonObject = {"tools": [ADD], "seed": seed, "temperature": 0.8, "max_tokens": 200}
    talks = []
    for sdk in (direct, through):
        first = whole(sdk, **fields)["choices"][0]["message"]
        assert len(first["tool_calls"]) == 1
        answer = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "42"}
        second = whole(sdk, **fields, messages=[*HELLO, first, answer])["choices"][0]["message"]
        assert second["content"]
        assert not second.get("tool_calls")
        talks.append(essence([first, second]))
    assert talks[0] == talks[1]


def test_logprobs_are_equal_to_the_last_digit(tiny_llm: TinyLlm, gateway: Process) -> None:
    asked = request(logprobs=True, top_logprobs=5, max_tokens=6)
    texts = [
        httpx.post(f"{url}/chat/completions", json=asked, timeout=20.0).text
        for url in (tiny_llm.base_url, f"{gateway.base_url}/v1")
    ]
    direct, through = (re.search(r'"logprobs":.*?]}]}', text) for text in texts)
    assert direct is not None
    assert through is not None
    assert through[0] == direct[0]
