"""What a model is told of a value's type, and how elements of its answer are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import jsonschema
import msgspec
import pytest
from pydantic import BaseModel, Field

from penstock.batch.items import Item
from penstock.batch.plan import Act, Plan
from penstock.batch.schema import ItemSchema, WrongElement, dialect_of, head_of
from penstock.errors import UsageError
from penstock.llms.demo import Demo
from penstock.llms.openai import Gpt
from penstock.testing import ScriptedLlm


class Mood(StrEnum):
    CALM = "calm"
    WILD = "wild"


class Told(BaseModel):
    mood: Mood
    why: str = Field(default="", max_length=5)


class Aliased(BaseModel):
    who: int | str = Field(alias="agent_id")
    parts: list[Told] = []


@dataclass
class Point:
    x: int
    y: int


class Node(msgspec.Struct):
    name: str
    below: list[Node] = []


class Numbered(msgspec.Struct):
    agent_id: int
    do: str


class Named(msgspec.Struct):
    agent_id: str
    do: str


COLOUR = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$ref": "#/$defs/Colour",
    "$defs": {"Colour": {"enum": ["red", "blue"]}},
}
OPEN = {"type": "object", "properties": {"agent_id": {}, "n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
KINDS: dict[str, tuple[Any, Any]] = {
    "plan": (Plan, {"steps": [{"act": "Go", "args": {"x": 1}}]}),
    "pydantic": (Told, {"mood": "calm", "why": "sun"}),
    "pydantic with the key": (Aliased, {"parts": [{"mood": "wild"}]}),
    "dataclass": (Point, {"x": 1, "y": 2}),
    "recursive": (Node, {"name": "a", "below": [{"name": "b"}]}),
    "enum": (Mood, "calm"),
    "literal": (Literal["a", "b"], "a"),
    "list": (list[int], [1, 2]),
    "JSON Schema": (COLOUR, "red"),
    "JSON Schema with the key": (OPEN, {"n": 1}),
}


def element(schema: ItemSchema, key: Any, value: Any) -> dict[str, Any]:
    return {"agent_id": key, **value} if schema.own_key else {"agent_id": key, "value": value}


def read(schema: ItemSchema, text: str, item: Any = 1) -> Any:
    return schema.value(text, head_of(text), Item(item, None))


@pytest.mark.parametrize("dialect", ["positions", "elements"])
@pytest.mark.parametrize(("kind", "value"), KINDS.values(), ids=KINDS.keys())
def test_what_the_schema_says_is_what_is_read(kind: Any, value: Any, dialect: Any) -> None:
    schema = ItemSchema(kind)
    form = schema.response_format([1, "b"], dialect)
    assert form is not None
    answer = {"plans": [element(schema, 1, value), element(schema, "b", value)]}
    check = jsonschema.Draft202012Validator(form["json_schema"]["schema"])
    check.validate(answer)
    check.validate(json.loads(json.dumps(answer)))
    jsonschema.Draft202012Validator(json.loads(schema.text)).validate(answer["plans"][0])
    assert [read(schema, json.dumps(one), item) for one, item in zip(answer["plans"], (1, "b"), strict=True)]
    wrong = {"plans": [element(schema, "b", value), element(schema, 1, value)]}
    assert check.is_valid(wrong) == (dialect == "elements")
    assert check.is_valid({"plans": answer["plans"][:1]}) == (dialect == "elements")


def test_a_service_that_takes_no_schema_is_sent_none() -> None:
    assert ItemSchema(Plan).response_format([1], "none") is None


def test_the_key_comes_first_so_that_a_cut_element_shows_it() -> None:
    late = {"type": "object", "properties": {"n": {"type": "integer"}, "agent_id": {}}}
    assert [*ItemSchema(late).element(1)["properties"]] == ["agent_id", "n"]
    assert ItemSchema(Told).element(1)["properties"]["agent_id"] == {"const": 1}


@pytest.mark.parametrize(("kind", "strict"), [(Plan, False), (Literal["a"], True), (Told, False), (COLOUR, True)])
def test_strict_is_asked_where_openai_would_take_it(kind: Any, strict: bool) -> None:
    form = ItemSchema(kind).response_format([1], "elements")
    assert form is not None
    assert form["json_schema"]["strict"] is strict


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ('{"agent_id": 1, "value": {"mood": "sad"}}', "schema", "mood"),
        ('{"agent_id": 1, "value": {"mood": "calm", "why": "too long"}}', "schema", "why"),
        ('{"agent_id": 1, "mood": "calm"}', "schema", "'agent_id' and 'value'"),
        ("5", "schema", "Input should be an object at .the top of the value"),
    ],
)
def test_row_d5_what_is_of_another_type_is_said(text: str, kind: str, words: str) -> None:
    with pytest.raises(WrongElement, match=words) as caught:
        read(ItemSchema(Told), text)
    assert caught.value.kind == kind
    assert len(caught.value.message) < 350


def test_the_values_of_a_json_schema_are_checked() -> None:
    with pytest.raises(WrongElement, match="minimum of 1 at 'n'"):
        read(ItemSchema(OPEN), '{"agent_id": 1, "n": 0}')
    with pytest.raises(WrongElement, match="no JSON") as caught:
        read(ItemSchema(Plan), '{"agent_id": 1, "plan_id": "\\ud800", "steps": []}')
    assert caught.value.kind == "malformed"


def test_an_element_that_its_answer_names_needs_no_key_and_no_wrapper() -> None:
    assert read(ItemSchema(Plan), '{"steps": []}', "b") == Plan("b", [])
    assert read(ItemSchema(Told), '{"mood": "calm"}', "b") == Told(mood=Mood.CALM)
    assert read(ItemSchema(Mood), '"wild"', "b") is Mood.WILD


def test_a_value_has_the_id_of_its_item_not_the_key() -> None:
    assert read(ItemSchema(Plan), '{"agent_id": "k1234abcd", "steps": []}', "an id") == Plan("an id", [])
    assert read(ItemSchema(Plan), '{"agent_id": "7", "steps": []}', 7) == Plan(7, [])
    assert read(ItemSchema(Aliased), '{"agent_id": "k1234abcd"}', 2**60).who == 2**60


def test_keys_are_of_the_type_that_the_values_want() -> None:
    items = [Item(1, None), Item("b", None)]
    assert [*ItemSchema(Named).keys(items)] == ["1", "b"]
    assert read(ItemSchema(Named), '{"agent_id": "1", "do": "x"}', 1) == Named("1", "x")
    with pytest.raises(UsageError, match="the id 'b' is none"):
        ItemSchema(Numbered).keys(items)


def test_the_acts_of_plans_are_bounded() -> None:
    for acts in ("MoveTo|Attack", "MoveTo | Attack|", ["MoveTo", "Attack"]):
        schema = ItemSchema(Plan, acts=acts)
        assert schema.acts == ("MoveTo", "Attack")
        assert '"enum":["MoveTo","Attack"]' in schema.text
        assert read(schema, '{"agent_id": 1, "steps": [{"act": "MoveTo"}]}') == Plan(1, [Act("MoveTo")])
        with pytest.raises(WrongElement, match="step 1 does 'Fly', which is none of MoveTo, Attack"):
            read(schema, '{"agent_id": 1, "steps": [{"act": "MoveTo"}, {"act": "Fly"}]}')
    assert ItemSchema(Plan, acts="").acts == ()
    with pytest.raises(UsageError, match="acts are for plans"):
        ItemSchema(Told, acts="Go")


def test_values_that_no_model_wrote_are_checked_too() -> None:
    schema = ItemSchema(Plan)
    for value in (Plan(0, [Act("Go")]), {"steps": [{"act": "Go"}]}):
        assert schema.checked(Item("b", None), value) == Plan("b", [Act("Go")])
    assert ItemSchema(Told).checked(Item(1, None), Told(mood=Mood.WILD)) == Told(mood=Mood.WILD)
    for bad in (None, 5, {"steps": 1}):
        with pytest.raises(WrongElement):
            schema.checked(Item(1, None), bad)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"agent_id": 12, "do', 12),
        ('{"agent_id": 12', None),
        ('{"agent_id": "a\\"b", ', 'a"b'),
        ('{"agent_id": "a', None),
        ('{"agent_id":"\\ud8"}', None),
        ('{"do": 1', None),
    ],
)
def test_the_key_of_a_damaged_element_is_read_where_it_is_whole(text: str, key: Any) -> None:
    assert ItemSchema(Plan).key_in(text) == key


@pytest.mark.parametrize("bad", [{"type": "no such"}, 5, complex, {"properties": {"x": {"$ref": "#"}}}])
def test_what_is_no_type_of_values_is_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match=r"JSON Schema|no type of values|its own root"):
        ItemSchema(bad)


class Bounded(BaseModel):
    """A value with a bound."""

    mood: int = Field(le=5)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (list[Bounded], [{"mood": 1}], [Bounded(mood=1)]),
        (Bounded | None, None, None),
        (Bounded | None, {"mood": 2}, Bounded(mood=2)),
        (dict[str, list[Bounded]], {"a": [{"mood": 3}]}, {"a": [Bounded(mood=3)]}),
    ],
)
def test_types_that_hold_models_of_pydantic_are_types_of_values(kind: Any, given: Any, value: Any) -> None:
    schema = ItemSchema(kind)
    assert '"maximum":5' in schema.text
    assert schema.checked(Item(1, 0), value) == value
    text = json.dumps({"agent_id": 1, "value": given})
    assert schema.value(text, head_of(text), Item(1, 0)) == value
    with pytest.raises(WrongElement, match="not as the schema says"):
        schema.checked(Item(1, 0), [{"mood": 9}])


class Odd:
    """No type of values."""


def test_types_that_no_schema_can_be_made_of_are_refused_in_a_line() -> None:
    for kind in (list[Bounded | Odd], Odd, "gpt-5"):
        with pytest.raises(UsageError, match=r"is no type of values: give .*\)\Z") as raised:
            ItemSchema(kind)
        assert "\n" not in str(raised.value)


def test_odd_json_schemas_are_read_or_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(480):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="nested too deeply"):
        ItemSchema(deep)
    assert ItemSchema({"properties": {"agent_id": True}}).own_key
    anything: Any
    for anything in (True, {}):
        schema = ItemSchema({"$defs": {"x": anything}, "$ref": "#/$defs/x"})
        assert schema.checked(Item(1, 0), [5]) == [5]
    with pytest.raises(WrongElement, match="at the top of the value"):
        ItemSchema({"type": "integer"}).checked(Item(1, 0), "a")


def test_services_get_the_dialect_they_take() -> None:
    known = {
        Gpt(model="m", service=name, api_key="k", base_url=None if name != "azure" else "https://x.test"): dialect
        for name, dialect in {
            "openai": "elements",
            "anthropic": "elements",
            "mistral": "elements",
            "azure": "elements",
            "llamacpp": "positions",
            "ollama": "positions",
            "vllm": "positions",
            "lmstudio": "positions",
        }.items()
    }
    known[Gpt(model="m", base_url="http://127.0.0.1:8080/v1")] = "positions"
    assert {llm: dialect_of(llm) for llm in known} == known
    assert dialect_of(Demo()) == "positions"
    assert dialect_of(ScriptedLlm("")) == dialect_of(print) == "none"
