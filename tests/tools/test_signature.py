"""A Python function's signature and docstring as the parameters of a tool."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from penstock.errors import BadArguments, UsageError
from penstock.tools.arguments.parsing import Arguments
from penstock.tools.arguments.signature import describe, read_signature
from penstock.tools.result import ToolContext

if TYPE_CHECKING:
    from decimal import Decimal


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(TypedDict):
    x: int
    y: float


@dataclasses.dataclass
class Box:
    width: int
    height: int = 1


class Address(BaseModel):
    street: str
    zip: int = 0


def everything(
    word: str,
    count: Annotated[int, Field(ge=1, description="how many")],
    color: Color,
    unit: Literal["c", "f"],
    point: Point,
    box: Box,
    address: Address,
    *,
    day: date | None = None,
    tags: list[str] = [],  # noqa: B006
    more: Any = None,
) -> dict[str, int]:
    """Do everything.

    And more of it.

    Args:
        word: The word.
        count: Not this one.
        day: The day
            on which.
    """
    return {"count": count}


FULL = {
    "word": "w",
    "count": 1,
    "color": "red",
    "unit": "c",
    "point": {"x": 1, "y": 2},
    "box": {"width": 3},
    "address": {"street": "a"},
}


def test_row_b2_values_arrive_as_their_types_with_defaults() -> None:
    values = Arguments.from_signature(everything).parse({**FULL, "day": "2026-01-31"})
    assert values == {
        **FULL,
        "color": Color.RED,
        "box": Box(3, 1),
        "address": Address(street="a", zip=0),
        "day": date(2026, 1, 31),
        "tags": [],
        "more": None,
    }
    assert everything(**values) == {"count": 1}


def test_row_b2_a_default_is_not_shared_between_calls() -> None:
    arguments = Arguments.from_signature(everything)
    arguments.parse(FULL)["tags"].append("mine")
    assert arguments.parse(FULL)["tags"] == []


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("word", 1),
        ("count", 0),
        ("count", 1.0),
        ("count", True),
        ("color", "green"),
        ("unit", "k"),
        ("point", {"x": 1}),
        ("point", {"x": 1, "y": 2, "z": 3}),
        ("box", {"width": "3"}),
        ("box", {"width": 3, "depth": 1}),
        ("address", {"street": None}),
        ("day", "2026-02-31"),
        ("day", 5),
        ("tags", "x"),
    ],
)
def test_row_b2_types_are_strict(name: str, bad: Any) -> None:
    arguments = Arguments.from_signature(everything)
    with pytest.raises(BadArguments) as caught:
        arguments.parse({**FULL, name: bad})
    assert [each["path"].split(".")[0] for each in caught.value.details] == [name]


def test_row_b2_the_schema_shows_types_descriptions_and_defaults() -> None:
    schema = Arguments.from_signature(everything).schema
    Draft202012Validator.check_schema(schema)
    shown = schema["properties"]
    assert shown["word"] == {"type": "string", "description": "The word."}
    assert shown["count"] == {"type": "integer", "minimum": 1, "description": "how many"}
    assert shown["unit"] == {"type": "string", "enum": ["c", "f"]}
    assert shown["day"]["description"] == "The day on which."
    assert shown["day"]["default"] is None
    assert shown["tags"] == {"type": "array", "items": {"type": "string"}, "default": []}
    assert schema["required"] == list(FULL)
    assert "title" not in json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert {each["additionalProperties"] for each in schema["$defs"].values() if "properties" in each} == {False}


def test_a_property_named_title_stays() -> None:
    def publish(title: str, properties: int) -> None: ...

    assert list(Arguments.from_signature(publish).schema["properties"]) == ["title", "properties"]


SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["red", "c", "x", "2026-01-31", 1.5])
PARTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("x", "y", "width", "height", "street", "zip", "other"), SCALARS)
)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([*FULL, "day", "tags", "other"]), SCALARS | PARTS | st.lists(SCALARS, max_size=2))
def test_row_b2_what_the_shown_schema_accepts_is_what_is_parsed(name: str, value: Any) -> None:
    arguments = Arguments.from_signature(everything)
    raw = {**FULL, name: value}
    valid = Draft202012Validator(arguments.schema, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(raw)
    try:
        arguments.parse(raw)
        accepted = True
    except BadArguments:
        accepted = False
    assert accepted == valid


def test_row_b2_skipped_parameters_are_the_callers() -> None:
    def tool(ctx: ToolContext, city: str) -> str:
        return city

    arguments = Arguments.from_signature(tool, skip=("ctx",))
    assert list(arguments.schema["properties"]) == ["city"]
    with pytest.raises(BadArguments, match="ctx: unknown key; "):
        arguments.parse({"city": "x", "ctx": 1})


def test_what_a_function_returns_is_known() -> None:
    assert read_signature(everything).returns == dict[str, int]
    assert read_signature(lambda: None).returns is Any


class Shop:
    """A shop."""

    def buy(self, item: str, count: int = 1) -> str:
        """Buy it."""
        return item * count

    @classmethod
    def open(cls, day: date) -> None:
        """Open it."""

    @staticmethod
    def close(day: date) -> None:
        """Close it."""

    def __call__(self, item: str) -> str:
        """Ask for it."""
        return item


def wrapped(item: str) -> str:
    """Wrap it."""
    return item


@functools.wraps(wrapped)
def wrapper(*args: Any, **kwargs: Any) -> str:
    return wrapped(*args, **kwargs)


@pytest.mark.parametrize(
    ("func", "name", "description", "raw"),
    [
        (Shop().buy, "buy", "Buy it.", {"item": "x"}),
        (Shop.open, "open", "Open it.", {"day": "2026-01-31"}),
        (Shop.close, "close", "Close it.", {"day": "2026-01-31"}),
        (Shop(), "Shop", "Ask for it.", {"item": "x"}),
        (functools.partial(Shop().buy, count=2), "buy", "Buy it.", {"item": "x"}),
        (functools.partial(Shop().buy, "x"), "buy", "Buy it.", {"count": 2}),
        (wrapper, "wrapped", "Wrap it.", {"item": "x"}),
    ],
    ids=["method", "static method", "class method", "object", "partial", "partial with a value", "wrapper"],
)
def test_row_b2_everything_that_can_be_called_by_name(
    func: Callable[..., Any], name: str, description: str, raw: dict[str, Any]
) -> None:
    about = describe(func)
    assert (about.name, about.description) == (name, description)
    arguments = Arguments.from_signature(func)
    func(**arguments.parse(raw))
    with pytest.raises(BadArguments):
        arguments.parse({**raw, "strange": 1})


def test_a_partials_own_value_is_its_default() -> None:
    arguments = Arguments.from_signature(functools.partial(Shop().buy, count=2))
    assert arguments.parse({"item": "x"}) == {"item": "x", "count": 2}


def test_row_b2_annotations_of_local_classes_are_found() -> None:
    class Local(BaseModel):
        a: int

    def takes(value: Local) -> None: ...

    assert Arguments.from_signature(takes).parse({"value": {"a": 1}}) == {"value": Local(a=1)}


def test_row_b2_a_parameter_without_annotation_takes_any_json_value() -> None:
    def takes(value): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

    arguments = Arguments.from_signature(takes)
    for value in (None, True, 1, 1.5, "x", [1], {"a": [None]}):
        assert arguments.parse({"value": value}) == {"value": value}


def test_names_that_pydantic_keeps_for_itself_are_allowed() -> None:
    def takes(_x: int, model_name: str, schema: int = 1, copy: int = 2) -> None: ...

    assert Arguments.from_signature(takes).parse('{"_x": 1, "model_name": "a"}') == {
        "_x": 1,
        "model_name": "a",
        "schema": 1,
        "copy": 2,
    }


def test_defaults_written_in_a_field_count() -> None:
    empty: Any = Field(default_factory=list, max_length=1)

    def takes(a: Annotated[int, Field(default=3)], b: list[int] = empty) -> None: ...

    arguments = Arguments.from_signature(takes)
    assert arguments.parse("{}") == {"a": 3, "b": []}
    with pytest.raises(BadArguments, match="b: "):
        arguments.parse({"b": [1, 2]})
    with pytest.raises(BadArguments, match="a: this key is written twice"):
        arguments.parse('{"a": 1, "a": 2}')


def test_a_default_that_json_cannot_write_is_kept_to_itself() -> None:
    nothing = object()

    def takes(value: Any = nothing) -> None: ...

    arguments = Arguments.from_signature(takes)
    assert arguments.parse("{}")["value"] is nothing
    assert arguments.schema["properties"] == {"value": {}}


def by_position(a: int, /) -> None: ...
def many(*args: int) -> None: ...
def named(**kwargs: int) -> None: ...
def unknown(a: Decimal) -> None: ...
def unusable(a: Callable[[], int] | json.JSONEncoder) -> None: ...


@pytest.mark.parametrize(
    ("func", "told"),
    [
        (by_position, "'by_position' cannot be a tool: 'a': .*remove the '/'"),
        (many, "'many' cannot be a tool: .*a list instead"),
        (named, "'named' cannot be a tool: .*a dict instead"),
        (unknown, "annotations of 'unknown' cannot be read: .*Decimal"),
        (unusable, "annotations of 'unusable' cannot be read"),
    ],
)
def test_row_b2_what_cannot_be_called_by_name_is_refused(func: Callable[..., Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Arguments.from_signature(func)


GOOGLE = """Find a place.
    On the map.

    More.

    Args:
        city (str): The city: its name.
        unit: The unit,
            c or f.

        *rest: Others.

    Returns:
        city: not this.
    """
NUMPY = """Find a place.
    On the map.

    Parameters
    ----------
    city : str
        The city: its name.
    unit : {'c', 'f'}, optional
        The unit,
        c or f.
    *rest
        Others.

    Returns
    -------
    city : str
        not this.
    """
SPHINX = """Find a place.
    On the map.

    :param str city: The city: its name.
    :param unit: The unit,
        c or f.
    :type unit: str
    :param rest: Others.
    :returns: city: not this
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_row_b2_docstrings_describe_the_tool_and_its_parameters(text: str) -> None:
    def find(city: str, unit: str, rest: str) -> None: ...

    find.__doc__ = text
    shown = Arguments.from_signature(find).schema["properties"]
    said = {name: part["description"] for name, part in shown.items()}
    assert said == {"city": "The city: its name.", "unit": "The unit, c or f.", "rest": "Others."}
    assert describe(find).description == "Find a place. On the map."


@settings(deadline=None)
@given(st.text("ab:-_* \n()\tArgsPmet", max_size=60))
def test_no_docstring_is_too_strange(text: str) -> None:
    def find(a: str) -> None: ...

    find.__doc__ = text
    assert describe(find).name == "find"
    assert Arguments.from_signature(find).schema["properties"]
