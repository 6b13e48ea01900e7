"""Answers that models give when they do not do as told, and what is to become of each item of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from penstock.batch.element import Caps

Outcome = tuple[str, str | None, str | None]  # text, fault, key


class Hostile(NamedTuple):
    """An answer, its expected items, how it ends, what is open then, and how the scanner is set up."""

    answer: str
    items: Sequence[Outcome | str]
    end: str = "complete"
    open: tuple[str, ...] = ()
    setup: Mapping[str, Any] = MappingProxyType({})


def bad(text: str, fault: str = "malformed", key: str | None = None) -> Outcome:
    return text, fault, key


def keyed(key: str, text: str, fault: str | None = None) -> Outcome:
    return text, fault, key


A, B, C = '{"id": 1, "do": "a"}', '{"id": 2, "do": "b"}', '{"id": 3, "do": "c"}'
DEEP = "[" * 70 + "]" * 70
TOO_DEEP = f'{{"id": 2, "do": {DEEP}}}'
BRACES = '{"id": 1, "do": "}] {[ \\" \\\\"}'
PLAN = {"fields": ("id", "do")}
SMALL = {"caps": Caps(element=60)}
LONG = '{"id": 1, "do": "' + "x}" * 60 + '"}'

HOSTILE: dict[str, Hostile] = {
    "array": Hostile(f"[{A}, {B}]", [A, B]),
    "any values": Hostile('[1, "x]", null, [2, {}], -1.5e3, true]', ["1", '"x]"', "null", "[2, {}]", "-1.5e3", "true"]),
    "wrapper": Hostile(f'{{"plans": [{A}, {B}]}}', [A, B]),
    "wrapper with other members": Hostile(f'{{"why": "[{{", "plans": [{A}], "note": {{"n": [1]}}}}', [A], setup=PLAN),
    "map": Hostile(f'{{"0": {A}, "1" : {B}}}', [keyed("0", A), keyed("1", B)]),
    "map with an escaped key": Hostile(f'{{"\\u0030\\"": {A}}}', [keyed('0"', A)]),
    "map of words": Hostile('{"a": "x", "b": 2}', [keyed("a", '"x"'), keyed("b", "2")], setup={"keys": ("a", "b")}),
    "map with a bare key": Hostile(f'{{"0": {A}, 1: {B}}}', [keyed("0", A), bad("1:"), B]),
    "one object": Hostile(A, [A]),
    "object that opens with an array": Hostile('{"do": [1], "id": 4}', ['{"do": [1], "id": 4}'], setup=PLAN),
    "object with an unknown member first": Hostile('{"why": "x", "id": 4}', ['{"why": "x", "id": 4}'], setup=PLAN),
    "object that tells nothing": Hostile('{"why": 1, "so": 2}', ['{"why": 1, "so": 2}'], setup=PLAN),
    "lines": Hostile(f"{A}\n{B}\n", [A, B]),
    "lines with CRLF": Hostile(f"{A}\r\n{B}\r\n", [A, B]),
    "lines, the last one cut": Hostile(f"{A}\n{B[:9]}", [A, bad(B[:9], "truncated")], "truncated", ("object",)),
    "byte order mark": Hostile(f"\ufeff[{A}]", [A]),
    "fence": Hostile(f"Sure!\n```json\n[{A},\n {B}]\n```\nDone.", [A, B]),
    "fence never closed": Hostile(f"```json\n[{A}]", [A]),
    "fence inside the array": Hostile(f"```\n[{A}, {B}\n```\nThat's [all].", [A, B], "truncated"),
    "prose with brackets": Hostile(f"See [below], {{a}}, {{}} [x]({{y}}) \"{{\" or '[':\n[{A}] [end] {{ok}}", [A]),
    "prose with numbers": Hostile(f"As [1] and [2, 3] say: [{A}]", [A], setup=PLAN),
    "nothing": Hostile("I cannot do that [sorry].", [], "nothing"),
    "empty": Hostile("", [], "nothing"),
    "empty array": Hostile("Here: [ ]", []),
    "empty object": Hostile("{ }", []),
    "two arrays": Hostile(f"First: [{A}] then\n[{B}, {C}]", [A, B, C]),
    "zero, empty and null keys": Hostile(
        '[{"id": 0}, {"id": ""}, {"id": null}, {}]', ['{"id": 0}', '{"id": ""}', '{"id": null}', "{}"]
    ),
    "key that comes twice": Hostile(f'{{"0": {A}, "0": {B}}}', [keyed("0", A), keyed("0", B)]),
    "element that comes twice": Hostile(f"[{A}, {A}]", [A, A]),
    "member that comes twice": Hostile('[{"id": 1, "id": 2}]', ['{"id": 1, "id": 2}']),
    "deep nesting": Hostile(f"[{A}, {TOO_DEEP}, {C}]", [A, bad(TOO_DEEP, "deep"), C]),
    "deep array": Hostile(f"[{DEEP}, 1]", [bad(DEEP, "deep"), "1"]),
    "brackets in strings": Hostile(f"[{BRACES}, {B}]", [BRACES, B]),
    "escapes": Hostile(
        '["\\ud83d\\ude00", "\\\\", "\\"", "\\u00e9"]', ['"\\ud83d\\ude00"', '"\\\\"', '"\\""', '"\\u00e9"']
    ),
    "half a pair": Hostile('[{"do": "\\ud83d"}, 1]', [bad('{"do": "\\ud83d"}'), "1"]),
    "trailing comma between": Hostile(f"[{A}, {B}, ]", [A, B]),
    "commas missing or too many": Hostile(f"[,{A} {B},, {C}]", [A, B, C]),
    "trailing comma within": Hostile(f'[{{"id": 1,}}, {B}]', [bad('{"id": 1,}'), B]),
    "NaN": Hostile(f'[{{"id": NaN}}, NaN, {B}]', [bad('{"id": NaN}'), bad("NaN"), B]),
    "single quotes": Hostile(f"[{{'id': 1}}, {B}]", [bad("{'id': 1}"), B]),
    "bare names": Hostile(f"[{{id: 1}}, {B}]", [bad("{id: 1}"), B]),
    "ellipsis": Hostile(f"[{A}, ..., {B}]", [A, bad("..."), B]),
    "words between": Hostile(f"[{A}, and then {B}]", [A, bad("and then"), B]),
    "brace too many": Hostile(f"[{A}}}, {B}]", [A, bad("}"), B]),
    "comments between": Hostile(f"[ // one {{\n{A}, /* two ] */ {B} // three\n, / 4]", [A, B, bad("/ 4")]),
    "comment within": Hostile(f'[{{"id": 1 /* {{ */ }}}}, {B}]', [bad('{"id": 1 /* { */ }}'), B]),
    "quote not closed": Hostile(f'[{{"id": 1, "do": "a}}, {B}, {C}]', [bad('{"id": 1, "do": "a}'), B, C]),
    "quote not closed in a map": Hostile(
        f'{{"0": {{"id": 1, "do": "a}}, "1": {B}}}', [bad('{"id": 1, "do": "a}', key="0"), keyed("1", B)]
    ),
    "quote not closed, lines": Hostile(f'{{"id": 1, "do": "a}}\n{B}\n{C}', [bad('{"id": 1, "do": "a}'), B, C]),
    "quote not closed, many": Hostile(
        f'[{{"id": 1, "do": "a}}, {", ".join([B] * 40)}]', [bad('{"id": 1, "do": "a}'), *[B] * 40]
    ),
    "line break in a string": Hostile(f'[{{"id": 1, "do": "a\nb"}}, {B}]', [bad('{"id": 1, "do": "a\nb"}'), B]),
    "quote within a string": Hostile(f'[{{"id": 1, "do": "a "b" c"}}, {B}]', [bad('{"id": 1, "do": "a "b" c"}'), B]),
    "brace missing": Hostile(f'[{{"id": 1, "at": {{"x": 1}}, {B}, {C}]', [bad('{"id": 1, "at": {"x": 1}'), B, C]),
    "bracket missing within": Hostile(f'[{{"id": [1, 2}}, {B}]', [bad('{"id": [1, 2}'), B]),
    "bracket of the array missing": Hostile(f'{{"plans": [{A}}}', [A], "truncated"),
    "cut in a string": Hostile(
        f'[{A}, {{"id": 2, "do": "b',
        [A, bad('{"id": 2, "do": "b', "truncated")],
        "truncated",
        ("array", "object", "string"),
    ),
    "cut in an escape": Hostile('["a", "b\\', ['"a"', bad('"b\\', "truncated")], "truncated", ("array", "string")),
    "cut in a number": Hostile("[1, 2", ["1", bad("2", "truncated")], "truncated", ("array", "value")),
    "cut in a literal": Hostile('{"plans": [tru', [bad("tru", "truncated")], "truncated", ("object", "array", "value")),
    "cut between": Hostile(f'{{"plans": [{A}, ', [A], "truncated", ("object", "array")),
    "cut in a key": Hostile(f'{{"0": {A}, "1', [keyed("0", A)], "truncated", ("object",)),
    "cut at once": Hostile("Here it is: [", [], "truncated", ("array",)),
    "large": Hostile(f"[{LONG}, {A}]", [bad(LONG, "large"), A], setup=SMALL),
    "large, never closed": Hostile(
        f"[{A}, {LONG[:-2]}", [A, bad(LONG[:-2], "large")], "truncated", ("array", "object", "string"), SMALL
    ),
    "larger than all": Hostile(
        f"[{A}, {B}]", [A, bad(B[:9], "truncated")], "large", ("array", "object"), {"caps": Caps(total=33)}
    ),
}
