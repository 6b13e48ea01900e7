"""What clients write that Google's wire does not take as it is: malformed values are refused, empty words left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from penstock.errors import BadRequest
from penstock.llms.gemini import Gemini
from penstock.messages import ChatRequest, Message
from penstock.run import execute
from tests.rig.native.scenarios import WEATHER
from tests.rig.upstream import Plain, Upstream
from tests.rig.upstream import upstream as run_upstream

DONE = Plain({"candidates": [{"content": {"parts": [{"text": "ok"}]}, "finishReason": "STOP"}]})


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}, **more}


SIGNED = {"google": {"thought_signature": "c2ln", "parts": [{"index": 0, "executableCode": {"code": "1"}}]}}
CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]}
SAID: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
            ],
        },
        {"role": "assistant", "content": "x", "tool_calls": [call("a", extra_content=SIGNED)], "extra_content": SIGNED},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]},
    ],
    "params": {
        "tools": [WEATHER, {"googleSearch": {}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER]}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        "reasoning_effort": "low",
        "stop": ["END"],
        "generationConfig": {"stopSequences": ["A"]},
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    },
}
ODD: list[Any] = [5, -1.5, True, "x", "http://[x", [], {}, [5], [None], [[]], {"a": 1}, {"google": 5}, {"type": []}]


def places(said: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@pytest.fixture(scope="module")
def served() -> Iterator[Upstream]:
    with run_upstream() as up:
        up.default = lambda _: DONE
        yield up


async def sent(served: Upstream, *messages: Any, **params: Any) -> dict[str, Any]:
    llm = Gemini(model="m", api_key="k-test", base_url=f"http://127.0.0.1:{served.port}")
    await execute(llm, ChatRequest.of(list(messages), stream=False, **params))
    return served.chats[-1].json


def written(said: dict[str, Any]) -> None:
    """Make the body of a request, as a call does before it connects."""
    llm = Gemini(model="gemini-3-pro", api_key="k-test", base_url="http://127.0.0.1:9")
    llm._body(ChatRequest.of(said["messages"], **said["params"]))  # 2,000 times, without a socket


def test_case_26_a_value_of_any_type_at_any_place_is_sent_or_refused_with_its_place() -> None:
    refused: list[tuple[int | None, bool]] = []
    written(SAID)
    for path in [path for path in places(SAID) if len(path) > 1]:
        for odd in ODD:
            said = deepcopy(SAID)
            place = said
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = odd
            try:
                written(said)
            except BadRequest as error:
                refused.append((error.status, bool(error.param)))
    assert len(refused) > 100
    assert set(refused) == {(400, True)}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        (5, ""),
        ({"google": []}, ".google"),
        ({"google": {"parts": 5}}, ".google.parts"),
        ({"google": {"parts": [5]}}, ".google.parts"),
        ({"google": {"thought_signature": {}}}, ".google.thought_signature"),
    ],
)
@pytest.mark.parametrize("place", ["messages[0]", "messages[0].tool_calls[0]"])
def test_case_26_extra_content_that_google_never_wrote_is_refused(place: str, extra: Any, param: str) -> None:
    of_call = {"extra_content": extra} if "calls" in place else {}
    of_message = {} if of_call else {"extra_content": extra}
    message = {"role": "assistant", "content": "x", "tool_calls": [call("a", **of_call)], **of_message}
    with pytest.raises(BadRequest) as raised:
        written({"messages": [message], "params": {}})
    assert (raised.value.param, raised.value.status) == (f"{place}.extra_content{param}", 400)


async def test_row_c2_what_sdks_add_to_the_messages_they_send_back_is_left_out(served: Upstream) -> None:
    echoed: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "parsed": {"a": 1},
        "name": "A",
    }
    body = await sent(
        served,
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "y", "extra_content": {"anthropic": {"thinking": []}}, **echoed},
        {"role": "user", "content": "z", "name": "Bob"},
    )
    said = [("user", "x"), ("model", "y"), ("user", "z")]
    assert body == {"contents": [{"role": role, "parts": [{"text": text}]} for role, text in said]}


async def test_row_c2_the_results_of_parallel_calls_stay_one_turn(served: Upstream) -> None:
    def told(name: str, text: str, **more: Any) -> Message:
        return {"role": "tool", "tool_call_id": name, "content": [{"type": "text", "text": text, **more}]}

    body = await sent(
        served,
        CALLED,
        told("a", "one", cache_control={"type": "ephemeral"}),
        {"role": "developer", "content": "Be brief."},
        told("b", json.dumps({"two": 2}), annotations=[]),
        {"role": "user", "content": "Go on."},
    )
    results = [
        {"functionResponse": {"id": "a", "name": "a", "response": {"output": "one"}}},
        {"functionResponse": {"id": "b", "name": "b", "response": {"two": 2}}},
    ]
    assert body["contents"][1:] == [
        {"role": "user", "parts": results},
        {"role": "user", "parts": [{"text": "Go on."}]},
    ]
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}


def test_a_request_wins_over_defaults_in_the_services_own_words() -> None:
    own = {"generationConfig": {"temperature": 0, "maxOutputTokens": 5000, "topK": 3}}
    llm = Gemini(model="gemini-2.5-flash", api_key="sk-test", params=own)
    body = json.loads(llm._body(ChatRequest.of("Hi", temperature=0.9, max_tokens=10)))
    assert body["generationConfig"] == {"temperature": 0.9, "maxOutputTokens": 10, "topK": 3}
