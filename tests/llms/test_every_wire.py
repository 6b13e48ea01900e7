"""The one table: what is asked and answered is the same on every wire; a further provider joins with one line."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import msgspec
import pytest

from penstock.errors import (
    BadAnswer,
    BadRequest,
    LlmError,
    RateLimited,
    TimedOut,
    TooLong,
    Transient,
    Unauthorized,
    Unavailable,
)
from penstock.events import Chunks, Event, Used
from penstock.llms.anthropic import Claude
from penstock.llms.gemini import Gemini
from penstock.llms.openai import Gpt
from penstock.llms.remote import RemoteLlm
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, Message, ToolCall
from penstock.outcome import Cancelled, Failed, Finished
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.native import SCENARIOS, WIRES, Failure, Scenario, native_answer
from tests.rig.native.scenarios import PNG, Ending
from tests.rig.upstream import Plain, Received, Silence, Stream, Upstream
from tests.rig.upstream import upstream as run_upstream

KEY = "sk-kanarie-4f9a7c1e2b8d6035"
IDLE_S = 0.15


@dataclass(frozen=True, slots=True)
class Provider:
    """A way to make its LLM, and the fields of the scenarios that its wire has no words for."""

    llm: Callable[..., RemoteLlm]
    refuses: frozenset[str] = frozenset()


PROVIDERS: dict[str, Provider] = {
    "openai": Provider(Gpt),
    "openai_responses": Provider(partial(Gpt, api="responses"), refuses=frozenset(("stop",))),
    "anthropic": Provider(Claude),
    "gemini": Provider(Gemini),
}
KINDS: dict[str, type[LlmError]] = {
    "too long": TooLong,
    "rate limited": RateLimited,
    "overloaded": Unavailable,
    "bad key": Unauthorized,
    "bad request": BadRequest,
}
# What must be in the request, whatever its words.
SENT: dict[str, Sequence[str]] = {
    "text": ["Be brief.", "Say hello."],
    "image": ["What is this?", PNG],
    "one tool": ["weather", "city"],
    "two tools": ["weather", "clock", "zone"],
    "tool result": ["I will look.", "fr", "CET", "sunny", "12:00"],
    "json schema": ["days", "city"],
}
GOOD = [name for name, scenario in SCENARIOS.items() if scenario.failure is None]
each_provider = pytest.mark.parametrize("name", PROVIDERS)
each_way = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@pytest.fixture(scope="module")
def serving() -> Iterator[Upstream]:
    """One service for all tests of this file."""
    with run_upstream() as served:
        yield served


@pytest.fixture
def service(serving: Upstream) -> Upstream:
    """The service as if it were new."""
    serving.requests.clear()
    serving.closed_early.clear()
    serving.default = native_answer
    return serving


def llm_of(name: str, service: Upstream, scenario: Scenario, **options: Any) -> RemoteLlm:
    limits = Limits(idle_s=IDLE_S, total_s=20)
    made = {"model": scenario.name, "api_key": KEY, "base_url": service.base_url, "limits": limits, **options}
    return PROVIDERS[name].llm(**made)


def asked(name: str, scenario: Scenario, *, stream: bool) -> ChatRequest:
    params = {key: value for key, value in scenario.params.items() if key not in PROVIDERS[name].refuses}
    return ChatRequest(messages=scenario.messages, params=params, stream=stream)


async def fails(llm: RemoteLlm, request: ChatRequest, heard: Heard) -> LlmError:
    with pytest.raises(LlmError) as raised:
        await execute(llm, request, heard)
    assert heard.end == Failed(raised.value)
    return raised.value


def called(calls: Sequence[ToolCall]) -> list[tuple[str, str, Any]]:
    return [(call.id, call.name, json.loads(call.arguments)) for call in calls]


def said(reply: ChatReply) -> Any:
    """A reply, its arguments as values, without the time it was made at."""
    (choice,) = reply.choices
    plain = msgspec.structs.replace(choice, tool_calls=())
    extras = [call.extra_content for call in choice.tool_calls]
    return reply.id, reply.model, reply.usage, plain, called(choice.tool_calls), extras


def used(heard: Heard) -> list[Used]:
    return [event for event in heard.events if isinstance(event, Used)]


def check_failure(error: LlmError, failure: Failure, provider: str) -> None:
    assert type(error) is KINDS[failure.kind]
    assert (error.status, error.provider, error.retry_after) == (failure.status, provider, failure.retry_after)
    assert error.retryable is isinstance(error, Transient)
    assert failure.message in str(error)


def check_broken(error: LlmError, ends: Ending, heard: Heard) -> None:
    """Cut and stalled streams: what had come is kept, told, and counted."""
    assert type(error) is BadAnswer
    assert isinstance(error.partial, ChatReply)
    assert error.partial.content == heard.text == "one two three"
    assert error.partial.finish_reason is None
    assert ("stalled: nothing more came" in str(error)) == (ends == "stall")
    (counted,) = used(heard)
    assert counted.usage.partial
    assert counted.usage == error.partial.usage
    assert counted.usage.prompt > 0
    assert abs(counted.usage.completion - 3) <= 1


def check_cut(heard: Heard, full: ChatReply, *, may_end: bool) -> None:
    """A stream without its end is a failure, unless all that it lacks is the end mark and the usage before it."""
    if isinstance(heard.end, Finished):
        assert may_end
        assert heard.end.result.choices == full.choices
        return
    assert isinstance(heard.end, Failed)
    begun = any(isinstance(event, Chunks) for event in heard.events)
    assert isinstance(heard.end.error, BadAnswer) or not begun
    assert len(used(heard)) in ({1} if begun else {0, 1})  # what is held back as it says nothing is counted, too
    assert all(event.usage.partial or event.usage == full.usage for event in used(heard))


def check_answer(reply: ChatReply, scenario: Scenario, heard: Heard) -> None:
    assert heard.end == Finished(reply)
    assert heard.text == reply.content == "".join(scenario.text)
    assert called(reply.tool_calls) == called(scenario.calls)
    assert reply.reasoning == "".join(scenario.reasoning)
    assert reply.finish_reason == scenario.finish
    assert (reply.model, len(reply.choices)) == (scenario.name, 1)
    assert reply.id
    usage = reply.usage
    assert usage is not None
    assert (usage.prompt, usage.cached, usage.completion, usage.reasoning) == scenario.usage
    assert not usage.partial
    assert [event.usage for event in used(heard)] == [usage]


@each_way
@pytest.mark.parametrize("case", SCENARIOS)
@each_provider
async def test_row_c2_every_scenario_is_the_same_on_every_wire(
    service: Upstream, name: str, case: str, stream: bool
) -> None:
    scenario, heard = SCENARIOS[case], Heard()
    llm, request = llm_of(name, service, scenario), asked(name, scenario, stream=stream)
    if scenario.failure is not None:
        check_failure(await fails(llm, request, heard), scenario.failure, llm.provider)
        assert not used(heard)
    elif stream and scenario.ends != "end":
        check_broken(await fails(llm, request, heard), scenario.ends, heard)
    else:
        check_answer(await execute(llm, request, heard), scenario, heard)
    (received,) = service.chats
    assert KEY in "".join(received.headers.values())
    assert KEY not in received.path
    assert [mark for mark in SENT.get(case, ()) if mark not in received.body.decode()] == []


def test_every_wire_of_the_service_is_in_the_table() -> None:
    assert set(PROVIDERS) == {wire.NAME for wire in WIRES}


@pytest.mark.parametrize(
    ("name", "param"), [(name, param) for name, made in PROVIDERS.items() for param in sorted(made.refuses)]
)
async def test_row_c2_what_a_wire_has_no_words_for_is_refused(service: Upstream, name: str, param: str) -> None:
    scenario = SCENARIOS["text"]
    error = await fails(llm_of(name, service, scenario), ChatRequest.of("Hi", **scenario.params), Heard())
    assert (type(error), error.status, error.code) == (BadRequest, 400, "unsupported_parameter")
    assert error.param == param
    assert not service.requests


@each_way
@each_provider
async def test_row_c2_what_a_provider_wants_back_is_sent_with_the_next_turn(
    service: Upstream, name: str, stream: bool
) -> None:
    scenario, after = SCENARIOS["reasoning"], SCENARIOS["tool result"]
    reply = await execute(llm_of(name, service, scenario), asked(name, scenario, stream=stream))
    message = json.loads(json.dumps(reply.message))  # as a client stores it
    result: Message = {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "sunny"}
    again = ChatRequest(messages=[*scenario.messages, message, result], params=scenario.params)
    last = await execute(llm_of(name, service, after), again)
    assert last.content == "".join(after.text)
    given = any(
        scenario.signature in event.decode() for wire in WIRES if name == wire.NAME for event in wire.events(scenario)
    )
    body = service.chats[1].body.decode()
    assert (scenario.signature in body) is given
    assert body.count("sunny") == 1


@pytest.mark.parametrize("case", GOOD)
@each_provider
async def test_case_07_streamed_and_whole_are_equal(service: Upstream, name: str, case: str) -> None:
    scenario = SCENARIOS[case]
    if scenario.ends != "end":
        scenario = SCENARIOS["two tools"]
    streamed, whole = [
        await execute(llm_of(name, service, scenario), asked(name, scenario, stream=stream)) for stream in (True, False)
    ]
    assert said(streamed) == said(whole)


@pytest.mark.parametrize("framed", [True, False], ids=["broken off", "ended early"])
@each_provider
async def test_case_04_a_stream_cut_after_any_event_is_never_half_an_answer(
    service: Upstream, name: str, framed: bool
) -> None:
    (wire,) = [wire for wire in WIRES if name == wire.NAME]
    for case in ("two tools", "reasoning"):
        scenario, events = SCENARIOS[case], wire.events(SCENARIOS[case])
        llm, request = llm_of(name, service, scenario), asked(name, scenario, stream=True)
        full = await execute(llm, request)
        for k in range(len(events)):
            cut = Stream(events, cut_after=k, done=False) if framed else Stream(events[:k], done=False)
            service.script(cut)
            heard = Heard()
            with suppress(BadAnswer, Unavailable):
                await execute(llm, request, heard)
            check_cut(heard, full, may_end=not framed)


@each_provider
async def test_case_08_tool_calls_come_whole_and_one_after_another(service: Upstream, name: str) -> None:
    scenario, heard = SCENARIOS["two tools"], Heard()
    await execute(llm_of(name, service, scenario), asked(name, scenario, stream=True), heard)
    views = [view for event in heard.events if isinstance(event, Chunks) for view in event.views]
    pieces = [piece for view in views for choice in view.choices for piece in choice.delta.tool_calls or ()]
    indexes = [piece.index for piece in pieces]
    assert indexes == sorted(indexes, key=lambda index: index if index is not None else -1)
    for index, call in enumerate(scenario.calls):
        own = [piece for piece in pieces if piece.index == index]
        named = [(piece.id, piece.type, piece.function and piece.function.name) for piece in own]
        assert named == [(call.id, "function", call.name), *[(None, None, None)] * (len(own) - 1)]


@each_provider
async def test_case_05_the_idle_limit_holds_within_a_tenth(service: Upstream, name: str) -> None:
    at: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, Chunks):
            at.append(monotonic())

    scenario = SCENARIOS["stalled"]
    llm = llm_of(name, service, scenario, limits=Limits(idle_s=0.3))
    with pytest.raises(BadAnswer, match=r"stalled: nothing more came within 0\.3 s"):
        await execute(llm, asked(name, scenario, stream=True), listen)
    assert 0.27 <= monotonic() - at[-1] <= 0.6
    healthy = SCENARIOS["text"]
    reply = await execute(llm_of(name, service, healthy), asked(name, healthy, stream=True))
    assert reply.content == "".join(healthy.text), "the next call passes"


@each_way
@each_provider
async def test_case_05_silence_ends_within_the_total_limit(service: Upstream, name: str, stream: bool) -> None:
    service.script(Silence())
    scenario = SCENARIOS["text"]
    llm, heard = llm_of(name, service, scenario, limits=Limits(total_s=0.1)), Heard()
    assert type(await fails(llm, asked(name, scenario, stream=stream), heard)) is TimedOut
    assert not used(heard)


@each_way
@each_provider
async def test_case_01_a_client_that_leaves_before_a_token_closes_the_call(
    service: Upstream, name: str, stream: bool
) -> None:
    service.script(Silence())
    scenario, heard = SCENARIOS["text"], Heard()
    task = asyncio.create_task(execute(llm_of(name, service, scenario), asked(name, scenario, stream=stream), heard))
    await asyncio.to_thread(service.wait_requests)
    await leave(task, service)
    assert heard.events == [Cancelled()]


async def leave(task: asyncio.Task[ChatReply], service: Upstream) -> None:
    """Cancel a call; the service sees its connection closed within 1 s."""
    (request,) = service.chats
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1):
        while all(closed.request is not request for closed in service.closed_early):
            await asyncio.sleep(0.005)


@each_provider
async def test_case_14_a_client_that_leaves_amid_the_answer_is_counted_once(service: Upstream, name: str) -> None:
    scenario, heard, begun = SCENARIOS["stalled"], Heard(), asyncio.Event()

    def listen(event: Event) -> None:
        heard(event)
        if heard.text == "one two three":
            begun.set()

    llm = llm_of(name, service, scenario, limits=Limits(idle_s=30))
    task = asyncio.create_task(execute(llm, asked(name, scenario, stream=True), listen))
    await asyncio.wait_for(begun.wait(), 5)
    await leave(task, service)
    assert isinstance(heard.end, Cancelled)
    (counted,) = used(heard)
    assert counted.usage.partial
    assert counted.usage.prompt > 0
    assert abs(counted.usage.completion - 3) <= 1
    assert (counted.model, counted.provider) == (scenario.name, llm.provider)


def telling(request: Received) -> Plain:
    """A service that repeats the key it was given, in every wire's error."""
    for wire in WIRES:
        if wire.asked(request.path, request.json) is not None:
            body, headers = wire.failure(Failure(401, "bad key", f"no such key: {KEY}, {KEY}"))
            return Plain(body, status=401, headers={**headers, "x-request-id": KEY, "request-id": KEY})
    raise AssertionError(request.path)


@each_provider
async def test_row_c10_case_25_the_key_is_in_no_error_repr_or_event(service: Upstream, name: str) -> None:
    texts: list[str] = []
    for case, scenario in [*SCENARIOS.items(), ("told", SCENARIOS["text"])]:
        if case == "told":
            service.default = telling
        llm, heard = llm_of(name, service, scenario), Heard()
        texts += [repr(llm), repr(llm.secret), repr(vars(llm))]
        try:
            texts.append(repr(await execute(llm, asked(name, scenario, stream=True), heard)))
        except LlmError as error:
            texts += [repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
        texts.append(repr(heard.events))
    service.default = native_answer
    text = "\n".join(texts)
    assert "no such key: ***" in text
    for start in range(len("sk-"), len(KEY) - 7):
        assert KEY[start : start + 8] not in text
