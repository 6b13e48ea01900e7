"""Streams on Google's wire that are cut, stall, or hold what is no answer: one typed error, never a clean end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BadAnswer, LlmError, Unavailable
from penstock.events import Chunks, Event, Fold, Used
from penstock.llms.failures import Who
from penstock.llms.gemini import Gemini
from penstock.llms.gemini_wire import GeminiReading
from penstock.llms.sse import SseReader
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta, Usage
from penstock.outcome import Failed
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.answers import stream_head
from tests.rig.native import SCENARIOS
from tests.rig.native import gemini as wire
from tests.rig.upstream import Plain, Stream, Upstream

ASK = ChatRequest.of("Hello")
THINKS = wire.events(SCENARIOS["reasoning"])
LOOKS = wire.events(SCENARIOS["two tools"])
GREETS = wire.events(SCENARIOS["text"])
STREAMS = {"reasoning": THINKS, "two tools": LOOKS, "text": GREETS}


def gemini(upstream: Upstream, **options: Any) -> Gemini:
    return Gemini(model="m", api_key="k-test", base_url=f"http://127.0.0.1:{upstream.port}", **options)


async def reply_to(upstream: Upstream, *answers: Stream | Plain | bytes) -> ChatReply:
    upstream.script(*answers)
    return await execute(gemini(upstream), ASK)


async def fails(upstream: Upstream, answer: Stream | Plain | bytes, *, stream: bool = True) -> tuple[LlmError, Heard]:
    """The error of a call that must not return, and what was told before it."""
    upstream.script(answer)
    heard = Heard()
    with pytest.raises(LlmError) as raised:
        await execute(gemini(upstream), ChatRequest.of("Hello", stream=stream), heard)
    assert heard.end == Failed(raised.value)
    return raised.value, heard


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("end", ["reset", "closed", "unframed"])
async def test_case_04_a_stream_cut_after_any_event_never_ends_cleanly(upstream: Upstream, name: str, end: str) -> None:
    events = STREAMS[name]
    for k in range(len(events)):
        cut = Stream(events, cut_after=k, done=False, delay_s=0.001, reset=end == "reset", chunked=end != "unframed")
        error, heard = await fails(upstream, cut)
        told = [event for event in heard.events if isinstance(event, Chunks)]
        assert isinstance(error, BadAnswer) or (isinstance(error, Unavailable) and not told), k
        if isinstance(error, BadAnswer):
            assert (error.partial.content if error.partial else "") == heard.text


async def test_case_04_a_stream_cut_at_any_byte_never_ends_cleanly(upstream: Upstream) -> None:
    """The end of the connection ends the body here: only the wire itself can tell that something is missing."""
    head, body = stream_head(Stream([], chunked=False)), b"".join(GREETS)
    finished = len(body) - len(b"\r\n\r\n")  # the last event lacks nothing but the blank line after it
    for k in range(finished):
        reading = GeminiReading(Who("gemini"))
        reader = SseReader()
        failures = [reading.views(read)[2] for read in (reader.feed(body[:k]), reader.close())]
        assert not reading.complete or any(type(failure) is BadAnswer for failure in failures), k
    for k in range(0, finished, 41):
        error, _ = await fails(upstream, head + body[:k])
        assert type(error) is BadAnswer, k
    whole = await reply_to(upstream, head + body)
    for k in range(finished, len(body)):
        assert await reply_to(upstream, head + body[:k]) == whole


@pytest.mark.parametrize("name", STREAMS)
def test_case_06_a_cut_at_every_byte_gives_the_reference(name: str) -> None:
    body = b"".join(STREAMS[name])
    wanted = read_as([body])
    assert wanted == read_as(STREAMS[name])
    for k in range(len(body)):
        assert read_as([body[:k], body[k:]]) == wanted, k


def read_as(pieces: Sequence[bytes]) -> ChatReply:
    """The answer that a stream in these pieces is, without a service."""
    reader, reading, fold = SseReader(), GeminiReading(Who("gemini")), Fold()
    usage: Usage | None = None
    for read in [*(reader.feed(piece) for piece in pieces), reader.close()]:
        views, data, failure = reading.views(read)
        assert (data, failure) == (None, None)
        for view in views:
            fold.add_chunk(view)
            usage = view.usage
    assert reading.complete
    closing = Chunk([ChunkChoice(delta=Delta())])
    reading.close(closing)
    fold.add_chunk(closing)
    return fold.reply(usage)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*STREAMS]), places=st.lists(st.integers(0, 2_500), max_size=8), turn=st.booleans())
async def test_case_06_every_cutting_gives_the_reference(
    upstream: Upstream, name: str, places: list[int], turn: bool
) -> None:
    body = b"".join(STREAMS[name])
    if turn:
        body = body.replace(b"\r\n", b"\n")
    bounds = sorted({0, len(body), *(place % len(body) for place in places)})
    pieces = [body[start:end] for start, end in pairwise(bounds)]
    assert await reply_to(upstream, Stream(pieces, done=False, delay_s=0.001)) == await reference(upstream, name)


@pytest.mark.parametrize("name", STREAMS)
async def test_case_06_single_bytes_give_the_reference(upstream: Upstream, name: str) -> None:
    assert await reply_to(upstream, Stream(STREAMS[name], done=False, split=1)) == await reference(upstream, name)


async def reference(upstream: Upstream, name: str) -> ChatReply:
    """The answer read from whole events, which is the one that was asked for unstreamed."""
    reply = await reply_to(upstream, Stream(STREAMS[name], done=False))
    upstream.script(Plain(wire.whole(SCENARIOS[name])))
    assert await execute(gemini(upstream), ChatRequest.of("Hello", stream=False)) == reply
    return reply


MALFORMED: dict[str, bytes] = {
    "half an object": b'{"candidates": [{"content"',
    "no object": b"[1, 2]",
    "a text": b'"candidates"',
    "invalid UTF-8": b'{"candidates": [{"content": {"parts": [{"text": "\xff\xfe"}]}}]}',
    "a lone surrogate": b'{"candidates": [{"content": {"parts": [{"text": "\\ud800"}]}}]}',
    "wrong types": b'{"candidates": [{"content": {"parts": [{"text": 1}]}}]}',
    "arguments that are no object": b'{"candidates": [{"content": {"parts": [{"functionCall": {"args": [1]}}]}}]}',
    "counts that are no numbers": b'{"candidates": [], "usageMetadata": {"promptTokenCount": "many"}}',
    "too deep": b'{"error": ' + b"[" * 100_000,
    "a part too deep": b'{"candidates": [{"content": {"parts": [{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}}]}",
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_case_06_what_is_no_answer_gives_one_typed_error(upstream: Upstream, case: str) -> None:
    payload = MALFORMED[case]
    error, heard = await fails(upstream, Stream([GREETS[0], b"data: " + payload + b"\n\n", *GREETS[1:]], done=False))
    assert type(error) is BadAnswer
    assert "malformed answer" in error.message
    assert heard.text == error.partial.content == "Hel"
    error, _ = await fails(upstream, Plain(payload), stream=False)
    assert type(error) is BadAnswer


async def test_case_06_a_line_of_one_mebibyte_gives_the_reference(upstream: Upstream) -> None:
    text = "\u00eb" * (1 << 19)
    said = {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}]}
    assert (await reply_to(upstream, Stream([json.dumps(said, ensure_ascii=False)], done=False))).content == text


async def test_case_05_a_stall_after_a_start_ends_at_the_idle_limit(upstream: Upstream) -> None:
    upstream.script(Stream([*GREETS, b": still here\n\n"], done=False, stall_after=2))
    with pytest.raises(BadAnswer, match=r"stalled: nothing more came within 0\.2 s") as raised:
        await execute(gemini(upstream, limits=Limits(idle_s=0.2, total_s=30)), ASK)
    assert raised.value.partial.content == "Hello, w\u00f6"


async def test_case_14_a_cancelled_stream_tells_the_prompt_as_it_was_counted(upstream: Upstream) -> None:
    upstream.script(Stream([*GREETS, b": still here\n\n"], done=False, stall_after=2))
    heard, half = Heard(), asyncio.Event()

    def listen(event: Event) -> None:
        heard(event)
        if heard.text.endswith("\u00f6"):
            half.set()

    task = asyncio.create_task(execute(gemini(upstream), ASK, listen))
    await asyncio.wait_for(half.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (used,) = [event for event in heard.events if isinstance(event, Used)]
    assert (used.usage.prompt, used.usage.cached, used.usage.completion) == (21, 8, 2)
    assert (used.usage.partial, used.model, used.provider) == (True, "text", "gemini")
    assert len(await asyncio.to_thread(upstream.wait_closed)) == 1
