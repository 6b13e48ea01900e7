"""Says a chat request in the words of the Responses API (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.llms.turns import unsupported
from penstock.messages import Message, is_array, is_object, text_of

ENCRYPTED = "reasoning.encrypted_content"
_NO_WORDS = "the Responses API has nothing like it: leave it out, or ask a model with api: chat"
# What this wire has no words for, or would answer in words that a chat client has not; with the values that are idle.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "background": (False,),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "seed": (),
    "stop": ([], ""),
    "store": (False,),
    "top_logprobs": (0,),
    "web_search_options": (),
}
_READ = frozenset(("role", "content", "name", "extra_content"))
_KEPT = ("id", "summary", "content", "encrypted_content")


def fields_of(given: Mapping[str, Any], messages: Sequence[Message]) -> dict[str, Any]:
    """The fields of a request without its model; raises `BadRequest` (`unsupported_parameter`) for what has no words.

    Nothing is stored at the service: reasoning is asked for in its encrypted form, which the next turn brings back. An
    empty `include` asks for none, as models without reasoning want it. Fields that are not known here pass as they are.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    for name, idle in _REFUSED.items():
        if name in fields and fields.pop(name) not in idle:
            raise unsupported(_NO_WORDS, name)
    _limit(fields)
    _reasoning(fields)
    _text(fields)
    if "tools" in fields:
        fields["tools"] = [_tool(tool) for tool in fields["tools"]]
    if is_object(fields.get("tool_choice")):
        fields["tool_choice"] = _tool_choice(fields["tool_choice"])
    options = {name: value for name, value in fields.pop("stream_options", {}).items() if name != "include_usage"}
    if options:
        fields["stream_options"] = options
    include = fields.get("include", [ENCRYPTED])
    fields["include"] = [*include, ENCRYPTED] if include and ENCRYPTED not in include else include
    fields["store"] = False
    fields["input"] = [item for n, message in enumerate(messages) for item in _items(n, message)]
    return fields


def _limit(fields: dict[str, Any]) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if name in fields:
            fields.setdefault("max_output_tokens", fields[name])
            del fields[name]


def _reasoning(fields: dict[str, Any]) -> None:
    """One object of effort and summary; a summary is asked for unless there is no reasoning, or none is wanted."""
    effort, reasoning = fields.pop("reasoning_effort", None), fields.pop("reasoning", {})
    if effort is not None:
        reasoning = {"effort": effort, **reasoning}
    if reasoning:
        if reasoning.get("effort") != "none":
            reasoning = {"summary": "auto", **reasoning}
        fields["reasoning"] = {name: value for name, value in reasoning.items() if value is not None}


def _text(fields: dict[str, Any]) -> None:
    text: dict[str, Any] = dict(fields.pop("text", {}))
    form = fields.pop("response_format", None)
    if is_object(form):
        text["format"] = {"type": form.get("type"), **(form.get("json_schema") or {})}
    if "verbosity" in fields:
        text["verbosity"] = fields.pop("verbosity")
    if text:
        fields["text"] = text


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function without the object around it; unlike the chat API this one is strict unless told otherwise."""
    if tool.get("type") == "custom":
        raise unsupported("tools of type 'custom' have calls that a chat client cannot be told", "tools")
    function = tool.get("function")
    if not is_object(function):
        return tool
    return {"type": "function", "parameters": {"type": "object", "properties": {}}, "strict": False, **function}


def _tool_choice(choice: dict[str, Any]) -> dict[str, Any]:
    kind = str(choice.get("type"))
    inner = choice.get(kind)
    if kind not in {"function", "allowed_tools"} or not is_object(inner):
        return choice
    if kind == "allowed_tools":
        tools: list[dict[str, Any]] = inner.get("tools") or []
        return {"type": kind, **inner, "tools": [_named(tool) for tool in tools]}
    return {"type": kind, **inner}


def _named(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": tool.get("type"), **(tool.get("function") or {})}


def _items(number: int, message: Message) -> list[dict[str, Any]]:
    """The items that a message becomes; keys that are not known stay on it."""
    role, where = message.get("role"), f"messages[{number}]"
    if role == "function":
        raise unsupported("the role 'function' is not supported: send role 'tool'", f"{where}.role")
    if role == "tool":
        output = _content(message, where)
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}]
    if message.get("name"):
        raise unsupported("a message of the Responses API has no name", f"{where}.name")
    if role == "assistant":
        return _turn(message)
    rest = {key: value for key, value in message.items() if key not in _READ and value is not None}
    return [{"type": "message", "role": role, "content": _content(message, where), **rest}]


def _turn(message: Message) -> list[dict[str, Any]]:
    """What the model said before: text and calls, and its reasoning at the places where that stood between them."""
    said: list[dict[str, Any]] = []
    text = text_of(message) or _refusal(message)
    if text:
        said.append({"type": "message", "role": "assistant", "content": text})
    for call in message.get("tool_calls") or ():
        if "function" not in call:
            raise unsupported("only calls of functions can be sent", "messages")
        said.append({"type": "function_call", "call_id": call["id"], **call["function"]})
    for thought in sorted(_thoughts(message), key=lambda entry: entry.get("index") or 0):
        item = {name: thought[name] for name in _KEPT if thought.get(name) is not None}
        said.insert(thought.get("index") or 0, {"type": "reasoning", "summary": [], **item})
    while said and said[-1]["type"] == "reasoning":  # one that nothing follows is not accepted
        said.pop()
    return said


def _refusal(message: Message) -> str:
    """The words in which the model refused, where it did: here they are a text like any other."""
    content = message.get("content")
    parts = [part for part in content if is_object(part)] if is_array(content) else []
    return str(message.get("refusal") or "") or "".join(str(part.get("refusal") or "") for part in parts)


def _thoughts(message: Message) -> list[dict[str, Any]]:
    """The reasoning that an answer of this wire left with its client."""
    own = (message.get("extra_content") or {}).get("openai")
    kept = own.get("reasoning") if is_object(own) else None
    return [entry for entry in kept if is_object(entry)] if is_array(kept) else []


def _content(message: Message, where: str) -> str | list[dict[str, Any]]:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, f"{where}.content[{n}]") for n, part in enumerate(content)]


def _part(part: dict[str, Any], place: str) -> dict[str, Any]:
    kind = part.get("type")
    inner = part.get(str(kind))
    if kind == "text":
        return {**part, "type": "input_text"}
    if kind == "image_url" and is_object(inner):
        image = {name: value for name, value in inner.items() if name != "url"}
        return {"type": "input_image", "image_url": inner.get("url"), "detail": "auto", **image}
    if kind == "file" and is_object(inner):
        return {"type": "input_file", **inner}
    if kind == "input_audio":
        raise unsupported("the Responses API takes no sound", place)
    return part
