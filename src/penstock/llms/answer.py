"""`Answer`: one answer of a service while it arrives, whatever its wire: read, told, folded, counted and ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from decimal import Decimal
from time import monotonic
from typing import Protocol, TypeAlias

from penstock.errors import BadAnswer, LlmError, TimedOut
from penstock.events import Chunks, Fold, Used
from penstock.llms.failures import Who
from penstock.llms.sse import EventTooLong, Read, SseReader
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, Chunk, ChunkChoice, Delta, Usage
from penstock.policies.timeout import Deadline
from penstock.run import Run

BYTES_A_TOKEN = 4
MOST_WHOLE = 64 * 1024 * 1024
Cost: TypeAlias = Callable[[Usage, str], Decimal | None]
"""What a usage costs in USD, of the model that the answer names; None where that is not known."""
Views: TypeAlias = tuple[list[Chunk], bytes | None, LlmError | None]
"""The chunks of one read, its bytes where they can be sent on as they are, and the error that came after them."""
Whole: TypeAlias = tuple[Chunk, bytes | None, bytes | None]
"""An answer as one chunk, its bytes where they can be sent on as they are, else its JSON where that is OpenAI's."""


class Blocks(Protocol):
    """A stream of server-sent events, wherever it comes from; `Exchange` is one."""

    async def block(self) -> bytes:
        """The bytes that came; empty at the end."""
        ...

    async def drain(self) -> None:
        """Wait shortly for the end of an answer that is complete."""
        ...


class Reading(ABC):
    """How one answer of a wire becomes chunks: each answer has a reading of its own.

    Both ways raise or hold the `LlmError` that a service sent in place of an answer.
    """

    done = False
    """Whether the wire's own end mark has come."""

    @abstractmethod
    def views(self, read: Read) -> Views:
        """The chunks of one network read."""

    @abstractmethod
    def whole(self, body: bytes) -> Whole:
        """An unstreamed answer as the only chunk of a stream."""

    def close(self, closing: Chunk) -> None:  # noqa: B027  # most wires hold nothing
        """Add what is still held to the chunk that ends a stream whose service forgot to."""


class NativeReading(Reading):
    """The reading of a wire that is not OpenAI's: its events are translated one by one."""

    @abstractmethod
    def view(self, payload: bytes) -> Chunk | None:
        """The chunk that one event means; None where it says nothing to a client. Raises what a service said."""

    def views(self, read: Read) -> Views:
        """The chunks of one network read."""
        views: list[Chunk] = []
        for payload in read.payloads:
            try:
                view = self.view(payload)
            except LlmError as error:  # what came before it is told first
                return views, None, error
            if view is not None:
                views.append(view)
        return views, None, None


class Answer:
    """One answer while it arrives."""

    __slots__ = ("_began", "_cost", "_deadline", "_emit", "_first", "_fold", "_reading", "_sent", "_usage", "_who")

    def __init__(
        self, who: Who, run: Run, deadline: Deadline, *, reading: Reading, sent: int, cost: Cost | None = None
    ) -> None:
        self._who, self._emit, self._deadline, self._reading, self._sent = who, run.emit, deadline, reading, sent
        self._cost = cost
        self._fold = Fold()
        self._began = monotonic()
        self._first: float | None = None
        self._usage: Usage | None = None

    async def whole(self, body: bytes) -> ChatReply:
        """Take an unstreamed answer: it is a stream of one chunk."""
        if len(body) >= MOST_WHOLE:
            raise self._bad(f"sent an answer of more than {MOST_WHOLE} bytes")
        view, data, raw = self._reading.whole(body)
        self._take(view)
        if not view.choices:
            raise self._bad("ended without an answer")
        await self._say(Chunks(views=[view]))
        return self._reply(data=data, raw=raw)

    async def stream(self, exchange: Blocks) -> ChatReply:
        """Take a stream: one event for each network read."""
        reader, reading = SseReader(), self._reading
        done = False
        while not done and (block := await exchange.block()):
            try:
                read = reader.feed(block)
            except EventTooLong as error:
                raise self._bad(str(error)) from error
            await self._tell(read)
            done = read.done or reading.done
        if not done:
            last = reader.close()
            await self._tell(last)
            done = last.done or reading.done
        await self._close(done=done)
        await exchange.drain()
        return self._reply()

    async def _tell(self, read: Read) -> None:
        if not read.payloads:  # part of an event, or a comment that keeps the connection alive
            self._deadline.touch()
            return
        views, data, failure = self._reading.views(read)
        for view in views:
            self._take(view)
        if views:
            await self._say(Chunks(views=views, data=data))
        else:
            self._deadline.touch()
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

    async def _close(self, *, done: bool) -> None:
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
        self._reading.close(closing)
        self._take(closing)
        await self._say(Chunks(views=[closing]))

    def _reply(self, *, data: bytes | None = None, raw: bytes | None = None) -> ChatReply:
        return self._fold.reply(self._counted(), data=data, raw=raw)

    def _counted(self) -> Usage:
        """The usage as reported, else estimated: a token for four bytes of the request, and one for each chunk."""
        usage = self._usage
        if usage is not None and not usage.partial:
            return usage
        pieces = self._fold.pieces
        if usage is None:
            prompt = self._sent // BYTES_A_TOKEN
            return Usage(prompt, pieces, prompt + pieces, partial=True)
        completion = max(usage.completion, pieces)
        details = usage.prompt_tokens_details
        return Usage(usage.prompt, completion, usage.prompt + completion, prompt_tokens_details=details, partial=True)

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
        ttft, usage, model = self._first - self._began, self._counted(), self._fold.model
        cost = None if self._cost is None else self._cost(usage, model)
        await self._emit(Used(usage=usage, model=model, provider=self._who.provider, ttft_s=ttft, cost=cost))
