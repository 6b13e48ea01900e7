"""The laws that hold for every LLM; a new one joins with one line in `LLMS`."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from penstock.errors import BadRequest, LlmError, TimedOut
from penstock.events import Chunks, Event, Fold, Used
from penstock.llms.anthropic import Claude
from penstock.llms.base import BaseLlm
from penstock.llms.demo import Demo
from penstock.llms.gemini import Gemini
from penstock.llms.openai import Gpt
from penstock.llms.replay import Replay
from penstock.llms.replay.files import Asked, Recorded, text_of, write
from penstock.messages import ChatReply, ChatRequest, Message, ToolCall, Usage
from penstock.outcome import Cancelled, Failed, Finished
from penstock.policies import Policy
from penstock.policies.retry import retry
from penstock.policies.timeout import timeout
from penstock.run import Executor, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm
from tests.rig.answers import Answer, Plain, Received, Stream
from tests.rig.native import WIRES, Failure, Scenario
from tests.rig.upstream import Upstream

TEXT = "one two three"
SPEECH = Scenario("m", text=["one", " two", " three"], usage=(3, 0, 4, 0))
CALL = Scenario("m", calls=[ToolCall("c", "add", "{}")], finish="tool_calls", usage=(3, 0, 4, 0))
REFUSAL = Scenario("m", failure=Failure(400, "bad request", "no"))
STALLED = Scenario("m", text=["one", " two"], ends="stall")


class Sleepy(BaseLlm):
    """Has only `generate_content_async`."""

    def __init__(self, *, policies: Sequence[Policy] = (), fail: bool = False, slow: bool = False) -> None:
        super().__init__(model="sleepy", policies=policies)
        self.fail, self.slow = fail, slow

    async def generate_content_async(self, messages: str | Sequence[Message], **params: Any) -> str:
        await asyncio.sleep(30 if self.slow else 0)
        if self.fail:
            raise BadRequest("no", provider="sleepy")
        return TEXT


@dataclass(frozen=True, slots=True)
class Made:
    """How one LLM is made: as it is, failing with an `LlmError`, and too slow to finish."""

    llm: Callable[..., BaseLlm]
    failing: Callable[..., BaseLlm]
    slow: Callable[..., BaseLlm]


def remote(kind: Callable[..., BaseLlm]) -> Callable[[Upstream], Made]:
    """An LLM that is reached over HTTP, with a service that speaks its wire."""

    def made(upstream: Upstream) -> Made:
        def llm(speech: Scenario, **options: Any) -> BaseLlm:
            upstream.default = partial(spoken, speech)
            return kind(model="m", api_key="sk-test-key", base_url=upstream.base_url, **options)

        return Made(partial(llm, SPEECH), partial(llm, REFUSAL), partial(llm, STALLED))

    return made


def spoken(scenario: Scenario, request: Received) -> Answer:
    """A scenario on the wire that a request has come on; a call of a tool where one is offered."""
    asked = [(wire, how[1]) for wire in WIRES if (how := wire.asked(unquote(request.path), request.json)) is not None]
    ((wire, streamed),) = asked
    if scenario.failure is not None:
        return Plain(wire.failure(scenario.failure)[0], status=scenario.failure.status)
    if request.json.get("tools"):
        scenario = CALL
    if not streamed:
        return Plain(wire.whole(scenario))
    events = wire.events(scenario)
    return Stream([*events, b": wait\n\n"], done=False, stall_after=len(events) if scenario is STALLED else None)


def _demo(_: Upstream) -> Made:
    class Failing(Demo):
        """Is asked for what it cannot do."""

        async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
            return await super().__call__(ChatRequest.of("hi", stream=request.stream, n="many"), run)

    return Made(Demo, Failing, partial(Demo, pace_s=20))


def _scripted(_: Upstream) -> Made:
    class Slow(ScriptedLlm):
        """Stops after its first word."""

        async def _tell(self, *step: Any) -> None:
            await super()._tell(*step)
            await asyncio.sleep(30)

    error = BadRequest("no", provider="scripted")
    return Made(partial(ScriptedLlm, TEXT), partial(ScriptedLlm, error), partial(Slow, TEXT))


def _replay(_: Upstream) -> Made:
    folder = Path(tempfile.mkdtemp(prefix="recordings-"))
    atexit.register(shutil.rmtree, folder)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    for n, request in enumerate(REQUESTS.values()):
        deltas: list[dict[str, Any]] = (
            [{"tool_calls": [call]}] if request.params else [{"content": f" {word}"} for word in TEXT.split()]
        )
        choices: list[list[dict[str, Any]]] = [[{"delta": delta}] for delta in deltas]
        choices[0][0]["delta"]["role"], choices[-1][0]["finish_reason"] = "assistant", "stop"
        recorded = Recorded(
            request=Asked(messages=[dict(message) for message in request.messages], params=dict(request.params)),
            answer={"id": "r", "model": "m"},
            chunks=[{"after_s": 0.01 * place, "choices": choice} for place, choice in enumerate(choices)],
            usage=Usage(3, 4, 7),
            end="finished",
        )
        write(folder, str(n), text_of(recorded))
    return Made(partial(Replay, folder), partial(Replay, folder, model="other"), partial(Replay, folder, pace=1e5))


LLMS: dict[str, Callable[[Upstream], Made]] = {
    "Replay": _replay,
    "Gpt": remote(Gpt),
    "Gpt on the Responses API": remote(partial(Gpt, api="responses")),
    "Claude": remote(Claude),
    "Gemini": remote(Gemini),
    "Demo": _demo,
    "ScriptedLlm": _scripted,
    "text only": lambda _: Made(Sleepy, partial(Sleepy, fail=True), partial(Sleepy, slow=True)),
}
REQUESTS = {
    "streamed": ChatRequest.of("Say something."),
    "whole": ChatRequest.of("Say something.", stream=False),
    "with tools": ChatRequest.of(
        "What is 2 + 3?",
        tools=[{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}],
    ),
}


@pytest.fixture(params=LLMS)
def made(request: pytest.FixtureRequest, upstream: Upstream) -> Made:
    return LLMS[request.param](upstream)


def chunks_of(heard: Heard) -> list[Chunks]:
    return [event for event in heard.events if isinstance(event, Chunks)]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_the_reply_is_the_fold_of_what_was_told(made: Made, kind: str) -> None:
    reply = await execute(made.llm(), REQUESTS[kind], heard := Heard())
    fold = Fold()
    for event in heard.events:
        fold.add(event)
    folded = fold.reply(fold.usage)
    assert folded.choices == reply.choices
    assert (folded.model, folded.id, folded.created) == (reply.model, reply.id, reply.created)
    assert reply.usage is None or folded.usage is not None
    if reply.usage is not None and folded.usage is not None:
        assert (folded.usage.prompt, folded.usage.completion) == (reply.usage.prompt, reply.usage.completion)
    assert reply.finish_reason in {"stop", "tool_calls", "length"}
    assert heard.end == Finished(reply)


async def test_streamed_and_whole_say_the_same(made: Made) -> None:
    streamed, whole = [await execute(made.llm(), REQUESTS[kind]) for kind in ("streamed", "whole")]
    assert streamed.choices == whole.choices
    assert streamed.content
    assert streamed.usage == whole.usage


@pytest.mark.parametrize("kind", REQUESTS)
async def test_usage_is_told_once_after_the_answer(made: Made, kind: str) -> None:
    reply = await execute(made.llm(), REQUESTS[kind], heard := Heard())
    used = [n for n, event in enumerate(heard.events) if isinstance(event, Used)]
    assert len(used) == 1
    if used:
        assert used == [len(heard.events) - 2], "last, but for the end"
        event = heard.events[used[0]]
        assert isinstance(event, Used)
        assert event.usage == reply.usage
        assert event.provider
        assert event.model == reply.model


@pytest.mark.parametrize("kind", REQUESTS)
async def test_the_role_comes_once_and_first(made: Made, kind: str) -> None:
    await execute(made.llm(), REQUESTS[kind], heard := Heard())
    roles = [choice.delta.role for event in chunks_of(heard) for view in event.views for choice in view.choices]
    assert roles[0] == "assistant"
    assert not any(roles[1:])


@pytest.mark.parametrize("kind", REQUESTS)
async def test_tool_calls_are_whole_and_told_in_order(made: Made, kind: str) -> None:
    reply = await execute(made.llm(), REQUESTS[kind], heard := Heard())
    views = [view for event in chunks_of(heard) for view in event.views]
    indexes = [call.index for view in views for choice in view.choices for call in choice.delta.tool_calls or ()]
    assert indexes == [index for index in range(len(reply.tool_calls)) for _ in range(indexes.count(index))]
    assert all(call.id and call.name for call in reply.tool_calls)


async def test_a_cancel_while_streaming_ends_it_and_leaves_no_task(made: Made) -> None:
    before = asyncio.all_tasks()
    heard, begun = Heard(), asyncio.Event()

    def listen(event: Event) -> None:
        heard(event)
        begun.set()

    task = asyncio.create_task(execute(made.slow(), REQUESTS["streamed"], listen))
    with contextlib.suppress(TimeoutError):  # one that does not stream says nothing yet
        await asyncio.wait_for(begun.wait(), 0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert isinstance(heard.end, Cancelled)
    assert asyncio.all_tasks() == before
    assert sum(isinstance(event, Used) for event in heard.events) <= 1


async def test_leaving_a_pulled_stream_early_ends_it(made: Made) -> None:
    before = asyncio.all_tasks()
    async with asyncio.timeout(5), execute_stream(made.llm(), REQUESTS["streamed"]) as execution:
        async for _ in execution:
            break
    assert asyncio.all_tasks() == before


async def test_an_error_passes_as_an_llm_error(made: Made) -> None:
    heard = Heard()
    with pytest.raises(LlmError) as raised:
        await execute(made.failing(), REQUESTS["streamed"], heard)
    assert isinstance(raised.value, BadRequest)
    assert heard.events == [Failed(raised.value)]
    with pytest.raises(BadRequest):
        await made.failing().generate_content_async("hi")


async def test_policies_wrap_each_call(made: Made) -> None:
    said: list[str] = []

    def note(executor: Executor[Any, Any]) -> Executor[Any, Any]:
        async def call(request: Any, run: Run, /) -> Any:
            said.append("in")
            return await executor(request, run)

        return call

    plain = await execute(made.llm(), REQUESTS["streamed"], bare := Heard())
    wrapped = await execute(made.llm(policies=[note, retry(), timeout(20)]), REQUESTS["streamed"], heard := Heard())
    assert said == ["in"]
    assert wrapped.choices == plain.choices
    assert heard.text == bare.text
    with pytest.raises(BadRequest):
        await execute(made.failing(policies=[note]), REQUESTS["streamed"])
    with pytest.raises(TimedOut, match=r"within 0\.1 s"):
        await execute(made.slow(policies=[note, timeout(0.1)]), REQUESTS["streamed"])
    assert said == ["in"] * 3


async def test_a_wrapped_llm_keeps_its_name(made: Made) -> None:
    plain, wrapped = made.llm(), made.llm(policies=[retry()])
    assert (wrapped.model, wrapped.provider, repr(wrapped)) == (plain.model, plain.provider, repr(plain))


async def test_text_alone_is_the_text_of_the_reply(made: Made) -> None:
    reply = await execute(made.llm(), REQUESTS["streamed"])
    text = await made.llm().generate_content_async("Say something.")
    assert isinstance(text, str)
    assert text == reply.content
    assert await made.llm().generate_content_async([{"role": "user", "content": "Say something."}]) == text


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_listener_that_fails_ends_it(made: Made, kind: str) -> None:
    calls = 0

    def gone(_: Event) -> None:
        nonlocal calls
        calls += 1
        raise BrokenPipeError("the client left")

    seen = Heard()
    with pytest.raises(BrokenPipeError):
        await execute(made.llm(policies=[retry(base_s=0.01)]), REQUESTS[kind], gone, closing=[seen])
    assert calls == 1
    assert seen.events == [Cancelled("listener failed: the client left")]


async def test_calls_at_once_do_not_mix(made: Made) -> None:
    llm = made.llm()
    heard = [Heard() for _ in range(10)]
    replies = await asyncio.gather(*(execute(llm, REQUESTS["streamed"], each) for each in heard))
    assert {reply.content for reply in replies} == {each.text for each in heard} == {replies[0].content}
