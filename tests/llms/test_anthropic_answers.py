"""What `Claude` makes of answers: equal however they are cut, their thinking given back, broken ones typed errors."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadAnswer, BadRequest, LlmError, RateLimited, Refused, TooLong, Unauthorized, Unavailable
from penstock.events import Chunks, Fold
from penstock.llms.anthropic import Claude
from penstock.llms.anthropic_wire import FINISH, MessagesReading
from penstock.llms.failures import Who, from_status
from penstock.llms.sse import Read, SseReader
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, Chunk, Usage
from penstock.outcome import Failed
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.native import SCENARIOS, native_answer
from tests.rig.native.anthropic import error_event, event, events
from tests.rig.test_tiny_llm import ADD
from tests.rig.tiny_llm import TinyLlm
from tests.rig.upstream import JsonObject, Plain, Stream, Upstream

WHO = Who("anthropic")
ASK = ChatRequest.of("Hello")
LONG = ["two tools", "reasoning", "text"]
COUNTS = {"input_tokens": 5, "output_tokens": 1}


def claude(upstream: Upstream, **options: Any) -> Claude:
    return Claude(model="m", base_url=upstream.base_url, api_key="sk-test-key", **options)


def read(*blocks: bytes) -> ChatReply:
    """The answer of a stream that comes in these pieces."""
    reader, reading, fold = SseReader(), MessagesReading(WHO), Fold()
    usage: Usage | None = None

    def take(came: Read) -> None:
        nonlocal usage
        views, data, failure = reading.views(came)
        assert data is None
        for view in views:
            fold.add_chunk(view)
            usage = view.usage or usage
        if failure is not None:
            raise failure

    for block in blocks:
        take(reader.feed(block))
    take(reader.close())
    assert reading.done
    return fold.reply(usage)


def read_whole(body: JsonObject) -> ChatReply:
    view, data, raw = MessagesReading(WHO).whole(json.dumps(body).encode())
    assert data is raw is None
    fold = Fold()
    fold.add_chunk(view)
    return fold.reply(view.usage)


def same(reply: ChatReply) -> tuple[Any, ...]:
    return reply.choices, reply.usage, reply.id, reply.model


def message(*content: JsonObject, stop: str | None = "end_turn", **more: Any) -> JsonObject:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": list(content),
        "stop_reason": stop,
        "usage": COUNTS,
        **more,
    }


def streamed(said: JsonObject, *, whole_blocks: bool = False) -> list[bytes]:
    """A whole answer as the events that a service streams; `whole_blocks`: said at once where a block begins."""
    head: JsonObject = {**said, "content": [], "stop_reason": None, "stop_details": None}
    out: list[JsonObject] = [{"type": "message_start", "message": head}]
    for index, block in enumerate(said["content"]):
        begun, deltas = (block, []) if whole_blocks else _parts(block)
        out.append({"type": "content_block_start", "index": index, "content_block": begun})
        out += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        out.append({"type": "content_block_stop", "index": index})
    stopped = {"stop_reason": said["stop_reason"], "stop_details": said.get("stop_details")}
    out += [{"type": "message_delta", "delta": stopped, "usage": said["usage"]}, {"type": "message_stop"}]
    return [event(one) for one in out]


def _parts(block: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": letter} for letter in block["text"]]
        case "thinking":
            said = [{"type": "thinking_delta", "thinking": letter} for letter in block["thinking"]]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*said, signed]
        case "tool_use" | "server_tool_use":
            text = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
            pieces = [{"type": "input_json_delta", "partial_json": letter} for letter in ["", *text]]
            return {**block, "input": {}}, pieces
        case _:
            return block, []


THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
SECOND = {"type": "thinking", "thinking": "", "signature": "bW9yZQ=="}
SAID = {"type": "text", "text": "Grüße \U0001f600."}
MORE = {"type": "text", "text": " More."}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"city": "Zürich", "n": [1, 2.5]}}
EMPTY: JsonObject = {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
FOUND: JsonObject = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
ANSWERS: dict[str, list[JsonObject]] = {
    "nothing": [],
    "thinking, text and tools": [THOUGHT, SAID, CALL, EMPTY],
    "thinking between": [THOUGHT, HIDDEN, SAID, SECOND, MORE, THOUGHT, CALL],
    "thinking last of the text": [SAID, THOUGHT, CALL, EMPTY],
    "texts side by side": [SAID, MORE, THOUGHT, CALL],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_case_07_streamed_and_whole_are_equal(name: str) -> None:
    said = message(*ANSWERS[name], stop="tool_use" if CALL in ANSWERS[name] else "end_turn")
    reply = read_whole(said)
    assert same(read(*streamed(said))) == same(read(*streamed(said, whole_blocks=True))) == same(reply)
    assert [json.loads(call.arguments) for call in reply.tool_calls] == [
        block["input"] for block in ANSWERS[name] if block["type"] == "tool_use"
    ]


@pytest.mark.parametrize("name", ANSWERS)
async def test_row_c2_an_answer_goes_back_block_by_block(upstream: Upstream, name: str) -> None:
    said = message(*ANSWERS[name])
    upstream.script(Stream(streamed(said), done=False), Plain(said), Plain(message(SAID)), Plain(message(SAID)))
    replies = [await execute(claude(upstream), ChatRequest.of("Hello", stream=stream)) for stream in (True, False)]
    for reply in replies:
        sent: Any = json.loads(json.dumps(reply.message))
        await execute(claude(upstream), ChatRequest.of([{"role": "user", "content": "Hello"}, sent], stream=False))
        back = upstream.requests[-1].json["messages"][1:]
        kept = [*ANSWERS[name]]
        if SAID in kept and kept[kept.index(SAID) + 1 :][:1] == [MORE]:  # texts side by side are one
            kept[:2] = [{"type": "text", "text": SAID["text"] + MORE["text"]}]
        assert back == ([{"role": "assistant", "content": kept}] if kept else [])


def test_tools_of_the_service_itself_are_not_a_clients() -> None:
    said = message(THOUGHT, SEARCH, FOUND, HIDDEN, SAID)
    reply = read(*streamed(said))
    assert same(reply) == same(read_whole(said))
    assert reply.tool_calls == ()
    assert [entry["index"] for entry in reply.first.extra_content["anthropic"]["thinking"]] == [0, 1]


@pytest.mark.parametrize(("value", "kept"), [("x", []), ([1, {**THOUGHT, "index": "x"}], ["thinking"])])
async def test_state_that_a_client_has_spoiled_is_no_failure(upstream: Upstream, value: Any, kept: list[str]) -> None:
    upstream.script(Plain(message(SAID)))
    spoiled: Any = {"role": "assistant", "content": "Hi", "extra_content": {"anthropic": {"thinking": value}}}
    await execute(claude(upstream), ChatRequest.of([{"role": "user", "content": "Hello"}, spoiled], stream=False))
    content = upstream.requests[-1].json["messages"][1]["content"]
    assert [block["type"] for block in content] == [*kept, "text"] if kept else content == "Hi"


@pytest.mark.parametrize("name", LONG)
def test_case_06_a_stream_cut_at_every_byte_is_the_same(name: str) -> None:
    stream = b"".join(events(SCENARIOS[name]))
    expected = same(read(stream))
    for cut in range(1, len(stream)):
        assert same(read(stream[:cut], stream[cut:])) == expected, cut
    assert same(read(*(stream[n : n + 1] for n in range(len(stream))))) == expected


@settings(max_examples=30, deadline=None)
@given(places=st.lists(st.integers(0, 10_000), max_size=12), newline=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_case_06_every_cutting_gives_the_reference(places: list[int], newline: bytes) -> None:
    stream = b"".join(streamed(message(*ANSWERS["thinking between"]))).replace(b"\n", newline)
    marks = [0, *sorted(place % len(stream) for place in places), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(marks) if a != b]
    assert same(read(*pieces)) == same(read_whole(message(*ANSWERS["thinking between"])))


async def test_case_06_single_bytes_over_the_wire_give_the_reference(upstream: Upstream) -> None:
    upstream.script(Stream(events(SCENARIOS["two tools"]), done=False, split=1))
    reply = await execute(claude(upstream), ASK, heard := Heard())
    assert same(reply) == same(read(*events(SCENARIOS["two tools"])))
    assert heard.text == reply.content
    assert all(event.data is None for event in heard.events if isinstance(event, Chunks))


@pytest.mark.parametrize("end", [{"reset": True}, {}, {"chunked": False}], ids=["reset", "closed", "unframed"])
async def test_case_04_a_cut_stream_never_ends_cleanly(upstream: Upstream, end: dict[str, Any]) -> None:
    full = events(SCENARIOS["two tools"])
    stopped = len(full) - 1
    for k in range(len(full) + 1):
        upstream.script(Stream(full, done=False, cut_after=k, **end))
        if k == len(full) or (k == stopped and "chunked" in end):  # all is said, at most the end mark is missing
            assert (await execute(claude(upstream), ASK)).finish_reason == "tool_calls"
            continue
        heard = Heard()
        with pytest.raises(LlmError) as raised:
            await execute(claude(upstream), ASK, heard)
        error = raised.value
        assert heard.end == Failed(error)
        told = [event for event in heard.events if isinstance(event, Chunks)]
        assert isinstance(error, BadAnswer) or (isinstance(error, Unavailable) and not told)
        if told:
            assert isinstance(error, BadAnswer)
            assert error.partial.content == heard.text
            assert error.partial.usage.partial is (k < stopped)
            assert error.partial.usage.prompt == SCENARIOS["two tools"].usage[0]


BROKEN = {
    "not JSON": b'data: {"type": }\n\n',
    "cut JSON": b'data: {"type": "content_block_delta", "index": 0, "delta": {"text": "x\n\n',
    "invalid UTF-8": b'data: {"type":"content_block_delta","index":0,"delta":{"text":"\xff\xfe"}}\n\n',
    "a number": b"data: 5\n\n",
    "a list": b"data: []\n\n",
    "no type": b'data: {"index": 0}\n\n',
    "a delta of a wrong type": event({"type": "content_block_delta", "index": 0, "delta": "x"}),
    "text of a wrong type": event({"type": "content_block_delta", "index": 0, "delta": {"text": 5}}),
    "a deep one": b'data: {"type":' + b'{"x":' * 50_000 + b"\n\n",
    "a start without a message": event({"type": "message_start"}),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_case_06_what_is_no_event_gives_one_typed_error(upstream: Upstream, case: str) -> None:
    start, begin, said, *rest = streamed(message({"type": "text", "text": "H"}))
    upstream.script(Stream([start, begin, said, BROKEN[case], *rest], done=False))
    heard = Heard()
    with pytest.raises(BadAnswer, match="malformed") as raised:
        await execute(claude(upstream), ASK, heard)
    assert raised.value.partial.content == heard.text == "H"


def test_events_and_blocks_of_new_kinds_are_passed_over() -> None:
    start, begin, *rest = streamed(message(SAID))
    new = [
        event({"type": "ping"}),
        event({"type": "weather_report", "index": 0}),
        event({"type": "content_block_start", "index": 7, "content_block": {"type": "hologram", "text": "x"}}),
        event({"type": "content_block_delta", "index": 7, "delta": {"type": "hologram_delta", "light": 1}}),
        event({"type": "content_block_stop", "index": 7}),
    ]
    assert same(read(start, *new, begin, *new, *rest)) == same(read_whole(message(SAID)))


WHOLE_ERRORS: dict[str, bytes] = {
    "not JSON": b"<html>",
    "empty": b"",
    "a list": b"[]",
    "no content": b"{}",
    "content of a wrong type": b'{"type":"message","content":"Hi"}',
    "invalid UTF-8": b'{"content":[{"type":"text","text":"\xff"}]}',
}


@pytest.mark.parametrize("case", WHOLE_ERRORS)
async def test_case_06_a_body_that_is_no_answer_is_a_bad_answer(upstream: Upstream, case: str) -> None:
    upstream.script(Plain(WHOLE_ERRORS[case]))
    with pytest.raises(BadAnswer, match="malformed"):
        await execute(claude(upstream), ChatRequest.of("Hello", stream=False))


STREAM_ERRORS: list[tuple[str, type[LlmError]]] = [
    ("overloaded_error", Unavailable),
    ("api_error", Unavailable),
    ("rate_limit_error", RateLimited),
    ("authentication_error", Unauthorized),
    ("invalid_request_error", BadRequest),
]


@pytest.mark.parametrize(("kind", "error"), STREAM_ERRORS)
async def test_an_error_in_a_stream_keeps_its_kind_until_something_came(
    upstream: Upstream, kind: str, error: type[LlmError]
) -> None:
    start, begin, said, *_ = streamed(message(SAID))
    upstream.script(
        Stream([error_event(kind, "sorry")], done=False),
        Stream([start, begin, said, error_event(kind, "sorry")], done=False),
        Plain({"type": "error", "error": {"type": kind, "message": "sorry"}}),
    )
    for stream in (True, False):
        with pytest.raises(error, match="sorry"):
            await execute(claude(upstream), ChatRequest.of("Hello", stream=stream))
        if stream:
            with pytest.raises(BadAnswer, match="sorry") as raised:
                await execute(claude(upstream), ASK)
            assert (raised.value.type, raised.value.partial.content) == (kind, "G")


SAYINGS: list[tuple[int, JsonObject, type[LlmError], str | None, bool]] = [
    (400, {"message": "prompt is too long: 9 tokens > 8 maximum"}, TooLong, "context_length_exceeded", False),
    (400, {"message": "`max_tokens` exceed context limit: 9"}, TooLong, "context_length_exceeded", False),
    (400, {"message": "Output blocked by content filtering policy"}, Refused, "content_filter", False),
    (413, {"type": "request_too_large", "message": "too large"}, TooLong, None, False),
    (529, {"type": "overloaded_error", "message": "Overloaded"}, Unavailable, "overloaded_error", True),
    (500, {"type": "api_error", "message": "Internal server error"}, Unavailable, None, True),
    (429, {"message": "x", "details": {"error_code": "contract_spend_limit_reached"}}, RateLimited,
     "contract_spend_limit_reached", False),
    (402, {"type": "billing_error", "message": "pay"}, Unauthorized, "billing_error", False),
]  # fmt: skip


@pytest.mark.parametrize(("status", "detail", "kind", "code", "retryable"), SAYINGS)
def test_what_the_service_says_has_one_meaning(
    status: int, detail: JsonObject, kind: type[LlmError], code: str | None, retryable: bool
) -> None:
    error = from_status(
        status, {"request-id": "req_1"}, json.dumps({"type": "error", "error": detail}).encode(), who=WHO
    )
    assert (type(error), error.status, error.code, error.request_id) == (kind, status, code, "req_1")
    assert error.retryable is retryable


@pytest.mark.parametrize("stop", ["end_turn", "stop_sequence", "compaction", *FINISH])
def test_each_reason_to_stop_has_a_finish_reason(stop: str) -> None:
    said = message(SAID, stop=stop, stop_details={"type": "refusal", "explanation": "It could harm."})
    reply = read(*streamed(said))
    assert same(reply) == same(read_whole(said))
    assert reply.finish_reason == FINISH.get(stop, "stop")
    assert reply.first.refusal == "It could harm."


def test_usage_counts_what_a_cache_gave_and_took() -> None:
    first = {"input_tokens": 5, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 7, "output_tokens": 1}
    start, *rest = streamed(message(SAID, usage={**first, "output_tokens": 9}))
    start = event({"type": "message_start", "message": message(stop=None, usage=first)})
    last = event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
    view = MessagesReading(WHO).view(SseReader().feed(start).payloads[0])
    assert isinstance(view, Chunk)
    assert view.usage is not None
    assert (view.usage.partial, view.usage.prompt, view.usage.completion) == (True, 42, 1)
    usage = read(start, *rest[:-2], last, rest[-1]).usage
    assert usage is not None
    assert (usage.prompt, usage.cached, usage.cache_written, usage.completion) == (42, 30, 7, 9)
    assert (usage.total, usage.reasoning, usage.partial) == (51, 0, False)


@pytest.mark.parametrize("stream", [True, False])
def test_counts_written_as_floats_are_counts(stream: bool) -> None:
    counts = {"input_tokens": 5.0, "output_tokens": 2.0, "output_tokens_details": {"thinking_tokens": 1.0}}
    said = message(SAID, usage=counts)
    usage = (read(*streamed(said)) if stream else read_whole(said)).usage
    assert usage is not None
    assert repr((usage.prompt, usage.completion, usage.total, usage.reasoning)) == "(5, 2, 7, 1)"


async def test_case_05_a_stall_ends_at_the_idle_limit(upstream: Upstream) -> None:
    upstream.default = native_answer
    llm = Claude(model="stalled", base_url=upstream.base_url, api_key="k", limits=Limits(idle_s=0.2, total_s=5))
    with pytest.raises(BadAnswer, match=r"stalled: nothing more came within 0\.2 s"):
        await execute(llm, ASK)


@pytest.mark.parametrize("stream", [True, False])
async def test_row_c2_a_real_server_of_this_wire_answers(tiny_llm: TinyLlm, stream: bool) -> None:
    llm = Claude(model=tiny_llm.model, base_url=tiny_llm.base_url.removesuffix("/v1"), api_key="none")
    reply = await execute(llm, ChatRequest.of("hello there river", stream=stream, max_tokens=20), heard := Heard())
    assert reply.content == heard.text != ""
    assert reply.usage is not None
    assert (reply.usage.prompt > 5, reply.usage.completion > 1, reply.usage.partial) == (True, True, False)
    asked = ChatRequest.of("hello there river", stream=stream, tools=[ADD], tool_choice="required")
    called = await execute(llm, asked)
    assert called.finish_reason == "tool_calls"
    assert json.loads(called.tool_calls[0].arguments).keys() == {"a", "b"}
    result: Any = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "42"}
    again: Any = [*asked.messages, called.message, result]
    assert (await execute(llm, ChatRequest.of(again, stream=stream, tools=[ADD], max_tokens=20))).finish_reason
