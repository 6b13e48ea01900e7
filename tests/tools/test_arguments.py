"""Arguments as a model writes them: what is accepted, what is refused, and how it is told."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, model_validator

from penstock.errors import BadArguments, ToolFailed
from penstock.tools.arguments.parameters import StringParameter, read_parameters
from penstock.tools.arguments.parsing import Arguments, value_check


class Address(BaseModel):
    street: str
    zip: int


def order(order_id: int, address: Address, quantities: list[int], note: str = "") -> None: ...


DECLARED = {
    "order_id": "integer",
    "address": {"type": "object", "properties": {"street": "string", "zip": "integer"}},
    "quantities": {"type": "array", "items": "integer"},
    "note": {"default": ""},
}
GOOD = {"order_id": 1, "address": {"street": "Long Lane", "zip": 42108}, "quantities": [1, 2]}
KINDS: dict[str, Callable[[bool], Arguments]] = {
    "signature": lambda coerce: Arguments.from_signature(order, coerce=coerce),
    "declared": lambda coerce: Arguments.from_parameters(read_parameters(DECLARED) or (), coerce=coerce),  # type: ignore[arg-type]
    "schema": lambda coerce: Arguments.from_schema(Arguments.from_signature(order).schema, coerce=coerce),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[bool], Arguments]:
    return KINDS[request.param]


@pytest.fixture
def arguments(make: Callable[[bool], Arguments]) -> Arguments:
    return make(False)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in values.items()}


def refused(arguments: Arguments, raw: Any) -> dict[str, str]:
    with pytest.raises(BadArguments) as caught:
        arguments.parse(raw)
    assert len(caught.value.message) < 8000
    assert "pydantic" not in caught.value.message
    for detail in caught.value.details[:20]:
        assert f"{detail['path']}: {detail['problem']}" in caught.value.message or not detail["path"]
    return {detail["path"]: detail["problem"] for detail in caught.value.details}


@pytest.mark.parametrize("form", [str, str.encode, lambda text: bytearray(text.encode()), json.loads])
def test_row_b2_text_bytes_and_mappings_give_the_same_values(arguments: Arguments, form: Callable[[str], Any]) -> None:
    assert plain(arguments.parse(form(json.dumps(GOOD)))) == {**GOOD, "note": ""}


def test_row_b2_every_mapping_is_taken_and_left_as_it_was(arguments: Arguments) -> None:
    given = MappingProxyType(dict(GOOD))
    assert plain(arguments.parse(given))["quantities"] == [1, 2]
    assert dict(given) == GOOD


def test_row_b2_all_problems_are_listed_at_once_with_their_paths(arguments: Arguments) -> None:
    raw = {"order_id": "abc", "adress": {}, "address": {"zip": "forty-two", "zipp": 1}, "quantities": [1, None, "x"]}
    assert refused(arguments, raw) == {
        "order_id": "expected an integer, got 'abc'",
        "adress": "unknown key; did you mean 'address'? allowed are order_id, address, quantities, note",
        "address.street": "is required",
        "address.zip": "expected an integer, got 'forty-two'",
        "address.zipp": "unknown key; did you mean 'zip'? allowed are street, zip",
        "quantities[1]": "expected an integer, got null",
        "quantities[2]": "expected an integer, got 'x'",
    }


def test_the_message_reads_as_one_line(arguments: Arguments) -> None:
    with pytest.raises(BadArguments) as caught:
        arguments.parse({**GOOD, "address": {"street": "a", "zip": "forty-two"}})
    assert caught.value.message == "wrong arguments: address.zip: expected an integer, got 'forty-two'"
    assert caught.value.code == "bad_arguments"
    assert not caught.value.retryable


@pytest.mark.parametrize("text", ["", "  \n", "{}", b""])
def test_an_empty_text_is_no_arguments(text: str | bytes) -> None:
    assert Arguments.from_parameters(()).parse(text) == {}
    assert Arguments.from_signature(lambda: None).parse(text) == {}
    assert Arguments.from_schema({}).parse(text) == {}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("nope", "the arguments are not JSON: "),
        ('{"a": 1', "the arguments are not JSON: "),
        ("[1]", "expected an object with the arguments, got an array"),
        ("null", "expected an object with the arguments, got null"),
        ('"x"', "expected an object with the arguments, got 'x'"),
        (b"\xff{}", "the arguments are not UTF-8"),
        ('{"note": "\ud800"}', "the arguments are not JSON"),
        ('{"note": "\\ud800"}', "the arguments are not JSON"),
        ({"note": object()}, "the arguments cannot be written as JSON"),
        ('{"order_id": 1} {}', "the arguments are not JSON"),
        ('{"order_id": ' + "9" * 5000 + "}", "the arguments are not JSON"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_case_26_what_is_not_a_json_object_is_refused(arguments: Arguments, raw: Any, told: str) -> None:
    problems = refused(arguments, raw)
    assert list(problems) == [""]
    assert problems[""].startswith(told)


def test_case_26_a_mapping_that_holds_itself_is_refused(arguments: Arguments) -> None:
    raw: dict[str, Any] = {}
    raw["a"] = raw
    assert "cannot be written as JSON" in refused(arguments, raw)[""]


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ('{"order_id": 2, "order_id": 1, %s}', "order_id"),
        ('{"order_id": 1, "order\\u005fid": 1, %s}', "order_id"),
        ('{"order_id": 1, "address": {"zip": 1, "street": "a", "zip" : 2}, "quantities": []}', "address.zip"),
        ('{"order_id": 1, "address": {"zip": "x", "street": "a:b", "zip": 2}, "quantities": []}', "address.zip"),
    ],
)
def test_case_26_a_key_that_comes_twice_is_refused(arguments: Arguments, raw: str, path: str) -> None:
    rest = json.dumps({key: GOOD[key] for key in ("address", "quantities")})[1:-1]
    assert refused(arguments, raw.replace("%s", rest))[path] == "this key is written twice"


@pytest.mark.parametrize("depth", [300, 10_000, 400_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_case_26_depth_is_refused_and_does_not_crash(arguments: Arguments, depth: int, opening: str) -> None:
    began = time.perf_counter()
    for text in (opening * depth, '{"note": ' + opening * depth + "1" + ("]" if opening == "[" else "}") * depth + "}"):
        assert "" in refused(arguments, text)
    assert time.perf_counter() - began < 1


def test_case_26_a_deep_value_is_refused_where_anything_is_allowed() -> None:
    def anything(value: Any) -> None: ...

    for arguments in (Arguments.from_signature(anything), Arguments.from_schema({})):
        assert arguments.parse('{"value": ' + "[" * 100 + "]" * 100 + "}")
        assert "recursion limit" in refused(arguments, '{"value": ' + "[" * 500 + "]" * 500 + "}")[""]


def test_case_26_too_much_text_is_refused(arguments: Arguments) -> None:
    assert "characters, more than 1000000" in refused(arguments, json.dumps({**GOOD, "note": "x" * 1_000_000}))[""]
    assert arguments.parse(json.dumps({**GOOD, "note": "x" * 999_000}))


class Ratio(BaseModel):
    ratio: float


def in_model(one: Ratio) -> None: ...


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1E+999", "1" * 400 + ".0"])
def test_case_26_numbers_that_are_none_are_refused(word: str) -> None:
    def takes(value: float, more: Any) -> None: ...

    for arguments in (
        Arguments.from_signature(takes),
        Arguments.from_schema({"properties": {"value": {"type": "number"}, "more": {}}}),
    ):
        for text in ('{"value": %s, "more": 1}', '{"value": 1, "more": [{"a": %s}]}'):
            assert "finite" in " ".join(refused(arguments, text.replace("%s", word)).values())
    assert refused(Arguments.from_signature(in_model), {"one": {"ratio": float("inf")}}) == {
        "one.ratio": "expected a finite number, got inf"
    }
    assert refused(Arguments.from_schema({}), {"a": float("nan")}) == {"a": "expected a finite number, got nan"}


@pytest.mark.parametrize("word", ["NaN", "Infinity", "a:b", "1e9999", '"a": 1, "a": 2'])
def test_what_only_looks_suspicious_is_accepted(arguments: Arguments, word: str) -> None:
    assert arguments.parse({**GOOD, "note": word})["note"] == word


HOSTILE = {
    "a long value": {**GOOD, "order_id": "x" * 900_000},
    "a long key": {**GOOD, "x" * 900_000: 1},
    "many wrong items": {**GOOD, "quantities": ["x"] * 190_000},
    "wrong items late": {**GOOD, "quantities": [1] * 100 + ["x"] * 100_000},
    "many unknown keys": {**GOOD, **{f"k{place}": 1 for place in range(60_000)}},
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_case_26_hostile_arguments_are_told_shortly_and_soon(arguments: Arguments, raw: dict[str, Any]) -> None:
    text = json.dumps(raw)
    began = time.perf_counter()
    problems = refused(arguments, text)
    assert time.perf_counter() - began < 3  # a fraction of it on a machine of its own
    assert 1 <= len(problems) <= 20
    assert max(map(len, (*problems, *problems.values()))) < 400


def test_case_26_many_repeated_keys_are_no_trouble(arguments: Arguments) -> None:
    began = time.perf_counter()
    assert refused(arguments, "{" + ",".join(['"k": 1'] * 140_000) + "}") == {"k": "this key is written twice"}
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [("order_id", "7", 7), ("order_id", " -7 ", -7), ("quantities", ["1", 2, "3"], [1, 2, 3])],
)
def test_row_b2_numbers_in_strings_count_only_where_asked_for(
    make: Callable[[bool], Arguments], field: str, text: Any, value: Any
) -> None:
    assert make(True).parse({**GOOD, field: text})[field] == value
    assert refused(make(False), {**GOOD, field: text})


@pytest.mark.parametrize(
    "word", ["7.5", "7.0", "x", "", "true", "1_000", "0x7", "NaN", "[7]", "9" * 500, 7.5, True, None, [7]]
)
def test_row_b2_nothing_else_is_coerced(make: Callable[[bool], Arguments], word: Any) -> None:
    problems = refused(make(True), {**GOOD, "order_id": word})
    assert list(problems) == ["order_id"]
    if isinstance(word, str):
        assert f"expected an integer, got {word[:50]!r}"[:-1] in problems["order_id"]


def test_row_b2_flags_fractions_and_nested_numbers_are_coerced_too() -> None:
    def takes(sure: bool, ratio: float, address: Address, either: int | None = None) -> None: ...

    raw = {"sure": "True", "ratio": "1e3", "address": {"street": "1", "zip": "2"}, "either": "3"}
    parsed = Arguments.from_signature(takes, coerce=True).parse(raw)
    assert parsed == {"sure": True, "ratio": 1000.0, "address": Address(street="1", zip=2), "either": 3}
    number = {"type": ["number", "null"]}
    schema = {"properties": {"sure": {"type": "boolean"}, "any": {"anyOf": [number, {"type": "boolean"}]}}}
    assert Arguments.from_schema(schema, coerce=True).parse({"sure": "false", "any": "2.5"}) == {
        "sure": False,
        "any": 2.5,
    }
    assert refused(Arguments.from_schema(schema, coerce=True), {"sure": "yes"})
    assert refused(Arguments.from_schema(schema, coerce=True), {"sure": 1})


def test_row_b2_many_quoted_numbers_are_all_coerced(make: Callable[[bool], Arguments]) -> None:
    assert make(True).parse({**GOOD, "quantities": ["1"] * 5000})["quantities"] == [1] * 5000


def test_row_b2_unknown_keys_are_refused_at_every_level_of_models_too() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        a: int

    def takes(one: Open, many: list[Open], named: dict[str, Open]) -> None: ...

    arguments = Arguments.from_signature(takes)
    raw = {"one": {"a": 1, "b": 1}, "many": [{"a": 1}, {"a": 1, "c": 1}], "named": {"x": {"a": 1, "d": 1}}}
    problems = refused(arguments, raw)
    assert problems == dict.fromkeys(["one.b", "many[1].c", "named.x.d"], "unknown key; allowed are a")
    assert not Draft202012Validator(arguments.schema).is_valid(raw)


def test_row_b2_a_wrong_union_is_one_problem() -> None:
    def takes(value: int | list[str] | None) -> None: ...

    problems = refused(Arguments.from_signature(takes), {"value": "x"})
    assert problems == {"value": "expected an integer or an array, got 'x'"}
    schema = {"properties": {"value": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}
    assert refused(Arguments.from_schema(schema), {"value": "x"}) == {"value": "expected an integer or null, got 'x'"}


def test_what_a_validator_of_the_user_says_is_told() -> None:
    class Range(BaseModel):
        low: int
        high: int

        @model_validator(mode="after")
        def ordered(self) -> Range:
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

    def takes(between: Range) -> None: ...

    problems = refused(Arguments.from_signature(takes), {"between": {"low": 2, "high": 1}})
    assert problems == {"between": "low must not exceed high, got an object"}


KEYS = st.sampled_from(["a", "b", "a:b", 'q"', "zip"])
JSON = st.recursive(
    st.integers(-3, 3) | st.sampled_from(["x", "a:b", '":', "NaN", ' : "', None]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4).map(tuple),
    max_leaves=8,
)


def written(value: Any, space: str) -> str:
    """JSON text of nested pairs, so that a key may come twice."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json.dumps(key)}{space}:{space}{written(part, space)}" for key, part in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(part, space) for part in value) + "]"
    return json.dumps(value)


def repeats(value: Any) -> bool:
    if isinstance(value, tuple):
        keys = Counter(key for key, _ in value)
        return max(keys.values(), default=0) > 1 or any(repeats(part) for _, part in value)
    return isinstance(value, list) and any(map(repeats, value))


class Leaf(BaseModel):
    a: Any
    b: Any = None


def nest(leaf: Leaf, other: Any, more: Any = 1) -> None: ...


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["leaf", "other", "more"]), JSON), max_size=4), st.sampled_from(["", " ", "\n"])
)
@example([("leaf", (("a", 1), ("a", 2))), ("other", 1)], "")
@example([("leaf", (("a", 1),)), ("other", (("a:b", 1), ("a:b", 1)))], " ")
def test_case_26_repeated_keys_are_always_found(pairs: list[tuple[str, Any]], space: str) -> None:
    value = tuple(pairs)
    text = written(value, space)
    for arguments in (Arguments.from_signature(nest), Arguments.from_schema({})):
        try:
            arguments.parse(text)
            assert not repeats(value)
        except BadArguments as error:
            twice = [each for each in error.details if each["problem"] == "this key is written twice"]
            assert bool(twice) == repeats(value)


@settings(deadline=None)
@given(st.binary(max_size=30) | st.text('{}[]":,ae01.N \\', max_size=30))
def test_case_26_any_text_gives_values_or_bad_arguments(raw: str | bytes) -> None:
    for arguments in (Arguments.from_signature(nest), Arguments.from_schema({})):
        with contextlib.suppress(BadArguments):
            assert isinstance(arguments.parse(raw), dict)


def test_row_b2_dates_and_models_arrive_as_instances() -> None:
    def takes(day: date, address: Address) -> None: ...

    arguments = Arguments.from_signature(takes)
    parsed = arguments.parse('{"day": "2026-01-31", "address": {"street": "a", "zip": 1}}')
    assert parsed == {"day": date(2026, 1, 31), "address": Address(street="a", zip=1)}
    assert arguments.parse({"day": date(2026, 1, 31), "address": Address(street="a", zip=1)}) == parsed


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        (StringParameter(), "x", 1),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 1, "b": 2}, {"a": "x"}),
        ({"type": "integer"}, 1, float("nan")),
        ({"type": "object"}, Address(street="a", zip=1), object()),
        (list[int], [1], ["1"]),
        (Address, Address(street="a", zip=1), {"street": "a"}),
    ],
)
def test_row_b1_a_value_is_checked_against_its_type(expected: Any, good: Any, bad: Any) -> None:
    check = value_check(expected).check
    assert check(good) is good
    with pytest.raises(ToolFailed) as caught:
        check(bad)
    assert caught.value.code == "bad_return_value"
    assert caught.value.details


def test_row_b1_a_long_wrong_value_is_told_shortly() -> None:
    with pytest.raises(ToolFailed) as caught:
        value_check({"items": {"type": "integer"}}).check(["x" * 1000] * 100_000)
    assert len(caught.value.message) < 4000
    assert caught.value.details[1]["path"] == "[1]"
