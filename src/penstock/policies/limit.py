"""`limit`: requests and tokens a minute, and calls at once; what is over the limit is refused, not queued."""

from __future__ import annotations

from time import monotonic
from typing import TypeVar

from penstock.errors import LimitReached, UsageError
from penstock.events import Event, Used
from penstock.policies import Policy
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


class _Bucket:
    """A token bucket that holds one minute's allowance and refills evenly."""

    __slots__ = ("_at", "_level", "size")

    def __init__(self, per_minute: float) -> None:
        self.size = self._level = float(per_minute)
        self._at = monotonic()

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        now = monotonic()
        self._level = min(self.size, self._level + (now - self._at) * self.size / 60)
        self._at = now
        return max(0.0, (amount - self._level) * 60 / self.size)

    def take(self, amount: float) -> None:
        """Take an amount out, or give it back if it is negative; below zero the level delays the next call."""
        self._level -= amount


class _Bounds:
    """The limits of one policy, and how much of them is used."""

    __slots__ = ("_concurrent", "_requests", "_running", "tokens")

    def __init__(self, requests: int | None, tokens: int | None, concurrent: int | None) -> None:
        for bound in (requests, tokens, concurrent):
            if bound is not None and bound < 1:
                raise UsageError(f"a limit of {bound!r} lets nothing through: give at least 1, or None for no limit")
        self._requests = _Bucket(requests) if requests else None
        self.tokens = _Bucket(tokens) if tokens else None
        self._concurrent = concurrent
        self._running = 0

    def enter(self) -> None:
        """Let a call in and count it, or raise `LimitReached` and count nothing."""
        if self._concurrent is not None and self._running >= self._concurrent:
            raise LimitReached(f"{self._concurrent} calls are running already", limit="concurrent", retry_after=1.0)
        if self.tokens is not None and (wait := self.tokens.wait(1)) > 0:
            raise _used_up(self.tokens, wait, "tokens")
        if self._requests is not None:
            if (wait := self._requests.wait(1)) > 0:
                raise _used_up(self._requests, wait, "requests")
            self._requests.take(1)
        self._running += 1

    def leave(self) -> None:
        """Give the slot of a call back."""
        self._running -= 1

    def forgive(self) -> None:
        """Give back the request of a call that was refused further in."""
        if self._requests is not None:
            self._requests.take(-1)


class _Call:
    """One call while it runs: whether it told anything, and the tokens it told."""

    __slots__ = ("_tokens", "began")

    def __init__(self, tokens: _Bucket | None) -> None:
        self._tokens = tokens
        self.began = False

    def note(self, event: Event) -> None:
        """Take the tokens of a call out of the minute's allowance."""
        self.began = True
        if self._tokens is not None and isinstance(event, Used):
            self._tokens.take(event.usage.total)


def _used_up(bucket: _Bucket, wait: float, what: str) -> LimitReached:
    text = f"the limit of {bucket.size:g} {what} a minute is used up"
    return LimitReached(text, limit=f"{what}_per_minute", retry_after=wait)


def limit(
    *, requests_per_minute: int | None = None, tokens_per_minute: int | None = None, concurrent: int | None = None
) -> Policy:
    """Refuse calls over the limits with `LimitReached`, which says when to come back.

    Checked and counted in one step, so that a refused call consumes nothing, nor does one that another limit refuses
    further in, before it told anything; a slot comes back however its call ends.
    Tokens are counted as they are told: a call is let in while the minute's allowance is not used up. Executors that
    are given the same policy share its limits. Raises `UsageError` for a limit below 1.
    """
    bounds = _Bounds(requests_per_minute, tokens_per_minute, concurrent)

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            bounds.enter()
            inner = _Call(bounds.tokens)
            try:
                return await executor(request, run.listening(inner.note))
            except LimitReached:
                if not inner.began:
                    bounds.forgive()
                raise
            finally:
                bounds.leave()

        return call

    return policy
