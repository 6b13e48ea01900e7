"""The bridge to LiteLLM, against a loopback service that speaks the OpenAI wire."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from penstock import ChatRequest, execute, llm
from penstock.errors import BadAnswer, BadRequest, LlmError, RateLimited, TooLong, Unauthorized, UsageError
from penstock.events import Used
from penstock.llms.litellm import Litellm
from penstock.llms.transport import Limits
from penstock.testing import Heard
from tests.rig.upstream import (
    Plain,
    Stream,
    Upstream,
    chunk,
    completion,
    error_body,
    text_stream,
    tool_call,
    tool_fragment,
    usage_of,
)

KEY = "sk-canary-0123456789abcdef"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = tool_call("add", '{"a": 1}', call_id="c1")


def bridge(upstream: Upstream, **options: Any) -> Litellm:
    return Litellm(model="openai/some-model", api_key=KEY, base_url=upstream.base_url, **options)


def ask(*, stream: bool, **params: Any) -> ChatRequest:
    return ChatRequest.of("Say it.", stream=stream, **params)


def test_importing_the_bridge_does_not_load_the_package() -> None:
    code = "import sys, penstock.llms.litellm; print('litellm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


async def test_it_is_found_by_its_name(upstream: Upstream) -> None:
    found = llm("litellm:openai/some-model", api_key=KEY, base_url=upstream.base_url)
    assert isinstance(found, Litellm)
    assert await found.generate_content_async("Say it.") == "Say it."
    assert upstream.chats[0].json["model"] == "some-model"
    assert upstream.chats[0].headers["authorization"] == f"Bearer {KEY}"


async def test_streamed_and_whole_say_the_same(upstream: Upstream) -> None:
    usage = usage_of(3, 4)
    upstream.script(Plain(completion("one two three", usage=usage)), Stream(text_stream("one two three", usage=usage)))
    whole = await execute(bridge(upstream), ask(stream=False))
    streamed = await execute(bridge(upstream), ask(stream=True), heard := Heard())
    assert streamed.content == whole.content == "one two three"
    assert streamed.finish_reason == whole.finish_reason == "stop"
    assert streamed.usage is not None
    assert whole.usage is not None
    assert (streamed.usage.prompt, streamed.usage.completion) == (whole.usage.prompt, whole.usage.completion) == (3, 4)
    assert len([event for event in heard.events if isinstance(event, Used)]) == 1


async def test_tool_calls_come_whole(upstream: Upstream) -> None:
    first = tool_call("add", "", call_id="c1", index=0)
    deltas = [[first], [tool_fragment('{"a": ')], [tool_fragment("1}")]]
    pieces = [*(chunk(tool_calls=calls) for calls in deltas), chunk(finish="tool_calls")]
    upstream.script(Plain(completion(None, tool_calls=[CALL])), Stream(pieces))
    for stream in (False, True):
        reply = await execute(bridge(upstream), ask(stream=stream, tools=TOOLS))
        assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [("c1", "add", '{"a": 1}')]
        assert reply.finish_reason == "tool_calls"
    assert upstream.chats[0].json["tools"] == TOOLS


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, "rate_limit_exceeded", RateLimited),
        (401, "invalid_api_key", Unauthorized),
        (400, "context_length_exceeded", TooLong),
    ],
)
async def test_errors_are_those_of_every_llm(
    status: int, code: str, kind: type[LlmError], upstream: Upstream, *, stream: bool
) -> None:
    said = f"no: {KEY}" if status != 400 else "This model's maximum context length is 10 tokens"
    upstream.script(Plain(error_body(said, code=code), status=status, headers={"retry-after": "7"}))
    with pytest.raises(kind) as caught:
        await execute(bridge(upstream), ask(stream=stream))
    assert len(upstream.chats) == 1  # Penstock's own retry decides
    assert KEY[:8] not in str(caught.value)
    if kind is RateLimited:
        assert caught.value.retry_after == 7


async def test_case_4_a_cut_stream_is_no_clean_end(upstream: Upstream) -> None:
    upstream.script(Stream(text_stream("one two three"), cut_after=2))
    with pytest.raises(BadAnswer) as caught:
        await execute(bridge(upstream), ask(stream=True))
    assert caught.value.partial.content.startswith("one")


async def test_case_5_a_stall_ends_at_the_idle_limit(upstream: Upstream) -> None:
    upstream.script(Stream(text_stream("one two three"), stall_after=2))
    with pytest.raises(BadAnswer, match="stalled"):
        await execute(bridge(upstream, limits=Limits(idle_s=0.3)), ask(stream=True))


@pytest.mark.parametrize("field", ["custom_llm_provider", "aws_bedrock_runtime_endpoint", "headers", "fallbacks"])
async def test_case_23_a_request_cannot_send_the_key_elsewhere(field: str, upstream: Upstream) -> None:
    with pytest.raises(BadRequest, match=f"'{field}' is not passed on") as caught:
        await execute(bridge(upstream), ask(stream=False, **{field: "http://127.0.0.1:9"}))
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
    assert not upstream.chats


def test_a_model_must_be_named() -> None:
    with pytest.raises(UsageError, match="name a model as LiteLLM does"):
        llm("litellm", model="")
