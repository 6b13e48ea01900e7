"""Reads what the Responses API says, its events one by one or the answer whole, as chunks of the chat wire."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import msgspec

from penstock.errors import BadAnswer, BadRequest, LlmError, Refused, Unavailable
from penstock.llms.answer import NativeReading, Whole
from penstock.llms.canonical import ToolCalls
from penstock.llms.failures import Who, from_said
from penstock.llms.openai_wire import UNREADABLE, malformed, objects, whole_numbers
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
)

OBJECT = "chat.completion.chunk"
REFUSAL = "response.refusal.delta"
# The codes that a response fails with, where they mean neither a wrong request nor what `failures` knows.
_CODES: dict[str | None, type[LlmError]] = {
    None: Unavailable,
    "vector_store_timeout": Unavailable,
    "bio_policy": Refused,
    "cyber_policy": Refused,
    "image_content_policy_violation": Refused,
    "misalignment_policy_violation": Refused,
}
Key: TypeAlias = int | str | None
"""What names an item in its events: its place in the output, else its id where a service leaves that out."""


class _Why(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    """A response as its events tell it: they repeat the whole of it, with what was asked, which is passed over."""

    id: str | None = None
    model: str | None = None
    created_at: float | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Why | None = None
    usage: Any = None
    output: Any = None


class _Whole(_Response, gc=False):
    output: list[dict[str, Any]] = []


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    output_index: int | None = None
    item_id: str | None = None
    content_index: int | None = None
    summary_index: int | None = None
    item: dict[str, Any] | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None
    code: Any = None
    param: Any = None

    @property
    def key(self) -> Key:
        """The item that it is of."""
        if self.output_index is not None:
            return self.output_index
        return self.item_id or (self.item or {}).get("id")


class _Kind(msgspec.Struct, gc=False):
    type: str = ""


_event = msgspec.json.Decoder(_Event).decode
_kind = msgspec.json.Decoder(_Kind).decode
_answer = msgspec.json.Decoder(_Whole).decode


class ResponsesReading(NativeReading):
    """One answer. Reasoning that may be brought back is told as `extra_content`, with its place among the items."""

    __slots__ = (
        "_calls",
        "_created",
        "_id",
        "_kept",
        "_model",
        "_order",
        "_part",
        "_place",
        "_said",
        "_silent",
        "_spoke",
        "_thought",
        "_told",
        "_who",
        "done",
    )

    def __init__(self, who: Who, model: str) -> None:
        self._who, self._model = who, model
        self._id: str | None = None
        self._created: int | None = None
        self._silent, self._spoke = True, False
        self._said = self._thought = self._kept = False
        self._place = 0
        self._calls: dict[Key, int] = {}
        self._told: set[Key] = set()
        self._part: tuple[Key, int | None, int | None] | None = None
        self._order = ToolCalls()
        self.done = False

    def view(self, payload: bytes) -> Chunk | None:
        """The chunk that one event means; None for the many that repeat what others say."""
        try:
            event = _event(payload)
        except UNREADABLE as error:
            if _kind_of(payload) not in {"", *self._READ}:
                return None
            raise malformed(self._who, str(error)) from error
        read = self._READ.get(event.type)
        if read is not None:
            return read(self, event)
        if event.error:
            raise self._failed(event.error)
        return None

    def whole(self, body: bytes) -> Whole:
        """An unstreamed answer: all that its events would have told, at once."""
        try:
            answer = _answer(body)
        except UNREADABLE as error:
            raise malformed(self._who, str(error)) from error
        self._learn(answer)
        finish, usage = self._ending(answer)
        view = self._view(self.all_of(answer.output), self._finish_of(finish))
        view.usage = usage
        return view, None, None

    def close(self, closing: Chunk) -> None:
        """The end mark of another wire ends no answer of this one."""
        del closing
        raise BadAnswer(f"{self._who.provider} cut off its answer", provider=self._who.provider)

    def _view(self, delta: Delta, finish: str | None = None) -> Chunk:
        if self._silent:
            self._silent = False
            delta.role = "assistant"
            self._created = self._created or int(time.time())
        return Chunk([ChunkChoice(delta=delta, finish_reason=finish)], self._id, OBJECT, self._created, self._model)

    def _text(self, event: _Event) -> Chunk | None:
        text = event.delta or (None if self._said else event.text)
        if not text:
            return None
        self._said = True
        self._told.add(event.key)
        return self._view(Delta(refusal=text) if event.type == REFUSAL else Delta(None, text))

    def _reasoning(self, event: _Event) -> Chunk | None:
        if not event.delta:
            return None
        self._thought = True
        self._told.add(event.key)
        text = self._parted(event.delta, (event.key, event.summary_index, event.content_index))
        return self._view(Delta(reasoning_content=text, reasoning=text))

    def _parted(self, text: str, part: tuple[Key, int | None, int | None]) -> str:
        """A piece of reasoning, with a blank line before it where it begins another part."""
        last, self._part = self._part, part
        return text if last is None or last == part else f"\n\n{text}"

    def _arguments(self, event: _Event) -> Chunk | None:
        text = event.delta or (None if event.key in self._told else event.arguments)
        if not text:
            return None
        index = self._calls.get(event.key)
        if index is None:
            if event.delta is None:  # the whole call may come yet, with its name
                return None
            raise malformed(self._who, "arguments of a call that has not begun")
        self._told.add(event.key)
        return self._called(ToolCallDelta(index, function=FunctionDelta(None, text)))

    def _called(self, piece: ToolCallDelta) -> Chunk | None:
        ready = self._order.feed([piece])
        return self._view(Delta(tool_calls=ready)) if ready else None

    def _added(self, event: _Event) -> Chunk | None:
        item = event.item or {}
        return self._called(self._begun(event.key, item, "")) if item.get("type") == "function_call" else None

    def _ended(self, event: _Event) -> Chunk | None:
        delta = self._rest(event.key, event.item or {})
        if delta is None:
            return None
        if delta.tool_calls:
            delta.tool_calls = self._order.feed(delta.tool_calls)
        self._said = self._said or bool(delta.content or delta.refusal)
        self._thought = self._thought or bool(delta.reasoning)
        self._kept = self._kept or bool(delta.extra_content)
        return self._view(delta)

    def all_of(self, output: list[dict[str, Any]]) -> Delta:
        """All that the items of an answer say."""
        return _joined([delta for n, item in enumerate(output) if (delta := self._rest(n, item)) is not None])

    def _missed(self, output: list[dict[str, Any]]) -> Delta:
        """What the end tells and no event told before: each call; text and reasoning only where there was none yet.

        Calls are counted, as some services name an item anew in each event.
        """
        delta = ResponsesReading(self._who, "").all_of(output)
        if self._said:
            delta.content = delta.refusal = None
        if self._thought:
            delta.reasoning_content = delta.reasoning = None
        if self._kept:
            delta.extra_content = None
        calls = [item for item in output if item.get("type") == "function_call"]
        keys = [*self._calls, *(f"end {n}" for n in range(len(self._calls), len(calls)))]
        rest = [self._called_whole(key, item) for key, item in zip(keys, calls, strict=False) if key not in self._told]
        delta.tool_calls = [*self._order.feed(rest), *self._order.end()] or None
        return delta

    def _begun(self, key: Key, item: dict[str, Any], arguments: str) -> ToolCallDelta:
        index = self._calls[key] = len(self._calls)
        function = FunctionDelta(str(item.get("name") or ""), arguments)
        call_id = item.get("call_id") or item.get("id")
        return ToolCallDelta(index, str(call_id) if call_id else None, "function", function)

    def _rest(self, key: Key, item: dict[str, Any]) -> Delta | None:
        """What of an item that is complete was not told yet: all of it where a service sent no pieces.

        In the turn that brings an answer back its messages are one item: that gives reasoning its place.
        """
        kind, told = item.get("type"), key in self._told
        if kind == "reasoning":
            return self._reasoned(key, item)
        if kind == "function_call":
            self._place += 1
            self._told.add(key)
            return None if told else Delta(tool_calls=[self._called_whole(key, item)])
        if kind != "message":  # of the service's own tools nothing is told to a chat client
            return None
        delta = _message(item)
        if delta is not None and not self._spoke:
            self._spoke = True
            self._place += 1
        return None if told else delta

    def _called_whole(self, key: Key, item: dict[str, Any]) -> ToolCallDelta:
        arguments, index = str(item.get("arguments") or ""), self._calls.get(key)
        if index is None:
            return self._begun(key, item, arguments)
        return ToolCallDelta(index, function=FunctionDelta(None, arguments))

    def _reasoned(self, key: Key, item: dict[str, Any]) -> Delta | None:
        delta = Delta()
        if key not in self._told:
            texts = [self._parted(text, (key, n, None)) for n, text in enumerate(_thoughts(item)) if text]
            delta.reasoning_content = delta.reasoning = "".join(texts) or None
        if item.get("encrypted_content") or item.get("content"):
            kept = {name: value for name, value in item.items() if value and name != "status"}
            delta.extra_content = {"openai": {"reasoning": [{"index": self._place, **kept}]}}
            self._place += 1
        return delta if delta.reasoning or delta.extra_content else None

    def _begins(self, event: _Event) -> None:
        self._learn(event.response or _Response())

    def _ends(self, event: _Event) -> Chunk:
        response = event.response or _Response()
        self._learn(response)
        finish, usage = self._ending(response)
        self.done = True
        view = self._view(self._missed(objects(response.output)), self._finish_of(finish))
        view.usage = usage
        return view

    def _learn(self, response: _Response) -> None:
        self._id = self._id or response.id
        self._model = response.model or self._model
        if response.created_at is not None:
            self._created = self._created or int(response.created_at)

    def _ending(self, response: _Response) -> tuple[str | None, Usage | None]:
        """Why a response is incomplete, if it is, and its usage; raises what it failed with."""
        if response.error or response.status == "failed":
            raise self._failed(response.error)
        if response.status not in {None, "completed", "incomplete"}:
            raise BadAnswer(
                f"{self._who.provider} ended its answer as {response.status!r}", provider=self._who.provider
            )
        why = response.incomplete_details.reason if response.incomplete_details else None
        broken = why is not None or response.status == "incomplete"
        return "content_filter" if why == "content_filter" else "length" if broken else None, _usage(response.usage)

    def _finish_of(self, why: str | None) -> str:
        return why or ("tool_calls" if self._calls else "stop")

    def _fails(self, event: _Event) -> None:
        response = event.response or _Response()
        raise self._failed(
            event.error or response.error or {"message": event.message, "code": event.code, "param": event.param}
        )

    def _failed(self, said: Any) -> LlmError:
        code = said.get("code") if is_object(said) else None
        kind = _CODES.get(code if isinstance(code, str) else None, BadRequest)
        return from_said({"error": said or {}}, kind, who=self._who)

    _READ: ClassVar[dict[str, Callable[[Any, _Event], Chunk | None]]] = {
        "response.output_text.delta": _text,
        "response.output_text.done": _text,
        "response.function_call_arguments.delta": _arguments,
        "response.function_call_arguments.done": _arguments,
        "response.reasoning_summary_text.delta": _reasoning,
        "response.reasoning_text.delta": _reasoning,
        REFUSAL: _text,
        "response.output_item.added": _added,
        "response.output_item.done": _ended,
        "response.created": _begins,
        "response.completed": _ends,
        "response.incomplete": _ends,
        "response.failed": _fails,
        "error": _fails,
    }


def _kind_of(payload: bytes) -> str:
    """What an event of any shape calls itself."""
    try:
        return _kind(payload).type
    except UNREADABLE:
        return ""


def _joined(deltas: list[Delta]) -> Delta:
    """All pieces of an answer as one."""
    content = [delta.content for delta in deltas if delta.content is not None]
    refusal = [delta.refusal for delta in deltas if delta.refusal]
    thoughts = "".join(delta.reasoning for delta in deltas if delta.reasoning) or None
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    kept = [entry for delta in deltas if delta.extra_content for entry in delta.extra_content["openai"]["reasoning"]]
    return Delta(
        content="".join(content) if content else None,
        refusal="".join(refusal) or None,
        reasoning_content=thoughts,
        reasoning=thoughts,
        tool_calls=calls or None,
        extra_content={"openai": {"reasoning": kept}} if kept else None,
    )


def _message(item: dict[str, Any]) -> Delta | None:
    parts = objects(item.get("content"))
    text = "".join(str(part.get("text") or "") for part in parts if part.get("type") == "output_text")
    refusal = "".join(str(part.get("refusal") or "") for part in parts if part.get("type") == "refusal")
    return Delta(content=text or None, refusal=refusal or None) if text or refusal else None


def _thoughts(item: dict[str, Any]) -> list[str]:
    parts = [*objects(item.get("content")), *objects(item.get("summary"))]
    return [str(part.get("text") or "") for part in parts]


def _usage(said: Any) -> Usage | None:
    counts = whole_numbers(said, "input_tokens", "output_tokens", "total_tokens")
    if not counts:
        return None
    prompt, completion = counts.get("input_tokens", 0), counts.get("output_tokens", 0)
    spent = whole_numbers(said.get("output_tokens_details"), "reasoning_tokens")
    read = whole_numbers(said.get("input_tokens_details"), "cached_tokens", "cache_write_tokens")
    return Usage(
        prompt,
        completion,
        counts.get("total_tokens", prompt + completion),
        prompt_tokens_details=PromptTokens(**read) if read else None,
        completion_tokens_details=CompletionTokens(**spent) if spent else None,
    )
