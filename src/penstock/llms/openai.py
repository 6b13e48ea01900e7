"""`Gpt`: any service that speaks the OpenAI chat wire (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, get_args
from urllib.parse import urlsplit

from penstock.errors import BadRequest, LlmError, UsageError
from penstock.llms.answer import Reading, Views, Whole
from penstock.llms.canonical import Canonical
from penstock.llms.failures import Who
from penstock.llms.openai_responses import fields_of
from penstock.llms.openai_responses_wire import ResponsesReading
from penstock.llms.openai_wire import decode_chunk, decode_reply
from penstock.llms.remote import RemoteLlm
from penstock.llms.sse import Read
from penstock.messages import ChatRequest, Chunk, Message, is_array, is_object

if TYPE_CHECKING:
    from penstock.llms.prices import Price
    from penstock.llms.services import Service
    from penstock.llms.transport import Limits
    from penstock.policies import Policy

Api = Literal["chat", "responses"]
ASK_USAGE = b',"stream_options":{"include_usage":true}}'
REASONING = ("reasoning", "reasoning_content", "reasoning_details")
EXTRA = "extra_content"
NATIVE = ("anthropic", "openai")
"""The parts of `extra_content` that only wires of their own take back."""


class Options(TypedDict, total=False):
    """What `Gpt` takes beside `api`: the arguments of `RemoteLlm`."""

    model: str
    api_key: str | None
    base_url: str | None
    service: str | Service
    headers: Mapping[str, str] | None
    params: Mapping[str, Any] | None
    limits: Limits | None
    price: Price | None
    policies: Iterable[Policy]


class Gpt(RemoteLlm):
    """A model of OpenAI, or of any other service that speaks its wire: `service` names the row in `SERVICES`.

    `api` is where it is asked: "chat", or "responses" for the models that need it. Requests and answers are the same
    with both; what the Responses API has no words for raises `BadRequest`. `options` are those of `RemoteLlm`. What
    other providers left in the messages for themselves is not sent to a service that would refuse it.
    """

    provider = "openai"
    path = "/chat/completions"

    def __init__(self, *, api: Api = "chat", **options: Unpack[Options]) -> None:
        if api not in get_args(Api):
            raise UsageError(f"no api {api!r}; known are {', '.join(get_args(Api))}")
        super().__init__(**options)
        self.api = api
        self._plain = not (self._service.takes_reasoning or _unlisted(self._service, self.base_url))
        if api == "responses":
            self._target = self._at("/responses")

    def _reading(self, request: ChatRequest) -> Reading:
        if self.api == "responses":
            return ResponsesReading(self._who, self.model or request.model)
        return ChatReading(self._who)

    def _body(self, request: ChatRequest) -> bytes:
        """The bytes to send: the client's own when nothing in them must change."""
        model = self.model or request.model
        if self.api == "responses":
            return self._encoded(self._said(request, model))
        messages = self._messages(request)
        ask = request.stream and self._service.usage_on_request and not request.wants_usage
        if request.data is not None and model == request.model and not self.params and messages is request.messages:
            if not ask:
                return request.data
            if "stream_options" not in request.params:
                return request.data.rstrip()[:-1] + ASK_USAGE
        fields: dict[str, Any] = {**self._fields(request), "model": model, "messages": messages}
        if request.stream:
            fields["stream"] = True
        elif "stream_options" not in request.params:
            fields.pop("stream_options", None)
        if ask:
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        return self._encoded(fields)

    def _messages(self, request: ChatRequest) -> Sequence[Message]:
        """The messages as the service takes them: those of the request where nothing must be left out."""
        data = request.data
        if data is not None and b"extra_content" not in data and not (self._plain and b"reasoning" in data):
            return request.messages
        taken = [_taken(message, plain=self._plain) for message in request.messages]
        return request.messages if taken == [*request.messages] else taken

    def _said(self, request: ChatRequest, model: str) -> dict[str, Any]:
        """The body of a request to the Responses API; models that are known not to reason refuse to be asked for it."""
        given, info = self._fields(request), self.info_of(model)
        if info is not None and info.capabilities and "reasoning" not in info.capabilities:
            given.setdefault("include", [])
        try:
            fields = fields_of(given, request.messages)
        except BadRequest as error:
            error.provider = self.provider
            raise
        return {**fields, "model": model, "stream": request.stream}


def _unlisted(row: Service, address: str) -> bool:
    """Whether somebody else answers at an address that was given for OpenAI: who that is nobody knows."""
    usual, host = urlsplit(row.base_url).hostname, urlsplit(address).hostname
    return row.name == Gpt.provider and not f".{host}".endswith(f".{usual}")


def _taken(message: Message, *, plain: bool) -> Message:
    """A message without what was meant for another provider; a service that wants them `plain` is sent no more."""
    left = _own(message, plain=plain)
    if is_object(left) and is_array(left.get("tool_calls")):
        left["tool_calls"] = [_own(call, plain=plain) for call in left["tool_calls"]]
    return cast("Message", left)


def _own(said: Any, *, plain: bool) -> Any:
    if not is_object(said):
        return said
    gone, extra = {EXTRA, *(REASONING if plain else ())}, said.get(EXTRA)
    left = {name: value for name, value in said.items() if name not in gone}
    if is_object(extra):
        extra = {name: value for name, value in extra.items() if name not in NATIVE}
    return {**left, EXTRA: extra} if extra and not plain else left


class ChatReading(Reading):
    """Chunks as they come; their bytes go on untouched where nothing had to be repaired."""

    __slots__ = ("_canonical", "_who")

    def __init__(self, who: Who) -> None:
        self._who = who
        self._canonical = Canonical()

    def whole(self, body: bytes) -> Whole:
        """An unstreamed answer, with its bytes where nothing had to be repaired."""
        view, mended = decode_reply(body, self._who)
        repaired = self._canonical.repair(view) or mended
        return (view, None, body) if repaired else (view, body, None)

    def views(self, read: Read) -> Views:
        """The chunks of one network read."""
        views: list[Chunk] = []
        changed = read.plain is None
        failure: LlmError | None = None
        for payload in read.payloads:
            try:
                view, mended = decode_chunk(payload, self._who)
            except LlmError as error:  # what came before it is told first
                changed, failure = True, error
                break
            if self._canonical.repair(view) or mended:
                changed = True
            views.append(view)
        if changed:
            for view, payload in zip(views, read.payloads, strict=failure is None):
                view.raw = payload
        return views, None if changed else read.plain, failure

    def close(self, closing: Chunk) -> None:
        """Add what is still held to the chunk that ends a stream."""
        self._canonical.repair(closing)
