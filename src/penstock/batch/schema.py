"""`ItemSchema`: what each value of a batch must be, as a model is told it and as an element of its answer is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from penstock.batch.items import Item, Key, keys_of, plain
from penstock.batch.kinds import bounded, is_strict, kind_of, opened
from penstock.batch.outcomes import FaultKind
from penstock.batch.plan import Plan
from penstock.errors import PenstockError, UsageError
from penstock.llms.services import SERVICES
from penstock.messages import is_object

KEY = "agent_id"
VALUE = "value"
ROOT = "plans"
_NAMED = re.compile(rf'"{KEY}"\s*:\s*("(?:[^"\\\n]|\\.)*"|-?\d+(?=[\s,}}]))')
_encode = msgspec.json.encode
Dialect: TypeAlias = Literal["positions", "elements", "none"]
"""How much of a schema a service takes: a constant key at each position, the elements' type alone, or nothing."""
WEAKER: Mapping[Dialect, Dialect] = {"positions": "elements", "elements": "none"}
"""What is tried next with a service that refuses a request with a schema."""


def dialect_of(llm: Any) -> Dialect:
    """How much of a schema the service of an LLM takes, as far as that is known.

    Engines that run on one's own machine take all of it, also those that only look like OpenAI.
    """
    provider: str = getattr(llm, "provider", "")
    service = SERVICES.get(provider)
    if service is None:
        return "positions" if provider == "demo" else "none"
    own, other = urlsplit(service.base_url).hostname, urlsplit(getattr(llm, "base_url", "")).hostname
    return "positions" if service.local or (provider == "openai" and other not in (own, None)) else "elements"


class WrongElement(PenstockError):
    """An element of an answer that is no value; `kind` says in which way."""

    def __init__(self, message: str, *, kind: FaultKind) -> None:
        super().__init__(message)
        self.kind = kind


class Head(msgspec.Struct):
    """What is looked at first of an element."""

    agent_id: Any = msgspec.UNSET
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_head = msgspec.json.Decoder(Head).decode


class ItemSchema:
    """The type of each value: what msgspec reads (structs, dataclasses, enums ...), a pydantic model, or a JSON Schema.

    Where it has a property `agent_id` of its own an element of the answer is the value itself, else an object with
    `agent_id` and `value`. `acts` are the only ones that steps of plans may name: a sequence, or "MoveTo|Attack".
    Raises `UsageError` for what is no such type.
    """

    def __init__(self, kind: Any = Plan, *, acts: str | Iterable[str] = ()) -> None:
        named = acts.split("|") if isinstance(acts, str) else acts
        self.acts = tuple(act.strip() for act in named if act.strip())
        if self.acts and kind is not Plan:
            raise UsageError("acts are for plans: write what values may be into the schema")
        schema, self._decode = kind_of(kind)
        self._schema, self._sections = opened(schema)
        if self.acts:
            self._sections = bounded(self._sections, self.acts)
        self._properties: dict[str, Any] = self._schema.get("properties") or {}
        self.own_key = KEY in self._properties
        own = self._properties.get(KEY)
        self._key_type = own.get("type") if is_object(own) else None
        self.fields = tuple(self._properties) if self.own_key else (KEY, VALUE)
        """The names that an element's members have."""
        self.text = _encode({**self.element(None), **self._sections}).decode()
        """The type of one element as JSON Schema, as a prompt shows it."""
        self._strict = is_strict([self.element(None), self._sections])

    def keys(self, items: Sequence[Item]) -> dict[Key, Item]:
        """The items by their keys. Raises `UsageError` for one whose key the type does not allow."""
        keys = keys_of(items, text=self._key_type == "string")
        if self._key_type == "integer" and (odd := [key for key in keys if isinstance(key, str)]):
            raise UsageError(f"{KEY!r} of a value is an integer, the id {keys[odd[0]].id!r} is none: give integers")
        return keys

    def element(self, key: Key | None) -> dict[str, Any]:
        """The schema of an element: of this key's alone, or of any."""
        named: dict[str, Any] = {"type": self._key_type or ["integer", "string"]} if key is None else {"const": key}
        if self.own_key:
            required = list(dict.fromkeys([KEY, *self._schema.get("required", ())]))
            return {**self._schema, "properties": {KEY: named, **_without(self._properties, KEY)}, "required": required}
        properties = {KEY: named, VALUE: self._schema}
        return {"type": "object", "properties": properties, "required": [KEY, VALUE], "additionalProperties": False}

    def response_format(self, keys: Sequence[Key], dialect: Dialect) -> dict[str, Any] | None:
        """The `response_format` of an answer about these keys; None where the service takes no schema."""
        if dialect == "none":
            return None
        listed: dict[str, Any] = {"type": "array", "items": self.element(None)}
        if dialect == "positions":
            places = [self.element(key) for key in keys]
            count = {"minItems": len(keys), "maxItems": len(keys)}
            # No `"items": False`, which llama.cpp refuses: the count says as much.
            listed = {"type": "array", "prefixItems": places, **count}
        root = {"type": "object", "properties": {ROOT: listed}, "required": [ROOT], "additionalProperties": False}
        form = {"name": "batch", "strict": self._strict, "schema": {**root, **self._sections}}
        return {"type": "json_schema", "json_schema": form}

    def value(self, text: str, head: Head, item: Item) -> Any:
        """The value that an element has for an item, with the item's own id in it. Raises `WrongElement`."""
        try:
            value = self._decode(self._source(text, head, self._own(item)))
        except (ValueError, TypeError) as error:  # what msgspec, pydantic and our own check of a schema raise
            kind = _kind_of(error)
            said = "no JSON" if kind is FaultKind.MALFORMED else "not as the schema says"
            raise WrongElement(f"{said}: {_words(error):.300}", kind=kind) from error
        for place, step in enumerate(value.steps if self.acts else ()):
            if step.act not in self.acts:
                text = f"step {place} does {step.act!r:.100}, which is none of {', '.join(self.acts)}"
                raise WrongElement(text, kind=FaultKind.SCHEMA)
        return value

    def checked(self, item: Item, value: Any) -> Any:
        """A value that no model wrote, as the schema reads it. Raises `WrongElement`, `TypeError`, `ValueError`."""
        written = msgspec.to_builtins(plain(value), enc_hook=plain)
        element = written if self.own_key else {VALUE: written, KEY: item.id}
        text = _encode(element).decode()
        return self.value(text, head_of(text), item)

    def key_in(self, text: str) -> Any:
        """The key that a damaged element names, where that can be seen; else None."""
        found = _NAMED.search(text)
        if found is None:
            return None
        try:
            return msgspec.json.decode(found[1])
        except ValueError:
            return None

    def _own(self, item: Item) -> Key:
        return str(item.id) if self._key_type == "string" else item.id

    def _source(self, text: str, head: Head, own: Key) -> str | bytes:
        """The JSON that the value is read from; an element without a key is one that its answer names."""
        if not self.own_key:
            if isinstance(head.value, msgspec.Raw):
                return bytes(head.value)
            if head.agent_id is msgspec.UNSET:
                return text
            raise ValueError(f"an element has {KEY!r} and {VALUE!r}")
        if head.agent_id == own:
            return text
        element = msgspec.json.decode(text)
        return _encode({**element, KEY: own}) if is_object(element) else text


def head_of(text: str) -> Head:
    """The key of an element and its value as it is written, where it has them."""
    try:
        return _head(text)
    except msgspec.DecodeError:  # no object, or no JSON
        return Head()


def _kind_of(error: Exception) -> FaultKind:
    """What a decoder's error says of the text: no JSON at all, or another type."""
    broken = isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError)
    return FaultKind.MALFORMED if broken else FaultKind.SCHEMA


def _words(error: Exception) -> str:
    """What a decoder's error says; of pydantic's each thing that is wrong, without the links for people."""
    told = getattr(error, "errors", None)
    if told is None:
        return str(error)
    wrong: list[dict[str, Any]] = told(include_url=False, include_context=False)
    places = ("/".join(map(str, one["loc"])) or "the top of the value" for one in wrong)
    return "; ".join(f"{one['msg']} at {place!r}" for one, place in zip(wrong, places, strict=True))


def _without(properties: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {known: schema for known, schema in properties.items() if known != name}
