"""Short texts that match a regular expression or a named format, for the demo model's instances."""

from __future__ import annotations

import re

FORMATS: dict[str, tuple[str, str]] = {
    "date": ("2000-01-01", r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "time": ("00:00:00Z", r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    "date-time": ("2000-01-01T00:00:00Z", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    "duration": ("P1D", r"P\d+D"),
    "email": ("a@example.com", r"[\w.+-]+@[\w-]+\.[\w.-]+"),
    "hostname": ("example.com", r"[a-z0-9-]+(\.[a-z0-9-]+)*"),
    "ipv4": ("127.0.0.1", r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"),
    "ipv6": ("::1", r"[0-9a-f:]*::[0-9a-f:]*"),
    "uri": ("https://example.com", r"https?://[^\s\"<>]+"),
    "url": ("https://example.com", r"https?://[^\s\"<>]+"),
    "uuid": ("00000000-0000-4000-8000-000000000000", r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"),
}
MOST_REPEATS = 1_000
_OPEN_REPEAT = re.compile(r"(?<!\\)[*+]|\{\d*,\d*\}")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,)")
_REPEAT = re.compile(r"(?:([*?])|(\+)|\{(\d*)(?:,\d*)?\})[?+]?")
_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": " ", "S": "a", "n": "\n", "t": "\t", "r": "\r"}
_UNWRITTEN = frozenset("bBAZ")


def matches(pattern: str, text: str) -> bool:
    """Whether a text matches; no for one on which the pattern could take long, yes for a pattern Python cannot read."""
    slow = len(_OPEN_REPEAT.findall(pattern)) > 2 or _REPEATED_GROUP.search(pattern)
    if len(text) > (16 if slow else 4_096):
        return False
    try:
        return re.search(pattern, text) is not None
    except (re.error, OverflowError):
        return True


def has_format(name: str, text: str) -> bool:
    """Whether a text has a named format; formats without a row here hold for every text."""
    return name not in FORMATS or re.fullmatch(FORMATS[name][1], text) is not None


def sample(pattern: str) -> str:
    """A short text meant to match: first alternatives, least repeats, no look-around; the caller checks it."""
    return _Sample(pattern).alternatives()


class _Sample:
    """A reader of one pattern that writes a text as it goes."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        taken = self._next()
        self._at += 1
        return taken

    def alternatives(self) -> str:
        """The text of the first alternative; reads on to the closing bracket or the end."""
        first = self._sequence()
        while self._next() == "|":
            self._take()
            self._sequence()
        return first

    def _sequence(self) -> str:
        pieces: list[str] = []
        while self._next() not in ("", "|", ")"):
            piece = self._piece()
            pieces.append(piece * min(self._repeats(), MOST_REPEATS // max(1, len(piece))))
        return "".join(pieces)

    def _repeats(self) -> int:
        found = _REPEAT.match(self._pattern, self._at)
        if found is None:
            return 1
        self._at = found.end()
        if found[1]:
            return 0
        return 1 if found[2] else min(int((found[3] or "0")[:9]), MOST_REPEATS)

    def _piece(self) -> str:
        match self._take():
            case "(":
                return self._group()
            case "[":
                return self._one_of()
            case "\\":
                letter = self._take()
                return "" if letter in _UNWRITTEN else _CLASSES.get(letter, letter)
            case ".":
                return "a"
            case "^" | "$":
                return ""
            case literal:
                return literal

    def _group(self) -> str:
        silent = self._pattern.startswith(("?=", "?!", "?<=", "?<!"), self._at)
        if opening := re.compile(r"\?(?:[:=!]|<[=!]|P?<\w+>)").match(self._pattern, self._at):
            self._at = opening.end()
        text = self.alternatives()
        self._take()
        return "" if silent else text

    def _one_of(self) -> str:
        start = self._at
        if self._next() == "^":
            self._take()
        if self._next() == "]":
            self._take()
        while self._next() not in ("", "]"):
            if self._take() == "\\":
                self._take()
        body = self._pattern[start : self._at]
        self._take()
        if body.startswith("^"):
            return next((letter for letter in "a0 -~A_" if matches(f"[{body}]", letter)), "")
        return _CLASSES.get(body[1], body[1]) if body.startswith("\\") and len(body) > 1 else body[:1]
