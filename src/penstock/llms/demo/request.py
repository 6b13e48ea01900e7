"""What the demo model reads of a request, with types."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from penstock.errors import BadRequest
from penstock.llms.demo.tools import Function
from penstock.messages import text_of


class Named(msgspec.Struct, frozen=True):
    """A function by its name."""

    name: str


class Tool(msgspec.Struct, frozen=True):
    """An offered tool; kinds other than functions are passed over."""

    type: str = "function"
    function: Function | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """The function a client forces."""

    type: str = "function"
    function: Named | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema the answer must fit."""

    schema: dict[str, Any] | bool | None = None


class Format(msgspec.Struct, frozen=True):
    """The form an answer must have."""

    type: str = "text"
    json_schema: JsonSchema | None = None


class Params(msgspec.Struct, frozen=True):
    """The fields of a request that the demo model honours."""

    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    stop: str | list[str] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """What an earlier call called."""

    name: str = ""
    arguments: str = ""


class Called(msgspec.Struct, frozen=True):
    """A call in an earlier assistant message."""

    id: str = ""
    function: CalledFunction = CalledFunction()


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content."""

    type: str = ""
    text: str | None = None


class Turn(msgspec.Struct, frozen=True):
    """A message as far as the demo model reads it."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """All text of the message, its parts joined."""
        return text_of({"content": msgspec.to_builtins(self.content)})


def read(found: Any, form: Any, name: str) -> Any:
    """A part of the request in its form; raises `BadRequest` with what does not fit, and where."""
    try:
        return msgspec.convert(found, form)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(f"the {name} cannot be read: {error}", provider="demo", status=400) from None
