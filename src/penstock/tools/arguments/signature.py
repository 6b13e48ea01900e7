"""A Python function as a tool: its name, what its docstring says, its parameters as types, what it returns."""

from __future__ import annotations

import inspect
import typing
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Annotated, Any, NotRequired, Required

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, PydanticUndefined, SchemaValidator, to_jsonable_python
from typing_extensions import TypedDict

from penstock.errors import UsageError
from penstock.messages import is_array, is_object
from penstock.tools.arguments.docstring import read_docstring
from penstock.tools.arguments.problems import endless

_NONE = inspect.Parameter.empty
_NAMED, _VALUES = {"properties", "$defs"}, {"default", "const", "enum", "examples"}
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Description:
    """What a function says of itself: its name, and its docstring's first paragraph."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes by name: as JSON Schema, as a validator of JSON texts, and its defaults.

    `inner_keys` are the keys that valid arguments have at least below their own names, NaN where that is not known;
    `returns` is the annotation of what it gives, `Any` without one.
    """

    schema: dict[str, Any]
    validator: SchemaValidator
    defaults: Mapping[str, Any]
    inner_keys: float
    returns: Any


def describe(func: Callable[..., Any]) -> Description:
    """The name and the description of a function, a method, a partial or an object that can be called."""
    inner = innermost(func)
    name = getattr(inner, "__name__", None) or type(inner).__name__
    return Description(name, read_docstring(_doc(inner))[0])


def read_signature(func: Callable[..., Any], *, skip: Collection[str] = ()) -> Signature:
    """The parameters of `func`, without those in `skip`.

    Raises `UsageError` for one that takes `*args`, `**kwargs` or positional-only parameters, or whose annotations
    cannot be read.
    """
    name = describe(func).name
    hints = hints_of(func)
    said = read_docstring(_doc(innermost(func)))[1]
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(func).parameters.values():
        if parameter.name not in skip:
            _refuse_unnamed(parameter, name)
            hint = hints.get(parameter.name, Any)
            fields[parameter.name], default = _field(hint, parameter.default, said.get(parameter.name, ""))
            if default is not _NONE:
                defaults[parameter.name] = default
    adapter = _adapter(name, fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a default that JSON cannot write is left out of the schema
        schema = _tidied(adapter.json_schema())
    validator = typing.cast("SchemaValidator", adapter.validator)
    return Signature(schema, validator, defaults, _inner_keys(adapter, fields), hints.get("return", Any))


def innermost(func: Any) -> Any:
    """What a partial, or a partial of one, calls in the end."""
    while isinstance(func, partial):
        func = func.func
    return func


def code_of(func: Any) -> Any:
    """The function that is run in the end: that of an object or a class that is called, too."""
    inner: Any = innermost(func)
    if isinstance(inner, type):
        return inner.__init__  # type: ignore[misc]
    return inner if inspect.isroutine(inner) else type(inner).__call__


def hints_of(func: Any, *, extras: bool = True) -> dict[str, Any]:
    """The annotations with names resolved, those of the place where a local function was defined included.

    Without `extras`, the type alone of what is `Annotated`. Raises `UsageError` for annotations that cannot be read.
    """
    code = code_of(func)
    code = inspect.unwrap(getattr(code, "__func__", code))
    try:
        return typing.get_type_hints(code, localns=_locals(code), include_extras=extras)
    except (NameError, TypeError) as error:
        name = describe(func).name
        raise UsageError(f"the annotations of {name!r} cannot be read: {error}; import what they name") from error


def _adapter(name: str, fields: dict[str, Any]) -> TypeAdapter[Any]:
    make: Any = TypedDict
    shape = make(name, fields)
    shape.__pydantic_config__ = _CONFIG
    try:
        return TypeAdapter(shape)
    except (PydanticUserError, TypeError, NameError) as error:
        raise UsageError(f"the annotations of {name!r} cannot be read: {error}") from error


def _field(hint: Any, default: Any, said: str) -> tuple[Any, Any]:
    """The annotation of one parameter with what the docstring says, and its default."""
    info = FieldInfo.from_annotation(hint)
    if default is _NONE and not info.is_required():
        default = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, FieldInfo):
        hint, info = Annotated[hint, default], default
        default = _NONE if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    if hint is Any:
        hint = Annotated[Any, AfterValidator(_finite)]
    extra = _shown_default(default)
    notes = info.description or said or None
    field = Annotated[hint, Field(description=notes, json_schema_extra=extra)] if notes or extra else hint
    return (Required[field] if default is _NONE else NotRequired[field]), default


def _shown_default(default: Any) -> dict[str, Any]:
    if default is _NONE or default is PydanticUndefined:
        return {}
    try:
        return {"default": to_jsonable_python(default)}
    except (PydanticSerializationError, ValueError):
        return {}


def _finite(value: Any) -> Any:
    if endless(value):
        raise ValueError("expected finite numbers")
    return value


def _refuse_unnamed(parameter: inspect.Parameter, name: str) -> None:
    reasons: dict[Any, str] = {
        parameter.VAR_POSITIONAL: "write one parameter that is a list instead",
        parameter.VAR_KEYWORD: "write one parameter that is a dict instead",
        parameter.POSITIONAL_ONLY: "arguments are passed by name: remove the '/'",
    }
    if reason := reasons.get(parameter.kind):
        written = str(parameter.replace(annotation=_NONE))
        raise UsageError(f"the function {name!r} cannot be a tool: {written!r}: {reason}")


def _doc(inner: Any) -> str | None:
    """The docstring; that of an object that can be called is its class's own or its `__call__`'s."""
    if inspect.isroutine(inner) or isinstance(inner, type):
        return inner.__doc__
    call = type(inner).__call__
    return call.__doc__ or type(inner).__doc__


def _locals(func: Any) -> dict[str, Any]:
    """The names in the frames that are calling: a function defined inside another may be annotated with its classes."""
    found: dict[str, Any] = {}
    module = getattr(func, "__globals__", None)
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is module and frame.f_locals is not frame.f_globals:
            found = {**frame.f_locals, **found}
        frame = frame.f_back
    closure: Mapping[str, Any] = inspect.getclosurevars(func).nonlocals if inspect.isfunction(func) else {}
    return {**found, **closure}


def _inner_keys(adapter: TypeAdapter[Any], fields: Mapping[str, Any]) -> float:
    if any(not FieldInfo.from_annotation(typing.get_args(field)[0]).is_required() for field in fields.values()):
        return nan  # pydantic fills such a default in itself: what it gives does not show what came
    needed = sum(1 for field in fields.values() if typing.get_origin(field) is Required)
    return max(_least(adapter.core_schema) - needed, 0)


def _least(schema: Any) -> int:
    """How many keys a valid value has at least; 0 where pydantic's schema does not say."""
    kind = schema.get("type")
    if kind == "model" and not schema.get("root_model"):
        return _least(schema["schema"])
    if kind in {"model-fields", "typed-dict"}:
        listed = schema["fields"].values()
        parts = [field["schema"] for field in listed if field.get("required", True)]
        return sum(1 + _least(part) for part in parts if part.get("type") != "default")
    return 0


def _tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without pydantic's own titles, closed at every level."""

    def strip(part: Any, *, names: bool = False) -> Any:
        if is_array(part):
            return [strip(each) for each in part]
        if not is_object(part):
            return part
        kept: dict[str, Any] = {
            key: value if key in _VALUES and not names else strip(value, names=not names and key in _NAMED)
            for key, value in part.items()
            if names or key != "title"
        }
        shut = not names and "properties" in kept  # unknown keys are refused even where a model would allow them
        return {**kept, "additionalProperties": False} if shut else kept

    tidied: dict[str, Any] = strip(schema)
    return tidied
