"""`Report`: how a project stands or ended, as text, as JSON, and as a picture of its graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from pydantic import ValidationError

from penstock.errors import UnknownName, UsageError
from penstock.messages import Usage, is_object
from penstock.store.steps import BLOCKED, CANCELLED, FAILED, PENDING, RUNNING, SUCCEEDED, UNKNOWN, Step
from penstock.tasks.engines import RunState, RunStatus
from penstock.tasks.graph import near
from penstock.tasks.project import ProjectSpec
from penstock.tasks.results import ExecutionResult, ExecutionStatus, Fault

STATUS: Final[Mapping[str, ExecutionStatus]] = {
    PENDING: ExecutionStatus.PENDING,
    RUNNING: ExecutionStatus.IN_PROGRESS,
    SUCCEEDED: ExecutionStatus.SUCCESS,
    FAILED: ExecutionStatus.FAILED,
    CANCELLED: ExecutionStatus.CANCELLED,
    BLOCKED: ExecutionStatus.BLOCKED,
    UNKNOWN: ExecutionStatus.UNKNOWN,
}
_CODES: Final[Mapping[str, str]] = {
    FAILED: "agent_failed",
    CANCELLED: "cancelled",
    BLOCKED: "blocked",
    UNKNOWN: "outcome_unknown",
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How the tasks of a project stand, each with its result, in the order of the graph.

    `counts` says how many there are of each status, `blocked` why a task could not start. `usage` and `cost` (USD;
    None where a price is not known) are those of all results. `critical` is the path of tasks, one after the other,
    that took longest.
    """

    name: str
    run: str
    state: RunState
    counts: Mapping[ExecutionStatus, int]
    results: tuple[ExecutionResult, ...]
    blocked: Mapping[str, str] = {}
    usage: Usage = msgspec.field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)
    started_at: datetime | None = None
    completed_at: datetime | None = None
    critical: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every task succeeded."""
        return all(result.ok for result in self.results)

    @property
    def duration(self) -> float | None:
        """Seconds from the first start to the last end."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()

    def __getitem__(self, task: str) -> ExecutionResult:
        """The result of a task; raises `UnknownName`."""
        for result in self.results:
            if result.task == task:
                return result
        raise UnknownName(f"the report has no task {task!r}: {near(task, (result.task for result in self.results))}")

    def summary(self) -> str:
        """The report in one line."""
        total = len(self.results)
        others = [f"{count} {_words(status)}" for status, count in self.counts.items() if status != "success"]
        done = f"{self.counts.get(ExecutionStatus.SUCCESS, 0)} of {total} tasks succeeded"
        parts = [", ".join([done, *others]), f"{self.usage.total:,} tokens", _money(self.cost)]
        if self.duration is not None:
            parts.append(f"{self.duration:.1f} s")
        return f"{self.state}: {'; '.join(parts)}"

    def markdown(self) -> str:
        """The report as Markdown: a table of the tasks, what went wrong, and what they gave."""
        lines = [f"# Project {self.name}", "", self.summary(), ""]
        lines += ["| task | agent | status | attempts | tokens | cost | seconds |", "|---|---|---|---|---|---|---|"]
        lines += map(_row, self.results)
        if self.critical:
            lines += ["", f"The longest way through it: {' -> '.join(self.critical)}."]
        wrong = [f"- `{result.task}`: {reason}" for result in self.results if (reason := why(result))]
        if wrong:
            lines += ["", "## What went wrong", "", *wrong]
        if judged := [line for result in self.results for line in _verdicts(result)]:
            lines += ["", "## Reviews", "", *judged]
        given = [result for result in self.results if result.ok and result.output is not None]
        if given:
            lines += ["", "## Results"]
        for result in given:
            lines += ["", f"### {result.task}", "", _shown(result.output)]
        return "\n".join(lines) + "\n"


def report_of(status: RunStatus) -> Report:
    """The report of a project's run, from what its engine says of it.

    A step whose task the project does not have stands at the end. Raises `UsageError` when it is no project.
    """
    return report_on(project_of(status.payload), status)


def report_on(spec: ProjectSpec, status: RunStatus) -> Report:
    """The report of a run, for the project as it stands now, whatever the run's payload says."""
    graph = spec.graph()
    steps = dict(status.steps)
    order = [*graph.order, *(name for name in steps if name not in graph.dependencies)]
    results = tuple(result_of(name, steps.get(name, Step(PENDING))) for name in order)
    began = [result.started_at for result in results if result.started_at is not None]
    ended = [result.completed_at for result in results if result.completed_at is not None]
    usage, cost = spent(results)
    return Report(
        name=spec.name,
        run=status.run,
        state=status.state,
        counts=dict(Counter(result.status for result in results)),
        results=results,
        blocked={r.task: why(r) for r in results if r.status is ExecutionStatus.BLOCKED},
        usage=usage,
        cost=cost,
        started_at=min(began) if began else datetime.fromtimestamp(status.at, UTC),
        completed_at=max(ended) if ended and status.state in _OVER else None,
        critical=_critical(graph.dependencies, {result.task: result.duration or 0.0 for result in results}),
    )


_OVER: Final = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


def project_of(payload: Any) -> ProjectSpec:
    """A project from the payload of its run; raises `UsageError` for one that is no project."""
    try:
        return ProjectSpec.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"this is no project: {where}: {first['msg']}; give a ProjectSpec as JSON") from None


def result_of(task: str, step: Step) -> ExecutionResult:
    """How a task stands, from its step: what it gave, or the fault that ended it."""
    status = STATUS[step.state]
    if step.state == SUCCEEDED:
        return msgspec.convert(step.value, ExecutionResult)
    if step.state not in _CODES:
        return ExecutionResult(task=task, status=status)
    fault = _fault(step)
    known = fault.details
    if is_object(known) and known.get("task") == task and "status" in known:
        return replace(msgspec.convert(known, ExecutionResult), status=status)
    return ExecutionResult(task=task, status=status, error=fault)


def _fault(step: Step) -> Fault:
    code = _CODES[step.state]
    if step.value is None:
        return Fault("TaskFailed", _words(STATUS[step.state]), code)
    fault = msgspec.convert(step.value, Fault)
    return fault if fault.code else replace(fault, code=code)


def spent(results: Iterable[ExecutionResult]) -> tuple[Usage, Decimal | None]:
    """What results used in all, and what that costs in USD; None where one cost nobody knows what."""
    usage, cost = Usage(), Decimal(0)
    known = True
    for result in results:
        usage = usage + result.usage
        known = known and result.cost is not None
        cost += result.cost or 0
    return usage, cost if known else None


def why(result: ExecutionResult) -> str:
    """Why a task has no output, in one line; empty where nothing is wrong."""
    if result.error is None or result.ok:
        return ""
    message = " ".join(result.error.message.split())
    return f"{_words(result.status)} ({result.error.code or result.error.type}): {message}"


def mermaid(spec: ProjectSpec, results: Iterable[ExecutionResult] = ()) -> str:
    """The graph of a project as a Mermaid flowchart, coloured by how its tasks stand."""
    graph, stands = spec.graph(), {result.task: result for result in results}
    agents = {task.id: spec.defaults.fill(task).agent for task in spec.tasks}
    ids = {task: f"t{number}" for number, task in enumerate(graph.order)}
    lines = ["flowchart TD"]
    for task in graph.order:
        label = "<br/>".join(map(_label, _about(task, agents[task], stands.get(task))))
        mark = f":::{stands[task].status}" if task in stands else ""
        lines.append(f'    {ids[task]}["{label}"]{mark}')
    lines += [f"    {ids[need]} --> {ids[task]}" for task in graph.order for need in graph.dependencies[task]]
    used = {result.status for result in stands.values()}
    lines += [f"    classDef {status} fill:{colour}" for status, colour in _COLOURS.items() if status in used]
    return "\n".join(lines) + "\n"


def tree(spec: ProjectSpec, results: Iterable[ExecutionResult] = ()) -> str:
    """The graph of a project as indented lines: each task once, below the last of those it needs."""
    graph, stands = spec.graph(), {result.task: result for result in results}
    agents = {task.id: spec.defaults.fill(task).agent for task in spec.tasks}
    place = {task: number for number, task in enumerate(graph.order)}
    below: dict[str | None, list[str]] = {}
    for task in graph.order:
        needs = graph.dependencies[task]
        below.setdefault(max(needs, key=place.__getitem__) if needs else None, []).append(task)
    lines: list[str] = []
    left = [(task, 0) for task in reversed(below.get(None, []))]
    while left:
        task, depth = left.pop()
        name, *about = _about(task, agents[task], stands.get(task))
        others = sorted(graph.dependencies[task], key=place.__getitem__)[:-1]
        about += [f"also after {', '.join(others)}"] if others else []
        lines.append(f"{'  ' * min(depth, _DEEPEST)}{name}" + (f"  ({'; '.join(about)})" if about else ""))
        left += [(other, depth + 1) for other in reversed(below.get(task, []))]
    return "\n".join(lines) + "\n"


_DEEPEST: Final = 30
_COLOURS: Final[Mapping[ExecutionStatus, str]] = {
    ExecutionStatus.PENDING: "#eee",
    ExecutionStatus.IN_PROGRESS: "#9cf",
    ExecutionStatus.SUCCESS: "#9e9",
    ExecutionStatus.FAILED: "#f99",
    ExecutionStatus.CANCELLED: "#ccc",
    ExecutionStatus.BLOCKED: "#fc9",
    ExecutionStatus.UNKNOWN: "#ff9",
}


def _about(task: str, agent: str | None, result: ExecutionResult | None) -> list[str]:
    """A task's name, who does it, and how it stands."""
    about = [task]
    if agent := (result.agent if result else "") or agent:
        about.append(agent)
    if result is not None:
        seconds = "" if result.duration is None else f", {result.duration:.1f} s"
        about.append(_words(result.status) + seconds)
    return about


def _critical(needs: Mapping[str, Sequence[str]], seconds: Mapping[str, float]) -> tuple[str, ...]:
    """The path that took longest; `needs` stands in any order, `seconds` with no task before its needs."""
    total: dict[str, float] = {}
    via: dict[str, str | None] = {}
    for task, own in seconds.items():
        longest = max(needs.get(task, ()), key=total.__getitem__, default=None)
        total[task], via[task] = own + (total[longest] if longest is not None else 0.0), longest
    at = max(total, key=total.__getitem__, default=None)
    if at is None or not total[at]:
        return ()
    path: list[str] = []
    while at is not None:
        path.append(at)
        at = via[at]
    return tuple(reversed(path))


def _row(result: ExecutionResult) -> str:
    seconds = "" if result.duration is None else f"{result.duration:.1f}"
    cells = (result.task, result.agent, _words(result.status), result.attempts, result.usage.total)
    shown = [*map(str, cells), _money(result.cost), seconds]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |"


def _verdicts(result: ExecutionResult) -> Iterator[str]:
    """What reviewers said of a task, a line each."""
    for review in result.reviews:
        said = f"does not accept it: {'; '.join(review.unmet)}" if review.unmet else "accepts it"
        yield f"- `{result.task}`, round {review.round}: {review.reviewer} {' '.join(said.split())}"


def _shown(output: Any) -> str:
    if isinstance(output, str):
        return output.strip()
    return f"```json\n{json.dumps(output, indent=2, ensure_ascii=False)}\n```"


def _money(cost: Decimal | None) -> str:
    return "unknown cost" if cost is None else f"${cost.quantize(Decimal('0.0001'))}"


def _words(status: ExecutionStatus) -> str:
    return status.replace("_", " ")


def _label(text: str) -> str:
    """Text as a label of Mermaid shows it."""
    for char, name in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(char, name)
    return " ".join(text.split())
