"""Fault scripts: each word does what it says, and fails as a real service's failure does."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any

import pytest

from penstock.errors import (
    BadAnswer,
    BadRequest,
    LlmError,
    PenstockError,
    RateLimited,
    TimedOut,
    Unavailable,
    UsageError,
)
from penstock.events import Chunks, Retrying, Text, Used
from penstock.llms.failures import Who, from_status
from penstock.llms.openai import Gpt
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta
from penstock.outcome import Failed
from penstock.policies import Policy, wrap
from penstock.policies.faults import KINDS, KNOWN, faults, parse
from penstock.policies.retry import retry
from penstock.run import Executor, Run, execute
from penstock.testing import Heard, ScriptedLlm
from tests.rig.upstream import Stream, Upstream, text_stream, usage_of

ASK = ChatRequest.of("Hello.")
WHOLE = ChatRequest.of("Hello.", stream=False)
WORDS = "one two three four"  # five chunks, the last one with the finish reason


def scripted(*policies: Policy) -> Executor[ChatRequest, ChatReply]:
    return wrap(ScriptedLlm(WORDS), policies)


async def ends(llm: Any, request: ChatRequest = ASK) -> str:
    """How a call ends, in a word: its text, or the class of its error."""
    try:
        reply: ChatReply = await execute(llm, request)
    except LlmError as error:
        return type(error).__name__
    return reply.content


def texts(heard: Heard) -> list[str]:
    return [event.text for event in heard.events if isinstance(event, Chunks)]


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("word", "said"), [("cut", "cut off"), ("malformed", "malformed")])
async def test_case_04_and_06_an_answer_that_breaks_ends_as_a_bad_answer(word: str, said: str, k: int) -> None:
    heard = Heard()
    with pytest.raises(BadAnswer, match=said) as raised:
        await execute(scripted(faults(f"{word} after {k} chunks")), ASK, heard)
    assert len(texts(heard)) == k
    assert heard.end == Failed(raised.value)
    assert not raised.value.retryable
    if k:
        assert raised.value.partial.content == heard.text == " ".join(WORDS.split(" ")[:k])


async def test_an_answer_of_fewer_chunks_is_whole() -> None:
    assert await ends(scripted(faults("cut after 5 chunks"))) == WORDS


@pytest.mark.parametrize("script", ["cut after 3 chunks", "malformed", "stall forever after 2 chunks"])
async def test_an_answer_in_one_piece_fails_whole(script: str) -> None:
    heard = Heard()
    with pytest.raises(LlmError) as raised:
        await execute(scripted(faults(script, total_s=0.01)), WHOLE, heard)
    assert heard.events == [Failed(raised.value)]


async def test_case_05_a_stall_ends_at_the_idle_limit() -> None:
    heard, began = Heard(), monotonic()
    with pytest.raises(BadAnswer, match=r"stalled: nothing more came within 0\.05 s") as raised:
        await execute(scripted(faults("stall forever after 3 chunks", idle_s=0.05)), ASK, heard)
    assert 0.05 <= monotonic() - began < 1
    assert raised.value.partial.content == heard.text == "one two three"


async def test_case_05_silence_ends_at_the_total_limit() -> None:
    began = monotonic()
    with pytest.raises(TimedOut, match=r"within 0\.05 s in all") as raised:
        await execute(scripted(faults("stall forever", idle_s=0.01, total_s=0.05)), ASK)
    assert 0.05 <= monotonic() - began < 1
    assert raised.value.retryable


async def test_case_05_slow_chunks_end_at_the_total_limit() -> None:
    with pytest.raises(BadAnswer, match=r"did not finish within 0\.05 s in all"):
        await execute(scripted(faults("slow 20ms", idle_s=1, total_s=0.05)), ASK)


@pytest.mark.parametrize("script", ["stall 40ms", "stall 0.04s after 2 chunks", "slow 10ms", "stall 40 ms once"])
async def test_a_delay_within_the_limits_only_delays(script: str) -> None:
    began = monotonic()
    assert await ends(scripted(faults(script))) == WORDS
    assert monotonic() - began >= 0.04


async def test_the_time_that_a_client_takes_does_not_count() -> None:
    began = monotonic()

    async def slowly(_: object) -> None:
        while monotonic() - began < 0.06:
            pass

    reply = await execute(scripted(faults("stall 1ms after 1 chunk; slow 1ms", total_s=0.05)), ASK, slowly)
    assert reply.content == WORDS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 418, 422, 425, 429, 500, 502, 503, 504, 529])
async def test_a_status_is_raised_as_the_one_of_a_service(status: int) -> None:
    real = from_status(status, {}, b"{}", who=Who("x"))
    with pytest.raises(type(real)) as raised:
        await execute(scripted(faults(str(status))), ASK)
    assert type(raised.value) is type(real)
    assert (raised.value.status, raised.value.retryable) == (status, real.retryable)


@pytest.mark.parametrize(("word", "error"), [("refuse", Unavailable), ("timeout", TimedOut)])
async def test_no_connection_is_retried_without_a_trace(word: str, error: type[LlmError]) -> None:
    heard = Heard()
    reply = await execute(scripted(retry(base_s=0), faults(f"{word} twice")), ASK, heard)
    assert reply.content == heard.text == WORDS
    assert [type(event.error) for event in heard.events if isinstance(event, Retrying)] == [error] * 2


async def test_case_09_retry_after_is_told() -> None:
    with pytest.raises(RateLimited) as raised:
        await execute(scripted(faults("429 retry-after 2s")), ASK)
    assert raised.value.retry_after == 2
    heard = Heard()
    await execute(scripted(retry(base_s=9), faults("429 twice retry-after 20ms")), ASK, heard)
    assert [event.wait_s for event in heard.events if isinstance(event, Retrying)] == [0.02, 0.02]


async def test_case_09_at_most_the_configured_attempts() -> None:
    heard = Heard()
    with pytest.raises(RateLimited):
        await execute(scripted(retry(attempts=3, base_s=0), faults("429 always")), ASK, heard)
    assert sum(isinstance(event, Retrying) for event in heard.events) == 2
    with pytest.raises(BadRequest):
        await execute(scripted(retry(base_s=0), faults("400 once")), ASK)


async def test_case_09_after_the_first_chunk_never_a_second_start() -> None:
    heard = Heard()
    with pytest.raises(BadAnswer):
        await execute(scripted(retry(base_s=0), faults("cut after 1 chunk once")), ASK, heard)
    assert texts(heard) == ["one"]


async def test_steps_are_met_in_their_order() -> None:
    llm = scripted(faults("429 twice; 500 once\n cut after 2 chunks 2 times"))
    met = [await ends(llm) for _ in range(6)]
    assert met == ["RateLimited", "RateLimited", "Unavailable", "BadAnswer", "BadAnswer", WORDS]


async def test_a_call_meets_delays_and_one_failure() -> None:
    heard, began = Heard(), monotonic()
    with pytest.raises(BadAnswer):
        await execute(
            scripted(faults(["cut after 4 chunks"]), faults("slow 5ms; stall 20ms after 2 chunks")), ASK, heard
        )
    assert monotonic() - began >= 0.04
    assert len(texts(heard)) == 4


async def test_what_happens_earlier_in_an_answer_is_met_first() -> None:
    heard = Heard()
    with pytest.raises(BadAnswer):
        await execute(scripted(faults("stall 1ms after 3 chunks; cut after 1 chunk")), ASK, heard)
    assert texts(heard) == ["one"]


async def test_every_third_call_and_a_share_of_them() -> None:
    llm = scripted(faults("every 3rd call: 500"))
    assert [await ends(llm) for _ in range(6)] == [WORDS, WORDS, "Unavailable"] * 2
    met = [await ends(scripted(faults("every 1st call 503"))), await ends(scripted(faults("100% 503")))]
    assert met == ["Unavailable"] * 2
    first, second = (scripted(faults("10% 503 seed 7")), scripted(faults("seed 7 10%: 503")))
    drawn = [await ends(first) for _ in range(200)]
    assert drawn == [await ends(second) for _ in range(200)]
    assert 5 < Counter(drawn)["Unavailable"] < 40


async def test_executors_with_the_same_policy_share_its_counts() -> None:
    policy = faults("500 once")
    assert [await ends(scripted(policy)), await ends(scripted(policy))] == ["Unavailable", WORDS]


@pytest.mark.parametrize("kept", [True, False])
async def test_an_event_of_several_chunks_is_parted_where_the_fault_falls(kept: bool) -> None:
    def view(n: int) -> Chunk:
        return Chunk(choices=[ChunkChoice(delta=Delta(content=str(n)))])

    async def grouped(_: ChatRequest, run: Run) -> None:
        for start in (0, 3):
            frames = b"".join(b"data: {%d}\n\n" % n for n in range(start, start + 3))
            views = [view(n) for n in range(start, start + 3)]
            await run.emit(Chunks(views=views, data=frames if kept else None))

    heard = Heard()
    with pytest.raises(BadAnswer):
        await execute(wrap(grouped, [faults("stall 1ms after 1 chunk; cut after 4 chunks")]), ASK, heard)
    told = [event for event in heard.events if isinstance(event, Chunks)]
    assert texts(heard) == ["0", "12", "3"]
    frames = [b"data: {0}\n\n", b"data: {1}\n\ndata: {2}\n\n", b"data: {3}\n\n"]
    assert [event.data for event in told] == (frames if kept else [None] * 3)


async def test_texts_are_counted_and_other_events_pass() -> None:
    async def speaks(_: str, run: Run) -> str:
        await run.child("else").emit(Text("not the answer"))
        for word in ("a", "b", "c"):
            await run.emit(Text(word))
        return "abc"

    heard = Heard()
    with pytest.raises(BadAnswer):
        await execute(wrap(speaks, [faults("cut after 2 chunks")]), "x", heard)
    assert heard.text == "ab"


async def test_a_failure_that_the_executor_keeps_to_itself_is_raised() -> None:
    async def careless(request: ChatRequest, run: Run) -> str:
        del request
        for _ in range(3):
            with contextlib.suppress(PenstockError):
                await run.emit(Text("x"))
        return "all is well"

    heard = Heard()
    with pytest.raises(BadAnswer):
        await execute(wrap(careless, [faults("cut after 1 chunk")]), ASK, heard)
    assert heard.text == "x"


async def test_a_real_llm_ends_as_if_its_service_had_failed(upstream: Upstream) -> None:
    stream = text_stream(WORDS, usage=usage_of(3, 4))
    upstream.script(Stream(stream, cut_after=3, delay_s=0.01), Stream(stream, delay_s=0.01))
    llm = Gpt(model="m", api_key="sk-test-key", base_url=upstream.base_url)
    ended: list[tuple[Any, ...]] = []
    for policy in ((), (faults("cut after 3 chunks"),)):
        heard = Heard()
        with pytest.raises(BadAnswer) as raised:
            await execute(wrap(llm, policy), ASK, heard)
        (used,) = [event.usage for event in heard.events if isinstance(event, Used)]
        ended.append((heard.text, raised.value.partial.choices, used.partial, used.prompt))
    assert ended[0] == ended[1]


async def test_the_partial_answer_is_what_was_told_not_what_was_read(upstream: Upstream) -> None:
    upstream.script(Stream(text_stream(WORDS)))
    llm = Gpt(model="m", api_key="sk-test-key", base_url=upstream.base_url)
    heard = Heard()
    with pytest.raises(BadAnswer) as raised:
        await execute(wrap(llm, [faults("cut after 2 chunks")]), ASK, heard)
    assert raised.value.partial.content == heard.text != WORDS


@pytest.mark.parametrize(
    "script",
    [
        "",
        " ; \n",
        "explode",
        "cut 3 chunks",
        "cut after three chunks",
        "cut after 3 chunks after 2 chunks",
        "cut twice once",
        "429 500",
        "twice",
        "600",
        "stall",
        "stall 2",
        "stall 2m",
        "slow forever",
        "refuse after 2 chunks",
        "cut retry-after 2s",
        "500 seed 7",
        "every 3rd call",
        "every 0th call: 500",
        "0% 500",
        "101% 500",
        "500 0 times",
        "every 2nd call 10% 500",
        ["429", "; 500"],
    ],
)
def test_a_script_that_is_not_understood_says_what_is_known(script: str | Sequence[str]) -> None:
    with pytest.raises(UsageError) as raised:
        faults(script)
    assert "known are" in raised.value.message or "meets no call" in raised.value.message


@pytest.mark.parametrize(
    ("script", "said"),
    [("429 for ever", "'for ever'"), ("cut twice once", "says twice 'once'"), ("500 seed 7", "'seed 7' does not go")],
)
def test_a_script_that_is_not_understood_is_quoted(script: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        faults(script)


def test_words_come_in_any_order_and_case() -> None:
    one, two = parse(["Every 2nd call: 429 TWICE retry-after 1.5s", "429 retry-after 1500ms twice every 2nd call"])
    assert (one.status, one.every, one.left, one.retry_after) == (two.status, two.every, two.left, two.retry_after)
    assert (one.status, one.every, one.left, one.retry_after) == (429, 2, 2, 1.5)


def test_what_is_known_names_every_kind() -> None:
    assert [kind for kind in KINDS if kind not in KNOWN.replace("a status", "status")] == []


def test_a_share_without_a_seed_is_drawn_anew() -> None:
    state = random.getstate()
    drawn = {tuple(fault.meets(n) for n in range(64)) for fault in parse(["50% 500"] * 3)}
    assert len(drawn) == 3
    assert len({id(fault.chance) for fault in parse(["50% 500"] * 3)}) == 3
    assert random.getstate() == state
