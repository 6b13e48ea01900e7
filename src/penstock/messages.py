"""What models take and give: requests are plain JSON with types, answers are structs.

The shapes are those of the OpenAI chat API (https://platform.openai.com/docs/api-reference/chat), which every provider
class translates its own wire to. Structs here are *views*: they name what Penstock looks at; whatever else a service
sends stays in the bytes beside them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class AgentType(enum.StrEnum):
    """The kinds of LLM an agent can be given."""

    GOOGLE_GEMINI = "google_gemini"
    ANTHROPIC_CLAUDE = "anthropic_claude"
    OPENAI_GPT = "openai_gpt"
    LOCAL = "local"
    CUSTOM = "custom"


class FunctionCall(TypedDict):
    """A function's name and its arguments as the JSON text the model wrote."""

    name: str
    arguments: str


class ToolCallMessage(TypedDict):
    """A tool call inside an assistant message; `extra_content` is what its provider wants back with it."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    extra_content: NotRequired[dict[str, Any]]


class Message(TypedDict, total=False):
    """One turn as clients write it; keys that are not named here are kept and forwarded."""

    role: Role
    content: str | list[dict[str, Any]] | None
    name: str
    tool_calls: list[ToolCallMessage]
    tool_call_id: str
    reasoning_content: str
    extra_content: dict[str, Any]


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether decoded JSON is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether decoded JSON is an array."""
    return isinstance(value, list)


def merged(known: Any, piece: Any) -> Any:
    """Extra content with a further piece of it: objects key by key, lists one after the other, else the later value."""
    if is_object(known) and is_object(piece):
        return {**known, **{key: merged(known.get(key), value) for key, value in piece.items()}}
    if is_array(known) and is_array(piece):
        return [*known, *piece]
    return known if piece is None else piece


def text_of(message: Message) -> str:
    """All text of a message, its parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = [] if content is None else content
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One chat call. `params` holds every other field of the OpenAI request, known to Penstock or not.

    `data` is the body this request was decoded from, where there was one: a provider that speaks the same wire and has
    nothing to change forwards these bytes.
    """

    model: str = ""
    messages: Sequence[Message]
    stream: bool = True
    params: Mapping[str, Any] = {}
    data: bytes | None = None

    @classmethod
    def of(cls, prompt: str | Sequence[Message], *, model: str = "", stream: bool = True, **params: Any) -> ChatRequest:
        """A request from one prompt or a list of messages: `ChatRequest.of("Say hello.", temperature=0)`."""
        messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return cls(model=model, messages=messages, stream=stream, params=params)

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for a usage chunk at the end of the stream."""
        options = self.params.get("stream_options")
        return is_object(options) and bool(options.get("include_usage"))


class PromptTokens(msgspec.Struct, gc=False):
    """How the prompt tokens divide: read from a cache of the service, written into it, and the rest."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionTokens(msgspec.Struct, gc=False):
    """How the completion tokens divide."""

    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens of one call, or of several added up. `partial`: counted from the chunks that arrived, not reported."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    total_tokens: int | None = 0
    prompt_tokens_details: PromptTokens | None = None
    completion_tokens_details: CompletionTokens | None = None
    partial: bool = False

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, cached ones included."""
        return self.prompt_tokens or 0

    @property
    def completion(self) -> int:
        """Tokens of the answer, reasoning included."""
        return self.completion_tokens or 0

    @property
    def total(self) -> int:
        """Tokens of prompt and answer."""
        return self.total_tokens or self.prompt + self.completion

    @property
    def cached(self) -> int:
        """Prompt tokens read from a cache of the service."""
        return (self.prompt_tokens_details.cached_tokens or 0) if self.prompt_tokens_details else 0

    @property
    def cache_written(self) -> int:
        """Prompt tokens written into a cache of the service."""
        return (self.prompt_tokens_details.cache_write_tokens or 0) if self.prompt_tokens_details else 0

    @property
    def reasoning(self) -> int:
        """Completion tokens spent on reasoning."""
        return (self.completion_tokens_details.reasoning_tokens or 0) if self.completion_tokens_details else 0

    def __add__(self, other: Usage) -> Usage:
        """Both added up; partial when either is."""
        return Usage(
            prompt_tokens=self.prompt + other.prompt,
            completion_tokens=self.completion + other.completion,
            total_tokens=self.total + other.total,
            prompt_tokens_details=PromptTokens(
                self.cached + other.cached, (self.cache_written + other.cache_written) or None
            ),
            completion_tokens_details=CompletionTokens(self.reasoning + other.reasoning),
            partial=self.partial or other.partial,
        )


class FunctionDelta(msgspec.Struct, gc=False, omit_defaults=True):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, gc=False, omit_defaults=True):
    """A piece of a tool call; `id`, name and `extra_content` come once, with the first piece of an index."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None
    extra_content: Any = None


class Delta(msgspec.Struct, gc=False, omit_defaults=True):
    """What one chunk adds to one choice.

    `extra_content` holds what a provider wants back in the next turn, under the provider's name: `merged` adds them up.
    """

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: Any = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    extra_content: Any = None


class ChunkChoice(msgspec.Struct, gc=False, kw_only=True):
    """One choice's part of a chunk."""

    index: int = 0
    delta: Delta
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """The view of one streamed chunk. `raw` is its JSON as it came, set where the view was changed."""

    choices: list[ChunkChoice]
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None
    raw: bytes | None = msgspec.field(default=None, name=" raw")


class ToolCall(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A whole tool call: `arguments` is the JSON text the model wrote, not yet validated."""

    id: str
    name: str
    arguments: str
    extra_content: Any = None


class Choice(msgspec.Struct, frozen=True):
    """One of the `n` answers of a reply; `extra_content` is what its provider wants back in the next turn."""

    index: int = 0
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    extra_content: Any = None


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of one call; `content` and `tool_calls` are those of choice 0.

    `data` is the body the service sent, where nothing in it needed repair; `raw` the body that did.
    """

    choices: tuple[Choice, ...]
    id: str = ""
    model: str = ""
    created: int = 0
    usage: Usage | None = None
    data: bytes | None = None
    raw: bytes | None = None

    @property
    def first(self) -> Choice:
        """Choice 0; an empty one when the service gave none."""
        return self.choices[0] if self.choices else Choice()

    @property
    def content(self) -> str:
        """The text of choice 0, empty when there is none."""
        return self.first.content or ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of choice 0."""
        return self.first.tool_calls

    @property
    def reasoning(self) -> str:
        """The reasoning of choice 0, empty when there is none."""
        return self.first.reasoning or ""

    @property
    def finish_reason(self) -> str | None:
        """Why choice 0 ended: stop, length, tool_calls, content_filter."""
        return self.first.finish_reason

    @property
    def message(self) -> Message:
        """Choice 0 as the assistant message that continues the conversation."""
        message: Message = {"role": "assistant", "content": self.first.content}
        if self.tool_calls:
            message["tool_calls"] = [_call_message(call) for call in self.tool_calls]
        if self.first.extra_content:
            message["extra_content"] = self.first.extra_content
            message["reasoning_content"] = self.reasoning
        return message


def _call_message(call: ToolCall) -> ToolCallMessage:
    function: FunctionCall = {"name": call.name, "arguments": call.arguments}
    if call.extra_content:
        return {"id": call.id, "type": "function", "function": function, "extra_content": call.extra_content}
    return {"id": call.id, "type": "function", "function": function}
