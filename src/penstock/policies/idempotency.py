"""`idempotency`: a call under one key is run at most once, and its result is given again.

The rules are those of https://docs.stripe.com/api/idempotent_requests, and one more: a call of which nobody knows how
it ended is reported, and never run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from math import inf
from time import time
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import msgspec

from penstock.errors import (
    Conflict,
    PenstockError,
    ToolError,
    ToolFailed,
    Unauthorized,
)
from penstock.messages import is_object
from penstock.policies import Policy
from penstock.policies.breaker import CALLERS
from penstock.policies.cache import Flight, document_of
from penstock.root import outlive
from penstock.run import Executor, Principal, Run

State: TypeAlias = Literal["running", "done", "failed", "unknown"]
HARMLESS = (*CALLERS, Unauthorized)
DAY_S = 86_400.0
RETRY_S = 1.0

Request = TypeVar("Request")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What a ledger knows of a key; `at` is when it entered its state, in seconds since 1970."""

    key: str
    fingerprint: str
    state: State
    at: float
    value: bytes = b""


class Ledger(Protocol):
    """Remembers which calls began and how they ended. Each method returns when that is as durable as the ledger is."""

    async def claim(self, key: str, fingerprint: str) -> Entry | None:
        """Take a key as `running`: None, or the entry that has it. What nobody runs any more is `unknown`."""
        ...

    async def commit(self, key: str, value: bytes, *, failed: bool, ttl_s: float) -> None:
        """Keep how a claimed call ended, for `ttl_s` seconds: `done`, or `failed`."""
        ...

    async def release(self, key: str) -> None:
        """Forget a claimed key: its call did nothing."""
        ...

    async def doubt(self, key: str) -> None:
        """Mark a claimed key `unknown`, for good."""
        ...


class MemoryLedger:
    """A ledger that lasts as long as the process."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._expires: dict[str, float] = {}

    async def claim(self, key: str, fingerprint: str) -> Entry | None:
        """Take a key, unless it has an entry."""
        self._drop_expired()
        found = self._entries.get(key)
        if found is not None and self._expires.get(key, inf) > time():
            return found
        self._expires.pop(key, None)
        self._put(key, fingerprint, "running")
        return None

    async def commit(self, key: str, value: bytes, *, failed: bool, ttl_s: float) -> None:
        """Keep how a claimed call ended."""
        self._put(key, self._entries[key].fingerprint, "failed" if failed else "done", value)
        self._expires[key] = time() + ttl_s

    async def release(self, key: str) -> None:
        """Forget a claimed key."""
        del self._entries[key]

    async def doubt(self, key: str) -> None:
        """Mark a claimed key `unknown`."""
        self._put(key, self._entries[key].fingerprint, "unknown")

    async def entries(self, state: State) -> list[Entry]:
        """The entries in a state."""
        now = time()
        return [one for key, one in self._entries.items() if one.state == state and self._expires.get(key, inf) > now]

    async def forget(self, key: str) -> bool:
        """Drop an entry, so that its key may be used again; False where there is none, or its call is running."""
        found = self._entries.get(key)
        if found is None or found.state == "running":
            return False
        self._expires.pop(key, None)
        del self._entries[key]
        return True

    def _put(self, key: str, fingerprint: str, state: State, value: bytes = b"") -> None:
        self._entries[key] = Entry(key, fingerprint, state, time(), value)

    def _drop_expired(self) -> None:
        """Look at the oldest, in the order of their commits; behind one that lasts longer some may be left."""
        now = time()
        while self._expires and self._expires[first := next(iter(self._expires))] <= now:
            del self._expires[first], self._entries[first]


class Codec(NamedTuple):
    """How results are written into a ledger and read from it."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


JSON = Codec(msgspec.json.encode, msgspec.json.decode)
"""For results that are plain JSON values."""


def fingerprint_of(request: object) -> str:
    """A hash that is equal for equal requests; raises `TypeError` for a request that is not plain data."""
    return hashlib.sha256(document_of(request)).hexdigest()


def did_nothing(error: PenstockError) -> bool:
    """Whether an error says that the call did nothing, or, of a tool's own, that it may be repeated.

    That a service which the call asked would take the same request again says nothing about what the call had done
    before, so that a `Transient` error leaves it in doubt. Where the call is one to an LLM and nothing else,
    pass `harmless=lambda error: error.retryable or did_nothing(error)`.
    """
    return isinstance(error, HARMLESS) or (isinstance(error, ToolError) and error.retryable)


class _Failure(msgspec.Struct, frozen=True):
    """A `ToolFailed` in a ledger."""

    message: str
    code: str
    details: Any = None


class _Stored(NamedTuple):
    """How a call ended, as a ledger keeps it."""

    value: bytes
    failed: bool = False

    def give(self, codec: Codec) -> Any:
        """The result again, or the failure."""
        if not self.failed:
            return codec.decode(self.value)
        failure = msgspec.json.decode(self.value, type=_Failure)
        raise ToolFailed(failure.message, code=failure.code, details=failure.details)


def _failure(error: BaseException | None) -> _Stored | None:
    """A failure that has ended, and says so; None for all that leaves doubts."""
    if not isinstance(error, ToolFailed):
        return None
    details = error.details
    if is_object(details) and details.get("outcome") == "unknown":
        return None
    try:
        return _Stored(msgspec.json.encode(_Failure(error.message, error.code, details)), failed=True)
    except TypeError:  # details that are no JSON values cannot be given again
        return None


class _Book:
    """A ledger, how results are written in it, and which errors leave no trace."""

    def __init__(self, ledger: Ledger, codec: Codec, harmless: Callable[[PenstockError], bool], ttl_s: float) -> None:
        self.ledger, self.codec, self.harmless, self.ttl_s = ledger, codec, harmless, ttl_s
        self._writing: set[asyncio.Task[Any]] = set()
        self._flights: dict[str, tuple[str, Flight[_Stored]]] = {}

    async def ended(self, key: str, fingerprint: str) -> _Stored | None:
        """How the call under a key ends that runs here; None when there is none, or when it was stopped."""
        while (ahead := self._flights.get(key)) is not None:
            mark, flight = ahead
            if mark != fingerprint:
                raise _other_request()
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.value is not None:
                return flight.value
        return None

    @contextmanager
    def flight(self, key: str, fingerprint: str) -> Generator[Flight[_Stored], None, None]:
        """A call that those who come under its key wait for."""
        with Flight[_Stored]() as flight:
            self._flights[key] = fingerprint, flight
            try:
                yield flight
            finally:
                del self._flights[key]

    async def claim(self, key: str, fingerprint: str) -> _Stored | None:
        """Take a key: None, or what its call came to; raises `Conflict` where that is not to be had."""
        claiming = self._write(self.ledger.claim(key, fingerprint))
        try:
            await outlive(claiming)
        except asyncio.CancelledError:
            if claiming.exception() is None and claiming.result() is None:
                await outlive(self._write(self.ledger.release(key)))
            raise
        entry = claiming.result()
        return None if entry is None else _stored(entry, fingerprint)

    async def settle(self, key: str, ending: _Stored | None, error: BaseException | None) -> None:
        """Write how a call ended, through any number of cancels."""
        if isinstance(error, PenstockError) and self.harmless(error):
            writing = self.ledger.release(key)
        elif (ending := ending or _failure(error)) is not None:
            writing = self.ledger.commit(key, ending.value, failed=ending.failed, ttl_s=self.ttl_s)
        else:
            writing = self.ledger.doubt(key)
        try:
            task = self._write(writing)
        except RuntimeError:  # closed after its loop: the entry stays as it is, and is unknown to the next process
            writing.close()
            return
        if not isinstance(error, GeneratorExit):  # a closed coroutine cannot wait
            await outlive(task)
            task.result()

    def _write(self, writing: Coroutine[Any, Any, Value]) -> asyncio.Task[Value]:
        task = asyncio.get_running_loop().create_task(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task


class _Claimed:
    """A claimed call while it runs; leaving it writes its end."""

    __slots__ = ("_book", "_key", "ending")

    def __init__(self, book: _Book, key: str) -> None:
        self._book, self._key = book, key
        self.ending: _Stored | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._book.settle(self._key, self.ending, error)


def _stored(entry: Entry, fingerprint: str) -> _Stored:
    if entry.fingerprint != fingerprint:
        raise _other_request()
    if entry.state == "running":
        error = Conflict("a call under this idempotency key is running: ask again later", code="in_progress")
        error.retry_after = RETRY_S
        raise error
    if entry.state == "unknown":
        raise Conflict(
            "nobody knows how the call under this idempotency key ended: see what it did before you use another key",
            code="outcome_unknown",
        )
    return _Stored(entry.value, entry.state == "failed")


def _other_request() -> Conflict:
    text = "this idempotency key was used for another request: use a new key"
    return Conflict(text, code="idempotency_conflict")


def _scoped(principal: Principal, key: str) -> str:
    return json.dumps([principal.tenant, principal.name, key])


def idempotency(
    ledger: Ledger,
    *,
    key: Callable[[Any, Run], str | None],
    fingerprint: Callable[[Any], str] = fingerprint_of,
    codec: Codec = JSON,
    ttl_s: float = DAY_S,
    harmless: Callable[[PenstockError], bool] = did_nothing,
) -> Policy:
    """Run a call at most once for each `key(request, run)` of a principal; None runs without a ledger.

    The key is claimed in the ledger before the call starts. How it ends decides what its key gives for `ttl_s` seconds:

    - A result is written by `codec` before it is returned, and returned again, without events.
    - A `ToolFailed` is a definite failure: it is kept and raised again.
    - An error for which `harmless(error)` is true did nothing: the key is free again.
    - Anything else (a timeout, a lost connection, an unknown exception, a cancel, a process that ends) leaves it open
      what was done, as does a `ToolFailed` whose `details` say `outcome: unknown`: from then on, until an operator
      drops the entry, the key raises `Conflict` with the code `outcome_unknown`.

    Another request under the same key raises `Conflict` with `idempotency_conflict`; requests are the same when their
    `fingerprint` is. A call that comes while the first one runs here waits for it and shares its end; where it runs in
    another process, it raises `Conflict` with `in_progress`. Where several executors share a ledger, their keys must
    differ.
    """
    book = _Book(ledger, codec, harmless, ttl_s)

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            if (own := key(request, run)) is None:
                return await executor(request, run)
            scoped, mark = _scoped(run.principal, own), fingerprint(request)
            if (ended := await book.ended(scoped, mark)) is not None:
                return ended.give(codec)  # type: ignore[no-any-return]
            with book.flight(scoped, mark) as flight:
                flight.value = await book.claim(scoped, mark)
                if flight.value is not None:
                    return flight.value.give(codec)  # type: ignore[no-any-return]
                async with _Claimed(book, scoped) as claimed:
                    result = await executor(request, run)
                    claimed.ending = _Stored(codec.encode(result))
                flight.value = claimed.ending
                return result

        return call

    return policy
