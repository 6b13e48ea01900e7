"""`Board`: what is known of each task of a run, folded from its log and from what its tasks tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from penstock.events import Chunks, Event, Retrying, Text, Used, summed
from penstock.store.steps import ABSENT, Logged, Step
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import STATUS, result_of
from penstock.tasks.results import ExecutionResult, ExecutionStatus

PENDING, RUNNING = ExecutionStatus.PENDING, ExecutionStatus.IN_PROGRESS
TROUBLES = frozenset({ExecutionStatus.FAILED, ExecutionStatus.UNKNOWN})
TAIL = 400  # characters of a task's text that are kept to be shown
MOST = 300
NAMED = 8


@dataclass(slots=True)
class Row:
    """A task: `began` in seconds since 1970, `words` are what is to be said of it."""

    task: str
    agent: str = ""
    status: ExecutionStatus = PENDING
    began: float | None = None
    seconds: float | None = None
    attempts: int = 0
    tokens: int = 0
    cost: Decimal | None = Decimal(0)
    words: str = ""

    def lasts(self, now: float) -> float | None:
        """For how many seconds it runs, or ran."""
        if self.status is RUNNING and self.began is not None:
            return max(0.0, now - self.began)
        return self.seconds

    def reopen(self) -> None:
        """It has not begun, or not again."""
        self.began = self.seconds = None
        self.attempts, self.tokens, self.cost, self.words = 0, 0, Decimal(0), ""

    def begin(self, at: float | None) -> None:
        """It runs; it may have been heard of before, and since when is not known of what another process began."""
        self.began, self.attempts = at, self.attempts or 1

    def end(self, result: ExecutionResult, at: float | None) -> None:
        """It is over, at a time that counts where the result does not say one."""
        if result.attempts:
            self.agent, self.attempts = result.agent or self.agent, result.attempts
            self.tokens, self.cost = result.usage.total, result.cost
        self.seconds = result.duration
        if self.seconds is None and self.began is not None and at is not None:
            self.seconds = max(0.0, at - self.began)
        fault = result.error
        if fault is None:
            self.words = one_line(result.output)
        else:
            code = "" if fault.code in {None, result.status} else f"{fault.code}: "
            self.words = one_line(f"{code}{fault.message}")


class Board:
    """The tasks of a project in the order of its file, and how many of them are in each state."""

    def __init__(
        self, spec: ProjectSpec, steps: Mapping[str, Step], *, agents: Mapping[str, str] | None = None
    ) -> None:
        who = agents or {task.id: spec.defaults.fill(task).agent or "" for task in spec.tasks}
        self.rows = {task.id: Row(task.id, who.get(task.id, "")) for task in spec.tasks}
        self.counts = Counter({PENDING: len(self.rows)})
        self.running: dict[str, Row] = {}
        self.troubles: dict[str, Row] = {}
        self._places: dict[str, Row | None] = {}
        for name, step in steps.items():
            if name not in self.rows or STATUS.get(step.state) is not PENDING:
                self._set(name, step)

    @property
    def ended(self) -> int:
        """How many tasks neither run nor wait to."""
        return len(self.rows) - self.counts[PENDING] - self.counts[RUNNING]

    def used(self) -> tuple[int, Decimal | None]:
        """The tokens of all tasks, and what they cost in USD: None where a price is not known."""
        tokens, cost, known = 0, Decimal(0), True
        for row in self.rows.values():
            tokens += row.tokens
            if row.cost is None:
                known = False
            elif row.cost:
                cost += row.cost
        return tokens, cost if known else None

    def log(self, entry: Logged) -> Row | None:
        """Take in an entry of the log; the task whose state it changed."""
        if entry.step is None or entry.state is None:
            return None
        return self._set(entry.step, Step(entry.state, entry.value), entry.at)

    def hear(self, event: Event) -> None:
        """Take in what a task tells while it runs."""
        path = getattr(event, "path", "")
        row = self._at(path) if path else None
        if row is None or row.status not in {PENDING, RUNNING}:
            return
        if isinstance(event, Chunks | Text):
            row.words = (row.words + event.text)[-TAIL:]
        elif isinstance(event, Used):
            row.tokens += event.usage.total
            row.cost = summed(row.cost, event)
        elif isinstance(event, Retrying) and path == row.task:
            row.attempts, row.words = event.attempt, f"again in {event.wait_s:.1f} s: {event.error} "

    def _set(self, name: str, step: Step, at: float | None = None) -> Row:
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = Row(name)
            self.counts[PENDING] += 1
        self.counts[row.status] -= 1
        self.running.pop(name, None)
        self.troubles.pop(name, None)
        if step.state == ABSENT:
            del self.rows[name]
            self._places.clear()
            return row
        row.status = STATUS[step.state]
        self.counts[row.status] += 1
        if row.status is RUNNING:
            row.begin(at)
            self.running[name] = row
        elif row.status is PENDING:
            row.reopen()
        else:
            row.end(result_of(name, step), at)
        if row.status in TROUBLES:
            self.troubles[name] = row
        return row

    def _at(self, path: str) -> Row | None:
        """Whose path this is: a task's name may have slashes in it."""
        if path not in self._places:
            cuts = [place for place, letter in enumerate(path) if letter == "/"]
            names = (path[:cut] for cut in (len(path), *reversed(cuts)))
            self._places[path] = next((self.rows[name] for name in names if name in self.rows), None)
        return self._places[path]


def one_line(value: Any, most: int = MOST) -> str:
    """A value as the start of one line, without what would steer a terminal."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 2 * most]).split())[:most]


def unsteering(text: str) -> str:
    """Lines without what would steer a terminal."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def some(names: Iterable[str]) -> str:
    """The first of these names, and how many there are besides."""
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - NAMED} more" if len(quoted) > NAMED else ""
    return ", ".join(quoted[:NAMED]) + more


def money(cost: Decimal | None) -> str:
    """USD as they are shown; nothing where there are none."""
    return "$?" if cost is None else f"${cost:.4f}" if cost else ""


def said(row: Row) -> str:
    """What became of a task, in a line for those who have no terminal."""
    text = f"{one_line(row.task)}: {worded(row.status)}"
    if row.status is RUNNING:
        return f"{text} ({one_line(row.agent)})" if row.agent else text
    facts = ["" if row.seconds is None else f"{row.seconds:.1f} s", f"{row.tokens:,} tokens" if row.tokens else ""]
    facts += [money(row.cost), f"{row.attempts} attempts" if row.attempts > 1 else ""]
    known = ", ".join(fact for fact in facts if fact)
    text += f" ({known})" if known else ""
    return f"{text}: {row.words}" if row.words and row.status is not ExecutionStatus.SUCCESS else text


def worded(status: str) -> str:
    """A status as it is read."""
    return status.replace("_", " ")
