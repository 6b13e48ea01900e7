"""A YAML document with the line of every key; duplicate keys refused, `${NAME}` replaced from the environment."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeAlias, cast

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from penstock.config.section import FromEnvironment
from penstock.errors import ConfigError

Path: TypeAlias = tuple[str | int, ...]

_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}
_AWS_KEYS = ("access_key_id", "secret_access_key", "session_token")
# Where a tool keeps its references: what is secret is not held by its spec, which says so where none may stand.
_KEPT = {
    ("postgresql", "dsn"),
    ("mysql", "dsn"),
    *(("dynamodb", key) for key in _AWS_KEYS),
    *(("http", key) for key in ("headers", "path", "query", "body")),
}
_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


MOST_COPIES = 100_000
"""How many values the aliases of a document may add to those that are written."""


class _Loader(yaml.SafeLoader):
    """The safe loader, to which a date is text, as it is in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:timestamp"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a document, and the line (1-based) where each of its paths is written."""

    value: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int | None:
        """The line of a path, or of the nearest key around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path)


def dotted(path: Path) -> str:
    """A path as people write it: `models[0].limit.concurrent`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def text_of(file: str) -> str:
    """The text of a file; raises `ConfigError` where it cannot be read."""
    try:
        return FilePath(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        problem = f"cannot be read: {error.strerror or type(error).__name__}"
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start})"
    raise ConfigError(problem, file=file)


def read(text: str, *, file: str, env: Mapping[str, str], without: Collection[str] = (), only: str = "") -> Document:
    """Read one YAML document, `without` some of its sections; raises `ConfigError` for what cannot be read.

    A variable that is missing is one of these things; `only` names the one section where variables may stand.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document({}, {})
            if isinstance(node, yaml.MappingNode):
                node.value = [(key, item) for key, item in node.value if key.value not in without]
            reader = _Reader(loader, file, env, only)
            return Document(reader.value(node, ()), reader.lines)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        problem, line = _said(error, text.splitlines())
    except RecursionError:
        problem, line = "nested too deeply", None
    raise ConfigError(problem, file=file, line=line)


def _said(error: yaml.YAMLError, lines: list[str]) -> tuple[str, int | None]:
    """What the parser said, without the text of the file, where secrets may stand."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark is not None else None
    if isinstance(error, ComposerError):
        if str(error.context).startswith("expected a single document"):
            return "a file holds one document: remove what follows the second '---'", line
        return "no such alias: put a value that starts with '*' or '&' in quotes", line
    if isinstance(error, ConstructorError):
        return "this cannot be merged: after '<<' an alias of a mapping is expected", line
    problem = getattr(error, "problem", None) or "a character that YAML does not allow"
    hint = ': inside { } and [ ] put "${NAME}" in quotes' if mark and "${" in "".join(lines[mark.line : line]) else ""
    return f"not valid YAML: {problem}{hint}", line


class _Reader:
    """Turns nodes into values while it notes their lines."""

    def __init__(self, loader: _Loader, file: str, env: Mapping[str, str], only: str) -> None:
        self._loader, self._file, self._env, self._only = loader, file, env, only
        self._inside: set[int] = set()
        self._seen: set[int] = set()
        self._copies = 0
        self.lines: dict[Path, int] = {}

    def value(self, node: yaml.Node, path: Path) -> Any:
        """The value of a node at a path."""
        self.lines.setdefault(path, _line(node))
        self._copies += id(node) in self._seen
        self._seen.add(id(node))
        if self._copies > MOST_COPIES:
            raise self._wrong(f"aliases add more than {MOST_COPIES:,} values here: write fewer", node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._inside:
            raise self._wrong("an alias must not contain itself", node, path)
        self._inside.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        finally:
            self._inside.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise self._wrong("a key is text: put it in quotes", key, path)
            if key.value in seen:
                lines = f"lines {seen[key.value]} and {_line(key)}"
                raise self._wrong(f"the key {key.value!r} stands twice, on {lines}: keep one", key, (*path, key.value))
            seen[key.value] = _line(key)
        self._loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key, item in node.value:
            inner = (*path, str(key.value))
            self.lines[inner] = _line(key)
            found[str(key.value)] = self.value(item, inner)
        return found

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.tag not in _SCALARS:
            raise self._wrong("tags are not used here: put a value that starts with '!' in quotes", node, path)
        value = self._constructed(node, path)
        if not isinstance(value, str) or "${" not in value:
            return value
        expanded = _REFERENCE.sub(lambda found: self._variable(found, node, path), value)
        if path[:1] == ("tools",) and path[2:4] in _KEPT:
            return value
        return expanded if value.count("${") == value.count("$${") else FromEnvironment(expanded)

    def _constructed(self, node: yaml.ScalarNode, path: Path) -> Any:
        with suppress(KeyError, ValueError):  # a tag that does not fit, a number of thousands of digits
            return cast("Any", self._loader).construct_object(node)
        raise self._wrong("this value cannot be read: put it in quotes", node, path)

    def _variable(self, found: re.Match[str], node: yaml.Node, path: Path) -> str:
        if found[0] == "$${":
            return "${"
        if self._only and path[:1] != (self._only,):
            problem = (
                f"a variable may stand in {self._only!r} only, for this is stored: write $${{ for the characters ${{"
            )
            raise self._wrong(problem, node, path)
        if found[1] is None:
            raise self._wrong("write ${NAME} for an environment variable, $${ for the characters ${", node, path)
        value = self._env.get(found[1], "").strip("\r\n")
        if not value:
            raise self._wrong(f"the environment variable {found[1]!r} is not set, or empty: set it", node, path)
        return value

    def _wrong(self, problem: str, node: yaml.Node, path: Path) -> ConfigError:
        return ConfigError(problem, file=self._file, line=_line(node), key=dotted(path))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
