"""The pages are complete and true: names, keys, defaults, tables, options, links."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import penstock
from penstock import errors
from penstock.cli.app import app
from penstock.config import Settings
from penstock.llms.services import SERVICES
from penstock.server.wire import TABLE
from tests.docs.pages import DOCS, PAGES, ROOT, Block, anchors, blocks, code_words, commands, links, matches, rows

SRC = ROOT / "src" / "penstock"


@cache
def documented() -> frozenset[str]:
    """Every name in code on the pages of docs/."""
    return frozenset().union(*(code_words(page) for page in DOCS.glob("*.md")))


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The keys below a section as people write them, with their fields."""
    for name, field in model.model_fields.items():
        inner = f"{path}{name}"
        sections = list(_sections(field.annotation))
        if not sections:
            yield inner, field
        for section, listed in sections:
            yield from keys(section, f"{inner}[]." if listed else f"{inner}.")


def _sections(annotation: object, *, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, listed
    listed = listed or typing.get_origin(annotation) is tuple
    if listed or isinstance(annotation, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _sections(part, listed=listed)


def written(field: FieldInfo) -> str:
    """A default as configuration.md writes it."""
    if field.is_required():
        return "required"
    match field.get_default(call_default_factory=True, validated_data={}):
        case None:
            return "none"
        case bool(flag):
            return str(flag).lower()
        case float(number):
            return f"{number:g}"
        case tuple(items):
            return f"[{', '.join(map(str, items))}]"
        case other:
            return str(other)


def test_configuration_md_names_every_key_with_its_default_and_no_other() -> None:
    told = {row[0]: row[2] for row in rows(DOCS / "configuration.md") if re.match(r"\w+(\[\])?\.\w", row[0])}
    assert told == {key: written(field) for key, field in keys(Settings)}


def test_configuration_md_names_every_service_with_its_variables_and_address() -> None:
    told = [row for row in rows(DOCS / "configuration.md") if row[0] in SERVICES]
    known = [[row.name, row.key_env or "none", row.base_env, row.base_url or "none"] for row in SERVICES.values()]
    assert told == known


def test_providers_md_names_every_service() -> None:
    assert {*SERVICES} <= {name for row in rows(DOCS / "providers.md") for name in row[0].split(", ")}


def test_server_md_shows_the_table_of_errors() -> None:
    told = [row for row in rows(DOCS / "server.md") if row[0] in {error.__name__ for error in TABLE}]
    known = [[error.__name__, str(status), kind, code or "its own"] for error, (status, kind, code) in TABLE.items()]
    assert sorted(told) == sorted(known)


def test_library_md_names_every_error() -> None:
    tree = {name for name, error in vars(errors).items() if isinstance(error, type) and name.isidentifier()}
    known = {name for name in tree if issubclass(vars(errors)[name], errors.PenstockError)}
    assert known <= code_words(DOCS / "library.md")


@pytest.mark.parametrize("name", penstock.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert name in documented()


def options(command: Any, path: str = "penstock") -> Iterator[tuple[str, str]]:
    """Each command below another, and each of its options."""
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            yield from ((path, name) for name in parameter.opts if name.startswith("-"))
    for name, inner in getattr(command, "commands", {}).items():
        yield f"{path} {name}", ""
        yield from options(inner, f"{path} {name}")


@pytest.mark.parametrize(("command", "option"), list(options(typer.main.get_command(app))))
def test_cli_md_names_a_command_and_its_options(command: str, option: str) -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    assert command in text
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    own = next((section for section in sections if section.startswith(command + "\n")), text)
    assert f"`{option}" in own or option in {"", "--help", "-h"}


def test_architecture_md_names_every_module() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    modules = [path for path in SRC.rglob("*.py") if not path.name.startswith("__")]
    assert modules
    assert [path.name for path in modules if path.name not in text] == []


def test_the_index_names_every_page() -> None:
    assert {page for page, _ in links(DOCS / "README.md")} == {*DOCS.glob("*.md")} - {DOCS / "README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_somewhere(page: Path) -> None:
    for file, heading in links(page):
        assert file.exists(), file
        assert not heading or heading in anchors(file), f"{file.name} has no heading #{heading}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_opens_with_one_sentence_that_says_what_it_is_for(page: Path) -> None:
    title, _, opening = page.read_text("utf-8").split("\n", 3)[:3]
    assert title.startswith("# ")
    assert opening.startswith("This page ")


def test_a_block_is_read_with_its_place_and_the_reason_it_is_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- not run: needs a key -->\n```python\nx\n```\n\n"
        "- b\n\n  ```sh\n  y\n  ```\n<!-- not run -->\n```\n```\n"
    )
    assert list(blocks(page)) == [
        Block("python", "x\n", 5, "needs a key"),
        Block("sh", "y\n", 11),
        Block("", "\n", 15, ""),
    ]


def test_commands_are_read_with_the_output_below_them() -> None:
    shown = [(command.line, command.output) for command in commands("$ one \\\n  two\nsaid\n\nmore\n$ three\n")]
    assert shown == [("one two", "said\n\nmore"), ("three", None)]
    assert [command.line for command in commands("# first\none\n\ntwo \\\n  three\n")] == ["one", "two three"]


@pytest.mark.parametrize(
    ("expected", "said", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\nc", False),
        ("a\nb", "a\nb\nc", False),
        ("a ... d", "a b c d", True),
        ("a ... d", "a b c", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a\n...", "a\nb\n\nc", True),
        ("a.c", "abc", False),
    ],
)
def test_dots_stand_for_anything_and_nothing_else_does(expected: str, said: str, same: bool) -> None:
    assert matches(expected, said) is same
