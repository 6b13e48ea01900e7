"""Makes the JSON objects of the OpenAI chat API: completions, chunks, usage, models, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

JsonObject = dict[str, Any]

ID, CREATED, MODEL = "chatcmpl-rig", 1_750_000_000, "rig"


def usage_of(prompt: int, completion: int) -> JsonObject:
    """A usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(
    content: str | None = None,
    *,
    tool_calls: Sequence[JsonObject] | None = None,
    finish: str | None = None,
    usage: JsonObject | None = None,
    model: str = MODEL,
) -> JsonObject:
    """A whole answer with one choice; it finishes with `tool_calls` if there are some, else with `stop`."""
    message: JsonObject = {"role": "assistant", "content": content, "refusal": None}
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    finish = finish or ("tool_calls" if tool_calls else "stop")
    return {
        "id": ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": usage or usage_of(prompt=3, completion=len((content or "").split())),
    }


def chunk(content: str | None = None, *, finish: str | None = None, index: int = 0, **delta: Any) -> JsonObject:
    """A chunk of a stream; `delta` holds more fields of the delta (`role`, `tool_calls`, `reasoning_content`).

    `usage` and `model` among them go to the chunk itself; with usage and nothing else it has no choices.
    """
    top: JsonObject = {name: delta.pop(name) for name in ("usage", "model") if name in delta}
    if content is not None:
        delta["content"] = content
    choices = [{"index": index, "delta": delta, "finish_reason": finish}] if delta or finish or not top else []
    return {"id": ID, "object": "chat.completion.chunk", "created": CREATED, "model": MODEL, "choices": choices, **top}


def text_stream(text: str, *, model: str = MODEL, usage: JsonObject | None = None) -> list[JsonObject]:
    """The chunks of an answer: the role, one chunk per word, the finish reason, then usage if given."""
    words = text.split(" ")
    pieces = [words[0], *(f" {word}" for word in words[1:])]
    chunks = [chunk("", role="assistant", model=model), *(chunk(piece, model=model) for piece in pieces)]
    chunks.append(chunk(finish="stop", model=model))
    return chunks if usage is None else [*chunks, chunk(usage=usage, model=model)]


def tool_call(name: str, arguments: str, *, call_id: str = "call_1", index: int | None = None) -> JsonObject:
    """A tool call; with an `index` it is the first fragment of one in a stream."""
    call: JsonObject = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return call if index is None else {"index": index, **call}


def tool_fragment(arguments: str, *, index: int = 0) -> JsonObject:
    """A later fragment of a tool call in a stream."""
    return {"index": index, "function": {"arguments": arguments}}


def error_body(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> JsonObject:
    """An error object as the API sends it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def model_list(*names: str) -> JsonObject:
    """The answer to `GET /v1/models`."""
    rows = [{"id": name, "object": "model", "created": CREATED, "owned_by": "rig"} for name in names]
    return {"object": "list", "data": rows}
