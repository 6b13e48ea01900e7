"""Which of the offered tools the words of a prompt ask for, and with which arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from penstock.llms.demo.instance import Instances
from penstock.llms.demo.schema import Kind, Schema, as_schema
from penstock.llms.demo.text import FORMATS
from penstock.llms.demo.words import STOP_WORDS, calculation, key_words, names, numbers, quotes, words
from penstock.messages import is_array

ENOUGH = 3
NAMED = 100
_SIGNS = {
    "+": "add plus sum addition",
    "-": "subtract minus difference subtraction",
    "*": "multiply times product multiplication",
    "/": "divide division quotient",
    "**": "power exponent pow",
}
_SIGN_OF = {word: sign for sign, spoken in _SIGNS.items() for word in [sign, *spoken.split()]}
_ANY_SIGN = frozenset(
    re.findall(r"\w+", "calculate calculator calculation calc math arithmetic compute evaluate expression")
)
_MEANS = {
    "weather": "weather forecast temperature rain raining rainy sunny snow snowing cloudy climate",
    "time": "time clock date datetime timezone now day",
    "search": "search searching google browse",
    "look": "look lookup find",
    "mail": "mail email e-mail",
    "price": "price prices cost costs",
}
_VAGUE = frozenset({"look"})
_MEANING = {word: meaning for meaning, spoken in _MEANS.items() for word in spoken.split()}
_DULL_NAMES = "call current data fetch function info new number query return returns run string tool value values web"
_DULL = STOP_WORDS.union(re.findall(r"\w+", _DULL_NAMES))
_CLOCK = re.compile(
    r"\b(?:what|tell|current|which)\b.{0,20}\b(?:time|date|day)\b|\btoday'?s date\b|\btime is it\b", re.IGNORECASE
)
_LOOK_UP = re.compile(r"\blook(?:ing)? (?:\w+ )?up\b|\bwho (?:is|was)\b|\b(?:capital|population) of\b", re.IGNORECASE)


class Function(msgspec.Struct, frozen=True):
    """A function the client offers."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | bool | None = None


def fitting(prompt: str, functions: Sequence[Function]) -> list[Function]:
    """The functions that the words ask for, the best first; a later one needs words that no earlier one took."""
    asked = _asked(prompt)
    weighed = [(function, _evidence(prompt, asked, function)) for function in functions]
    weighed.sort(key=lambda pair: (pair[1].keys() <= _VAGUE, -sum(pair[1].values())))
    chosen: list[Function] = []
    taken: set[str] = set()
    for function, evidence in weighed:
        if sum(weight for word, weight in evidence.items() if word not in taken) >= ENOUGH:
            chosen.append(function)
            taken |= evidence.keys() | _VAGUE
    return chosen


def best(prompt: str, functions: Sequence[Function]) -> Function:
    """The function that fits best, the first of equals: for a client that requires a call."""
    asked = _asked(prompt)
    return max(functions, key=lambda function: sum(_evidence(prompt, asked, function).values()))


def _tells(word: str) -> bool:
    return word in _MEANING or word not in _DULL


def _canonical(word: str) -> str:
    word = _MEANING.get(word, word)
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _asked(prompt: str) -> set[str]:
    """What a prompt speaks of: its words in canonical form, the operators of its sum, `time` and `look` when asked."""
    asked = {_canonical(word) for word in words(prompt) if _tells(word)} - {"time"}
    if _CLOCK.search(prompt):
        asked.add("time")
    if _LOOK_UP.search(prompt):
        asked.add("look")
    found = calculation(prompt)
    return asked | (set(found.operators) if found else set())


def _evidence(prompt: str, asked: set[str], function: Function) -> dict[str, int]:
    """What of the prompt speaks for a function, with its weight: words of the name 3, of the description 1."""
    name, description = words(function.name), words(function.description or "")
    weights: dict[str, int] = {_canonical(word): 1 for word in description if _tells(word)}
    telling = [word for word in name if _tells(word)]
    weights |= {_canonical(word): ENOUGH for word in telling}
    searches = {"search", "look"}
    if not searches.isdisjoint(weights):
        weights |= dict.fromkeys(searches, ENOUGH if searches.issuperset(map(_canonical, telling)) else 1)
    if not _ANY_SIGN.isdisjoint([*name, *description]):
        weights |= dict.fromkeys(_SIGNS, ENOUGH)
    weights |= {_SIGN_OF[word]: ENOUGH + 1 for word in [*name, *description[:4]] if word in _SIGN_OF}
    evidence = {word: weight for word, weight in weights.items() if word in asked}
    if re.search(rf"(?<!\w){re.escape(function.name)}(?!\w)", prompt) and ("_" in function.name or not evidence):
        evidence[f"name:{function.name}"] = NAMED
    return evidence


class Arguments:
    """Fills the arguments of one answer's calls from the words of a prompt; each passes over what the last took."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._numbers, self._names = numbers(prompt), [*quotes(prompt), *names(prompt)]
        self._spare: list[int | float] = []
        self._own: frozenset[str] = frozenset()

    def of(self, function: Function) -> dict[str, Any]:
        """Arguments that fit the function's parameters; raises `BadRequest` where there are none."""
        instances = Instances(function.parameters if function.parameters is not None else {"type": "object"})
        self._own = frozenset(words(function.name))
        self._spare = self._spare or list(self._numbers)
        filled = self._object(instances, instances.opened(instances.schema))
        if not instances.fits(filled):
            filled = instances.smallest(Schema(type="object", all_of=[instances.schema]))
        return filled

    def _object(self, instances: Instances, schema: Schema) -> dict[str, Any]:
        filled: dict[str, Any] = {}
        required = schema.required or ()
        for name in [*(schema.properties or ()), *(name for name in required if name not in (schema.properties or ()))]:
            child = schema.child(name)
            for value in self._candidates(name, instances, instances.opened(child), needed=name in required):
                if instances.fits(value, child):
                    filled[name] = value
                    self._take(value)
                    break
            else:
                if name in required:
                    filled[name] = instances.smallest(child)
        return filled

    def _take(self, value: Any) -> None:
        for taken in value if is_array(value) else [value]:
            if taken in self._names:
                self._names.remove(taken)
            elif taken in self._spare and not isinstance(taken, bool):
                self._spare.remove(taken)

    def _candidates(self, name: str, instances: Instances, schema: Schema, *, needed: bool) -> Iterator[Any]:
        """Values the words suggest for a parameter, then its default."""
        for option in schema.any_of or schema.one_of or ():
            yield from self._candidates(name, instances, instances.opened(as_schema(option)), needed=needed)
        if schema.const is not UNSET and needed:
            yield schema.const
        elif schema.enum is not None:
            yield from self._members(schema.enum)
        elif not schema.any_of and not schema.one_of:
            for kind in schema.kinds:
                yield from self._of_kind(kind, name, instances, schema, needed=needed)
        if schema.default is not UNSET and needed:
            yield schema.default

    def _of_kind(self, kind: Kind, name: str, instances: Instances, schema: Schema, *, needed: bool) -> Iterator[Any]:
        match kind:
            case "integer" | "number":
                yield from list(self._spare)
                yield from self._numbers if needed else ()
            case "string":
                yield from self._texts(name, schema, needed=needed)
            case "array" if needed:
                yield from self._arrays(instances.opened(schema.item(0)))
            case "object" if needed:
                yield self._object(instances, schema)
            case "boolean" if not _DULL.issuperset(words(name)):
                if set(words(name)) - _DULL <= set(words(self._prompt)):
                    yield not re.search(r"\b(?:no|not|without)\b", self._prompt, re.IGNORECASE)
            case _:
                return

    def _members(self, members: Sequence[Any]) -> Iterator[Any]:
        """The members of an enum that are mentioned, by word or by the operator they name."""
        found = calculation(self._prompt)
        for member in members:
            text = str(member).lower()
            signs = found.operators if found else frozenset[str]()
            if _SIGN_OF.get(text) in signs or re.search(rf"(?<!\w){re.escape(text)}(?!\w)", self._prompt.lower()):
                yield member

    def _texts(self, name: str, schema: Schema, *, needed: bool) -> Iterator[str]:
        if schema.format in FORMATS:
            yield from (found[0] for found in re.finditer(FORMATS[schema.format][1], self._prompt))
        found = calculation(self._prompt)
        if found is not None and not {"expression", "formula", "equation", "calculation"}.isdisjoint(words(name)):
            yield found.expression
        if needed or not {"city", "location", "place", "country", "name"}.isdisjoint(words(name)):
            yield from list(self._names)
        if needed and schema.default is UNSET:
            own = {_canonical(word) for word in self._own}
            rest = [word for word in key_words(self._prompt) if _canonical(word.lower()) not in own]
            yield " ".join(rest)
            yield from rest
            yield self._prompt.strip()

    def _arrays(self, item: Schema) -> Iterator[list[Any]]:
        if "string" not in item.kinds:
            yield list(self._spare)
        else:
            yield list(self._names) or key_words(self._prompt)
