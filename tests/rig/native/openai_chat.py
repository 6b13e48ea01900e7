"""Says a scenario on the OpenAI chat wire (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import json
from typing import Any

from tests.rig.native.scenarios import Failure, Scenario
from tests.rig.wire import CREATED, ID, JsonObject

NAME = "openai"
_CODES = {
    "too long": ("invalid_request_error", "context_length_exceeded"),
    "rate limited": ("rate_limit_error", "rate_limit_exceeded"),
    "refused": ("invalid_request_error", "content_policy_violation"),
    "overloaded": ("server_error", None),
    "bad key": ("invalid_request_error", "invalid_api_key"),
    "bad request": ("invalid_request_error", None),
}


def asked(path: str, body: JsonObject) -> tuple[str, bool] | None:
    """The model that a request names and whether it wants a stream."""
    if path.endswith("/chat/completions"):
        return str(body.get("model")), bool(body.get("stream"))
    return None


def events(scenario: Scenario) -> list[bytes]:
    """The answer as server-sent events."""
    deltas: list[JsonObject] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in scenario.reasoning]
    deltas += [{"content": piece} for piece in scenario.text]
    for index, call in enumerate(scenario.calls):
        half = len(call.arguments) // 2
        first: JsonObject = {"name": call.name, "arguments": ""}
        deltas.append({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": first}]})
        for piece in (call.arguments[:half], call.arguments[half:]):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    chunks = [_chunk(scenario, [{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    if scenario.ends == "end":
        chunks.append(_chunk(scenario, [{"index": 0, "delta": {}, "finish_reason": scenario.finish}]))
        chunks.append(_chunk(scenario, []) | {"usage": _usage(scenario)})
    written = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    return [*written, b"data: [DONE]\n\n"] if scenario.ends == "end" else written


def whole(scenario: Scenario) -> JsonObject:
    """The answer unstreamed."""
    message: JsonObject = {"role": "assistant", "content": "".join(scenario.text) or None, "refusal": None}
    if scenario.reasoning:
        message["reasoning_content"] = "".join(scenario.reasoning)
    if scenario.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in scenario.calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": scenario.finish, "logprobs": None}
    return {
        "id": ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": scenario.name,
        "choices": [choice],
        "usage": _usage(scenario),
    }


def failure(failure: Failure) -> tuple[JsonObject, dict[str, str]]:
    """An error as body and headers."""
    kind, code = _CODES[failure.kind]
    headers = {} if failure.retry_after is None else {"retry-after": str(failure.retry_after)}
    return {"error": {"message": failure.message, "type": kind, "param": None, "code": code}}, headers


def _chunk(scenario: Scenario, choices: list[Any]) -> JsonObject:
    return {
        "id": ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": scenario.name,
        "choices": choices,
    }


def _usage(scenario: Scenario) -> JsonObject:
    prompt, cached, completion, reasoning = scenario.usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
