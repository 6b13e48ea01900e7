"""SQL statements as they are declared: one each, with named parameters that become the driver's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["sqlite", "postgresql", "mysql"]

READING = frozenset({"SELECT", "WITH", "VALUES", "TABLE", "EXPLAIN", "SHOW", "DESCRIBE", "DESC", "PRAGMA"})
# What these change lasts longer than the call, and connections are shared.
OUTLIVING = frozenset(
    {
        "BEGIN",
        "START",
        "COMMIT",
        "END",
        "ROLLBACK",
        "ABORT",
        "SAVEPOINT",
        "RELEASE",
        "LOCK",
        "UNLOCK",
        "LISTEN",
        "UNLISTEN",
    }
    | {"SET", "RESET", "DISCARD", "PREPARE", "EXECUTE", "DEALLOCATE", "DECLARE", "FETCH", "CLOSE", "HANDLER"}
    | {"USE", "ATTACH", "DETACH", "LOAD"}
)

_PARAMETER = r":(?P<name>[A-Za-z_]\w*)"
_TAIL = r"(?P<end>;)|(?P<word>[^\W\d][\w$]*)|\d[\w.]*|(?P<open>['\"`]|/\*)|(?P<paren>\()|(?P<other>\S)|\s+"
_DIALECTS: dict[Dialect, str] = {
    "sqlite": (
        r"(?P<skip>--[^\n]*|/\*.*?(?:\*/|\Z))|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]"
        rf"|{_PARAMETER}|(?P<own>\?\d*|[@$:#]\w+)"
    ),
    "postgresql": (
        r"(?P<skip>--[^\n]*|(?P<nested>/\*))|[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
        rf"|(?P<quote>\$(?:[^\W\d]\w*)?\$).*?(?P=quote)|::|:=|{_PARAMETER}|(?P<own>\$\d+)"
    ),
    "mysql": (
        r"(?P<own>/\*M?!|\?)|(?P<skip>--(?=\s|\Z)[^\n]*|#[^\n]*|/\*.*?\*/)"
        rf"|'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\"|`(?:[^`]|``)*`|:=|{_PARAMETER}"
    ),
}
_TOKENS = {dialect: re.compile(f"{own}|{_TAIL}", re.DOTALL) for dialect, own in _DIALECTS.items()}
_COMMENT_EDGE = re.compile(r"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement cut at its parameters: text, name, text, name, text; `kind` is its first word."""

    pieces: tuple[str, ...]
    kind: str
    words: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, each once, in the order of their first use."""
        return tuple(dict.fromkeys(self.pieces[1::2]))

    @property
    def reads(self) -> bool:
        """Whether this kind of statement can do nothing but read, as far as its first word tells."""
        return self.kind in READING

    def numbered(self, mark: str) -> str:
        """The statement with `$1, $2` (or `?1, ?2`) for its parameters, in the order of `names`."""
        numbers = {name: f"{mark}{number}" for number, name in enumerate(self.names, 1)}
        return "".join(numbers[piece] if odd % 2 else piece for odd, piece in enumerate(self.pieces))

    def marked(self) -> tuple[str, tuple[str, ...]]:
        """The statement with `?` for its parameters, and their names, one for each mark."""
        return "?".join(self.pieces[::2]), self.pieces[1::2]


@lru_cache(maxsize=256)
def read_statement(text: str, dialect: Dialect) -> Statement:
    """Cut a statement at its `:name` parameters; strings, quoted names, comments and casts are left alone.

    Raises `ValueError` for more than one statement, for other kinds of parameters, for a quote that is not closed, and
    for what would outlive its call.
    """
    pieces, words, ended = [""], list[str](), False
    for token in _tokens(text, dialect):
        said, kind = token[0], token.lastgroup
        if kind == "end":
            ended = True
            continue
        if said.isspace() or token.groupdict().get("skip"):
            pieces[-1] += said if said.startswith("/*+") else " "  # a hint is more than a comment
            continue
        if ended:
            raise ValueError("write one statement only: text follows its semicolon")
        if kind in ("own", "open"):
            raise ValueError(_refused(said))
        if kind == "name":
            pieces += [token["name"], ""]
            continue
        if kind == "word":
            words.append(said.upper())
        pieces[-1] += said
    first = words[0] if words else ""
    if first in OUTLIVING:
        raise ValueError(f"a statement stands alone, and what {first} does would outlive its call")
    if not first:
        raise ValueError("write a statement")
    pieces[0], pieces[-1] = pieces[0].lstrip(), pieces[-1].rstrip()
    return Statement(tuple(pieces), first, frozenset(words))


def _refused(said: str) -> str:
    if said in ("/*!", "/*M!"):
        return f"a comment that runs, {said!r}, is refused: write it as a statement"
    if said in "'\"`/*":
        return f"a {said} is not closed"
    return f"{said!r} is no named parameter: write :name"


def _tokens(text: str, dialect: Dialect) -> Iterator[re.Match[str]]:
    pattern, at = _TOKENS[dialect], 0
    while token := pattern.match(text, at):  # until the end: its last alternatives take any character
        at = token.end()
        if token.groupdict().get("nested"):
            at = _past_comment(text, at)
        yield token


def _past_comment(text: str, at: int) -> int:
    """Where a comment that may hold comments ends (PostgreSQL, 4.1.5)."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            raise ValueError("a /* is not closed")
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at
