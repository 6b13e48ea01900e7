"""`Gemini`: Google's models on their own wire, generateContent (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from reprlib import repr as brief
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from penstock.errors import BadRequest
from penstock.llms.answer import Reading
from penstock.llms.gemini_wire import GeminiReading
from penstock.llms.remote import RemoteLlm
from penstock.llms.transport import Target
from penstock.llms.turns import Media, Other, Piece, Text, Turn, invalid, pieces, turns, unsupported
from penstock.messages import ChatRequest, is_array, is_object, merged

UNSIGNED = "skip_thought_signature_validator"
"""Google's word for a call that came without a signature: from another model, or through a client that lost it."""
_WITHOUT_LEVELS = re.compile(r"gemini-[12]\b")
_SIGNED = re.compile(r"gemini-(?![12]\b)")
_EFFORTS = {
    "minimal": ("MINIMAL", 1024),
    "low": ("LOW", 1024),
    "medium": ("MEDIUM", 8192),
    "high": ("HIGH", 24576),
    "xhigh": ("HIGH", 24576),
    "max": ("HIGH", 24576),
}
"""What `reasoning_effort` means: the level, and for models before Gemini 3 the tokens; 24576 is the most all take."""
_MODES = {"none": "NONE", "required": "ANY"}
_NAMES = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "n": "candidateCount",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "seed": "seed",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_REFUSED = frozenset(
    (
        "audio",
        "contents",
        "function_call",
        "functions",
        "logit_bias",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "systemInstruction",
        "system_instruction",
        "verbosity",
    )
)
UNSENT = frozenset(("safety_identifier", "stream_options", "user"))
"""Fields that are left out whatever they hold: they change no answer."""
_OBJECTS = frozenset(("generationConfig", "generation_config", "toolConfig", "tool_config"))
_MEANINGLESS: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "functions": ([],),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto",),
    "store": (False,),
    "tool_choice": ("auto",),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
_decode = msgspec.json.Decoder().decode


class Gemini(RemoteLlm):
    """A model of Google, or of another service that speaks its wire, asked with an OpenAI chat request.

    Fields that have an equivalent are translated (`reasoning_effort`, `response_format`, `tools`, `stop`, ...); those
    of Google's own (`safetySettings`, `generationConfig`, its tools) go on as they are and win; what its wire cannot
    express is refused with `BadRequest` (status 400, code unsupported_parameter). System messages become one
    instruction, wherever they stand. What Google wants back in the next turn is in `extra_content`.

    Left out, as it says nothing to these models: the fields `user`, `safety_identifier` and `stream_options`; the keys
    of messages in `turns.UNSAID`, which SDKs put on the answers that they send back; `cache_control` of a part, and in
    the result of a tool every key of a text part but its text.
    """

    provider = "gemini"
    path = "/models"

    def _target_of(self, request: ChatRequest) -> Target:
        """The address of a model and of the way it answers."""
        return _address(self._target, self.model or request.model, request.stream)

    def _reading(self, request: ChatRequest) -> Reading:
        del request
        return GeminiReading(self._who)

    def _body(self, request: ChatRequest) -> bytes:
        try:
            self._target_of(request)
            model = (self.model or request.model).removeprefix("models/")
            return self._encoded(_body(request, self._fields(request), model=model))
        except BadRequest as error:
            error.provider = self.provider
            raise


@lru_cache(maxsize=1024)
def _address(models: Target, model: str, stream: bool) -> Target:  # noqa: FBT001  # a key of the cache
    """Where a model is asked; whatever its name holds, it stays one segment of the path."""
    name = model.removeprefix("models/")
    if not name or ".." in name:
        raise invalid(f"{brief(model)} is no name of a model", "model")
    verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    return replace(models, url=f"{models.url}/{quote(name, safe='')}:{verb}")


def _body(request: ChatRequest, fields: Mapping[str, Any], *, model: str) -> dict[str, Any]:
    """The body of a request: each field under the name it has on this wire, one that is not known as it is."""
    body: dict[str, Any] = _conversation(request, signed=bool(_SIGNED.match(model)))
    body["generationConfig"] = {}
    for name, value in sorted(fields.items(), key=lambda field: (field[0] in request.params, _order(field))):
        if value is None or name in UNSENT or value in _MEANINGLESS.get(name, ()):
            continue
        if name in _REFUSED:
            raise unsupported("models of Google have nothing like it: leave it out", name)
        if name in _NAMES:
            body["generationConfig"][_NAMES[name]] = value
        elif name in _FIELDS:
            _join(body, _FIELDS[name](value, model))
        elif name in _OBJECTS and not is_object(value):
            raise invalid(f"{name} is an object, not {brief(value)}", name)
        else:
            _join(body, {name: value})
    if not body["generationConfig"]:
        del body["generationConfig"]
    return body


def _order(field: tuple[str, Any]) -> int:
    """What says more comes later, of defaults and then of a request: a choice over tools, Google's own over all."""
    name = field[0]
    return 1 if name == "tool_choice" else 0 if name in _FIELDS or name in _NAMES else 2


def _join(body: dict[str, Any], more: dict[str, Any]) -> None:
    """Add to a body: tools of all kinds are one list, settings of one object are one object."""
    for name, value in more.items():
        body[name] = merged(body.get(name), value)


def _stop(said: Any, _: str) -> dict[str, Any]:
    return {"generationConfig": {"stopSequences": said if is_array(said) else [said]}}


def _modalities(said: Any, _: str) -> dict[str, Any]:
    raise unsupported(f"only text is answered, not {brief(said)}", "modalities")


def _format(said: Any, _: str) -> dict[str, Any]:
    kind = said.get("type") if is_object(said) else said
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"generationConfig": {"responseMimeType": "application/json"}}
    if kind != "json_schema":
        raise unsupported(f"no format {brief(kind)}; known are text, json_object, json_schema", "response_format")
    named = said.get("json_schema")
    if not is_object(named) or not is_object(named.get("schema")):
        raise invalid("a format json_schema has {'json_schema': {'name': ..., 'schema': {...}}}", "response_format")
    return {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": named["schema"]}}


def _effort(said: Any, model: str) -> dict[str, Any]:
    """How long a model may think: a level, or tokens for those before Gemini 3, of which none are none at all."""
    if said == "none":
        thinking: dict[str, Any] = {"thinkingBudget": 0}
    elif not isinstance(said, str) or said not in _EFFORTS:
        raise invalid(f"no effort {brief(said)}; known are none, {', '.join(_EFFORTS)}", "reasoning_effort")
    else:
        level, budget = _EFFORTS[said]
        thinking = {"thinkingBudget": budget} if _WITHOUT_LEVELS.match(model) else {"thinkingLevel": level}
        thinking["includeThoughts"] = True
    return {"generationConfig": {"thinkingConfig": thinking}}


def _tier(said: Any, _: str) -> dict[str, Any]:
    return {"serviceTier": "standard" if said == "default" else said}


def _labels(said: Any, _: str) -> dict[str, Any]:
    return {"labels": said}


def _search(said: Any, _: str) -> dict[str, Any]:
    if said:
        raise unsupported("a search of Google has no options: give {}", "web_search_options")
    return {"tools": [{"googleSearch": {}}]}


def _tools(said: Any, _: str) -> dict[str, Any]:
    """Functions are declared together; a tool without a type is one of Google's own."""
    if not is_array(said):
        raise invalid("tools is a list", "tools")
    declared: list[dict[str, Any]] = []
    own: list[dict[str, Any]] = []
    strict = False
    for number, tool in enumerate(said):
        if is_object(tool) and "type" not in tool:
            own.append(tool)
            continue
        function = tool.get("function") if is_object(tool) and tool["type"] == "function" else None
        if not is_object(function):
            raise unsupported("a tool is a function, or one of Google's own: {'googleSearch': {}}", f"tools[{number}]")
        declared.append(_declaration(function))
        strict = strict or bool(function.get("strict"))
    tools = [{"functionDeclarations": declared}, *own] if declared else own
    return {**({"tools": tools} if tools else {}), **(_calls({"mode": "VALIDATED"}) if strict else {})}


def _declaration(function: dict[str, Any]) -> dict[str, Any]:
    names = {"parameters": "parametersJsonSchema"}
    return {names.get(key, key): value for key, value in function.items() if key != "strict" and value is not None}


def _choice(said: Any, _: str) -> dict[str, Any]:
    return _calls(_calling(said))


def _calls(config: dict[str, Any]) -> dict[str, Any]:
    return {"toolConfig": {"functionCallingConfig": config}}


def _calling(said: Any) -> dict[str, Any]:
    if isinstance(said, str) and said in _MODES:
        return {"mode": _MODES[said]}
    if is_object(said) and said.get("type") == "function":
        return {"mode": "ANY", "allowedFunctionNames": [_named(said)]}
    allowed = said.get("allowed_tools") if is_object(said) else None
    if is_object(allowed) and is_array(allowed.get("tools")):
        mode = "ANY" if allowed.get("mode") == "required" else "VALIDATED"
        return {"mode": mode, "allowedFunctionNames": [_named(tool) for tool in allowed["tools"]]}
    raise unsupported(
        f"no choice {brief(said)}; known are auto, none, required and the name of a function", "tool_choice"
    )


def _named(said: Any) -> str:
    function = said.get("function") if is_object(said) else None
    name = function.get("name") if is_object(function) else None
    if not isinstance(name, str) or not name:
        raise invalid(f"{brief(said)} names no function", "tool_choice")
    return name


_FIELDS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "metadata": _labels,
    "modalities": _modalities,
    "reasoning_effort": _effort,
    "response_format": _format,
    "service_tier": _tier,
    "stop": _stop,
    "tool_choice": _choice,
    "tools": _tools,
    "web_search_options": _search,
}


def _conversation(request: ChatRequest, *, signed: bool) -> dict[str, Any]:
    """The messages: system ones apart, the results of tools together, as the calls they answer were."""
    system: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    told = False
    for turn in turns(request.messages):
        for key in turn.rest:
            raise unsupported("models of Google have nothing like it: leave it out", f"{turn.where}.{key}")
        if turn.role == "system":
            system += [_part(piece) for piece in turn.pieces]
            continue  # one that stands between two results does not part them
        if turn.role == "assistant":
            contents.append({"role": "model", "parts": _said(turn, signed=signed)})
        elif turn.role == "tool" and told:
            contents[-1]["parts"].append(_result(turn))
        else:
            parts = [_result(turn)] if turn.role == "tool" else [_part(piece) for piece in turn.pieces]
            contents.append({"role": "user", "parts": parts})
        told = turn.role == "tool"
    return {"contents": contents, **({"systemInstruction": {"parts": system}} if system else {})}


def _said(turn: Turn, *, signed: bool) -> list[dict[str, Any]]:
    """An earlier answer: what only Google knows, the texts, then the calls, each with the signature it came with."""
    signature, others = _google(turn.extra, turn.where)
    parts = [{key: value for key, value in one.items() if key != "index"} for one in others]
    parts += [_part(piece) for piece in turn.pieces if piece != Text("", piece.where, {})]
    if signature:
        if not parts or "text" not in parts[-1]:
            parts.append({"text": ""})
        parts[-1]["thoughtSignature"] = signature
    for number, call in enumerate(turn.calls):
        part: dict[str, Any] = {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
        signature = _google(call.extra, call.where)[0] or (UNSIGNED if signed and not number else "")
        parts.append({**part, "thoughtSignature": signature} if signature else part)
    return parts or [{"text": ""}]


def _google(extra: Any, where: str) -> tuple[str, list[dict[str, Any]]]:
    """The signature and the parts of Google's own in the `extra_content` of a message or a call."""
    where, google = f"{where}.extra_content", None
    if extra is not None and not is_object(extra):
        raise invalid("it is an object with the name of a provider as key", where)
    if extra:
        where, google = f"{where}.google", extra.get("google")
    if google is None:
        return "", []
    if not is_object(google):
        raise invalid("it is an object, sent back as it came", where)
    signature, parts = google.get("thought_signature"), google.get("parts")
    if not isinstance(signature, str | None):
        raise invalid("it is a text, sent back as it came", f"{where}.thought_signature")
    if parts is not None and not (is_array(parts) and all(is_object(part) for part in parts)):
        raise invalid("it is a list of objects, sent back as it came", f"{where}.parts")
    return signature or "", parts or []


def _result(turn: Turn) -> dict[str, Any]:
    """What a function gave: the object it wrote, else its text; what it showed goes beside."""
    if not turn.function:
        raise invalid("there is no call of this id before it", f"{turn.where}.tool_call_id")
    text, shown = "", list[dict[str, Any]]()
    for piece in turn.pieces:
        if isinstance(piece, Text):
            text += piece.text
        else:
            shown.append(_part(piece))
    response = {"id": turn.call_id, "name": turn.function, "response": _object(text)}
    return {"functionResponse": {**response, "parts": shown} if shown else response}


def _object(text: str) -> dict[str, Any]:
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    return value if is_object(value) else {"output": text}


def _part(piece: Piece) -> dict[str, Any]:
    """A part of a message; keys that OpenAI's wire does not have are Google's own, but for Anthropic's."""
    if not isinstance(piece, Other):
        part = {"text": piece.text} if isinstance(piece, Text) else _media(piece)
        return {**part, **{key: value for key, value in piece.rest.items() if key != "cache_control"}}
    kind = str(piece.part["type"])
    said = piece.part.get(kind)
    if kind == "video_url" and is_object(said) and isinstance(said.get("url"), str):
        (video,) = pieces([{"type": "file", "file": {"file_data": said["url"]}}], piece.where)
        return _part(video)
    if said is None:
        raise unsupported(f"no part of type {kind!r}", piece.where)
    return {key: value for key, value in piece.part.items() if key != "type"}


def _media(media: Media) -> dict[str, Any]:
    """Data goes inside; an address goes as one, with the type its ending tells, as Google asks for one."""
    address = media.url or media.file_id
    part: dict[str, Any]
    if media.data:
        part = {"inlineData": {"mimeType": media.mime, "data": media.data}}
    elif "://" not in address:
        raise unsupported(f"{brief(address)} is no address: give that of the file at Google", media.where)
    else:
        mime = media.mime or _guessed(address, media.where)
        part = {"fileData": {"fileUri": address, **({"mimeType": mime} if mime else {})}}
    if media.detail in ("low", "high"):
        part["mediaResolution"] = {"level": f"MEDIA_RESOLUTION_{media.detail.upper()}"}
    elif media.detail not in ("", "auto"):
        raise unsupported(f"no detail {media.detail!r}; known are auto, low, high", media.where)
    return part


def _guessed(address: str, where: str) -> str | None:
    try:
        return mimetypes.guess_type(urlsplit(address).path)[0]
    except ValueError as error:
        raise invalid(f"{brief(address)} is no address: {error}", where) from error
