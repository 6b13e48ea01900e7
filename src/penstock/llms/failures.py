"""What services and the HTTP client say when a call fails, and the `LlmError` each of them means: one table each."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from penstock.errors import (
    BadAnswer,
    BadRequest,
    LlmError,
    RateLimited,
    Refused,
    TimedOut,
    TooLong,
    Unauthorized,
    Unavailable,
)
from penstock.messages import is_array, is_object
from penstock.net import HttpError, Secret

BY_STATUS: dict[int, type[LlmError]] = {
    401: Unauthorized,
    402: Unauthorized,
    403: Unauthorized,
    408: TimedOut,
    409: Unavailable,
    413: TooLong,
    425: Unavailable,
    429: RateLimited,
    504: TimedOut,
}
BY_CODE: dict[str, type[LlmError]] = {
    "context_length_exceeded": TooLong,
    "exceed_context_size_error": TooLong,
    "string_above_max_length": TooLong,
    "content_filter": Refused,
    "content_policy_violation": Refused,
    "rate_limit_exceeded": RateLimited,
    "insufficient_quota": RateLimited,
    "server_error": Unavailable,
    "overloaded_error": Unavailable,
    "billing_error": Unauthorized,
    "billing_hard_limit_reached": Unauthorized,
    "billing_not_active": Unauthorized,
    "model_not_found": BadRequest,
    "not_found_error": BadRequest,
    "model_decommissioned": BadRequest,
    "invalid_model": BadRequest,
}
NO_MODEL = {code for code, kind in BY_CODE.items() if kind is BadRequest}
"""Codes of a service that has no such model, or no longer."""
# Google's words (https://cloud.google.com/apis/design/errors), which come beside a number.
BY_WORD: dict[str, type[LlmError]] = {
    "API_KEY_INVALID": Unauthorized,
    "RESOURCE_EXHAUSTED": RateLimited,
    "UNAUTHENTICATED": Unauthorized,
    "PERMISSION_DENIED": Unauthorized,
    "UNAVAILABLE": Unavailable,
    "INTERNAL": Unavailable,
    "ABORTED": Unavailable,
    "DEADLINE_EXCEEDED": TimedOut,
}
SAYINGS: dict[str, str] = {
    "prompt is too long": "context_length_exceeded",
    "exceed context limit": "context_length_exceeded",
    "exceeds the maximum number of tokens": "context_length_exceeded",
    "content filtering policy": "content_filter",
    "credit balance is too low": "billing_error",
    "Model Not Exist": "model_not_found",
    "is not a valid model ID": "model_not_found",
}
"""Parts of what services say with status 400 where no code tells the kind, each with the code that is meant."""
SPENT = {"insufficient_quota", "enforced_spend_limit_reached", "contract_spend_limit_reached"}
"""Codes of a 429 that no waiting helps."""
MAX_TEXT = 2000


class Who(NamedTuple):
    """Who answered, the secrets that must not show in what is said of it, and the model it is configured for.

    `model` is empty where each request names its own: then it is the caller's mistake when there is no such model.
    """

    provider: str
    secrets: tuple[Secret, ...] = ()
    model: str = ""


def from_status(status: int, headers: Mapping[str, str], body: bytes, *, who: Who) -> LlmError:
    """The error that an HTTP answer other than 200 means."""
    said = _decoded(body) or _wordless(status, headers)
    if is_array(said) and len(said) == 1:
        (said,) = said
    kind = BY_STATUS.get(status) or (BadAnswer if status < 400 else BadRequest if status < 500 else Unavailable)
    return from_said(said, kind, status=status, headers=headers, who=who)


def from_said(
    said: Any,
    kind: type[LlmError] = Unavailable,
    *,
    who: Who,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> LlmError:
    """The error that a service's own error object means; `kind` when the object does not name a known one.

    That there is no such model has the code `model_not_found` (of Google `NOT_FOUND`): it is `Unauthorized` where the
    model is configured, as a key is, else `BadRequest`.
    """
    headers = headers or {}
    detail = said.get("error", said) if is_object(said) else said
    fields: dict[str, Any] = _spread(detail) if is_object(detail) else {"message": detail}
    code = next((str(fields[key]) for key in ("code", "type") if str(fields.get(key)) in BY_CODE), None)
    word = next((str(fields[key]) for key in ("reason", "status") if str(fields.get(key)) in BY_WORD), None)
    if code is None and status == 400:
        text = str(fields.get("message"))
        code = next((meant for saying, meant in SAYINGS.items() if saying in text), None)
    if code is not None:
        kind = BY_CODE[code]
    elif word is not None:
        kind = BY_WORD[word]
    elif status is None and isinstance(fields.get("code"), int):
        kind = BY_STATUS.get(fields["code"]) or (BadRequest if 400 <= fields["code"] < 500 else Unavailable)
    said_code = fields.get("word", fields.get("code"))
    if kind is BadRequest and (code in NO_MODEL or _is_of_the_model(fields, status)):
        kind, said_code = Unauthorized if who.model else BadRequest, fields.get("word", "model_not_found")
    wait, text = _retry_after(headers), fields.get("message") or fields.get("detail") or "no reason given"
    if kind is Unauthorized:  # a client must not take it for its own token
        text = f"{who.provider} does not accept the configured key, account or model: {text}"
    error = kind(
        _shown(text, who) or "",
        provider=who.provider,
        status=status,
        request_id=_shown(headers.get("x-request-id") or headers.get("request-id"), who),
        code=code if said_code is None else _shown(said_code, who),
        retry_after=_seconds(fields.get("retryDelay")) if wait is None else wait,
    )
    error.param = _shown(fields.get("param") or None, who)
    error.type = _shown(fields.get("type") or None, who)
    if str(said_code) in SPENT:
        error.retryable = False
    return error


def _is_of_the_model(fields: dict[str, Any], status: int | None) -> bool:
    """Whether a 404 is of the model, or of the address: of nothing else that a request names, such as a file."""
    code = fields.get("code")
    return (status == 404 or code == 404) and not isinstance(code, str) and fields.get("param") in (None, "", "model")


def _spread(fields: dict[str, Any]) -> dict[str, Any]:
    """A service's error, with the word for its code where that is among the details, as in Anthropic's and Google's.

    See https://cloud.google.com/apis/design/errors.
    """
    details = fields.get("details")
    if is_object(details) and details.get("error_code"):
        return {"code": details["error_code"], **fields}
    if not isinstance(fields.get("status"), str):
        return fields
    rows = [row for row in details if is_object(row)] if is_array(details) else []
    found: dict[str, Any] = {key: row[key] for row in rows for key in ("reason", "retryDelay") if key in row}
    return {**fields, **found, "word": found.get("reason") or fields["status"]}


def _seconds(said: Any) -> float | None:
    """A duration as protocol buffers write it in JSON: `7.5s`."""
    try:
        wait = float(str(said).removesuffix("s"))
    except ValueError:
        return None
    return max(0.0, wait) if math.isfinite(wait) else None


def _wordless(status: int, headers: Mapping[str, str]) -> str:
    where = headers.get("location")
    return f"answered {status}, to {where!r}: set base_url to it" if where else f"answered {status} without a reason"


def _shown(said: Any, who: Who) -> str | None:
    """What a service said as text of a bounded length, without the secrets."""
    if said is None:
        return None
    text = str(said)[:MAX_TEXT]
    for secret in who.secrets:
        text = secret.scrub(text)
    return text


def from_network(error: HttpError | OSError, provider: str) -> LlmError:
    """The error that a failed connection means."""
    if isinstance(error, HttpError):
        kind, what = (BadAnswer, "broke off its answer") if error.started else (Unavailable, "did not answer")
        return kind(f"{provider} {what}: {error}", provider=provider)
    return Unavailable(f"{provider} cannot be reached: {error}", provider=provider)


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:MAX_TEXT].decode("utf-8", "replace").strip()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms`, or `Retry-After` as seconds or as a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        elif value.strip().replace(".", "", 1).isdigit():
            wait = float(value)
        else:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, wait) if math.isfinite(wait) else None
