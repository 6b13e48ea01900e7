"""The scanner of streamed answers: what it finds is what a parser of the whole finds, piece by piece and in time."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch.element import Caps, Element
from penstock.batch.scanner import Scanner
from penstock.errors import UsageError


class Plan(msgspec.Struct):
    agent_id: int
    steps: list[str]


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.text('{}[]",:\\/`\n ', max_size=8)
values = st.recursive(
    scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(texts, values, min_size=1, max_size=3)
styles = st.sampled_from(
    [
        {"ensure_ascii": False, "separators": (",", ":")},
        {"ensure_ascii": True, "separators": (", ", ": ")},
        {"ensure_ascii": False, "indent": 2},
    ]
)
prose = st.text("ab \n`.'\"*:,}]", max_size=12) | st.sampled_from(
    ["see [below]: ", "```json\n", "{a} [x]\n", "\ufeff", ""]
)
cuts = st.lists(st.integers(0, 400), max_size=12)


def pieces_of(text: str, where: list[int]) -> list[str]:
    places = sorted(min(place, len(text)) for place in where)
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def scanned(text: str, where: list[int], **setup: Any) -> list[Element[Any]]:
    """The items, of which each came with the very piece that has its last character."""
    scanner: Scanner[Any] = Scanner(**setup)
    items: list[Element[Any]] = []
    fed = 0
    for piece in pieces_of(text, where):
        for item in scanner.feed(piece):
            behind = item.start + len(item.text)  # a word ends with what is behind it
            ends = behind if item.text[0] in '{["' else len(text) - len(text[behind:].lstrip(" ")) + 1
            assert fed < ends <= fed + len(piece)
            items.append(item)
        fed += len(piece)
    ending = scanner.close()
    assert (ending.end, ending.items, ending.open) == ("complete", [], ())
    assert all(text.startswith(item.text, item.start) for item in items)
    return items


@given(st.lists(values, max_size=5), styles, prose, prose, cuts)
def test_row_d4_elements_are_those_of_the_whole_and_come_at_once(
    elements: list[Any], style: dict[str, Any], before: str, after: str, where: list[int]
) -> None:
    items = scanned(before + json.dumps(elements, **style) + after, where)
    assert [json.loads(item.text) for item in items] == elements
    assert [item.value for item in items] == elements
    assert not any(item.fault for item in items)


@given(st.dictionaries(texts, objects, min_size=1, max_size=4), styles, prose, prose, cuts)
def test_members_of_a_map_come_with_their_keys(
    members: dict[str, Any], style: dict[str, Any], before: str, after: str, where: list[int]
) -> None:
    items = scanned(before + json.dumps(members, **style) + after, where)
    assert [(item.key, item.value) for item in items] == [*members.items()]


@given(st.lists(objects, max_size=5), styles, texts, prose, prose, cuts)
def test_row_d6_elements_within_a_wrapper_come_alike(
    elements: list[Any], style: dict[str, Any], name: str, before: str, after: str, where: list[int]
) -> None:
    items = scanned(before + json.dumps({name: elements, "more": {"x": [1]}}, **style) + after, where)
    assert [item.value for item in items] == elements


@given(st.lists(objects, max_size=5), styles, st.sampled_from(["\n", "\r\n", "\n\n", ",\n"]), cuts)
def test_row_d6_objects_on_lines_come_alike(
    elements: list[Any], style: dict[str, Any], newline: str, where: list[int]
) -> None:
    lines = [json.dumps({"agent_id": 1, **element}, **style) + newline for element in elements]
    items = scanned("".join(lines) + "[]", where, fields=["agent_id"])
    assert [item.value for item in items] == [{"agent_id": 1, **element} for element in elements]
    assert [item.part for item in items] == [*range(len(elements))]


@given(st.lists(objects, min_size=1, max_size=5), styles, st.integers(1, 400), cuts)
def test_row_d5_what_is_cut_off_is_never_given_as_whole(
    elements: list[Any], style: dict[str, Any], cut: int, where: list[int]
) -> None:
    text = json.dumps(elements, **style)
    text = text[: max(1, len(text) - cut)]
    scanner: Scanner[Any] = Scanner()
    items = [item for piece in pieces_of(text, where) for item in scanner.feed(piece)]
    ending = scanner.close()
    assert ending.end == "truncated"
    assert ending.open[0] == "array"
    assert [item.value for item in items] == elements[: len(items)]
    assert [item.fault for item in ending.items] in ([], ["truncated"])


@given(st.text('{}[]",:\\/`\n a1', max_size=60), cuts)
def test_any_text_gives_the_same_under_any_cutting(text: str, where: list[int]) -> None:
    results = []
    for pieces in ([text], pieces_of(text, where), [*text]):
        scanner: Scanner[Any] = Scanner(caps=Caps(element=30, depth=3))
        items = [item for piece in pieces for item in scanner.feed(piece)]
        ending = scanner.close()
        results.append(([*items, *ending.items], ending.end, ending.open))
    assert results[0] == results[1] == results[2]


def test_items_are_decoded_as_their_type_and_faults_say_what_is_wrong() -> None:
    scanner = Scanner(Plan)
    good, wrong, broken = scanner.feed(
        '[{"agent_id":1,"steps":[]}, {"agent_id":"x","steps":[]}, {"agent_id":"x", steps}]'
    )
    assert good.value == Plan(1, [])
    assert (wrong.value, wrong.fault, broken.fault) == (None, "schema", "malformed")
    assert "`$.agent_id`" in wrong.error


@pytest.mark.parametrize("first", ['"steps": ["a"], "agent_id": 1', '"agent_id": 1, "steps": ["a"]'])
def test_a_struct_is_known_by_its_own_fields(first: str) -> None:
    (item,) = Scanner(Plan).feed(f"Here: {{{first}}}")
    assert (item.value, item.start) == (Plan(1, ["a"]), 6)


def test_values_are_left_to_the_caller_who_asks_for_raw_ones() -> None:
    raw, broken = Scanner(msgspec.Raw).feed('[{"a": 1.50}, {"a" 1}]')
    assert raw.value is not None
    assert (bytes(raw.value), broken.fault) == (b'{"a": 1.50}', "malformed")


def test_a_scanner_that_has_ended_takes_nothing_more() -> None:
    scanner: Scanner[Any] = Scanner()
    scanner.feed('[{"a"')
    assert scanner.close().end == "truncated"
    for again in (lambda: scanner.feed("x"), scanner.close):
        with pytest.raises(UsageError, match="make a new Scanner"):
            again()
