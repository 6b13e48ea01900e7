"""The pages of projects: begin one, look at it, follow its log, cancel it, let a task run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from penstock.errors import NotFound
from penstock.run import Principal
from penstock.server.auth import Auth, demand, demand_origin
from penstock.server.body import read_body
from penstock.server.client import ClientGone, Manner
from penstock.server.endpoints import LONGEST_KEY
from penstock.server.feed import Feed, entry_row
from penstock.server.wire import shutting_down

if TYPE_CHECKING:
    from penstock.server.projects import Projects

SCOPE = "projects"
FACTS = "penstock.facts"
"""Where a page leaves in its scope what the log is to say of it."""
Authorization = Annotated[str | None, Header(description="Bearer token, when the server has tokens")]
Key = Annotated[
    str | None,
    Header(description="One caller's requests under one key begin one project", min_length=1, max_length=LONGEST_KEY),
]
LAST = 2**32 - 1
"""The last offset that a journal can have."""
Offset = Annotated[int, Query(ge=0, le=LAST, description="The offset of the last entry that was read")]
LastId = Annotated[
    int | None, Header(ge=0, le=LAST, description="The same, as browsers send it when they connect again")
]


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
            ("", "POST", pages.begin, "Begin a project", {**_LATER, "openapi_extra": _BODY}),
            ("", "GET", pages.list, "List your projects", {}),
            ("/{project}", "GET", pages.one, "A project and its tasks", {}),
            ("/{project}/events", "GET", pages.events, "What happened in a project", {}),
            ("/{project}/cancel", "POST", pages.cancel, "Cancel a project", {}),
            ("/{project}/retry", "POST", pages.retry, "Let all that did not succeed run again", _LATER),
            ("/{project}/pause", "POST", pages.pause, "Start no more tasks of a project", {}),
            ("/{project}/resume", "POST", pages.resume, "Go on with a paused project", {}),
            ("/{project}/tasks/{task:path}/cancel", "POST", pages.cancel_task, "Cancel a task", {}),
            ("/{project}/tasks/{task:path}/retry", "POST", pages.retry_task, "Let a task run again", _LATER),
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
        request.scope[FACTS]["tasks"] = len(status.payload["project"]["tasks"])
        answer = await _row(projects, principal, status.run, request, 202)
        answer.headers["location"] = f"/v1/projects/{status.run}"
        return answer

    async def list(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(description="The id of the last project that was read")] = None,
        authorization: Authorization = None,
    ) -> Response:
        """The newest first, page by page."""
        projects, principal = self._admitted(request, authorization)
        found = await projects.list(principal, limit + 1, after)
        from penstock.server.project_rows import summary_row

        rows = [summary_row(one) for one in found[:limit]]
        return _json({"object": "list", "data": rows, "has_more": len(found) > limit})

    async def one(self, project: str, request: Request, authorization: Authorization = None) -> Response:
        """How a project and each of its tasks stand."""
        projects, principal = self._admitted(request, authorization)
        return await _row(projects, principal, project, request)

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
        engine, status = await projects.find(principal, project, tasks=False)
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
        await projects.cancel(principal, project)
        return await _row(projects, principal, project, request)

    async def cancel_task(
        self, project: str, task: str, request: Request, authorization: Authorization = None
    ) -> Response:
        """Cancel one task, which blocks those that need it; the project goes on with the others."""
        projects, principal = self._admitted(request, authorization)
        await projects.cancel(principal, project, task)
        return await _row(projects, principal, project, request)

    async def retry(self, project: str, request: Request, authorization: Authorization = None) -> Response:
        """Let every task that failed, was cancelled or is unknown run again, and what they blocked."""
        projects, principal = self._admitted(request, authorization)
        await projects.retry(principal, project)
        return await _row(projects, principal, project, request, 202)

    async def retry_task(
        self, project: str, task: str, request: Request, authorization: Authorization = None
    ) -> Response:
        """Let a task that did not succeed run again, and those that it blocked; the project goes on."""
        projects, principal = self._admitted(request, authorization)
        await projects.retry(principal, project, task)
        return await _row(projects, principal, project, request, 202)

    async def pause(self, project: str, request: Request, authorization: Authorization = None) -> Response:
        """Start no more tasks until the project is resumed, or the server starts again; those that run go on."""
        projects, principal = self._admitted(request, authorization)
        await projects.pause(principal, project)
        return await _row(projects, principal, project, request)

    async def resume(self, project: str, request: Request, authorization: Authorization = None) -> Response:
        """Go on with a project that was paused."""
        projects, principal = self._admitted(request, authorization)
        await projects.resume(principal, project)
        return await _row(projects, principal, project, request)

    def _admitted(self, request: Request, authorization: str | None) -> tuple[Projects, Principal]:
        """Who asks; raises `RequestError` for one who may not."""
        if request.method == "POST" and not self._intake.ready():
            raise shutting_down("the server is shutting down")
        principal = self._auth.principal(authorization.encode() if authorization else None)
        request.scope[FACTS] = {"by": principal.name}
        demand(principal, SCOPE)
        if request.method == "POST":
            demand_origin(principal, dict(request.scope["headers"]), self._intake.origins)
        if self._projects is None:
            raise NotFound("this server runs no projects", code="no_agents")
        return self._projects, principal


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _row(projects: Projects, principal: Principal, project: str, request: Request, status: int = 200) -> Response:
    """How a project and each of its tasks stand."""
    engine, found = await projects.find(principal, project)
    request.scope[FACTS]["project"] = project
    from penstock.server.project_rows import project_row

    return _json(await project_row(engine, found), status)


_LATER: dict[str, Any] = {"status_code": 202}
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
