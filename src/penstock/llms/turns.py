"""Reads the messages of an OpenAI chat request for wires of other kinds, as plain values.

Nothing is dropped here but `UNSAID`: keys that are not known travel in `rest`. What cannot be read is a `BadRequest`
(status 400) whose `param` says where: `messages[3].content[1]`.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from reprlib import repr as brief
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from penstock.errors import BadRequest
from penstock.messages import Message, is_array, is_object

_KNOWN = {"role", "content", "tool_calls", "tool_call_id", "extra_content", "refusal"}
UNSAID = {
    "annotations",  # of an answer that cited the web
    "name",  # of a speaker; frameworks of agents write it on every message
    "parsed",  # what the OpenAI SDK read out of an answer
    "provider_specific_fields",  # with `thinking_blocks`, what LiteLLM adds to an answer
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "thinking_blocks",
}
"""The keys of messages that `turns` leaves out, whatever they hold: SDKs and frameworks put them there, they say
nothing to a model of another wire. What a provider wants back stands in `extra_content`. A null (`audio: null`,
`function_call: null`) is left out under any key."""
_decode = msgspec.json.Decoder().decode


class Text(NamedTuple):
    """A text part; `rest` are its further keys, as `cache_control`."""

    text: str
    where: str
    rest: dict[str, Any]


class Media(NamedTuple):
    """An image, a file or a sound: the base64 `data` of a `mime` type, else the `url` or the `file_id` where it is.

    `mime` is empty where it is not known; `detail` is what an image asks for (auto, low, high), empty when nothing.
    """

    kind: Literal["image", "file", "audio"]
    where: str
    rest: dict[str, Any]
    mime: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    name: str = ""
    detail: str = ""

    def decoded(self) -> str:
        """The text of a file that came with its data."""
        try:
            return base64.b64decode(self.data, validate=True).decode()
        except (binascii.Error, UnicodeError) as error:
            raise invalid("the text of the file is not UTF-8 in base64", self.where) from error


class Other(NamedTuple):
    """A part of a type that OpenAI's wire does not have: perhaps the native one, to be sent on as it is."""

    part: dict[str, Any]
    where: str


Piece: TypeAlias = Text | Media | Other


class Call(NamedTuple):
    """A tool call of an earlier answer, its arguments as an object."""

    id: str
    name: str
    arguments: dict[str, Any]
    extra: Any
    where: str


class Turn(NamedTuple):
    """One message. A `developer` one has the role system.

    `call_id` and `function` say which call a tool's result is for. `extra` is its `extra_content`, `rest` are the keys
    that OpenAI's wire does not have, or most others lack; none of `UNSAID`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    pieces: list[Piece]
    where: str
    calls: Sequence[Call] = ()
    call_id: str = ""
    function: str = ""
    extra: Any = None
    rest: Mapping[str, Any] = MappingProxyType({})


def unsupported(text: str, param: str) -> BadRequest:
    """The error of something that a wire cannot express."""
    return _bad(text, param, "unsupported_parameter")


def invalid(text: str, param: str) -> BadRequest:
    """The error of something that no wire could read."""
    return _bad(text, param, "invalid_value")


def turns(messages: Iterable[Message]) -> Iterator[Turn]:
    """The messages one by one, each as OpenAI's wire means it, without the keys in `UNSAID`."""
    functions: dict[str, str] = {}
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not is_object(message):
            raise invalid("a message is an object with a role and content", where)
        turn = _turn(message, where, functions)
        functions.update((call.id, call.name) for call in turn.calls)
        yield turn


def pieces(content: object, where: str) -> list[Piece]:
    """The parts of a message's content; none where there is none."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content, where, {})]
    if not is_array(content):
        raise invalid(f"content is a text or a list of parts, not {brief(content)}", where)
    return [_piece(part, f"{where}[{number}]") for number, part in enumerate(content)]


def arguments_of(text: object) -> dict[str, Any]:
    """The arguments a model wrote as the object that native wires want.

    What is no object goes under the key `INVALID_JSON`, so that the model sees what it wrote and the tool's error.
    """
    if is_object(text):
        return text
    try:
        value = _decode(text or "{}") if isinstance(text, str) else text
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    return value if is_object(value) else {"INVALID_JSON": text}


def _turn(message: dict[str, Any], where: str, functions: dict[str, str]) -> Turn:
    role = message.get("role")
    parts = pieces(message.get("content"), f"{where}.content")
    extra = _extra(message, where)
    rest = {key: value for key, value in message.items() if key not in _KNOWN | UNSAID and value is not None}
    match role:
        case "system" | "developer":
            return Turn("system", parts, where, extra=extra, rest=rest)
        case "user":
            return Turn("user", parts, where, extra=extra, rest=rest)
        case "assistant":
            if message.get("refusal"):
                parts.append(Text(_text(message, "refusal", f"{where}.refusal"), f"{where}.refusal", {}))
            return Turn("assistant", parts, where, calls=_calls(message, where), extra=extra, rest=rest)
        case "tool":
            call_id = message.get("tool_call_id")
            if not isinstance(call_id, str):
                raise invalid("a tool's result names its call", f"{where}.tool_call_id")
            function = functions.get(call_id) or _text(message, "name", f"{where}.name")
            return Turn("tool", parts, where, call_id=call_id, function=function, extra=extra, rest=rest)
        case "function":
            raise unsupported("the role 'function' is not supported: send role 'tool'", f"{where}.role")
        case _:
            raise invalid(f"no role {brief(role)}; known are system, developer, user, assistant, tool", f"{where}.role")


def _calls(message: dict[str, Any], where: str) -> list[Call]:
    said = message.get("tool_calls")
    if not said:
        return []
    if not is_array(said):
        raise invalid("tool_calls is a list", f"{where}.tool_calls")
    return [_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(said)]


def _call(call: object, where: str) -> Call:
    function = call.get("function") if is_object(call) else None
    if not is_object(call) or not is_object(function):
        raise unsupported("only calls of functions can be sent: {'type': 'function', 'function': {...}}", where)
    name, arguments = _text(function, "name", where), arguments_of(function.get("arguments"))
    return Call(_text(call, "id", where), name, arguments, _extra(call, where), where)


def _piece(part: object, where: str) -> Piece:
    if not is_object(part):
        raise invalid(f"a part is an object with a type, not {brief(part)}", where)
    kind = part.get("type")
    rest = {key: value for key, value in part.items() if key not in ("type", kind) and value is not None}
    match kind:
        case "text" | "refusal":
            return Text(_text(part, kind, where), where, rest)
        case "image_url" | "file" | "input_audio":
            said = part.get(kind)
            if kind == "image_url" and isinstance(said, str):
                said = {"url": said}
            if not is_object(said):
                raise invalid(f"a part of type {kind!r} has an object {kind!r}", where)
            return _media(kind, said, where, rest)
        case str():
            return Other(part, where)
        case _:
            raise invalid("a part needs a type", where)


def _media(kind: str, said: dict[str, Any], where: str, rest: dict[str, Any]) -> Media:
    if kind == "input_audio":
        mime = f"audio/{_text(said, 'format', where) or 'wav'}"
        return Media("audio", where, rest, mime=mime, data=_text(said, "data", where))
    if kind == "image_url":
        mime, data, url = _located(_text(said, "url", where), where)
        return Media("image", where, rest, mime=mime, data=data, url=url, detail=_text(said, "detail", where))
    name = _text(said, "filename", where)
    if file_id := _text(said, "file_id", where):
        return Media("file", where, rest, file_id=file_id, name=name)
    mime, data, url = _located(_text(said, "file_data", where), where)
    return Media("file", where, rest, mime=mime or mimetypes.guess_type(name)[0] or "", data=data, url=url, name=name)


def _text(said: dict[str, Any], key: str, where: str) -> str:
    """A field that is a text; empty where it is missing."""
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise invalid(f"{key} is a text, not {brief(value)}", where)
    return value or ""


def _extra(said: dict[str, Any], where: str) -> dict[str, Any] | None:
    extra = said.get("extra_content")
    if extra is not None and not is_object(extra):
        raise invalid(f"extra_content is an object, not {brief(extra)}", f"{where}.extra_content")
    return extra


def _located(address: str, where: str) -> tuple[str, str, str]:
    """The type, data and URL that an address means: `data:image/png;base64,...` holds the first two."""
    if not address:
        raise invalid("there is neither data nor an address", where)
    if not address.startswith("data:"):
        return "", "", address
    head, comma, data = address[5:].partition(",")
    mime, *options = head.split(";")
    if not comma or "base64" not in options:
        raise invalid("a data URL is written data:<type>;base64,<data>", where)
    return mime, data, ""


def _bad(text: str, param: str, code: str) -> BadRequest:
    error = BadRequest(f"{param}: {text}", status=400, code=code)
    error.param, error.type = param, "invalid_request_error"
    return error
