"""Makes the bytes of answers from events and replies; the only place that does."""

from __future__ import annotations

import random
import time
from typing import Any, Protocol

import msgspec

from penstock.events import Chunks, Event, Reasoning, Text
from penstock.messages import (
    ChatReply,
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCallDelta,
    Usage,
    is_object,
)
from penstock.server.wire import answer_of

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
OBJECT = "chat.completion.chunk"
_random = random.Random().getrandbits  # noqa: S311  # names of requests, not secrets
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_DELTA = ("role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls", "extra_content")


def fresh_id() -> str:
    """32 hex digits that no other request has; not a secret, so the system's entropy is left alone."""
    return f"{_random(128):032x}"


class Encoding(Protocol):
    """What makes the server-sent events of one answer."""

    def event(self, event: Event) -> bytes:
        """An event as bytes; empty where it is not part of the answer."""
        ...

    def end(self, result: Any, usage: Usage) -> bytes:
        """What closes a finished answer."""
        ...

    def error(self, error: BaseException) -> bytes:
        """What ends a broken answer."""
        ...


class Encoder:
    """The server-sent events of a chat completion."""

    __slots__ = (
        "_began",
        "_created",
        "_head",
        "_id",
        "_model",
        "_spoke",
        "_text",
        "_top",
        "_usage_asked",
        "_usage_told",
    )

    def __init__(self, request: object) -> None:
        chat = request if isinstance(request, ChatRequest) else None
        self._id = f"chatcmpl-{fresh_id()}"
        self._created = int(time.time())
        self._model = chat.model if chat else ""
        self._top: tuple[object, ...] = ()
        self._head = b""
        self._usage_asked = chat is not None and chat.wants_usage
        self._began = self._spoke = self._text = self._usage_told = False

    def event(self, event: Event) -> bytes:
        """An event as bytes; empty where it is not part of the answer."""
        if isinstance(event, Chunks):
            if event.path or not event.views:
                return b""
            self._spoke = True
            if event.views[-1].usage is not None:
                self._usage_told = True
            return event.data if event.data is not None else b"".join([self._view(view) for view in event.views])
        if isinstance(event, Text | Reasoning) and not event.path:
            self._spoke = self._text = True
            if isinstance(event, Text):
                return self._delta(Delta(content=event.text))
            return self._delta(Delta(reasoning_content=event.text, reasoning=event.text))
        return b""

    def end(self, result: Any, usage: Usage) -> bytes:
        """What closes a finished answer: what was not told yet, and the end mark."""
        tail = b""
        if not self._spoke:
            reply = reply_of(result, self._model)
            for choice in reply.choices:
                tail += self._delta(_delta_of(choice), index=choice.index, finish=choice.finish_reason or "stop")
            self._text = False
            usage = reply.usage or usage
        if self._text:
            tail += self._delta(Delta(), finish="stop")
        if self._usage_asked and not self._usage_told:
            tail += self._view(Chunk(choices=[], usage=usage))
        return tail + DONE

    def error(self, error: BaseException) -> bytes:
        """What ends a broken stream: an error object, and no end mark."""
        return _frame(answer_of(error).body)

    def _delta(self, delta: Delta, *, index: int = 0, finish: str | None = None) -> bytes:
        if not self._began:
            self._began, delta.role = True, "assistant"
        return self._view(Chunk(choices=[ChunkChoice(delta=delta, index=index, finish_reason=finish)]))

    def _view(self, view: Chunk) -> bytes:
        """A chunk with every required field."""
        view.id, view.model, view.object = view.id or self._id, view.model or self._model, OBJECT
        view.created = self._created if view.created is None else view.created
        if view.raw is not None or view.usage is not None:
            return _frame(chunk_json(view))
        top = (view.id, view.created, view.model)
        if top != self._top:
            fields = {"id": view.id, "object": OBJECT, "created": view.created, "model": view.model}
            self._top, self._head = top, b"data: %b" % _encode(fields)[:-1]
        return b'%b,"choices":%b}\n\n' % (self._head, _encode(view.choices))


def _frame(body: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(body)


def chunk_json(view: Chunk) -> dict[str, Any]:
    """A chunk as JSON: what the view says, over what the service sent."""
    said: dict[str, Any] = _decode(view.raw) if view.raw is not None else {}
    was: list[Any] = said.get("choices") or []
    said["id"], said["object"], said["created"], said["model"] = view.id, view.object, view.created, view.model
    said["choices"] = [
        _choice_json(choice, was[n] if n < len(was) and is_object(was[n]) else {})
        for n, choice in enumerate(view.choices)
    ]
    if view.usage is None:
        said.pop("usage", None)
    elif not is_object(said.get("usage")):
        said["usage"] = usage_json(view.usage)
    return said


def _choice_json(choice: ChunkChoice, said: dict[str, Any]) -> dict[str, Any]:
    delta = said.get("delta")
    said["index"], said["finish_reason"] = choice.index, choice.finish_reason
    said["delta"] = _overlaid(delta if is_object(delta) else {}, choice.delta)
    return said


def _overlaid(said: dict[str, Any], delta: Delta) -> dict[str, Any]:
    """A delta or message with the view's fields in place of the service's."""
    for name in _DELTA:
        value = getattr(delta, name)
        if value is not None:
            said[name] = value
        elif said.get(name) is not None:
            del said[name]
    return said


def usage_json(usage: Usage) -> dict[str, Any]:
    """Usage as clients read it; `estimated` marks one that the service did not report."""
    found: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
    }
    if usage.cached:
        found["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning:
        found["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    if usage.partial:
        found["estimated"] = True
    return found


def reply_of(result: object, model: str, said: str = "") -> ChatReply:
    """Any executor's result as a reply: what it told, else its text, else its JSON."""
    if isinstance(result, ChatReply):
        return result
    text = said or (result if isinstance(result, str) else _encode(result).decode())
    return ChatReply(model=model, choices=(Choice(content=text, finish_reason="stop"),))


def reply_bytes(reply: ChatReply, *, model: str, usage: Usage) -> bytes:
    """A whole answer: the service's own bytes where nothing was repaired."""
    if reply.data is not None:
        return reply.data
    said: dict[str, Any] = _decode(reply.raw) if reply.raw is not None else {}
    was: list[Any] = said.get("choices") or []
    said["id"] = reply.id or f"chatcmpl-{fresh_id()}"
    said["object"], said["created"] = "chat.completion", reply.created or int(time.time())
    said["model"] = reply.model or model
    said["choices"] = [
        _message_json(choice, was[n] if n < len(was) and is_object(was[n]) else {})
        for n, choice in enumerate(reply.choices)
    ]
    if not is_object(said.get("usage")):
        said["usage"] = usage_json(reply.usage or usage)
    return _encode(said)


def _delta_of(choice: Choice) -> Delta:
    calls = [
        ToolCallDelta(n, call.id, "function", FunctionDelta(call.name, call.arguments), call.extra_content)
        for n, call in enumerate(choice.tool_calls)
    ]
    return Delta(
        content=choice.content,
        reasoning_content=choice.reasoning,
        reasoning=choice.reasoning,
        refusal=choice.refusal,
        tool_calls=calls or None,
        extra_content=choice.extra_content,
    )


def _message_json(choice: Choice, said: dict[str, Any]) -> dict[str, Any]:
    was = said.get("message")
    message = _overlaid(was if is_object(was) else {}, _delta_of(choice))
    message["role"] = "assistant"
    message.setdefault("content", None)
    for call in message.get("tool_calls") or ():
        call.index = None  # which leaves it out
    said["index"], said["message"], said["finish_reason"] = choice.index, message, choice.finish_reason or "stop"
    return said
