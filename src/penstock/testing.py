"""Doubles for users' tests and for our own: a scripted LLM, a listener that remembers, and a switch for the network."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from penstock.events import Chunks, Event, Fold, Used
from penstock.llms.base import BaseLlm
from penstock.messages import (
    ChatReply,
    ChatRequest,
    Chunk,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from penstock.policies import Policy
from penstock.run import Run

Answer = str | ToolCall | Sequence[ToolCall] | Exception | Callable[[ChatRequest], Any]


class ScriptedLlm(BaseLlm):
    """An LLM that gives the answers of a script, one a call: a text, tool calls, an error to raise, or a function.

    A function is given the request and returns one of the others. A text is told word by word. When the script is used
    up the last answer is given again. `requests` are the calls so far.
    """

    provider = "scripted"

    def __init__(self, *answers: Answer, model: str = "scripted", policies: Iterable[Policy] = ()) -> None:
        super().__init__(model=model, policies=policies)
        self._answers: list[Answer] = list(answers) or [""]
        self.requests: list[ChatRequest] = []

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Give the next answer."""
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        fold = Fold()
        for delta in _deltas(answer):
            await self._tell(delta, None, fold, run)
        await self._tell(Delta(), "stop" if isinstance(answer, str) else "tool_calls", fold, run)
        prompt, completion = len(request.messages), fold.pieces
        usage = Usage(prompt, completion, prompt + completion)
        await run.emit(Used(usage=usage, model=self.model, provider=self.provider))
        return fold.reply(usage)

    async def _tell(self, delta: Delta, finish: str | None, fold: Fold, run: Run) -> None:
        view = Chunk(
            choices=[ChunkChoice(delta=delta, finish_reason=finish)],
            id="chatcmpl-scripted",
            object="chat.completion.chunk",
            created=0,
            model=self.model,
        )
        fold.add_chunk(view)
        await run.emit(Chunks(views=[view]))


def _deltas(answer: Any) -> Iterator[Delta]:
    if isinstance(answer, str):
        words = answer.split(" ")
        for n, word in enumerate(words):
            yield Delta(role="assistant" if n == 0 else None, content=word if n == 0 else f" {word}")
        return
    for n, call in enumerate([answer] if isinstance(answer, ToolCall) else answer):
        function = FunctionDelta(name=call.name, arguments=call.arguments)
        piece = ToolCallDelta(index=n, id=call.id, type="function", function=function)
        yield Delta(role="assistant" if n == 0 else None, tool_calls=[piece])


class Heard:
    """A listener that remembers: `await execute(executor, request, heard := Heard())`, then `heard.events`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Remember an event."""
        self.events.append(event)

    @property
    def text(self) -> str:
        """The answer's text so far."""
        fold = Fold()
        for event in self.events:
            fold.add(event)
        return fold.content

    @property
    def end(self) -> Event:
        """The event that was told last."""
        return self.events[-1]


class NetworkUsed(AssertionError):
    """Code inside `no_network` tried to open a connection."""


@contextmanager
def no_network() -> Generator[None, None, None]:
    """Let nothing inside connect to anything: a call that forgot its double fails, naming the address.

    It holds for sockets, for asyncio and for uvloop, in every thread; connections that are open already stay so.
    """
    kept = [(owner, name, getattr(owner, name)) for owner, name in _ways_out()]
    for owner, name, _ in kept:
        setattr(owner, name, _refuse)
    try:
        yield
    finally:
        for owner, name, way in kept:
            setattr(owner, name, way)


def _ways_out() -> Iterator[tuple[Any, str]]:
    yield socket, "getaddrinfo"
    for name in ("connect", "connect_ex", "sendto"):
        yield socket.socket, name
    with suppress(ImportError):  # uvloop connects without Python's sockets
        import uvloop

        for name in ("create_connection", "create_datagram_endpoint", "create_unix_connection", "getaddrinfo"):
            yield uvloop.Loop, name


def _refuse(*arguments: object, **named: object) -> Any:
    where = [repr(part) for part in (*arguments, *named.values()) if type(part) in {str, int, tuple}]
    raise NetworkUsed(f"no_network: a connection to {', '.join(where)} was tried")
