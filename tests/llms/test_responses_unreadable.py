"""Requests that the Responses API could not be asked: each is a `BadRequest` that names the place, never a crash."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.errors import BadRequest
from penstock.llms.openai import Gpt
from penstock.llms.openai_responses import fields_of
from penstock.messages import ChatRequest
from penstock.run import execute
from tests.rig.native.scenarios import WEATHER


def remembered(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"extra_content": {"openai": {"reasoning": list(entries)}}}


NAMED = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
UNREADABLE: dict[str, dict[str, Any]] = {
    "text": {"text": 5},
    "reasoning": {"reasoning": "high"},
    "include": {"include": 5},
    "stream_options": {"stream_options": "x"},
    "tools": {"tools": 5},
    "tools[0]": {"tools": ["x"]},
    "tools[1].function": {"tools": [WEATHER, {"type": "function", "function": "x"}]},
    "response_format": {"response_format": "x"},
    "response_format.json_schema": {"response_format": {"type": "json_schema", "json_schema": "x"}},
    "tool_choice.function": {"tool_choice": {"type": "function", "function": 5}},
    "tool_choice.allowed_tools": {"tool_choice": {"type": "allowed_tools", "allowed_tools": 5}},
    "tool_choice.allowed_tools.tools": {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": 5}}},
    "tool_choice.allowed_tools.tools[0]": {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [5]}}},
    "messages[0]": {"messages": "x"},
    "messages[0].content": {"content": 5},
    "messages[0].content[0]": {"content": ["x"]},
    "messages[0].tool_calls": {"tool_calls": 5},
    "messages[0].tool_calls[0]": {"tool_calls": ["x"]},
    "messages[0].tool_calls[0].id": {"tool_calls": [{**NAMED, "id": None}]},
    "messages[0].tool_calls[1].function": {"tool_calls": [NAMED, {**NAMED, "function": "f"}]},
    "messages[0].extra_content": {"extra_content": "x"},
    "messages[0].extra_content.openai": {"extra_content": {"openai": "x"}},
    "messages[0].extra_content.openai.reasoning": {"extra_content": {"openai": {"reasoning": 5}}},
    "messages[0].extra_content.openai.reasoning[0]": {"extra_content": {"openai": {"reasoning": [5]}}},
    "messages[0].extra_content.openai.reasoning[1].index": remembered({"index": 1}, {"index": "a"}),
    "messages[0].tool_call_id": {"role": "tool", "content": "sunny"},
}


@pytest.mark.parametrize("param", UNREADABLE)
async def test_case_26_what_cannot_be_read_is_refused_by_its_place(param: str) -> None:
    fields = UNREADABLE[param]
    messages: Any = [{"role": "assistant", **fields}] if param.startswith("messages") else [{"role": "user"}]
    params = {} if param.startswith("messages") else fields
    llm = Gpt(api="responses", model="m", base_url="http://127.0.0.1:9/v1")  # where nobody listens
    with pytest.raises(BadRequest) as raised:
        await execute(llm, ChatRequest(messages=fields.get("messages", messages), params=params))
    error = raised.value
    assert (error.status, error.code, error.param) == (400, "invalid_value", param)
    assert (error.provider, error.message.partition(":")[0]) == ("openai", param)


def refusal_of(fields: dict[str, Any]) -> BadRequest | None:
    try:
        fields_of({name: value for name, value in fields.items() if name != "messages"}, fields["messages"])
    except BadRequest as error:
        return error
    return None


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield from places(held, *path, key)


FULL: dict[str, Any] = {
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "text": {"verbosity": "low"},
    "include": ["x"],
    "stream_options": {"include_usage": True, "x": 1},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "tools": [WEATHER],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]},
    },
    "max_tokens": 5,
    "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "file", "file": {}}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}], "tool_calls": [NAMED]}
        | remembered({"index": 0, "id": "rs_1"}, {"index": 1, "summary": []}),
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "x"}]},
    ],
}


@pytest.mark.parametrize("junk", [None, 5, -1.5, True, "x", [], [5], {}, {"x": 1}, 10**30], ids=repr)
def test_case_26_whatever_stands_anywhere_is_sent_or_refused(junk: Any) -> None:
    for place in [path for path in places(FULL) if path and path != ("messages",)]:
        fields = copy.deepcopy(FULL)
        *path, last = place
        functools.reduce(lambda value, key: value[key], path, fields)[last] = junk
        error = refusal_of(fields)
        assert error is None or (error.status == 400 and error.param), place
