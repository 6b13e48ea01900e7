"""`fallback`: other executors, in their order, for a call that failed before anything of its answer was told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

from penstock.errors import BadAnswer, BadRequest, PenstockError, Transient, Unauthorized
from penstock.events import Switched
from penstock.policies import Policy
from penstock.policies.retry import Start
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


OF_ONE_MODEL = {"unsupported_parameter", "model_not_found", "NOT_FOUND"}
"""The codes of a `BadRequest` that speaks of one model, not of the request: a field it has no words for, its name."""


def worth_another(error: Exception) -> bool:
    """Whether another executor may do better: not where the caller is at fault, nor where a limit of ours refused.

    So it is after `Transient`, `Unauthorized` and `BadAnswer`, after a `BadRequest` that only one model has to do with
    (`OF_ONE_MODEL`), and after whatever else says that it is `retryable`.
    """
    if isinstance(error, Transient | Unauthorized | BadAnswer) or only_of_one(error):
        return True
    return isinstance(error, PenstockError) and error.retryable


def only_of_one(error: Exception) -> bool:
    """Whether an error says that one model cannot take a request that another may."""
    return isinstance(error, BadRequest) and error.code in OF_ONE_MODEL


def telling(error: PenstockError, earlier: Sequence[PenstockError]) -> PenstockError:
    """The error to raise where all have failed: the last one, unless that one is `only_of_one`.

    Then it is the first that is not, for it is what keeps the caller from an answer; else the first of all.
    """
    if not only_of_one(error):
        return error
    best = next((one for one in earlier if not only_of_one(one)), (*earlier, error)[0])
    if best is not error:
        noted(best, [f"after it, the last failed: {type(error).__name__}: {error}"])
    return best


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
    Where all fail the last error is raised, with the earlier ones as its notes; but for a field that the last one has
    no words for, the first error of a service. Fallbacks that lead to each other end: one whose executor has failed in
    this call raises that error again, and calls nothing. Only a `PenstockError` is looked at; every other one is a
    mistake in the program, and passes.
    """

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            failures = _Failures()
            if (known := failures.of(call)) is not None:
                raise known
            start, rest = Start.of(run), iter(others)
            heard, notes, earlier = run.telling(start.tell), list[str](), list[PenstockError]()
            name, chosen, key = "", executor, call
            with failures:
                while True:
                    try:
                        return await chosen(request, heard)
                    except PenstockError as error:
                        failures.add(key, error)
                        noted(error, notes)
                        if start.over or not when(error):
                            raise
                        following = next((other for other in rest if failures.of(other[1]) is None), None)
                        if following is None:
                            raise telling(error, earlier)  # noqa: B904  # it is raised as it was
                        notes.append(failed_before(repr(name) if name else "the first", error))
                        earlier.append(error)
                        name, chosen = following
                        key = chosen
                        await run.emit(Switched(to=name, error=error))

        return call

    return policy
