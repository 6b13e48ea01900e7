"""`balance`: several deployments of one model share its calls; one that fails is left alone for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from time import monotonic
from typing import Any

from penstock.errors import PenstockError, Transient, Unauthorized, Unavailable, UsageError
from penstock.events import Switched
from penstock.policies.fallback import failed_before, noted, telling, worth_another
from penstock.policies.retry import Start
from penstock.run import Executor, Run


@dataclass(frozen=True, slots=True)
class Deployment:
    """One of the executors that can answer a call; it gets a share of the calls in proportion to its `weight`."""

    name: str
    executor: Executor[Any, Any]
    weight: float = 1.0


class _Place:
    """A deployment, how near its turn is, and until when (monotonic, s) it cools: as it asked, or as we assume."""

    __slots__ = ("asked", "assumed", "executor", "name", "turn", "weight")

    def __init__(self, deployment: Deployment) -> None:
        self.name, self.executor, self.weight = deployment.name, deployment.executor, deployment.weight
        self.turn = self.asked = self.assumed = 0.0

    @property
    def due(self) -> float:
        """When it has cooled."""
        return max(self.asked, self.assumed)


class _Pool:
    """The deployments: whose turn it is, and which of them cool."""

    __slots__ = ("_cooldown_s", "_places")

    def __init__(self, deployments: Sequence[Deployment], cooldown_s: float) -> None:
        self._places = [_Place(deployment) for deployment in deployments]
        self._cooldown_s = cooldown_s

    def order(self) -> Iterator[_Place]:
        """What one call tries: those whose turn it is, and at last one that cools, but did not ask for it."""
        tried: list[_Place] = []
        while (place := self._turn(tried)) is not None:
            tried.append(place)
            yield place
        now = monotonic()
        left = [place for place in self._places if place.asked <= now and place not in tried]
        if left:
            yield min(left, key=lambda place: place.assumed)

    def _turn(self, tried: Sequence[_Place]) -> _Place | None:
        """The one whose turn it is, of those that neither cool nor were tried; the turns of the heavy are spread."""
        now = monotonic()
        free = [place for place in self._places if place.due <= now and place not in tried]
        if not free:
            return None
        for place in free:
            place.turn += place.weight
        chosen = max(free, key=lambda place: place.turn)
        chosen.turn -= sum(place.weight for place in free)
        return chosen

    def refusal(self) -> Unavailable:
        """The error where nobody may be called."""
        wait = self._wait()
        return Unavailable(f"not called: each deployment asked to wait, the first for {wait:.1f} s", retry_after=wait)

    def hasten(self, error: PenstockError) -> None:
        """Let the error of the last one that was tried say when the first of all may be called."""
        if error.retry_after is not None:
            error.retry_after = min(error.retry_after, self._wait())

    def _wait(self) -> float:
        return max(0.0, min(place.due for place in self._places) - monotonic())

    def failed(self, place: _Place, error: PenstockError) -> None:
        """Leave a deployment alone after an error of its own: for as long as it asks, else for the usual time."""
        if not isinstance(error, Transient | Unauthorized) and not error.retryable:
            return
        if error.retry_after is None:
            place.assumed = max(place.assumed, monotonic() + self._cooldown_s)
        else:
            place.asked = max(place.asked, monotonic() + error.retry_after)


def balance(deployments: Sequence[Deployment], *, cooldown_s: float = 30.0) -> Executor[Any, Any]:
    """An executor that gives each call to one of `deployments`, in proportion to their weights.

    One that fails in passing, or does not accept its key, cools: for the `retry_after` of its error, else for
    `cooldown_s`. Before any part of an answer was told the call goes on with the next one, which tells `Switched`; each
    is tried once at most, and at last an error is raised as by `fallback`. A field that only one has no words for leads
    to the next one and cools nobody. When all cool, the one that
    is due first is tried nevertheless, of those that did not say themselves when to come back; where all said so,
    `Unavailable` is raised, whose `retry_after` is the time until the first is due. A cancelled call decides nothing.

    Raises `UsageError` for no deployments, two of one name, a weight that is not above 0, or less than no time.
    """
    _check(deployments, cooldown_s)
    pool = _Pool(deployments, cooldown_s)

    async def call(request: Any, run: Run, /) -> Any:
        order = pool.order()
        if (place := next(order, None)) is None:
            raise pool.refusal()
        start, notes, earlier = Start.of(run), list[str](), list[PenstockError]()
        heard = run.telling(start.tell)
        while True:
            cooling = place.assumed
            try:
                result = await place.executor(request, heard)
            except PenstockError as error:
                if not start.cancelled:
                    pool.failed(place, error)
                noted(error, notes)
                if start.over or not worth_another(error):
                    raise
                notes.append(failed_before(repr(place.name), error))
                if (place := next(order, None)) is None:
                    best = telling(error, earlier)
                    pool.hasten(best)
                    raise best  # noqa: B904  # it is raised as it was
                earlier.append(error)
                await run.emit(Switched(to=place.name, error=error))
            else:
                if place.assumed == cooling:  # nothing failed there since: it works again
                    place.assumed = 0.0
                return result

    return call


def _check(deployments: Sequence[Deployment], cooldown_s: float) -> None:
    names = [deployment.name for deployment in deployments]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"the deployments are {names!r}: give at least one, and each a name of its own")
    for deployment in deployments:
        if not (isfinite(deployment.weight) and deployment.weight > 0):
            raise UsageError(f"the weight of {deployment.name!r} is {deployment.weight!r}: give a number above 0")
    if not cooldown_s >= 0:
        raise UsageError(f"cooldown_s is {cooldown_s!r}: give at least 0 seconds")
