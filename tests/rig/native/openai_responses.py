"""Says a scenario on the wire of the Responses API (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.rig.native.scenarios import Failure, Scenario
from tests.rig.wire import CREATED, JsonObject

NAME = "openai_responses"
ID = "resp_rig"
_CODES = {
    "too long": ("invalid_request_error", "context_length_exceeded"),
    "rate limited": ("rate_limit_error", "rate_limit_exceeded"),
    "refused": ("invalid_request_error", "content_policy_violation"),
    "overloaded": ("server_error", None),
    "bad key": ("invalid_request_error", "invalid_api_key"),
    "bad request": ("invalid_request_error", None),
}
_HOLLOW: dict[str, JsonObject] = {
    "reasoning": {"summary": []},
    "message": {"content": []},
    "function_call": {"arguments": ""},
}
_WHY = {"length": "max_output_tokens", "content_filter": "content_filter"}


def asked(path: str, body: JsonObject) -> tuple[str, bool] | None:
    """The model that a request names and whether it wants a stream."""
    if path.endswith("/responses"):
        return str(body.get("model")), bool(body.get("stream"))
    return None


def events(scenario: Scenario) -> list[bytes]:
    """The answer as server-sent events."""
    return written(list(told(scenario)))


def written(said: list[JsonObject]) -> list[bytes]:
    """Events as bytes, numbered."""
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(said)]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in numbered]


def told(scenario: Scenario) -> Iterator[JsonObject]:
    """The events as objects."""
    begun = {**whole(scenario), "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    items = _items(scenario)
    for index, item in enumerate(items):
        of: JsonObject = {"item_id": item["id"], "output_index": index}
        opened = {**item, **_HOLLOW[item["type"]], "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": opened}
        last = scenario.ends != "end" and item is items[-1]
        match item["type"]:
            case "reasoning":
                yield from _thought(scenario, of)
            case "message":
                yield from _spoken(scenario, of, done=not last)
            case _:
                yield from _called(item["arguments"], of)
        if last:
            return
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    end = "incomplete" if scenario.finish in _WHY else "completed"
    yield {"type": f"response.{end}", "response": whole(scenario)}


def whole(scenario: Scenario) -> JsonObject:
    """The answer unstreamed."""
    why = _WHY.get(scenario.finish)
    prompt, cached, completion, reasoning = scenario.usage
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }
    return {
        "id": ID,
        "object": "response",
        "created_at": CREATED,
        "status": "incomplete" if why else "completed",
        "error": None,
        "incomplete_details": {"reason": why} if why else None,
        "model": scenario.name,
        "output": _items(scenario),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "store": False,
        "usage": usage,
    }


def failure(failure: Failure) -> tuple[JsonObject, dict[str, str]]:
    """An error as body and headers."""
    kind, code = _CODES[failure.kind]
    headers = {} if failure.retry_after is None else {"retry-after": str(failure.retry_after)}
    return {"error": {"message": failure.message, "type": kind, "param": None, "code": code}}, headers


def _items(scenario: Scenario) -> list[JsonObject]:
    items: list[JsonObject] = []
    if scenario.reasoning:
        summary = [{"type": "summary_text", "text": "".join(scenario.reasoning)}]
        items.append(
            {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": scenario.signature or None}
        )
    if scenario.text:
        part = _part("".join(scenario.text))
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for number, call in enumerate(scenario.calls):
        named = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        items.append({"type": "function_call", "id": f"fc_{number}", "status": "completed", **named})
    return items


def _part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _thought(scenario: Scenario, of: JsonObject) -> Iterator[JsonObject]:
    at: dict[str, Any] = {**of, "summary_index": 0}
    full = "".join(scenario.reasoning)
    name = "response.reasoning_summary"
    yield {**at, "type": f"{name}_part.added", "part": {"type": "summary_text", "text": ""}}
    yield from ({**at, "type": f"{name}_text.delta", "delta": piece} for piece in scenario.reasoning)
    yield {**at, "type": f"{name}_text.done", "text": full}
    yield {**at, "type": f"{name}_part.done", "part": {"type": "summary_text", "text": full}}


def _spoken(scenario: Scenario, of: JsonObject, *, done: bool) -> Iterator[JsonObject]:
    at: dict[str, Any] = {**of, "content_index": 0}
    full = "".join(scenario.text)
    yield {**at, "type": "response.content_part.added", "part": _part("")}
    for piece in scenario.text:
        yield {**at, "type": "response.output_text.delta", "delta": piece, "logprobs": [], "obfuscation": "x7Yq"}
    if done:
        yield {**at, "type": "response.output_text.done", "text": full, "logprobs": []}
        yield {**at, "type": "response.content_part.done", "part": _part(full)}


def _called(arguments: str, of: JsonObject) -> Iterator[JsonObject]:
    half = len(arguments) // 2
    for piece in (arguments[:half], arguments[half:]):
        yield {**of, "type": "response.function_call_arguments.delta", "delta": piece}
    yield {**of, "type": "response.function_call_arguments.done", "arguments": arguments}


def begun() -> JsonObject:
    """The first event of an answer written by hand."""
    return {"type": "response.created", "response": {"id": "resp_1", "model": "m", "created_at": 5.0}}


def ended(**fields: Any) -> JsonObject:
    """The last event; `fields` are those of the response."""
    return {"type": "response.completed", "response": {"status": "completed", **fields}}


def delta(kind: str, text: str, index: int, **at: Any) -> JsonObject:
    """A piece of the item at a place."""
    return {"type": f"response.{kind}.delta", "delta": text, "output_index": index, "item_id": f"i{index}", **at}


def item(step: str, index: int, kind: str, **fields: Any) -> JsonObject:
    """The beginning (`added`) or the end (`done`) of the item at a place."""
    held: JsonObject = {"type": kind, "id": f"i{index}", **fields}
    return {"type": f"response.output_item.{step}", "output_index": index, "item": held}
