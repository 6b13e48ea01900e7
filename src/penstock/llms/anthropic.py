"""`Claude`: a model of Anthropic, or of any other service that speaks its Messages API.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from reprlib import repr as brief
from typing import Any

from penstock.errors import BadRequest
from penstock.llms.answer import Reading
from penstock.llms.anthropic_wire import MessagesReading
from penstock.llms.remote import RemoteLlm
from penstock.llms.turns import Media, Other, Piece, Text, Turn, invalid, turns, unsupported
from penstock.messages import ChatRequest, is_array, is_object

DEFAULT_MAX_TOKENS = 32_000
"""What a request without `max_tokens` may cost: the API wants a number; every model since Claude 4 takes this one."""
JSON_ONLY = "Answer with one JSON object and nothing else."
"""What `response_format` json_object adds to the system text: the API keeps to a schema only where it is given one."""
BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 30_000}
"""Tokens of thinking that `reasoning_effort` means to a model that does not know effort."""
LEAST_BUDGET = 1024
_BUDGETED = re.compile(r"claude-(3-7-sonnet|(opus|sonnet|haiku)-4(-[015])?)(?=$|[-@](\d{8}|latest))")
"""The models before adaptive thinking."""
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_MIMES = {"image/jpg": "image/jpeg"}
_NO_ID = re.compile(r"[^a-zA-Z0-9_-]")
_MEANS_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "seed": (),
    "store": (False,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that the wire lacks, each with the values under which the answer is what it is without them."""

Block = dict[str, Any]


class Claude(RemoteLlm):
    """A model of Anthropic, asked with an OpenAI chat request.

    What has an equivalent is translated (`stop`, `tools`, `tool_choice`, `parallel_tool_calls`, `response_format`,
    `reasoning_effort`, `user`, `service_tier`, `max_completion_tokens`); fields of Anthropic's own (`thinking`,
    `top_k`, `cache_control`, `output_config`, its tools) go on as they are and win; what the wire cannot express is
    refused with `BadRequest` (status 400, code unsupported_parameter). System messages go to the top, wherever they
    stand. Without `max_tokens` an answer ends after `DEFAULT_MAX_TOKENS`. It speaks version 2023-06-01 of the API, as
    the next one takes no `temperature`; `headers={"anthropic-version": ...}` chooses another.
    """

    provider = "anthropic"
    path = "/messages"

    def _reading(self, request: ChatRequest) -> Reading:
        del request
        return MessagesReading(self._who)

    def _body(self, request: ChatRequest) -> bytes:
        model = self.model or request.model
        try:
            system, messages = conversation(turns(request.messages))
            fields = written(self._fields(request), model=model, system=system)
        except BadRequest as error:
            error.provider = self.provider
            raise
        body = {"model": model, "messages": messages, **fields}
        if request.stream:
            body["stream"] = True
        return self._encoded(body)


def written(params: Mapping[str, Any], *, model: str, system: list[Block]) -> dict[str, Any]:
    """The fields of a request beside its messages; `params` are those of the OpenAI one."""
    asked = {name: value for name, value in params.items() if value is not None}
    most, least = asked.pop("max_completion_tokens", None), asked.pop("max_tokens", DEFAULT_MAX_TOKENS)
    made: dict[str, Any] = {"max_tokens": least if most is None else most}
    native: dict[str, Any] = {}
    if asked.get("response_format") == {"type": "json_object"}:
        del asked["response_format"]
        system = [*system, _text(JSON_ONLY)]
    if "system" in asked:
        system = [*_native_system(asked.pop("system")), *system]
    if system:
        made["system"] = _shortest(system)
    for name, value in asked.items():
        if name in _MEANS_NOTHING:
            if value not in _MEANS_NOTHING[name]:
                raise unsupported(f"Anthropic's wire has nothing for {brief(value)}: leave it out", name)
        elif name in _FIELDS:
            _FIELDS[name](made, value)
        else:
            native[name] = value
    _choose(made, asked)
    _think(made, asked, model)
    for name, value in native.items():
        made[name] = _over(made.get(name), value)
    return made


def _over(ours: Any, native: Any) -> Any:
    """What a native field says, over what an OpenAI one was translated to."""
    if is_object(ours) and is_object(native):
        return {**ours, **native}
    return [*ours, *native] if is_array(ours) and is_array(native) else native


def _native_system(said: Any) -> list[Block]:
    if not isinstance(said, str) and not is_array(said):
        raise invalid("system is a text or a list of blocks", "system")
    blocks: list[Any] = [said] if isinstance(said, str) else said
    return [block if is_object(block) else _text(str(block)) for block in blocks]


def _stop(made: dict[str, Any], value: Any) -> None:
    made["stop_sequences"] = [value] if isinstance(value, str) else value


def _user(made: dict[str, Any], value: Any) -> None:
    made.setdefault("metadata", {"user_id": value})


def _safety(made: dict[str, Any], value: Any) -> None:
    made["metadata"] = {"user_id": value}


def _tier(made: dict[str, Any], value: Any) -> None:
    tier = _TIERS.get(value) if isinstance(value, str) else None
    if tier is None:
        raise unsupported(f"no tier {brief(value)}; there are {', '.join(_TIERS)}", "service_tier")
    made["service_tier"] = tier


def _format(made: dict[str, Any], value: Any) -> None:
    kind = value.get("type") if is_object(value) else None
    if kind == "text":
        return
    said = value.get("json_schema") if is_object(value) and kind == "json_schema" else None
    schema = said.get("schema") if is_object(said) else None
    if not is_object(said) or not is_object(schema):
        raise invalid(
            f"a format is text, json_object, or json_schema with a schema; not {brief(value)}", "response_format"
        )
    if said.get("description"):
        schema = {"description": said["description"], **schema}
    made["output_config"] = {"format": {"type": "json_schema", "schema": schema}}


def _tools(made: dict[str, Any], value: Any) -> None:
    if not is_array(value):
        raise invalid("tools is a list", "tools")
    if value:
        made["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(value)]


def _nothing(made: dict[str, Any], value: Any) -> None:
    """A field that says nothing here, or that is read with others."""


_FIELDS: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "parallel_tool_calls": _nothing,
    "reasoning_effort": _nothing,
    "response_format": _format,
    "safety_identifier": _safety,
    "service_tier": _tier,
    "stop": _stop,
    "stream_options": _nothing,
    "tool_choice": _nothing,
    "tools": _tools,
    "user": _user,
}


def _tool(tool: Any, where: str) -> Any:
    """A function as a tool; a native tool as it is."""
    function = tool.get("function") if is_object(tool) else None
    if not is_object(tool) or not is_object(function):
        if is_object(tool) and tool.get("type") in ("function", "custom") and "input_schema" not in tool:
            raise unsupported("only functions and Anthropic's own tools can be offered", where)
        return tool
    said = {key: value for key, value in function.items() if key != "parameters" and value is not None}
    if said.get("strict") is False:
        del said["strict"]
    schema: Any = function.get("parameters") or {"properties": {}}
    if not is_object(schema):
        raise invalid("parameters are a JSON schema", f"{where}.function.parameters")
    rest = {key: value for key, value in tool.items() if key not in ("type", "function")}
    return {**said, "input_schema": {"type": "object", **schema}, **rest}


def _choose(made: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Which tool must be called, and whether more than one may be."""
    choice = asked.get("tool_choice")
    alone = asked.get("parallel_tool_calls") is False
    if "tools" not in made and choice in (None, "auto", "none"):
        return
    said: dict[str, Any]
    match choice:
        case None if not alone:
            return
        case None | "auto":
            said = {"type": "auto"}
        case "required":
            said = {"type": "any"}
        case "none":
            said = {"type": "none"}
        case {"type": "function", "function": {"name": name}}:
            said = {"type": "tool", "name": name}
        case {"type": "auto" | "any" | "tool" | "none"}:
            said = choice
        case _:
            raise unsupported(f"no choice {brief(choice)}; there are auto, none, required, one function", "tool_choice")
    made["tool_choice"] = {"disable_parallel_tool_use": True, **said} if alone and said["type"] != "none" else said


def _think(made: dict[str, Any], asked: Mapping[str, Any], model: str) -> None:
    """What `reasoning_effort` means: effort and adaptive thinking, a budget for a model that is older than these."""
    effort, most = asked.get("reasoning_effort"), made["max_tokens"]
    if effort is None:
        return
    if effort not in (*BUDGETS, "none"):
        raise unsupported(f"no effort {brief(effort)}; there are none, {', '.join(BUDGETS)}", "reasoning_effort")
    thinking: dict[str, Any] = {"type": "disabled"}
    if effort != "none" and not _BUDGETED.search(model):
        thinking = {"type": "adaptive"}
        level = {"effort": "low" if effort == "minimal" else effort}
        made["output_config"] = {**made.get("output_config", {}), **level}
    elif effort != "none":
        budget = BUDGETS[effort] if not isinstance(most, int) else max(LEAST_BUDGET, min(BUDGETS[effort], most // 2))
        thinking = {"type": "enabled", "budget_tokens": budget}
        if isinstance(most, int) and most <= budget and "thinking" not in asked:
            raise unsupported(
                f"{model} thinks only with max_tokens above {budget}, not {brief(most)}", "reasoning_effort"
            )
    if "thinking" not in asked:
        made["thinking"] = thinking


def conversation(said: Iterable[Turn]) -> tuple[list[Block], list[dict[str, Any]]]:
    """The blocks of the system text, and the messages: users and assistants in turn."""
    system: list[Block] = []
    messages: list[dict[str, Any]] = []
    for turn in said:
        role = "user" if turn.role == "tool" else turn.role
        blocks = _said(turn)
        if role == "system":
            system += blocks
        elif messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks or role == "user":
            messages.append({"role": role, "content": blocks})
    for message in messages:
        message["content"] = _shortest(message["content"])
    return system, messages


def _said(turn: Turn) -> list[Block]:
    """The blocks of one message."""
    rest = dict(turn.rest)
    if turn.role == "tool":
        content = _shortest([_block(piece) for piece in turn.pieces])
        return [{"type": "tool_result", "tool_use_id": _id(turn.call_id), "content": content, **rest}]
    pieces = [piece for piece in turn.pieces if not (isinstance(piece, Text) and not piece.text)]
    blocks = [_block(piece) for piece in pieces]
    if turn.role == "system" and not all(isinstance(piece, Text | Other) for piece in pieces):
        raise unsupported("a system message holds text only", turn.where)
    if turn.role == "assistant":
        calls = [
            {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": call.arguments} for call in turn.calls
        ]
        blocks = _recalled(blocks, calls, turn)
    if blocks and "cache_control" in rest:
        blocks[-1] = {"cache_control": rest.pop("cache_control"), **blocks[-1]}
    for key in rest:
        raise unsupported("Anthropic's messages have no such key: leave it out", f"{turn.where}.{key}")
    return blocks


def _recalled(texts: list[Block], calls: list[Block], turn: Turn) -> list[Block]:
    """An earlier answer's blocks with its thinking at the places where `MessagesReading` found it."""
    own = turn.extra.get("anthropic") if is_object(turn.extra) else None
    thoughts = own.get("thinking") if is_object(own) else None
    if not is_array(thoughts):
        return texts + calls
    entries = sorted((entry for entry in thoughts if is_object(entry)), key=lambda entry: _count(entry, "index"))
    if len(texts) == 1 and texts[0].get("type") == "text":
        texts = _parted(texts[0], [_count(entry, "offset") for entry in entries])
    blocks = texts + calls
    for entry in entries:
        native = {key: value for key, value in entry.items() if key not in ("index", "offset")}
        blocks.insert(_count(entry, "index"), native)
    return blocks


def _count(entry: Block, key: str) -> int:
    value = entry.get(key)
    return max(0, value) if isinstance(value, int) else 0


def _parted(block: Block, offsets: list[int]) -> list[Block]:
    """A text in the pieces between which there was thinking."""
    text: str = block["text"]
    cuts = [0, *sorted({cut for cut in offsets if 0 < cut < len(text)}), len(text)]
    return [{**block, "text": text[start:end]} for start, end in pairwise(cuts)]


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _block(piece: Piece) -> Block:
    match piece:
        case Text():
            return {**_text(piece.text), **piece.rest}
        case Media():
            return _media(piece)
        case Other():
            return piece.part


def _media(media: Media) -> Block:
    """An image or a document."""
    if media.kind == "audio":
        raise unsupported("Anthropic's wire takes no sound", media.where)
    if media.detail not in ("", "auto", "high"):
        raise unsupported(f"an image is always seen in full, not with detail {media.detail!r}", media.where)
    image = media.kind == "image" or media.mime.startswith("image/")
    block: Block = {"type": "image" if image else "document", "source": _source(media, image=image), **media.rest}
    if media.name and not image:
        block["title"] = media.name
    return block


def _source(media: Media, *, image: bool) -> Block:
    if media.file_id:
        return {"type": "file", "file_id": media.file_id}
    if media.url:
        if not media.url.startswith(("https://", "http://")):
            raise unsupported("an address is https://... or data:<type>;base64,<data>", media.where)
        return {"type": "url", "url": media.url}
    if image or media.mime == "application/pdf":
        return {"type": "base64", "media_type": _MIMES.get(media.mime, media.mime), "data": media.data}
    if not media.mime.startswith("text/"):
        raise unsupported(f"a file is a PDF, a text or an image, not {media.mime or 'of no type'!r}", media.where)
    try:
        text = base64.b64decode(media.data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise invalid("the text of the file is not UTF-8 in base64", media.where) from error
    return {"type": "text", "media_type": "text/plain", "data": text}


def _shortest(blocks: list[Block]) -> str | list[Block]:
    """Blocks as the text they are where it is only one, without more to it."""
    if not blocks:
        return ""
    only = blocks[0]
    return only["text"] if len(blocks) == 1 and only.keys() == {"type", "text"} else blocks


def _id(said: str) -> str:
    """The id of a call in the letters that the API takes: other services use more."""
    return _NO_ID.sub("_", said)
