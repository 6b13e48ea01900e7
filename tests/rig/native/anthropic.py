"""Says a scenario on Anthropic's Messages wire (https://platform.claude.com/docs/en/api/messages-streaming)."""

from __future__ import annotations

import json

from tests.rig.native.scenarios import Failure, Scenario
from tests.rig.wire import JsonObject

NAME = "anthropic"
ID = "msg_rig"
REQUEST_ID = "req_rig"
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERRORS = {
    "too long": "invalid_request_error",
    "rate limited": "rate_limit_error",
    "refused": "invalid_request_error",
    "overloaded": "overloaded_error",
    "bad key": "authentication_error",
    "bad request": "invalid_request_error",
}
_SAYINGS = {"too long": "prompt is too long: ", "refused": "Output blocked by content filtering policy: "}


def asked(path: str, body: JsonObject) -> tuple[str, bool] | None:
    """The model that a request names and whether it wants a stream."""
    if path.partition("?")[0].endswith("/messages"):
        return str(body.get("model")), bool(body.get("stream"))
    return None


def events(scenario: Scenario) -> list[bytes]:
    """The answer as server-sent events."""
    start = _message(scenario, content=[], usage=_counts(scenario) | {"output_tokens": 1})
    start["stop_reason"] = None
    said: list[JsonObject] = [{"type": "message_start", "message": start}]
    for index, (block, deltas) in enumerate(_blocks(scenario)):
        said.append({"type": "content_block_start", "index": index, "content_block": block})
        said += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        said.append({"type": "content_block_stop", "index": index})
    said.insert(2, {"type": "ping"})
    if scenario.ends == "end":
        stop = {"stop_reason": _STOPS[scenario.finish], "stop_sequence": None}
        said.append({"type": "message_delta", "delta": stop, "usage": _counts(scenario)})
        said.append({"type": "message_stop"})
    else:
        del said[-1]
    return [event(one) for one in said]


def event(said: JsonObject) -> bytes:
    """One event, with its name as the service writes it."""
    return f"event: {said['type']}\ndata: {json.dumps(said)}\n\n".encode()


def error_event(kind: str, message: str) -> bytes:
    """An error in the middle of a stream."""
    return event({"type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID})


def whole(scenario: Scenario) -> JsonObject:
    """The answer unstreamed."""
    content: list[JsonObject] = []
    if scenario.signature:
        said = "".join(scenario.reasoning)
        content.append({"type": "thinking", "thinking": said, "signature": scenario.signature})
    if scenario.text:
        content.append({"type": "text", "text": "".join(scenario.text)})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in scenario.calls
    ]
    return _message(scenario, content=content, usage=_counts(scenario))


def failure(failure: Failure) -> tuple[JsonObject, dict[str, str]]:
    """An error as body and headers; what is too long or refused has no code, only words."""
    headers = {"request-id": REQUEST_ID}
    if failure.retry_after is not None:
        headers["retry-after"] = str(failure.retry_after)
    error = {"type": _ERRORS[failure.kind], "message": _SAYINGS.get(failure.kind, "") + failure.message}
    return {"type": "error", "error": error, "request_id": REQUEST_ID}, headers


def _blocks(scenario: Scenario) -> list[tuple[JsonObject, list[JsonObject]]]:
    """Each block as it begins, and what its events add to it."""
    blocks: list[tuple[JsonObject, list[JsonObject]]] = []
    if scenario.signature:
        pieces: list[JsonObject] = [{"type": "thinking_delta", "thinking": piece} for piece in scenario.reasoning]
        pieces.append({"type": "signature_delta", "signature": scenario.signature})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, pieces))
    if scenario.text:
        texts: list[JsonObject] = [{"type": "text_delta", "text": piece} for piece in scenario.text]
        blocks.append(({"type": "text", "text": ""}, texts))
    for call in scenario.calls:
        half = len(call.arguments) // 2
        halves = ("", call.arguments[:half], call.arguments[half:])
        inputs: list[JsonObject] = [{"type": "input_json_delta", "partial_json": piece} for piece in halves]
        blocks.append(({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, inputs))
    return blocks


def _message(scenario: Scenario, *, content: list[JsonObject], usage: JsonObject) -> JsonObject:
    return {
        "id": ID,
        "type": "message",
        "role": "assistant",
        "model": scenario.name,
        "content": content,
        "stop_reason": _STOPS[scenario.finish],
        "stop_sequence": None,
        "usage": usage,
    }


def _counts(scenario: Scenario) -> JsonObject:
    """The usage: what a cache gave is not among the input tokens here."""
    prompt, cached, completion, reasoning = scenario.usage
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
        "output_tokens_details": {"thinking_tokens": reasoning},
    }
