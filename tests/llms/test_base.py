"""`BaseLlm`: one method is enough, and policies wrap each call once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from penstock.errors import LimitReached
from penstock.events import Chunks, Event, Text, Used
from penstock.llms import LLMS
from penstock.llms.base import BaseLlm
from penstock.messages import ChatReply, ChatRequest, Choice, Message, text_of
from penstock.outcome import Finished
from penstock.policies.limit import limit
from penstock.run import Executor, Run, execute
from penstock.testing import ScriptedLlm


class Streams(BaseLlm):
    """Has only `__call__`."""

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        text = text_of(request.messages[-1]).upper()
        await run.emit(Text(text))
        return ChatReply(choices=(Choice(content=text),))


class Answers(BaseLlm):
    """Has only `generate_content_async`."""

    async def generate_content_async(self, messages: str | Sequence[Message], **params: Any) -> str:
        return f"{len(messages)} messages, {params}"


class Louder(Streams):
    """Calls its parent's `__call__`."""

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        reply = await super().__call__(request, run)
        return ChatReply(choices=(Choice(content=reply.content + "!"),))


class Heir(Streams):
    """Adds nothing."""


class Policy:
    """A policy that notes the calls it wraps."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def __call__(self, executor: Executor[Any, Any]) -> Executor[Any, Any]:
        async def call(request: Any, run: Run, /) -> Any:
            self.said.append(self.name)
            return await executor(request, run)

        return call


async def test_call_alone_gives_text_too() -> None:
    assert await Streams().generate_content_async("hi") == "HI"
    assert await Streams().generate_content_async([{"role": "user", "content": "ho"}], temperature=0) == "HO"


async def test_text_alone_streams_as_one_piece() -> None:
    heard: list[Event] = []
    request = ChatRequest.of("hi", temperature=0.5)
    reply = await execute(Answers(model="m"), request, heard.append)
    assert (reply.content, reply.model, reply.finish_reason) == ("1 messages, {'temperature': 0.5}", "m", "stop")
    chunks, used, end = heard
    assert isinstance(used, Used)
    assert (used.usage, used.usage.partial, used.cost) == (reply.usage, True, None)
    assert used.usage.completion == 8  # a token for four bytes
    assert isinstance(chunks, Chunks)
    assert chunks.text == reply.content
    assert end == Finished(reply)


def test_neither_is_refused_where_the_class_is_written() -> None:
    with pytest.raises(TypeError, match="Mute must implement __call__ or generate_content_async"):
        type("Mute", (BaseLlm,), {})


@pytest.mark.parametrize(("llm", "text"), [(Streams, "HI"), (Louder, "HI!"), (Heir, "HI"), (Answers, None)])
async def test_policies_wrap_a_call_once_the_first_outermost(llm: type[BaseLlm], text: str | None) -> None:
    said: list[str] = []
    wrapped = llm(policies=[Policy("outer", said), Policy("inner", said)])
    reply = await execute(wrapped, ChatRequest.of("hi"))
    assert said == ["outer", "inner"]
    assert text is None or reply.content == text


async def test_text_of_a_wrapped_llm_passes_its_policies() -> None:
    said: list[str] = []
    assert await Streams(policies=[Policy("outer", said)]).generate_content_async("hi") == "HI"
    assert said == ["outer"]


def test_repr_names_class_and_model_and_nothing_else() -> None:
    class Keyed(Streams):
        def __init__(self, key: str) -> None:
            super().__init__(model="m", policies=[Policy("p", [])])
            self.key = key

    assert repr(Keyed("canary-7f3a")) == "Keyed(model='m')"


async def test_a_limit_among_its_policies_counts_over_all_calls() -> None:
    llm = ScriptedLlm("yes", policies=[limit(requests_per_minute=2)])
    await execute(llm, ChatRequest.of("1"))
    await execute(llm, ChatRequest.of("2"))
    with pytest.raises(LimitReached):
        await execute(llm, ChatRequest.of("3"))


def test_providers_are_found_by_name() -> None:
    assert LLMS.get("Demo").__name__ == "Demo"
