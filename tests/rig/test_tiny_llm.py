"""What the tiny LLM promises to the tests that stand on it, asked with the official SDKs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.rig.node import NodeSdk
from tests.rig.tiny_gguf import write_gguf
from tests.rig.tiny_llm import MODEL, TinyLlm

HELLO: Any = [{"role": "user", "content": "hello there river"}]
PLAN: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["level", "steps"],
    "properties": {
        "level": {"type": "integer", "minimum": 1, "maximum": 9},
        "steps": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"enum": ["open", "close"]}},
    },
}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "required": ["a", "b"],
            "properties": {"a": NUMBER, "b": NUMBER},
        },
    },
}


@pytest.fixture
def tiny(tiny_llm: TinyLlm) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=tiny_llm.base_url, api_key="none", max_retries=0, timeout=20.0) as sdk:
        yield sdk


def test_the_model_file_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_gguf(first)
    write_gguf(second)
    assert first.read_bytes() == second.read_bytes()


def test_it_answers_with_text_and_usage(tiny: openai.OpenAI) -> None:
    reply = tiny.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40, seed=1)
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in {"stop", "length"}
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 1


def test_it_streams_with_a_usage_chunk_at_the_end(tiny: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = tiny.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=40, seed=1, stream=True, stream_options=options
    )
    chunks = list(stream)
    assert sum(bool(seen.choices and seen.choices[0].delta.content) for seen in chunks) > 1
    assert [seen.usage is not None for seen in chunks] == [False] * (len(chunks) - 1) + [True]


def test_it_ends_its_turn_by_itself(tiny: openai.OpenAI) -> None:
    replies = [tiny.chat.completions.create(model=MODEL, messages=HELLO, seed=seed) for seed in range(5)]
    assert any(reply.choices[0].finish_reason == "stop" for reply in replies)


def test_one_seed_gives_one_text(tiny: openai.OpenAI) -> None:
    def text(seed: int) -> str | None:
        reply = tiny.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, seed=seed)
        return reply.choices[0].message.content

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(5)}) > 1


def test_every_seed_keeps_to_the_json_schema(tiny: openai.OpenAI) -> None:
    asked: Any = {"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": PLAN}}
    for seed in range(20):
        reply = tiny.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=200, seed=seed, response_format=asked
        )
        plan = json.loads(reply.choices[0].message.content or "")
        assert plan.keys() == {"level", "steps"}
        assert 1 <= plan["level"] <= 9
        assert 1 <= len(plan["steps"]) <= 3
        assert set(plan["steps"]) <= {"open", "close"}


def test_a_required_tool_is_called_with_valid_arguments(tiny: openai.OpenAI) -> None:
    for seed in range(10):
        reply = tiny.chat.completions.create(
            model=MODEL, messages=HELLO, tools=[ADD], tool_choice="required", seed=seed
        )
        calls: Any = reply.choices[0].message.tool_calls
        assert reply.choices[0].finish_reason == "tool_calls"
        assert calls
        assert json.loads(calls[0].function.arguments).keys() == {"a", "b"}


def test_a_streamed_tool_call_comes_in_fragments(tiny: openai.OpenAI) -> None:
    with tiny.chat.completions.stream(model=MODEL, messages=HELLO, tools=[ADD], seed=3) as stream:
        deltas = [event.chunk for event in stream if event.type == "chunk"]
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert sum(bool(seen.choices and seen.choices[0].delta.tool_calls) for seen in deltas) > 2
    assert calls is not None
    assert calls[0].function.name == "add"


@pytest.mark.parametrize("seed", range(10))
def test_a_loop_calls_an_offered_tool_once_and_then_answers(tiny: openai.OpenAI, seed: int) -> None:
    messages = list(HELLO)
    first = tiny.chat.completions.create(model=MODEL, messages=messages, tools=[ADD], seed=seed).choices[0].message
    assert first.tool_calls is not None
    assert len(first.tool_calls) == 1
    messages.append(first.to_dict())
    messages.append({"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "42"})
    second = tiny.chat.completions.create(model=MODEL, messages=messages, tools=[ADD], seed=seed).choices[0].message
    assert second.tool_calls is None
    assert second.content


def test_n_choices_come_back_apart(tiny: openai.OpenAI) -> None:
    reply = tiny.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, n=2, seed=1)
    assert sorted(choice.index for choice in reply.choices) == [0, 1]


def test_logprobs_come_with_alternatives(tiny: openai.OpenAI) -> None:
    reply = tiny.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, seed=1, logprobs=True, top_logprobs=2
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)


def test_a_prompt_beyond_the_context_is_a_bad_request(tiny: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "x " * 6000}]
    with pytest.raises(openai.BadRequestError, match="context"):
        tiny.chat.completions.create(model=MODEL, messages=messages)


def test_it_lists_its_model(tiny: openai.OpenAI) -> None:
    assert [model.id for model in tiny.models.list()] == [MODEL]


def test_a_client_that_leaves_is_a_cancelled_task(tiny: openai.OpenAI, tiny_llm: TinyLlm) -> None:
    before = tiny_llm.log().count("cancel task")
    endless = {"ignore_eos": True}
    stream = tiny.chat.completions.create(model=MODEL, messages=HELLO, stream=True, max_tokens=4000, extra_body=endless)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 5.0
    while tiny_llm.log().count("cancel task") == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tiny_llm.log().count("cancel task") == before + 1


@pytest.mark.parametrize("mode", ["stream", "create"])
def test_the_node_sdk_reads_its_answers(tiny_llm: TinyLlm, node_sdk: NodeSdk, mode: Any) -> None:
    said = node_sdk.call(
        mode, {"model": MODEL, "messages": HELLO, "max_tokens": 20, "seed": 3}, base_url=tiny_llm.base_url
    )
    assert said["error"] is None
    assert said["text"]
    assert said["usage"]["completion_tokens"] > 1
    called = node_sdk.call(
        mode, {"model": MODEL, "messages": HELLO, "tools": [ADD], "seed": 3}, base_url=tiny_llm.base_url
    )
    assert called["finish_reason"] == "tool_calls"
    assert called["tool_calls"][0]["name"] == "add"
