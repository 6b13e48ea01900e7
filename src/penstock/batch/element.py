"""The elements of a streamed answer: where each of them ends, what it says when it is valid, else what is wrong."""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

Fault = Literal["malformed", "schema", "large", "deep", "truncated"]

State = Literal["prose", "array", "object", "gap", "member", "brackets", "string", "word", "comment"]

SHOWN: Final = 200
WINDOW: Final = 1_000  # of an open element, so many characters are kept in sight
ERRORS: Final[dict[Fault, str]] = {
    "malformed": "not closed before the next one begins",
    "schema": "not of the asked type",
    "large": "larger than the cap",
    "deep": "nested deeper than the cap",
    "truncated": "still open at the end of the answer",
}
_WORD_END: Final = re.compile(r'[,\[\]{}"\r\n]|/(?:[/*]|\Z)')
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_FIRST_KEY: Final = re.compile(r'\{\s*+("[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")\s*+:')
_WATCHED: Final = 16_000  # an element twice as long as the one before, or longer than this, is looked at for damage
_CERTAIN: Final = 10  # an error nearer to the end may be a literal or an escape that is cut
_JSON: Final = JSONDecoder()


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """Limits against answers that do not end: characters of an element, of the whole answer, and levels of nesting."""

    element: int = 1_000_000
    total: int = 64_000_000
    depth: int = 64


class Element(msgspec.Struct, Generic[T], frozen=True):
    """One element, exactly as it was written, and what became of it.

    `text` is the source of the element (its first `SHOWN` characters when it is too large), `start` its offset in the
    whole answer in characters, `index` its place among all items. `part` counts the JSON values at the top of the
    answer: two arrays are parts 0 and 1. `key` is the name of a member of an object that maps keys to items. `value`
    is None where there is a fault: `malformed` is not JSON; `schema` is JSON, but not of the asked type; `large` and
    `deep` exceed a cap; `truncated` was still open at the end. `error` says more.
    """

    text: str
    start: int
    index: int
    part: int
    key: str | None
    value: T | None
    fault: Fault | None = None
    error: str = ""


class Elements(Generic[T]):
    """Reads the values of an answer from a window of its text, each to its end, and makes items of those that are."""

    __slots__ = (
        "_again", "_at", "_bare", "_caps", "_count", "_decode", "_depth", "_ended", "_frame", "_from", "_in_array",
        "_is_item", "_key", "_last", "_mark", "_odd", "_opening", "_out", "_part", "_parts", "_pos", "_shown",
        "_size", "_start", "_state", "_text", "_watch",
    )  # fmt: skip

    def __init__(self, of: type[T] | None, caps: Caps) -> None:
        self._caps = caps
        self._decode = msgspec.json.Decoder[T](Any if of is None else of).decode
        self._state: State = "prose"
        self._mark = ""  # a piece without it completes nothing now
        self._text = self._bare = ""  # what is looked at, and the same with its escaped quotes painted over
        self._pos: int = 0  # where in the text
        self._at: int = 0  # where the text is in the answer
        self._frame: Literal["", "undecided", "around", "map"] = ""  # the object in which items are looked for
        self._in_array = self._ended = False
        self._is_item, self._start = False, 0
        self._key: str | None = None
        self._from = -1  # where in the text the open element, or its rest, begins; -1: it is not kept
        self._parts: list[str] = []  # the beginning of the open element, no longer in the text
        self._size = self._watch = self._last = 0
        self._shown = self._again = ""  # of a large element, its beginning; of a damaged one, what is to be read again
        self._opening = "{"
        self._depth: int = 0
        self._odd: int = 0  # 1 within a string
        self._out: list[Element[T]] = []
        self._count, self._part = 0, -1

    def _begin(self, pos: int) -> None:
        """Keep the text from here."""
        self._from, self._start = pos, self._at + pos

    def _drop(self) -> None:
        """Keep nothing any more."""
        self._from, self._parts, self._is_item = -1, [], False

    def _item(self, pos: int) -> bool:
        self._from, self._start, self._is_item = pos, self._at + pos, True
        return self._value(pos)

    def _value(self, pos: int) -> bool:
        mark = self._text[pos]
        if mark == "{":
            return self._balanced("{", "}", 0, pos)
        if mark == "[":
            return self._balanced("[", "]", 0, pos)
        self._state, self._mark = ("string", '"') if mark == '"' else ("word", "")
        self._pos = pos + 1
        return True

    def _balanced(self, opening: str, closing: str, depth: int, pos: int) -> bool:
        self._opening, self._mark = opening, closing
        self._depth, self._odd, self._pos = depth, 0, pos
        self._state = "brackets"
        return True

    def _brackets(self) -> bool:
        """In an object or array: from bracket to bracket of its kind; the number of quotes tells those in strings."""
        bare, pos, depth, odd = self._bare, self._pos, self._depth, self._odd
        find, count, opening, closing = bare.find, bare.count, self._opening, self._mark
        while (close := find(closing, pos)) >= 0:
            while (start := find(opening, pos, close)) >= 0:
                odd ^= count('"', pos, start) & 1
                if not odd:
                    depth += 1
                pos = start + 1
            odd ^= count('"', pos, close) & 1
            pos = close + 1
            if odd:
                close = find('"', pos)
                if close < 0:
                    pos = len(bare) - bare.endswith("\\")
                    break
                pos, odd = close + 1, 0
                continue
            depth -= 1
            if not depth:
                return self._finish(pos)
        if len(bare) - pos > WINDOW or self._ended:
            while (start := find(opening, pos)) >= 0:
                odd ^= count('"', pos, start) & 1
                if not odd:
                    depth += 1
                pos = start + 1
            odd ^= count('"', pos) & 1
            pos = len(bare) - bare.endswith("\\")
        self._pos, self._depth, self._odd = pos, depth, odd
        return False

    def _string(self) -> bool:
        close = self._bare.find('"', self._pos)
        if close >= 0:
            return self._finish(close + 1)
        self._pos = max(self._pos, len(self._bare) - self._bare.endswith("\\"))
        return False

    def _word(self) -> bool:
        """In a number, a literal, or what is neither."""
        found = _WORD_END.search(self._text, self._pos)
        if found and found[0] != "/":
            return self._finish(found.start())
        self._pos = found.start() if found else len(self._text)  # a last slash may begin a comment
        return False

    def _go_on(self, pos: int) -> bool:
        """Look for the next item from here."""
        self._pos, self._mark = pos, ""
        self._state = "gap" if self._in_array else "member" if self._frame else "prose"
        return True

    def _finish(self, end: int) -> bool:
        """A value has ended: an item is handed out, another one passed over."""
        if not self._is_item:
            return self._go_on(end)
        if self._from < 0:
            return self._refuse(self._shown, end, "large")
        text = self._text[self._from : end]
        if self._parts:
            text = "".join((*self._parts, text))
        if len(text) > self._caps.element:
            return self._refuse(text, end, "large")
        depth = self._caps.depth
        if text.count("{") + text.count("[") > depth and depth_of(text) > depth:
            return self._refuse(text, end, "deep")
        try:
            value = self._decode(text)
        except (ValueError, RecursionError) as error:
            return self._refuse(text, end, fault_of(text, error), str(error))
        if self._state == "word":
            text = text.rstrip()
        self._last = len(text)
        self._out.append(Element(text, self._start, self._count, self._part, self._key, value))
        self._count += 1
        self._from, self._is_item = -1, False
        if self._parts:
            self._parts = []
        return self._go_on(end)

    def _refuse(self, text: str, end: int, fault: Fault, error: str = "") -> bool:
        """Hand out an item with a fault, unless it holds the beginning of another one."""
        if fault in {"malformed", "large"} and self._from >= 0 and self._cut(text, end):
            return True
        self._add(text, fault, error)
        self._drop()
        return self._go_on(end)

    def _add(self, text: str, fault: Fault, error: str = "") -> None:
        text = text[:SHOWN] if fault == "large" else text.rstrip()
        key = self._key if self._is_item else None
        self._out.append(Element(text, self._start, self._count, self._part, key, None, fault, error or ERRORS[fault]))
        self._count += 1

    def _cut(self, text: str, end: int) -> bool:
        """Cut the element where another one begins in it, and go on there; the text goes on at `end`."""
        at = next_start(text[: self._caps.element], named=self._frame == "map")
        if at is None:
            return False
        self._add(text[:at].rstrip(", \t\r\n"), "malformed")
        self._last = 0  # where one is damaged, the next one is watched closely
        if self._parts:
            self._again = text[at:] + self._text[end:]
            self._text = self._bare = ""
            self._at, self._pos = self._start + at, 0
        else:
            self._pos = self._from + at
        self._drop()
        return self._go_on(self._pos)

    def _keep(self) -> None:
        """Put what was read of the open element aside, and look whether it is damaged, or too large to be kept."""
        if not self._parts:
            self._size, self._watch = 0, min(max(WINDOW, 2 * self._last), _WATCHED, self._caps.element)
        self._parts.append(self._text[self._from : self._pos])
        self._size += self._pos - self._from
        self._from = self._pos
        if self._size <= self._watch:
            return
        self._watch = min(2 * self._size, self._caps.element)
        text = "".join(self._parts)
        self._parts = [text]
        if (not self._is_item or not self._cut(text, self._pos)) and self._size > self._caps.element:
            self._from, self._shown, self._parts = -1, text[:SHOWN], []


def fault_of(text: str, error: Exception) -> Fault:
    """Whether a text that msgspec does not decode is JSON of another type, or no JSON at all."""
    if not isinstance(error, msgspec.ValidationError):
        return "malformed"
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return "malformed"
    return "schema"


def depth_of(text: str) -> int:
    """How many brackets are open at once where it is most, those in strings left out."""
    depth = most = 0
    for token in _TOKEN.finditer(text):
        mark = text[token.start()]
        if mark in "{[":
            depth += 1
            most = max(most, depth)
        elif mark != '"':
            depth -= 1
    return most


def next_start(text: str, *, named: bool = False) -> int | None:
    """Where in a damaged element the next one begins, when the damage has hidden its beginning.

    A string that is not closed, or a brace that is missing, makes an element swallow those that follow. The next one
    is recognised behind the damage by how this one began: after a brace or a line break, with the same first key, and
    behind a name of its own where items are `named`. For other faults the brackets are trusted. What comes after that
    place decides nothing, so that more text would not change the answer.
    """
    try:
        _JSON.raw_decode(text)
    except JSONDecodeError as error:
        at = error.pos
    except (ValueError, RecursionError):
        return None
    else:
        return None
    first = _FIRST_KEY.match(text)
    if first is None or at + _CERTAIN > len(text):
        return None
    if text[at - 1] == '"' and text[at] not in '",:[]{}':
        since = text.rfind('"', 0, at - 1)  # a string that ended too late, with the beginning of the next element
    elif text[at] == "{":
        since = text.rfind("}", 0, at)
    elif text[at] in "\r\n":
        since = at
    else:
        return None
    name = r'"[^"\\\n]{0,99}+"\s{0,99}+:\s{0,99}+' if named else ""
    key = re.escape(first[1])
    begins = re.compile(rf"[}}\r\n]\s{{0,99}}+,?\s{{0,99}}+({name}\{{\s{{0,99}}+{key}\s{{0,99}}+:)")
    found = begins.search(text, max(since, 0))
    return found.start(1) if found else None
