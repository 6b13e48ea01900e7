"""The policies around real calls: over sockets, in the order in which they nest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest

from penstock.errors import BadAnswer, BadRequest, LimitReached, LlmError, RateLimited, TimedOut, Unavailable
from penstock.events import Chunks, Event, Retrying, Switched, Text
from penstock.llms.openai import Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest
from penstock.policies import wrap
from penstock.policies.balance import Deployment, balance
from penstock.policies.breaker import breaker
from penstock.policies.budget import budget
from penstock.policies.fallback import fallback
from penstock.policies.limit import limit
from penstock.policies.principals import per_principal
from penstock.policies.retry import retry
from penstock.run import Executor, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm
from tests.rig.upstream import Answer, Plain, Refuse, Silence, Stream, Upstream, error_body, text_stream, upstream

WORDS = "one two three four five"
ASK, STREAM = ChatRequest.of(WORDS), ChatRequest.of(WORDS, stream=True)
FAILURES: dict[str, Answer] = {
    "429": Plain(error_body("slow down"), status=429),
    "500": Plain(b"<html>", status=500),
    "503": Plain(error_body("down"), status=503),
    "401": Plain(error_body("no such key"), status=401),
    "402": Plain(error_body("no credit"), status=402),
    "404": Plain(error_body("no such model", code="model_not_found"), status=404),
    "nothing": Refuse(),
    "reset": Refuse(reset=True),
    "no http": b"NOT HTTP\r\n\r\n",
    "no json": Plain(b"{", headers={"content-type": "application/json"}),
    "cut before the first chunk": Stream(text_stream(WORDS), cut_after=0, early_headers=True),
    "error in place of an answer": Stream([error_body("overloaded", code="server_error")]),
    "silence": Silence(),
}


@pytest.fixture
def second() -> Iterator[Upstream]:
    with upstream() as served:
        yield served


def gpt(served: Upstream, *, key: str = "key", total_s: float = 5.0, policies: Any = ()) -> Gpt:
    limits = Limits(total_s=total_s)
    return Gpt(model="m", api_key=key, base_url=served.base_url, limits=limits, policies=policies)


def spoken(heard: Heard) -> bytes:
    """The bytes of a stream as they were told."""
    return b"".join(event.data or b"" for event in heard.events if isinstance(event, Chunks))


@pytest.mark.parametrize("request_", [ASK, STREAM], ids=["whole", "streamed"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_case_09_a_failure_before_the_first_byte_is_answered_by_another_model(
    upstream: Upstream, second: Upstream, failure: str, request_: ChatRequest
) -> None:
    upstream.script(FAILURES[failure])
    plain, heard = Heard(), Heard()
    expected = await execute(gpt(second), request_, plain)
    executor = fallback(("second", gpt(second)))(gpt(upstream, total_s=0.1 if failure == "silence" else 5.0))
    reply = await execute(executor, request_, heard)
    assert reply.content == heard.text == expected.content
    assert spoken(heard) == spoken(plain)
    switched, *_ = heard.events
    assert isinstance(switched, Switched)
    assert isinstance(switched.error, LlmError)
    assert (len(upstream.chats), len(second.chats)) == (1, 2)


async def test_case_09_after_the_first_byte_a_cut_is_told_and_no_other_model_is_asked(
    upstream: Upstream, second: Upstream
) -> None:
    chunks = text_stream(WORDS)
    executor = fallback(("second", gpt(second)))(retry(base_s=0)(gpt(upstream)))
    for sent in range(2, len(chunks)):  # the first one says nothing yet
        upstream.script(Stream(chunks, cut_after=sent, reset=sent % 2 == 0))
        heard = Heard()
        with pytest.raises(BadAnswer) as caught:
            await execute(executor, STREAM, heard)
        assert isinstance(caught.value.partial, ChatReply)
        assert caught.value.partial.content == heard.text == " ".join(WORDS.split()[: sent - 1])
    assert (len(upstream.chats), second.chats) == (len(chunks) - 2, [])


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (405, 1), (413, 1), (422, 1), (429, 3), (503, 3)])
async def test_case_09_at_most_three_attempts_and_400s_are_tried_once(
    upstream: Upstream, second: Upstream, status: int, asked: int
) -> None:
    upstream.default = lambda _: Plain(error_body("no"), status=status)
    executor = fallback(("second", gpt(second)))(gpt(upstream, policies=[retry(attempts=3, base_s=0.001)]))
    with suppress(BadRequest):
        await execute(executor, ASK)
    assert (len(upstream.chats), len(second.chats)) == (asked, 0 if asked == 1 else 1)


async def test_case_09_retry_after_is_waited_as_the_service_wrote_it(upstream: Upstream) -> None:
    """Two seconds are a tenth of that here; what is announced is checked in full."""
    slow = Plain(error_body("slow down"), status=429, headers={"retry-after": "2"})
    upstream.script(slow, Plain(error_body("slow down"), status=429, headers={"retry-after": "0.2"}))
    llm = gpt(upstream, policies=[retry(base_s=0)])
    async with execute_stream(llm, STREAM) as execution:
        async for event in execution:
            assert isinstance(event, Retrying)
            assert (event.wait_s, event.attempt) == (2.0, 2)
            break
    began, heard = monotonic(), Heard()
    await execute(llm, STREAM, heard)
    assert heard.text == WORDS
    assert monotonic() - began >= 0.18
    first, again = upstream.chats[1:]
    assert again.at - first.at >= 0.18


async def test_a_key_that_is_not_accepted_is_left_alone(upstream: Upstream) -> None:
    def by_key(request: Any) -> Answer:
        if request.headers["authorization"] == "Bearer old":
            return Plain(error_body("no such key"), status=401)
        return Plain({**_completion, "id": "fine"})

    upstream.default = by_key
    executor = balance(
        [Deployment(key, gpt(upstream, key=key), 9.0 if key == "old" else 1.0) for key in ("old", "new")]
    )
    for _ in range(10):
        assert (await execute(executor, ASK)).content == "well"
    keys = [request.headers["authorization"] for request in upstream.chats]
    assert (keys.count("Bearer old"), keys.count("Bearer new")) == (1, 10)


_message = {"role": "assistant", "content": "well"}
_completion = {"object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "message": _message}]}


async def test_case_17_every_slot_comes_back_from_clients_that_leave_at_random(upstream: Upstream) -> None:
    upstream.default = lambda _: Stream(text_stream(WORDS), delay_s=0.002)
    chance, executor = random.Random(17), limit(concurrent=8)(gpt(upstream))

    async def leave() -> None:
        call = asyncio.ensure_future(execute(executor, STREAM))
        await asyncio.wait([call], timeout=chance.uniform(0, 0.02))
        call.cancel()
        with suppress(asyncio.CancelledError, LimitReached):
            await call

    for _ in range(12):
        await asyncio.gather(*(leave() for _ in range(16)))
    ended = await asyncio.gather(*(execute(executor, STREAM) for _ in range(16)), return_exceptions=True)
    assert [isinstance(one, LimitReached) for one in ended] == [False] * 8 + [True] * 8


async def test_case_16_an_answer_that_was_cut_is_paid_and_a_refused_call_reaches_nobody(upstream: Upstream) -> None:
    upstream.default = lambda _: Stream(text_stream(WORDS), cut_after=4)
    executor = budget(3)(gpt(upstream))
    with pytest.raises(BadAnswer):
        await execute(executor, STREAM)
    with pytest.raises(LimitReached, match="the budget of 3 is used up"):
        await execute(executor, STREAM)
    assert len(upstream.chats) == 1


async def test_a_fallback_goes_on_at_once_where_the_breaker_is_open(upstream: Upstream, second: Upstream) -> None:
    upstream.default = lambda _: Plain(error_body("down"), status=503)
    guarded = gpt(upstream, policies=[breaker(failures=1, reset_s=20), retry(attempts=2, base_s=0)])
    executor = fallback(("second", gpt(second)))(guarded)
    for _ in range(5):
        assert (await asyncio.wait_for(execute(executor, ASK), 1)).content == WORDS
    assert (len(upstream.chats), len(second.chats)) == (2, 5)


async def test_a_fallback_around_a_retry_tries_all_attempts_first() -> None:
    model, heard = ScriptedLlm(TimedOut("late")), Heard()
    await execute(fallback(("other", ScriptedLlm("b")))(retry(attempts=3, base_s=0)(model)), ASK, heard)
    assert [type(event) for event in heard.events[:3]] == [Retrying, Retrying, Switched]
    assert len(model.requests) == 3


async def test_a_retry_around_a_fallback_begins_with_the_first_again() -> None:
    model, other = ScriptedLlm(Unavailable("a")), ScriptedLlm(RateLimited("b", retry_after=0.0), "fine")
    reply = await execute(retry(base_s=0)(fallback(("other", other))(model)), ASK)
    assert (reply.content, len(model.requests), len(other.requests)) == ("fine", 2, 2)


def whole_stack(first: Any, spare: Any, other: Any) -> Executor[ChatRequest, ChatReply]:
    """Two deployments of a model, another model behind them, and limits for caller and model around it all."""
    sites = balance([Deployment("first", first), Deployment("spare", spare)])
    callers = per_principal({"local": [limit(requests_per_minute=4)]})
    bounds = [callers, limit(requests_per_minute=3), budget(1000, estimate=lambda _: 1)]
    guards = [breaker(failures=2, reset_s=20), retry(attempts=2, base_s=0)]
    return wrap(sites, [*bounds, fallback(("other", other)), *guards])


async def test_the_whole_stack_hides_what_it_can_and_counts_each_call_once() -> None:
    first, spare, other = (ScriptedLlm(Unavailable("a")), ScriptedLlm(Unavailable("b")), ScriptedLlm("at last"))
    executor, heard = whole_stack(first, spare, other), Heard()
    assert (await execute(executor, ASK, heard)).content == heard.text == "at last"
    said = [event.to if isinstance(event, Switched) else type(event).__name__ for event in heard.events]
    assert said == ["spare", "Retrying", "other", "Chunks", "Chunks", "Chunks", "Used", "Finished"]
    for _ in range(2):
        await execute(executor, ASK)
    for expected in ("limit of 3 requests", "limit of 3 requests"):
        with pytest.raises(LimitReached, match=expected):
            await execute(executor, ASK)
    assert (len(first.requests), len(spare.requests), len(other.requests)) == (3, 2, 3)  # then the breaker is open


async def test_a_stack_that_is_cancelled_leaves_nothing_behind() -> None:
    told = asyncio.Event()

    async def stuck(request: Any, run: Run) -> Any:
        await run.emit(Text("par"))
        told.set()
        await asyncio.Event().wait()

    stack = whole_stack(stuck, stuck, stuck)
    executor = limit(concurrent=1)(stack)
    heard: list[Event] = []
    for _ in range(3):
        told.clear()
        call = asyncio.ensure_future(execute(executor, ASK, heard.append))
        await told.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    with pytest.raises(LimitReached, match="limit of 3 requests"):
        await execute(executor, ASK)
    assert [type(event).__name__ for event in heard] == ["Text", "Cancelled"] * 3
