"""What a journal keeps: the states of steps and which may follow which, the entries of a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

ABSENT: Final = "absent"
PENDING: Final = "pending"
RUNNING: Final = "running"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
BLOCKED: Final = "blocked"
UNKNOWN: Final = "unknown"

Transitions = Mapping[str, frozenset[str]]
TRANSITIONS: Final[Transitions] = {
    ABSENT: frozenset({PENDING}),
    PENDING: frozenset({RUNNING, BLOCKED, CANCELLED, ABSENT}),
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED, UNKNOWN, PENDING}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset({PENDING, ABSENT}),
    CANCELLED: frozenset({PENDING, ABSENT}),
    BLOCKED: frozenset({PENDING, CANCELLED, ABSENT}),
    UNKNOWN: frozenset({PENDING, SUCCEEDED, FAILED, CANCELLED}),
}
"""The states a step may go to from each; one that nobody has named is `absent`, and one that is removed is so again."""

BEGUN: Final = "begun"
RESUMED: Final = "resumed"
ROLLED_BACK: Final = "rolled_back"
"""The notes that a journal writes itself: the first of a run with its steps, the last with `{"to": offset}`."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A step goes to a state; `value` (JSON) is what it has then: a result, an error, the reason it is blocked for."""

    step: str
    state: str
    value: Any = None


class Note(msgspec.Struct, frozen=True, gc=False):
    """Something to log that changes no state, of a kind the writer names; `value` is JSON."""

    kind: str
    value: Any = None
    step: str | None = None


class Step(msgspec.Struct, frozen=True, gc=False):
    """How a step stands."""

    state: str
    value: Any = None


class Logged(msgspec.Struct, frozen=True, gc=False):
    """An entry of a run's log: a change (`step` and `state`) or a note (`kind`).

    `offset` counts from 1 without gaps, `at` is in seconds since 1970.
    """

    offset: int
    at: float
    step: str | None
    state: str | None
    kind: str | None
    value: Any


class RunRow(msgspec.Struct, frozen=True, gc=False):
    """A run of a journal: when it began (seconds since 1970), and the last offset of its log."""

    name: str
    spec: Any
    at: float
    offset: int


class Look(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A run as it stands at one moment: its notes that are of no step, and the process that holds it.

    `process` is None where none does that lives, 0 where its id is not known.
    """

    name: str
    spec: Any
    at: float
    offset: int
    notes: list[Logged]
    steps: dict[str, Step] = {}
    process: int | None = None
