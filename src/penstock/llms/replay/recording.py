"""`recording`: write each exchange with a model into a folder, one file each, for `Replay` to answer from."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal, TypeVar

import msgspec

from penstock.errors import LimitReached, RequestError, StoreFailed, UsageError
from penstock.events import Chunks, Event, Reasoning, Text, Used
from penstock.llms.replay.files import CHOICE, DELTA, Asked, Recorded, Trouble, chunk_of, part, parts, text_of, write
from penstock.llms.replay.matching import key_of, plain, stem_of
from penstock.llms.replay.scrubbing import without
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta, Usage
from penstock.net import Secret
from penstock.policies import Policy
from penstock.run import Executor, Run

_log = logging.getLogger("penstock.recording")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_REFUSED = (LimitReached, RequestError, UsageError)
_SHARED = ("id", "model", "created")
Request = TypeVar("Request")
Result = TypeVar("Result")


def recording(directory: str | Path, *, secrets: Iterable[Secret | str] = ()) -> Policy:
    """Write each exchange into a file of its own in `directory`: the request, what was told and when, how it ended.

    Failed, cut and cancelled ones are written too; what a limit refused, or what was no proper request, is not. No
    eight characters of a secret are written. Raises `StoreFailed` at the end of an answer that cannot be written; a
    call that failed itself keeps its own error, and the loss is logged.
    """
    folder = Path(directory)
    hidden = tuple(one if isinstance(one, Secret) else Secret(one, origin="") for one in secrets)

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            if not isinstance(request, ChatRequest):
                raise UsageError(f"recording takes chat requests, not {type(request).__name__}")
            exchange = _Exchange(request, run)
            async with _Written(exchange, folder, hidden):
                exchange.result = result = await executor(request, run.telling(exchange.tell))
            return result

        return call

    return policy


class _Exchange:
    """One exchange while it runs; what is told is kept as it is, and made readable when all is over."""

    def __init__(self, request: ChatRequest, run: Run) -> None:
        self._request, self._emit = request, run.emit
        self._told: list[tuple[float, bytes, bool]] = []
        self._usage: Usage | None = None
        self._since = monotonic()
        self._failure: Trouble | None = None
        self._end: Literal["finished", "failed", "cancelled"] = "finished"
        self.result: Any = None

    async def tell(self, event: Event) -> None:
        """Note an event before anybody may change its views; the time that its listener takes does not count."""
        if isinstance(event, Used):
            self._usage = event.usage if self._usage is None else self._usage + event.usage
        elif isinstance(event, Chunks) and not event.path:
            self._note(event)
        elif isinstance(event, (Text, Reasoning)) and not event.path:  # a union is built at each call
            delta = Delta(content=event.text) if isinstance(event, Text) else Delta(reasoning_content=event.text)
            delta.role = None if self._told else "assistant"
            self._note(Chunks(views=[Chunk(choices=[ChunkChoice(delta=delta)])]))
        await self._emit(event)
        self._since = monotonic()

    def _note(self, event: Chunks) -> None:
        after_s = monotonic() - self._since
        if event.data is not None:
            self._told.append((after_s, event.data, True))
        else:
            self._told += [(after_s if n == 0 else 0.0, _encode(view), False) for n, view in enumerate(event.views)]

    def end(self, error: BaseException | None) -> bool:
        """Note how it ended; whether it was one at all."""
        if isinstance(error, _REFUSED) and not self._told:
            return False
        if isinstance(error, Exception):
            self._end, self._failure = "failed", Trouble.of(error, round(monotonic() - self._since, 4))
        elif error is not None:
            self._end = "cancelled"
        return True

    def recorded(self) -> Recorded:
        """All of it, as it is written but for secrets."""
        reply = self.result if isinstance(self.result, ChatReply) else None
        chunks = list(self._chunks(reply))
        answer = {name: chunks[0][name] for name in _SHARED if chunks and chunks[0].get(name) is not None}
        request = self._request
        return Recorded(
            request=Asked(
                model=request.model,
                messages=plain(request.messages),
                params=plain(request.params),
                stream=request.stream,
            ),
            end=self._end,
            recorded=datetime.now(UTC).isoformat(timespec="seconds"),
            answer=answer,
            chunks=[_less(chunk, answer) for chunk in chunks],
            usage=(reply.usage if reply else None) or self._usage,
            error=self._failure,
        )

    def _chunks(self, reply: ChatReply | None) -> Iterator[dict[str, Any]]:
        told = self._told or ([(0.0, _encode(chunk_of(reply)), False)] if reply else [])
        body = (reply.data or reply.raw) if reply else None
        for after_s, data, untouched in told:
            frames = [frame[6:] for frame in data.split(b"\n\n") if frame] if untouched else [data]
            for n, frame in enumerate(frames):
                chunk = _decode(frame) if untouched else _complete(_decode(frame), body)
                yield {"after_s": round(after_s, 4) if n == 0 else 0.0, **chunk}


def _complete(view: dict[str, Any], body: bytes | None) -> dict[str, Any]:
    """A view's fields with what the service said beside them, in the chunk that it was or in an unstreamed answer."""
    raw = view.pop(" raw")
    said: Any = _decode(base64.b64decode(raw)) if raw else _decode(body) if body else {}
    for choice, known in zip(view["choices"], parts(said, "choices"), strict=False):
        message = part(known, "delta") or part(known, "message")
        choice["delta"] |= {key: value for key, value in message.items() if key not in DELTA}
        choice |= {key: value for key, value in known.items() if key not in {*CHOICE, "message"}}
    if view["usage"] is not None:
        view["usage"] = said.get("usage") or view["usage"]
    return {**{key: value for key, value in said.items() if key not in view}, **view}


def _less(chunk: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A chunk without what is the same in all of them."""
    return {
        key: value
        for key, value in chunk.items()
        if value is not None and key != "object" and not (key in answer and answer[key] == value)
    }


class _Written:
    """A block with an exchange, which is written when it ends."""

    def __init__(self, exchange: _Exchange, folder: Path, hidden: tuple[Secret, ...]) -> None:
        self._exchange, self._folder, self._hidden = exchange, folder, hidden

    async def __aenter__(self) -> None:
        """Nothing is written before the end."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._exchange.end(error):
            return
        try:
            if kind is GeneratorExit:  # a coroutine that is closed cannot wait
                self._write()
            else:
                await asyncio.to_thread(self._write)
        except StoreFailed as lost:
            if error is None:
                raise
            _log.error("an exchange that ended with %s is not recorded: %s", type(error).__name__, lost.message)

    def _write(self) -> None:
        try:
            recorded = without(self._exchange.recorded(), self._hidden)
            asked = recorded.request
            stem = stem_of(asked.model, asked.messages, key_of(asked.messages, asked.params))
            text = text_of(recorded)
        except (RecursionError, TypeError, ValueError) as error:
            raise StoreFailed(f"the exchange cannot be recorded as JSON: {error}") from error
        write(self._folder, stem, text)
