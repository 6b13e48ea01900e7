"""What a tool gave, made into a result: checked, encodable, of bounded size; and errors made into faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from penstock.errors import BadArguments, LimitReached, PenstockError, RequestError, ToolError, ToolFailed
from penstock.messages import Usage, is_object
from penstock.tools.result import ToolFault, ToolResult
from penstock.tools.spec import ToolSpec

CUT = "\n[cut: longer than {limit} bytes]"
_PLAIN = (type(None), bool, int, float)


def encoded(value: Any) -> bytes:
    """A value as JSON, NaN and infinities as null; raises `ToolFailed` for one that JSON cannot carry."""
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        text = f"the tool returned a {type(value).__name__} that JSON cannot carry: {error}"
        raise ToolFailed(text[:500], code="bad_return_value") from error


def _foreign(value: Any) -> Any:
    """What msgspec does not know, such as a pydantic model."""
    from pydantic_core import to_jsonable_python

    if isinstance(value, Iterator):
        raise TypeError("an iterator can be read once only: return a list, or yield the items")
    return to_jsonable_python(value)


_encode = msgspec.json.Encoder(enc_hook=_foreign).encode


def text_of(value: Any) -> str:
    """A value as a model reads it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else encoded(value).decode()


def normaliser(spec: ToolSpec) -> Callable[[Any, float, Usage | None], ToolResult]:
    """A function that makes the result from what a tool gave, the seconds it took and what models it used.

    A value that `return_type` does not allow, or that JSON cannot carry, is a `ToolFailed`; a longer one than
    `max_result_bytes` is cut to that size as text, with a marker and a warning.
    """
    check = None
    if spec.return_type is not None:
        from penstock.tools.arguments.parsing import value_check

        check = value_check(spec.return_type).check
    limit, target = spec.max_result_bytes, spec.return_target

    def normalise(value: Any, seconds: float, usage: Usage | None) -> ToolResult:
        given = value if isinstance(value, ToolResult) else None
        if given is not None and given.error is not None:
            raise ToolFailed(
                given.error.message,
                code=given.error.code,
                details=given.error.details,
                retryable=given.error.retryable,
            )
        content = value if given is None else given.content
        warnings = () if given is None else given.warnings
        if check is not None:
            content = check(content)
        if isinstance(content, str):
            cut = _cut(content, limit) if len(content) * 4 > limit or not content.isascii() else None
        elif isinstance(content, _PLAIN):
            cut = None
        else:
            data = encoded(content)
            cut = _cut(data.decode(), limit) if len(data) > limit else None
        if cut is not None:
            content, warnings = cut, (*warnings, f"the value was cut to {limit} bytes")
        return ToolResult(content, None, usage or (given.usage if given else None), seconds, warnings, target)

    return normalise


def _cut(text: str, limit: int) -> str | None:
    """The text up to the limit in UTF-8 bytes, with a marker; None where it fits."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ToolFailed(f"the tool returned text that is not Unicode: {error}", code="bad_return_value") from error
    if len(data) <= limit:
        return None
    return data[:limit].decode("utf-8", "ignore") + CUT.format(limit=limit)


class Sized:
    """Collects the items of a stream up to a number of bytes; one more byte is kept, so that the cut is seen."""

    def __init__(self, limit: int) -> None:
        self._left = limit + 1
        self._items: list[Any] = []

    def add(self, item: Any) -> bool:
        """Take an item in; false when there is no room for more."""
        if self._left <= 0:
            return False
        if isinstance(item, str):
            size = len(item.encode("utf-8", "replace")) or 1
            self._items.append(item if size <= self._left else item[: self._left])
        else:
            size = len(encoded(item)) + 1
            self._items.append(item)
        self._left -= size
        return True

    def value(self) -> Any:
        """The joined text where all items are text, else their list."""
        if all(isinstance(item, str) for item in self._items):
            return "".join(self._items)
        return self._items


def code_of(error: PenstockError) -> str:
    """The machine-readable reason of an error."""
    if isinstance(error, ToolError):
        return error.code
    if isinstance(error, LimitReached):
        return f"{error.limit}_limit" if error.limit != "budget" else "budget_exhausted"
    return (error.code if isinstance(error, RequestError) else None) or "failed"


def fault_of(error: PenstockError) -> ToolFault:
    """An error as a model is told."""
    details = error.details if isinstance(error, ToolError) else None
    if details is not None and not isinstance(error, BadArguments):
        details = _told(details)
    if error.retry_after is not None:
        details = {**(details if is_object(details) else {}), "retry_after_s": round(error.retry_after, 3)}
    return ToolFault(code_of(error), str(error), error.retryable, details)


def _told(details: Any) -> Any:
    try:
        return msgspec.json.decode(encoded(details))
    except ToolFailed:
        return repr(details)[:500]


def plain(result: ToolResult) -> dict[str, Any]:
    """A result as JSON values, as it is served."""
    found: dict[str, Any] = {"ok": result.ok}
    if result.error is None:
        found["content"] = msgspec.json.decode(encoded(result.content))
    else:
        found["error"] = msgspec.to_builtins(result.error)
    return found | {"latency_s": round(result.latency_s, 6), "warnings": list(result.warnings)}
