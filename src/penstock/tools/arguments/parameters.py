"""What a tool takes, declared: `Parameter` in its kinds, read from several spellings, shown as JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from penstock.errors import UsageError

Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Step = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _short(value: Any) -> Any:
    """A parameter as its fields: a type word is one, a list of them is a choice, and enum or default tell a type."""
    if isinstance(value, str):
        return {"type": value}
    if not _is_mapping(value):
        return value
    if "type" in value:
        words = _listed(value["type"])
        return {**value, "type": "one_of", "options": words} if words else value
    told: list[object] = [*_listed(value.get("enum")), *([value["default"]] if "default" in value else ())]
    found = {_KINDS.get(type(each), "") for each in told}
    if found == {"integer", "number"}:
        found = {"number"}
    return {"type": found.pop(), **value} if len(found) == 1 else value


def _listed(value: Any) -> Sequence[Any]:
    return value if _is_sequence(value) else ()


def _short_each(value: Any) -> Any:
    if _is_mapping(value):
        return [_named(name, part) for name, part in value.items()]
    return [_short(part) for part in _listed(value)] or value


def _named(name: Any, part: Any) -> Any:
    part = _short(part)
    if isinstance(part, BaseParameter):
        return {**part.model_dump(), "name": name}
    return {"name": name, **part} if _is_mapping(part) else {"name": name, "type": part}


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


class BaseParameter(BaseModel):
    """What parameters have in common. One with a default may be left out, whatever `required` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    name: str = ""
    description: str = ""
    required: bool = True
    default: Any = None

    @property
    def has_default(self) -> bool:
        """Whether a default was given; it may be None."""
        return "default" in self.model_fields_set

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = self.model_fields_set | {"type", "name"}
        return {key: value for key, value in write(self).items() if key in kept}

    @model_validator(mode="after")
    def _fits(self) -> BaseParameter:
        if self.has_default:
            from penstock.tools.arguments.schema import validator

            shape = {key: value for key, value in shape_of(self).items() if key != "default"}
            if not validator(shape).is_valid(self.default):
                raise ValueError(f"the default {self.default!r} does not fit the parameter")
        return self


def _apart(parts: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    names = [each.name for each in parts]
    for place, name in enumerate(names):
        if not name:
            raise ValueError(f"parameter {place} has no name")
        if name in names[:place]:
            raise ValueError(f"parameter {name!r} is declared twice")
    return parts


class StringParameter(BaseParameter):
    """Text; lengths are in characters, `format` is one of JSON Schema's (`date`, `email`, `uri`, ...)."""

    type: Literal["string"] = "string"
    enum: Annotated[tuple[str, ...], Field(strict=False)] = ()
    format: str | None = None
    min_length: Count | None = None
    max_length: Count | None = None
    pattern: str | None = None


class NumberParameter(BaseParameter):
    """A number."""

    type: Literal["number"] = "number"
    enum: Annotated[tuple[Finite, ...], Field(strict=False)] = ()
    minimum: Finite | None = None
    maximum: Finite | None = None
    exclusive_minimum: Finite | None = None
    exclusive_maximum: Finite | None = None
    multiple_of: Step | None = None


class IntegerParameter(BaseParameter):
    """A whole number."""

    type: Literal["integer"] = "integer"
    enum: Annotated[tuple[int, ...], Field(strict=False)] = ()
    minimum: int | None = None
    maximum: int | None = None
    exclusive_minimum: int | None = None
    exclusive_maximum: int | None = None
    multiple_of: Annotated[int, Field(gt=0)] | None = None


class BooleanParameter(BaseParameter):
    """True or false."""

    type: Literal["boolean"] = "boolean"


class ArrayParameter(BaseParameter):
    """A list, of anything unless `items` says of what."""

    type: Literal["array"] = "array"
    items: Annotated[Parameter | None, BeforeValidator(_short)] = None
    min_items: Count | None = None
    max_items: Count | None = None
    unique_items: bool = False


class ObjectParameter(BaseParameter):
    """An object with these properties and no others; without any it is an object with any keys."""

    type: Literal["object"] = "object"
    properties: Annotated[
        tuple[Parameter, ...],
        BeforeValidator(_short_each),
        AfterValidator(_apart),
        Field(strict=False),
    ] = ()


class OneOfParameter(BaseParameter):
    """A value that fits exactly one of the options."""

    type: Literal["one_of"] = "one_of"
    options: Annotated[tuple[Parameter, ...], BeforeValidator(_short_each), Field(strict=False, min_length=1)]


Parameter: TypeAlias = Annotated[
    StringParameter
    | NumberParameter
    | IntegerParameter
    | BooleanParameter
    | ArrayParameter
    | ObjectParameter
    | OneOfParameter,
    Field(discriminator="type"),
]
_KINDS: dict[type[Any], str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
}
_WORDS = (*_KINDS.values(), "one_of")
for _kind in (ArrayParameter, ObjectParameter, OneOfParameter):
    _kind.model_rebuild()
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Parameter)
_KEYWORDS = {
    *("type", "properties", "required", "additionalProperties", "unevaluatedProperties", "patternProperties"),
    *("propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "$schema", "$id"),
    *("$defs", "definitions", "$ref", "$comment", "title", "description", "default", "examples"),
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else"),
}


def read_parameters(value: Any) -> tuple[Parameter, ...] | dict[str, Any] | None:
    """Parameters from a sequence of them, from `{name: type or fields}`, or a JSON Schema object, which stays one.

    Raises `ValueError` that names the parameter and lists what is known.
    """
    if value is None:
        return None
    if _is_mapping(value):
        if value.get("type") == "object" and _KEYWORDS.issuperset(value):
            return _schema(value)
        return _read(_named(name, part) for name, part in value.items())
    if _is_sequence(value):
        return _read(value)
    raise ValueError(f"parameters are a list, a mapping of names to types, or a JSON Schema, not {value!r:.80}")


def read_return_type(value: Any) -> Parameter | dict[str, Any] | None:
    """The type of a tool's value: a type word, a `Parameter` (as fields: those with a `name`), or a JSON Schema."""
    if value is None or isinstance(value, BaseParameter):
        return value  # type: ignore[return-value]
    if isinstance(value, str) or (_is_mapping(value) and ("name" in value or value.get("type") == "one_of")):
        return _one(_short(value), "return_type")
    if _is_mapping(value):
        return _schema(value)
    raise ValueError(
        f"return_type is a type word ({', '.join(_WORDS)}), a parameter or a JSON Schema, not {value!r:.80}"
    )


def schema_of(parameters: Iterable[Parameter]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of an object with these parameters, closed at every level."""
    listed = tuple(parameters)
    needed = [each.name for each in listed if each.required and not each.has_default]
    schema: dict[str, Any] = {"type": "object", "properties": {each.name: shape_of(each) for each in listed}}
    return schema | ({"required": needed} if needed else {}) | {"additionalProperties": False}


_SPELT = {
    "min_length": "minLength",
    "max_length": "maxLength",
    "exclusive_minimum": "exclusiveMinimum",
    "exclusive_maximum": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "min_items": "minItems",
    "max_items": "maxItems",
    "unique_items": "uniqueItems",
}


def shape_of(parameter: BaseParameter) -> dict[str, Any]:
    """The JSON Schema of one parameter's value."""
    fields: dict[str, Any] = dict(parameter)
    schema: dict[str, Any]
    match parameter:
        case ObjectParameter(properties=properties) if properties:
            schema = schema_of(properties)
        case OneOfParameter(options=options):
            schema = {"oneOf": [shape_of(option) for option in options]}
        case ArrayParameter(items=items) if items is not None:
            schema = {"type": "array", "items": shape_of(items)}
        case _:
            schema = {"type": fields["type"]}
    for field, value in fields.items():
        if field in _SPELT and value is not None and value is not False:
            schema[_SPELT[field]] = value
        elif field in {"format", "pattern", "minimum", "maximum"} and value is not None:
            schema[field] = value
        elif field == "enum" and value:
            schema["enum"] = list(value)
    if parameter.description:
        schema["description"] = parameter.description
    if parameter.has_default:
        schema["default"] = parameter.default
    return schema


def _read(parts: Iterable[Any]) -> tuple[Parameter, ...]:
    return _apart(tuple(_one(part, f"parameter {_name_of(part, place)!r}") for place, part in enumerate(parts)))


def _name_of(part: Any, place: int) -> Any:
    return part.get("name", place) if _is_mapping(part) else getattr(part, "name", place)


def _one(part: Any, what: str) -> Parameter:
    if _is_mapping(part) and isinstance(name := part.get("name", ""), str):
        part = _short(part)
        if part.get("type") not in _WORDS:
            raise ValueError(f"{what}: the type {part.get('type')!r} is not known; known are {', '.join(_WORDS)}")
        part = {**part, "name": name}
    try:
        return _PARAMETER.validate_python(part)
    except ValidationError as error:
        raise ValueError("; ".join(f"{what}: {_told(each)}" for each in error.errors(include_url=False))) from None


def _told(error: Any) -> str:
    """One of pydantic's errors in words, with what is known where a key or a type is not."""
    kind, *steps = error["loc"] or ("",)
    where = ".".join(str(step) for step in steps if step not in _WORDS)
    if error["type"] == "extra_forbidden":
        owner = next((word for word in reversed(error["loc"]) if word in _WORDS), kind)
        return f"{where!r} is not known; a parameter of type {owner} has {', '.join(_fields(owner))}"
    if error["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return f"{where or 'it'} needs a type, one of {', '.join(_WORDS)}"
    text = error["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _fields(word: Any) -> list[str]:
    kinds = (StringParameter, NumberParameter, IntegerParameter, BooleanParameter, ArrayParameter, ObjectParameter)
    return [
        name
        for kind in (*kinds, OneOfParameter)
        if kind.model_fields["type"].default == word
        for name in kind.model_fields
    ]


def _schema(value: Mapping[str, Any]) -> dict[str, Any]:
    from penstock.tools.arguments.schema import validator

    try:
        validator(dict(value))
    except UsageError as error:
        raise ValueError(error.message) from None
    return dict(value)
