"""Where a task can stand, how it may end, which changes are legal, and what a listener hears of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from penstock.outcome import Cancelled, Failed, Finished, Outcome


class State(StrEnum):
    """Where a task stands. `READY` ones are held back by a limit or a pause; `ENDING` ones wait to be committed."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    ENDING = "ending"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"


LEGAL: Mapping[State, frozenset[State]] = {
    State.WAITING: frozenset({State.READY, State.ENDING, State.BLOCKED}),
    State.READY: frozenset({State.RUNNING, State.ENDING}),
    State.RUNNING: frozenset({State.ENDING}),
    State.ENDING: frozenset({State.FINISHED, State.FAILED, State.CANCELLED}),
    State.FINISHED: frozenset(),
    State.FAILED: frozenset({State.WAITING}),
    State.CANCELLED: frozenset({State.WAITING}),
    State.BLOCKED: frozenset({State.WAITING}),
}


ENDS: Mapping[type[Any], State] = {
    Finished: State.FINISHED,
    Failed: State.FAILED,
    Cancelled: State.CANCELLED,
}
HOPELESS = frozenset({State.FAILED, State.CANCELLED, State.BLOCKED})


class Blocked(msgspec.Struct, frozen=True):
    """The task `by` failed or was cancelled, so this one never started; `via` is the need of its own on the way."""

    by: str
    via: str


End: TypeAlias = Outcome[Any] | Blocked


class Started(msgspec.Struct, frozen=True):
    """The work of a task begins."""

    task: str


class Ended(msgspec.Struct, frozen=True):
    """A task reached its end, which is committed."""

    task: str
    end: End


class Reopened(msgspec.Struct, frozen=True):
    """A retry took back the end of a task, or of one that blocked it: it waits again."""

    task: str


Change: TypeAlias = Started | Ended | Reopened


def unstored(batch: Iterable[Ended], error: Exception) -> list[Ended]:
    """What could not be committed: a result that may be lost is none."""
    return [Ended(each.task, Failed(error)) if isinstance(each.end, Finished) else each for each in batch]
