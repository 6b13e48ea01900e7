"""The arguments a model wrote: read from JSON, checked strictly, every problem told at once."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, TypeAlias, cast

import jiter
from jsonschema_rs import Validator
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from penstock.errors import BadArguments, ToolFailed
from penstock.messages import is_object
from penstock.tools.arguments.parameters import BaseParameter, Parameter, schema_of, shape_of
from penstock.tools.arguments.problems import (
    WRONG,
    Problem,
    endless,
    refusal,
    sample,
    schema_problems,
    shown,
    typed_problems,
    unquoted,
    unreadable,
)
from penstock.tools.arguments.schema import Filling, closed, validator, whole
from penstock.tools.arguments.signature import Signature, read_signature

Raw: TypeAlias = str | bytes | bytearray | Mapping[str, Any]
MAX_CHARS = 1_000_000  # of the arguments' text
# Numbers that may be too large for a float have an exponent or very many digits; both patterns start with a letter
# because that is what a regular expression looks for quickly.
_EXPONENT, _EXPONENT_TOO, _LONG = (re.compile(form).search for form in (r"e\+?\d", r"E\+?\d", r"\d{200}"))
_MANY = 200  # problems: more are not worth the time it takes to tell them
_LONG_TEXT = 20_000  # characters: what is wrong in a longer one is told of a sample
_FAR = Problem((), "more is wrong than can be told, beyond the first items: send less")
_KINDS = (str, bool, int, float, type(None))


class Arguments:
    """What a tool takes: `schema` shows it to a model, `parse` reads what the model wrote."""

    schema: dict[str, Any]

    @abstractmethod
    def parse(self, raw: Raw) -> dict[str, Any]:
        """The values by name, defaults filled in; an empty text is `{}`.

        Raises `BadArguments` that lists every problem. Numbers and flags written as strings count as such only where
        `coerce` was set.
        """

    @staticmethod
    def from_signature(func: Callable[..., Any], *, skip: Collection[str] = (), coerce: bool = False) -> Arguments:
        """The arguments of a Python function, as its annotations and its docstring say, without those in `skip`.

        Raises `UsageError` for a function that cannot be called by name.
        """
        return _Typed(read_signature(func, skip=skip), coerce=coerce)

    @staticmethod
    def from_parameters(parameters: Iterable[Parameter], *, coerce: bool = False) -> Arguments:
        """The arguments that were declared one by one."""
        return _Described(schema_of(parameters), coerce=coerce)

    @staticmethod
    def from_schema(schema: Mapping[str, Any], *, coerce: bool = False) -> Arguments:
        """The arguments that a JSON Schema describes.

        Raises `UsageError` where it is broken, or refers to another document.
        """
        validator(dict(schema))
        return _Described({"type": "object", **closed(schema)}, coerce=coerce)


class _Typed(Arguments):
    """Arguments as Python types, read by pydantic straight from the text."""

    __slots__ = ("_coerce", "_defaults", "_inner", "_validate", "schema")

    def __init__(self, signature: Signature, *, coerce: bool) -> None:
        self.schema = signature.schema
        self._validate = signature.validator.validate_json
        self._inner = signature.inner_keys
        self._defaults = signature.defaults
        self._coerce = coerce

    def parse(self, raw: Raw) -> dict[str, Any]:
        text = raw if isinstance(raw, str) else _text(raw)
        if len(text) > MAX_CHARS:
            raise _too_large(text)
        try:
            values: dict[str, Any] = self._validate(text, strict=True, extra="forbid")
        except ValidationError as error:
            return self._again(text, error)
        # As many keys arrived as there are colons, so none came twice; otherwise it is looked up.
        if text.count(":") != len(values) + self._inner or "NaN" in text or "Infinity" in text:
            _read(text)
        return self._filled(values) if self._defaults else values

    def _filled(self, values: dict[str, Any]) -> dict[str, Any]:
        for name, default in self._defaults.items():
            if name not in values:
                values[name] = default if isinstance(default, _KINDS) else _copied(default)
        return values

    def _again(self, text: str, error: ValidationError) -> dict[str, Any]:
        """Read the text a second time, with numbers unquoted if the tool wants that; else tell what is wrong."""
        value, problems = _tried(text)
        if problems:
            raise refusal(problems) from None
        problems = self._problems(value, error)
        if not text.strip() or (self._coerce and unquoted(value, problems)):
            try:
                return self._filled(self._validate(to_json(value), strict=True, extra="forbid"))
            except ValidationError as again:
                problems = self._problems(value, again)
        raise refusal(problems) from None

    def _problems(self, value: Any, error: ValidationError) -> list[Problem]:
        if not is_object(value):
            return [_not_an_object(value)]
        if error.error_count() > _MANY and not self._coerce:
            value = sample(value, self.schema)
            try:
                self._validate(to_json(value), strict=True, extra="forbid")
            except ValidationError as fewer:
                error = fewer
            else:
                return [_FAR]
        return list(typed_problems(error.errors(include_url=False, include_context=False), value, self.schema))


class _Described(Arguments):
    """Arguments as a JSON Schema says."""

    __slots__ = ("_coerce", "_errors", "_fill", "_fits", "schema")

    def __init__(self, schema: dict[str, Any], *, coerce: bool) -> None:
        self.schema = schema
        check = validator(schema)
        self._fits, self._errors = check.is_valid, check.iter_errors
        self._fill = Filling(schema).of(schema)
        self._coerce = coerce

    def parse(self, raw: Raw) -> dict[str, Any]:
        text = raw if isinstance(raw, str) else _text(raw)
        if len(text) > MAX_CHARS:
            raise _too_large(text)
        value = _read(text)
        exponent = _EXPONENT(text) or _EXPONENT_TOO(text)
        if (exponent or _LONG(text)) and (problems := endless(value)):
            raise refusal(problems)
        if not self._fits(value):
            self._settle(value, len(text))
        if exponent or ".0" in text:
            value = whole(value, self.schema, self.schema)
        if self._fill is not None:
            self._fill(value)
        return value  # type: ignore[no-any-return]

    def _settle(self, value: Any, length: int) -> None:
        """Unquote numbers if the tool wants that; raise what is still wrong."""
        if not is_object(value):
            raise refusal([_not_an_object(value)])
        if not self._coerce and length > _LONG_TEXT:
            value = sample(value, self.schema)
        problems = list(schema_problems(self._errors(value), value, self.schema))
        if self._coerce and unquoted(value, problems):
            if self._fits(value):
                return
            problems = list(schema_problems(self._errors(value), value, self.schema))
        raise refusal(problems or [_FAR])


def _text(raw: object) -> str:
    """The text of what was given; a mapping is written as JSON first."""
    try:
        if isinstance(raw, Mapping):
            return to_json(dict(cast("Mapping[str, Any]", raw)), inf_nan_mode="constants").decode()
        if isinstance(raw, bytes | bytearray):
            return raw.decode()
    except UnicodeDecodeError as error:
        raise refusal([Problem((), f"the arguments are not UTF-8: {error}"[:200])]) from None
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise refusal([Problem((), f"the arguments cannot be written as JSON: {error}"[:200])]) from None
    raise refusal([_not_an_object(raw)])


def _tried(text: str) -> tuple[Any, list[Problem]]:
    """The JSON value and no problem, or what keeps the text from being one, repeated keys and NaN included."""
    try:
        return jiter.from_json(text.encode(), allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys"), []
    except ValueError as error:
        return ({}, []) if not text.strip() else (None, unreadable(text, error))


def _read(text: str) -> Any:
    value, problems = _tried(text)
    if problems:
        raise refusal(problems)
    return value


def _copied(default: Any) -> Any:
    return deepcopy(default) if type(default) in {list, dict, set} else default


def _not_an_object(value: Any) -> Problem:
    return Problem((), f"expected an object with the arguments, got {shown(value)}")


def _too_large(text: str) -> BadArguments:
    return refusal([Problem((), f"the arguments have {len(text)} characters, more than {MAX_CHARS}: send less")])


class Checker:
    """Checks what a tool returns against its declared type."""

    def __init__(self, find: Callable[[Any], Iterable[Problem]]) -> None:
        self._find = find

    def check(self, value: Any) -> Any:
        """The value itself; raises `ToolFailed` with code `bad_return_value` where it is not of the type."""
        problems = list(self._find(value))
        if problems:
            told = refusal(problems)
            text = told.message.removeprefix(WRONG)
            raise ToolFailed(f"the tool returned a wrong value: {text}", code="bad_return_value", details=told.details)
        return value


def value_check(expected: Any) -> Checker:
    """The check of a tool's values: against a `Parameter`, a JSON Schema, or a Python type."""
    if is_object(expected):
        return Checker(partial(_unlike, validator(expected), expected))
    if isinstance(expected, BaseParameter):
        return value_check(shape_of(expected))
    return Checker(partial(_mistyped, TypeAdapter[Any](expected)))


def _unlike(check: Validator, schema: dict[str, Any], value: Any) -> Iterable[Problem]:
    try:
        plain = to_jsonable_python(value)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        return [Problem((), f"it cannot be written as JSON: {error}"[:200])]
    if check.is_valid(plain):
        return []
    few = sample(plain, schema)
    return [*schema_problems(check.iter_errors(few), few, schema)] or [_FAR]


def _mistyped(adapter: TypeAdapter[Any], value: Any) -> Iterable[Problem]:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        plain = to_jsonable_python(value, fallback=repr)
        return typed_problems(error.errors(include_url=False, include_context=False), plain, {})
    return ()
