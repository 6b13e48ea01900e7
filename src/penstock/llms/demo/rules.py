"""What the demo model says: plain text by rules, plans, and answers to batches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import msgspec

from penstock.llms.demo.words import calculation, key_words, numbers, quotes
from penstock.messages import is_object

Rule: TypeAlias = Callable[[str], str | None]

INTRODUCTION = (
    "I am Penstock's demo model: rule-based, not a real LLM. "
    "Set OPENAI_API_KEY or OPENAI_BASE_URL and start again to get one."
)
ABILITIES = (
    "I greet, count, repeat, list, do arithmetic, give the first sentence of a text as its summary, call the tools "
    "you offer, fill JSON schemas and write small plans. I know nothing about the world."
)
MOST_COUNTED = 1_000
_SERIES = {
    "colour color": "red orange yellow green blue indigo violet",
    "fruit": "apple banana cherry grape lemon orange pear",
    "animal": "cat dog horse cow sheep goat owl",
    "planet": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
    "season": "spring summer autumn winter",
}
_SAY = re.compile(
    r"(?:^|[.!?\n]\s{0,3})(?:please |can you |could you |now |just )*"
    r"(?:say|repeat|echo|(?:reply|answer|respond) with)(?: after me| exactly| only| just| the words?)*[\s:]+(.+)",
    re.IGNORECASE | re.DOTALL,
)
_TIMES = re.compile(r"^(.*?),?\s+(\d+|two|three|four|five|ten) times\W*$", re.IGNORECASE | re.DOTALL)
_COUNT = re.compile(r"\bcount\b(?:.{0,40}?\bfrom\s+(-?\d+))?.{0,40}?\bto\s+(-?\d+)", re.IGNORECASE | re.DOTALL)
_COUNT_DOWN = re.compile(r"\bcount ?down\b.{0,40}?(\d+)", re.IGNORECASE | re.DOTALL)
_SUMMARY = re.compile(
    r"^\W*(?:please |can you |could you )*(?:summari[sz]e|sum up|tl;?dr)\b(?:[^:\n]{0,80}[:\n])?(.*)",
    re.IGNORECASE | re.DOTALL,
)
_LIST = re.compile(r"\b(?:list|name|enumerate)\b", re.IGNORECASE)
_CLOCK = re.compile(
    r"\bwhat(?:'s| is)? (?:the )?(?:current )?(?:time|date|day)\b|\btoday'?s date\b|\btime is it\b", re.IGNORECASE
)
_ABILITIES = re.compile(r"\bwhat can you\b|\bwho are you\b|\bwhat are you\b|\byour name\b|^\W*help\W*$", re.IGNORECASE)
_GREETING = re.compile(r"^\W*(hi|hello|hey|good (?:morning|afternoon|evening))\b", re.IGNORECASE)
_THANKS = re.compile(r"\b(?:thanks|thank you)\b", re.IGNORECASE)
_MARKED = re.compile(r"^<items>\n(.*?)^</items>$", re.MULTILINE | re.DOTALL)
_FAREWELL = re.compile(r"^\W*(?:bye|goodbye|good night|see you)\b", re.IGNORECASE)


def answer(prompt: str) -> str:
    """The answer to a user's text: that of the first rule that has one."""
    return next(said for rule in _RULES if (said := rule(prompt)))


def _summary(prompt: str) -> str | None:
    found = _SUMMARY.match(prompt)
    if found is None:
        return None
    text = " ".join(found[1].split())
    return f"In short: {_first_sentence(text)}" if text else "Give me the text to summarise after a colon."


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _said(prompt: str) -> str | None:
    found = _SAY.search(prompt)
    if found is None:
        return None
    text = found[1].strip()
    times = 1
    if repeated := _TIMES.match(text[:400]):
        text, times = repeated[1], min(int(numbers(repeated[2])[0]), MOST_COUNTED)
    quoted = quotes(text)
    return " ".join([quoted[0] if quoted else text] * times)


def _counted(prompt: str) -> str | None:
    if down := _COUNT_DOWN.search(prompt):
        return ", ".join(str(n) for n in range(min(int(down[1][:9]), MOST_COUNTED), -1, -1))
    found = _COUNT.search(prompt)
    if found is None:
        return None
    first, last = int((found[1] or "1")[:9]), int(found[2][:9])
    steps = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return ", ".join(str(n) for n in steps[:MOST_COUNTED])


def _calculated(prompt: str) -> str | None:
    found = calculation(prompt) if len(prompt) < 400 else None
    return None if found is None else f"{found.expression} is {found.text}."


def _clock(prompt: str) -> str | None:
    return "I have no clock. Offer me a tool that tells the time and I will call it." if _CLOCK.search(prompt) else None


def _abilities(prompt: str) -> str | None:
    return ABILITIES if _ABILITIES.search(prompt) else None


def _thanked(prompt: str) -> str | None:
    return "You are welcome." if _THANKS.search(prompt) else None


def _farewell(prompt: str) -> str | None:
    return "Goodbye!" if _FAREWELL.match(prompt) else None


def _listed(prompt: str) -> str | None:
    if not _LIST.search(prompt):
        return None
    given = prompt.partition(":")[2]
    items = [item for part in re.split(r",|;|\n|\band\b", given) if (item := part.strip(" .-"))]
    if len(items) < 2:
        asked = prompt.lower()
        known = (row.split() for topics, row in _SERIES.items() if any(topic in asked for topic in topics.split()))
        items = next(known, list[str]())
        count = next((int(number) for number in numbers(prompt) if number >= 1), len(items))
        items = items[:count]
    return "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1)) or None


def _greeting(prompt: str) -> str | None:
    found = _GREETING.match(prompt)
    return f"{found[1].capitalize()}! What can I do for you?" if found else None


def _modest(prompt: str) -> str:
    about = key_words(prompt)[:6]
    if not about:
        return "I have nothing to go by. Ask me what I can do."
    topic = ", ".join(f'"{word[:40]}"' for word in about)
    return f"You wrote about {topic}. I only follow rules and know nothing about that; a real model would answer here."


_RULES: tuple[Rule, ...] = (
    _summary,
    _said,
    _counted,
    _calculated,
    _clock,
    _abilities,
    _thanked,
    _farewell,
    _listed,
    _greeting,
    _modest,
)


def from_results(results: Sequence[tuple[str, str]]) -> str:
    """The answer after tools: what each, by name, gave."""
    if len(results) == 1:
        return f"The answer is {_shown(results[0][1])}."
    return "Here is what I found. " + " ".join(f"{name or 'tool'}: {_shown(text)}." for name, text in results)


def _shown(text: str) -> str:
    """A tool's result in words, at most 400 letters of it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if is_object(value):
        value = ", ".join(f"{key} {inner}" for key, inner in value.items())
    shown = " ".join(str(value).split()).rstrip(".")
    return (shown if len(shown) <= 400 else f"{shown[:400]}...") or "empty"


def batch(text: str) -> list[dict[str, Any]] | None:
    """One plan for each item of a batch prompt, in order; None when the text is no such prompt."""
    if not re.search(r"\bplans?\b", text, re.IGNORECASE):
        return None
    found = [_identity(item) for item in _items(text)]
    return [{"agent_id": name, "plan_id": f"plan-{name}", "steps": [{"act": "Wait"}]} for name in found] or None


def _items(text: str) -> list[dict[str, Any]]:
    """The items of the lines between marks, else of the first JSON array of objects with an id, else of lines alone."""
    if marked := _MARKED.search(text):
        return list(_lines(marked[1]))
    decoder = json.JSONDecoder()
    for start in islice(re.finditer(r"\[\s*\{", text), 20):
        try:
            found, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if all(_identity(item) is not None for item in found):
            return list(found)
    return list(_lines(text))


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.lstrip().startswith("{"):
            try:
                item = json.loads(line.strip().rstrip(","))
            except (ValueError, RecursionError):
                continue
            if _identity(item) is not None:
                yield item


def _identity(item: Any) -> str | int | None:
    name = item.get("agent_id", item.get("id")) if is_object(item) else None
    return name if isinstance(name, str | int) else None


def plan(system: str, prompt: str) -> dict[str, Any] | None:
    """A small plan of two tasks, when a plan of tasks is asked for as JSON; else None."""
    asked = f"{system}\n{prompt}"
    if not re.search(r"\bjson\b", asked, re.IGNORECASE) or not re.search(
        r"\b(?:plan|decompose|break (?:it )?down|tasks)\b", asked, re.IGNORECASE
    ):
        return None
    goal = _first_sentence(" ".join(prompt.split())).rstrip(".:!?")[:80]
    return {
        "tasks": [
            {"id": "1", "title": f"Prepare: {goal}", "depends_on": []},
            {"id": "2", "title": f"Finish: {goal}", "depends_on": ["1"]},
        ]
    }


def as_json(value: Any) -> str:
    """A value as compact JSON."""
    return msgspec.json.encode(value).decode()
