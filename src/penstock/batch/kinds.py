"""Types of values: the JSON Schema of each, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import msgspec

from penstock.errors import UsageError
from penstock.messages import is_array, is_object

if TYPE_CHECKING:
    from pydantic import BaseModel

Schema: TypeAlias = dict[str, Any]
Sections: TypeAlias = dict[str, dict[str, Schema]]
"""The parts of a schema that the rest refers to, by the name of the section they stand in."""
Decode: TypeAlias = Callable[[str | bytes], Any]
_SECTIONS = ("$defs", "definitions")
_OF_A_DOCUMENT = {"$schema", "$id", *_SECTIONS}


def kind_of(kind: Any) -> tuple[Schema, Decode]:
    """The JSON Schema of a type, and what reads its JSON. Raises `UsageError` for what is no type of values."""
    if is_object(kind):
        try:
            return kind, _by_schema(kind)
        except (ValueError, RecursionError) as error:  # what the check of schemas raises for one that is too deep
            raise UsageError(f"the JSON Schema is nested too deeply: {error}") from error
    if _is_model(kind):
        model: type[BaseModel] = kind
        return model.model_json_schema(), model.model_validate_json
    if _holds_models(kind):
        return _by_adapter(kind)
    try:
        return msgspec.json.schema(kind), msgspec.json.Decoder(kind).decode
    except TypeError as error:
        raise _no_type(kind, error) from error


def opened(schema: Schema) -> tuple[Schema, Sections]:
    """A schema without its definitions, which then stand where its references find them from a place further down."""
    sections: Sections = {name: dict(schema[name]) for name in _SECTIONS if is_object(schema.get(name))}
    body = {name: value for name, value in schema.items() if name not in _OF_A_DOCUMENT}
    reference = str(body.get("$ref", ""))
    _, section, name = reference.split("/") if reference.count("/") == 2 else ("", "", "")
    if set(body) == {"$ref"} and is_object(sections.get(section, {}).get(name)):
        body = sections[section].pop(name)
        if _refers([body, sections], reference):  # to itself
            sections[section][name] = body
    if _refers(body, "#") or _refers(sections, "#"):
        raise UsageError("the schema refers to its own root '#': name that part in '$defs', and refer to it there")
    return body, {name: section for name, section in sections.items() if section}


def bounded(sections: Sections, acts: Sequence[str]) -> Sections:
    """The definitions of a plan whose steps may only name these acts."""
    act = sections["$defs"]["Act"]
    return {"$defs": {"Act": {**act, "properties": {**act["properties"], "act": {"enum": list(acts)}}}}}


def is_strict(schema: Any) -> bool:
    """Whether every object in a schema is closed and all its properties required, as OpenAI's strict mode wants."""
    if is_array(schema):
        return all(map(is_strict, schema))
    if not is_object(schema):
        return True
    properties: Mapping[str, Any] | None = schema.get("properties")
    if properties is not None or schema.get("type") == "object":
        closed = schema.get("additionalProperties") is False
        if not closed or set(properties or ()) != set(schema.get("required", ())):
            return False
    return all(map(is_strict, schema.values()))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "model_json_schema")


def _holds_models(kind: Any) -> bool:
    """Whether a type is made of pydantic models, as `list[Model]` and `Model | None` are."""
    return any(_is_model(part) or _holds_models(part) for part in get_args(kind))


def _by_adapter(kind: Any) -> tuple[Schema, Decode]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter = TypeAdapter[Any](kind)
        return adapter.json_schema(), adapter.validate_json
    except PydanticUserError as error:
        raise _no_type(kind, error) from error


def _no_type(kind: Any, error: Exception) -> UsageError:
    why = str(error).partition("\n")[0]
    known = "give a msgspec struct, a dataclass, a pydantic model or a JSON Schema"
    return UsageError(f"{kind!r} is no type of values: {known} ({why})")


def _by_schema(schema: Schema) -> Decode:
    from penstock.tools.arguments.schema import validator

    check = validator(schema)

    def decode(text: str | bytes) -> Any:
        value = msgspec.json.decode(text)
        for error in check.iter_errors(value):
            where = "/".join(map(str, error.instance_path))
            raise ValueError(f"{error.message} at {where!r}" if where else f"{error.message} at the top of the value")
        return value

    return decode


def _refers(schema: Any, reference: str) -> bool:
    """Whether a reference stands anywhere in a schema."""
    if is_array(schema):
        return any(_refers(part, reference) for part in schema)
    if not is_object(schema):
        return False
    return schema.get("$ref") == reference or any(_refers(part, reference) for part in schema.values())
