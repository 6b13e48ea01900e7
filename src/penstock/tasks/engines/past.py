"""What the log of a run says of it: how it ended, what its flow told, and what follows for one that nobody runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from penstock.errors import TaskFailed, UnknownName, UsageError
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.store.steps import (
    ABSENT,
    BEGUN,
    BLOCKED,
    CANCELLED,
    FAILED,
    PENDING,
    RESUMED,
    ROLLED_BACK,
    RUNNING,
    SUCCEEDED,
    UNKNOWN,
    Change,
    Logged,
    Look,
    Note,
    Step,
    Transitions,
)
from penstock.tasks.engines import Json, RunState, RunStatus
from penstock.tasks.engines.values import plain, read
from penstock.tasks.results import Fault
from penstock.tasks.states import End

ENDED: Final = "ended"
REOPENED: Final = "reopened"
PAUSED: Final = "paused"
UNPAUSED: Final = "unpaused"
RESERVED: Final = frozenset({BEGUN, RESUMED, ROLLED_BACK, ENDED, REOPENED, PAUSED, UNPAUSED})
"""The notes of a run itself, whose kinds a flow may not `emit`; `ENDED` has `{"state": ..., "value": ...}`."""

LEGAL: Final[Transitions] = {
    ABSENT: frozenset({RUNNING, BLOCKED, CANCELLED}),
    PENDING: frozenset({RUNNING, BLOCKED, CANCELLED}),
    RUNNING: frozenset({SUCCEEDED, FAILED, CANCELLED, UNKNOWN, PENDING}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset({PENDING}),
    CANCELLED: frozenset({PENDING}),
    BLOCKED: frozenset({PENDING}),
    UNKNOWN: frozenset({PENDING}),
}
"""A step is in the log from when it starts, or is found never to start."""

EFFECTS: Final = {"effects": True}
"""The value of a step that runs and has effects."""

_Offsets = tuple[int, Any] | None
"""Offsets, the last first, each with those before it."""


class Spec(msgspec.Struct, frozen=True):
    """What a run is stored with, its payload not read."""

    flow: str
    payload: msgspec.Raw


class Past(msgspec.Struct, frozen=True):
    """What the notes of a run come to: its end, if it has one, whether it is paused, where its emits are."""

    ended: RunState | None = None
    value: Json = None
    paused: bool = False
    emits: _Offsets = None

    @property
    def emitted(self) -> list[int]:
        """The offsets of what the flow emitted, in order."""
        found: list[int] = []
        at = self.emits
        while at is not None:
            found.append(at[0])
            at = at[1]
        return found[::-1]


def past_of(notes: Iterable[Logged]) -> Past:
    """The fold of the notes of a run, in which a roll-back counts."""
    now, history = Past(), [(0, Past())]
    for note in notes:
        now = _after(now, note, history)
        history.append((note.offset, now))
    return now


def _after(now: Past, note: Logged, history: list[tuple[int, Past]]) -> Past:
    match note.kind:
        case "ended":
            return Past(RunState(note.value["state"]), note.value["value"], emits=now.emits)
        case "reopened":
            return Past(emits=now.emits)
        case "paused" | "unpaused" | "resumed":
            return Past(now.ended, now.value, note.kind == PAUSED, now.emits)
        case "rolled_back":
            return next(then for offset, then in reversed(history) if offset <= note.value["to"])
        case "begun":
            return now
        case _:
            return Past(now.ended, now.value, now.paused, (note.offset, now.emits))


def status_of(look: Look) -> RunStatus:
    """A run as it is told to those who ask."""
    past = past_of(look.notes)
    if isinstance(look.spec, msgspec.Raw):
        spec = msgspec.json.decode(look.spec, type=Spec)
        flow, payload = spec.flow, spec.payload
    else:
        flow, payload = look.spec["flow"], look.spec["payload"]
    going = RunState.PAUSED if past.paused else RunState.RUNNING
    return RunStatus(
        run=look.name,
        flow=flow,
        payload=payload,
        state=past.ended or (RunState.INTERRUPTED if look.process is None else going),
        value=past.value,
        steps=look.steps,
        offset=look.offset,
        at=look.at,
    )


def fault_of(error: BaseException) -> Json:
    """An error as the fault that is stored, without details that are no JSON."""
    fault = Fault.of(error)
    try:
        return plain(fault, "a fault")
    except UsageError:
        message = fault.message.encode(errors="replace").decode()
        return plain(Fault(fault.type, message, fault.code, fault.retryable), "a fault")


def unfinished(code: str, message: str, details: Json = None) -> Json:
    """The fault of a step or run that was not let finish."""
    return fault_of(TaskFailed(message, code=code, details=details))


def failed_of(step: str, value: Json) -> TaskFailed:
    """The error of a step, from what is stored of it."""
    fault = msgspec.convert(read(value), Fault)
    return TaskFailed(
        fault.message or f"the step {step!r} failed",
        code=fault.code or "agent_failed",
        details=fault.details,
        retryable=fault.retryable,
    )


def outcome_of(name: str, step: Step) -> Outcome[Any] | None:
    """The end of a step, if it has one of its own."""
    if step.state == SUCCEEDED:
        return Finished(step.value)
    if step.state == CANCELLED:
        return Cancelled(failed_of(name, step.value).message)
    return Failed(failed_of(name, step.value)) if step.state in (FAILED, UNKNOWN) else None


def change_of(step: str, end: End) -> Change:
    """The end of a step as it is logged."""
    if isinstance(end, Finished):
        return Change(step, SUCCEEDED, end.result)
    if isinstance(end, Failed):
        return Change(step, FAILED, fault_of(end.error))
    if isinstance(end, Cancelled):
        return Change(step, CANCELLED, unfinished("cancelled", end.reason))
    through = "" if end.via == end.by else f", through {end.via!r}"
    text = f"{step!r} needs {end.by!r}{through}, which did not succeed: retry that one"
    return Change(step, BLOCKED, unfinished("blocked", text, {"by": end.by, "via": end.via}))


def interrupted(steps: Mapping[str, Step]) -> list[Change]:
    """What became of the steps that were interrupted while they ran."""
    return [
        _doubtful(name) if step.value is not None else Change(name, PENDING)
        for name, step in steps.items()
        if step.state == RUNNING
    ]


def _doubtful(step: str) -> Change:
    text = f"{step!r} was interrupted, and may have had its effects: look, then retry it"
    return Change(step, UNKNOWN, unfinished("outcome_unknown", text))


def cancelling(steps: Mapping[str, Step], reason: str, step: str | None) -> list[Change | Note]:
    """What cancels a run that nobody runs, or one of its steps, begun or not; nothing where that has ended."""
    if step is not None and step not in steps:
        return [Change(step, CANCELLED, unfinished("cancelled", reason))]
    given_up = {
        name: Change(name, CANCELLED, unfinished("cancelled", reason))
        for name, now in steps.items()
        if now.state in (PENDING, RUNNING)
    }
    given_up |= {change.step: change for change in interrupted(steps) if change.state == UNKNOWN}
    if step is not None:
        return [given_up[step]] if step in given_up else []
    ended = {"state": RunState.CANCELLED.value, "value": unfinished("cancelled", reason)}
    return [*given_up.values(), Note(ENDED, ended)]


def reopening(steps: Mapping[str, Step], step: str) -> list[Change]:
    """What takes back the end of a step, and of those it blocked. Raises `UsageError` where that cannot be."""
    now = steps.get(step)
    if now is None:
        raise UnknownName(f"there is no {step!r}, or it has not begun")
    if now.state not in (FAILED, CANCELLED, UNKNOWN):
        raise UsageError(f"{step!r} is {now.state}: only one that failed or was cancelled is retried")
    blocked = [
        name for name, other in steps.items() if other.state == BLOCKED and read(other.value)["details"]["by"] == step
    ]
    return [Change(name, PENDING) for name in (step, *blocked)]
