"""Answers as services really give them: streamed and whole ones are equal, and odd ones are made canonical."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from penstock.errors import BadAnswer
from penstock.events import Chunks, Used
from penstock.llms.openai import Gpt
from penstock.messages import ChatReply, ChatRequest, Choice, ToolCall, Usage
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.upstream import (
    JsonObject,
    Plain,
    Stream,
    Upstream,
    chunk,
    completion,
    text_stream,
    tool_call,
    tool_fragment,
    usage_of,
)

ASK = ChatRequest.of("Hello")
WHOLE = ChatRequest.of("Hello", stream=False)
DETAILED = {
    **usage_of(40, 12),
    "prompt_tokens_details": {"cached_tokens": 32, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
F, G = ToolCall("call_f", "f", '{"city":"Zürich","n":[1,2]}'), ToolCall("call_g", "g", "{}")


def gpt(upstream: Upstream, **options: Any) -> Gpt:
    return Gpt(model="m", api_key="sk-test-key", base_url=upstream.base_url, **options)


def wire(call: ToolCall, index: int | None = None) -> JsonObject:
    return tool_call(call.name, call.arguments, call_id=call.id, index=index)


def parts(*content: JsonObject) -> JsonObject:
    """The field of a message or delta whose content is a list of parts."""
    return {"content": list(content)}


def said(
    content: str | None, /, *, finish: str = "stop", usage: JsonObject | None = None, **message: Any
) -> JsonObject:
    """A whole answer with more fields in its message."""
    body = completion(content, finish=finish, usage=usage or usage_of(3, 4))
    body["choices"][0]["message"].update(message)
    return body


def ended(*chunks: JsonObject, finish: str = "stop", usage: JsonObject | None = None) -> Stream:
    return Stream([*chunks, chunk(finish=finish), chunk(usage=usage or usage_of(3, 4))])


PAIRS: dict[str, tuple[JsonObject, Stream, Choice]] = {
    "text": (
        said("Grüße an alle"),
        ended(chunk("", role="assistant"), chunk("Grüße "), chunk("an alle")),
        Choice(content="Grüße an alle", finish_reason="stop"),
    ),
    "nothing": (said(""), ended(chunk("", role="assistant")), Choice(content="", finish_reason="stop")),
    "cut by length": (
        said("Grü", finish="length"),
        ended(chunk("Grü", role="assistant"), finish="length"),
        Choice(content="Grü", finish_reason="length"),
    ),
    "tool calls": (
        said(None, finish="tool_calls", tool_calls=[wire(F), wire(G)]),
        ended(
            chunk(role="assistant", tool_calls=[{**wire(F, 0), "function": {"name": "f", "arguments": ""}}]),
            chunk(tool_calls=[tool_fragment(F.arguments[:9])]),
            chunk(tool_calls=[tool_fragment(F.arguments[9:])]),
            chunk(tool_calls=[wire(G, 1)]),
            finish="tool_calls",
        ),
        Choice(tool_calls=(F, G), finish_reason="tool_calls"),
    ),
    "text and a tool call": (
        said("One moment.", finish="tool_calls", tool_calls=[wire(F)]),
        ended(chunk("One "), chunk("moment."), chunk(tool_calls=[wire(F, 0)]), finish="tool_calls"),
        Choice(content="One moment.", tool_calls=(F,), finish_reason="tool_calls"),
    ),
    "arguments as an object, floats, nulls": (
        said(None, finish="tool_calls", tool_calls=[{**wire(F), "function": {"name": "f", "arguments": {"a": 1}}}]),
        ended(
            chunk(
                tool_calls=[{**wire(F), "index": 0.0, "function": {"name": "f", "arguments": {"a": 1}}}], refusal=None
            ),
            finish="tool_calls",
        ),
        Choice(tool_calls=(ToolCall("call_f", "f", '{"a":1}'),), finish_reason="tool_calls"),
    ),
    "reasoning_content": (
        said("Hi", reasoning_content="hm, so"),
        ended(chunk(reasoning_content="hm, "), chunk(reasoning_content="so"), chunk("Hi")),
        Choice(content="Hi", reasoning="hm, so", finish_reason="stop"),
    ),
    "reasoning": (
        said("Hi", reasoning="hm, so"),
        ended(chunk(reasoning="hm, "), chunk(reasoning="so"), chunk("Hi")),
        Choice(content="Hi", reasoning="hm, so", finish_reason="stop"),
    ),
    "thinking tags": (
        said("<think>\nhm, so</think>\n\nHi"),
        ended(*(chunk(letter) for letter in "<think>\nhm, so</think>\n\nHi")),
        Choice(content="Hi", reasoning="\nhm, so", finish_reason="stop"),
    ),
    "content as parts": (
        said(None, **parts({"type": "text", "text": "Hi "}, {"type": "text", "text": "you"})),
        ended(chunk() | {"choices": [{"index": 0, "delta": parts({"type": "text", "text": "Hi you"})}]}),
        Choice(content="Hi you", finish_reason="stop"),
    ),
    "thinking parts": (
        said(None, **parts(THOUGHT, {"type": "text", "text": "Hi"})),
        ended(chunk() | {"choices": [{"index": 0, "delta": parts(THOUGHT)}]}, chunk("Hi")),
        Choice(content="Hi", reasoning="hm", finish_reason="stop"),
    ),
    "refusal": (
        said(None, refusal="I will not."),
        ended(chunk(refusal="I will "), chunk(refusal="not.")),
        Choice(refusal="I will not.", finish_reason="stop"),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
async def test_case_07_streamed_and_whole_are_equal(upstream: Upstream, case: str) -> None:
    whole, stream, choice = PAIRS[case]
    upstream.script(Plain(whole), stream)
    replies = [await execute(gpt(upstream), request, Heard()) for request in (WHOLE, ASK)]
    assert [reply.choices for reply in replies] == [(choice,)] * 2
    assert replies[0].usage == replies[1].usage == Usage(3, 4, 7)
    assert (replies[0].id, replies[0].model, replies[0].created) == (
        replies[1].id,
        replies[1].model,
        replies[1].created,
    )


async def test_case_07_several_choices_are_equal(upstream: Upstream) -> None:
    body = completion("a")
    body["choices"].append({**body["choices"][0], "index": 1, "message": {"role": "assistant", "content": "b"}})
    upstream.script(
        Plain(body),
        Stream([chunk("b", index=1), chunk("a"), chunk(finish="stop", index=1), chunk(finish="stop")]),
    )
    whole, streamed = [await execute(gpt(upstream), request) for request in (WHOLE, ASK)]
    assert whole.choices == streamed.choices
    assert [choice.content for choice in whole.choices] == ["a", "b"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("number", [int, float], ids=["whole numbers", "floats"])
async def test_row_a16_cached_and_reasoning_tokens_are_counted(upstream: Upstream, stream: bool, number: type) -> None:
    usage = json.loads(json.dumps(DETAILED), parse_int=number)
    upstream.script(ended(chunk("Hi"), usage=usage) if stream else Plain(said("Hi", usage=usage)))
    reply = await execute(gpt(upstream), ChatRequest.of("Hello", stream=stream), heard := Heard())
    (used,) = [event for event in heard.events if isinstance(event, Used)]
    assert reply.usage == used.usage
    counts = (used.usage.prompt, used.usage.completion, used.usage.total, used.usage.cached, used.usage.reasoning)
    assert counts == (40, 12, 52, 32, 7)
    assert not used.usage.partial
    assert (used.model, used.provider) == ("rig", "openai")
    assert used.ttft_s is not None
    assert used.ttft_s >= 0


async def test_row_a16_usage_that_is_not_reported_is_counted_as_partial(upstream: Upstream) -> None:
    upstream.script(Stream(text_stream("one two three")))
    await execute(gpt(upstream), ASK, heard := Heard())
    (used,) = [event for event in heard.events if isinstance(event, Used)]
    assert used.usage.partial
    assert used.usage.completion == 5


async def test_usage_on_a_chunk_with_choices_is_read_once(upstream: Upstream) -> None:
    growing = [chunk("a") | {"usage": usage_of(3, 1)}, chunk("b") | {"usage": usage_of(3, 2)}]
    upstream.script(Stream([*growing, chunk(finish="stop") | {"usage": usage_of(3, 2)}]))
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert [event.usage for event in heard.events if isinstance(event, Used)] == [Usage(3, 2, 5)]
    assert (reply.content, reply.usage) == ("ab", Usage(3, 2, 5))


async def test_case_08_a_tool_call_split_at_every_byte_is_the_same(upstream: Upstream) -> None:
    answer = ended(chunk(role="assistant", tool_calls=[wire(F, 0)]), finish="tool_calls")
    upstream.script(Stream(answer.chunks, split=1), *(Stream(answer.chunks, split=size) for size in range(2, 400, 13)))
    replies = [await execute(gpt(upstream), ASK) for _ in range(1 + len(range(2, 400, 13)))]
    assert {reply.tool_calls for reply in replies} == {(F,)}


async def test_case_08_arguments_split_at_every_place_are_the_same(upstream: Upstream) -> None:
    for place in range(len(F.arguments) + 1):
        first = {**wire(F, 0), "function": {"name": "f", "arguments": F.arguments[:place]}}
        rest = tool_fragment(F.arguments[place:])
        upstream.script(ended(chunk(tool_calls=[first]), chunk(tool_calls=[rest]), finish="tool_calls"))
        assert (await execute(gpt(upstream), ASK)).tool_calls == (F,)


async def test_case_08_interleaved_calls_leave_one_after_another(upstream: Upstream) -> None:
    heads = [{**wire(call, n), "function": {"name": call.name, "arguments": ""}} for n, call in enumerate((F, G))]
    upstream.script(
        ended(
            chunk(tool_calls=heads),
            chunk(tool_calls=[tool_fragment("{", index=1), tool_fragment(F.arguments[:5])]),
            chunk(tool_calls=[tool_fragment(F.arguments[5:]), tool_fragment("}", index=1)]),
            finish="tool_calls",
        )
    )
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert reply.tool_calls == (F, G)
    views = [view for event in heard.events if isinstance(event, Chunks) for view in event.views]
    indexes = [call.index for view in views for choice in view.choices for call in choice.delta.tool_calls or ()]
    assert indexes == sorted(indexes, key=lambda index: -1 if index is None else index)
    assert None not in indexes


async def test_untouched_chunks_keep_their_bytes(upstream: Upstream) -> None:
    chunks = [chunk("a", role="assistant"), chunk("b") | {"service_tier": "x"}, chunk(finish="stop")]
    upstream.script(Stream(chunks))
    await execute(gpt(upstream), ASK, heard := Heard())
    data = [event.data for event in heard.events if isinstance(event, Chunks)]
    assert b"".join(one or b"" for one in data) == b"".join(
        b"data: %b\n\n" % json.dumps(one).encode() for one in chunks
    )


async def test_repaired_chunks_keep_their_json(upstream: Upstream) -> None:
    odd = chunk(reasoning_content="hm") | {"service_tier": "x"}
    upstream.script(Stream([odd, chunk("a"), chunk(finish="stop")]))
    await execute(gpt(upstream), ASK, heard := Heard())
    views = [view for event in heard.events if isinstance(event, Chunks) if event.data is None for view in event.views]
    assert json.loads(views[0].raw or b"") == odd


async def test_a_whole_answer_keeps_its_bytes(upstream: Upstream) -> None:
    body = json.dumps(completion("Hi") | {"service_tier": "x"}, indent=1).encode()
    odd = json.dumps(completion("<think>hm</think>Hi")).encode()
    upstream.script(Plain(body), Plain(odd))
    first, second = await execute(gpt(upstream), WHOLE), await execute(gpt(upstream), WHOLE)
    assert (first.data, first.raw) == (body, None)
    assert (second.data, second.raw) == (None, odd)


async def test_a_whole_answer_to_a_streamed_request_is_taken(upstream: Upstream) -> None:
    upstream.script(Plain(completion("Hi", usage=usage_of(3, 1))))
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert (reply.content, heard.text, reply.usage) == ("Hi", "Hi", Usage(3, 1, 4))


async def test_a_stream_in_answer_to_a_whole_request_is_taken(upstream: Upstream) -> None:
    upstream.script(ended(chunk("Hi")))
    assert (await execute(gpt(upstream), WHOLE)).content == "Hi"


@pytest.mark.parametrize("split", [None, 1])
async def test_compressed_answers_are_read(upstream: Upstream, split: int | None) -> None:
    stream = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in text_stream("one two"))
    packed = gzip.compress(stream + b"data: [DONE]\n\n")
    whole = gzip.compress(json.dumps(completion("one two")).encode())
    coding = {"content-encoding": "GZIP"}
    upstream.script(Stream([packed], done=False, split=split, headers=coding), Plain(whole, headers=coding))
    for request in (ASK, WHOLE):
        assert (await execute(gpt(upstream), request)).content == "one two"


async def test_an_answer_is_given_though_its_body_does_not_end(upstream: Upstream) -> None:
    chunks = text_stream("one two")
    upstream.script(Stream(chunks, stall_after=len(chunks) + 1))
    async with asyncio.timeout(5):
        assert (await execute(gpt(upstream), ASK)).content == "one two"
        assert (await execute(gpt(upstream), ASK)).content == "Hello"
    assert upstream.connections == 2, "the first one is in the middle of an answer"


@pytest.mark.parametrize("empty", [None, "", {}, False])
async def test_an_empty_error_field_is_no_error(upstream: Upstream, empty: Any) -> None:
    upstream.script(ended(chunk("Hi") | {"error": empty}), Plain(said("Hi") | {"error": empty}))
    for request in (ASK, WHOLE):
        assert (await execute(gpt(upstream), request)).content == "Hi"


async def test_what_claims_to_be_compressed_and_is_not_is_a_bad_answer(upstream: Upstream) -> None:
    upstream.script(Plain(completion("Hi"), headers={"content-encoding": "gzip"}))
    with pytest.raises(BadAnswer, match="broke off"):
        await execute(gpt(upstream), WHOLE)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("split", [None, 3])
async def test_every_framing_gives_the_same(upstream: Upstream, chunked: bool, split: int | None) -> None:
    upstream.script(Stream(text_stream("one two three"), chunked=chunked, split=split))
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert isinstance(reply, ChatReply)
    assert reply.content == heard.text == "one two three"
