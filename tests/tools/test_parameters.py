"""Declared parameters: what they allow, how they are spelt, and that nothing of them is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import TypeAdapter, ValidationError

from penstock.errors import BadArguments
from penstock.tools.arguments.parameters import (
    ArrayParameter,
    BooleanParameter,
    IntegerParameter,
    NumberParameter,
    ObjectParameter,
    OneOfParameter,
    Parameter,
    StringParameter,
    read_parameters,
    read_return_type,
    schema_of,
)
from penstock.tools.arguments.parsing import Arguments
from penstock.tools.spec import ToolSpec

ADAPTER: TypeAdapter[Parameter] = TypeAdapter(Parameter)
NAMES = st.sampled_from("abcdefgh")
TEXTS = st.text("xyz", max_size=3)


def common(draw: st.DrawFn, default: st.SearchStrategy[Any] | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": draw(NAMES)}
    if draw(st.booleans()):
        fields["description"] = draw(st.text(max_size=5))
    if draw(st.booleans()):
        fields["required"] = draw(st.booleans())
    if default is not None and draw(st.booleans()):
        fields["default"] = draw(default)
    return fields


@st.composite
def scalars(draw: st.DrawFn) -> Parameter:
    match draw(st.sampled_from(["string", "enum", "length", "number", "integer", "boolean"])):
        case "string":
            return StringParameter(**common(draw, TEXTS), pattern=draw(st.sampled_from([None, "^[xyz]*$"])))
        case "enum":
            return StringParameter(**common(draw, st.just("x")), enum=("x", draw(TEXTS)))
        case "length":
            return StringParameter(
                **common(draw), min_length=draw(st.integers(0, 2)), max_length=draw(st.integers(2, 4))
            )
        case "number":
            return NumberParameter(**common(draw), minimum=draw(st.sampled_from([None, -1.5])), exclusive_maximum=3.0)
        case "integer":
            return IntegerParameter(**common(draw), exclusive_minimum=-4, maximum=draw(st.sampled_from([None, 4])))
        case _:
            return BooleanParameter(**common(draw, st.booleans()))


def unique(parameters: list[Parameter]) -> tuple[Parameter, ...]:
    return tuple({each.name: each for each in parameters}.values())


def nested(inner: st.SearchStrategy[Parameter]) -> st.SearchStrategy[Parameter]:
    @st.composite
    def make(draw: st.DrawFn) -> Parameter:
        parts = unique(draw(st.lists(inner, min_size=1, max_size=3)))
        match draw(st.sampled_from(["array", "object", "one_of"])):
            case "array":
                return ArrayParameter(**common(draw), items=parts[0], max_items=2, unique_items=draw(st.booleans()))
            case "object":
                return ObjectParameter(**common(draw), properties=parts)
            case _:
                return OneOfParameter(**common(draw), options=parts)

    return make()


PARAMETERS = st.recursive(scalars(), nested, max_leaves=5)
LEAVES = st.none() | st.booleans() | st.integers(-6, 6) | st.sampled_from([0.5, -2.5, 2.0]) | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@settings(deadline=None, max_examples=50)
@given(PARAMETERS)
def test_row_b2_a_round_trip_through_json_loses_nothing(parameter: Parameter) -> None:
    again = ADAPTER.validate_json(ADAPTER.dump_json(parameter))
    assert again == parameter
    assert type(again) is type(parameter)
    assert again.model_fields_set | {"type", "name"} == parameter.model_fields_set | {"type", "name"}
    assert schema_of([again]) == schema_of([parameter])


@settings(deadline=None, max_examples=50)
@given(PARAMETERS)
def test_row_b2_a_spec_keeps_its_parameters_through_json(parameter: Parameter) -> None:
    spec = ToolSpec(tool_name="it", parameters=(parameter,), return_type=parameter)
    again = ToolSpec.model_validate_json(spec.model_dump_json())
    assert (again.parameters, again.return_type) == ((parameter,), parameter)


@settings(deadline=None, max_examples=50)
@given(st.lists(PARAMETERS, max_size=3).map(unique), st.data())
def test_row_b2_what_the_schema_accepts_is_what_is_parsed(
    parameters: tuple[Parameter, ...], data: st.DataObject
) -> None:
    schema = schema_of(parameters)
    Draft202012Validator.check_schema(schema)
    names = [each.name for each in parameters] or ["a"]
    value = data.draw(st.dictionaries(st.sampled_from(names) | NAMES, VALUES, max_size=4))
    wanted = Draft202012Validator(schema, format_checker=FormatChecker()).is_valid(value)
    try:
        Arguments.from_parameters(parameters).parse(json.dumps(value))
        accepted = True
    except BadArguments:
        accepted = False
    assert accepted == wanted


# Each field: the parameter, a value it allows, one that only this field forbids.
FIELDS: list[tuple[Parameter, Any, Any]] = [
    (StringParameter(name="v", enum=("c", "f")), "c", "k"),
    (StringParameter(name="v", format="date"), "2026-01-31", "2026-02-31"),
    (StringParameter(name="v", min_length=2), "ab", "a"),
    (StringParameter(name="v", max_length=0), "", "a"),
    (StringParameter(name="v", pattern="^a+$"), "aa", "ab"),
    (NumberParameter(name="v", enum=(1.5, 2.5)), 1.5, 2.0),
    (NumberParameter(name="v", minimum=1.5), 1.5, 1.4),
    (NumberParameter(name="v", maximum=1.5), 1.5, 1.6),
    (NumberParameter(name="v", exclusive_minimum=0.0), 0.1, 0.0),
    (NumberParameter(name="v", exclusive_maximum=1.5), 1.4, 1.5),
    (NumberParameter(name="v", multiple_of=0.5), 1.5, 1.6),
    (IntegerParameter(name="v", enum=(1, 2)), 1, 3),
    (IntegerParameter(name="v", minimum=0), 0, -1),
    (IntegerParameter(name="v", maximum=1), 1, 2),
    (IntegerParameter(name="v", exclusive_minimum=1), 2, 1),
    (IntegerParameter(name="v", exclusive_maximum=0), -1, 0),
    (IntegerParameter(name="v", multiple_of=3), 6, 7),
    (BooleanParameter(name="v"), True, "true"),
    (ArrayParameter(name="v", items=IntegerParameter()), [1], ["1"]),
    (ArrayParameter(name="v", min_items=1), [1], []),
    (ArrayParameter(name="v", max_items=1), [1], [1, 2]),
    (ArrayParameter(name="v", unique_items=True), [1, 2], [1, 1]),
    (ObjectParameter(name="v", properties=(StringParameter(name="a"),)), {"a": "x"}, {"a": "x", "b": 1}),
    (OneOfParameter(name="v", options=(IntegerParameter(), StringParameter())), "x", None),
]


@pytest.mark.parametrize(("parameter", "good", "bad"), FIELDS, ids=lambda value: str(value)[:60])
def test_row_b2_every_field_of_a_parameter_takes_effect(parameter: Parameter, good: Any, bad: Any) -> None:
    arguments = Arguments.from_parameters([parameter])
    assert arguments.parse({"v": good}) == {"v": good}
    with pytest.raises(BadArguments, match="v"):
        arguments.parse({"v": bad})


def test_row_b2_every_field_is_in_the_table_above() -> None:
    listed = {(type(each), field) for each, _, _ in FIELDS for field in each.model_fields_set}
    kinds = (StringParameter, NumberParameter, IntegerParameter, ArrayParameter, ObjectParameter, OneOfParameter)
    everywhere = {"type", "name", "description", "required", "default"}
    assert {(kind, field) for kind in kinds for field in set(kind.model_fields) - everywhere} <= listed


# Each kind: the fields it cannot do without, a value it allows, one that it does not.
KINDS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "string": ({}, "x", 1),
    "number": ({}, 1.5, "1.5"),
    "integer": ({}, 1, 1.5),
    "boolean": ({}, True, "true"),
    "array": ({}, [1], {"a": 1}),
    "object": ({}, {"a": 1}, [1]),
    "one_of": ({"options": ["integer", "string"]}, "x", 1.5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_row_b2_what_every_kind_of_parameter_has_takes_effect(kind: str) -> None:
    fields, good, bad = KINDS[kind]

    def taken(**more: Any) -> Arguments:
        parameters = read_parameters({"v": {"type": kind, **fields, **more}})
        assert isinstance(parameters, tuple)
        return Arguments.from_parameters(parameters)

    plain = taken(description="of the answer")
    assert plain.schema["properties"]["v"]["description"] == "of the answer"
    assert plain.parse({"v": good}) == {"v": good}
    for wrong in ({"v": bad}, {}):
        with pytest.raises(BadArguments, match="v: "):
            plain.parse(wrong)
    assert taken(required=False).parse({}) == {}
    assert taken(default=good).parse({}) == {"v": good}


def test_row_b2_names_descriptions_and_defaults_are_shown_to_the_model() -> None:
    part = StringParameter(name="unit", description="of the answer", default="c")
    shown = schema_of([part])["properties"]["unit"]
    assert shown == {"type": "string", "description": "of the answer", "default": "c"}


def test_row_b2_defaults_are_filled_in_at_every_level() -> None:
    unit = StringParameter(name="unit", default="c")
    where = ObjectParameter(name="where", properties=(unit, StringParameter(name="city")))
    several = ArrayParameter(name="several", items=where, required=False)
    either = OneOfParameter(name="either", options=(IntegerParameter(), where), required=False)
    arguments = Arguments.from_parameters([where, several, either, ArrayParameter(name="tags", default=[])])
    full = {"city": "Leeds", "unit": "c"}
    given = {"where": {"city": "Leeds"}, "several": [{"city": "Leeds"}], "either": {"city": "Leeds"}}
    parsed = arguments.parse(given)
    assert parsed == {"where": full, "several": [full], "either": full, "tags": []}
    parsed["tags"].append("mine")
    assert arguments.parse(given)["tags"] == []


def test_row_b2_only_required_parameters_without_default_must_be_given() -> None:
    parts = (IntegerParameter(name="a", required=False), IntegerParameter(name="b", default=1))
    assert Arguments.from_parameters(parts).parse("") == {"b": 1}
    with pytest.raises(BadArguments, match=r"^wrong arguments: c: is required$"):
        Arguments.from_parameters([IntegerParameter(name="c")]).parse("{}")


def test_the_shorthand_is_the_same_as_written_out() -> None:
    short = {
        "city": "string",
        "unit": {"enum": ["c", "f"], "default": "c"},
        "tags": {"type": "array", "items": "string", "required": False},
        "at": {"type": "object", "properties": {"lat": "number", "lon": {"default": 1.5}}},
        "id": {"type": "one_of", "options": ["integer", {"type": "string"}]},
        "key": {"type": ["integer", "string"]},
        "level": {"enum": [1, 2.5]},
        "sure": BooleanParameter(),
    }
    lat, lon = NumberParameter(name="lat"), NumberParameter(name="lon", default=1.5)
    assert read_parameters(short) == (
        StringParameter(name="city"),
        StringParameter(name="unit", enum=("c", "f"), default="c"),
        ArrayParameter(name="tags", items=StringParameter(), required=False),
        ObjectParameter(name="at", properties=(lat, lon)),
        OneOfParameter(name="id", options=(IntegerParameter(), StringParameter())),
        OneOfParameter(name="key", options=(IntegerParameter(), StringParameter())),
        NumberParameter(name="level", enum=(1.0, 2.5)),
        BooleanParameter(name="sure"),
    )


def test_a_json_schema_stays_one() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 2}}}
    assert read_parameters(schema) == schema
    assert ToolSpec(tool_name="it", parameters=schema, return_type=schema).return_type == schema
    assert read_parameters(None) is None
    assert read_return_type("integer") == IntegerParameter()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"city": "strin"}, "parameter 'city': the type 'strin' is not known; known are string, boolean, integer"),
        ({"city": {}}, "parameter 'city': the type None is not known"),
        ({"city": None}, "parameter 'city': the type None is not known"),
        ({"city": {"type": "string", "minLength": 3}}, "parameter 'city': 'minLength' is not known.* min_length"),
        ({"city": {"type": "array", "items": {"type": "string", "x": 1}}}, "parameter 'city': 'items.x' is not known"),
        ({"city": {"type": "array", "items": "strin"}}, "parameter 'city': items needs a type, one of string"),
        ({"unit": {"enum": ["c"], "default": "k"}}, "parameter 'unit': the default 'k' does not fit"),
        ({"n": {"type": "integer", "minimum": "1"}}, "parameter 'n': minimum: "),
        ([{"type": "string"}], "parameter 0 has no name"),
        ([StringParameter(name="a"), IntegerParameter(name="a")], "parameter 'a' is declared twice"),
        ({"a": {"type": "object", "properties": [{"type": "string"}]}}, "parameter 'a': .*parameter 0 has no name"),
        ({"type": "object", "properties": {"a": 5}}, "broken at properties/a"),
        ({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}}, "broken"),
        (5, "parameters are a list, a mapping of names to types, or a JSON Schema, not 5"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named_with_what_is_known(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_parameters(value)
    with pytest.raises(ValidationError, match=told):
        ToolSpec(tool_name="it", parameters=value)


@pytest.mark.parametrize("value", [5, "strin", {"type": "strin"}, {"type": "array", "items": "string"}], ids=str)
def test_a_wrong_return_type_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"return_type|broken"):
        read_return_type(value)
