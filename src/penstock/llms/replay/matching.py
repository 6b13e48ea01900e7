"""Which recorded exchange answers a request: one that asked the same, whatever surrounds it; else how it differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import BadRequest, ConfigError
from penstock.llms.replay.files import Recorded, read, slug
from penstock.messages import ChatRequest, is_array, is_object, text_of

# Fields that say who asks, how it is billed and how the answer travels, not what is asked.
BESIDE = frozenset(
    (
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    )
)
MOST_DIFFERENCES = 3
_AROUND = 20
_SHOWN = 60


def plain(value: Any) -> Any:
    """Any value as JSON's own kinds."""
    return msgspec.to_builtins(value, enc_hook=str)


def key_of(messages: Any, params: Mapping[str, Any]) -> str:
    """What is asked as a text that is the same for every way to write it."""
    return json.dumps(_canonical(messages, params), sort_keys=True)


def stem_of(model: str, messages: list[dict[str, Any]], key: str) -> str:
    """How the file of an exchange is named: the last words of the user, and a hash of all that is asked."""
    said: list[Any] = [message for message in messages if message.get("role") == "user"]
    digest = hashlib.sha256(f"{model}\n{key}".encode()).hexdigest()[:8]
    return f"{slug(text_of(said[-1]) if said else '')}-{digest}"


def _canonical(messages: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    asked = {name: value for name, value in params.items() if name not in BESIDE}
    found: dict[str, Any] = _same({"messages": messages, "params": asked})
    return found


def _same(value: Any) -> Any:
    """Without null, which is as good as nothing, and with one way to write a whole number."""
    if is_object(value):
        return {key: _same(inner) for key, inner in value.items() if inner is not None}
    if is_array(value):
        return [_same(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Recordings:
    """The exchanges in a folder, by model and by what was asked; read once. Raises `ConfigError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise ConfigError("no such folder: `penstock record` makes it", file=str(folder))
        self.all = [read(file) for file in sorted(folder.glob("*.json"), key=_natural) if file.stat().st_size]
        if not self.all:
            raise ConfigError("holds no recording: `penstock record` makes some", file=str(folder))
        self._by_key: dict[tuple[str, str], list[Recorded]] = {}
        self._turns: dict[tuple[str, str], int] = {}
        for one in self.all:
            key = (one.request.model, key_of(one.request.messages, one.request.params))
            self._by_key.setdefault(key, []).append(one)

    @property
    def models(self) -> list[str]:
        """The models that were asked, sorted."""
        return sorted({one.request.model for one in self.all})

    def next(self, request: ChatRequest, model: str) -> Recorded:
        """The next of the exchanges that asked `model` the same, the last one again and again; raises `BadRequest`."""
        key = (model, key_of(plain(request.messages), plain(request.params)))
        found = self._by_key.get(key)
        if found is None:
            raise self._missed(request, model)
        turns = [one for one in found if one.end != "cancelled"] or found
        turn = self._turns.get(key, 0)
        self._turns[key] = min(turn + 1, len(turns) - 1)
        return turns[min(turn, len(turns) - 1)]

    def _missed(self, request: ChatRequest, model: str) -> BadRequest:
        """The error that says which recorded request is nearest, and what is not the same."""
        how = "`penstock record` records it"
        if model not in self.models:
            names = ", ".join(map(repr, self.models))
            known = f"only of {names}: ask for that (replay:DIR#MODEL gives it any name), or {how}"
            text = f"nothing is recorded of the model {model!r} in {str(self._folder)!r}, {known}"
            return BadRequest(text, provider="replay", status=404, code="model_not_found")
        asked = dict(_leaves(_canonical(plain(request.messages), plain(request.params))))
        rows = [list(_differences(asked, one)) for one in self.all if one.request.model == model]
        nearest = min(rows, key=len)
        shown = "; ".join(nearest[:MOST_DIFFERENCES])
        more = f"; and {len(nearest) - MOST_DIFFERENCES} more" if len(nearest) > MOST_DIFFERENCES else ""
        text = f"no recording in {str(self._folder)!r} of this request; in the nearest {shown}{more}: {how}"
        return BadRequest(text, provider="replay", status=404, code="no_recording")


def _natural(file: Path) -> list[tuple[int, str]]:
    """By name, numbers by size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if is_object(value) and (value or path == "params"):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}".lstrip("."))
    elif is_array(value) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def _differences(asked: Mapping[str, Any], one: Recorded) -> Iterator[str]:
    known = dict(_leaves(_canonical(one.request.messages, one.request.params)))
    for path in dict.fromkeys((*asked, *known)):
        if path not in known:
            yield f"there is no {path} (asked: {_shown(asked[path])})"
        elif path not in asked:
            yield f"{path} is {_shown(known[path])}, not asked for"
        elif asked[path] != known[path]:
            yield f"{path} is {_shown(known[path], asked[path])}, not {_shown(asked[path], known[path])}"


def _shown(value: Any, other: Any = "") -> str:
    """A value, of a long text the part where it parts from the other one."""
    if not isinstance(value, str) or len(value) <= _SHOWN:
        return repr(value)
    same = next((at for at, (one, two) in enumerate(zip(value, str(other), strict=False)) if one != two), 0)
    start = max(0, same - _AROUND)
    end = start + _SHOWN
    return f"{'...' * bool(start)}{value[start:end]!r}{'...' * (end < len(value))}"
