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
from penstock.messages import is_object
from penstock.net import HttpError, Secret

BY_STATUS: dict[int, type[LlmError]] = {
    401: Unauthorized,
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
}
MAX_TEXT = 2000


class Who(NamedTuple):
    """Who answered, and the secrets that must not show in what is said of it."""

    provider: str
    secrets: tuple[Secret, ...] = ()


def from_status(status: int, headers: Mapping[str, str], body: bytes, *, who: Who) -> LlmError:
    """The error that an HTTP answer other than 200 means."""
    said = _decoded(body) or _wordless(status, headers)
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
    """The error that a service's own error object means; `kind` when the object does not name a known one."""
    headers = headers or {}
    detail = said.get("error", said) if is_object(said) else said
    fields = detail if is_object(detail) else {"message": detail}
    code = next((str(fields[key]) for key in ("code", "type") if str(fields.get(key)) in BY_CODE), None)
    if code is not None:
        kind = BY_CODE[code]
    elif status is None and isinstance(fields.get("code"), int):
        kind = BY_STATUS.get(fields["code"]) or (BadRequest if 400 <= fields["code"] < 500 else Unavailable)
    said_code = fields.get("code")
    error = kind(
        _shown(fields.get("message") or fields.get("detail") or "no reason given", who) or "",
        provider=who.provider,
        status=status,
        request_id=_shown(headers.get("x-request-id"), who),
        code=code if said_code is None else _shown(said_code, who),
        retry_after=_retry_after(headers),
    )
    error.param = _shown(fields.get("param") or None, who)
    error.type = _shown(fields.get("type") or None, who)
    if fields.get("code") == "insufficient_quota":
        error.retryable = False
    return error


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
