"""What the Responses API answers, read as the official SDK reads it, and in the forms that other services give it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from penstock.events import Chunks, Fold
from penstock.llms.failures import Who
from penstock.llms.openai import Gpt
from penstock.llms.openai_responses_wire import ResponsesReading
from penstock.llms.sse import SseReader
from penstock.messages import ChatReply, ChatRequest, Choice, Chunk, Usage
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.native import SCENARIOS, native_answer
from tests.rig.native.openai_responses import begun, delta, ended, events, item, whole, written
from tests.rig.tiny_llm import MODEL, TinyLlm
from tests.rig.upstream import Plain, Stream, Upstream
from tests.rig.upstream import upstream as run_upstream

ASK = ChatRequest.of("Hello")
GOOD = [name for name, scenario in SCENARIOS.items() if scenario.failure is None and scenario.ends == "end"]
WHO = Who("openai")


arguments_delta = partial(delta, "function_call_arguments")


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


@pytest.fixture(scope="module")
def sdk(serving: Upstream) -> Iterator[openai.OpenAI]:
    """The official SDK, asking that service."""
    with openai.OpenAI(base_url=serving.base_url, api_key="sk-test", max_retries=0) as client:
        yield client


def gpt(upstream: Upstream, model: str = "m", **options: Any) -> Gpt:
    return Gpt(api="responses", model=model, api_key="sk-test-key", base_url=upstream.base_url, **options)


async def answered(upstream: Upstream, said: list[dict[str, Any]]) -> ChatReply:
    upstream.script(Stream(written(said), done=False))
    return await execute(gpt(upstream), ASK)


def read_by_sdk(sdk: openai.OpenAI, name: str, *, stream: bool) -> Response:
    if not stream:
        return sdk.responses.create(model=name, input="Hello", store=False)
    with sdk.responses.stream(model=name, input="Hello") as events:
        kept = [event for event in events if event.type in {"response.completed", "response.incomplete"}]
    (last,) = kept
    return last.response


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", GOOD)
async def test_row_c2_an_answer_reads_as_the_official_sdk_reads_it(
    upstream: Upstream, sdk: openai.OpenAI, name: str, stream: bool
) -> None:
    theirs = read_by_sdk(sdk, name, stream=stream)
    ours = await execute(gpt(upstream, name), ChatRequest.of("Hello", stream=stream))
    assert (ours.id, ours.model, ours.created) == (theirs.id, theirs.model, theirs.created_at)
    assert ours.content == theirs.output_text
    calls = [item for item in theirs.output if item.type == "function_call"]
    assert [(call.id, call.name, call.arguments) for call in ours.tool_calls] == [
        (call.call_id, call.name, call.arguments) for call in calls
    ]
    thoughts = [part.text for item in theirs.output if item.type == "reasoning" for part in item.summary]
    assert ours.reasoning == "".join(thoughts)
    assert ours.usage is not None
    assert theirs.usage is not None
    assert (ours.usage.prompt, ours.usage.completion, ours.usage.total) == (
        theirs.usage.input_tokens,
        theirs.usage.output_tokens,
        theirs.usage.total_tokens,
    )
    assert ours.usage.cached == theirs.usage.input_tokens_details.cached_tokens
    assert ours.usage.reasoning == theirs.usage.output_tokens_details.reasoning_tokens
    assert (ours.finish_reason in {"length", "content_filter"}) == (theirs.status == "incomplete")


def views_of(pieces: list[bytes]) -> tuple[list[Chunk], bool]:
    """What a stream in these pieces is read as, and whether its end has come."""
    reader, reading = SseReader(), ResponsesReading(WHO, "m")
    views: list[Chunk] = []
    for piece in pieces:
        views += reading.views(reader.feed(piece))[0]
    views += reading.views(reader.close())[0] if not reading.done else []
    return views, reading.done


def folded(views: list[Chunk]) -> ChatReply:
    fold = Fold()
    for view in views:
        fold.add_chunk(view)
    return fold.reply(next((view.usage for view in views if view.usage), None))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(GOOD),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    marks=st.lists(st.integers(0, 9999), max_size=9),
)
def test_case_08_every_cutting_gives_the_same_answer(name: str, newline: bytes, marks: list[int]) -> None:
    stream = b"".join(events(SCENARIOS[name])).replace(b"\n", newline)
    places = sorted({0, len(stream), *(mark % len(stream) for mark in marks)})
    views, done = views_of([stream[a:b] for a, b in pairwise(places)])
    assert done
    assert folded(views) == folded(views_of([b"".join(events(SCENARIOS[name]))])[0])


async def test_case_08_parallel_calls_that_come_mixed_leave_one_after_another(upstream: Upstream) -> None:
    said = [
        begun(),
        item("added", 0, "function_call", call_id="a", name="f", arguments=""),
        item("added", 1, "function_call", call_id="b", name="g", arguments=""),
        arguments_delta('{"x"', 0),
        arguments_delta('{"y":', 1),
        arguments_delta(": 1}", 0),
        arguments_delta(" 2}", 1),
        ended(),
    ]
    upstream.script(Stream(written(said), done=False))
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [
        ("a", "f", '{"x": 1}'),
        ("b", "g", '{"y": 2}'),
    ]
    views = [view for event in heard.events if isinstance(event, Chunks) for view in event.views]
    indexes = [call.index for view in views for call in view.choices[0].delta.tool_calls or ()]
    assert indexes == sorted(indexes, key=lambda index: index or 0)
    assert reply.finish_reason == "tool_calls"


async def test_case_08_a_call_waits_for_one_that_never_becomes_whole(upstream: Upstream) -> None:
    said = [
        begun(),
        item("added", 0, "function_call", call_id="a", name="f", arguments=""),
        item("added", 1, "function_call", call_id="b", name="g", arguments=""),
        arguments_delta("{}", 1),
        arguments_delta('{"x"', 0),
        ended(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    ]
    reply = await answered(upstream, said)
    assert [(call.id, call.arguments) for call in reply.tool_calls] == [("a", '{"x"'), ("b", "{}")]
    assert reply.finish_reason == "length"


@pytest.mark.parametrize("lost", ["item_id", "output_index"])
async def test_an_item_is_known_by_its_place_or_by_its_id(upstream: Upstream, lost: str) -> None:
    said = [
        begun(),
        item("added", 0, "function_call", call_id="a", name="f", arguments=""),
        item("added", 1, "function_call", call_id="b", name="g", arguments=""),
        arguments_delta("[1]", 0),
        arguments_delta("[2]", 1),
        item("done", 0, "function_call", call_id="a", name="f", arguments="[1]"),
        item("done", 1, "function_call", call_id="b", name="g", arguments="[2]"),
        ended(),
    ]
    for number, event in enumerate(said):
        event.pop(lost, None)
        if lost == "item_id" and "item" in event:  # some gateways name an item anew in each event
            event["item"]["id"] = f"new{number}"
    reply = await answered(upstream, said)
    assert [(call.id, call.arguments) for call in reply.tool_calls] == [("a", "[1]"), ("b", "[2]")]


async def test_a_model_that_the_service_does_not_name_is_the_one_asked(upstream: Upstream) -> None:
    said = [{"type": "response.created", "response": {"id": "resp_1"}}, delta("output_text", "!", 0), ended()]
    upstream.script(Stream(written(said), done=False))
    reply = await execute(gpt(upstream, ""), ChatRequest.of("Hello", model="asked"))
    assert (reply.model, reply.id) == ("asked", "resp_1")
    assert reply.created


async def test_what_comes_only_with_its_end_is_told_then(upstream: Upstream) -> None:
    part = {"type": "summary_text", "text": "Hm."}
    said = [
        begun(),
        item("done", 0, "reasoning", summary=[part, part], encrypted_content="x", status="completed"),
        item("done", 1, "web_search_call"),
        item("done", 2, "message", content=[{"type": "output_text", "text": "Yes."}]),
        item("done", 3, "reasoning", summary=[part]),
        item("added", 4, "function_call", call_id="a", name="f", arguments=""),
        item("done", 4, "function_call", call_id="a", name="f", arguments='{"x": 1}'),
        item("done", 5, "function_call", call_id="b", name="g", arguments="{}"),
        ended(usage={"input_tokens": 3, "output_tokens": 4.0}),
    ]
    streamed = await answered(upstream, said)
    assert (streamed.content, streamed.reasoning) == ("Yes.", "Hm.\n\nHm.\n\nHm.")
    assert [(call.id, call.arguments) for call in streamed.tool_calls] == [("a", '{"x": 1}'), ("b", "{}")]
    kept = {"index": 0, "type": "reasoning", "id": "i0", "summary": [part, part], "encrypted_content": "x"}
    assert streamed.first.extra_content == {"openai": {"reasoning": [kept]}}
    assert streamed.usage == Usage(3, 4, 7)
    output = [event["item"] for event in said if event["type"] == "response.output_item.done"]
    upstream.script(Plain({**said[0]["response"], "output": output, "usage": {"input_tokens": 3, "output_tokens": 4}}))
    assert (await execute(gpt(upstream), ASK)).choices == streamed.choices, "as it is told whole"


PART = {"type": "summary_text", "text": "Hm."}
F = {"type": "function_call", "id": "i2", "call_id": "a", "name": "f", "arguments": '{"x": 1}'}
OUTPUT: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "i0", "summary": [PART], "encrypted_content": "x"},
    {"type": "message", "id": "i1", "content": [{"type": "output_text", "text": "Yes."}]},
    F,
    {"type": "function_call", "id": "i3", "call_id": "b", "name": "g", "arguments": "{}"},
]
WORDLESS = item("added", 2, "function_call", call_id="a", name="f", arguments="")
TOLD: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "reasoning": [delta("reasoning_summary_text", "Hm.", 0, summary_index=0)],
    "text": [delta("output_text", "Ye", 1), delta("output_text", "s.", 1)],
    "text at its end": [{"type": "response.output_text.done", "output_index": 1, "text": "Yes."}],
    "text twice": [
        delta("output_text", "Yes.", 1),
        {"type": "response.output_text.done", "output_index": 1, "text": "Yes."},
    ],
    "a call without arguments": [WORDLESS],
    "arguments at their end": [
        WORDLESS,
        {"type": "response.function_call_arguments.done", "output_index": 2, "arguments": F["arguments"]},
    ],
    "arguments of a call that comes later": [
        {"type": "response.function_call_arguments.done", "output_index": 2, "arguments": F["arguments"]},
    ],
    "a call": [WORDLESS, arguments_delta('{"x"', 2), arguments_delta(": 1}", 2)],
    "all items": [
        {"type": "response.output_item.done", "output_index": n, "item": {**one, "id": "new"}}
        for n, one in enumerate(OUTPUT)
    ],
}


@pytest.mark.parametrize("case", TOLD)
async def test_what_only_the_last_event_tells_is_told_once(upstream: Upstream, case: str) -> None:
    reply = await answered(upstream, [begun(), *TOLD[case], ended(output=OUTPUT)])
    upstream.script(Plain({**begun()["response"], "output": OUTPUT}))
    (whole,) = (await execute(gpt(upstream), ASK)).choices
    (choice,) = reply.choices
    assert (choice.content, choice.reasoning, choice.finish_reason) == ("Yes.", "Hm.", "tool_calls")
    assert choice.tool_calls == whole.tool_calls
    assert [entry["index"] for entry in choice.extra_content["openai"]["reasoning"]] == [0]


async def test_arguments_that_come_only_with_their_end_are_told(upstream: Upstream) -> None:
    reply = await answered(upstream, [begun(), *TOLD["arguments at their end"], ended()])
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("f", F["arguments"])]


async def test_reasoning_remembers_its_place_among_the_items(upstream: Upstream) -> None:
    said = [
        begun(),
        item("done", 0, "reasoning", summary=[], encrypted_content="x"),
        item("done", 1, "message", content=[{"type": "output_text", "text": "Let me."}]),
        item("done", 2, "message", content=[{"type": "output_text", "text": " Look."}]),
        item("done", 3, "function_call", call_id="a", name="f", arguments="{}"),
        item("done", 4, "reasoning", summary=[], content=[{"type": "reasoning_text", "text": "Hm."}]),
        item("done", 5, "function_call", call_id="b", name="g", arguments="{}"),
        ended(),
    ]
    reply = await answered(upstream, said)
    assert reply.content == "Let me. Look."
    await answered(upstream, [begun(), delta("output_text", "!", 0), ended()])
    upstream.script(Plain(whole(SCENARIOS["text"])))
    await execute(gpt(upstream), ChatRequest(messages=[*ASK.messages, reply.message], stream=False))
    items = upstream.chats[-1].json["input"]
    assert [one["type"] for one in items] == [
        "message",
        "reasoning",
        "message",
        "function_call",
        "reasoning",
        "function_call",
    ]


async def test_row_c2_a_refusal_is_told_as_one(upstream: Upstream) -> None:
    said = [begun(), delta("refusal", "I can", 0), delta("refusal", "not.", 0), ended()]
    reply = await answered(upstream, said)
    assert (reply.first.refusal, reply.first.content, reply.finish_reason) == ("I cannot.", None, "stop")
    output = [{"type": "message", "content": [{"type": "refusal", "refusal": "I cannot."}]}]
    upstream.script(Plain({"id": "resp_1", "model": "m", "created_at": 5, "output": output}))
    assert (await execute(gpt(upstream), ASK)).choices == reply.choices


async def test_reasoning_in_parts_is_told_with_blank_lines_between(upstream: Upstream) -> None:
    thought = partial(delta, "reasoning_summary_text")
    said = [
        begun(),
        thought("One", 0, summary_index=0),
        thought(".", 0, summary_index=0),
        thought("Two.", 0, summary_index=1),
        delta("reasoning_text", "Three.", 1, content_index=0),
        delta("output_text", "Yes.", 2),
        ended(),
    ]
    reply = await answered(upstream, said)
    assert (reply.reasoning, reply.content) == ("One.\n\nTwo.\n\nThree.", "Yes.")


async def test_an_answer_without_a_word_ends_with_stop(upstream: Upstream) -> None:
    reply = await answered(upstream, [begun(), ended(output=[])])
    assert (reply.content, reply.finish_reason, reply.id, reply.model, reply.created) == ("", "stop", "resp_1", "m", 5)


async def test_what_nobody_knows_or_says_nothing_is_passed_over(upstream: Upstream) -> None:
    strange: list[dict[str, Any]] = [
        {"type": "response.audio.delta", "delta": {"deep": []}},
        {"type": "response.queued"},
        {"type": "keepalive", "item": 5},
        delta("output_text", "", 0),
        delta("refusal", "", 0),
        delta("reasoning_text", "", 0),
        arguments_delta("", 7),
    ]
    reply = await answered(upstream, [begun(), *strange, delta("output_text", "!", 0), ended()])
    assert reply.choices == (Choice(content="!", finish_reason="stop"),)


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "required": ["a"],
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
    },
}


@pytest.mark.parametrize("fields", [{}, {"tools": [ADD], "tool_choice": "required"}], ids=["text", "tool"])
async def test_row_c2_a_real_server_answers_on_both_apis_alike(tiny_llm: TinyLlm, fields: dict[str, Any]) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "river"}]},
    ]
    params = {"temperature": 0, "max_tokens": 60, "cache_prompt": False, **fields}
    replies: list[ChatReply] = []
    for api in ("chat", "responses"):
        llm = Gpt(api=api, model=MODEL, base_url=tiny_llm.base_url)
        replies += [
            await execute(llm, ChatRequest(messages=messages, params=params, stream=stream)) for stream in (True, False)
        ]
    first = replies[0]
    assert bool(first.tool_calls) == bool(fields)
    for reply in replies:
        assert reply.content == first.content
        assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
            (call.name, json.loads(call.arguments)) for call in first.tool_calls
        ]
        assert reply.usage is not None
        assert first.usage is not None
        assert reply.usage.total == first.usage.total
        assert reply.model == MODEL
