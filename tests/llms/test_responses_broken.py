"""Answers of the Responses API that are cut, fail or are none: one typed error, never a clean end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.errors import BadAnswer, BadRequest, LlmError, RateLimited, Refused, TooLong, Unavailable
from penstock.events import Chunks, Fold
from penstock.llms.failures import Who
from penstock.llms.openai import Gpt
from penstock.llms.openai_responses_wire import ResponsesReading
from penstock.llms.sse import SseReader
from penstock.messages import ChatReply, ChatRequest, Chunk
from penstock.outcome import Failed
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.native import SCENARIOS, native_answer
from tests.rig.native.openai_responses import begun, delta, ended, events, written
from tests.rig.upstream import Plain, Stream, Upstream
from tests.rig.upstream import upstream as run_upstream

ASK = ChatRequest.of("Hello")
WHO = Who("openai")


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


async def fails(upstream: Upstream, answer: Stream | Plain, heard: Heard | None = None) -> LlmError:
    upstream.script(answer)
    llm = Gpt(api="responses", model="m", api_key="sk-test-key", base_url=upstream.base_url)
    heard = heard or Heard()
    with pytest.raises(LlmError) as raised:
        await execute(llm, ASK, heard)
    assert heard.end == Failed(raised.value)
    return raised.value


CUTS = [(name, k) for name in ("two tools", "reasoning", "length") for k in range(len(events(SCENARIOS[name])))]


@pytest.mark.parametrize("chunked", [True, False], ids=["framed", "unframed"])
async def test_case_04_a_stream_cut_after_any_event_never_ends_cleanly(upstream: Upstream, chunked: bool) -> None:
    for name, k in CUTS:
        heard = Heard()
        cut = Stream(events(SCENARIOS[name]), cut_after=k, chunked=chunked, done=False)
        error = await fails(upstream, cut, heard)
        begun = any(isinstance(event, Chunks) for event in heard.events)
        assert isinstance(error, BadAnswer | Unavailable), (name, k)
        if begun:
            assert isinstance(error, BadAnswer)
            assert error.partial.content == heard.text
            assert error.partial.finish_reason is None


@pytest.mark.parametrize("pieces", [{}, {"split": 1}], ids=["at once", "apart"])
@pytest.mark.parametrize("done", [True, False], ids=["marked", "unmarked"])
async def test_case_04_only_its_own_end_ends_an_answer(upstream: Upstream, pieces: dict[str, Any], done: bool) -> None:
    half = Stream(written([begun(), delta("output_text", "Hi", 0)]), done=done, **pieces)
    error = await fails(upstream, half)
    assert (type(error), error.message) == (BadAnswer, "openai cut off its answer")
    assert isinstance(error, BadAnswer)
    assert (error.partial.content, error.partial.finish_reason) == ("Hi", None)


def folded(views: list[Chunk]) -> ChatReply:
    fold = Fold()
    for view in views:
        fold.add_chunk(view)
    return fold.reply()


@pytest.mark.parametrize("name", ["two tools", "reasoning"])
def test_case_04_a_stream_cut_at_any_byte_has_no_end(name: str) -> None:
    stream = b"".join(events(SCENARIOS[name]))
    last = stream.rindex(b"event: response.completed")
    full = folded(ResponsesReading(WHO, "m").views(SseReader().feed(stream))[0])
    assert full.finish_reason == "tool_calls"
    for k in range(0, last, 7):
        reading, reader = ResponsesReading(WHO, "m"), SseReader()
        views, _, failure = reading.views(reader.feed(stream[:k]))
        assert failure is None
        rest, _, failure = reading.views(reader.close())
        assert not reading.done
        part = folded([*views, *rest])
        assert part.finish_reason is None
        assert full.content.startswith(part.content)
        assert failure is None or isinstance(failure, BadAnswer)


FAILURES: dict[str, tuple[dict[str, Any], type[LlmError]]] = {
    "too long": ({"code": "context_length_exceeded", "message": "Because."}, TooLong),
    "rate limited": ({"code": "rate_limit_exceeded", "message": "Because."}, RateLimited),
    "broken": ({"code": "server_error", "message": "Because."}, Unavailable),
    "slow": ({"code": "vector_store_timeout", "message": "Because."}, Unavailable),
    "forbidden": ({"code": "image_content_policy_violation", "message": "Because."}, Refused),
    "wrong": ({"code": "invalid_prompt", "message": "Because."}, BadRequest),
    "without a code": ({"message": "Because."}, Unavailable),
    "nothing": ({}, Unavailable),
    "an object": ({"code": {"deep": 1}, "message": "Because."}, Unavailable),
    "a number": ({"code": 500, "message": "Because."}, Unavailable),
}


FORMS = [(case, form) for case in FAILURES for form in ("failed", "flat", "nested", "bare", "whole")]


@pytest.mark.parametrize(("case", "form"), [row for row in FORMS if row != ("nothing", "bare")])
async def test_a_failed_response_is_the_error_that_it_names(upstream: Upstream, case: str, form: str) -> None:
    said, kind = FAILURES[case]
    forms: dict[str, dict[str, Any]] = {
        "failed": {"type": "response.failed", "response": {"status": "failed", "error": said}},
        "flat": {"type": "error", "param": None, **said},
        "nested": {"type": "error", "error": said},
        "bare": {"error": said},
        "whole": {"status": "failed", "error": said, "output": []},
    }
    data = [f"data: {json.dumps(one)}\n\n".encode() for one in (begun(), forms[form])]
    answer = Plain(forms[form]) if form == "whole" else Stream(data, done=False)
    error = await fails(upstream, answer)
    assert type(error) is kind
    assert (error.message, error.type) == (said.get("message", "no reason given"), None)
    if form != "whole":
        began = [data[0], *written([delta("output_text", "Hi", 0)]), data[1]]
        broken = await fails(upstream, Stream(began, done=False))
        assert type(broken) is BadAnswer, "after its start an answer is not begun again"
        assert (broken.message, broken.code) == (error.message, error.code)


BROKEN = {
    "not JSON": b"data: {]\n\n",
    "a number": b"data: 5\n\n",
    "a delta of a wrong type": b'data: {"type": "response.output_text.delta", "delta": 5}\n\n',
    "an item of a wrong type": b'data: {"type": "response.output_item.done", "item": 5}\n\n',
    "arguments of nothing": b'data: {"type": "response.function_call_arguments.delta", "delta": "x"}\n\n',
    "invalid UTF-8": b'data: {"type": "response.output_text.delta", "delta": "\xff"}\n\n',
    "a deep one": b"data: " + b'{"x":' * 50_000 + b"\n\n",
    "an end that is none": b'data: {"type": "response.completed", "response": {"status": "cancelled"}}\n\n',
}


@pytest.mark.parametrize("case", BROKEN)
async def test_case_06_what_is_no_event_gives_one_typed_error(upstream: Upstream, case: str) -> None:
    stream = [*written([begun(), delta("output_text", "Hi", 0)]), BROKEN[case], *written([ended()])]
    error = await fails(upstream, Stream(stream, done=False), heard := Heard())
    assert type(error) is BadAnswer
    assert error.partial.content == heard.text == "Hi"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"output": 5}', b'{"status": "in_progress", "output": []}'])
async def test_case_06_a_whole_answer_that_is_none_is_a_bad_answer(upstream: Upstream, body: bytes) -> None:
    assert type(await fails(upstream, Plain(body))) is BadAnswer
