"""Hostile answers: each of their items has the same, expected outcome, however the answer is cut into pieces."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from time import process_time
from typing import Any

import pytest

from penstock.batch.element import SHOWN, Caps, Element
from penstock.batch.scanner import Ending, Scanner
from tests.batch.hostile import HOSTILE, Hostile


def scanned(pieces: Iterable[str], **setup: Any) -> tuple[list[Element[Any]], Ending[Any]]:
    scanner: Scanner[Any] = Scanner(**setup)
    items = [item for piece in pieces for item in scanner.feed(piece)]
    ending = scanner.close()
    return [*items, *ending.items], ending


def cuttings(answer: str) -> Iterable[list[str]]:
    """The whole, character by character, every single cut, and some of many cuts."""
    yield [answer]
    yield [*answer]
    yield from ([answer[:cut], answer[cut:]] for cut in range(len(answer) + 1))
    chance = random.Random(answer)
    for size in (3, 8):
        cuts = sorted(chance.choices(range(len(answer) + 1), k=len(answer) // size))
        yield [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]


def expected(case: Hostile) -> list[tuple[str, str | None, str | None]]:
    rows = [(one, None, None) if isinstance(one, str) else one for one in case.items]
    return [(text[:SHOWN] if fault == "large" else text, fault, key) for text, fault, key in rows]


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE.keys())
def test_row_d5_every_item_has_its_outcome_under_every_cutting(case: Hostile) -> None:
    for pieces in cuttings(case.answer):
        items, ending = scanned(pieces, **case.setup)
        assert [(item.text, item.fault, item.key) for item in items] == expected(case), pieces
        assert (ending.end, ending.open) == (case.end, case.open), pieces
        assert [item.index for item in items] == [*range(len(items))]
        for item in items:
            assert case.answer.startswith(item.text, item.start)
            assert (item.fault is None) == (item.error == "")


def test_items_of_two_arrays_say_which_they_are_from() -> None:
    items, _ = scanned(["[1, 2] and [3] and {", '"x": 4}'])
    assert [(item.text, item.part) for item in items] == [("1", 0), ("2", 0), ("3", 1), ('{"x": 4}', 2)]


def test_row_d6_a_string_of_ten_megabytes_is_refused_in_little_memory_and_what_follows_is_read() -> None:
    def pieces() -> Iterable[str]:
        yield '[{"id": 1, "do": "'
        yield from ["{ " * 10 + "x" * 2_000 + '\\"},[1]]'] * 2_000
        yield from ["x" * 2_000] * 3_000
        yield '"}, {"id": 2}]'

    tracemalloc.start()
    items, ending = scanned(pieces())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(item.fault, item.start) for item in items] == [("large", 1), (None, items[1].start)]
    assert (items[1].text, ending.end) == ('{"id": 2}', "complete")
    assert peak < 5_000_000


@pytest.mark.parametrize("longest", [1, 8, 10**6])
def test_row_d6_a_long_item_below_the_cap_is_given_whole(longest: int) -> None:
    text = '{"do": "' + '}\\\\\\"{\\n' * 15_000 + '"}'
    answer, chance, pieces = f"[{text}, 1]", random.Random(1), list[str]()
    while answer:
        size = chance.randint(1, longest)
        pieces.append(answer[:size])
        answer = answer[size:]
    items, _ = scanned(pieces, caps=Caps(element=200_000))
    assert [(item.text == text, item.fault) for item in items] == [(True, None), (False, None)]


def test_row_d6_a_full_scanner_says_so_and_reads_no_more() -> None:
    scanner: Scanner[Any] = Scanner(caps=Caps(total=10))
    seen = [([item.text for item in scanner.feed(piece)], scanner.full) for piece in ("[1, 2, ", "3, 4, 5]")]
    assert seen == [(["1", "2"], False), (["3"], True)]
    assert list(scanner.feed("6]")) == []
    assert scanner.close() == Ending("large", [], ("array",))


HARD = {
    "open brackets": "[" * 100_000,
    "open braces": '{"' * 100_000,
    "spaced brackets": ("[" + " " * 200) * 1_000,
    "spaced braces": ("{" + " " * 200) * 1_000,
    "quotes not closed": "[" + '{"id": 1, "do": "a}, ' * 10_000,
    "braces missing": "[" + '{"id": 1, "at": {"x": 1}, ' * 6_000,
    "escaped": '["' + '\\}\\"' * 50_000,
    "junk": "[1," + "a/" * 100_000,
    "damaged late": '[{"id": "' + "x" * 200_000 + '"}, ' + '{"id": 1, "at": {"x": 1}, ' * 4_000,
    "breaks": '[{"id": "' + "\n" * 100_000,
    "comment": "[1, /*" + "* /" * 70_000,
}


@pytest.mark.parametrize("answer", HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("size", [13, 10**6])
def test_no_answer_takes_more_than_linear_time(answer: str, size: int) -> None:
    started = process_time()
    scanned(answer[at : at + size] for at in range(0, len(answer), size))
    assert process_time() - started < 2
