"""What the tests of batches ask and answer with."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import msgspec

from penstock.messages import ChatReply, ChatRequest
from penstock.run import Executor, from_stream


class Do(msgspec.Struct, frozen=True):
    """A value as short as can be."""

    agent_id: int | str
    do: str


def keys(request: ChatRequest) -> list[Any]:
    """The keys that a request asks for, in its order."""
    return [shown["agent_id"] for shown in items(request)]


def items(request: ChatRequest) -> list[dict[str, Any]]:
    """The items of a request, as a model sees them."""
    text = str(request.messages[-1].get("content"))
    return [json.loads(line) for line in text.split("\n") if line.startswith("{")]


def does(*names: Any) -> str:
    """A good answer about these keys."""
    return json.dumps({"plans": [{"agent_id": name, "do": f"do {name}"} for name in names]})


def all_but(*missing: Any, of: int = 0) -> Callable[[ChatRequest], str]:
    """Answers about what is asked but some, in requests about more than `of` items."""

    def answer(request: ChatRequest) -> str:
        asked = keys(request)
        return does(*(key for key in asked if key not in missing or len(asked) <= of))

    return answer


def told(*answers: Sequence[str] | Exception) -> Executor[ChatRequest, ChatReply]:
    """A model that tells one answer a call, each in its pieces; the last one again and again."""
    left = [*answers]

    async def generate(_: ChatRequest) -> AsyncGenerator[str, None]:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        for piece in answer:
            yield piece

    return from_stream(generate)


def cuttings(answer: str) -> Iterable[list[str]]:
    """The whole, character by character, and every single cut."""
    yield [answer]
    yield [*answer]
    yield from ([answer[:cut], answer[cut:]] for cut in range(1, len(answer)))
