"""Tools that are HTTP requests: `HttpToolExecutor`, and `BaseHttpExecutor` for those that make their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, cast

from yarl import URL

from penstock.errors import Denied, ToolError, UsageError
from penstock.net import Secret, origin_of, session
from penstock.net.secrets import REFERENCE, variables
from penstock.tools.base import BaseToolExecutor, Hook
from penstock.tools.http.answer import Reading, from_network
from penstock.tools.http.mapping import Plan
from penstock.tools.http.spec import HttpToolSpec, Template
from penstock.tools.result import ToolContext

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods whose repetition does no harm (RFC 9110, 9.2.2)."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_SHOWN = 200


class BaseHttpExecutor(BaseToolExecutor[HttpToolSpec]):
    """A tool that makes HTTP requests: extend `_execute_http_request`, the rest of the pipeline is there.

    `await self._get_session()` gives the shared aiohttp session. It connects to public addresses only, and to those of
    `self.spec.base_url` where the spec says `allow_private`. Its errors become `ToolFailed`.
    `self._get_headers(args, ctx)` are the headers of the spec; what else of it counts is for the child to decide.
    `self.variable(name)` is one of the environment.
    """

    def __init__(self, spec: HttpToolSpec, *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        self.variable = variables(env)
        self._plan = Plan(spec)
        self._fixed, self._sealed = _read_headers(spec, self.variable)
        super().__init__(spec, **options)

    def _execute_http_request(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:  # for children
        """Make the request: an `async def` that returns a value, or an async generator of items."""
        raise UsageError(f"{type(self).__name__} makes no request: define _execute_http_request")

    _kept: tuple[asyncio.AbstractEventLoop, ClientSession] | None = None

    async def _get_session(self) -> ClientSession:
        kept, loop = self._kept, asyncio.get_running_loop()
        if kept is None or kept[0] is not loop or kept[1].closed:
            kept = self._kept = loop, await session(self.spec.base_url if self.spec.allow_private else None)
        return kept[1]

    def _get_headers(self, args: dict[str, Any], ctx: ToolContext) -> dict[str, str]:
        """The headers of the spec for one call, its secrets and the trace context included: for `base_url` alone."""
        headers = self._fixed | self._plan.headers(args)
        for name, parts in self._sealed.items():
            headers[name] = "".join(
                part if isinstance(part, str) else part.reveal(self.spec.base_url) for part in parts
            )
        span = None if ctx.run is None else ctx.run.span
        if span is not None and (context := span.get_span_context()).is_valid:
            headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        return headers

    def _operate(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:
        answer = self._execute_http_request(args, ctx, timeout)
        return self._one(answer) if isawaitable(answer) else self._items(answer)

    async def _one(self, answer: Awaitable[Any]) -> Any:
        import aiohttp

        try:
            return await answer
        except aiohttp.ClientError as error:
            failure = from_network(error, safe=self.safe)
        raise failure  # here, where it has no context: aiohttp's errors show the headers of the request

    async def _items(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        import aiohttp

        failure: ToolError | None = None
        try:
            async with aclosing(cast("Any", items)):
                async for item in items:
                    yield item
        except aiohttp.ClientError as error:
            failure = from_network(error, safe=self.safe)
        if failure is not None:
            raise failure


class HttpToolExecutor(BaseHttpExecutor):
    """A tool that makes the one request that its spec describes.

    Secrets are read from the environment when it is made (`UsageError` names a variable that is missing), are sent to
    the origin of `base_url` only, and are taken out of whatever it answers.
    """

    speaks = False

    def __init__(self, spec: HttpToolSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._origin = origin_of(spec.base_url)
        secrets = tuple(secret for parts in self._sealed.values() for secret in parts if isinstance(secret, Secret))
        self._reading = Reading(spec.expect, spec.max_response_bytes, secrets, self.safe)

    @property
    def safe(self) -> bool:
        """Whether repeating a call does no harm: the spec says so, or the method."""
        return self.spec.idempotency.safe or self.spec.method in REPEATABLE

    async def _execute_http_request(
        self,
        args: dict[str, Any],
        ctx: ToolContext,
        timeout: float,  # the pipeline keeps the time
    ) -> Any:
        plan = self._plan
        body = plan.body(args)
        headers = self._get_headers(args, ctx)
        if body is not None:
            headers.setdefault("content-type", plan.content_type)
        asked = _Asked(self.spec.method, URL(plan.url(args), encoded=True), headers, body)
        client = await self._get_session()
        for left in range(self.spec.max_redirects, -1, -1):
            async with client.request(
                asked.method, asked.url, headers=asked.headers, data=asked.body, allow_redirects=False
            ) as answer:
                if answer.status not in REDIRECTS or "location" not in answer.headers:
                    return await self._reading.value(answer)
                asked = self._redirected(asked, answer, left)
        raise AssertionError("the last redirect is refused")

    def _redirected(self, asked: _Asked, answer: ClientResponse, left: int) -> _Asked:
        """The request that a redirect asks for; raises `Denied` for one that is not followed."""
        where = self._reading.scrub(answer.headers["location"][:MAX_SHOWN])

        def denied(why: str) -> Denied:
            details = {"status": answer.status, "location": where}
            return Denied(f"the service redirects to {where!r}, {why}", code="redirect_denied", details=details)

        if not left:
            raise denied(f"and max_redirects is {self.spec.max_redirects}")
        try:
            url = asked.url.join(URL(answer.headers["location"]))
            origin = origin_of(str(url.origin()))
        except ValueError:
            raise denied("which is no address") from None
        if url.scheme not in {"http", "https"}:
            raise denied("which is no http address")
        body = asked.body
        method = asked.method
        if answer.status == 303 or (answer.status in {301, 302} and method == "POST"):
            method, body = ("HEAD" if method == "HEAD" else "GET"), None
        if origin == self._origin:
            dropped = {"content-type"} if body is None else set[str]()
            return _Asked(method, url, {k: v for k, v in asked.headers.items() if k not in dropped}, body)
        if self.spec.redirects != "public":
            raise denied("another origin: set base_url to it where that is right")
        if body is not None or method not in {"GET", "HEAD"}:
            raise denied("another origin, where only GET and HEAD are repeated")
        return _Asked(method, url, {}, None)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request on the wire."""

    method: str
    url: URL
    headers: dict[str, str]
    body: bytes | None


def _read_headers(
    spec: HttpToolSpec, variable: Callable[[str], str]
) -> tuple[dict[str, str], dict[str, tuple[str | Secret, ...]]]:
    """The headers that are the same in each call, and those with secrets, cut into text and secrets."""
    fixed: dict[str, str] = {"accept": "application/json"} if spec.expect == "json" else {}
    sealed: dict[str, tuple[str | Secret, ...]] = {}
    for name, text in spec.headers.items():
        if REFERENCE.search(text):
            cut = REFERENCE.split(text)  # text and names of variables in turn
            sealed[name.lower()] = tuple(
                _secret(part, spec, variable(part)) if index % 2 else Template(part).fill({}) or ""
                for index, part in enumerate(cut)
            )
        elif not (template := Template(text)).names:
            fixed[name.lower()] = template.fill({}) or ""
    return fixed, sealed


def _secret(name: str, spec: HttpToolSpec, value: str) -> Secret:
    if not value:
        raise UsageError(f"the tool {spec.tool_name!r} needs the environment variable {name}, which is not set")
    return Secret(value, origin=spec.base_url)
