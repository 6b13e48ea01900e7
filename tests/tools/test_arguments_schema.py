"""Arguments that a plain JSON Schema describes: closed, filled with defaults, and otherwise as it says."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from penstock.errors import BadArguments, UsageError
from penstock.tools.arguments.parsing import Arguments

POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 7}}}
TREE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "default": 0},
                "below": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
        }
    },
}


def under(schema: dict[str, Any]) -> Arguments:
    outer = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    return Arguments.from_schema({**outer, "$defs": schema.get("$defs", {})})


def accepts(arguments: Arguments, value: Any) -> bool:
    try:
        arguments.parse({"v": value})
    except BadArguments:
        return False
    return True


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (POINT, {"x": 1}, {"x": 1, "z": 1}),
        ({"type": "array", "items": POINT}, [{"x": 1}], [{"z": 1}]),
        ({"type": "object", "additionalProperties": POINT}, {"any": {"x": 1}}, {"any": {"z": 1}}),
        ({"allOf": [POINT, {"properties": {"z": {"type": "integer"}}}]}, {"x": 1, "z": 1}, {"w": 1}),
        ({"anyOf": [POINT, {"type": "string"}]}, {"x": 1}, {"z": 1}),
        ({"oneOf": [{**POINT, "required": ["x"]}, {"type": "null"}]}, {"x": 1}, {"x": 1, "z": 1}),
        ({"if": {"required": ["x"]}, "then": POINT, "else": {"properties": {"w": {}}}}, {"w": 1}, {"z": 1}),
        ({"anyOf": [{"$ref": "#/$defs/p"}], "$defs": {"p": POINT}}, {"x": 1}, {"z": 1}),
        ({**POINT, "anyOf": [{"properties": {"z": {}}}]}, {"x": 1, "z": 1}, {"w": 1}),
        ({**POINT, "allOf": [{"properties": {"z": {}}}]}, {"x": 1, "z": 1}, {"w": 1}),
    ],
    ids=str,
)
def test_row_b2_objects_with_properties_are_closed_at_every_level(schema: dict[str, Any], good: Any, bad: Any) -> None:
    assert accepts(under(schema), good)
    assert Draft202012Validator(schema).is_valid(bad)
    assert not accepts(under(schema), bad)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**POINT, "additionalProperties": True},
        {**POINT, "unevaluatedProperties": {"type": "integer"}},
        {"allOf": [{**POINT, "additionalProperties": True}]},
        {"anyOf": [POINT, {"minProperties": 1}]},
        {},
    ],
    ids=str,
)
def test_what_says_that_it_is_open_stays_open(schema: dict[str, Any]) -> None:
    assert accepts(under(schema), {"other": 1})


def test_row_b2_the_closed_schema_is_what_a_model_is_shown() -> None:
    given_schema = {"properties": {"v": POINT}}
    shown = Arguments.from_schema(given_schema).schema
    assert shown["properties"]["v"]["additionalProperties"] is False
    assert shown["additionalProperties"] is False
    assert shown["type"] == "object"
    assert "additionalProperties" not in given_schema


@pytest.mark.parametrize(
    ("schema", "value", "filled"),
    [
        (POINT, {}, {"y": 7}),
        ({"type": "array", "items": POINT}, [{"x": 1}, {"y": 1}], [{"x": 1, "y": 7}, {"y": 1}]),
        ({"additionalProperties": POINT}, {"a": {}}, {"a": {"y": 7}}),
        ({"allOf": [POINT, {"properties": {"z": {"default": [1]}}}]}, {}, {"y": 7, "z": [1]}),
        ({"anyOf": [{"type": "string"}, POINT]}, {}, {"y": 7}),
        ({"anyOf": [{"type": "string"}, POINT]}, "x", "x"),
        ({"properties": {"at": POINT}}, {"at": {}}, {"at": {"y": 7}}),
        ({"properties": {"at": {**POINT, "default": {}}}}, {}, {"at": {"y": 7}}),
    ],
    ids=str,
)
def test_row_b2_defaults_of_a_schema_are_filled_in_at_every_level(
    schema: dict[str, Any], value: Any, filled: Any
) -> None:
    assert under(schema).parse({"v": value}) == {"v": filled}


def test_row_b2_a_schema_that_refers_to_itself_works_at_every_depth() -> None:
    arguments = Arguments.from_schema(TREE)
    assert "$schema" not in arguments.schema
    assert arguments.parse({"below": [{"below": [{}]}]}) == {
        "value": 0,
        "below": [{"value": 0, "below": [{"value": 0}]}],
    }
    with pytest.raises(BadArguments, match=r"below\[0\].below\[0\].valeu: unknown key; did you mean 'value'\?"):
        arguments.parse({"below": [{"below": [{"valeu": 1}]}]})


def test_row_b2_a_whole_number_is_an_integer_however_it_is_written() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    parsed = under(schema).parse('{"v": [1.0, 1e2, 3, 2E0]}')
    assert parsed == {"v": [1, 100, 3, 2]}
    assert {type(each) for each in parsed["v"]} == {int}
    loose = under({"type": ["integer", "number"]}).parse('{"v": 1.0}')
    assert type(loose["v"]) is float


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        ({"const": "c"}, "k", "\"c\" was expected, got 'k'"),
        ({"enum": ["c", 1, None]}, "k", "expected 'c' or 1 or null, got 'k'"),
        ({"type": "string", "pattern": "^a"}, "k", "does not match"),
        ({"type": "string", "format": "email"}, "k", "email"),
        ({"type": "array", "uniqueItems": True}, [1, 1], "got an array"),
        ({"type": "string", "minLength": 3}, "k", "got 'k'"),
        ({"anyOf": [{"type": "integer"}, {**POINT, "required": ["x"]}]}, {}, "v.x: is required"),
        ({"not": {"type": "string"}}, "k", "got 'k'"),
    ],
    ids=str,
)
def test_row_b2_each_problem_says_what_was_expected_and_what_came(
    schema: dict[str, Any], value: Any, told: str
) -> None:
    with pytest.raises(BadArguments) as caught:
        under(schema).parse({"v": value})
    assert told in caught.value.message
    assert "value " not in caught.value.message


SCHEMAS = st.recursive(
    st.sampled_from([{"type": "integer"}, {"type": "string"}, {"type": ["null", "boolean"]}, {"minimum": 0}, {}]),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(
            lambda a, b: {"properties": {"a": a, "b": b}, "required": ["a"], "additionalProperties": False},
            inner,
            inner,
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"oneOf": [a, b]}, inner, inner),
    ),
    max_leaves=5,
)
VALUES = st.recursive(
    st.sampled_from([None, True, 0, -1, 2, "x", 0.5]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(SCHEMAS, VALUES)
def test_row_b2_a_schema_that_is_closed_accepts_what_it_says(schema: dict[str, Any], value: Any) -> None:
    assert accepts(under(schema), value) == Draft202012Validator(schema).is_valid(value)


class Other(BaseHTTPRequestHandler):
    """Gives a schema to whoever asks."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"type": "integer"}')


def test_case_22_no_schema_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"type": "integer"}')
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for uri in (f"http://127.0.0.1:{server.server_port}/x", (tmp_path / "other.json").as_uri(), "other.json"):
            with pytest.raises(UsageError, match="JSON Schema is broken"):
                Arguments.from_schema({"properties": {"a": {"$ref": uri}}})
        server.shutdown()
    assert Other.asked == []


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"$ref": "#/$defs/nowhere"}, {"pattern": "("}], ids=str)
def test_a_broken_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="JSON Schema is broken"):
        Arguments.from_schema(schema)
