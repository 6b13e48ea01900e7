"""What is said below the tasks of a run: why some failed, and which command goes on with it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from textwrap import wrap

from msgspec.structs import replace

from penstock.cli.check import console
from penstock.cli.view import one_line
from penstock.store.steps import BLOCKED, CANCELLED, FAILED, PENDING, SUCCEEDED, UNKNOWN, Step
from penstock.tasks.engines import RunState, RunStatus
from penstock.tasks.engines.past import interrupted
from penstock.tasks.project import ProjectSpec
from penstock.tasks.report import Report, why
from penstock.tasks.results import ExecutionStatus

HOPELESS = frozenset({FAILED, CANCELLED, BLOCKED, UNKNOWN})
MOST_REASONS = 20
LONGEST = 2000


def at_rest(status: RunStatus) -> RunStatus:
    """A run as it stands: where its process died, no task of it is in progress any more."""
    if status.state is not RunState.INTERRUPTED:
        return status
    left = {change.step: Step(change.state, change.value) for change in interrupted(status.steps)}
    return replace(status, steps={**status.steps, **left}) if left else status


def resuming(run: str) -> str:
    """The command that goes on with a run."""
    return shlex.join(["penstock", "project", "resume", run])


def retrying(run: str, *tasks: str) -> str:
    """The command that does again what failed in a run, or these tasks."""
    return shlex.join(["penstock", "project", "retry", run, *tasks])


def reasons(report: Report) -> Iterator[str]:
    """Why tasks failed, in full, a line for each."""
    failed = [result for result in report.results if result.status is ExecutionStatus.FAILED]
    for result in failed[:MOST_REASONS]:
        yield one_line(f"{result.task}: {why(result)}", LONGEST)
    if len(failed) > MOST_REASONS:
        yield f"and {len(failed) - MOST_REASONS} more that failed"


def advice(spec: ProjectSpec, status: RunStatus) -> Iterator[str]:
    """How to go on with a run that rests, a line for each way; nothing where all succeeded or it still goes on."""
    if status.state in {RunState.RUNNING, RunState.PAUSED}:
        return
    steps = at_rest(status).steps
    if status.state is RunState.INTERRUPTED and may_go(spec, steps):
        yield f"go on with it: {resuming(status.run)}"
    if any(step.state in {FAILED, CANCELLED} for step in steps.values()):
        yield f"do again what failed: {retrying(status.run)}"
    yield from doubts(status.run, steps)


def doubts(run: str, steps: Mapping[str, Step]) -> Iterator[str]:
    """Which tasks nobody does again unasked, as they may have had their effects."""
    unknown = [name for name, step in steps.items() if step.state == UNKNOWN]
    for name in unknown[:MOST_REASONS]:
        yield f"{one_line(name)} may have had its effects: look, then `{retrying(run, name)}`"
    if len(unknown) > MOST_REASONS:
        yield f"and {len(unknown) - MOST_REASONS} more may have had theirs"


def may_go(spec: ProjectSpec, steps: Mapping[str, Step]) -> bool:
    """Whether something is left that needs nothing which did not succeed, or nothing is left at all."""
    graph, over = spec.graph(), set[str]()
    for name in graph.order:
        state = steps[name].state if name in steps else PENDING
        if state in HOPELESS or not over.isdisjoint(graph.dependencies[name]):
            over.add(name)
        elif state != SUCCEEDED:
            return True
    return not over


def say(text: str) -> None:
    """Print a line; on a terminal it is broken between words, and goes on indented."""
    print("\n".join(wrapped(text, console().width)) if sys.stdout.isatty() else text)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A text as lines that are broken between words."""
    return wrap(
        text,
        max(20, width - 1),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
