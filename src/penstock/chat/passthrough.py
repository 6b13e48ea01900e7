"""`PassthroughExecutor`: one chat call to one LLM, every field forwarded, the answer fit for every OpenAI client.

It looks at the views and leaves the bytes alone where nothing needs repair, which is nearly always.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from penstock.errors import Invalid
from penstock.events import Chunks, Event
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Usage, is_array, is_object
from penstock.run import Executor, Run

# Fields that would send the configured key, or the conversation, somewhere else.
DENIED = frozenset(
    (
        "api_base",
        "api_key",
        "api_type",
        "api_version",
        "azure_endpoint",
        "base_url",
        "default_headers",
        "extra_body",
        "extra_headers",
        "extra_query",
        "http_client",
    )
)
OBJECT = "chat.completion.chunk"
# Fields that name state which a gateway would have to keep.
STATEFUL = ("store", "previous_response_id", "background", "conversation")
# Fields that hold the user's own data or schemas, where any key may stand.
OPEN_FIELDS = frozenset(("tools", "functions", "response_format", "metadata", "logit_bias", "prediction"))


class PassthroughExecutor:
    """Forwards a chat request to `llm` and tells what comes back, on the caller's own run.

    A field of `DENIED`, at any depth, raises `Invalid` unless it is in `allow`; so does a stateful field.
    """

    def __init__(self, llm: Executor[ChatRequest, ChatReply], *, allow: Iterable[str] = ()) -> None:
        self.llm = llm
        self._denied = DENIED - frozenset(allow)
        self._spelled = (b"\\u00", *(name.encode() for name in self._denied))

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Answer one request; raises `Invalid` for what may not be forwarded, and what the LLM raises."""
        self._admit(request)
        if not request.stream:
            return await self.llm(request, run)
        contract = _Contract(request, run)
        reply = await self.llm(request, run.telling(contract.tell))
        await contract.end(reply)
        return reply

    def _admit(self, request: ChatRequest) -> None:
        for field in STATEFUL:
            if request.params.get(field):
                raise Invalid(
                    f"{field!r} is not supported here: send the whole conversation in 'messages'",
                    param=field,
                    code="unsupported_value",
                )
        if request.data is not None and not any(name in request.data for name in self._spelled):
            return
        for name, value in request.params.items():
            self._check(name, {name: None if name in OPEN_FIELDS else value})
        for number, message in enumerate(request.messages):
            self._check(f"messages[{number}]", {key: said for key, said in message.items() if key != "tool_calls"})

    def _check(self, where: str, value: object) -> None:
        for key in _keys(value):
            if key in self._denied:
                name = where if key == where else f"{where}.{key}"
                raise Invalid(
                    f"{name!r} may not be set by a request: keys and addresses are configured on the server",
                    param=name,
                    code="unsupported_value",
                )


class _Contract:
    """What clients rely on in a stream: a role first, all required fields, usage only on request, once and last."""

    __slots__ = (
        "_choices",
        "_created",
        "_emit",
        "_finished",
        "_id",
        "_model",
        "_sent_usage",
        "_started",
        "_usage",
        "_wants_usage",
    )

    def __init__(self, request: ChatRequest, run: Run) -> None:
        self._emit = run.emit
        self._wants_usage = request.wants_usage
        self._choices: int = request.params.get("n") or 1
        self._started: set[int] = set()
        self._finished: set[int] = set()
        self._id: str | None = None
        self._model = request.model
        self._created = 0
        self._usage: Usage | None = None
        self._sent_usage = False

    async def tell(self, event: Event) -> None:
        """Pass an event on, its chunks repaired where they break the contract."""
        if not isinstance(event, Chunks) or event.path:
            await self._emit(event)
            return
        changed = False
        for view in event.views:
            whole = view.object == OBJECT and None not in (view.id, view.model, view.created)
            if not whole or self._id is None:
                self._fill(view)
                changed = changed or not whole
            if view.usage is not None and self._withhold(view):
                changed = True
            for choice in view.choices:
                if self._begin(choice):
                    changed = True
        if changed:
            event = _changed(event)
        if event.views:
            await self._emit(event)

    async def end(self, reply: ChatReply) -> None:
        """Tell the usage at the end of the stream where it was asked for and has not been told."""
        usage = self._usage or reply.usage
        if self._wants_usage and not self._sent_usage and usage is not None:
            view = Chunk(choices=[], usage=usage)
            self._fill(view)
            await self._emit(Chunks(views=[view]))

    def _begin(self, choice: ChunkChoice) -> bool:
        """Note how far a choice is; whether its first delta lacked the role, which it now has."""
        if choice.finish_reason is not None:
            self._finished.add(choice.index)
        if choice.index in self._started:
            return False
        self._started.add(choice.index)
        if choice.delta.role is not None:
            return False
        choice.delta.role = "assistant"
        return True

    def _fill(self, view: Chunk) -> None:
        """Give a chunk the required fields it lacks, the same ones for all chunks of the stream."""
        self._id = view.id = view.id or self._id or f"chatcmpl-{uuid.uuid4().hex}"
        self._model = view.model = view.model or self._model
        self._created = view.created = view.created or self._created or int(time.time())
        view.object = OBJECT

    def _withhold(self, view: Chunk) -> bool:
        """Take the usage off a chunk, unless it is the one usage chunk that the client asked for, at its place."""
        ended = self._started == self._finished and len(self._finished) >= self._choices
        if ended and self._wants_usage and not view.choices and not self._sent_usage:
            self._sent_usage = True
            return False
        self._usage, view.usage = view.usage, None
        return True


def _changed(event: Chunks) -> Chunks:
    """The event without its bytes and its empty chunks; each view keeps the JSON it came from."""
    if event.data is not None:
        for view, part in zip(event.views, event.data.split(b"\n\n"), strict=False):
            if view.raw is None:
                view.raw = part[6:]
    views = [view for view in event.views if view.choices or view.usage is not None]
    return Chunks(views=views, path=event.path)


def _keys(value: Any) -> Iterator[str]:
    """Every key at every depth."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if is_object(inner):
            yield from inner
            waiting.extend(inner.values())
        elif is_array(inner):
            waiting.extend(inner)
