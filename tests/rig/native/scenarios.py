"""What a client asks and a service answers, whatever the wire: each wire writes these in its own words."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.messages import Message, ToolCall

Ending = Literal["end", "cut", "stall"]


def _png() -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b"\0\xff\0\0")) + part(b"IEND", b"")


PNG = base64.b64encode(_png()).decode()


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer other than 200: `status`, one of the kinds that every wire knows, and what is said."""

    status: int
    kind: Literal["too long", "rate limited", "refused", "overloaded", "bad key", "bad request"]
    message: str
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One exchange: `messages` and `params` are the OpenAI request; the rest is the answer, in pieces as streamed.

    `ends` says what becomes of the stream after its pieces: with "cut" and "stall" no end is written. `usage` is prompt
    (cached included), cached, completion (reasoning included), reasoning.
    """

    name: str
    messages: Sequence[Message] = ({"role": "user", "content": "Say hello."},)
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reasoning: Sequence[str] = ()
    signature: str = ""
    text: Sequence[str] = ()
    calls: Sequence[ToolCall] = ()
    finish: str = "stop"
    usage: tuple[int, int, int, int] = (11, 0, 7, 0)
    ends: Ending = "end"
    failure: Failure | None = None


def _function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


WEATHER = _function("weather", city={"type": "string"})
CLOCK = _function("clock", zone={"type": "string"}, parts={"type": "array", "items": {"type": "string"}})
PARIS = ToolCall("call_1", "weather", '{"city": "Par\u00eds \\"fr\\""}')
ZONE = ToolCall("call_2", "clock", '{"zone": "CET", "parts": ["h", "m"]}')
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
_ASK: Message = {"role": "user", "content": "How is the weather in Paris?"}
_ASKED: Message = {
    "role": "assistant",
    "content": "I will look.",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": PARIS.arguments}},
        {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": ZONE.arguments}},
    ],
}
_TOLD: list[Message] = [
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call_2", "content": '{"time": "12:00"}'},
]
_LOOK: Message = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ],
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "text",
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}],
            {"temperature": 0.5, "max_tokens": 50, "stop": ["END"]},
            text=["Hel", "lo, w\u00f6", "rld \U0001f600."],
            usage=(21, 8, 5, 0),
        ),
        Scenario("image", [_LOOK], text=["A red ", "dot."]),
        Scenario("one tool", [_ASK], {"tools": [WEATHER]}, calls=[PARIS], finish="tool_calls"),
        Scenario(
            "two tools",
            [_ASK],
            {"tools": [WEATHER, CLOCK], "tool_choice": "required"},
            text=["I will ", "look."],
            calls=[PARIS, ZONE],
            finish="tool_calls",
        ),
        Scenario("tool result", [_ASK, _ASKED, *_TOLD], {"tools": [WEATHER, CLOCK]}, text=["It is ", "sunny."]),
        Scenario("json schema", [_ASK], {"response_format": _FORMAT}, text=['{"city": "Paris", ', '"days": 3}']),
        Scenario(
            "reasoning",
            [_ASK],
            {"reasoning_effort": "medium", "tools": [WEATHER], "max_tokens": 4096},
            reasoning=["Let me ", "think."],
            signature="c2lnbmF0dXJl",
            calls=[PARIS],
            finish="tool_calls",
            usage=(11, 0, 40, 30),
        ),
        Scenario("length", text=["Once upon"], finish="length"),
        Scenario("refusal", text=["I cannot"], finish="content_filter"),
        Scenario("too long", failure=Failure(400, "too long", "the prompt has 250000 tokens")),
        Scenario("rate limited", failure=Failure(429, "rate limited", "slow down", retry_after=7)),
        Scenario("overloaded", failure=Failure(503, "overloaded", "come back later")),
        Scenario("bad key", failure=Failure(401, "bad key", "the key is not valid")),
        Scenario("bad request", failure=Failure(400, "bad request", "temperature is too high")),
        Scenario("cut", text=["one ", "two ", "three"], ends="cut"),
        Scenario("stalled", text=["one ", "two ", "three"], ends="stall"),
    )
}
