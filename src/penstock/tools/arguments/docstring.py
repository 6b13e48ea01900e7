"""The description and the parameters' descriptions in a docstring of Google's, NumPy's or Sphinx's style."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

_GOOGLE = re.compile(r"^(?:Args|Arguments|Parameters|Params|Keyword Args|Keyword Arguments):\s*$")
_GOOGLE_NAME = re.compile(r"^\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(?:\s+(.*)|$)")
_NUMPY = re.compile(r"^(?:Parameters|Other Parameters)\s*$")
_NUMPY_NAME = re.compile(r"^\*{0,2}(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")
_SPHINX = re.compile(r"^:(?:param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_RULE = re.compile(r"^-{3,}\s*$")


def read_docstring(text: str | None) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what is said of each parameter, each as one line."""
    lines = inspect.cleandoc(text or "").splitlines()
    first: list[str] = []
    for line in lines:
        if not line.strip() or _SPHINX.match(line) or _GOOGLE.match(line):
            break
        first.append(line.strip())
    found = {**_google(lines), **_numpy(lines), **_sphinx(lines)}
    return " ".join(first), {name: " ".join(said.split()) for name, said in found.items() if said.split()}


def _google(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start, line in enumerate(lines):
        if _GOOGLE.match(line):
            for head, rest in _entries(_indented(lines[start + 1 :])):
                if named := _GOOGLE_NAME.match(head):
                    found[named[1]] = f"{named[2] or ''} {rest}"
    return found


def _numpy(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start, (line, below) in enumerate(pairwise(lines)):
        if _NUMPY.match(line) and _RULE.match(below):
            for head, rest in _entries(_until_rule(lines[start + 2 :])):
                if named := _NUMPY_NAME.match(head):
                    found |= {name.strip(): rest for name in named[1].split(",")}
    return found


def _sphinx(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for head, rest in _entries(lines):
        if named := _SPHINX.match(head):
            found[named[1]] = f"{named[2]} {rest}"
    return found


def _indented(lines: list[str]) -> list[str]:
    """The indented block at the start, without its indentation."""
    block: list[str] = []
    for line in lines:
        if line.strip() and not line[0].isspace():
            break
        block.append(line)
    return inspect.cleandoc("\n".join(["", *block])).splitlines()


def _until_rule(lines: list[str]) -> list[str]:
    """The lines before the next underlined heading."""
    rule: Callable[[str], object] = _RULE.match
    end = next((place for place, line in enumerate(lines) if rule(line)), len(lines) + 1)
    return lines[: end - 1]


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Every line at the margin, with the indented lines below it as one text."""
    head, rest = "", list[str]()
    for line in lines:
        if line.strip() and not line[0].isspace():
            if head:
                yield head, " ".join(rest)
            head, rest = line.strip(), []
        elif not line.strip() and not rest:
            continue
        else:
            rest.append(line.strip())
    if head:
        yield head, " ".join(rest)
