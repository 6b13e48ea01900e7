"""`faults`: make calls fail as a service does, by a script such as "429 twice; cut after 3 chunks"."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TypeAlias, TypeVar

from msgspec.structs import replace

from penstock.errors import (
    BadAnswer,
    BadRequest,
    LlmError,
    RateLimited,
    TimedOut,
    TooLong,
    Unauthorized,
    Unavailable,
    UsageError,
)
from penstock.events import Chunks, Event, Fold, Reasoning, Text
from penstock.messages import ChatReply, ChatRequest
from penstock.policies import Policy
from penstock.policies.retry import ANSWERS
from penstock.run import Executor, Run

Words: TypeAlias = dict[str, re.Match[str]]
KINDS = ("status", "refuse", "timeout", "cut", "malformed", "stall", "slow")
PLACED = frozenset(("cut", "malformed", "stall"))
_TIME = r"(\d+(?:\.\d+)?)\s*(ms|s)"
_WORDS = {
    "every": r"every (\d+)(?:st|nd|rd|th) call:?",
    "percent": r"(\d+(?:\.\d+)?)\s*%:?",
    "seed": r"seed (\d+):?",
    "status": r"([45]\d\d)",
    "refuse": r"refuse",
    "timeout": r"timeout",
    "cut": r"cut",
    "malformed": r"malformed",
    "stall": rf"stall (?:forever|{_TIME})",
    "slow": rf"slow {_TIME}",
    "after": r"after (\d+) chunks?",
    "times": r"(?:once|twice|always|(\d+) times)",
    "retry-after": rf"retry-after {_TIME}",
}
_PATTERNS = {name: re.compile(rf"{pattern}(?=\s|$)", re.IGNORECASE) for name, pattern in _WORDS.items()}
KNOWN = (
    "a status such as 429, refuse, timeout, cut, malformed, stall 2s, stall forever, slow 50ms; "
    "beside it: after 3 chunks, once, twice, 5 times, always, retry-after 2s, every 3rd call, 10%, seed 7"
)
_COUNTS = {"once": 1.0, "twice": 2.0, "always": inf}
_BY_STATUS: dict[int, type[LlmError]] = {
    401: Unauthorized,
    403: Unauthorized,
    408: TimedOut,
    409: Unavailable,
    413: TooLong,
    425: Unavailable,
    429: RateLimited,
    504: TimedOut,
}
Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(slots=True, kw_only=True)
class Fault:
    """One step of a script, and how many calls it still meets."""

    text: str
    kind: str
    left: float = inf
    after: int = 0
    seconds: float = 0.0
    status: int = 0
    retry_after: float | None = None
    every: int = 1
    share: float = 1.0
    chance: random.Random = field(default_factory=random.Random)

    @property
    def ends(self) -> bool:
        """Whether a call that meets it goes no further."""
        return self.kind not in {"slow", "stall"} or self.seconds == inf

    def meets(self, number: int) -> bool:
        """Whether it comes over call `number`, which is counted; the first is 1."""
        if self.left < 1 or number % self.every or (self.share < 1 and self.chance.random() >= self.share):
            return False
        self.left -= 1
        return True

    def error(self) -> LlmError:
        """What a service's failure of this kind is raised as."""
        said = f"by the fault script: {self.text!r}"
        if self.kind == "status":
            kind = _BY_STATUS.get(self.status) or (BadRequest if self.status < 500 else Unavailable)
            return kind(said, provider="faults", status=self.status, retry_after=self.retry_after)
        if self.kind == "refuse":
            return Unavailable(f"the connection was refused, {said}", provider="faults")
        if self.kind == "timeout":
            return TimedOut(f"nothing was answered in time, {said}", provider="faults")
        what = "the answer was cut off" if self.kind == "cut" else "the answer is malformed"
        return BadAnswer(f"{what}, {said}", provider="faults")


def parse(script: str | Sequence[str]) -> list[Fault]:
    """The steps of a script, which stand on lines of their own or between semicolons; raises `UsageError`."""
    parts = re.split(r"[;\n]", script) if isinstance(script, str) else list(script)
    steps = [" ".join(part.split()) for part in parts if part.strip()]
    if not steps:
        raise UsageError(f"an empty fault script; known are {KNOWN}")
    return [_step(step) for step in steps]


def _step(text: str) -> Fault:
    said: Words = {}
    rest = text
    while rest:
        name = next((name for name, pattern in _PATTERNS.items() if pattern.match(rest)), None)
        match = _PATTERNS[name].match(rest) if name else None
        if name is None or match is None or name in said:
            what = "says twice" if name else "says, not understood,"
            raise UsageError(f"the fault script {text!r} {what} {rest!r}; known are {KNOWN}")
        said[name] = match
        rest = rest[match.end() :].lstrip()
    kinds = [kind for kind in KINDS if kind in said]
    if len(kinds) != 1:
        raise UsageError(f"a step of a fault script has one fault, not {len(kinds)}: {text!r}; known are {KNOWN}")
    _refuse_strangers(text, kinds[0], said)
    return _fault(text, kinds[0], said)


def _refuse_strangers(text: str, kind: str, said: Words) -> None:
    """Raise for a word that means nothing with this fault."""
    lacking = {"after": kind in PLACED, "retry-after": kind == "status", "seed": "percent" in said}
    lacking["percent"] = "every" not in said
    for name, fits in lacking.items():
        if name in said and not fits:
            raise UsageError(f"{said[name][0]!r} does not go with the rest of {text!r}; known are {KNOWN}")
    zero = [name for name in ("every", "times") if name in said and said[name][1] and not int(said[name][1])]
    if zero or ("percent" in said and not 0 < float(said["percent"][1]) <= 100):
        raise UsageError(f"the step {text!r} meets no call: give more than 0, and at most 100 %")


def _fault(text: str, kind: str, said: Words) -> Fault:
    fault = Fault(text=text, kind=kind)
    if kind in {"stall", "slow"}:
        fault.seconds = _seconds(said[kind])
    if kind == "status":
        fault.status = int(said[kind][1])
    if "after" in said:
        fault.after = int(said["after"][1])
    if "retry-after" in said:
        fault.retry_after = _seconds(said["retry-after"])
    if "times" in said:
        words = said["times"]
        fault.left = float(words[1]) if words[1] else _COUNTS[words[0].lower()]
    if "every" in said:
        fault.every = int(said["every"][1])
    if "percent" in said:
        fault.share = float(said["percent"][1]) / 100
    if "seed" in said:
        fault.chance = random.Random(int(said["seed"][1]))  # noqa: S311  # chosen to be repeated
    return fault


def _seconds(match: re.Match[str]) -> float:
    if match[1] is None:
        return inf
    return float(match[1]) / (1000 if match[2].lower() == "ms" else 1)


def faults(script: str | Sequence[str], *, idle_s: float = 60.0, total_s: float = 600.0) -> Policy:
    """Let calls fail as a script says, each with the error of a real service's failure.

    A call goes through the steps in their order, up to the first that fails it; a step that is used up is passed over.
    Chunks are counted one by one, those of an answer that is not streamed as none. A stall that exceeds `idle_s` within
    an answer, or `total_s` in all, ends as the limits of an LLM do. Executors that are given the same policy share its
    counts. Raises `UsageError` for a script that is not understood.
    """
    steps = parse(script)
    calls = 0

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            nonlocal calls
            calls += 1
            met: list[Fault] = []
            for step in steps:
                if step.meets(calls):
                    met.append(step)
                    if step.ends:
                        break
            if not met:
                return await executor(request, run)
            whole = isinstance(request, ChatRequest) and not request.stream
            faulty = _Faulty(met, run, whole=whole, limits=(idle_s, total_s))
            await faulty.suffer()
            try:
                result = await executor(request, run.telling(faulty.tell))
            except BadAnswer as error:
                if error is faulty.failure:  # an LLM adds all that it had read, which is more than was told
                    error.partial = faulty.partial(error)
                raise
            if faulty.failure is not None:  # which the executor kept to itself
                raise faulty.failure
            return result

        return call

    return policy


class _Faulty:
    """One call, and what comes over it."""

    def __init__(self, met: list[Fault], run: Run, *, whole: bool, limits: tuple[float, float]) -> None:
        self._emit = run.emit
        self._idle_s, self._total_s = limits
        self._slow = sum(fault.seconds for fault in met if fault.kind == "slow")
        self._waiting = [(0 if whole else fault.after, fault) for fault in met if fault.kind != "slow"]
        self._waiting.sort(key=_place)
        self._told = 0
        self._fold = Fold()
        self._began = monotonic()
        self.failure: LlmError | None = None

    async def suffer(self) -> None:
        """Meet what stands before the next chunk; raises what a fault is raised as."""
        while self._waiting and self._waiting[0][0] <= self._told:
            fault = self._waiting.pop(0)[1]
            if fault.kind == "stall":
                await self._wait(fault.seconds)
            else:
                raise self._failed(fault.error())

    async def tell(self, event: Event) -> None:
        """Pass an event on; one with several chunks in parts, where a fault falls between them."""
        if self.failure is not None and isinstance(event, ANSWERS):  # the executor went on over it
            raise self.failure
        if isinstance(event, (Text, Reasoning)) and not event.path:  # a union is built at each call
            await self._before_next()
            await self._say(event, 1)
        elif isinstance(event, Chunks) and not event.path:
            frames = [] if event.data is None else event.data.split(b"\n\n")[:-1]
            begin = 0
            for place in range(len(event.views)):
                if self._slow or (self._waiting and self._waiting[0][0] <= self._told + place - begin):
                    await self._say_part(event, frames, begin, place)
                    begin = place
                    await self._before_next()
            await self._say_part(event, frames, begin, len(event.views))
        else:
            await self._say(event, 0)

    async def _say_part(self, event: Chunks, frames: list[bytes], begin: int, end: int) -> None:
        if begin == end:
            return
        part = event
        if end - begin < len(event.views):
            data = None
            if len(frames) == len(event.views):
                data = b"".join(frame + b"\n\n" for frame in frames[begin:end])
            part = replace(event, views=event.views[begin:end], data=data)
        await self._say(part, end - begin)

    async def _before_next(self) -> None:
        await self._wait(self._slow)
        await self.suffer()

    async def _say(self, event: Event, chunks: int) -> None:
        self._told += chunks
        if chunks:
            self._fold.add(event)
        began = monotonic()
        try:
            await self._emit(event)
        finally:
            self._began += monotonic() - began  # the client's time does not count

    async def _wait(self, seconds: float) -> None:
        left = self._began + self._total_s - monotonic()
        limit = min(left, self._idle_s) if self._told else left
        await asyncio.sleep(max(0.0, min(seconds, limit)))
        if seconds <= limit:
            return
        if not self._told:
            text = f"nothing was answered within {self._total_s:g} s in all"
            raise self._failed(TimedOut(text, provider="faults"))
        text = f"stalled: nothing more came within {self._idle_s:g} s"
        if limit != self._idle_s:
            text = f"the answer did not finish within {self._total_s:g} s in all"
        raise self._failed(BadAnswer(text, provider="faults"))

    def partial(self, error: BadAnswer) -> ChatReply | None:
        """What had been told; nothing where nothing was."""
        usage = error.partial.usage if isinstance(error.partial, ChatReply) else None
        return self._fold.reply(usage) if self._told else None

    def _failed(self, error: LlmError) -> LlmError:
        if isinstance(error, BadAnswer):
            error.partial = self.partial(error)
        self.failure = error
        return error


def _place(waiting: tuple[int, Fault]) -> int:
    return waiting[0]
