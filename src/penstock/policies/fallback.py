"""`fallback`: other executors, in their order, for a call that failed before anything of its answer was told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

from penstock.errors import BadAnswer, PenstockError, Transient, Unauthorized
from penstock.events import Switched
from penstock.policies import Policy
from penstock.policies.retry import Start
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


def worth_another(error: Exception) -> bool:
    """Whether another executor may do better: not where the caller is at fault, nor where a limit of ours refused.

    So it is after `Transient`, `Unauthorized` and `BadAnswer`, and after whatever else says that it is `retryable`.
    """
    if isinstance(error, Transient | Unauthorized | BadAnswer):
        return True
    return isinstance(error, PenstockError) and error.retryable


def noted(error: Exception, earlier: Iterable[str]) -> None:
    """Add to an error what failed before it; once, as an error may be raised again."""
    for note in earlier:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def failed_before(name: str, error: Exception) -> str:
    """The note for a later error that says how an executor failed before."""
    return f"before it, {name} failed: {type(error).__name__}: {error}"


class _Failures:
    """What failed in one call, by the executor's id, until it ends; and `outer`, the same of the call around it.

    Nothing is reset at the end, which may come in another context: what `found` nothing means nothing.
    """

    __slots__ = ("found", "outer")

    def __init__(self) -> None:
        outer = _current.get()
        while outer is not None and not outer.found:
            outer = outer.outer
        self.outer: _Failures | None = outer
        self.found: dict[int, Exception] = {}

    def __enter__(self) -> None:
        """Nothing to do: it counts from the first failure on."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.found.clear()

    def add(self, executor: object, error: Exception) -> None:
        """Keep how an executor failed, for the fallbacks inside those that are called next."""
        self.found[id(executor)] = error
        _current.set(self)

    def of(self, executor: object) -> Exception | None:
        """How an executor failed in this call or in one around it."""
        failures: _Failures | None = self
        while failures is not None:
            if (error := failures.found.get(id(executor))) is not None:
                return error
            failures = failures.outer
        return None


_current: ContextVar[_Failures | None] = ContextVar("penstock_fallback", default=None)


def fallback(*others: tuple[str, Executor[Any, Any]], when: Callable[[Exception], bool] = worth_another) -> Policy:
    """Go on with the next of `others`, each a name and its executor, after a failure for which `when(error)` holds.

    A failure after any part of an answer was told is final: an answer never starts twice. Each step tells `Switched`.
    Where all fail the last error is raised, with the earlier ones as its notes. Fallbacks that lead to each other end:
    one whose executor has failed in this call raises that error again, and calls nothing. Only a `PenstockError` is
    looked at; every other one is a mistake in the program, and passes.
    """

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            failures = _Failures()
            if (known := failures.of(call)) is not None:
                raise known
            start, rest = Start.of(run), iter(others)
            heard, earlier = run.telling(start.tell), list[str]()
            name, chosen, key = "", executor, call
            with failures:
                while True:
                    try:
                        return await chosen(request, heard)
                    except PenstockError as error:
                        failures.add(key, error)
                        noted(error, earlier)
                        following = next((other for other in rest if failures.of(other[1]) is None), None)
                        if following is None or start.over or not when(error):
                            raise
                        earlier.append(failed_before(repr(name) if name else "the first", error))
                        name, chosen = following
                        key = chosen
                        await run.emit(Switched(to=name, error=error))

        return call

    return policy
