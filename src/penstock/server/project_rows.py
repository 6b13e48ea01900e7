"""Projects and their tasks as they are served."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from penstock.llms.prices import usd
from penstock.server.projects import Kept
from penstock.server.sse import usage_json
from penstock.store.steps import CANCELLED, FAILED, PENDING, RUNNING
from penstock.tasks.engines import Engine, RunState, RunStatus
from penstock.tasks.engines.past import ENDED
from penstock.tasks.report import report_of
from penstock.tasks.results import ExecutionResult, ExecutionStatus

OVER = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
UNTOLD = frozenset(
    {ExecutionStatus.IN_PROGRESS, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED, ExecutionStatus.UNKNOWN}
)
"""A task that stands so may have begun without a result that says when."""
NEAR, PAGE = 5, 1000


def summary_row(status: RunStatus) -> dict[str, Any]:
    """A project as it is listed; `created_at` is in seconds since 1970."""
    about = {"id": status.run, "object": "project", "name": status.part(Kept).project.name}
    return {**about, "status": status.state, "created_at": int(status.at)}


async def project_row(engine: Engine, status: RunStatus) -> dict[str, Any]:
    """A project with all that is known of it: how its tasks stand, and what they used and cost in USD."""
    project = status.payload["project"]
    report = report_of(replace(status, payload=project))
    results = report.results
    if any(result.started_at is None and result.status in UNTOLD for result in results):
        times = await _times(engine, status)
        results = tuple(_timed(result, *times.get(result.task, (None, None))) for result in results)
    began = [result.started_at for result in results if result.started_at is not None]
    tasks = {task["id"]: task for task in project["tasks"]}
    return {
        **summary_row(status),
        "goal": project.get("goal", ""),
        "error": status.value if status.state in (RunState.FAILED, RunState.CANCELLED) else None,
        "counts": report.counts,
        "usage": usage_json(report.usage),
        "cost_usd": None if report.cost is None else usd(report.cost),
        "started_at": min(began, default=report.started_at),
        "completed_at": await _end(engine, status) if status.state in OVER else None,
        "offset": status.offset,
        "tasks": [_task_row(result, tasks.get(result.task, {})) for result in results],
    }


async def _times(engine: Engine, status: RunStatus) -> dict[str, tuple[datetime | None, datetime | None]]:
    """When each task last began, and ended without success, as the log has it."""
    found: dict[str, tuple[datetime | None, datetime | None]] = {}
    after = 0
    while after < status.offset and (page := await engine.events(status.run, after=after, limit=PAGE)):
        for entry in page:
            if entry.step is not None and entry.state == RUNNING:
                found[entry.step] = _moment(entry.at), None
            elif entry.step is not None and entry.state == PENDING:
                found.pop(entry.step, None)
            elif entry.step in found and entry.state in (FAILED, CANCELLED):
                found[entry.step] = found[entry.step][0], _moment(entry.at)
        after = page[-1].offset
    return found


async def _end(engine: Engine, status: RunStatus) -> datetime | None:
    """When a run ended: hardly anything is logged behind that."""
    for near in (NEAR, PAGE):
        for entry in reversed(await engine.events(status.run, after=max(0, status.offset - near), limit=near)):
            if entry.kind == ENDED:
                return _moment(entry.at)
    return None


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _timed(result: ExecutionResult, began: datetime | None, ended: datetime | None) -> ExecutionResult:
    """A result with its times, where it says none itself and its task ran."""
    if result.started_at is not None or result.status not in UNTOLD:
        return result
    return replace(result, started_at=began, completed_at=ended)


def _task_row(result: ExecutionResult, task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": result.task,
        "status": result.status,
        "agent": result.agent or task.get("agent"),
        "depends_on": task.get("depends_on", []),
        "output": result.output,
        "error": result.error,
        "attempts": result.attempts,
        "usage": usage_json(result.usage),
        "cost_usd": None if result.cost is None else usd(result.cost),
        "started_at": result.started_at,
        "completed_at": result.completed_at,
    }
