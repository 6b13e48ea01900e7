"""How arguments become a request: the plan that is made from an `HttpToolSpec` once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from penstock.errors import BadArguments
from penstock.messages import is_array, is_object
from penstock.net.secrets import REFERENCE
from penstock.tools.http.spec import WITH_BODY, HttpToolSpec, Template, shown, used_names
from penstock.tools.value import encoded

PATH_SAFE = "%:@!$&'()*+,;=-._~"


class Plan:
    """What a spec says about requests, worked out: `url`, `headers` and `body` of a call, from its arguments."""

    def __init__(self, spec: HttpToolSpec) -> None:
        self._used = used_names(spec)
        self._rest = None if spec.body is not None else "body" if spec.method in WITH_BODY else "query"
        segments = [Template(text, _literal) for text in spec.path.split("/")[1:]]
        self._base = spec.base_url.rstrip("/")
        self._segments = [template if template.names else template.fill({}) or "" for template in segments]
        if not any(template.names for template in segments):
            self._base += "".join(f"/{text}" for text in self._segments)
            self._segments = []
        self._query = {quote(name, safe=""): _compiled(value) for name, value in spec.query.items()}
        self._headers = {
            name.lower(): template
            for name, text in spec.headers.items()
            if not REFERENCE.search(text) and (template := Template(text)).names
        }
        self._body = None if spec.body is None else _compiled(spec.body)
        self._form = spec.body_type == "form"
        self.content_type = "application/x-www-form-urlencoded" if self._form else "application/json"
        """The content type of a body."""

    def url(self, args: Mapping[str, Any]) -> str:
        """The address, encoded; raises `BadArguments` for a value that cannot be a segment of a path."""
        url = self._base
        if self._segments:
            url += "".join(f"/{part if isinstance(part, str) else _segment(part, args)}" for part in self._segments)
        pairs: list[str] = []
        for name, value in self._query.items():
            _add_pairs(pairs, name, _filled(value, args))
        if self._rest == "query":
            for name, value in args.items():
                if name not in self._used:
                    _add_pairs(pairs, quote(name, safe=""), value)
        return f"{url}?{'&'.join(pairs)}" if pairs else url

    def headers(self, args: Mapping[str, Any]) -> dict[str, str]:
        """The headers that hold arguments; raises `BadArguments` for a value that no header can carry."""
        found: dict[str, str] = {}
        for name, template in self._headers.items():
            text = template.fill(args)
            if text is None:
                continue
            if not text.isprintable():
                raise _unfit(template, f"holds a control character, which the header {name!r} cannot carry")
            found[name] = text
        return found

    def body(self, args: Mapping[str, Any]) -> bytes | None:
        """The body; None for a request without one."""
        if self._body is not None:
            value = _filled(self._body, args)
        elif self._rest == "body":
            value = {name: given for name, given in args.items() if name not in self._used}
        else:
            return None
        if not self._form:
            return encoded(value)
        pairs: list[str] = []
        for name, given in value.items():
            _add_pairs(pairs, quote(name, safe=""), given)
        return "&".join(pairs).encode()


def _literal(text: str) -> str:
    return quote(text, safe=PATH_SAFE)


def _argument(text: str) -> str:
    return text if text.isascii() and text.isalnum() else quote(text, safe="")


def _segment(template: Template, args: Mapping[str, Any]) -> str:
    try:
        text = template.fill(args, _argument)
    except UnicodeEncodeError as error:
        raise _unfit(template, "holds half of a character") from error
    if not text or text in {".", ".."}:  # servers and proxies resolve these, encoded or not
        raise _unfit(template, f"cannot make the segment {text or ''!r} of a path")
    return text


def _add_pairs(pairs: list[str], name: str, value: Any) -> None:
    """Add a value to a query or a form: a list as several of one name, None not at all."""
    if value is None:
        return
    for one in value if is_array(value) else (value,):
        try:
            pairs.append(f"{name}={_argument(shown(one))}")
        except UnicodeEncodeError as error:
            raise BadArguments(f"{name!r} holds half of a character") from error


def _compiled(value: Any) -> Any:
    """A body or a query value with its texts read as templates, those without arguments as plain text."""
    if is_object(value):
        return {name: _compiled(inner) for name, inner in value.items()}
    if is_array(value):
        return [_compiled(inner) for inner in value]
    if not isinstance(value, str):
        return value
    template = Template(value)
    return template if template.names else template.fill({})


def _filled(value: Any, args: Mapping[str, Any]) -> Any:
    """A compiled value with its arguments; members whose argument is absent are left out."""
    if isinstance(value, Template):
        return value.fill(args) if value.whole is None else args.get(value.whole)
    if is_object(value):
        return {name: _filled(inner, args) for name, inner in value.items() if not _absent(inner, args)}
    if is_array(value):
        return [_filled(inner, args) for inner in value if not _absent(inner, args)]
    return value


def _absent(value: Any, args: Mapping[str, Any]) -> bool:
    return isinstance(value, Template) and any(args.get(name) is None for name in value.names)


def _unfit(template: Template, problem: str) -> BadArguments:
    names = sorted(template.names)
    details = [{"path": name, "problem": problem} for name in names]
    return BadArguments(f"{', '.join(map(repr, names))} {problem}", details=details)
