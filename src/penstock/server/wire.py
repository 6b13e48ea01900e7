"""Turns request bodies into `ChatRequest`s and errors into answers, both in OpenAI's shape."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, NamedTuple

import msgspec

from penstock.errors import (
    AgentUnavailable,
    BadAnswer,
    BadArguments,
    BadRequest,
    CyclicPlan,
    Denied,
    Forbidden,
    Invalid,
    LimitReached,
    LlmError,
    NotFound,
    PenstockError,
    RateLimited,
    Refused,
    RequestError,
    StoreFailed,
    TaskFailed,
    TimedOut,
    ToolError,
    TooLong,
    ToolTimeout,
    Unauthenticated,
    Unauthorized,
    Unavailable,
)
from penstock.messages import ChatRequest


class _Part(msgspec.Struct):
    type: str


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Shape(msgspec.Struct):
    """The types of the fields that Penstock reads or that every service agrees on."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    parallel_tool_calls: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
MOST_SHOWN = 100
_AT = re.compile(r" - at `\$\.?(.*)`$")


def parse_json(body: bytes) -> Any:
    """The value in a body; raises `Invalid` where it is no JSON, or holds a key twice or a number out of range."""
    try:
        value = _decode(body)
        if _encode(value) != body:  # not in the form that clients write: it may hide a key that stands twice
            value = json.loads(body, object_pairs_hook=_unique, parse_constant=_constant)
    except msgspec.ValidationError as error:
        raise mistyped(str(error)) from error
    except RecursionError as error:
        raise Invalid("the JSON is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        raise Invalid(f"the body is not valid JSON: {error}", code="invalid_json") from error
    return value


def parse_chat(body: bytes) -> ChatRequest:
    """The request in a body; raises `Invalid` with the field that is wrong."""
    fields = parse_json(body)
    try:
        msgspec.convert(fields, _Shape)
    except msgspec.ValidationError as error:
        raise mistyped(str(error)) from error
    messages, stream = fields.pop("messages"), fields.pop("stream", None)
    return ChatRequest(model=fields.pop("model"), messages=messages, stream=bool(stream), params=fields, data=body)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:MOST_SHOWN]!r} stands twice")
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def mistyped(text: str) -> Invalid:
    """The refusal of a body whose types are wrong, with the path that msgspec's words end with."""
    at = _AT.search(text)
    param = (at.group(1).removesuffix("[...]") or None) if at else None
    missing = re.search(r"missing required field `(.*?)`", text)
    if missing:
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        return Invalid(f"you must provide {param!r}", param=param, code="missing_required_parameter")
    unknown = re.search(r"unknown field `(.*?)`", text)
    if unknown:
        param = f"{param}.{unknown.group(1)}" if param else unknown.group(1)
        return Invalid(f"there is no parameter {param!r} here", param=param, code="unknown_parameter")
    where = f" at `{param}`" if param else ""
    return Invalid(f"{_AT.sub('', text)}{where}", param=param, code="invalid_type")


def shutting_down(reason: str) -> Unavailable:
    """The error of a server that takes no more work."""
    error = Unavailable(reason, provider="penstock", code="shutting_down", retry_after=5)
    error.type = "server_error"
    return error


class Answer(NamedTuple):
    """An error as it goes out: HTTP status, error object, and the seconds a client should wait."""

    status: int
    body: dict[str, Any]
    retry_after: float | None = None

    def headers(self, length: int) -> list[tuple[bytes, bytes]]:
        """What goes before the error's JSON of `length` bytes."""
        found = [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
        if self.retry_after is not None:
            found.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


# Status, type and code of each family; the nearest base class counts.
TABLE: dict[type[BaseException], tuple[int, str, str | None]] = {
    Unauthenticated: (401, "authentication_error", "invalid_api_key"),
    Forbidden: (403, "permission_error", "insufficient_scope"),
    NotFound: (404, "invalid_request_error", "not_found"),
    RequestError: (400, "invalid_request_error", None),
    LimitReached: (429, "rate_limit_error", "rate_limit_exceeded"),
    BadArguments: (400, "invalid_request_error", None),
    Denied: (403, "permission_error", None),
    ToolTimeout: (504, "tool_error", None),
    ToolError: (502, "tool_error", None),
    TaskFailed: (502, "task_error", None),
    AgentUnavailable: (400, "invalid_request_error", "agent_unavailable"),
    CyclicPlan: (400, "invalid_request_error", "cyclic_plan"),
    Unauthorized: (502, "provider_error", "provider_unauthorized"),
    TooLong: (400, "invalid_request_error", "context_length_exceeded"),
    Refused: (400, "invalid_request_error", "content_filter"),
    BadRequest: (400, "invalid_request_error", None),
    RateLimited: (429, "rate_limit_error", "rate_limit_exceeded"),
    TimedOut: (504, "provider_error", "provider_timeout"),
    Unavailable: (503, "provider_error", "provider_unavailable"),
    BadAnswer: (502, "provider_error", "provider_bad_answer"),
    LlmError: (502, "provider_error", None),
    StoreFailed: (500, "server_error", "store_failed"),
    PenstockError: (500, "server_error", None),
    BaseException: (500, "server_error", "internal_error"),
}


def answer_of(error: BaseException) -> Answer:
    """The answer that tells an error; what is not Penstock's own shows nothing of itself."""
    status, kind, code = next(TABLE[base] for base in type(error).__mro__ if base in TABLE)
    message, param, retry_after = "internal error: see the server's log", None, None
    if isinstance(error, PenstockError):
        message, retry_after = error.message, error.retry_after
    if isinstance(error, RequestError):
        status, code, param = error.status, error.code or code, error.param
    elif isinstance(error, BadRequest):
        status = error.status if error.status and 400 <= error.status < 500 else status
        kind, code, param = error.type or kind, code or error.code, error.param
    elif isinstance(error, RateLimited | Unavailable):  # the service's own words
        status = error.status if error.status and error.status >= 500 else status
        kind, code = error.type or kind, error.code or code
    elif isinstance(error, LimitReached):
        code = "budget_exhausted" if error.limit in {"budget", "tokens", "money"} else code
    elif isinstance(error, TaskFailed):
        code = error.code
    elif isinstance(error, ToolError):
        code, param = error.code, "arguments" if isinstance(error, BadArguments) else None
    spent = isinstance(error, LimitReached) and error.limit == "budget"  # no wait helps, unless one was said
    if status in {429, 503} and retry_after is None and not spent:
        retry_after = 1.0
    body = {"message": message, "type": kind, "param": param, "code": code}
    if isinstance(error, ToolError | TaskFailed) and error.details is not None:
        body["details"] = error.details
    return Answer(status, {"error": body}, retry_after)
