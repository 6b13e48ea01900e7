"""`cache`: answers that were given before, and one call for all that ask the same at once."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable
from time import monotonic
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec

from penstock.errors import UsageError
from penstock.events import Chunks, Event
from penstock.policies import Policy
from penstock.policies.retry import ANSWERS
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")
Value = TypeVar("Value")

_document = msgspec.msgpack.Encoder(order="deterministic").encode


def document_of(request: object) -> bytes:
    """A request as bytes that are equal for equal requests; raises `TypeError` for what cannot be written."""
    try:
        return type(request).__name__.encode() + b" " + _document(request)
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise TypeError(str(error)) from error


def by_caller(request: object, run: Run) -> Hashable | None:
    """The tenant, the principal's name and the request: nobody is given another's answer.

    None for a request that is not plain data (structs, dataclasses, mappings, lists, texts, numbers).
    """
    try:
        return run.principal.tenant, run.principal.name, document_of(request)
    except TypeError:
        return None


class Flight(Generic[Value]):
    """A call that others wait for. When `done` is set it has a `value` or an `error`; neither when it was stopped."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.value: Value | None = None
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.error = error
        self.done.set()


class _Answer:
    """What a call told at its own path and what it returned, kept from the hands of those it is given to."""

    __slots__ = ("_result", "_told", "expires")

    def __init__(self) -> None:
        self._told: list[Event] = []
        self._result: Any = None
        self.expires = 0.0

    def note(self, event: Event) -> None:
        """Keep an event that is part of the answer."""
        if isinstance(event, ANSWERS) and not event.path:
            self._told.append(_own(event) if isinstance(event, Chunks) else event)

    def finish(self, result: object, ttl_s: float) -> None:
        """Keep the result; the answer is good for so many seconds."""
        self._result, self.expires = _own(result), monotonic() + ttl_s

    async def give(self, run: Run) -> Any:
        """Tell it again, and return it again."""
        for event in self._told:
            await run.emit(_own(event) if isinstance(event, Chunks) else event)
        return _own(self._result)


def _own(value: Value) -> Value:
    try:
        return copy.deepcopy(value)
    except TypeError:  # holds a lock, a connection, ...: such a thing is shared
        return value


class _Answers:
    """The kept answers, the one that was used last at the end."""

    __slots__ = ("_kept", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, _Answer] = OrderedDict()

    def get(self, place: Hashable) -> _Answer | None:
        """The answer of a place, unless it is too old."""
        found = self._kept.get(place)
        if found is None:
            return None
        if found.expires <= monotonic():
            del self._kept[place]
            return None
        self._kept.move_to_end(place)
        return found

    def put(self, place: Hashable, answer: _Answer) -> None:
        """Keep an answer, for the one whose use is longest ago where there is no room."""
        self._kept[place] = answer
        self._kept.move_to_end(place)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def cache(*, ttl_s: float, max_entries: int = 1024, key: Callable[[Any, Run], Hashable | None] = by_caller) -> Policy:
    """Give an answer again for `ttl_s` seconds where `key(request, run)` is the same; None is never kept.

    An answer is told again as it was told at the executor's own path, then returned as a copy; `Used` is not: it cost
    nothing this time. Callers with the same key at once wait for the first. They share its result or its error, which
    is not kept; when it is cancelled, the next one calls. At most `max_entries` answers are kept, and those used last
    stay. Executors that are given the same policy share the room, not the answers. Raises `UsageError` for no time or
    no room.
    """
    if not ttl_s > 0 or max_entries < 1:
        raise UsageError(f"ttl_s={ttl_s!r}, max_entries={max_entries!r}: give more than 0 seconds and at least 1 entry")
    answers = _Answers(max_entries)

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        own, flights = object(), dict[Hashable, Flight[_Answer]]()

        async def lead(found: Hashable, request: Request, run: Run) -> Result:
            answer = _Answer()
            flights[found] = flight = Flight[_Answer]()
            try:
                with flight:
                    result = await executor(request, run.listening(answer.note))
                    answer.finish(result, ttl_s)
                    answers.put((own, found), answer)
                    flight.value = answer
                    return result
            finally:
                del flights[found]

        async def call(request: Request, run: Run, /) -> Result:
            found = key(request, run)
            if found is None:
                return await executor(request, run)
            while (answer := answers.get((own, found))) is None:
                flight = flights.get(found)
                if flight is None:
                    return await lead(found, request, run)
                await flight.done.wait()
                if flight.error is not None:
                    raise flight.error
                if flight.value is not None:
                    answer = flight.value
                    break
            return await answer.give(run)  # type: ignore[no-any-return]

        return call

    return policy
