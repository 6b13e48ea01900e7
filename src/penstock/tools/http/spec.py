"""`HttpToolSpec`: a request to one origin, described by templates over the parameters.

A template is text with `{name}` for an argument, doubled braces for a brace. What an argument holds stays inside its
place: one segment of the path, one value of the query, one header; it cannot reach the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from penstock.messages import is_array, is_object
from penstock.net.secrets import REFERENCE
from penstock.tools.spec import Count, ToolSpec
from penstock.tools.value import encoded

Method = Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FRAMING = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that belong to the connection, not to the call (RFC 9110, 7.6.1)."""

SECRET_HEADER = re.compile(r"key|token|secret|auth|cookie|password|credential", re.IGNORECASE)


class HttpToolSpec(ToolSpec):
    """A tool that is a request to one origin: `base_url`, which may have a path, is never changed by an argument.

    `path`, `query` and `headers` are templates over the parameters. `body` is one too, nested as the body is; without
    it the arguments used nowhere else are the body, or the query where the method has none. `${NAME}` in a header
    stands for a secret in the environment. `expect` says how to read the answer: by its content type, or always as
    JSON or text; reading stops at `max_response_bytes`. Redirects within the origin are followed, `max_redirects` of
    them; with `redirects: public` also to other origins, without headers and body. `allow_private` opens this origin,
    and nothing else, to loopback and private addresses.
    """

    base_url: str
    method: Method = "GET"
    path: str = ""
    query: dict[str, str | bool | int | float] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    body: dict[str, Any] | None = None
    body_type: Literal["json", "form"] = "json"
    expect: Literal["auto", "json", "text"] = "auto"
    allow_private: bool = False
    max_redirects: Annotated[int, Field(ge=0, le=5)] = 3
    redirects: Literal["same_origin", "public"] = "same_origin"
    max_response_bytes: Count = 1_000_000

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not url.isascii() or not url.isprintable():
            raise ValueError("write base_url as http://host or https://host, with a port or a path where needed")
        if "@" in parts.netloc:
            raise ValueError("base_url holds a user or a key: put it into headers as ${NAME}")
        if parts.query or parts.fragment or set(url) & set("?#{}\\ "):
            raise ValueError("base_url ends with its path: put a query into query, and arguments into path")
        _no_dots(parts.path)
        return url

    @field_validator("path")
    @classmethod
    def _inner_path(cls, path: str) -> str:
        if path and not path.startswith("/"):
            raise ValueError("path begins with a slash")
        if set(path) & set("?#\\"):
            raise ValueError("path holds a query, a fragment or a backslash: put a query into query")
        _no_secret(path, "path")
        _no_dots(path)
        return path

    @field_validator("query")
    @classmethod
    def _open_query(cls, query: dict[str, Any]) -> dict[str, Any]:
        for value in query.values():
            _no_secret(str(value), "query")
        return query

    @field_validator("headers")
    @classmethod
    def _own_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a header's name")
            if name.lower() in FRAMING:
                raise ValueError(f"the header {name!r} belongs to the connection and cannot be set")
            if not value.isprintable():
                raise ValueError(f"the header {name!r} holds a line break or another control character")
            arguments = Template(REFERENCE.sub("", value)).names
            if arguments and REFERENCE.search(value):
                raise ValueError(f"the header {name!r} mixes a secret with arguments: give each its own header")
            if SECRET_HEADER.search(name) and not arguments and not REFERENCE.search(value):
                raise ValueError(f"the header {name!r} carries a secret: write ${{NAME}} and put it in the environment")
        return headers

    @field_validator("body")
    @classmethod
    def _open_body(cls, body: dict[str, Any] | None) -> dict[str, Any] | None:
        for text in _texts(body):
            _no_secret(text, "body")
        return body

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        used = used_names(self)
        self.require_declared(used)
        if self.body is not None and self.method not in WITH_BODY | {"DELETE"}:
            raise ValueError(f"{self.method} has no body: put arguments into query")
        if self.body is not None and (idle := sorted(self.parameter_names - used)):
            raise ValueError(f"{', '.join(map(repr, idle))} is used in no path, query, header or body")
        return self


class Template:
    """Text with arguments in it, its own parts passed through `write`; raises `ValueError` for text that is none."""

    __slots__ = ("_parts", "names", "whole")

    def __init__(self, text: str, write: Callable[[str], str] = str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        for literal, name, form, conversion in Formatter().parse(text):
            if name == "" or form or conversion:
                raise ValueError(f"{text!r} is not a template: write {{name}} for an argument, {{{{ for a brace")
            self._parts.append((write(literal), name))
        self.names = frozenset(name for _, name in self._parts if name is not None)
        self.whole = self._parts[0][1] if len(self._parts) == 1 and not self._parts[0][0] else None
        """The argument's name, where the text is nothing but it."""

    def fill(self, args: Mapping[str, Any], write: Callable[[str], str] = str) -> str | None:
        """The text with the arguments, each passed through `write`; None where one of them is absent."""
        found: list[str] = []
        for literal, name in self._parts:
            found.append(literal)
            if name is not None:
                value = args.get(name)
                if value is None:
                    return None
                found.append(write(shown(value)))
        return "".join(found)


def shown(value: Any) -> str:
    """A value as it stands in an address or a header: text as it is, the rest as in JSON without quotes."""
    if type(value) is str:
        return value
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value)
    return plain if isinstance(plain, str) else encoded(plain).decode()


def used_names(spec: HttpToolSpec) -> frozenset[str]:
    """The parameters that stand in a template."""
    texts = [spec.path, *map(str, spec.query.values()), *_texts(spec.body)]
    texts += [text for text in spec.headers.values() if not REFERENCE.search(text)]
    return frozenset[str]().union(*(Template(text).names for text in texts))


def _no_secret(text: str, where: str) -> None:
    if REFERENCE.search(text):
        raise ValueError(f"{where} holds a secret, which others would see: put ${{NAME}} into headers")
    Template(text)


def _no_dots(path: str) -> None:
    if any(segment.lower().replace("%2e", ".") in {".", ".."} for segment in path.split("/")):
        raise ValueError("a path holds no . or .. segments")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if is_object(value):
        return [text for item in value.values() for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if is_array(value) else []
