"""Decodes what services send on the OpenAI chat wire into views, strictly first and leniently where that fails."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.errors import BadAnswer
from penstock.llms.failures import Who, from_said
from penstock.messages import Chunk, ChunkChoice, Delta, Usage, is_array, is_object


class _ReplyChoice(msgspec.Struct, gc=False):
    message: Delta
    index: int = 0
    finish_reason: str | None = None


class _Reply(msgspec.Struct, gc=False):
    choices: list[_ReplyChoice]
    id: str
    object: str
    created: int
    model: str
    usage: Usage | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(Chunk).decode
_reply = msgspec.json.Decoder(_Reply).decode
_any = msgspec.json.Decoder().decode
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_LARGEST = 2**63


def decode_chunk(payload: bytes, who: Who) -> tuple[Chunk, bool]:
    """The view of one chunk and whether it had to be mended; raises the error a service sent in its place."""
    try:
        view = _chunk(payload)
    except UNREADABLE:
        return _mended(payload, "delta", who), True
    if view.error:
        raise from_said(_any(payload), who=who)
    return view, False


def decode_reply(body: bytes, who: Who) -> tuple[Chunk, bool]:
    """A whole answer as the view of its only chunk, and whether it had to be mended."""
    try:
        reply = _reply(body)
    except UNREADABLE:
        return _mended(body, "message", who), True
    if reply.error:
        raise from_said(_any(body), who=who)
    view = Chunk(
        choices=[_as_delta(choice) for choice in reply.choices],
        id=reply.id,
        object=reply.object,
        created=reply.created,
        model=reply.model,
        usage=reply.usage,
    )
    return view, False


def _as_delta(choice: _ReplyChoice) -> ChunkChoice:
    delta = choice.message
    delta.role, delta.tool_calls = "assistant", delta.tool_calls or None
    for position, call in enumerate(delta.tool_calls or ()):
        call.index = position
    return ChunkChoice(delta=delta, index=choice.index, finish_reason=choice.finish_reason)


def _mended(payload: bytes, part: str, who: Who) -> Chunk:
    """The view of JSON that is nearly right: numbers as floats, null for nothing, arguments as an object."""
    try:
        said = _any(payload)
    except UNREADABLE as error:
        raise malformed(who, str(error)) from error
    if not is_object(said):
        raise malformed(who, f"expected an object, got {type(said).__name__}")
    if said.get("error"):
        raise from_said(said, who=who)
    fields: dict[str, Any] = {name: said[name] for name in ("id", "object", "model") if isinstance(said.get(name), str)}
    try:
        rows = msgspec.convert(said.get("choices") or [], list[dict[str, Any]])
        fields["choices"] = [_mended_choice(n, choice, part) for n, choice in enumerate(rows)]
        view = msgspec.convert(fields | whole_numbers(said, "created"), Chunk, strict=False)
    except msgspec.ValidationError as error:
        raise malformed(who, str(error)) from error
    view.usage = _mended_usage(said.get("usage"))
    if part == "message":
        for choice in view.choices:
            for position, call in enumerate(choice.delta.tool_calls or ()):
                call.index = position
    return view


def _mended_choice(position: int, choice: dict[str, Any], part: str) -> dict[str, Any]:
    said = msgspec.convert(choice.get(part) or {}, dict[str, Any])
    delta = {name: value for name, value in said.items() if value is not None}
    if is_array(delta.get("content")):
        parts = objects(delta["content"])
        delta["content"] = "".join(str(piece.get("text") or "") for piece in parts)
        thoughts = [str(piece.get("text") or "") for part in parts for piece in objects(part.get("thinking"))]
        if thoughts:
            delta["reasoning_content"] = "".join(thoughts)
    for call in objects(delta.get("tool_calls")):
        function = call.get("function")
        if is_object(function) and is_object(function.get("arguments")):
            function["arguments"] = msgspec.json.encode(function["arguments"]).decode()
    index = choice.get("index")
    return {
        "index": index if isinstance(index, int) else position,
        "delta": delta,
        "finish_reason": choice.get("finish_reason"),
    }


def _mended_usage(said: Any) -> Usage | None:
    if not is_object(said):
        return None
    counts: dict[str, Any] = whole_numbers(said, "prompt_tokens", "completion_tokens", "total_tokens")
    if not counts:
        return None
    counts["prompt_tokens_details"] = whole_numbers(said.get("prompt_tokens_details"), "cached_tokens") or None
    counts["completion_tokens_details"] = (
        whole_numbers(said.get("completion_tokens_details"), "reasoning_tokens") or None
    )
    return msgspec.convert(counts, Usage)


def whole_numbers(said: Any, *names: str) -> dict[str, int]:
    """Those of the named fields that are numbers, as integers of at most 64 bits."""
    found = {name: said.get(name) for name in names} if is_object(said) else {}
    return {name: int(n) for name, n in found.items() if isinstance(n, int | float) and abs(n) < _LARGEST}


def objects(said: Any) -> list[dict[str, Any]]:
    """The objects of an array; none of anything else."""
    return [item for item in said if is_object(item)] if is_array(said) else []


def malformed(who: Who, reason: str) -> BadAnswer:
    """The error of an answer that is not what its wire says."""
    return BadAnswer(f"{who.provider} sent a malformed answer: {reason}", provider=who.provider)
