"""How many tasks run at once, and which of the ready ones start first: a queue that many limits hold back cheaply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import count

from penstock.errors import UsageError


def _no_keys(_: str) -> tuple[str, ...]:
    return ()


def _equal(_: str) -> float:
    return 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tasks run at once, in `total` and for `each` key, such as an agent or a provider; None for no limit.

    `keys_of` says which keys a task counts for; a key without a limit is free. Among tasks that are held back, those
    of a higher `priority_of` start first, then those that are ready longer. Raises `UsageError` for a limit below 1.
    """

    total: int | None = None
    each: Mapping[str, int] = field(default_factory=dict[str, int])
    keys_of: Callable[[str], Iterable[str]] = _no_keys
    priority_of: Callable[[str], float] = _equal

    def __post_init__(self) -> None:
        for name, limit in (("in total", self.total), *self.each.items()):
            if limit is not None and limit < 1:
                raise UsageError(f"a limit of {limit!r} ({name}) lets nothing run: give at least 1, or leave it out")


class _Key:
    """A key's free places, and the lanes that found none."""

    __slots__ = ("free", "parked")

    def __init__(self, limit: int) -> None:
        self.free = limit
        self.parked: list[tuple[float, int, _Lane]] = []


class _Lane:
    """The ready tasks that count for the same limited keys, the first on top."""

    __slots__ = ("heap", "keys")

    def __init__(self, keys: Sequence[_Key]) -> None:
        self.keys = keys
        self.heap: list[tuple[float, int, str]] = []


class ReadyQueue:
    """The ready tasks of a run in the order they may start, and what runs of them.

    A lane stands in `_open` with its first task, or is parked at one key that is full; each freed place brings back
    one parked lane. So a task costs a few heap operations, however many others the limits hold back.
    """

    __slots__ = ("_entered", "_free", "_keys", "_lanes", "_limits", "_numbers", "_open", "_waiting")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = float("inf") if limits.total is None else limits.total
        self._keys = {key: _Key(limit) for key, limit in limits.each.items()}
        self._lanes: dict[tuple[str, ...], _Lane] = {}
        self._open: list[tuple[float, int, _Lane]] = []
        self._waiting: dict[str, tuple[float, int, str]] = {}
        self._entered: dict[str, _Lane] = {}
        self._numbers = count()

    def put(self, task: str) -> None:
        """Add a task that is ready."""
        keys = tuple(self._limits.keys_of(task))
        lane = self._lanes.get(keys) or self._lane(keys)
        place = (-self._limits.priority_of(task), next(self._numbers), task)
        self._waiting[task] = place
        heappush(lane.heap, place)
        if lane.heap[0] is place:
            heappush(self._open, (place[0], place[1], lane))

    def drop(self, task: str) -> None:
        """Take a task out that is still here; its place in the heap is passed over later."""
        self._waiting.pop(task, None)

    def take(self) -> str | None:
        """The first task that the limits let start, which now counts for them; None when there is none."""
        while self._open and self._free:
            entry = self._open[0]
            lane = entry[2]
            if not lane.heap or lane.heap[0][1] != entry[1]:  # another entry of this lane was faster
                heappop(self._open)
                self._unpark(lane)
                continue
            place = lane.heap[0]
            task = place[2]
            dropped = self._waiting.get(task) is not place
            full = None if dropped else next((key for key in lane.keys if not key.free), None)
            if full is not None:
                heappush(full.parked, heappop(self._open))
                self._unpark(lane)
                continue
            heappop(lane.heap)
            if lane.heap:
                heapreplace(self._open, (*lane.heap[0][:2], lane))
            else:
                heappop(self._open)
            if dropped:
                self._unpark(lane)
                continue
            self._free -= 1
            for key in lane.keys:
                key.free -= 1
            del self._waiting[task]
            self._entered[task] = lane
            return task
        return None

    def leave(self, task: str) -> None:
        """Free the places of a task that was taken."""
        lane = self._entered.pop(task)
        self._free += 1
        for key in lane.keys:
            key.free += 1
        self._unpark(lane)

    def _lane(self, keys: tuple[str, ...]) -> _Lane:
        limited = tuple(dict.fromkeys(key for key in keys if key in self._keys))
        lane = self._lanes.get(limited)
        if lane is None:
            lane = self._lanes[limited] = _Lane([self._keys[key] for key in limited])
        self._lanes[keys] = lane
        return lane

    def _unpark(self, lane: _Lane) -> None:
        """Bring back one lane for each of this lane's keys that has a place free."""
        for key in lane.keys:
            if key.free and key.parked:
                heappush(self._open, heappop(key.parked))
