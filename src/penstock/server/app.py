"""The ASGI application: chat completions by hand, as they are hot; every other page through FastAPI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from penstock.config.tools import close_tools
from penstock.errors import Invalid, PenstockError, ToolError
from penstock.outcome import Cancelled, Failed
from penstock.policies.trace import trace
from penstock.run import Principal
from penstock.server.answering import respond
from penstock.server.auth import Auth, demand, demand_origin
from penstock.server.batch import batch_endpoint
from penstock.server.body import read_body
from penstock.server.client import ClientGone, Headers, Manner, Receive, Scope, Send
from penstock.server.endpoints import BATCH, CHAT, TOOL, Catalog, Endpoint, Work, chat_endpoint, tool_endpoint
from penstock.server.log import access
from penstock.server.pages import pages
from penstock.server.project_pages import FACTS, Intake, project_pages
from penstock.server.sse import fresh_id
from penstock.server.tracing import parent_of
from penstock.server.wire import answer_of, shutting_down

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from penstock.server.endpoints import Tools
    from penstock.server.projects import Projects

PROBES = frozenset(("/health", "/ready"))
_REQUEST_ID = re.compile(rb"^[\w.:-]{1,128}$")
_UNBUILT = {b"x-conversation-id": "conversations"}


@dataclass(frozen=True, slots=True)
class Options:
    """How the application serves: who may, how large a body may be, how clients are treated, what is traced."""

    auth: Auth = field(default_factory=Auth)
    manner: Manner = field(default_factory=Manner)
    max_body_mb: float = 20
    cors_origins: tuple[str, ...] = ()
    traced: bool = False
    trace_content: bool = False


class App:
    """Serves a catalog of models over the OpenAI API, and tools by their names.

    `drain()` makes it refuse new work; `running` is what is left, and `idle` is set while that is nothing.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: Options | None = None,
        *,
        tools: Tools | None = None,
        projects: Projects | None = None,
    ) -> None:
        self._chat, self._batch = chat_endpoint(catalog), batch_endpoint(catalog)
        self.tools = tools or {}
        self.projects = projects
        self._options = options or Options()
        self._max_body = int(self._options.max_body_mb * 1024 * 1024)
        self._origins = frozenset(origin.encode() for origin in self._options.cors_origins)
        self.running: set[respond] = set()
        self.idle = asyncio.Event()
        self.idle.set()
        self.draining = False
        auth, intake = self._options.auth, Intake(self._max_body, self._origins, self._options.manner, self._ready)
        described = pages(catalog, self.tools, auth, ready=self._ready)
        described.include_router(project_pages(projects, auth, intake))
        self._pages: ASGIApp = described

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            headers = dict(scope["headers"])
            extra = self._common_headers(headers)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _preflight(headers, extra, send)
            elif endpoint := self._endpoint(scope):
                call = _Call(endpoint, scope, receive, send, headers, extra)
                await (self._answer(call) if scope["method"] == "POST" else _misused(call))
            else:
                await self._page(scope, receive, _Sending(send, extra))

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        """What a path runs; None where it is a page."""
        path = scope["path"]
        if path in CHAT:
            return self._chat
        if path in BATCH:
            return self._batch
        named = TOOL.fullmatch(path)
        return tool_endpoint(self.tools, named[1]) if named else None

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    def stop(self, reason: str) -> None:
        """End what is left of the requests, and what is told of projects."""
        for answer in list(self.running):
            answer.stop(reason)
        if self.projects is not None:
            self.projects.closing.set()

    async def settled(self) -> None:
        """Return when no request runs, and no task of a project, of which none starts any more."""
        if self.projects is not None:
            await self.projects.settle()
        await self.idle.wait()

    def _ready(self) -> bool:
        return not self.draining

    def _common_headers(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        given = headers.get(b"x-request-id", b"")
        extra = [(b"x-request-id", given if _REQUEST_ID.match(given) else f"req_{fresh_id()}".encode())]
        origin = headers.get(b"origin")
        if origin is not None and (origin in self._origins or b"*" in self._origins):
            extra += [
                (b"access-control-allow-origin", b"*" if b"*" in self._origins else origin),
                (b"access-control-expose-headers", b"x-request-id, retry-after"),
                (b"vary", b"Origin"),
            ]
        return extra

    async def _page(self, scope: Scope, receive: Receive, send: _Sending) -> None:
        began = monotonic()
        page: dict[str, Any] = {**scope}
        if scope["method"] == "HEAD":
            page["method"] = "GET"  # the server sends no body
        await self._pages(cast("Any", page), receive, cast("Any", send))
        if scope["path"] not in PROBES or send.status >= 400:
            facts = _facts(scope, send.extra, send.status)
            # the path as it was declared: what a client wrote in it may be a secret of somebody
            facts["path"] = getattr(page.get("route"), "path", "(unknown)")
            access({**facts, **page.get(FACTS, {}), "ms": _ms_since(began)})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup" and self.projects is not None:
                self.projects.take_up()
            if message["type"] == "lifespan.shutdown":
                if self.projects is not None:
                    await self.projects.aclose()
                await close_tools(self.tools.values())
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, call: _Call) -> None:
        began, endpoint = monotonic(), call.endpoint
        principal: Principal | None = None
        work: Work | None = None
        try:
            if self.draining:
                raise shutting_down("the server is shutting down")
            principal = self._options.auth.principal(call.headers.get(b"authorization"))
            demand(principal, endpoint.scope)
            demand_origin(principal, call.headers, self._origins)
            manner = _manner(call.headers, self._options.manner)
            body = await read_body(call.receive, call.headers, limit=self._max_body, within_s=manner.write_stall_s)
            work = endpoint.prepare(body, call.headers)
            if work.effects and b"x-disconnect-policy" not in call.headers:
                manner = replace(manner, disconnect="finish")
            executor = work.find()
            if self._options.traced:
                content = self._options.trace_content
                executor = trace("server", name=f"POST {endpoint.path}", describe=work.describe, content=content)(
                    executor
                )
            parent = parent_of(call.headers.get(b"traceparent"), call.headers.get(b"tracestate"))
        except ClientGone:
            await call.refuse(Invalid("the request ended before its body"), 499)
            _log(call, 499, began, work=work, principal=principal)
            return
        except PenstockError as error:
            status = await call.refuse(error)
            _log(call, status, began, work=work, principal=principal, error=error)
            return
        answer = respond(
            executor,
            work.request,
            principal=principal,
            parent=parent,
            manner=manner,
            headers=call.extra,
            render=work.render,
            encoder=work.encoder,
        )
        self.running.add(answer)
        self.idle.clear()
        try:
            await answer(call.scope, call.receive, call.send)
        finally:
            self.running.discard(answer)
            if not self.running:
                self.idle.set()
            _log(call, answer.status, began, work=work, principal=principal, answer=answer)


@dataclass(slots=True)
class _Call:
    """One HTTP request to something that is run."""

    endpoint: Endpoint
    scope: Scope
    receive: Receive
    send: Send
    headers: dict[bytes, bytes]
    extra: list[tuple[bytes, bytes]]

    async def refuse(self, error: PenstockError, status: int | None = None) -> int:
        """Send an error in place of an answer, with its usual status or another; returns the status."""
        told = answer_of(error)
        status = status or told.status
        body = msgspec.json.encode(told.body)
        headers = [*told.headers(len(body)), *self.extra]
        if status == 405:
            headers.append((b"allow", b"POST"))
        with suppress(OSError):  # nobody is there any more
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
        return status


async def _misused(call: _Call) -> None:
    method = call.scope["method"]
    await call.refuse(Invalid(f"{method} is not for this path: use POST", code="method_not_allowed"), 405)


def _manner(headers: Mapping[bytes, bytes], manner: Manner) -> Manner:
    """How this request wants to be treated; refuses headers of features that are not built."""
    for name, feature in _UNBUILT.items():
        if name in headers:
            raise Invalid(f"{feature} are not supported by this version", param=name.decode(), code="unsupported_value")
    mode = headers.get(b"x-routing-mode", b"passthrough").decode("latin-1")
    if mode.lower() != "passthrough":
        raise Invalid(
            f"the routing mode {mode!r} is not supported: use 'passthrough'",
            param="x-routing-mode",
            code="unsupported_value",
        )
    policy = headers.get(b"x-disconnect-policy")
    if policy is None:
        return manner
    wanted = policy.decode("latin-1").lower()
    if wanted not in {"cancel", "finish"}:
        text = f"the disconnect policy {wanted!r} is not supported: use 'cancel' or 'finish'"
        raise Invalid(text, param="x-disconnect-policy", code="unsupported_value")
    return replace(manner, disconnect=cast("Literal['cancel', 'finish']", wanted))


def _log(  # the facts of one request  # noqa: PLR0913
    call: _Call,
    status: int,
    began: float,
    *,
    work: Work | None,
    principal: Principal | None,
    answer: respond | None = None,
    error: PenstockError | None = None,
) -> None:
    fields = _facts(call.scope, call.extra, status)
    if "{" in call.endpoint.path:  # what a client wrote in the path may be a secret of somebody
        fields["path"] = call.endpoint.path
    fields |= work.facts if work else {}
    fields["by"] = principal.name if principal else None
    fields["ms"] = _ms_since(began)
    if answer is not None:
        usage = answer.usage
        if answer.ttft_s is not None:
            fields["ttft_ms"] = round(answer.ttft_s * 1000, 1)
        fields |= {"llm": answer.llm or None, "retries": answer.retries or None}
        fields["switched"] = ", ".join(answer.switched) or None
        if usage.total or answer.rendering is None:
            fields |= {"in": usage.prompt, "out": usage.completion, "partial": True if usage.partial else None}
            fields["cost_usd"] = answer.cost
        if isinstance(answer.outcome, Failed):
            error = answer.outcome.error if isinstance(answer.outcome.error, PenstockError) else None
            fields["error"] = type(answer.outcome.error).__name__
        elif isinstance(answer.outcome, Cancelled):
            fields["cancelled"] = answer.outcome.reason
    if error is not None:
        fields["error"] = f"{type(error).__name__}: {_said(error)}"
    access(fields)


def _said(error: PenstockError) -> str:
    """What a log may show of an error: of a tool's, which may quote arguments, its code alone."""
    return error.code if isinstance(error, ToolError) else error.message


def _facts(scope: Scope, extra: list[tuple[bytes, bytes]], status: int) -> dict[str, Any]:
    return {"id": extra[0][1].decode(), "method": scope["method"], "path": scope["path"], "status": status}


def _ms_since(began: float) -> float:
    return round((monotonic() - began) * 1000, 1)


async def _preflight(headers: Mapping[bytes, bytes], extra: Headers, send: Send) -> None:
    allowed = [*extra, (b"content-length", b"0")]
    if any(name == b"access-control-allow-origin" for name, _ in extra):
        wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
        allowed += [
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


class _Sending:
    """A `send` that adds headers to the answer, and notes its status."""

    def __init__(self, send: Send, extra: list[tuple[bytes, bytes]]) -> None:
        self._send, self.extra, self.status = send, extra, 499

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self.extra]}
        await self._send(message)
