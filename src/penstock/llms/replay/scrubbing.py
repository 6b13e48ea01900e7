"""Takes secrets out of an exchange, those too that arrived in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from penstock.llms.replay.files import CHOICE, Recorded, part, parts
from penstock.messages import is_array, is_object
from penstock.net import Secret

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_KEPT = frozenset(("role", "tool_calls", *_TEXTS))


def without(recorded: Recorded, secrets: Sequence[Secret]) -> Recorded:
    """The exchange without any eight characters of a secret.

    Where a text that came in several chunks holds some, all of it moves to its first chunk, and what a service said
    beside its texts is left out: it may hold them again, in pieces of its own.
    """
    if not secrets:
        return recorded
    said = msgspec.to_builtins(recorded)
    texts: dict[Any, list[tuple[dict[str, Any], str]]] = {}
    for name, holder, key in _pieces(said["chunks"]):
        texts.setdefault(name, []).append((holder, key))
    leaked = False
    for places in texts.values():
        text = "".join(holder[key] for holder, key in places)
        if (clean := _scrubbed(text, secrets)) != text:
            leaked = True
            for n, (holder, key) in enumerate(places):
                holder[key] = clean if n == 0 else ""
    if leaked:
        _leave_the_rest_out(said["chunks"])
    return msgspec.convert(_clean(said, secrets), Recorded)


def _pieces(chunks: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Each piece of a text in the chunks: which text, and where it stands."""
    for chunk in chunks:
        for choice in parts(chunk, "choices"):
            delta = part(choice, "delta")
            for name in _TEXTS:
                if delta.get(name):
                    yield (choice.get("index"), name), delta, name
            for call in parts(delta, "tool_calls"):
                function = part(call, "function")
                if function.get("arguments"):
                    yield (choice.get("index"), "call", call.get("index")), function, "arguments"


def _leave_the_rest_out(chunks: list[dict[str, Any]]) -> None:
    for chunk in chunks:
        for choice in parts(chunk, "choices"):
            for key in choice.keys() - CHOICE:
                del choice[key]
            delta = part(choice, "delta")
            for key in delta.keys() - _KEPT:
                del delta[key]


def _scrubbed(text: str, secrets: Sequence[Secret]) -> str:
    for secret in secrets:
        text = secret.scrub(text)
    return text


def _clean(value: Any, secrets: Sequence[Secret]) -> Any:
    if isinstance(value, str):
        return _scrubbed(value, secrets)
    if is_object(value):
        return {_scrubbed(key, secrets): _clean(inner, secrets) for key, inner in value.items()}
    return [_clean(inner, secrets) for inner in value] if is_array(value) else value
