"""The official SDKs, in each of their ways to call, on Penstock in front of llama.cpp and of the demo LLM."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.e2e.gateway import ADD, HELLO, essence, penstock, request
from tests.rig.answers import Stream
from tests.rig.node import NodeSdk
from tests.rig.serving import Process
from tests.rig.tiny_llm import MODEL, TinyLlm
from tests.rig.upstream import Upstream
from tests.rig.wire import text_stream

DEMO = "penstock-demo"


class Plan(pydantic.BaseModel):
    """What the model is asked to answer with."""

    level: int = pydantic.Field(ge=1, le=9)
    steps: list[Literal["open", "close"]] = pydantic.Field(min_length=1, max_length=3)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_parsed_answer_is_the_one_of_the_server_behind(
    direct: openai.OpenAI, through: openai.OpenAI, seed: int
) -> None:
    asked = request(seed=seed, temperature=0.9, max_tokens=200)
    plans = [
        sdk.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Plan, extra_body=asked)
        .choices[0]
        .message.parsed
        for sdk in (direct, through)
    ]
    assert isinstance(plans[1], Plan)
    assert plans[1] == plans[0]


def test_the_stream_helper_tells_the_same_events_in_the_same_order(
    direct: openai.OpenAI, through: openai.OpenAI
) -> None:
    def told(sdk: openai.OpenAI) -> tuple[list[str], Any]:
        asked = request(temperature=0.9, max_tokens=200)
        with sdk.chat.completions.stream(
            model=MODEL, messages=HELLO, tools=[strict(ADD)], stream_options={"include_usage": True}, extra_body=asked
        ) as stream:
            kinds = [str(event.type) for event in stream]
            return kinds, stream.get_final_completion().to_dict()

    (kinds, completion), (expected, direct_completion) = told(through), told(direct)
    assert kinds == expected
    assert "tool_calls.function.arguments.delta" in kinds
    assert essence(completion) == essence(direct_completion)


def strict(tool: Any) -> Any:
    return {**tool, "function": {**tool["function"], "strict": True}}


def test_the_stream_helper_parses_what_it_was_asked_for(through: openai.OpenAI) -> None:
    asked = request(temperature=0.9, max_tokens=200)
    with through.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Plan, extra_body=asked) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Plan)


async def test_the_async_client_gets_the_same_answers_many_at_once(tiny_llm: TinyLlm, gateway: Process) -> None:
    async def texts(base_url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=20.0) as sdk:
            calls = [text(sdk, seed, stream=bool(seed % 2)) for seed in range(12)]
            return list(await asyncio.gather(*calls))

    async def text(sdk: openai.AsyncOpenAI, seed: int, *, stream: bool) -> str:
        asked = request(seed=seed, temperature=0.9, max_tokens=30)
        if not stream:
            reply = await sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_body=asked)
            return reply.choices[0].message.content or ""
        chunks = await sdk.chat.completions.create(model=MODEL, messages=HELLO, extra_body=asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    answers = await texts(f"{gateway.base_url}/v1")
    assert answers == await texts(tiny_llm.base_url)
    assert len(set(answers)) > 1


async def test_the_async_stream_helper_and_parse(gateway: Process) -> None:
    asked = request(temperature=0.9, max_tokens=200)
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as sdk:
        reply = await sdk.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Plan, extra_body=asked)
        async with sdk.chat.completions.stream(
            model=MODEL, messages=HELLO, response_format=Plan, extra_body=asked
        ) as s:
            last = await s.get_final_completion()
        with pytest.raises(openai.BadRequestError):
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, n=99)
    assert isinstance(reply.choices[0].message.parsed, Plan)
    assert last.choices[0].message.parsed == reply.choices[0].message.parsed


Mode = Literal["stream", "create"]
MODES = pytest.mark.parametrize("mode", ["stream", "create"])


@MODES
def test_the_node_sdk_gets_what_it_gets_from_the_server_behind(
    tiny_llm: TinyLlm, gateway: Process, node_sdk: NodeSdk, mode: Mode
) -> None:
    for fields in ({}, {"tools": [ADD], "max_tokens": 200}, {"n": 99}):
        asked = request(**fields)
        expected = node_sdk.call(mode, asked, base_url=tiny_llm.base_url)
        said = node_sdk.call(mode, asked, base_url=f"{gateway.base_url}/v1")
        if expected["error"] is not None:
            expected["error"]["code"] = str(expected["error"]["code"])
        assert essence(said) == essence(expected)
        assert (said["error"] is None) == ("n" not in fields)


@MODES
def test_the_node_sdk_talks_with_the_demo_llm(demo: Process, node_sdk: NodeSdk, mode: Mode) -> None:
    url = f"{demo.base_url}/v1"
    said = node_sdk.call(mode, {"model": DEMO, "messages": HELLO}, base_url=url)
    assert (said["error"], said["finish_reason"]) == (None, "stop")
    assert said["text"]
    assert said["usage"]["total_tokens"] > 1
    sum_of = [{"role": "user", "content": "add 2 and 40"}]
    called = node_sdk.call(mode, {"model": DEMO, "messages": sum_of, "tools": [ADD]}, base_url=url)
    assert called["finish_reason"] == "tool_calls"
    assert json.loads(called["tool_calls"][0]["arguments"]) == {"a": 2, "b": 40}


@MODES
def test_no_sdk_sends_a_header_that_is_refused(upstream: Upstream, node_sdk: NodeSdk, mode: Mode) -> None:
    node_sdk.call(mode, {"model": "m", "messages": HELLO}, base_url=upstream.base_url)
    with openai.OpenAI(base_url=upstream.base_url, api_key="none") as sdk:
        asked: Any = {"model": "m", "messages": HELLO, "stream": mode == "stream"}
        sdk.chat.completions.create(**asked)
    for received in upstream.chats:
        assert not received.headers.keys() & {"idempotency-key", "x-conversation-id", "x-routing-mode"}
    assert len(upstream.chats) == 2


def test_both_sdks_raise_when_the_stream_behind_breaks(upstream: Upstream, node_sdk: NodeSdk) -> None:
    cut = Stream(text_stream("one two three"), cut_after=3)
    upstream.script(cut, cut)
    asked: Any = {"model": "m", "messages": HELLO}
    with penstock(env={"OPENAI_BASE_URL": upstream.base_url}) as process:
        url = f"{process.base_url}/v1"
        said = node_sdk.call("stream", asked, base_url=url)
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as sdk, pytest.raises(openai.APIError):
            list(sdk.chat.completions.create(stream=True, **asked))
    assert said["text"] == "one two"
    assert said["error"]["message"]
