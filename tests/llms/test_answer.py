"""`Answer`: what is held back until something is said, what an error leaves behind, and what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import BadAnswer, LlmError, RateLimited, Refused, TimedOut, Unavailable
from penstock.events import Chunks, Used
from penstock.llms.answer import MOST_HELD, Answer, Broke, NativeReading, Reading, Whole
from penstock.llms.base import accounted
from penstock.llms.failures import Who
from penstock.llms.openai import ChatReading, Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta, Usage
from penstock.policies.fallback import fallback
from penstock.policies.retry import retry
from penstock.policies.timeout import Deadline
from penstock.run import Run, execute
from penstock.testing import Heard, ScriptedLlm
from tests.rig.upstream import Stream, Upstream, chunk, text_stream

ASK = ChatRequest.of("Hello")
WHO = Who("rig")
PROMPT = 100
ROLE = chunk(role="assistant", content="")
OVERLOADED = {"error": {"message": "Overloaded", "code": 503}}
COUNTED = chunk(usage={"prompt_tokens": 50, "completion_tokens": 0, "total_tokens": 50})


def frame(said: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(said).encode()


class Reads:
    """A stream whose network reads are those given."""

    def __init__(self, *reads: bytes) -> None:
        self._reads = list(reads)

    async def block(self) -> bytes:
        return self._reads.pop(0) if self._reads else b""

    async def drain(self) -> None:
        """Nothing is left."""


async def answered(source: Reads | bytes, reading: Reading | None = None) -> tuple[Heard, ChatReply | LlmError]:
    """What is told of a stream or a body, and how it ended."""

    async def call(_: object, run: Run) -> ChatReply:
        answer = Answer(WHO, run, Deadline(5), reading=reading or ChatReading(WHO), prompt=lambda: PROMPT)
        try:
            async with accounted(answer.account):
                return await (answer.whole(source) if isinstance(source, bytes) else answer.stream(source))
        except LlmError as error:
            raise answer.with_partial(error) from error.__cause__

    heard = Heard()
    try:
        return heard, await execute(call, None, heard)
    except LlmError as error:
        return heard, error


def told(heard: Heard) -> list[bytes | None]:
    return [event.data for event in heard.events if isinstance(event, Chunks)]


def counts(heard: Heard) -> list[tuple[int, int, bool]]:
    found = [event.usage for event in heard.events if isinstance(event, Used)]
    return [(usage.prompt, usage.completion, usage.partial) for usage in found]


async def test_chunks_that_say_nothing_are_told_untouched_and_in_order_once_something_is_said() -> None:
    reads = [frame(each) for each in (ROLE, COUNTED, chunk("Hi"), chunk(finish="stop"))]
    heard, reply = await answered(Reads(*reads, b"data: [DONE]\n\n"))
    assert isinstance(reply, ChatReply)
    assert told(heard) == reads
    assert (reply.content, heard.text) == ("Hi", "Hi")


@pytest.mark.parametrize(("code", "kind"), [(503, Unavailable), (429, RateLimited)])
async def test_case_09_an_error_before_anything_is_said_is_of_its_own_class_and_is_counted(
    code: int, kind: type[LlmError]
) -> None:
    error = {"error": {"message": "No.", "code": code}}
    for reads in ([ROLE, COUNTED, error], [COUNTED, ROLE, error]):
        for source in (Reads(*map(frame, reads)), Reads(b"".join(map(frame, reads)))):
            heard, ended = await answered(source)
            assert (type(ended), told(heard)) == (kind, [])
            assert counts(heard) == [(50, 0, False)]


async def test_an_error_after_something_was_said_is_a_bad_answer() -> None:
    heard, ended = await answered(Reads(frame(ROLE), frame(chunk("Hi")), frame(OVERLOADED)))
    assert isinstance(ended, BadAnswer)
    assert (ended.partial.content, len(told(heard))) == ("Hi", 2)


async def test_a_stream_that_ends_without_saying_anything_is_told_and_closed() -> None:
    heard, reply = await answered(Reads(frame(ROLE), b"data: [DONE]\n\n"))
    assert isinstance(reply, ChatReply)
    assert (reply.content, reply.finish_reason) == ("", "stop")
    assert told(heard) == [frame(ROLE), None]
    heard, ended = await answered(Reads(frame(ROLE)))
    assert (type(ended), told(heard)) == (BadAnswer, [])


SPEAKING: dict[str, dict[str, Any]] = {
    "text": {"content": "x"},
    "thought": {"role": "assistant", "content": "", "reasoning_content": "x"},
    "refusal": {"role": "assistant", "refusal": "x"},
    "call": {"role": "assistant", "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]},
    "what no view names": {"audio": {"data": "x"}},
    "extra": {"role": "assistant", "extra_content": {"google": {}}},
}


@pytest.mark.parametrize("said", SPEAKING)
async def test_a_chunk_that_says_something_is_not_held(said: str) -> None:
    first = chunk() | {"choices": [{"index": 0, "delta": SPEAKING[said], "finish_reason": None}]}
    heard, ended = await answered(Reads(frame(first), frame(OVERLOADED)))
    assert (type(ended), len(told(heard))) == (BadAnswer, 1)


async def test_only_so_much_is_held() -> None:
    heard, ended = await answered(Reads(*[frame(ROLE)] * (MOST_HELD + 1), frame(OVERLOADED)))
    assert (type(ended), len(told(heard))) == (BadAnswer, MOST_HELD + 1)


async def test_case_09_a_service_that_is_overloaded_after_its_first_chunk_is_asked_again(upstream: Upstream) -> None:
    upstream.script(Stream([ROLE, OVERLOADED]), Stream(text_stream("one two")), *[Stream([ROLE, OVERLOADED])] * 2)
    llm = Gpt(model="m", api_key="k", base_url=upstream.base_url, policies=[retry(attempts=2, base_s=0)])
    assert (await execute(llm, ASK)).content == "one two"
    assert (await execute(fallback(("small", ScriptedLlm("small")))(llm), ASK)).content == "small"
    assert len(upstream.chats) == 4


async def test_a_stall_before_anything_is_said_is_a_time_out(upstream: Upstream) -> None:
    upstream.script(Stream([ROLE, chunk("late")], delay_s=2))
    llm = Gpt(model="m", api_key="k", base_url=upstream.base_url, limits=Limits(idle_s=0.1, total_s=9))
    heard = Heard()
    with pytest.raises(TimedOut, match=r"within 0\.1 s after it began"):
        await execute(llm, ASK, heard)
    assert told(heard) == []


class Breaking(NativeReading):
    """Says a text, then breaks with a view beside its error."""

    def __init__(self, error: LlmError, text: str | None) -> None:
        choices = [] if text is None else [ChunkChoice(delta=Delta("assistant", text))]
        self._broke = Broke(error, Chunk(choices, usage=Usage(50, 7, 57)))

    def view(self, payload: bytes) -> Chunk | None:
        raise self._broke

    def whole(self, body: bytes) -> Whole:
        raise self._broke


@pytest.mark.parametrize("source", [b"{}", b"data: {}\n\n"], ids=["whole", "streamed"])
async def test_row_a15_what_comes_beside_an_error_is_counted(source: bytes) -> None:
    blocked = Refused("no")
    heard, ended = await answered(_source(source), Breaking(blocked, None))
    assert (ended, counts(heard), told(heard)) == (blocked, [(50, 7, False)], [])
    cut = BadAnswer("no")
    heard, ended = await answered(_source(source), Breaking(cut, "half"))
    assert isinstance(ended, BadAnswer)
    assert (ended is cut, cut.partial.content, counts(heard)) == (True, "half", [(50, 7, False)])


def _source(source: bytes) -> Reads | bytes:
    return source if source == b"{}" else Reads(source)


@pytest.mark.parametrize(
    ("reported", "counted"),
    [
        (None, (PROMPT, 2, True)),
        ((0, 0), (PROMPT, 2, True)),
        ((0, 9), (PROMPT, 9, True)),
        ((30, 0), (30, 0, False)),
        ((30, 9), (30, 9, False)),
    ],
)
async def test_row_a15_of_what_no_report_counts_there_is_an_estimate(
    reported: tuple[int, int] | None, counted: tuple[int, int, bool]
) -> None:
    end = chunk(finish="stop")
    if reported is not None:
        prompt, completion = reported
        end["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": sum(reported)}
    heard, _ = await answered(Reads(frame(chunk("Hi")) + frame(end), b"data: [DONE]\n\n"))
    assert counts(heard) == [counted]
