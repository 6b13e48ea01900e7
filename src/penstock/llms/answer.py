"""`Answer`: one answer of a service while it arrives, whatever its wire: read, told, folded, counted and ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from decimal import Decimal
from time import monotonic
from typing import Protocol, TypeAlias

from msgspec.structs import replace

from penstock.errors import BadAnswer, LlmError, TimedOut
from penstock.events import Chunks, Fold, Used
from penstock.llms.failures import Who
from penstock.llms.sse import EventTooLong, Read, SseReader
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, Chunk, ChunkChoice, Delta, Usage
from penstock.policies.timeout import Deadline
from penstock.run import Run

MOST_WHOLE = 64 * 1024 * 1024
MOST_HELD = 16
"""How many reads that say nothing are held back, at most."""
Estimate: TypeAlias = Callable[[], int]
"""How many tokens a prompt has, where nobody reports it."""
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


class Broke(Exception):
    """An answer ended in `error`, in an event or a body that says more: `view` is that, its usage above all."""

    def __init__(self, error: LlmError, view: Chunk) -> None:
        super().__init__(error.message)
        self.error, self.view = error, view


class Reading(ABC):
    """How one answer of a wire becomes chunks: each answer has a reading of its own.

    Both ways raise or hold the `LlmError` that a service sent in place of an answer. Where text or a usage came beside
    that error they are told and counted first: in `views` as the last chunk before the error, and `whole`, like the
    `view` of a native wire, raises `Broke(error, chunk)`. A chunk that only counts has no choices.
    """

    done = False
    """Whether the wire's own end mark has come."""
    complete = False
    """Whether the stream may end here, on a wire without an end mark: all that began has said why it ends."""

    @abstractmethod
    def views(self, read: Read) -> Views:
        """The chunks of one network read."""

    @abstractmethod
    def whole(self, body: bytes) -> Whole:
        """An unstreamed answer as the only chunk of a stream. Raises `Broke` or what a service said."""

    def close(self, closing: Chunk) -> None:  # noqa: B027  # most wires hold nothing
        """Add what is still held to the chunk that ends a stream whose service forgot to."""


class NativeReading(Reading):
    """The reading of a wire that is not OpenAI's: its events are translated one by one."""

    @abstractmethod
    def view(self, payload: bytes) -> Chunk | None:
        """The chunk that one event means; None where it says nothing to a client. Raises `Broke` or what was said."""

    def views(self, read: Read) -> Views:
        """The chunks of one network read."""
        views: list[Chunk] = []
        for payload in read.payloads:
            try:
                view = self.view(payload)
            except Broke as broke:
                return [*views, broke.view], None, broke.error
            except LlmError as error:  # what came before it is told first
                return views, None, error
            if view is not None:
                views.append(view)
        return views, None, None


class Answer:
    """One answer while it arrives.

    Chunks that say nothing yet, such as a role alone, are held back until one says something, and told before it. So
    an error that comes first is of its own class, and another attempt or another model may answer; what it cost is
    told nevertheless. The time to the first token ends with the first chunk that says something, where there is one.
    """

    __slots__ = (
        "_began",
        "_cost",
        "_deadline",
        "_emit",
        "_first",
        "_fold",
        "_held",
        "_prompt",
        "_reading",
        "_said",
        "_usage",
        "_who",
    )

    def __init__(
        self, who: Who, run: Run, deadline: Deadline, *, reading: Reading, prompt: Estimate, cost: Cost | None = None
    ) -> None:
        self._who, self._emit, self._deadline, self._reading, self._prompt = who, run.emit, deadline, reading, prompt
        self._cost = cost
        self._fold = Fold()
        self._began = monotonic()
        self._first: float | None = None
        self._said: float | None = None
        self._held: list[Chunks] = []
        self._usage: Usage | None = None

    async def whole(self, body: bytes) -> ChatReply:
        """Take an unstreamed answer: it is a stream of one chunk."""
        if len(body) >= MOST_WHOLE:
            raise self._bad(f"sent an answer of more than {MOST_WHOLE} bytes")
        try:
            view, data, raw = self._reading.whole(body)
        except Broke as broke:
            self._take(broke.view)
            raise broke.error from broke.__cause__
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
        if not views:
            self._deadline.touch()
        elif self._said is None and len(self._held) < MOST_HELD and not any(map(_speaks, views)):
            self._held.append(Chunks(views=views, data=data))
            self._deadline.pause()
            self._deadline.resume()  # it has begun: from now on it may stall
        else:
            await self._say(Chunks(views=views, data=data))
        if failure is not None:
            raise failure

    async def _say(self, event: Chunks) -> None:
        if self._said is None:
            self._said = monotonic()
            held, self._held = self._held, []
            for earlier in held:
                await self._say(earlier)
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
        if not done and not self._reading.complete:
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
        """The usage as reported; of what no report counts, the prompt as it is estimated and a token for each chunk."""
        usage = self._usage or Usage(partial=True)
        if usage.prompt and not usage.partial:
            return usage
        prompt, completion = usage.prompt or self._prompt(), usage.completion
        if usage.partial or not completion:
            completion = max(completion, self._fold.pieces)
        total = prompt + completion
        return replace(usage, prompt_tokens=prompt, completion_tokens=completion, total_tokens=total, partial=True)

    def _bad(self, what: str) -> BadAnswer:
        return BadAnswer(f"{self._who.provider} {what}", provider=self._who.provider)

    def late(self, limits: Limits, *, idled: bool) -> LlmError:
        """The error of a limit that was reached."""
        if self._said is None:
            within = f"{limits.idle_s:g} s after it began" if idled else f"{limits.total_s:g} s in all"
            return TimedOut(f"{self._who.provider} did not answer within {within}", provider=self._who.provider)
        stalled = f"stalled: nothing more came within {limits.idle_s:g} s"
        return self.with_partial(self._bad(stalled if idled else f"did not finish within {limits.total_s:g} s in all"))

    def with_partial(self, error: LlmError) -> LlmError:
        """The error with what had arrived; once anything was told, it is a bad answer."""
        if not isinstance(error, BadAnswer):
            if self._said is None:
                return error
            bad = BadAnswer(
                error.message,
                provider=error.provider,
                status=error.status,
                request_id=error.request_id,
                code=error.code,
            )
            bad.param, bad.type = error.param, error.type
            error = bad
        if self._first is not None:
            error.partial = self._reply()
        return error

    async def account(self) -> None:
        """Tell the usage, however the answer ended; nothing when it never began."""
        if self._first is None:
            return
        ttft, usage, model = (self._said or self._first) - self._began, self._counted(), self._fold.model
        cost = None if self._cost is None else self._cost(usage, model)
        await self._emit(Used(usage=usage, model=model, provider=self._who.provider, ttft_s=ttft, cost=cost))


def _speaks(view: Chunk) -> bool:
    """Whether a chunk may say something: its bytes can hold what its view does not name, unless they are a beginning.

    A beginning has a role or an empty text, and nothing more; a chunk without choices only counts.
    """
    return any(
        choice.finish_reason
        or (choice.delta.role is None and choice.delta.content is None)
        or choice.delta.content
        or choice.delta.reasoning_content
        or choice.delta.reasoning
        or choice.delta.reasoning_details
        or choice.delta.refusal
        or choice.delta.tool_calls
        or choice.delta.extra_content
        for choice in view.choices
    )
