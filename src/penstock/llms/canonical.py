"""Makes any service's stream canonical: tool calls one after another, reasoning apart from content.

A chunk that needs nothing is not touched, which is nearly every chunk; one that is changed keeps its JSON in `raw`.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from penstock.messages import Chunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta, is_array, is_object

_OPEN, _CLOSE = "<think>", "</think>"


class Thinking:
    """Splits `<think>...</think>` at the start of a text, which arrives in pieces, from the answer after it."""

    __slots__ = ("_closed", "_held", "inside", "settled")

    def __init__(self) -> None:
        self._held: str = ""
        self.inside = self._closed = self.settled = False

    def feed(self, text: str) -> tuple[str, str]:
        """Reasoning and content that this piece completes; what may still be a tag is held."""
        text, self._held = self._held + text, ""
        if self.settled:
            return "", text
        if self._closed:
            return "", self._after(text)
        if not self.inside:
            start = text.lstrip()
            if len(start) < len(_OPEN) and _OPEN.startswith(start):
                self._held = text
                return "", ""
            if not start.startswith(_OPEN):
                self.settled = True
                return "", text
            self.inside, text = True, start[len(_OPEN) :]
        thought, closed, rest = text.partition(_CLOSE)
        if closed:
            self._closed = True
            return thought, self._after(rest)
        keep = next((n for n in range(min(len(_CLOSE) - 1, len(text)), 0, -1) if _CLOSE.startswith(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def end(self) -> tuple[str, str]:
        """What was held when the text ended."""
        held, self._held = self._held, ""
        return (held, "") if self.inside else ("", held)

    def _after(self, text: str) -> str:
        """The answer without the blank lines that part it from the reasoning."""
        text = text.lstrip("\n")
        self.settled = bool(text)
        return text


class _Call:
    """One tool call while it arrives."""

    __slots__ = ("doubtful", "extra", "held", "id", "name", "parts", "place", "started", "wire_index")

    def __init__(self, place: int, wire_index: int | None, *, doubtful: bool) -> None:
        self.place, self.wire_index, self.doubtful = place, wire_index, doubtful
        self.id: str | None = None
        self.name: str | None = None
        self.parts: list[str] = []
        self.held: list[str] = []
        self.started = False
        self.extra: Any = None

    @property
    def complete(self) -> bool:
        """Whether the arguments are JSON already."""
        try:
            msgspec.json.decode("".join(self.parts))
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        return True

    @property
    def known(self) -> bool:
        """Whether it may be passed on: it has its name, and more than a name that was said before."""
        return self.name is not None and not (self.doubtful and not self.parts)

    def add(self, piece: ToolCallDelta) -> None:
        """Take one piece in."""
        self.id = self.id or piece.id
        self.extra = self.extra or piece.extra_content
        if piece.function is not None:
            self.name = self.name or piece.function.name
            if piece.function.arguments:
                self.parts.append(piece.function.arguments)
                self.held.append(piece.function.arguments)

    def take(self) -> ToolCallDelta:
        """The piece that passes on what is held."""
        arguments, self.held = "".join(self.held), []
        if self.started:
            return ToolCallDelta(index=self.place, function=FunctionDelta(arguments=arguments))
        self.started = True
        self.id = self.id or f"call_{uuid.uuid4().hex[:24]}"
        function = FunctionDelta(name=self.name or "", arguments=arguments)
        return ToolCallDelta(index=self.place, id=self.id, type="function", function=function, extra_content=self.extra)


class ToolCalls:
    """Puts the pieces of parallel tool calls in order: one index after another, id and name once, an index always."""

    __slots__ = ("_calls", "_open")

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._open = 0

    def feed(self, pieces: list[ToolCallDelta]) -> list[ToolCallDelta]:
        """The pieces that may be passed on now; those of a later call wait until the one before it is complete."""
        ready: list[ToolCallDelta] = []
        for piece in pieces:
            call = self._call_of(piece)
            call.add(piece)
            if call.known and (call.place == self._open or (call.place < self._open and "".join(call.held).strip())):
                _join(ready, call.take())
            while self._open + 1 < len(self._calls) and self._calls[self._open].complete:
                self._open += 1
                if self._calls[self._open].known:
                    _join(ready, self._calls[self._open].take())
        return ready

    def end(self) -> list[ToolCallDelta]:
        """The pieces still waiting when the stream ended."""
        waiting, self._open = self._calls[self._open :], len(self._calls)
        return [call.take() for call in waiting if call.held or not (call.started or call.doubtful)]

    def _call_of(self, piece: ToolCallDelta) -> _Call:
        """The call a piece belongs to, by id, else by index, else the last one; a new one where a name begins it."""
        name, arguments = (piece.function.name, piece.function.arguments) if piece.function else (None, None)
        if piece.id and (known := next((c for c in self._calls if c.id == piece.id), None)):
            return known
        same = [call for call in self._calls if call.wire_index == piece.index]
        follows = piece.index is None or not (piece.id or name)
        last = same[-1] if same else self._calls[-1] if self._calls and follows else None
        doubtful = False
        if last is not None:
            if not name or last.name is None:
                return last
            if not (piece.id and last.id) and name == last.name:
                if not last.complete:
                    return last
                doubtful = not arguments  # a name said again after its call, or the next call of the same function
        call = _Call(len(self._calls), piece.index, doubtful=doubtful)
        self._calls.append(call)
        return call


def _join(ready: list[ToolCallDelta], piece: ToolCallDelta) -> None:
    """Add a piece; one that goes on with the index before it becomes part of that entry."""
    last = ready[-1].function if ready and ready[-1].index == piece.index else None
    if last is None or piece.function is None:
        ready.append(piece)
    else:
        last.arguments = (last.arguments or "") + (piece.function.arguments or "")


class _Choice:
    """What must be remembered of one choice between its chunks."""

    __slots__ = ("calls", "thinking")

    def __init__(self) -> None:
        self.thinking = Thinking()
        self.calls: ToolCalls | None = None


class Canonical:
    """Repairs the chunks of one stream in place; `repair(view)` tells whether it changed anything."""

    __slots__ = ("_choices",)

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}

    def repair(self, view: Chunk) -> bool:
        """Make one chunk canonical."""
        changed = False
        for choice in view.choices:
            delta = choice.delta
            state = self._choices.get(choice.index)
            if state is None:
                state = self._choices[choice.index] = _Choice()
            if delta.content and not state.thinking.settled:
                changed |= _think(state.thinking, delta)
            if delta.reasoning_details and not (delta.reasoning or delta.reasoning_content):
                delta.reasoning = _detailed(delta.reasoning_details)
            if delta.reasoning_content != delta.reasoning:
                delta.reasoning_content = delta.reasoning = delta.reasoning_content or delta.reasoning
                changed = True
            if delta.tool_calls:
                changed |= _order(state, delta)
            if choice.finish_reason is not None:
                changed |= _flush(state, choice)
        return changed


def _think(thinking: Thinking, delta: Delta) -> bool:
    text = delta.content or ""
    thought, content = thinking.feed(text)
    if content == text:
        return False
    delta.content = content or None
    if thought:
        delta.reasoning_content = delta.reasoning = (delta.reasoning_content or delta.reasoning or "") + thought
    return True


def _detailed(details: Any) -> str | None:
    """The readable text of a list of reasoning details; their opaque parts stay in the chunk's JSON."""
    parts = [part for part in details if is_object(part)] if is_array(details) else []
    return "".join(str(part.get("text") or part.get("summary") or "") for part in parts) or None


def _order(state: _Choice, delta: Delta) -> bool:
    if state.calls is None:
        state.calls = ToolCalls()
    pieces = delta.tool_calls or []
    ready = state.calls.feed(pieces)
    if ready == pieces:
        return False
    delta.tool_calls = ready or None
    return True


def _flush(state: _Choice, choice: ChunkChoice) -> bool:
    thought, content = state.thinking.end()
    pieces = state.calls.end() if state.calls else []
    delta = choice.delta
    if thought:
        delta.reasoning_content = delta.reasoning = (delta.reasoning or "") + thought
    if content:
        delta.content = content + (delta.content or "")
    if pieces:
        delta.tool_calls = [*(delta.tool_calls or []), *pieces]
    return bool(thought or content or pieces)
