"""`Claude`: a model of Anthropic, or of any other service that speaks its Messages API.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from reprlib import repr as brief
from typing import Any

from penstock.errors import BadRequest
from penstock.llms.answer import Reading
from penstock.llms.anthropic_wire import MessagesReading, thinking_of
from penstock.llms.remote import RemoteLlm
from penstock.llms.schemas import closed_schema, wanted_schema
from penstock.llms.turns import (
    Media,
    Other,
    Piece,
    Text,
    Turn,
    invalid,
    turns,
    unsupported,
)
from penstock.messages import ChatRequest, is_array, is_object

DEFAULT_MAX_TOKENS = 32_000
"""What a request without `max_tokens` may cost, at most: the API wants a number that the model can reach."""
JSON_ONLY = "Answer with one JSON object and nothing else."
"""What `response_format` json_object adds to the system text: the API keeps to a schema only where it is given one."""
BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 30_000}
"""Tokens of thinking that `reasoning_effort` means to a model that does not know effort."""
LEAST_BUDGET = 1024
_BUDGETED = re.compile(r"claude-(3-7-sonnet|(opus|sonnet|haiku)-4(-[015])?)(?=$|[-@](\d{8}|latest))")
"""The models before adaptive thinking."""
_THINKING = ("thinking", "redacted_thinking")
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_MIMES = {"image/jpg": "image/jpeg"}
_NO_ID = re.compile(r"[^a-zA-Z0-9_-]")
_MEANS_NOTHING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("audio", "function_call", "prediction", "seed", "web_search_options"), ()),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_retention"), ()),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), (0,)),
    **dict.fromkeys(("logprobs", "store"), (False,)),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "verbosity": ("medium",),
}
"""Fields that the wire lacks, each with the values under which the answer is what it is without them."""

Block = dict[str, Any]


class Claude(RemoteLlm):
    """A model of Anthropic, asked with an OpenAI chat request.

    What has an equivalent is translated (`stop`, `tools`, `tool_choice`, `parallel_tool_calls`, `response_format`,
    `reasoning_effort`, `user`, `service_tier`, `max_completion_tokens`); fields of Anthropic's own (`thinking`,
    `top_k`, `cache_control`, `output_config`, its tools) go on as they are and win; what the wire cannot express is
    refused with `BadRequest` (status 400, code unsupported_parameter). System messages go to the top, wherever they
    stand. Of `metadata` only `user_id` is sent: OpenAI's labels are not the model's. Without `max_tokens` an answer
    ends after `DEFAULT_MAX_TOKENS`, or the model's own limit where it is known to be lower. It speaks version
    2023-06-01 of the API, as the next one takes no `temperature`; `headers={"anthropic-version": ...}` chooses another.
    """

    provider = "anthropic"
    path = "/messages"

    def _reading(self, request: ChatRequest) -> Reading:
        del request
        return MessagesReading(self._who)

    def _body(self, request: ChatRequest) -> bytes:
        model = self.model or request.model
        info = self.info_of(model)
        try:
            system, messages = conversation(turns(request.messages))
            fields = written(
                self._fields(request),
                model=model,
                system=system,
                most=min(DEFAULT_MAX_TOKENS, (info and info.max_output_tokens) or DEFAULT_MAX_TOKENS),
                thinks=not thoughtless(messages),
            )
        except BadRequest as error:
            error.provider = self.provider
            raise
        body = {"model": model, "messages": messages, **fields}
        if request.stream:
            body["stream"] = True
        return self._encoded(body)


def written(params: Mapping[str, Any], *, model: str, system: list[Block], most: int, thinks: bool) -> dict[str, Any]:
    """The fields of a request beside its messages; `most` is the `max_tokens` of one that has none."""
    asked = {name: value for name, value in params.items() if value is not None}
    older = asked.pop("max_tokens", most)
    made: dict[str, Any] = {"max_tokens": asked.pop("max_completion_tokens", older), **_metadata(asked)}
    native: dict[str, Any] = {}
    if asked.get("response_format") == {"type": "json_object"}:
        del asked["response_format"]
        system = [*system, _text(JSON_ONLY)]
    if "system" in asked:
        system = [*_native_system(asked.pop("system")), *system]
    if system:
        made["system"] = _shortest(system)
    for name, value in asked.items():
        if name in _FIELDS:
            _FIELDS[name](made, value)
        elif name in _MEANS_NOTHING and value not in _MEANS_NOTHING[name]:
            raise unsupported(f"Anthropic's wire has nothing for {brief(value)}: leave it out", name)
        elif name not in _MEANS_NOTHING and name not in _READ_APART:
            native[name] = value
    _choose(made, asked)
    _think(made, asked, model=model, thinks=thinks)
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
    said = [value] if isinstance(value, str) else value
    if not is_array(said) or not all(isinstance(one, str) for one in said):
        raise invalid("stop is a text or a list of texts", "stop")
    if kept := [one for one in said if one.strip()]:  # the API takes no blank ones
        made["stop_sequences"] = kept


def _metadata(asked: dict[str, Any]) -> dict[str, Any]:
    """Whom a request is for; three fields may say it."""
    labels = asked.pop("metadata", {})
    if not is_object(labels):
        raise invalid("metadata is an object", "metadata")
    ids = [labels.get("user_id"), *(asked.pop(name, None) for name in ("safety_identifier", "user"))]
    known = next((one for one in ids if one is not None), None)
    return {} if known is None else {"metadata": {"user_id": known}}


def _tier(made: dict[str, Any], value: Any) -> None:
    tier = _TIERS.get(value) if isinstance(value, str) else None
    if tier is None:
        raise unsupported(f"no tier {brief(value)}; there are {', '.join(_TIERS)}", "service_tier")
    made["service_tier"] = tier


def _format(made: dict[str, Any], value: Any) -> None:
    schema = wanted_schema(value)
    if schema is not None:
        made["output_config"] = {"format": {"type": "json_schema", "schema": closed_schema(schema, "response_format")}}


def _tools(made: dict[str, Any], value: Any) -> None:
    if not is_array(value):
        raise invalid("tools is a list", "tools")
    if value:
        made["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(value)]


_READ_APART = {"parallel_tool_calls", "reasoning_effort", "stream_options", "tool_choice"}
_FIELDS: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "response_format": _format,
    "service_tier": _tier,
    "stop": _stop,
    "tools": _tools,
}


def _tool(tool: Any, where: str) -> Any:
    """A function as a tool; a native tool as it is."""
    if not is_object(tool):
        raise invalid(f"a tool is an object with a type, not {brief(tool)}", where)
    function = tool.get("function")
    if not is_object(function):
        if tool.get("type") in ("function", "custom") and "input_schema" not in tool:
            raise unsupported("only functions and Anthropic's own tools can be offered", where)
        return tool
    if not isinstance(function.get("name"), str):
        raise invalid("a function has a name", f"{where}.function.name")
    said = {key: value for key, value in function.items() if key != "parameters" and value not in (None, False)}
    schema: Any = function.get("parameters") or {"properties": {}}
    if not is_object(schema):
        raise invalid("parameters are a JSON schema", f"{where}.function.parameters")
    schema = {"type": "object", **schema}
    if said.get("strict") is True:
        schema = closed_schema(schema, f"{where}.function.parameters")
    rest = {key: value for key, value in tool.items() if key not in ("type", "function")}
    return {**said, "input_schema": schema, **rest}


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
        case {"type": "function", "function": {"name": str(name)}}:
            said = {"type": "tool", "name": name}
        case {"type": "auto" | "any" | "tool" | "none"}:
            said = choice
        case _:
            raise unsupported(f"no choice {brief(choice)}; there are auto, none, required, one function", "tool_choice")
    made["tool_choice"] = {"disable_parallel_tool_use": True, **said} if alone and said["type"] != "none" else said


def _think(made: dict[str, Any], asked: Mapping[str, Any], *, model: str, thinks: bool) -> None:
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
        if not thinks:
            return
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


def thoughtless(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the calls answered last came without thinking (a client lost it): a budget to think is refused then."""
    kinds: set[Any] = set()
    for message in reversed([*messages]):
        content = message["content"]
        found: set[Any] = {block.get("type") for block in content} if is_array(content) else set()
        if message["role"] == "user" and "tool_result" not in found:
            break
        kinds |= found
    return "tool_use" in kinds and kinds.isdisjoint(_THINKING)


def _said(turn: Turn) -> list[Block]:
    """The blocks of one message."""
    rest = dict(turn.rest)
    if turn.role == "tool":
        content = _shortest(_acceptable([_block(piece) for piece in turn.pieces]))
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
    blocks = _acceptable(blocks)
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
        blocks.insert(_count(entry, "index"), thinking_of(entry))
    return blocks


def _acceptable(blocks: list[Block]) -> list[Block]:
    """Blocks without what the API refuses: blank texts, and thinking that nothing follows."""
    kept = [block for block in blocks if block and (block.get("type") != "text" or str(block.get("text")).strip())]
    while kept and kept[-1].get("type") in _THINKING:
        del kept[-1]
    return kept


def _count(entry: Block, key: str) -> int:
    value = entry.get(key)
    return min(max(0, value), 1 << 30) if isinstance(value, int) else 0


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
    return {"type": "text", "media_type": "text/plain", "data": media.decoded()}


def _shortest(blocks: list[Block]) -> str | list[Block]:
    """Blocks as the text they are where it is only one, without more to it."""
    if not blocks:
        return ""
    only = blocks[0]
    return only["text"] if len(blocks) == 1 and only.keys() == {"type", "text"} else blocks


def _id(said: str) -> str:
    """The id of a call in the letters that the API takes: other services use more."""
    return _NO_ID.sub("_", said)
