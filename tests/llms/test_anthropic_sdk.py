"""The official Anthropic SDK as the oracle: what it reads and sends is what `Claude` reads and sends."""

from __future__ import annotations

import datetime as dt
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any, Literal

import anthropic
import httpx2
import pydantic
import pytest
from anthropic.types import Message as Read

from penstock.errors import BadAnswer, BadRequest, LlmError, RateLimited, TooLong, Unauthorized, Unavailable
from penstock.llms.anthropic import DEFAULT_MAX_TOKENS, Claude
from penstock.llms.schemas import closed_schema
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, is_array, is_object
from penstock.run import execute
from tests.rig.native import SCENARIOS, Scenario, native_answer
from tests.rig.native.anthropic import ID, REQUEST_ID
from tests.rig.native.scenarios import PARIS, PNG, SCHEMA, ZONE
from tests.rig.upstream import Upstream

KEY = "sk-ant-test-key"
NO_ROOTS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""What a client of `http://` needs not load each time: the certificates of the world."""
STOPS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
ANSWERED = [name for name, scenario in SCENARIOS.items() if scenario.ends == "end" and scenario.failure is None]
FAILED = {
    "too long": (anthropic.BadRequestError, TooLong),
    "rate limited": (anthropic.RateLimitError, RateLimited),
    "overloaded": (anthropic.InternalServerError, Unavailable),
    "bad key": (anthropic.AuthenticationError, Unauthorized),
    "bad request": (anthropic.BadRequestError, BadRequest),
}

ASK: Any = {"role": "user", "content": "How is the weather in Paris?"}
WEATHER: Any = {
    "name": "weather",
    "description": "Does weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PARTS = {"type": "array", "items": {"type": "string"}}
CLOCK: Any = {
    "name": "clock",
    "description": "Does clock.",
    "input_schema": {
        "type": "object",
        "properties": {"zone": {"type": "string"}, "parts": PARTS},
        "required": ["zone", "parts"],
    },
}
CALLED: Any = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "I will look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": json.loads(PARIS.arguments)},
        {"type": "tool_use", "id": "call_2", "name": "clock", "input": json.loads(ZONE.arguments)},
    ],
}
TOLD: Any = {
    "role": "user",
    "content": [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "call_2", "content": '{"time": "12:00"}'},
    ],
}
PICTURE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
NATIVE: dict[str, dict[str, Any]] = {
    "text": {
        "system": "Be brief.",
        "max_tokens": 50,
        "stop_sequences": ["END"],
        "extra_body": {"temperature": 0.5},
    },
    "image": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, PICTURE]}]},
    "one tool": {"messages": [ASK], "tools": [WEATHER]},
    "two tools": {"messages": [ASK], "tools": [WEATHER, CLOCK], "tool_choice": {"type": "any"}},
    "tool result": {"messages": [ASK, CALLED, TOLD], "tools": [WEATHER, CLOCK]},
    "json schema": {"messages": [ASK], "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "reasoning": {
        "messages": [ASK],
        "tools": [WEATHER],
        "max_tokens": 4096,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "medium"},
    },
}
"""How a user of the SDK asks what the scenarios ask."""


def native(name: str) -> dict[str, Any]:
    hello: Any = {"role": "user", "content": "Say hello."}
    return {"model": name, "max_tokens": DEFAULT_MAX_TOKENS, "messages": [hello], **NATIVE.get(name, {})}


@pytest.fixture
async def sdk(upstream: Upstream) -> AsyncIterator[anthropic.AsyncAnthropic]:
    upstream.default = native_answer
    origin = upstream.base_url.removesuffix("/v1")
    client = anthropic.DefaultAsyncHttpxClient(verify=NO_ROOTS)
    async with anthropic.AsyncAnthropic(
        base_url=origin, api_key=KEY, max_retries=0, timeout=0.2, http_client=client
    ) as asked:
        yield asked


async def sdk_reads(sdk: anthropic.AsyncAnthropic, name: str, *, stream: bool) -> Read:
    if not stream:
        create: Any = sdk.messages.create
        whole: Read = await create(**native(name))
        return whole
    async with sdk.messages.stream(**native(name)) as streaming:
        return await streaming.get_final_message()


def claude(upstream: Upstream, name: str) -> Claude:
    limits = Limits(idle_s=0.2, total_s=5)
    return Claude(model=name, base_url=upstream.base_url.removesuffix("/v1"), api_key=KEY, limits=limits)


async def ours(upstream: Upstream, name: str, *, stream: bool) -> ChatReply:
    asked = SCENARIOS[name]
    return await execute(claude(upstream, name), ChatRequest.of(asked.messages, stream=stream, **asked.params))


def blocks(scenario: Scenario) -> list[dict[str, Any]]:
    """What the SDK should read of a scenario."""
    found: list[dict[str, Any]] = []
    if scenario.reasoning:
        said = "".join(scenario.reasoning)
        found.append({"type": "thinking", "thinking": said, "signature": scenario.signature})
    if scenario.text:
        found.append({"type": "text", "text": "".join(scenario.text)})
    found += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in scenario.calls
    ]
    return found


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ANSWERED)
async def test_row_c2_the_sdk_and_claude_send_and_read_the_same(
    upstream: Upstream, sdk: anthropic.AsyncAnthropic, name: str, stream: bool
) -> None:
    scenario = SCENARIOS[name]
    read, reply = await sdk_reads(sdk, name, stream=stream), await ours(upstream, name, stream=stream)
    assert [block.to_dict() for block in read.content] == blocks(scenario)
    assert STOPS[str(read.stop_reason)] == scenario.finish
    prompt, cached, completion, reasoning = scenario.usage
    counts, details = read.usage, read.usage.output_tokens_details
    assert (counts.input_tokens + cached, counts.cache_read_input_tokens) == (prompt, cached)
    assert (counts.output_tokens, details and details.thinking_tokens) == (completion, reasoning)

    assert (reply.id, reply.model) == (read.id, read.model) == (ID, name)
    assert reply.content == "".join(block.text for block in read.content if block.type == "text")
    assert reply.reasoning == "".join(block.thinking for block in read.content if block.type == "thinking")
    assert reply.tool_calls == tuple(scenario.calls)
    assert reply.finish_reason == scenario.finish
    usage = reply.usage
    assert usage is not None
    assert not usage.partial
    assert (usage.prompt, usage.cached, usage.completion, usage.reasoning) == scenario.usage

    theirs, own = upstream.requests
    assert {"stream": False, **own.json} == {"stream": False, **theirs.json}
    assert own.path == theirs.path
    assert own.headers["content-type"] == theirs.headers["content-type"]
    assert (own.headers["x-api-key"], own.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in own.headers


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", FAILED)
async def test_row_c2_failures_mean_what_the_sdk_says(
    upstream: Upstream, sdk: anthropic.AsyncAnthropic, name: str, stream: bool
) -> None:
    theirs, own = FAILED[name]
    with pytest.raises(theirs) as read:
        await sdk_reads(sdk, name, stream=stream)
    with pytest.raises(LlmError) as raised:
        await ours(upstream, name, stream=stream)
    error, failure = raised.value, SCENARIOS[name].failure
    assert failure is not None
    assert type(error) is own
    assert (error.status, error.request_id, error.type) == (
        read.value.status_code,
        read.value.request_id,
        read.value.type,
    )
    assert error.request_id == REQUEST_ID
    assert failure.message in error.message
    assert error.retry_after == failure.retry_after
    assert KEY not in f"{error!r} {error.message}"


async def test_row_c2_thinking_goes_back_as_the_sdk_gives_it_back(
    upstream: Upstream, sdk: anthropic.AsyncAnthropic
) -> None:
    read = await sdk_reads(sdk, "reasoning", stream=True)
    result: Any = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
    asked = native("reasoning")
    asked["messages"] = [ASK, read.to_param(), {"role": "user", "content": [result]}]
    await sdk.messages.create(**asked)
    for stream in (True, False):
        reply = await ours(upstream, "reasoning", stream=stream)
        told: Any = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
        messages = [ASK, reply.message, told]
        request = ChatRequest.of(messages, stream=False, **SCENARIOS["reasoning"].params)
        await execute(claude(upstream, "reasoning"), request)
        assert upstream.requests[-1].json["messages"] == upstream.requests[1].json["messages"]


@pytest.mark.parametrize("name", ["cut", "stalled"])
async def test_case_04_what_the_sdk_raises_claude_raises_with_what_had_come(
    upstream: Upstream, sdk: anthropic.AsyncAnthropic, name: str
) -> None:
    with pytest.raises((httpx2.ReadTimeout, httpx2.RemoteProtocolError)):
        await sdk_reads(sdk, name, stream=True)
    with pytest.raises(BadAnswer) as raised:
        await ours(upstream, name, stream=True)
    assert raised.value.partial.content == "one two three"
    assert raised.value.partial.usage.partial
    assert raised.value.partial.usage.prompt == SCENARIOS[name].usage[0]


class Stop(pydantic.BaseModel):
    """A place on a trip."""

    city: str = pydantic.Field(min_length=1, description="Where.")
    day: dt.date
    nights: int = pydantic.Field(ge=1, le=30)


class Trip(pydantic.BaseModel):
    """Where to and with whom."""

    stops: list[Stop] = pydantic.Field(min_length=2)
    guests: list[str] = pydantic.Field(min_length=1)
    kind: Literal["work", "fun"]
    last: Stop | None


def shape(schema: Any) -> Any:
    """A schema without its words, and without the type that the values of an enum have anyway."""
    if is_array(schema):
        return [shape(one) for one in schema]
    if not is_object(schema):
        return schema
    left_out = {"description", "type"} if "enum" in schema else {"description"}
    return {key: shape(value) for key, value in schema.items() if key not in left_out}


def test_row_c2_a_schema_has_the_shape_that_the_sdk_gives_it() -> None:
    schema = Trip.model_json_schema()
    made = closed_schema(schema, "response_format")
    assert shape(made) == shape(anthropic.transform_schema(schema))
    assert "minLength: 1" in made["$defs"]["Stop"]["properties"]["city"]["description"]
