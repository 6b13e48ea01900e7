"""What is wrong with a value and what to write instead; values are shown only where no secret can stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from penstock.config.document import Document, Path, dotted
from penstock.config.section import FromEnvironment
from penstock.errors import ConfigError
from penstock.messages import is_array, is_object

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

HASH = "^sha256:[0-9a-f]{64}$"
SCOPE = r"^[\w.:-]{1,64}$"
_EXPECTED = {
    "bool": "true or false",
    "decimal": "a number",
    "dict": "a mapping of keys to values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping of keys to values",
    "string": "text",
    "tuple": "a list",
}
_SAID = {
    "finite_number": "expected a finite number",
    "json_invalid": "nested too deeply",
    "missing": "required, but not written",
    "string_too_long": "too long",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}
_FORMS = {
    SCOPE: "one word of letters, digits and . : - _",
    HASH: "sha256: and 64 hex digits, as `penstock token new NAME` prints them",
    r"^[\w.-]{1,64}$": "1 to 64 letters, digits, dots, hyphens or underscores",
    "^[a-zA-Z0-9_-]{1,64}$": "1 to 64 letters, digits, hyphens or underscores",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}
_KINDS = ((bool, "true or false"), (int, "a number"), (float, "a number"), (str, "text"), (list, "a list"))


class Source:
    """A document and its file's name: where a problem is placed."""

    def __init__(self, document: Document, file: str) -> None:
        self._document, self._file = document, file

    def wrong(self, problem: str, path: Path) -> ConfigError:
        """The error that says a problem and its place."""
        return ConfigError(problem, file=self._file, line=self._document.line(path), key=dotted(path))

    def first(self, errors: Iterable[ErrorDetails], unknown: Callable[[Path], str]) -> ConfigError:
        """The first of several problems in the file, a missing key last: what is missing may be there, misspelt."""
        first = min(errors, key=lambda one: (one["type"] == "missing", self._document.line(_path(one)) or 0))
        return self.wrong(said(first, _path(first), first["input"], unknown=unknown), _path(first))

    def refuse_doubles(self, section: str, names: Iterable[str], key: str = "name") -> None:
        """Raise for a name that stands twice in a list."""
        seen: dict[str, int | None] = {}
        for number, name in enumerate(names):
            path: Path = (*section.split("."), number, key)
            line = self._document.line(path)
            if name in seen:
                raise self.wrong(f"the {key} {name!r} stands twice, on lines {seen[name]} and {line}: rename one", path)
            seen[name] = line


def _path(error: ErrorDetails) -> Path:
    return tuple(part for part in error["loc"] if part != "[key]")


def said(error: ErrorDetails, path: Path, value: Any, *, unknown: Callable[[Path], str]) -> str:
    """The problem with the value at a path; `unknown` says what to write for a key that nobody knows."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"must be {words} {context[bound]:g}{_shown(value)}"
    expected = _EXPECTED.get(kind.partition("_")[0])
    match kind:
        case "extra_forbidden":
            return unknown(path)
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return _choice(path, context["expected"], value)
        case "string_pattern_mismatch":
            return f"expected {_FORMS.get(context['pattern'], 'text that matches ' + context['pattern'])}"
        case _:
            return _SAID.get(kind) or (_mistyped(expected, value) if expected else error["msg"])


def place(error: ErrorDetails, written: Any) -> tuple[Path, Any]:
    """The path of an error within what is written, and the value there."""
    path: list[str | int] = []
    for part in error["loc"]:  # some of its parts name a choice of a type, not a key
        if is_object(written):
            if part not in written:
                continue
            written = written[str(part)]
        elif is_array(written) and isinstance(part, int) and part < len(written):
            written = written[part]
        else:
            continue
        path.append(part)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path), written


def _mistyped(expected: str, value: Any) -> str:
    if value is None:
        return f"expected {expected}, got nothing: write a value, or remove the key"
    got = next((name for form, name in _KINDS if isinstance(value, form)), "a mapping of keys to values")
    quotes = ": put it in quotes" if expected == "text" and got in ("a number", "true or false") else ""
    return f"expected {expected}, got {got}{quotes}"


def _shown(value: Any) -> str:
    return "" if isinstance(value, str) else f", not {value!r}"


def _choice(path: Path, expected: str, value: Any) -> str:
    if path == ("server", "disconnect") and value == "detach":
        return f"'detach' is not supported by this version: write {expected}"
    hidden = isinstance(value, FromEnvironment) or not isinstance(value, str | int | float)
    return f"write {expected}" + ("" if hidden else f", not {value!r}")


def keys_of(model: type[BaseModel], section: Iterable[str]) -> Iterable[str]:
    """The keys of the section that these keys lead to."""
    for key in section:
        model = next(_models_in(model.model_fields[key].annotation))
    return model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
