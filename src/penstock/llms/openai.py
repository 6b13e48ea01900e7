"""`Gpt`: any service that speaks the OpenAI chat wire (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.errors import BadAnswer, BadRequest, LlmError, TimedOut, UnknownName, UsageError
from penstock.events import Chunks, Fold, Used
from penstock.llms.base import BaseLlm, accounted
from penstock.llms.canonical import Canonical
from penstock.llms.failures import Who, from_status
from penstock.llms.openai_wire import decode_chunk, decode_reply
from penstock.llms.services import SERVICES, Service
from penstock.llms.sse import EventTooLong, Read, SseReader
from penstock.llms.transport import Exchange, Limits, Target
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta, Usage
from penstock.net import Secret
from penstock.net.http import request_head
from penstock.policies.timeout import Deadline
from penstock.run import Run

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from penstock.policies import Policy

BYTES_A_TOKEN = 4
MOST_WHOLE = 64 * 1024 * 1024
ASK_USAGE = b',"stream_options":{"include_usage":true}}'
_encode = msgspec.json.Encoder().encode


class Gpt(BaseLlm):
    """A model of a service in `SERVICES`, by default OpenAI.

    `model` empty: each request names its own. `params` are defaults that a request may override. Without `base_url` the
    service's own environment variables are read; a key from there is never sent to an address given here. Raises
    `LlmError`s.
    """

    provider = "openai"

    def __init__(  # noqa: PLR0913  # the public constructor: each argument is one thing a user may set
        self,
        *,
        model: str = "",
        api_key: str | None = None,
        base_url: str | None = None,
        service: str | Service = "openai",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        policies: Iterable[Policy] = (),
    ) -> None:
        super().__init__(model=model, policies=policies)
        row = service if isinstance(service, Service) else _row(service)
        address = base_url or os.environ.get(row.base_env, "") or row.base_url
        if not address:
            raise UsageError(f"{row.name} needs an address: give base_url or set {row.base_env}")
        if "@" in address:
            raise UsageError("an address holds no user name or password: give api_key")
        address = address.rstrip("/")
        if row.base_suffix and not address.endswith(row.base_suffix):
            address += row.base_suffix
        key = api_key or ("" if base_url else os.environ.get(row.key_env, ""))
        self.provider = row.name
        self.base_url = address
        self.params = dict(params or {})
        self.limits = limits or Limits()
        self.secret = Secret(key, origin=address) if key else None
        self._service = row
        self._target = Target(f"{address}/chat/completions", row.name, self.limits)
        self._headers = {"content-type": "application/json", "user-agent": "penstock", **(headers or {})}
        try:
            request_head("POST", self._target.url, self._headers, 0)
        except ValueError as error:
            raise UsageError(f"{row.name} cannot be called: {error}") from error
        hidden = tuple(Secret(value, origin=address) for value in (headers or {}).values())
        self._who = Who(self.provider, hidden if self.secret is None else (self.secret, *hidden))

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Send the request as it is wanted, streamed or whole, and tell what comes."""
        deadline = Deadline(self.limits.total_s, idle_s=self.limits.idle_s)
        body = self._body(request)
        answer = _Answer(self._who, run, deadline, sent=len(body))
        exchange = Exchange(self._target, headers=self._head(run.span), body=body)
        try:
            async with accounted(answer.account), deadline, exchange:
                if exchange.status != 200:
                    raise from_status(exchange.status, exchange.headers, await exchange.read(65536), who=self._who)
                if exchange.headers.get("content-type", "").startswith("text/event-stream"):
                    return await answer.stream(exchange)
                return await answer.whole(await exchange.read(MOST_WHOLE))
        except TimeoutError as late:
            if not deadline.expired:
                raise
            raise answer.late(self.limits, idled=deadline.idled) from late
        except LlmError as error:
            raise answer.with_partial(error) from error.__cause__

    def _body(self, request: ChatRequest) -> bytes:
        """The bytes to send: the client's own when nothing in them must change."""
        model = self.model or request.model
        ask = request.stream and self._service.usage_on_request and not request.wants_usage
        if request.data is not None and model == request.model and not self.params:
            if not ask:
                return request.data
            if "stream_options" not in request.params:
                return request.data.rstrip()[:-1] + ASK_USAGE
        fields: dict[str, Any] = {**self.params, **request.params, "model": model, "messages": request.messages}
        if request.stream:
            fields["stream"] = True
        elif "stream_options" not in request.params:
            fields.pop("stream_options", None)
        if ask:
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        try:
            return _encode(fields)
        except RecursionError as error:
            raise BadRequest("the request is nested too deeply", provider=self.provider, status=400) from error

    def auth_headers(self, url: str) -> dict[str, str]:
        """The headers that carry the key, for a request to `url`; raises `UsageError` where it may not be sent."""
        if self.secret is None:
            return {}
        header = self._service.key_header
        return {header: f"Bearer {self.secret.reveal(url)}" if header == "authorization" else self.secret.reveal(url)}

    def _head(self, span: Span | None) -> dict[str, str]:
        headers = {**self._headers, **self.auth_headers(self._target.url)}
        if span is not None:
            context = span.get_span_context()
            if context.is_valid:
                headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
                if context.trace_state:
                    headers["tracestate"] = context.trace_state.to_header()
        return headers


class _Answer:
    """One answer while it arrives: told, folded and counted."""

    __slots__ = ("_began", "_deadline", "_emit", "_first", "_fold", "_sent", "_usage", "_who")

    def __init__(self, who: Who, run: Run, deadline: Deadline, *, sent: int) -> None:
        self._who, self._emit, self._deadline, self._sent = who, run.emit, deadline, sent
        self._fold = Fold()
        self._began = monotonic()
        self._first: float | None = None
        self._usage: Usage | None = None

    async def whole(self, body: bytes) -> ChatReply:
        """Take an unstreamed answer: it is a stream of one chunk."""
        if len(body) >= MOST_WHOLE:
            raise self._bad(f"sent an answer of more than {MOST_WHOLE} bytes")
        view, mended = decode_reply(body, self._who)
        repaired = Canonical().repair(view) or mended
        self._take(view)
        if not view.choices:
            raise self._bad("ended without an answer")
        await self._say(Chunks(views=[view]))
        return self._reply(raw=body) if repaired else self._reply(data=body)

    async def stream(self, exchange: Exchange) -> ChatReply:
        """Take a stream: one event for each network read."""
        reader, canonical = SseReader(), Canonical()
        done = False
        while not done and (block := await exchange.block()):
            try:
                read = reader.feed(block)
            except EventTooLong as error:
                raise self._bad(str(error)) from error
            done = read.done
            if not read.payloads:  # part of an event, or a comment that keeps the connection alive
                self._deadline.touch()
            await self._tell(read, canonical)
        if not done:
            last = reader.close()
            await self._tell(last, canonical)
            done = last.done
        await self._close(canonical, done=done)
        await exchange.drain()
        return self._reply()

    async def _tell(self, read: Read, canonical: Canonical) -> None:
        if not read.payloads:
            return
        views: list[Chunk] = []
        changed = read.plain is None
        failure: LlmError | None = None
        for payload in read.payloads:
            try:
                view, mended = decode_chunk(payload, self._who)
            except LlmError as error:  # what came before it is told first
                changed, failure = True, error
                break
            if canonical.repair(view) or mended:
                changed = True
            self._take(view)
            views.append(view)
        if changed:
            for view, payload in zip(views, read.payloads, strict=failure is None):
                view.raw = payload
        if views:
            await self._say(Chunks(views=views, data=None if changed else read.plain))
        if failure is not None:
            raise failure

    async def _say(self, event: Chunks) -> None:
        self._deadline.pause()
        try:
            await self._emit(event)
        finally:
            self._deadline.resume()

    def _take(self, view: Chunk) -> None:
        if self._first is None:
            self._first = monotonic()
        if view.usage is not None:
            self._usage = view.usage
        self._fold.add_chunk(view)

    async def _close(self, canonical: Canonical, *, done: bool) -> None:
        """Check that the stream ended as a stream ends, and add the finish reason a service forgot."""
        open_choices = self._fold.unfinished
        if not self._fold.pieces:
            raise self._bad("ended without an answer")
        if not open_choices:
            return
        if not done:
            raise self._bad("cut off its answer")
        closing = Chunk(
            choices=[
                ChunkChoice(delta=Delta(), index=index, finish_reason="tool_calls" if calls else "stop")
                for index, calls in open_choices.items()
            ]
        )
        canonical.repair(closing)
        self._take(closing)
        await self._say(Chunks(views=[closing]))

    def _reply(self, *, data: bytes | None = None, raw: bytes | None = None) -> ChatReply:
        return self._fold.reply(self._counted(), data=data, raw=raw)

    def _counted(self) -> Usage:
        """The usage as reported, else estimated: a token for four bytes of the request, and one for each chunk."""
        if self._usage is not None:
            return self._usage
        prompt, pieces = self._sent // BYTES_A_TOKEN, self._fold.pieces
        return Usage(prompt, pieces, prompt + pieces, partial=True)

    def _bad(self, what: str) -> BadAnswer:
        return BadAnswer(f"{self._who.provider} {what}", provider=self._who.provider)

    def late(self, limits: Limits, *, idled: bool) -> LlmError:
        """The error of a limit that was reached."""
        if self._first is None:
            text = f"{self._who.provider} did not answer within {limits.total_s:g} s in all"
            return TimedOut(text, provider=self._who.provider)
        stalled = f"stalled: nothing more came within {limits.idle_s:g} s"
        return self.with_partial(self._bad(stalled if idled else f"did not finish within {limits.total_s:g} s in all"))

    def with_partial(self, error: LlmError) -> LlmError:
        """The error with what had arrived; once anything has, it is a bad answer."""
        if self._first is None:
            return error
        if not isinstance(error, BadAnswer):
            bad = BadAnswer(
                error.message,
                provider=error.provider,
                status=error.status,
                request_id=error.request_id,
                code=error.code,
            )
            bad.param, bad.type = error.param, error.type
            error = bad
        error.partial = self._reply()
        return error

    async def account(self) -> None:
        """Tell the usage, however the answer ended; nothing when it never began."""
        if self._first is None:
            return
        ttft = self._first - self._began
        await self._emit(Used(usage=self._counted(), model=self._fold.model, provider=self._who.provider, ttft_s=ttft))


def _row(name: str) -> Service:
    if name not in SERVICES:
        raise UnknownName(f"no service {name!r}; known are {', '.join(sorted(SERVICES))}")
    return SERVICES[name]
