"""What an executor may tell while it works: one closed union, and the fold that turns events into an answer."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from penstock.messages import ChatReply, Choice, Chunk, ChunkChoice, ToolCall, Usage, merged
from penstock.outcome import Cancelled, Failed, Finished


class Told(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of the events below; `path` is empty for a run's own words, else names the child that spoke: "plan/llm"."""

    path: str = ""


class Chunks(Told, frozen=True, kw_only=True, gc=False):
    """What one network read brought: the decoded views and, where nothing was repaired, the untouched bytes.

    `data` holds whole server-sent events, never the end marker.
    """

    views: list[Chunk]
    data: bytes | None = None

    @property
    def text(self) -> str:
        """The text these chunks add to choice 0."""
        return "".join(c.delta.content or "" for view in self.views for c in view.choices if c.index == 0)


class Text(Told, frozen=True, gc=False):
    """A piece of answer text from an executor that is not an LLM."""

    text: str


class Item(Told, frozen=True):
    """One value of a stream that is not text, as a streaming tool yields it."""

    value: Any


class Reasoning(Told, frozen=True, gc=False):
    """A piece of reasoning; kept apart from the answer."""

    text: str


class Used(Told, frozen=True, kw_only=True):
    """The tokens of one call, told once, where the call was made; `ttft_s` is the time to its first token.

    `cost` is what the call costs in USD; None where that is not known.
    """

    usage: Usage
    model: str = ""
    provider: str = ""
    ttft_s: float | None = None
    cost: Decimal | None = None


class Retrying(Told, frozen=True, kw_only=True):
    """An attempt failed with `error`; the next one, number `attempt`, starts after `wait_s` seconds."""

    attempt: int
    wait_s: float
    error: Exception


class Switched(Told, frozen=True, kw_only=True):
    """The call goes on with another executor, named `to`, because of `error`."""

    to: str
    error: Exception


class ToolStarted(Told, frozen=True, kw_only=True):
    """A tool that a model asked for starts; `arguments` is the JSON text as the model wrote it."""

    call_id: str
    name: str
    arguments: str


class ToolEnded(Told, frozen=True, kw_only=True):
    """A tool's call has ended, after `seconds`; there is one for each `ToolStarted`.

    `content` is its value, where that may be shown to the client; `error` is the message of its failure, else empty.
    """

    call_id: str
    name: str
    content: Any = None
    error: str = ""
    seconds: float = 0.0


Event: TypeAlias = (
    Chunks
    | Text
    | Item
    | Reasoning
    | Used
    | Retrying
    | Switched
    | ToolStarted
    | ToolEnded
    | Finished[Any]
    | Failed
    | Cancelled
)


def summed(cost: Decimal | None, used: Used) -> Decimal | None:
    """A cost with that of one more call: unknown as soon as one is."""
    return None if cost is None or used.cost is None else cost + used.cost


class _Parts:
    """One choice while it arrives."""

    __slots__ = ("calls", "content", "extra", "extras", "finish_reason", "reasoning", "refusal")

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[int, list[str]] = {}
        self.finish_reason: str | None = None
        self.extra: Any = None
        self.extras: dict[int, Any] = {}

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.content:
            self.content.append(delta.content)
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            self.reasoning.append(thought)
        if delta.refusal:
            self.refusal.append(delta.refusal)
        for piece in delta.tool_calls or ():
            call = self.calls.setdefault(piece.index or 0, [piece.id or "", ""])
            if piece.function:
                call[1] = call[1] or piece.function.name or ""
                call.append(piece.function.arguments or "")
            if piece.extra_content:
                self.extras[piece.index or 0] = merged(self.extras.get(piece.index or 0), piece.extra_content)
        if delta.extra_content:
            self.extra = merged(self.extra, delta.extra_content)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason

    def choice(self, index: int) -> Choice:
        calls = (
            ToolCall(call[0], call[1], "".join(call[2:]), self.extras.get(place))
            for place, call in sorted(self.calls.items())
        )
        return Choice(
            index=index,
            content="".join(self.content) if self.content or not (self.calls or self.refusal) else None,
            reasoning="".join(self.reasoning) or None,
            refusal="".join(self.refusal) or None,
            tool_calls=tuple(calls),
            finish_reason=self.finish_reason,
            extra_content=self.extra,
        )


class Fold:
    """Folds events into the answer: text, reasoning and tool calls told at the own path, usage of all paths."""

    def __init__(self) -> None:
        self._choices: dict[int, _Parts] = {}
        self._first = Chunk(choices=[])
        self.usage = Usage()
        self.cost: Decimal | None = Decimal(0)
        self.pieces = 0

    def add(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Used):
            self.usage = self.usage + event.usage
            self.cost = summed(self.cost, event)
        elif isinstance(event, Chunks):
            if not event.path:
                for view in event.views:
                    self.add_chunk(view)
        elif isinstance(event, (Text, Reasoning)) and not event.path:  # a union is built at each call
            parts = self._choices.setdefault(0, _Parts())
            (parts.content if isinstance(event, Text) else parts.reasoning).append(event.text)

    def add_chunk(self, view: Chunk) -> None:
        """Take one chunk in."""
        if self._first.id is None:
            self._first = view
        if not view.choices:
            return
        self.pieces += 1
        for choice in view.choices:
            parts = self._choices.get(choice.index)
            if parts is None:
                parts = self._choices[choice.index] = _Parts()
            parts.add(choice)

    @property
    def content(self) -> str:
        """The text of choice 0 so far."""
        parts = self._choices.get(0)
        return "".join(parts.content) if parts else ""

    @property
    def reasoning(self) -> str:
        """The reasoning of choice 0 so far."""
        parts = self._choices.get(0)
        return "".join(parts.reasoning) if parts else ""

    @property
    def unfinished(self) -> dict[int, bool]:
        """The choices without a finish reason, each with whether it holds tool calls."""
        return {index: bool(parts.calls) for index, parts in self._choices.items() if not parts.finish_reason}

    @property
    def model(self) -> str:
        """The model that the first chunk names."""
        return self._first.model or ""

    def reply(self, usage: Usage | None = None, *, data: bytes | None = None, raw: bytes | None = None) -> ChatReply:
        """What has arrived, as a reply."""
        first = self._first
        return ChatReply(
            id=first.id or "",
            model=first.model or "",
            created=first.created or 0,
            choices=tuple(parts.choice(index) for index, parts in sorted(self._choices.items())),
            usage=usage,
            data=data,
            raw=raw,
        )
