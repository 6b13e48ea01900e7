"""`Replay`: answers from recorded exchanges, without a network; `recording` makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from time import monotonic

from penstock.errors import BadAnswer, LlmError, TimedOut, UsageError
from penstock.events import Chunks, Fold, Used
from penstock.llms.base import BaseLlm, accounted
from penstock.llms.prices import FREE
from penstock.llms.replay.files import Recorded, chunk_of
from penstock.llms.replay.matching import Recordings
from penstock.llms.replay.recording import recording
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, Usage
from penstock.policies import Policy
from penstock.policies.timeout import Deadline
from penstock.run import Run

__all__ = ["Replay", "recording"]


class Replay(BaseLlm):
    """Answers a request as it was answered when it was recorded: the same chunks, usage, error or cut.

    Requests are the same when model, messages and parameters are; of several exchanges each is replayed in its turn,
    the last one again and again. Any other request raises `BadRequest`, which says what differs from the nearest.
    With `model` every request is for that recorded model, whatever it names; one that names none is for the only one
    there is. What was recorded of requests that named none answers to every other name. `pace` 1 takes the time that
    was recorded, 0 none.

    The folder is read once, here; raises `ConfigError` with file and line for what is no recording. Without
    `directory`, `model` is the folder and, after a "#", the model, as in `replay:recordings#fast`.
    """

    provider = "replay"

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        model: str = "",
        pace: float = 0.0,
        limits: Limits | None = None,
        policies: Iterable[Policy] = (),
    ) -> None:
        super().__init__(model=model, policies=policies)
        if directory is None:
            directory, _, model = model.partition("#")
        if not directory or not 0 <= pace < float("inf"):
            raise UsageError(f"a folder with recordings and a pace of 0 or more are needed, not pace={pace!r}")
        self.price = FREE
        self.limits = limits or Limits()
        self._pace = pace
        self._recordings = Recordings(Path(directory))
        self._fixed = model

    def models(self) -> list[str]:
        """The models that were recorded by a name, sorted."""
        return [model for model in self._recordings.models if model]

    @property
    def exchanges(self) -> tuple[Recorded, ...]:
        """All exchanges, in the order of their files."""
        return tuple(self._recordings.all)

    def __len__(self) -> int:
        return len(self._recordings.all)

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Replay the exchange that answers the request."""
        recorded = self._recordings.next(request, self._asked(request))
        deadline = Deadline(self.limits.total_s, idle_s=self.limits.idle_s)
        playing = _Playing(recorded, run, deadline, self._pace)
        try:
            async with accounted(playing.account), deadline:
                return await (playing.stream() if request.stream else playing.whole())
        except TimeoutError as late:
            if not deadline.expired:
                raise
            raise playing.late(self.limits, idled=deadline.idled) from late

    def _asked(self, request: ChatRequest) -> str:
        models = self._recordings.models
        if self._fixed or request.model in models:
            return self._fixed or request.model
        if "" in models:
            return ""
        return request.model or (models[0] if len(models) == 1 else "")


class _Playing:
    """One exchange while it is replayed."""

    def __init__(self, recorded: Recorded, run: Run, deadline: Deadline, pace: float) -> None:
        self._recorded, self._emit, self._deadline, self._pace = recorded, run.emit, deadline, pace
        self._fold = Fold()
        self._began = monotonic()
        self._first: float | None = None
        self._played = False

    async def stream(self) -> ChatReply:
        """Tell the chunks one by one."""
        for after_s, view in self._recorded.views():
            await asyncio.sleep(after_s * self._pace)
            self._fold.add_chunk(view)
            await self._say(Chunks(views=[view]))
        if self._recorded.error is not None:
            await asyncio.sleep(self._recorded.error.after_s * self._pace)
        self._played = True
        self._raise()
        return self._fold.reply(self._recorded.usage)

    async def whole(self) -> ChatReply:
        """Tell the answer in one piece, unless it was never whole."""
        for _, view in self._recorded.views():
            self._fold.add_chunk(view)
        await asyncio.sleep(self._recorded.seconds * self._pace)
        self._raise()
        reply = self._fold.reply(self._recorded.usage, raw=self._recorded.body())
        self._played = True
        await self._say(Chunks(views=[chunk_of(reply)]))
        return reply

    async def _say(self, event: Chunks) -> None:
        if self._first is None:
            self._first = monotonic()
        self._deadline.pause()
        try:
            await self._emit(event)
        finally:
            self._deadline.resume()

    def _raise(self) -> None:
        """Raise what the exchange ended with, where that was no answer."""
        recorded = self._recorded
        if recorded.error is not None:
            raise self._with_partial(recorded.error.error(told=bool(recorded.chunks)))
        if recorded.end == "cancelled":
            raise self._with_partial(BadAnswer("the recording ends here: its client had left", provider="replay"))

    def _with_partial(self, error: LlmError) -> LlmError:
        if isinstance(error, BadAnswer) and self._fold.pieces:
            error.partial = self._fold.reply(self._counted())
        return error

    def late(self, limits: Limits, *, idled: bool) -> LlmError:
        """The error of a limit that was reached."""
        if self._first is None:
            return TimedOut(f"replay did not answer within {limits.total_s:g} s in all", provider="replay")
        after = f"nothing more came within {limits.idle_s:g} s" if idled else f"not done within {limits.total_s:g} s"
        return self._with_partial(BadAnswer(f"replay stalled: {after}", provider="replay"))

    def _counted(self) -> Usage | None:
        """The usage as recorded; of an answer that was left before its end, one token for each chunk so far."""
        usage = self._recorded.usage
        if self._played or usage is None:
            return usage
        completion = self._fold.pieces
        return Usage(usage.prompt, completion, usage.prompt + completion, partial=True)

    async def account(self) -> None:
        """Tell the usage, however it ended; nothing when it never began."""
        usage = self._counted()
        if self._first is None or usage is None:
            return
        ttft, free = self._first - self._began, Decimal(0)
        await self._emit(Used(usage=usage, model=self._fold.model, provider="replay", ttft_s=ttft, cost=free))
