"""The pages of projects: begin one, look at it, follow its log, cancel it, let a task run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from penstock.errors import Forbidden, Invalid, NotFound
from penstock.llms.prices import usd
from penstock.run import LOCAL, Principal
from penstock.server.auth import Auth, demand
from penstock.server.body import read_body
from penstock.server.client import ClientGone, Manner
from penstock.server.endpoints import LONGEST_KEY
from penstock.server.feed import Feed, entry_row
from penstock.server.sse import usage_json
from penstock.server.wire import shutting_down

if TYPE_CHECKING:
    from penstock.server.projects import Projects
    from penstock.tasks.engines import RunStatus
    from penstock.tasks.results import ExecutionResult

SCOPE = "projects"
FACTS = "penstock.facts"
"""Where a page leaves in its scope what the log is to say of it."""
Authorization = Annotated[str | None, Header(description="Bearer token, when the server has tokens")]
Key = Annotated[
    str | None,
    Header(description="One caller's requests under one key begin one project", min_length=1, max_length=LONGEST_KEY),
]
Offset = Annotated[int, Query(ge=0, description="The offset of the last entry that was read")]
LastId = Annotated[int | None, Header(ge=0, description="The same, as browsers send it when they connect again")]


@dataclass(frozen=True, slots=True)
class Intake:
    """What is taken from whom: bodies of at most so many bytes, browsers from these origins, nothing when not ready."""

    most_bytes: int
    origins: frozenset[bytes]
    manner: Manner
    ready: Callable[[], bool]


def project_pages(projects: Projects | None, auth: Auth, intake: Intake) -> APIRouter:
    """The pages of these projects; without any each says so."""
    pages, router = _Pages(projects, auth, intake), APIRouter(tags=["projects"])
    for prefix in ("/v1", ""):
        for path, method, page, summary, more in (
            ("", "POST", pages.begin, "Begin a project", {"status_code": 202, "openapi_extra": _BODY}),
            ("", "GET", pages.list, "List your projects", {}),
            ("/{project}", "GET", pages.one, "A project and its tasks", {}),
            ("/{project}/events", "GET", pages.events, "What happened in a project", {}),
            ("/{project}/cancel", "POST", pages.cancel, "Cancel a project", {}),
            ("/{project}/tasks/{task:path}/retry", "POST", pages.retry, "Let a task run again", {}),
        ):
            options: dict[str, Any] = {"summary": summary, "include_in_schema": bool(prefix), **more}
            router.add_api_route(f"{prefix}/projects{path}", page, methods=[method], **options)
    return router


class _Pages:
    def __init__(self, projects: Projects | None, auth: Auth, intake: Intake) -> None:
        self._projects, self._auth, self._intake = projects, auth, intake

    async def begin(
        self, request: Request, authorization: Authorization = None, idempotency_key: Key = None
    ) -> Response:
        """Begin a project, which goes on whether or not its client stays."""
        projects, principal = self._admitted(request, authorization)
        intake, headers = self._intake, dict(request.scope["headers"])
        try:
            body = await read_body(
                request.receive, headers, limit=intake.most_bytes, within_s=intake.manner.write_stall_s
            )
        except ClientGone:
            return Response(status_code=499)
        status = await projects.begin(principal, body, idempotency_key)
        request.scope[FACTS] |= {"project": status.run, "tasks": len(status.payload["project"]["tasks"])}
        return _json(project_row(status), 202, location=f"/v1/projects/{status.run}")

    async def list(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(description="The id of the last project that was read")] = None,
        authorization: Authorization = None,
    ) -> Response:
        """The newest first, page by page."""
        projects, principal = self._admitted(request, authorization)
        found = await projects.list(principal)
        if after is not None:
            place = next((number for number, one in enumerate(found, 1) if one.run == after), None)
            if place is None:
                raise Invalid(f"you have no project {after[:100]!r}: give the id of one", param="after")
            found = found[place:]
        rows = [_summary(one) for one in found[:limit]]
        return _json({"object": "list", "data": rows, "has_more": len(found) > limit})

    async def one(self, project: str, request: Request, authorization: Authorization = None) -> Response:
        """How a project and each of its tasks stand."""
        projects, principal = self._admitted(request, authorization)
        _, status = await projects.find(principal, project)
        request.scope[FACTS]["project"] = project
        return _json(project_row(status))

    async def events(
        self,
        project: str,
        request: Request,
        *,
        after: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        last_event_id: LastId = None,
        authorization: Authorization = None,
    ) -> Response:
        """A page of the log behind an offset; with `Accept: text/event-stream` a stream until the project ends."""
        projects, principal = self._admitted(request, authorization)
        engine, status = await projects.find(principal, project)
        request.scope[FACTS]["project"] = project
        after = after if last_event_id is None else last_event_id
        if "text/event-stream" in request.headers.get("accept", ""):
            return Feed(engine, status.run, after=after, manner=self._intake.manner, closing=projects.closing)
        found = await engine.events(status.run, after=after, limit=limit)
        last = found[-1].offset if found else after
        return _json({"object": "list", "data": [entry_row(one) for one in found], "next": last})

    async def cancel(self, project: str, request: Request, authorization: Authorization = None) -> Response:
        """Cancel a project, whichever process of the server runs it."""
        projects, principal = self._admitted(request, authorization)
        status = await projects.cancel(principal, project)
        request.scope[FACTS]["project"] = project
        return _json(project_row(status))

    async def retry(self, project: str, task: str, request: Request, authorization: Authorization = None) -> Response:
        """Let a task that did not succeed run again, and those that it blocked; the project goes on."""
        projects, principal = self._admitted(request, authorization)
        status = await projects.retry(principal, project, task)
        request.scope[FACTS]["project"] = project
        return _json(project_row(status), 202)

    def _admitted(self, request: Request, authorization: str | None) -> tuple[Projects, Principal]:
        """Who asks; raises `RequestError` for one who may not."""
        if request.method == "POST" and not self._intake.ready():
            raise shutting_down("the server is shutting down")
        principal = self._auth.principal(authorization.encode() if authorization else None)
        request.scope[FACTS] = {"by": principal.name}
        demand(principal, SCOPE)
        if principal is LOCAL and request.method == "POST":
            self._demand_origin(request)
        if self._projects is None:
            raise NotFound("this server runs no projects", code="no_agents")
        return self._projects, principal

    def _demand_origin(self, request: Request) -> None:
        """Refuse a page of another site: where no token is asked for, its reader's browser would do as it says."""
        origin = request.headers.get("origin")
        if origin is None or urlsplit(origin).netloc == request.headers.get("host"):
            return
        if not {origin.encode(), b"*"} & self._intake.origins:
            raise Forbidden(
                f"a page of {origin[:100]!r} may not do this: name it in server.cors_origins", code="foreign_origin"
            )


def _json(body: Any, status: int = 200, **headers: str) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _summary(status: RunStatus) -> dict[str, Any]:
    """A project as it is listed; `created_at` is in seconds since 1970."""
    about = {"id": status.run, "object": "project", "name": status.payload["project"]["name"]}
    return {**about, "status": status.state, "created_at": int(status.at)}


def project_row(status: RunStatus) -> dict[str, Any]:
    """A project with all that is known of it: how its tasks stand, and what they used and cost in USD."""
    from penstock.tasks.report import report_of

    project = status.payload["project"]
    report = report_of(msgspec.structs.replace(status, payload=project))
    tasks = {task["id"]: task for task in project["tasks"]}
    return {
        **_summary(status),
        "goal": project.get("goal", ""),
        "error": status.value if status.state in ("failed", "cancelled") else None,
        "counts": report.counts,
        "usage": usage_json(report.usage),
        "cost_usd": None if report.cost is None else usd(report.cost),
        "started_at": report.started_at,
        "completed_at": report.completed_at,
        "offset": status.offset,
        "tasks": [_task_row(result, tasks.get(result.task, {})) for result in report.results],
    }


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


_TEXT: dict[str, Any] = {"type": "string"}
_TEXTS: dict[str, Any] = {"type": "array", "items": _TEXT}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["name", "tasks"],
                    "properties": {
                        "name": _TEXT,
                        "goal": _TEXT,
                        "defaults": {"type": "object"},
                        "limits": {"type": "object"},
                        "tasks": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["id", "description"],
                                "properties": {
                                    "id": _TEXT,
                                    "description": _TEXT,
                                    "agent": _TEXT,
                                    "capabilities": _TEXTS,
                                    "depends_on": _TEXTS,
                                    "success_criteria": _TEXTS,
                                },
                            },
                        },
                    },
                    "example": {
                        "name": "notes",
                        "tasks": [
                            {"id": "draft", "description": "Draft the release notes", "agent": "writer"},
                            {"id": "check", "description": "Check them", "agent": "writer", "depends_on": ["draft"]},
                        ],
                    },
                }
            }
        },
    }
}
