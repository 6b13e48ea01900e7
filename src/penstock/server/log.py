"""Logs: one line for each request, plain or JSON, on stderr."""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import sys
import time
from contextlib import suppress
from decimal import Context, Decimal
from typing import Any, Literal, TextIO

import msgspec

from penstock.llms.prices import usd

LOGGER = logging.getLogger("penstock")
BATCH_S = 0.05
LONGEST = 200
SHORT = Context(prec=3)
"""Money in a plain line has three digits that count; a JSON line has all."""
ACCESS = logging.getLogger("penstock.access")
_SPECIAL = re.compile(r"""[\s='"]""")


def configure(form: Literal["plain", "json"]) -> None:
    """Send all of Penstock's log lines, and the warnings of everything below it, to stderr in one form."""
    handler = _Batched(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)


class _Batched(logging.StreamHandler[TextIO]):
    """Writes the lines of a moment in one go: a write for each would cost as much as a small request."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._due: asyncio.AbstractEventLoop | None = None
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line for up to 50 ms; outside an event loop, and from a warning up, write at once."""
        self._lines.append(self.format(record))
        try:
            loop = asyncio.get_running_loop() if record.levelno < logging.WARNING else None
        except RuntimeError:
            loop = None
        if loop is None:
            self.flush()
        elif loop is not self._due:  # another one may have ended with lines kept
            self._due = loop
            loop.call_later(BATCH_S, self.flush)

    def flush(self) -> None:
        """Write what is kept."""
        self.acquire()  # a thread may be in `emit`
        try:
            self._due = None
            lines, self._lines = self._lines, []
            if lines:
                with suppress(OSError):  # nobody reads them any more; requests are answered all the same
                    self.stream.write("\n".join(lines) + "\n")
                    self.stream.flush()
        finally:
            self.release()


def access(fields: dict[str, Any]) -> None:
    """Log one request; `fields` are its facts in the order to show them."""
    if ACCESS.isEnabledFor(logging.INFO):
        ACCESS.handle(_Record(fields))


class _Record(logging.LogRecord):
    """A log record made without a look at the stack, which would cost as much as a small request."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(_BLANK)
        self.fields = fields
        self.created = time.time()
        self.msecs = self.created % 1 * 1000


_BLANK = logging.LogRecord(ACCESS.name, logging.INFO, "", 0, "request", None, None).__dict__


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname.lower():7}"
        if isinstance(record, _Record):
            facts = [f"{name}={_word(value)}" for name, value in record.fields.items() if value is not None]
            return f"{head} {' '.join(facts)}"
        text = f"{head} {record.name}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": record.created, "level": record.levelname.lower(), "logger": record.name}
        if isinstance(record, _Record):
            line |= {name: _cut(value) for name, value in record.fields.items() if value is not None}
        else:
            line["message"] = record.getMessage()
            if record.exc_info:
                line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _cut(value: Any) -> Any:
    if isinstance(value, Decimal):
        return usd(value)
    return f"{value[:LONGEST]}..." if isinstance(value, str) and len(value) > LONGEST else value


def _word(value: Any) -> str:
    """A value as one word of a line, whatever a client put into it."""
    if isinstance(value, Decimal):
        return usd(SHORT.create_decimal(value))
    if not isinstance(value, str):
        return str(value)
    text = str(_cut(value))
    return text if text.isprintable() and not _SPECIAL.search(text) else repr(text)
