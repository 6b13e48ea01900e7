"""Reads server-sent events from pieces of any size (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT = 32 * 1024 * 1024
DONE = b"[DONE]"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r){2}")


class EventTooLong(ValueError):
    """One event is larger than `MAX_EVENT` bytes."""


class Read(NamedTuple):
    """What one network read completed: the data of each event, and whether the end mark came.

    `plain` is set when every event is exactly `data: ...` and a blank line: bytes that can be sent on as they are.
    """

    payloads: list[bytes]
    plain: bytes | None = None
    done: bool = False


_NOTHING = Read([])


class SseReader:
    """Cuts a byte stream into events; what is not complete yet waits for the next piece."""

    __slots__ = ("_held", "_size", "_start", "_tail")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._start = True

    def feed(self, block: bytes) -> Read:
        """Take one piece; raises `EventTooLong`."""
        if self._held:
            self._size += len(block)
            if self._size > MAX_EVENT:
                raise EventTooLong(f"an event is larger than {MAX_EVENT} bytes")
            self._held.append(block)
            seam = self._tail + block  # what is held has no end in it: one begins in its last three bytes at most
            if not self._start and b"\n\n" not in seam and (b"\r" not in seam or not _EVENT_END.search(seam)):
                self._tail = seam[-3:]
                return _NOTHING
            block = b"".join(self._held)
        plain = True
        if self._start:
            block, plain = self._without_mark(block)
            if not block:
                return _NOTHING
        if b"\r" in block:
            parts, plain = _events(block), False
        else:
            parts = block.split(b"\n\n")
        rest = parts.pop()
        self._held = []
        if rest:
            self._hold(rest)
        if not parts:
            return _NOTHING
        if rest and plain:
            block = block[: len(block) - len(rest)]
        return _read(parts, block if plain else None)

    def close(self) -> Read:
        """Take what is left as the last event."""
        rest, self._held = b"".join(self._held), []
        return _read([rest], None) if rest.strip() else _NOTHING

    def _hold(self, rest: bytes) -> None:
        self._held, self._size, self._tail = [rest], len(rest), rest[-3:]

    def _without_mark(self, block: bytes) -> tuple[bytes, bool]:
        """The first piece without its byte order mark; held while it may still become one."""
        if len(block) < 3 and b"\xef\xbb\xbf".startswith(block):
            self._hold(block)
            return b"", True
        self._start, self._held = False, []
        return (block[3:], False) if block.startswith(b"\xef\xbb\xbf") else (block, True)


def _events(block: bytes) -> list[bytes]:
    """The events of a piece with carriage returns; nearly always every line ends with both marks."""
    if block.count(b"\r\n") == block.count(b"\r") == block.count(b"\n"):
        return block.split(b"\r\n\r\n")
    return _EVENT_END.split(block)


def _read(parts: list[bytes], plain: bytes | None) -> Read:
    payloads: list[bytes] = []
    for part in parts:
        if part[:6] == b"data: " and b"\n" not in part and b"\r" not in part:
            payload = part[6:]
        else:
            plain, payload = None, _named(part) or _data(part)
        if payload[:1] != b"{":
            bare = payload.strip()
            if bare == DONE:
                if plain is not None:
                    plain = plain[: -len(part) - 2] if part is parts[-1] else None
                return Read(payloads, plain, done=True)
            if not bare:
                plain = None
                continue
        payloads.append(payload)
    return Read(payloads, plain)


def _named(event: bytes) -> bytes | None:
    """The data of an event that is exactly a name and one line of it, as services write them that name events."""
    name, _, data = event.partition(b"\n")
    if name[:6] != b"event:" or data[:6] != b"data: " or b"\n" in data or b"\r" in event:
        return None
    return data[6:]


def _data(event: bytes) -> bytes:
    """The data of an event in any of its legal forms; comments and other fields are passed over."""
    lines = (line.removeprefix(b"data:") for line in _LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b" ") for line in lines).strip()
