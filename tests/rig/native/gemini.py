"""Says a scenario on Google's generateContent wire (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.rig.native.scenarios import Failure, Scenario
from tests.rig.wire import ID, JsonObject

NAME = "gemini"
_PATH = re.compile(r"/models/([^/]+):(generateContent|streamGenerateContent\?alt=sse)$")
_FINISHES = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_STATUSES = {
    "too long": "INVALID_ARGUMENT",
    "rate limited": "RESOURCE_EXHAUSTED",
    "refused": "FAILED_PRECONDITION",
    "overloaded": "UNAVAILABLE",
    "bad key": "INVALID_ARGUMENT",
    "bad request": "INVALID_ARGUMENT",
}
_TYPE = "type.googleapis.com/google.rpc."


def asked(path: str, body: JsonObject) -> tuple[str, bool] | None:
    """The model that a request names and whether it wants a stream."""
    del body
    found = _PATH.search(path)
    return (found[1], "stream" in found[2]) if found else None


def events(scenario: Scenario) -> list[bytes]:
    """The answer as server-sent events: each is an answer with the next parts, and with the usage so far."""
    prompt, cached, _, _ = scenario.usage
    so_far = {"promptTokenCount": prompt, "cachedContentTokenCount": cached, "totalTokenCount": prompt}
    written = [_answer(scenario, [part], usage=so_far) for part in _parts(scenario)]
    if scenario.ends == "end":
        last: list[JsonObject] = [{"text": ""}]
        if scenario.signature and not scenario.calls:
            last = [{"text": "", "thoughtSignature": scenario.signature}]
        written.append(_answer(scenario, last, finish=scenario.finish, usage=_usage(scenario)))
    return [f"data: {json.dumps(answer)}\r\n\r\n".encode() for answer in written]


def whole(scenario: Scenario) -> JsonObject:
    """The answer unstreamed: its texts are joined."""
    parts: list[JsonObject] = []
    if scenario.reasoning:
        parts.append({"text": "".join(scenario.reasoning), "thought": True})
    if scenario.text:
        parts.append({"text": "".join(scenario.text)})
    parts += [part for part in _parts(scenario) if "functionCall" in part]
    if scenario.signature and not scenario.calls:
        parts[-1]["thoughtSignature"] = scenario.signature
    return _answer(scenario, parts, finish=scenario.finish, usage=_usage(scenario))


def failure(failure: Failure) -> tuple[JsonObject, dict[str, str]]:
    """An error as body and headers; what is too long has no code of its own."""
    message, details = failure.message, list[JsonObject]()
    if failure.kind == "too long":
        message = f"The input token count exceeds the maximum number of tokens allowed: {message}"
    if failure.kind == "bad key":
        details.append({"@type": f"{_TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"})
    if failure.retry_after is not None:
        details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{failure.retry_after}s"})
    error = {"code": failure.status, "message": message, "status": _STATUSES[failure.kind], "details": details}
    return {"error": error}, {}


def _parts(scenario: Scenario) -> list[JsonObject]:
    parts: list[JsonObject] = [{"text": piece, "thought": True} for piece in scenario.reasoning]
    parts += [{"text": piece} for piece in scenario.text]
    for number, call in enumerate(scenario.calls):
        said = {"id": call.id, "name": call.name, "args": json.loads(call.arguments)}
        signed = scenario.signature and not number
        parts.append({"functionCall": said, **({"thoughtSignature": scenario.signature} if signed else {})})
    return parts


def _answer(scenario: Scenario, parts: list[Any], *, finish: str | None = None, usage: JsonObject) -> JsonObject:
    candidate: JsonObject = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = _FINISHES[finish]
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": scenario.name, "responseId": ID}


def _usage(scenario: Scenario) -> JsonObject:
    prompt, cached, completion, thoughts = scenario.usage
    return {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": cached,
        "candidatesTokenCount": completion - thoughts,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": prompt + completion,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }
