"""`breaker`: after failures in a row calls are refused for a while, then one is tried."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TypeVar

from penstock.errors import (
    BadArguments,
    BadRequest,
    Denied,
    LimitReached,
    PenstockError,
    RequestError,
    Unavailable,
    UsageError,
)
from penstock.policies import Policy
from penstock.run import Executor, Run

CALLERS = (RequestError, BadArguments, Denied, BadRequest, LimitReached, UsageError)
PROBE_S = 1.0
"""What a call that is refused because of a running probe is told to wait, at most."""

Request = TypeVar("Request")
Result = TypeVar("Result")


def speaks_against_it(error: Exception) -> bool:
    """Whether an error is the executor's: not what a caller did wrong, nor what a limit refused."""
    return not isinstance(error, CALLERS)


class _Circuit:
    """Closed while `_opened` is None. Opening and closing begin an era, and a call decides only its own."""

    __slots__ = ("_count", "_failures", "_opened", "_probing", "_reset_s", "era")

    def __init__(self, failures: int, reset_s: float) -> None:
        self._failures, self._reset_s = failures, reset_s
        self._opened: float | None = None
        self._count = 0
        self._probing = False
        self.era: int = 0

    def wait(self) -> float:
        """Seconds until a call may come again; 0 lets it in, as the one probe where the circuit is open."""
        if self._opened is None:
            return 0.0
        left = self._opened + self._reset_s - monotonic()
        if left > 0:
            return left
        if self._probing:
            return min(PROBE_S, self._reset_s)
        self._probing = True
        return 0.0

    def end(self, era: int, *, failed: bool | None) -> None:
        """Take in how a call of an era ended; None says nothing about the executor."""
        if era != self.era:
            return
        self._probing = False
        if failed:
            self._count += 1
            if self._opened is not None or self._count >= self._failures:
                self._opened = monotonic()
                self.era += 1
        elif failed is not None:
            self._count = 0
            if self._opened is not None:
                self._opened = None
                self.era += 1


class _Watched:
    """One call while it runs; its end is told to the circuit."""

    __slots__ = ("_circuit", "_counts", "_era")

    def __init__(self, circuit: _Circuit, counts: Callable[[Exception], bool]) -> None:
        self._circuit, self._counts = circuit, counts
        self._era = circuit.era

    def __enter__(self) -> None:
        """Nothing to do: the call was let in."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed: bool | None = None
        try:
            if error is None:
                failed = False
            elif isinstance(error, Exception) and self._counts(error):
                failed = True
        finally:
            self._circuit.end(self._era, failed=failed)


def breaker(
    *,
    failures: int = 5,
    reset_s: float = 30.0,
    error: Callable[[str], PenstockError] = Unavailable,
    counts: Callable[[Exception], bool] = speaks_against_it,
) -> Policy:
    """Refuse calls for `reset_s` seconds after `failures` in a row, then let one through to see whether it helps.

    A refused call raises `error(message)`, whose `retry_after` says when to come back. The one probe closes the circuit
    by its success and opens it again by its failure. A call that is cancelled, or whose error does not count, decides
    nothing, nor does one that began before the circuit last opened or closed. Executors that are given the same policy
    share its circuit. Raises `UsageError` for less than one failure or no time.
    """
    if failures < 1 or not reset_s > 0:
        raise UsageError(f"failures={failures!r}, reset_s={reset_s!r}: give at least 1 failure and more than 0 seconds")
    circuit = _Circuit(failures, reset_s)

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            if (wait := circuit.wait()) > 0:
                refusal = error(f"not called: it failed {failures} times in a row; the next try is in {wait:.1f} s")
                refusal.retry_after = wait
                raise refusal
            with _Watched(circuit, counts):
                return await executor(request, run)

        return call

    return policy
