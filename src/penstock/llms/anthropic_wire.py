"""Reads answers of the Anthropic Messages API, streamed and whole, into chunks.

https://platform.claude.com/docs/en/api/messages-streaming
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import msgspec

from penstock.errors import BadAnswer, BadRequest, LlmError, RateLimited, TimedOut, Unauthorized, Unavailable
from penstock.llms.answer import NativeReading, Whole
from penstock.llms.failures import Who, from_said
from penstock.messages import (
    Chunk,
    ChunkChoice,
    CompletionTokens,
    Delta,
    FunctionDelta,
    PromptTokens,
    ToolCallDelta,
    Usage,
    is_object,
    merged,
)

FINISH = {
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "refusal": "content_filter",
}
"""What stops an answer, where it is not plainly its end; a paused turn is not whole, as one cut by its length."""
ERRORS: dict[str, type[LlmError]] = {
    "invalid_request_error": BadRequest,
    "not_found_error": BadRequest,
    "billing_error": Unauthorized,
    "authentication_error": Unauthorized,
    "permission_error": Unauthorized,
    "rate_limit_error": RateLimited,
    "timeout_error": TimedOut,
}
"""The errors that come without a status, in the middle of a stream; any other is the service's own failure."""


class _Usage(msgspec.Struct, gc=False):
    """Counts so far; a later report repeats only some of them."""

    input_tokens: float | None = None
    output_tokens: float | None = None
    cache_read_input_tokens: float | None = None
    cache_creation_input_tokens: float | None = None
    output_tokens_details: _Details | None = None


class _Details(msgspec.Struct, gc=False):
    thinking_tokens: float | None = None


class _Block(msgspec.Struct, gc=False):
    """A block of any type, whole or as it begins."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None


class _Piece(msgspec.Struct, gc=False):
    """What one event adds to a block."""

    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None


class _Stopped(msgspec.Struct, gc=False):
    stop_reason: str | None = None
    stop_details: _Refusal | None = None


class _Refusal(msgspec.Struct, gc=False):
    explanation: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    stop_details: _Refusal | None = None
    usage: _Usage | None = None


class _MessageStart(msgspec.Struct, tag="message_start", gc=False):
    message: _Message


class _BlockStart(msgspec.Struct, tag="content_block_start", gc=False):
    index: int
    content_block: _Block


class _BlockDelta(msgspec.Struct, tag="content_block_delta", gc=False):
    index: int
    delta: _Piece


class _BlockStop(msgspec.Struct, tag="content_block_stop", gc=False):
    index: int


class _MessageDelta(msgspec.Struct, tag="message_delta", gc=False):
    delta: _Stopped
    usage: _Usage | None = None


class _MessageStop(msgspec.Struct, tag="message_stop", gc=False):
    pass


_Event: TypeAlias = _MessageStart | _BlockStart | _BlockDelta | _BlockStop | _MessageDelta | _MessageStop
_event: Callable[[bytes], _Event] = msgspec.json.Decoder(_Event).decode
_whole = msgspec.json.Decoder(_Message).decode
_any = msgspec.json.Decoder().decode
_LARGEST = 2**53
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Call:
    """A tool call while it arrives: the number of the call, and the arguments that came with its name."""

    __slots__ = ("given", "number", "spoke")

    def __init__(self, number: int, given: Any) -> None:
        self.number, self.given = number, given
        self.spoke = False


class _Thought:
    """A block of thinking while it arrives, to be given back as it came."""

    __slots__ = ("entry", "signature", "text")

    def __init__(self, entry: dict[str, Any], block: _Block) -> None:
        self.entry = entry
        self.text, self.signature = [block.thinking or ""], [block.signature or ""]

    def told(self) -> Delta:
        """What gives it to the client."""
        if "data" not in self.entry:
            self.entry.update(thinking="".join(self.text), signature="".join(self.signature))
        return Delta(extra_content={"anthropic": {"thinking": [self.entry]}})


class MessagesReading(NativeReading):
    """One answer. Its thinking is told as reasoning, and whole, with its signature, as `extra_content`.

    An entry is `{"index": 0, "type": "thinking", "thinking": ..., "signature": ...}` or one of type redacted_thinking
    with its `data`; `index` is its place among the blocks that are kept (thinking, text that follows itself as one,
    tools), `offset`, where text came before it, how many characters of the text did.
    """

    __slots__ = ("_blocks", "_calls", "_created", "_id", "_last", "_model", "_place", "_text", "_usage", "_who")

    def __init__(self, who: Who) -> None:
        self._who = who
        self._created = int(time.time())
        self._id: str | None = None
        self._model: str | None = None
        self._usage = _Usage()
        self._blocks: dict[int, _Call | _Thought] = {}
        self._calls = self._place = self._text = 0
        self._last = ""

    def view(self, payload: bytes) -> Chunk | None:
        """The chunk that one event means."""
        try:
            event = _event(payload)
        except _UNREADABLE as error:
            self._unknown(payload, error)
            return None
        if isinstance(event, _BlockDelta):
            delta = self._piece(event)
        elif isinstance(event, _BlockStart):
            delta = self._begin(event.index, event.content_block)
        elif isinstance(event, _BlockStop):
            delta = self._end(event.index)
        elif isinstance(event, _MessageStart):
            return self._start(event.message)
        elif isinstance(event, _MessageDelta):
            return self._stop(event)
        else:
            delta, self.done = None, True
        return None if delta is None else self._chunk(delta)

    def whole(self, body: bytes) -> Whole:
        """An unstreamed answer as the only chunk of a stream."""
        try:
            message = _whole(body)
        except _UNREADABLE as error:
            self._unknown(body, error)
            raise self._malformed(str(error)) from error
        if message.content is None:
            self._unknown(body, problem := msgspec.ValidationError("it has no content"))
            raise self._malformed(str(problem))
        self._start(message)
        delta = Delta(role="assistant", refusal=_explained(message.stop_details))
        for index, block in enumerate(message.content):
            for piece in (self._begin(index, block), self._end(index)):
                if piece is not None:
                    _add(delta, piece)
        view = self._chunk(delta)
        view.choices[0].finish_reason = _finish(message.stop_reason)
        view.usage = self._counted(partial=message.usage is None)
        return view, None, None

    def _chunk(self, delta: Delta) -> Chunk:
        return Chunk([ChunkChoice(delta=delta)], self._id, "chat.completion.chunk", self._created, self._model)

    def _start(self, message: _Message) -> Chunk:
        self._id, self._model = message.id, message.model
        view = self._chunk(Delta(role="assistant", content=""))
        if message.usage is not None:
            self._count(message.usage)
            view.usage = self._counted(partial=True)
        return view

    def _piece(self, event: _BlockDelta) -> Delta | None:
        piece = event.delta
        if piece.text:
            return self._said(piece.text)
        block = self._blocks.get(event.index)
        if isinstance(block, _Call):
            if not piece.partial_json:
                return None
            block.spoke = True
            return _arguments(block, piece.partial_json)
        if block is not None and piece.signature:
            block.signature.append(piece.signature)
        if not piece.thinking:
            return None
        if block is not None:
            block.text.append(piece.thinking)
        return Delta(reasoning_content=piece.thinking, reasoning=piece.thinking)

    def _begin(self, index: int, block: _Block) -> Delta | None:
        """Note a block; what is already said in it. The tools that the service runs itself are not a client's."""
        match block.type:
            case "text":
                return self._said(block.text) if block.text else None
            case "tool_use":
                call = self._blocks[index] = _Call(self._calls, block.input)
                self._calls += 1
                self._take_place("tool")
                function = FunctionDelta(block.name or "", "")
                return Delta(tool_calls=[ToolCallDelta(call.number, block.id, "function", function)])
            case "thinking":
                self._keep(index, block, {"type": "thinking"})
                said = block.thinking
                return Delta(reasoning_content=said, reasoning=said) if said else None
            case "redacted_thinking":
                self._keep(index, block, {"type": "redacted_thinking", "data": block.data or ""})
                return None
            case _:
                return None

    def _end(self, index: int) -> Delta | None:
        """What a block's end adds: the arguments that no event told, or the thinking to give back."""
        block = self._blocks.pop(index, None)
        if isinstance(block, _Call):
            return None if block.spoke else _arguments(block, json.dumps(block.given or {}, ensure_ascii=False))
        return None if block is None else block.told()

    def _said(self, text: str) -> Delta:
        if self._last != "text":
            self._take_place("text")
        self._text += len(text)
        return Delta(content=text)

    def _keep(self, index: int, block: _Block, thought: dict[str, Any]) -> None:
        entry: dict[str, Any] = {"index": self._place, **thought}
        if self._text:
            entry["offset"] = self._text
        self._blocks[index] = _Thought(entry, block)
        self._take_place("thinking")

    def _take_place(self, kind: str) -> None:
        self._last = kind
        self._place += 1

    def _stop(self, event: _MessageDelta) -> Chunk:
        """The chunk of the end, with the usage; a service may report counts before there is one."""
        if event.usage is not None:
            self._count(event.usage)
        stopped = event.delta
        view = self._chunk(Delta(refusal=_explained(stopped.stop_details)))
        view.choices[0].finish_reason = _finish(stopped.stop_reason)
        view.usage = self._counted(partial=stopped.stop_reason is None or event.usage is None)
        return view

    def _count(self, usage: _Usage) -> None:
        for name in _Usage.__struct_fields__:
            count = getattr(usage, name)
            if count is not None:
                setattr(self._usage, name, count)

    def _counted(self, *, partial: bool) -> Usage:
        """The usage in OpenAI's terms: the prompt includes what a cache gave and took."""
        seen = self._usage
        read, written = _number(seen.cache_read_input_tokens), _number(seen.cache_creation_input_tokens)
        prompt = (_number(seen.input_tokens) or 0) + (read or 0) + (written or 0)
        completion = _number(seen.output_tokens) or 0
        details = seen.output_tokens_details
        return Usage(
            prompt,
            completion,
            prompt + completion,
            None if read is written is None else PromptTokens(read, written),
            None if details is None else CompletionTokens(_number(details.thinking_tokens)),
            partial,
        )

    def _unknown(self, payload: bytes, error: Exception) -> None:
        """Pass over an event of a new kind; raises what a service sent as an error, and what is malformed."""
        try:
            said = _any(payload)
        except _UNREADABLE:
            said = None
        kind = said.get("type") if is_object(said) else None
        if kind == "error" and is_object(said):
            detail = said.get("error")
            name = detail.get("type") if is_object(detail) else None
            raise from_said(said, ERRORS.get(str(name), Unavailable), who=self._who)
        if not isinstance(kind, str) or kind in _KNOWN:
            raise self._malformed(str(error)) from error

    def _malformed(self, reason: str) -> BadAnswer:
        return BadAnswer(f"{self._who.provider} sent a malformed answer: {reason}", provider=self._who.provider)


_KNOWN = {"message", *(kind.__struct_config__.tag for kind in get_args(_Event))}


def thinking_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The block that an entry of `extra_content` gives back; empty for one spoiled, or cut before its signature."""
    match entry:
        case {"type": "thinking", "thinking": str(said), "signature": str(signed)} if signed:
            return {"type": "thinking", "thinking": said, "signature": signed}
        case {"type": "redacted_thinking", "data": str(data)} if data:
            return {"type": "redacted_thinking", "data": data}
        case _:
            return {}


def _number(count: float | None) -> int | None:
    """A count that may have come as a float."""
    return None if count is None or abs(count) >= _LARGEST else int(count)


def _finish(reason: str | None) -> str | None:
    return None if reason is None else FINISH.get(reason, "stop")


def _explained(refusal: _Refusal | None) -> str | None:
    return None if refusal is None else refusal.explanation


def _arguments(call: _Call, text: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(call.number, function=FunctionDelta(arguments=text))])


def _add(delta: Delta, piece: Delta) -> None:
    """Add a piece to the delta of a whole answer."""
    if piece.content:
        delta.content = (delta.content or "") + piece.content
    if piece.reasoning:
        delta.reasoning_content = delta.reasoning = (delta.reasoning or "") + piece.reasoning
    for call in piece.tool_calls or ():
        if call.id is not None or not delta.tool_calls:
            delta.tool_calls = [*(delta.tool_calls or ()), call]
        elif call.function is not None and (first := delta.tool_calls[-1].function) is not None:
            first.arguments = call.function.arguments
    if piece.extra_content:
        delta.extra_content = merged(delta.extra_content, piece.extra_content)
