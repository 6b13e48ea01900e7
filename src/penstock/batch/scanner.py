"""Finds the items in an answer while it is being written, and hands each one out with its last character.

What an answer may look like, and what is made of it:

- `[item, item]`: each element is an item, of whatever kind. `{"plans": [item, item]}`: the same within a member. An
  array counts when its first element is JSON (an object, where `fields` are known): `[1]` or `[see below]` is prose.
- `{"0": item, "1": item}`: each member is an item with its key. One object, or one after the other (NDJSON): an item.
- Which of these an object at the top is, its first telling member decides. A name in `fields` makes it an item, one in
  `keys` a map. Of other names an array's elements are the items, and an object is the first of a map's items. Any other
  value makes it an item, unless `fields` are known: then it tells nothing, and if none does, the object is an item.
- Text around them is passed over: prose, fences, marks. Several arrays or objects are all read, as parts of one answer.
- Between items, commas may be missing or too many, and comments are passed over. Other text there is a malformed item,
  up to the next comma, bracket, quote or line break. A fence there ends the array, which was not closed.
- Items themselves are strict JSON; of members with the same name the last one counts, as everywhere.
- A number or literal ends with the comma, bracket or line break behind it; all else with its own last character.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final, Generic, Literal, TypeVar

import msgspec

from penstock.batch.element import WINDOW, Caps, Element, Elements
from penstock.errors import UsageError

T = TypeVar("T")

End = Literal["complete", "truncated", "nothing", "large"]

_BLOCK: Final = 2_048  # characters that are looked at together
_PIECES: Final = 128  # so many are kept before they are looked at, whatever is in them
_HEAD: Final = 1_024  # whether a bracket opens something is known within so many characters

_BRACKET: Final = re.compile(r"[\[{]")
_NEXT: Final = re.compile(r"[^\s,]")
_NAME: Final = r'"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)'
_MEMBER: Final = re.compile(rf'(?:\{{\s*+)?{_NAME}"\s*+:\s*+(?=\S)')
_MEMBER_BEGUN: Final = re.compile(rf'(?:\{{\s*+)?(?:{_NAME}(?:\\|"\s*+:?\s*+)?)?')
_EMPTY: Final = re.compile(r"\{\s*+\}")
_ARRAY: Final = re.compile(r'(?:\[\s*+){1,99}+(?:[]\[{"]|//|/\*|(?:-?\d[\d.eE+-]*+|true|false|null)\s*+[],])')
_ARRAY_BEGUN: Final = re.compile(r"(?:\[\s*+)+(?:/|[-+.\w]*+\s*+)?")
_OBJECTS: Final = re.compile(r"\[\s*+(?:[]{]|//|/\*)")
_OBJECTS_BEGUN: Final = re.compile(r"\[\s*+/?")


class Ending(msgspec.Struct, Generic[T], frozen=True):
    """How an answer ended: `complete`, `truncated` (`open` says what was, outermost first), with `nothing`, or `large`.

    `items` are those that only the end has told; where one was open, it is the last of them.
    """

    end: End
    items: Sequence[Element[T]]
    open: tuple[str, ...] = ()


class Scanner(Elements[T]):
    """Takes an answer in pieces of any size, and gives its items, decoded as `of` (msgspec types), as they close.

    The result does not depend on the pieces. Time is linear in the answer; memory holds the element that is open, and
    the last pieces. `fields` are the names of an item's own members, known for structs; `keys` those of a map.
    """

    __slots__ = ("_arrays", "_fields", "_full", "_held", "_keys", "_limit", "_unclosed", "_until")

    def __init__(
        self,
        of: type[T] | None = None,
        *,
        fields: Collection[str] = (),
        keys: Collection[str] = (),
        caps: Caps | None = None,
    ) -> None:
        super().__init__(of, caps or Caps())
        self._fields, self._keys = frozenset(fields or _fields_of(of)), frozenset(keys)
        self._arrays = (_OBJECTS, _OBJECTS_BEGUN) if self._fields else (_ARRAY, _ARRAY_BEGUN)
        self._held: list[str] = []  # pieces that were not looked at
        self._limit = self._caps.total  # of the offset in the answer
        self._full = self._unclosed = False
        self._until = ""

    @property
    def full(self) -> bool:
        """Whether the answer has exceeded its cap: the rest is not looked at, and need not be waited for."""
        return self._full

    def feed(self, piece: str) -> Sequence[Element[T]]:
        """The items that this piece completes; raises `UsageError` after the end."""
        held = self._held
        held.append(piece)
        if self._mark in piece or len(held) > _PIECES:
            return self._advance()
        return ()

    def close(self) -> Ending[T]:
        """What the end tells: whether all was closed, and the items that were not; raises `UsageError` if repeated."""
        out = [*self._advance()]
        self._ended, self._limit = True, -1
        self._look_through("")
        while self._abandon():
            self._look_through("")
        out += self._out
        self._mark = ""
        opened = self._opened()
        if self._full:
            return Ending("large", out, opened)
        if opened or self._unclosed:
            return Ending("truncated", out, opened)
        return Ending("nothing" if self._part < 0 else "complete", out)

    def _advance(self) -> Sequence[Element[T]]:
        """Look at the pieces that were held."""
        text = self._text + "".join(self._held)
        self._held.clear()
        if self._at + len(text) > self._limit:
            text = self._limited(text)
        if len(text) <= _BLOCK:
            self._look(text)
        else:
            self._text = ""
            self._look_through(text)
        if self._again:
            self._look_through("")
        if out := self._out:
            self._out = []
            return out
        return ()

    def _look_through(self, text: str) -> None:
        """Look at more text block by block, and again at what a damaged element has hidden."""
        stack = [(text, 0)]
        while stack or self._again:
            if self._again:
                stack.append((self._again, 0))
                self._again = ""
            text, start = stack.pop()
            end = start + _BLOCK
            if end < len(text):
                stack.append((text, end))
            self._look(self._text + text[start:end])

    def _limited(self, text: str) -> str:
        """The text without what exceeds the cap."""
        if self._ended:
            raise UsageError("the answer has ended: make a new Scanner for the next one")
        self._full = True
        return text[: self._limit - self._at]

    def _look(self, text: str) -> None:
        """Go through the text as far as it tells anything; the rest is kept until there is more."""
        self._text = text
        self._bare = text.replace("\\\\", "__").replace('\\"', "__") if "\\" in text else text
        if self._state == "brackets" and not self._brackets() and self._from == 0 and self._pos <= WINDOW:
            return  # nothing has ended: by far the most frequent case
        while self._brackets() if self._state == "brackets" else self._step():
            pass
        first = self._from
        if first < 0:
            first = self._pos
        elif self._pos - first > WINDOW:
            self._keep()
            first = self._pos
        if first:
            self._text = text = self._text[first:]
            self._at += first
            self._pos -= first
            self._from = min(self._from, 0)

    def _step(self) -> bool:  # one return for each state  # noqa: PLR0911
        """Go on to where something else begins; False when there is no more text to tell where."""
        match self._state:
            case "gap":
                return self._gap()
            case "member":
                return self._member()
            case "prose":
                return self._prose()
            case "array":
                return self._array()
            case "object":
                return self._object()
            case "string":
                return self._string()
            case "word":
                return self._word()
            case "comment":
                return self._comment()
            case "brackets":
                return self._brackets()

    def _prose(self) -> bool:
        found = _BRACKET.search(self._text, self._pos)
        if found is None:
            self._pos = len(self._text)
            return False
        self._pos = found.start()
        self._state = "array" if found[0] == "[" else "object"
        return True

    def _array(self) -> bool:
        """At a bracket that may open the array of the items."""
        known, begun = self._arrays
        if not known.match(self._text, self._pos, self._pos + _HEAD):
            return self._no_json(begun)
        self._part += 1
        self._in_array = True
        return self._go_on(self._pos + 1)

    def _object(self) -> bool:
        """At a brace that may open an item, or an object around items."""
        pos = self._pos
        if empty := _EMPTY.match(self._text, pos, pos + _HEAD):
            self._part += 1
            return self._go_on(empty.end())
        member = _MEMBER.match(self._text, pos, pos + _HEAD)
        if member is None:
            return self._no_json(_MEMBER_BEGUN)
        self._part += 1
        self._begin(pos)
        self._frame = "undecided"
        return self._value_of(member)

    def _no_json(self, begun: re.Pattern[str]) -> bool:
        """Pass over a bracket of prose, unless more text may still make it one of JSON."""
        if self._waits(begun):
            return False
        self._state = "prose"
        self._pos += 1
        return True

    def _waits(self, begun: re.Pattern[str]) -> bool:
        return len(self._text) - self._pos < _HEAD and begun.fullmatch(self._text, self._pos) is not None

    def _gap(self) -> bool:
        """In the array, where an item may begin."""
        text = self._text
        found = _NEXT.search(text, self._pos)
        if found is None:
            self._pos = len(text)
            return False
        self._pos = pos = found.start()
        mark = text[pos]
        if mark == "{":  # at once, as it is nearly always
            self._key, self._from, self._start, self._is_item = None, pos, self._at + pos, True
            return self._balanced("{", "}", 0, pos)
        if mark == "]":
            self._in_array = False
            return self._go_on(pos + 1)
        if mark == "}" and self._frame:  # the object around the array is closed, the array was not
            return self._leave(pos + 1)
        if mark in "/`" and (passed := self._aside(pos)) is not None:
            return passed
        self._key = None
        return self._item(pos)

    def _member(self) -> bool:  # whether to go on is told in each case  # noqa: PLR0911
        """In an object around items, where a member may begin."""
        text = self._text
        found = _NEXT.search(text, self._pos)
        if found is None:
            self._pos = len(text)
            return False
        self._pos = pos = found.start()
        mark = found[0]
        if mark == '"':
            if member := _MEMBER.match(text, pos, pos + _HEAD):
                return self._value_of(member)
            if self._waits(_MEMBER_BEGUN):
                return False
        elif mark == "}" and self._frame != "undecided":
            self._frame = ""
            return self._go_on(pos + 1)
        elif mark in "/`" and self._frame != "undecided" and (passed := self._aside(pos)) is not None:
            return passed
        if self._frame == "undecided":
            return self._own(pos)
        if self._frame == "around":
            return self._value(pos)
        self._key = None
        return self._item(pos)

    def _value_of(self, member: re.Match[str]) -> bool:
        """At the value of a member: what it says about an undecided object, and what it is itself."""
        pos, name = member.end(), _name(member[1])
        opens = self._text[pos]
        if self._frame == "undecided":
            if name in self._keys:
                self._frame = "map"
            elif name in self._fields or (opens not in "[{" and not self._fields):
                return self._own(pos)
            elif opens not in "[{":
                return self._value(pos)
            else:
                self._frame = "around" if opens == "[" else "map"
            self._drop()
        if self._frame == "map":
            self._key = name
            return self._item(pos)
        if opens != "[":
            return self._value(pos)
        self._in_array = True
        return self._go_on(pos + 1)

    def _own(self, pos: int) -> bool:
        """The undecided object is an item; the position is within it."""
        self._frame, self._is_item, self._key = "", True, None
        return self._balanced("{", "}", 1, pos)

    def _aside(self, pos: int) -> bool | None:
        """At a comment or a fence: whether there is more to look at; None when it is neither."""
        mark = self._text[pos : pos + 3]
        if mark[:2] in {"//", "/*"}:
            self._until = "\n" if mark[1] == "/" else "*/"
            self._state, self._pos = "comment", pos + 2
            return True
        if mark == "```":
            return self._leave(pos + 3)
        return False if mark in {"/", "`", "``"} and len(self._text) == pos + len(mark) else None

    def _comment(self) -> bool:
        close = self._text.find(self._until, self._pos)
        if close >= 0:
            return self._go_on(close + len(self._until))
        self._pos = max(self._pos, len(self._text) - self._text.endswith("*"))
        return False

    def _leave(self, pos: int) -> bool:
        """Leave what is open without its bracket."""
        self._unclosed, self._in_array, self._frame = True, False, ""
        return self._go_on(pos)

    def _abandon(self) -> bool:
        """At the end, hand out what is open as it is; whether it is damaged, and there is more to look at."""
        if self._state == "object":
            self._begin(self._pos)
        elif not self._is_item and self._frame != "undecided":
            return False
        if self._from < 0:
            self._add(self._shown, "large")
            return False
        text = "".join((*self._parts, self._text[self._from :]))
        if self._is_item and self._cut(text, len(self._text)):
            return True
        self._add(text, "large" if len(text) > self._caps.element else "truncated")
        return False

    def _opened(self) -> tuple[str, ...]:
        """What is open, outermost first."""
        names: list[str] = ["object"] * bool(self._frame) + ["array"] * self._in_array
        match self._state:
            case "brackets":
                names += ["object" if self._opening == "{" else "array"] + ["string"] * self._odd
            case "array" | "object" | "string":
                names.append(self._state)
            case "word":
                names.append("value")
            case _:
                pass
        return tuple(names)


def _name(source: str) -> str:
    """The name of a member, as it is meant."""
    try:
        return msgspec.json.decode(f'"{source}"', type=str)
    except ValueError:
        return source


def _fields_of(of: object) -> tuple[str, ...]:
    """The names that a struct's members have in JSON."""
    if isinstance(of, type) and issubclass(of, msgspec.Struct) and not of.__struct_config__.array_like:
        return of.__struct_encode_fields__
    return ()
