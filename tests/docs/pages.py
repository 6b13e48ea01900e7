"""Markdown pages as a reader sees them: fenced blocks, commands with their output, tables, links and code words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

_FENCE = re.compile(r" *(```+|~~~+) *([\w-]*)")
_NOT_RUN = re.compile(r" *<!-- *not run\b:?(.*?)-->\s*")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#+ (.+)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: `line` is where its text begins, `not_run` the reason given in the comment right before it."""

    language: str
    text: str
    line: int
    not_run: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a shell block and the output that is shown below it, None where none is."""

    line: str
    output: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    before, lines = "", enumerate(page.read_text("utf-8").splitlines(), 1)
    for number, line in lines:
        opened = _FENCE.match(line)
        if opened is None:
            before = line if line.strip() else before
            continue
        inside: list[str] = []
        for _, inner in lines:
            if inner.strip() == opened[1]:
                break
            inside.append(inner)
        else:
            raise ValueError(f"{page.name}:{number}: the block is not closed")
        reason = _NOT_RUN.fullmatch(before)
        text = dedent("\n".join(inside)) + "\n"
        yield Block(opened[2], text, number + 1, reason[1].strip() if reason else None)
        before = ""


def commands(text: str) -> Iterator[Command]:
    """The commands of a shell block: what follows "$ ", with its output; without any "$ ", every line."""
    joined = re.sub(r" *\\\n\s*", " ", text)
    if not re.search(r"^\$ ", joined, re.MULTILINE):
        yield from (Command(line) for line in joined.splitlines() if line.strip() and not line.startswith("#"))
        return
    for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield Command(line, output.rstrip("\n") or None)


def matches(expected: str, said: str) -> bool:
    """Whether a text is as expected: "..." stands for anything in a line, on a line of its own for any lines."""
    pattern = ""
    for line in expected.rstrip().splitlines():
        rest = ".*".join(map(re.escape, line.rstrip().split("...")))
        pattern += r"(?:.*\n)*?" if line.strip() == "..." else rest + r"[ \t]*\n"
    return re.fullmatch(pattern, said.rstrip() + "\n") is not None


def rows(page: Path) -> list[list[str]]:
    """The rows of all tables of a page as cells, their heads and backticks taken off."""
    found = []
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append([cell.strip().replace("`", "").replace("\\|", "|") for cell in cells])
    return found


def code_words(page: Path) -> set[str]:
    """Every name that stands in code on a page, in a block or between backticks."""
    text = page.read_text("utf-8")
    spans = [block.text for block in blocks(page)] + re.findall(r"`([^`\n]+)`", text)
    return {word for span in spans for word in re.findall(r"\w+", span)}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The relative links of a page: the file each leads to, and the heading in it."""
    for target in _LINK.findall(_without_blocks(page)):
        if not re.match(r"[a-z]+:", target):
            file, _, heading = target.partition("#")
            yield (page.parent / file if file else page), heading


def anchors(page: Path) -> set[str]:
    """What a link may name on a page: its headings as GitHub spells them."""
    headings = _HEADING.findall(_without_blocks(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _without_blocks(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
