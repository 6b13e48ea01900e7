"""Says a chat request in the words of the Responses API (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from reprlib import repr as brief
from typing import Any

from penstock.llms.turns import UNSAID, invalid, unsupported
from penstock.messages import Message, is_array, is_object

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
_READ = frozenset(("role", "content", "extra_content", *UNSAID))
_KEPT = ("id", "summary", "content", "encrypted_content")


def fields_of(given: Mapping[str, Any], messages: Sequence[Message]) -> dict[str, Any]:
    """The fields of a request without its model; raises `BadRequest` (400) for what has no words or cannot be read.

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
        tools = _array(fields["tools"], "tools")
        fields["tools"] = [_tool(_object(tool, f"tools[{n}]"), f"tools[{n}]") for n, tool in enumerate(tools)]
    if is_object(fields.get("tool_choice")):
        fields["tool_choice"] = _tool_choice(fields["tool_choice"])
    options = _object(fields.pop("stream_options", {}), "stream_options")
    if options.keys() - {"include_usage"}:
        fields["stream_options"] = {name: value for name, value in options.items() if name != "include_usage"}
    include = _array(fields.get("include", [ENCRYPTED]), "include")
    fields["include"] = [*include, ENCRYPTED] if include and ENCRYPTED not in include else include
    fields["store"] = False
    fields["input"] = [item for n, message in enumerate(messages) for item in _items(message, f"messages[{n}]")]
    return fields


def _object(said: object, where: str) -> dict[str, Any]:
    """An object that is read here; raises `BadRequest` for anything else."""
    if not is_object(said):
        raise invalid(f"an object is needed, not {brief(said)}", where)
    return said


def _array(said: object, where: str) -> list[Any]:
    """A list that is read here; raises `BadRequest` for anything else."""
    if not is_array(said):
        raise invalid(f"a list is needed, not {brief(said)}", where)
    return said


def _limit(fields: dict[str, Any]) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if name in fields:
            fields.setdefault("max_output_tokens", fields[name])
            del fields[name]


def _reasoning(fields: dict[str, Any]) -> None:
    """One object of effort and summary; a summary is asked for unless there is no reasoning, or none is wanted."""
    effort, reasoning = fields.pop("reasoning_effort", None), _object(fields.pop("reasoning", {}), "reasoning")
    if effort is not None:
        reasoning = {"effort": effort, **reasoning}
    if reasoning:
        if reasoning.get("effort") != "none":
            reasoning = {"summary": "auto", **reasoning}
        fields["reasoning"] = {name: value for name, value in reasoning.items() if value is not None}


def _text(fields: dict[str, Any]) -> None:
    text = dict(_object(fields.pop("text", {}), "text"))
    if "response_format" in fields:
        form = _object(fields.pop("response_format"), "response_format")
        schema: Any = form.get("json_schema") if form.get("type") == "json_schema" else {}
        text["format"] = {**_object(schema, "response_format.json_schema"), "type": form.get("type")}
    if "verbosity" in fields:
        text["verbosity"] = fields.pop("verbosity")
    if text:
        fields["text"] = text


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    """A function without the object around it; unlike the chat API this one is strict unless told otherwise."""
    if tool.get("type") == "custom":
        raise unsupported("tools of type 'custom' have calls that a chat client cannot be told", "tools")
    if tool.get("function") is None:
        return tool
    function = _object(tool["function"], f"{where}.function")
    return {"parameters": {"type": "object", "properties": {}}, "strict": False, **function, "type": "function"}


def _tool_choice(choice: dict[str, Any]) -> dict[str, Any]:
    kind = choice.get("type")
    if kind not in ("function", "allowed_tools") or choice.get(kind) is None:
        return choice
    where = f"tool_choice.{kind}"
    inner = _object(choice[kind], where)
    if kind == "function":
        return {**inner, "type": kind}
    tools = _array(inner.get("tools"), f"{where}.tools")
    return {**inner, "type": kind, "tools": [_named(tool, f"{where}.tools[{n}]") for n, tool in enumerate(tools)]}


def _named(tool: object, where: str) -> dict[str, Any]:
    allowed = _object(tool, where)
    if allowed.get("function") is None:
        return allowed
    return {**_object(allowed["function"], f"{where}.function"), "type": allowed.get("type")}


def _items(said: Message, where: str) -> list[dict[str, Any]]:
    """The items that a message becomes; keys that are not known stay on it, without those in `UNSAID`."""
    message = _object(said, where)
    role = message.get("role")
    if role == "function":
        raise unsupported("the role 'function' is not supported: send role 'tool'", f"{where}.role")
    if role == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            raise invalid("a tool's result names its call", f"{where}.tool_call_id")
        output = _content(message, where)
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": output}]
    if role == "assistant":
        return _turn(message, where)
    rest = {key: value for key, value in message.items() if key not in _READ and value is not None}
    return [{**rest, "type": "message", "role": role, "content": _content(message, where)}]


def _turn(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """What the model said before: text and calls, and its reasoning at the places where that stood between them."""
    text = _spoken(message, where)
    items: list[dict[str, Any]] = [{"type": "message", "role": "assistant", "content": text}] if text else []
    calls = _array(message.get("tool_calls") or [], f"{where}.tool_calls")
    items += [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]
    thoughts = _thoughts(message, f"{where}.extra_content")
    for place, thought in sorted(thoughts, key=lambda pair: pair[0]):
        item = {name: thought[name] for name in _KEPT if thought.get(name) is not None}
        items.insert(min(place, len(items)), {"type": "reasoning", "summary": [], **item})
    while items and items[-1]["type"] == "reasoning":  # one that nothing follows is not accepted
        items.pop()
    return items


def _spoken(message: dict[str, Any], where: str) -> str:
    """The model's text, else the words in which it refused: here they are a text like any other."""
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        parts = [_object(part, f"{where}.content[{n}]") for n, part in enumerate(_array(content, f"{where}.content"))]
        for n, part in enumerate(parts):
            if part.get("type") not in ("text", "output_text", "refusal"):
                raise unsupported("what the model said before can be text only", f"{where}.content[{n}]")
        content = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
    return content or str(message.get("refusal") or "")


def _call(said: object, where: str) -> dict[str, Any]:
    call = _object(said, where)
    if "function" not in call:
        raise unsupported("only calls of functions can be sent", where)
    function = _object(call["function"], f"{where}.function")
    if not isinstance(call.get("id"), str):
        raise invalid("a call has an id, which its result names", f"{where}.id")
    return {**function, "type": "function_call", "call_id": call["id"]}


def _thoughts(message: dict[str, Any], where: str) -> list[tuple[int, dict[str, Any]]]:
    """The reasoning that an answer of this wire left with its client, each with its place among the items."""
    own: Any = _object(message.get("extra_content") or {}, where).get("openai") or {}
    where = f"{where}.openai"
    kept = _array(_object(own, where).get("reasoning") or [], f"{where}.reasoning")
    return [_placed(entry, f"{where}.reasoning[{n}]") for n, entry in enumerate(kept)]


def _placed(said: object, where: str) -> tuple[int, dict[str, Any]]:
    entry = _object(said, where)
    place = entry.get("index") or 0
    if not isinstance(place, int) or place < 0:
        raise invalid(f"an index counts from 0, not {brief(place)}", f"{where}.index")
    return place, entry


def _content(message: dict[str, Any], where: str) -> str | list[dict[str, Any]]:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return [_part(part, f"{where}.content[{n}]") for n, part in enumerate(_array(content, f"{where}.content"))]


def _part(said: object, place: str) -> dict[str, Any]:
    part = _object(said, place)
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
