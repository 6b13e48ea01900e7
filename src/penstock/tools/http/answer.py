"""What an HTTP answer means for a tool: a value, or a `ToolError` that a model can act on."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from penstock.errors import Denied, ToolError, ToolFailed
from penstock.messages import is_array, is_object
from penstock.net import Secret
from penstock.net.headers import media_type, retry_after
from penstock.tools.result import ToolResult
from penstock.tools.value import CUT, text_of

if TYPE_CHECKING:
    from aiohttp import ClientError, ClientResponse

Expect: TypeAlias = Literal["auto", "json", "text"]
MAX_ERROR = 8192
MAX_REASON = 300
CHARSET = re.compile(
    r"""utf[-_]?(8([-_]sig)?|(16|32)([-_]?[bl]e)?) | (us[-_])?ascii | latin[-_]?\d{1,2} | iso[-_]?8859[-_]\d{1,2}
    | (cp|windows[-_]?)\d{3,4} | koi8[-_][rtu] | shift[-_]?jis | iso[-_]2022[-_](jp|kr) | euc[-_](jp|kr)
    | gb(k|2312|18030) | big5([-_]?hkscs)? | tis[-_]?620 | mac[-_]?roman""",
    re.IGNORECASE | re.VERBOSE,
)
"""The charsets that a server may name; others that Python knows hold the event loop for minutes, as punycode does."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed later."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How answers are read: as what, up to how many bytes, without which secrets; `safe` calls may be repeated."""

    expect: Expect
    limit: int
    secrets: tuple[Secret, ...]
    safe: bool

    async def value(self, answer: ClientResponse) -> Any:
        """The value of an answer, JSON decoded; raises `ToolFailed` for one that is an error or cannot be read."""
        status = answer.status
        if not 200 <= status < 300:
            raise await self._failure(answer)
        body, whole = await body_of(answer, self.limit)
        if not body:
            return None
        kind, charset = media_type(answer.headers.get("content-type"))
        if self.expect == "json" or (self.expect == "auto" and is_json(kind)):
            if not whole:
                raise ToolFailed(
                    f"the answer is JSON of more than {self.limit} bytes: ask for less",
                    code="too_large",
                    details={"status": status, "limit": self.limit, "content_type": kind},
                )
            return self._json(body, status, kind)
        if b"\0" in body and self.expect == "auto":
            raise ToolFailed(
                f"the answer is not text ({kind or 'no content type'})",
                code="not_text",
                details={"status": status, "content_type": kind},
            )
        if whole:
            return self.scrub(decoded(body, charset))
        marker = CUT.format(limit=self.limit)
        text = self.scrub(decoded(body[: -len(marker)], charset))
        return ToolResult(text + marker, warnings=(f"the body was cut at {self.limit} bytes",))

    def scrub(self, text: str) -> str:
        """The text without secrets, those with slashes escaped as in JSON too."""
        for secret in self.secrets:
            text = secret.scrub(text)
            if "\\/" in text:
                plain = text.replace("\\/", "/")
                clean = secret.scrub(plain)
                text = text if clean == plain else clean
        return text

    def _json(self, body: bytes, status: int, kind: str) -> Any:
        try:
            value = msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ToolFailed(
                f"the answer says {kind or 'nothing of its type'} and is not JSON",
                code="not_json",
                details={"status": status, "content_type": kind, "body": self.scrub(decoded(body[:MAX_ERROR]))},
            ) from None
        if not self.secrets:
            return value
        raw = decoded(body)
        return value if "\\" not in raw and self.scrub(raw) == raw else self._clean(value)

    async def _failure(self, answer: ClientResponse) -> ToolFailed:
        status = answer.status
        body, whole = await body_of(answer, MAX_ERROR)
        kind, charset = media_type(answer.headers.get("content-type"))
        text = self.scrub(decoded(body, charset))
        said: Any = text
        if is_json(kind) and whole and body:
            try:
                said = self._clean(msgspec.json.decode(body))
                text = text_of(said) if self.secrets else text  # what was escaped shows only when it is decoded
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                said = text
        reason = f": {text[:MAX_REASON]}" if text.strip() else " without a reason"
        return ToolFailed(
            f"the service answered {status}{reason}",
            code=f"http_{status}",
            details={"status": status, "body": said, "content_type": kind},
            retryable=self.safe and status in PASSING,
            retry_after=retry_after(answer.headers.get("retry-after")),
        )

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.scrub(value)
        if is_object(value):
            return {self.scrub(name): self._clean(inner) for name, inner in value.items()}
        return [self._clean(inner) for inner in value] if is_array(value) else value


async def body_of(answer: ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The body up to `limit` bytes, and whether that is all of it; the rest is not read."""
    pieces: list[bytes] = []
    size = 0
    while piece := await answer.content.readany():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            return b"".join(pieces)[:limit], False
    return b"".join(pieces), True


def is_json(kind: str) -> bool:
    """Whether a media type is JSON (RFC 6839)."""
    return kind == "application/json" or kind.endswith("+json")


def decoded(body: bytes, charset: str | None = None) -> str:
    """A body as text, in UTF-8 unless it names another charset that is for text; what is none is replaced."""
    try:
        return body.decode(charset if charset and CHARSET.fullmatch(charset) else "utf-8", "replace")
    except LookupError:  # no such charset
        return body.decode("utf-8", "replace")


def from_network(error: ClientError, *, safe: bool) -> ToolError:
    """The error that a failed connection means; one that was never opened may always be tried again."""
    import aiohttp

    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError)):
        return ToolFailed("the service cannot prove who it is (TLS)", code="tls_error")
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        why = str(error.os_error) if isinstance(error, aiohttp.ClientConnectorError) else "no answer in time"
        return ToolFailed(f"the service cannot be reached: {why}", code="unreachable", retryable=True)
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return Denied("this is no http address", code="address_denied")
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
        return ToolFailed(
            "the connection was closed before the answer was complete", code="connection_lost", retryable=safe
        )
    return ToolFailed(f"the answer is not HTTP as it should be ({type(error).__name__})", code="bad_answer")
