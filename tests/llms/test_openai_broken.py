"""Streams that are cut, stall, or hold what is no answer: one typed error, never a clean end."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BadAnswer, LlmError, TimedOut, Unavailable
from penstock.events import Chunks, Event, Retrying, Used
from penstock.llms import sse
from penstock.llms.openai import Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest
from penstock.outcome import Failed
from penstock.policies.retry import retry
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.answers import plain_bytes
from tests.rig.upstream import (
    Plain,
    Refuse,
    Silence,
    Stream,
    Upstream,
    chunk,
    completion,
    text_stream,
    usage_of,
)

ASK = ChatRequest.of("Hello")
TEXT = "one two three four"
FULL = text_stream(TEXT, usage=usage_of(3, 4))
FINISH = next(n for n, one in enumerate(FULL, 1) if one["choices"] and one["choices"][0]["finish_reason"])
ENDS: dict[str, dict[str, Any]] = {"reset": {"reset": True}, "closed": {}, "closed unframed": {"chunked": False}}


def gpt(upstream: Upstream, **options: Any) -> Gpt:
    return Gpt(model="m", api_key="sk-test-key", base_url=upstream.base_url, **options)


async def fails(llm: Gpt, heard: Heard, request: ChatRequest = ASK) -> LlmError:
    """The error of a call that must not return."""
    with pytest.raises(LlmError) as raised:
        await execute(llm, request, heard)
    assert heard.end == Failed(raised.value)
    return raised.value


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("k", range(len(FULL) + 1))
async def test_case_04_a_cut_stream_never_ends_cleanly(upstream: Upstream, k: int, end: str) -> None:
    upstream.script(Stream(FULL, cut_after=k, delay_s=0.002, **ENDS[end]))
    heard = Heard()
    if end == "closed unframed" and k >= FINISH:  # all that is missing is the end mark
        assert (await execute(gpt(upstream), ASK, heard)).content == TEXT
        return
    error = await fails(gpt(upstream), heard)
    told = [event for event in heard.events if isinstance(event, Chunks)]
    assert isinstance(error, BadAnswer) or (isinstance(error, Unavailable) and not told)
    if told:
        assert isinstance(error, BadAnswer)
        assert isinstance(error.partial, ChatReply)
        assert error.partial.content == heard.text
        assert TEXT.startswith(heard.text)
        assert not error.retryable


@pytest.mark.parametrize("reset", [True, False])
async def test_case_04_no_answer_at_all_is_unavailable(upstream: Upstream, reset: bool) -> None:
    upstream.script(Refuse(reset=reset))
    assert type(await fails(gpt(upstream), Heard())) is Unavailable


async def test_case_04_a_cut_whole_answer_never_ends_cleanly(upstream: Upstream) -> None:
    full = plain_bytes(Plain(completion(TEXT)))
    head = full.index(b"\r\n\r\n") + 4
    for k in [*range(0, len(full), 23), head - 1, head, head + 1, len(full) - 1]:
        upstream.script(full[:k])
        error = await fails(gpt(upstream), Heard(), ChatRequest.of("Hello", stream=False))
        assert isinstance(error, BadAnswer if k >= head else Unavailable), k


@pytest.mark.parametrize("done", [True, False])
async def test_a_missing_end_mark_after_a_finish_reason_is_fine(upstream: Upstream, done: bool) -> None:
    upstream.script(Stream(FULL, done=done))
    reply = await execute(gpt(upstream), ASK)
    assert (reply.content, reply.finish_reason, reply.usage and reply.usage.total) == (TEXT, "stop", 7)


async def test_a_missing_finish_reason_before_the_end_mark_is_added(upstream: Upstream) -> None:
    upstream.script(Stream([one for one in FULL if not one["choices"] or one["choices"][0]["finish_reason"] is None]))
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert (reply.content, reply.finish_reason) == (TEXT, "stop")
    views = [view for event in heard.events if isinstance(event, Chunks) for view in event.views]
    assert [choice.finish_reason for view in views for choice in view.choices][-1] == "stop"


async def test_one_of_two_choices_that_does_not_finish_is_a_cut(upstream: Upstream) -> None:
    upstream.script(Stream([chunk("a"), chunk("b", index=1), chunk(finish="stop")], done=False, chunked=False))
    assert isinstance(await fails(gpt(upstream), Heard()), BadAnswer)


@pytest.mark.parametrize("answer", [Stream([]), Stream([], done=False), Plain({}), Plain(b""), Plain(b"[]")])
async def test_an_answer_that_says_nothing_is_a_bad_answer(upstream: Upstream, answer: Stream | Plain) -> None:
    upstream.script(answer)
    assert isinstance(await fails(gpt(upstream), Heard()), BadAnswer)


async def test_case_05_a_stall_after_a_start_ends_at_the_idle_limit(upstream: Upstream) -> None:
    upstream.script(Stream(FULL, stall_after=3))
    at: list[float] = []

    def heard(event: Event) -> None:
        if isinstance(event, Chunks):
            at.append(monotonic())

    llm = gpt(upstream, limits=Limits(idle_s=0.3, total_s=30))
    with pytest.raises(BadAnswer, match=r"stalled: nothing more came within 0\.3 s") as raised:
        await execute(llm, ASK, heard)
    assert 0.27 <= monotonic() - at[-1] <= 1.0
    assert raised.value.partial.content == "one two"
    assert (await execute(llm, ASK)).content == "Hello"


@pytest.mark.parametrize(
    "answer",
    [Silence(), Stream(FULL, early_headers=True, think_s=30), Stream([b": ping\n\n", *FULL], stall_after=1)],
    ids=["nothing", "headers only", "comments only"],
)
async def test_case_05_silence_ends_within_the_total_limit(upstream: Upstream, answer: Silence | Stream) -> None:
    upstream.script(answer)
    llm, began = gpt(upstream, limits=Limits(idle_s=0.1, total_s=0.3)), monotonic()
    error = await fails(llm, Heard())
    assert 0.27 <= monotonic() - began <= 1.0
    assert type(error) is TimedOut
    assert error.retryable
    assert (await execute(llm, ASK)).content == "Hello"


async def test_case_05_a_stream_that_never_ends_stops_at_the_total_limit(upstream: Upstream) -> None:
    upstream.script(Stream([chunk("x")] * 1000, delay_s=0.02))
    error = await fails(gpt(upstream, limits=Limits(idle_s=5, total_s=0.3)), Heard())
    assert isinstance(error, BadAnswer)
    assert "within 0.3 s in all" in str(error)


@pytest.mark.parametrize("stream", [True, False])
async def test_case_05_time_that_the_listener_takes_does_not_count(upstream: Upstream, stream: bool) -> None:
    upstream.script(Stream(FULL[:3], delay_s=0.05) if stream else Plain(completion("one two")))

    async def slow(event: Event) -> None:
        if isinstance(event, Chunks):
            await asyncio.sleep(0.5)

    llm = gpt(upstream, limits=Limits(idle_s=0.3, total_s=0.4))
    reply = await execute(llm, ChatRequest.of("Hello", stream=stream), slow)
    assert reply.content == "one two"


ODD = 'Grüße \u2028 \U0001f9d1\u200d\U0001f680 \x7f \\ " </think>'


def recorded(*, newline: str = "\r\n", long: str = "") -> bytes:
    """A stream in every legal form: a byte order mark, comments, no space after the colon, data of several lines."""
    first, second, third, *rest = [chunk("", role="assistant"), chunk(ODD), chunk(long or "more"), chunk(finish="stop")]
    lines = [
        ": welcome",
        "",
        f"data:{json.dumps(first)}",
        "",
        "event: message",
        f"data: {json.dumps(second)}",
        "id: 7",
        "",
    ]
    lines += [*(f"data: {line}" for line in json.dumps(third, ensure_ascii=False, indent=1).split("\n")), "", ""]
    for one in [*rest, chunk(usage=usage_of(3, 4))]:
        lines += [f"data: {json.dumps(one, ensure_ascii=False)}", ": ping", ""]
    return b"\xef\xbb\xbf" + newline.join([*lines, "data: [DONE]", "", ""]).encode()


async def check_recorded(
    upstream: Upstream, pieces: list[bytes], *, split: int | None = None, more: str = "more"
) -> None:
    upstream.script(Stream([piece for piece in pieces if piece], done=False, split=split))
    reply = await execute(gpt(upstream), ASK, heard := Heard())
    assert reply.content == heard.text == ODD + more
    assert (reply.finish_reason, reply.usage and reply.usage.total) == ("stop", 7)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(newline=st.sampled_from(["\n", "\r\n", "\r"]), places=st.lists(st.integers(0, 1_500), max_size=10))
async def test_case_06_every_cutting_gives_the_reference(upstream: Upstream, newline: str, places: list[int]) -> None:
    stream = recorded(newline=newline)
    marks = [0, *sorted(place % len(stream) for place in places), len(stream)]
    await check_recorded(upstream, [stream[a:b] for a, b in pairwise(marks)])


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
async def test_case_06_single_bytes_give_the_reference(upstream: Upstream, newline: str) -> None:
    await check_recorded(upstream, [recorded(newline=newline)], split=1)


@pytest.mark.parametrize("split", [None, 65_521, 1_000])
async def test_case_06_a_line_of_one_mebibyte_gives_the_reference(upstream: Upstream, split: int | None) -> None:
    long = "é" * (1 << 19)
    await check_recorded(upstream, [recorded(long=long)], split=split, more=long)


BROKEN = {
    "not JSON": b'data: {"choices": [}\n\n',
    "cut JSON": b'data: {"choices": [{"delta": {"content": "x\n\n',
    "invalid UTF-8": b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}\n\n',
    "a number": b"data: 5\n\n",
    "a list": b"data: []\n\n",
    "choices of a wrong type": b'data: {"choices": 5}\n\n',
    "a delta of a wrong type": b'data: {"choices": [{"delta": "x"}]}\n\n',
    "content of a wrong type": b'data: {"choices": [{"delta": {"content": 5}}]}\n\n',
    "a deep one": b"data: " + b'{"x":' * 50_000 + b"\n\n",
    "a deep list": b'data: {"x":' + b"[" * 100_000 + b"\n\n",
}


@pytest.mark.parametrize("split", [None, 7])
@pytest.mark.parametrize("case", BROKEN)
async def test_case_06_what_is_no_chunk_gives_one_typed_error(upstream: Upstream, case: str, split: int | None) -> None:
    upstream.script(Stream([chunk("Hi"), BROKEN[case], chunk("never told"), chunk(finish="stop")], split=split))
    error = await fails(gpt(upstream), heard := Heard())
    assert type(error) is BadAnswer
    assert error.partial.content == heard.text == "Hi"


async def test_case_06_an_event_that_never_ends_is_a_bad_answer(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 1_000_000)
    upstream.script(Stream([chunk("Hi"), *[b"x" * 100_000] * 20]))
    error = await fails(gpt(upstream), heard := Heard())
    assert type(error) is BadAnswer
    assert "an event is larger than 1000000 bytes" in str(error)
    assert heard.text == "Hi"


async def test_an_error_object_in_mid_stream_ends_it(upstream: Upstream) -> None:
    said = {"error": {"message": "Overloaded", "type": "overloaded_error", "param": "p", "code": 529}}
    upstream.script(Stream([chunk("Hi"), said, chunk(finish="stop")]))
    error = await fails(gpt(upstream, policies=[retry(base_s=0.01)]), heard := Heard())
    assert isinstance(error, BadAnswer)
    assert (error.message, error.type, error.code, error.param) == ("Overloaded", "overloaded_error", "529", "p")
    assert error.partial.content == heard.text == "Hi"
    assert len(upstream.chats) == 1, "an answer that has begun is not begun again"
    assert not any(isinstance(event, Retrying) for event in heard.events)


async def test_case_14_a_cancelled_stream_tells_its_usage_as_partial(upstream: Upstream) -> None:
    upstream.script(Stream([chunk(f"{n} ") for n in range(100)], delay_s=0.01))
    heard, half = Heard(), asyncio.Event()

    def listen(event: Event) -> None:
        heard(event)
        if len(heard.text) > 20:
            half.set()

    task = asyncio.create_task(execute(gpt(upstream), ASK, listen))
    await asyncio.wait_for(half.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (used,) = [event for event in heard.events if isinstance(event, Used)]
    assert used.usage.partial
    assert abs(used.usage.completion - len(heard.text.split())) <= 1
    assert used.usage.prompt > 0
    closed = await asyncio.to_thread(upstream.wait_closed)
    assert len(closed) == 1, "the service sees that nobody listens any more"


@pytest.mark.parametrize("answer", [Stream(FULL[:3], stall_after=3), Stream(FULL, cut_after=3)])
async def test_case_14_a_broken_stream_tells_its_usage_as_partial(upstream: Upstream, answer: Stream) -> None:
    upstream.script(answer)
    await fails(gpt(upstream, limits=Limits(idle_s=0.2)), heard := Heard())
    (used,) = [event for event in heard.events if isinstance(event, Used)]
    assert (used.usage.partial, used.usage.completion) == (True, 3)
