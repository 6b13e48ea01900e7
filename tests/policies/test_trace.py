"""`trace`: one span a call, passed on explicitly, ended once, in both vocabularies."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from penstock.errors import RateLimited
from penstock.events import Event, Reasoning, Text, Used
from penstock.llms.openai import Gpt
from penstock.messages import ChatReply, ChatRequest, Choice, ToolCall, Usage
from penstock.outcome import Failed, Finished
from penstock.policies.record import Record, record
from penstock.policies.trace import describe_chat, trace
from penstock.run import Execution, Executor, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm
from tests.policies.conftest import Spans, id_of
from tests.rig.upstream import Plain, Upstream, error_body

Chat = Executor[ChatRequest, ChatReply]
ASKED = ChatRequest.of("What is a penstock?", model="gpt-5-mini", temperature=0.5, tools=[{"type": "function"}])


def traced(llm: Chat, *, content: bool = False) -> Chat:
    """An LLM as the server traces it."""
    inner: Chat = trace("llm", name="chat", describe=describe_chat, content=content)(llm)
    return trace("server", name="POST /v1/chat/completions", describe=describe_chat, content=content)(inner)


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


async def endless(request: ChatRequest, run: Run) -> ChatReply:
    await run.emit(Reasoning("hm"))
    await run.emit(Text("so far"))
    await asyncio.Event().wait()
    raise AssertionError


async def test_row_a6_a_server_span_holds_an_llm_span_in_both_vocabularies(spans: Spans, upstream: Upstream) -> None:
    gpt = Gpt(base_url=upstream.base_url, api_key="sk-canary-trace-1234")
    await execute(traced(gpt), ASKED)
    server, llm = spans.only("POST /v1/chat/completions"), spans.only("chat")
    assert (server.kind, llm.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert server.parent is None
    assert llm.parent == server.get_span_context()
    found = attributes(llm)
    assert found["openinference.span.kind"] == "LLM"
    assert attributes(server)["openinference.span.kind"] == "CHAIN"
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == "gpt-5-mini"
    assert found["gen_ai.response.model"] == found["llm.model_name"] == "gpt-5-mini"
    assert found["gen_ai.provider.name"] == found["llm.provider"] == "openai"
    assert found["gen_ai.response.finish_reasons"] == ("stop",)
    assert found["gen_ai.usage.input_tokens"] == found["llm.token_count.prompt"] == 4
    assert found["gen_ai.usage.output_tokens"] == found["llm.token_count.completion"] == 4
    assert found["llm.token_count.total"] == 8
    assert json.loads(found["llm.invocation_parameters"]) == {"temperature": 0.5}
    assert json.loads(found["metadata"]) == {"stream": True, "messages": 1}
    assert found["penstock.outcome"] == "finished"
    assert found["penstock.time_to_first_token_s"] > 0
    assert {span.status.status_code for span in spans.ended} == {StatusCode.UNSET}
    assert not any(span.events for span in spans.ended)


async def test_case_29_the_upstream_is_told_the_llm_span(spans: Spans, upstream: Upstream) -> None:
    await execute(traced(Gpt(base_url=upstream.base_url, api_key="k")), ASKED)
    (request,) = upstream.requests
    context = spans.only("chat").get_span_context()
    assert context is not None
    flags = request.headers["traceparent"][-2:]
    assert int(flags, 16) & otel.TraceFlags.SAMPLED
    assert request.headers["traceparent"] == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"


async def test_row_a16_a_span_says_what_its_calls_cost(spans: Spans, upstream: Upstream) -> None:
    await execute(traced(Gpt(model="gpt-5-mini", base_url=upstream.base_url, api_key="k")), ASKED)
    for span in (spans.only("chat"), spans.only("POST /v1/chat/completions")):
        assert attributes(span)["llm.cost.total"] == pytest.approx(4 * 0.25e-6 + 4 * 2e-6)


async def test_a_span_has_no_cost_where_it_is_not_known(spans: Spans) -> None:
    await execute(traced(ScriptedLlm("A pipe.")), ASKED)
    assert "llm.cost.total" not in attributes(spans.only("chat"))


@pytest.mark.parametrize("content", [False, True])
async def test_row_a7_texts_are_kept_only_when_asked_for(spans: Spans, content: bool) -> None:
    await execute(traced(ScriptedLlm("A gated pipe."), content=content), ASKED)
    for span in spans.ended:
        found = attributes(span)
        assert ("What is" in str(found)) is content
        assert ("gated pipe" in str(found)) is content
        if content:
            assert json.loads(found["input.value"]) == ASKED.messages
            assert found["input.mime_type"] == "application/json"
            assert found["output.value"] == "A gated pipe."


async def test_row_a7_a_tool_call_is_an_output_too(spans: Spans) -> None:
    call = ToolCall("call_1", "add", '{"a":1}')
    await execute(traced(ScriptedLlm(call), content=True), ASKED)
    assert json.loads(attributes(spans.only("chat"))["output.value"]) == [
        {"id": "call_1", "name": "add", "arguments": '{"a":1}'}
    ]


async def test_row_a7_the_output_so_far_is_kept_when_the_client_leaves(spans: Spans) -> None:
    async with execute_stream(traced(endless, content=True), ASKED) as execution:
        async for event in execution:
            if event == Text("so far"):
                break
    for name in ("chat", "POST /v1/chat/completions"):
        span = spans.only(name)
        assert attributes(span)["output.value"] == "so far"
        assert attributes(span)["penstock.outcome"] == "cancelled"
        assert span.status.status_code is StatusCode.UNSET
    server = spans.only("POST /v1/chat/completions")
    assert attributes(server)["penstock.cancel_reason"] == "the consumer left early"


async def test_an_error_is_the_status_of_both_spans(spans: Spans, upstream: Upstream) -> None:
    upstream.script(Plain(error_body("slow down"), status=429, headers={"x-request-id": "req_7"}))
    gpt = Gpt(base_url=upstream.base_url, api_key="sk-canary-trace-1234")
    with pytest.raises(RateLimited):
        await execute(traced(gpt), ASKED)
    for name in ("chat", "POST /v1/chat/completions"):
        span = spans.only(name)
        assert span.status.status_code is StatusCode.ERROR
        assert "slow down" in (span.status.description or "")
        assert attributes(span)["error.type"] == "RateLimited"
        assert attributes(span)["penstock.outcome"] == "failed"
        assert attributes(span)["penstock.provider_request_id"] == "req_7"
        assert "canary" not in span.to_json()


async def test_tokens_of_several_calls_are_added_up(spans: Spans) -> None:
    async def agent(request: ChatRequest, run: Run) -> None:
        for tokens in (10, 20):
            await run.child("llm").emit(Used(usage=Usage(tokens, 1, tokens + 1), provider="p"))

    await execute(trace("server", name="agent")(agent), ASKED)
    found = attributes(spans.only("agent"))
    assert (found["llm.token_count.prompt"], found["llm.token_count.completion"]) == (30, 2)
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (30, 2)
    assert found["llm.token_count.total"] == 32


async def test_the_server_span_ends_after_storing_and_says_when_that_failed(spans: Spans) -> None:
    ended: list[int] = []

    async def store(kept: Record) -> None:
        await asyncio.sleep(0)
        ended.append(len(spans.ended))
        raise OSError("disk full")

    executor = trace("server", name="request")(record(store)(trace("llm", name="chat")(ScriptedLlm("fine"))))
    heard = Heard()

    def hear(event: Event) -> None:
        heard(event)
        ended.append(len(spans.ended))

    with pytest.raises(OSError, match="disk full"):
        await execute(executor, ASKED, hear)
    assert ended[-2:] == [1, 2]  # the LLM's own span when it is stored, both when the end is told
    assert isinstance(heard.end, Failed)
    server = spans.only("request")
    assert (server.status.status_code, server.status.description) == (StatusCode.ERROR, "disk full")
    assert attributes(server)["penstock.outcome"] == "failed"
    assert attributes(spans.only("chat"))["penstock.outcome"] == "finished"


@pytest.mark.parametrize("kind", ["server", "llm"])
async def test_a_description_that_fails_costs_neither_the_call_nor_the_span(
    spans: Spans, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def describe(request: Any, result: Any, /, *, content: bool) -> Mapping[str, str]:
        raise KeyError("model")

    reply = await execute(trace(kind, name="one", describe=describe)(ScriptedLlm("fine")), ASKED)
    assert reply.content == "fine"
    assert spans.only("one").end_time
    assert "cannot be described" in caplog.text


async def test_without_an_sdk_nothing_changes() -> None:
    seen: list[Any] = []

    async def look(request: ChatRequest, run: Run) -> ChatReply:
        seen.append(run.span)
        await run.emit(Text("said"))
        return ChatReply(choices=(Choice(content="said"),))

    heard = Heard()
    reply = await execute(traced(look), ASKED, heard)
    assert heard.events == [Text("said"), Finished(reply)]
    assert not seen[0].get_span_context().is_valid


async def test_without_an_sdk_the_callers_trace_goes_on(upstream: Upstream) -> None:
    caller = otel.NonRecordingSpan(otel.SpanContext(7, 9, is_remote=True, trace_flags=otel.TraceFlags(1)))
    gpt = Gpt(base_url=upstream.base_url, api_key="k")
    await execute(traced(gpt), ASKED, parent=caller)
    assert upstream.requests[0].headers["traceparent"] == f"00-{7:032x}-{9:016x}-01"


async def test_what_is_not_sampled_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
    heard = Heard()
    await execute(traced(ScriptedLlm("fine")), ASKED, heard)
    assert heard.text == "fine"


async def test_the_callers_span_is_the_parent_given_or_current(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("caller")
    given = tracer.start_span("given")
    await execute(traced(ScriptedLlm("fine")), ASKED, parent=given)
    given.end()
    with tracer.start_as_current_span("current") as current:
        await execute(traced(ScriptedLlm("fine")), ASKED)
    roots = [span for span in spans.ended if span.kind is SpanKind.SERVER]
    assert [span.parent for span in roots] == [given.get_span_context(), current.get_span_context()]


async def test_fifty_calls_at_once_each_have_their_own_pair(spans: Spans) -> None:
    async def answer(request: ChatRequest, run: Run) -> ChatReply:
        await asyncio.sleep(0)
        return ChatReply(choices=(Choice(content=request.model),), model=request.model)

    executor = traced(answer)
    await asyncio.gather(*(execute(executor, ChatRequest.of("x", model=f"m{n}")) for n in range(50)))
    by_id = {id_of(span): span for span in spans.ended}
    children = [span for span in spans.ended if span.parent is not None]
    assert (len(by_id), len(children)) == (100, 50)
    for child in children:
        assert child.parent is not None
        parent = by_id[child.parent.span_id]
        assert attributes(parent)["gen_ai.request.model"] == attributes(child)["gen_ai.request.model"]


async def test_case_28_a_span_is_never_the_current_one_of_anybody(spans: Spans) -> None:
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append(otel.get_current_span().get_span_context().is_valid)

    async def works(request: ChatRequest, run: Run) -> ChatReply:
        look()
        await run.emit(Text("said"))
        return ChatReply(choices=())

    await execute(traced(works), ASKED, look, closing=[look])
    look()
    assert seen == [False] * 5


async def consume(execution: Execution[Any], spans: Spans) -> AsyncGenerator[Event, None]:
    """A consumer in the form of a generator, with a span of its own for each event."""
    tracer = spans.provider.get_tracer("consumer")
    async with execution:
        async for event in execution:
            assert not otel.get_current_span().get_span_context().is_valid
            tracer.start_span("consumer").end()
            yield event


async def all_ended(spans: Spans) -> None:
    async with asyncio.timeout(10):
        while len(spans.ended) < len(spans.started):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("how", ["whole", "early", "another task", "collected"])
async def test_case_28_a_generator_around_a_run_ends_every_span_once(
    spans: Spans, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    llm = ScriptedLlm("one two three") if how == "whole" else endless
    words = consume(execute_stream(traced(llm), ASKED), spans)
    if how == "whole":
        assert isinstance([event async for event in words][-1], Finished)
    else:
        await anext(words)
    if how == "early":
        await words.aclose()
    elif how == "another task":
        await asyncio.create_task(words.aclose())
    del words
    gc.collect()
    await all_ended(spans)
    assert len(spans.started) == len({id_of(span) for span in spans.ended}) == len(spans.ended)
    ours = {id_of(span) for span in spans.ended if span.name != "consumer"}
    assert len(ours) == 2
    for span in spans.ended:
        if span.name == "consumer":
            assert span.parent is None
    assert not caplog.records


async def test_case_28_a_coroutine_closed_half_way_ends_its_spans(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    running = execute(traced(endless), ASKED)
    running.send(None)
    running.close()
    await all_ended(spans)
    assert attributes(spans.only("POST /v1/chat/completions"))["penstock.cancel_reason"] == "abandoned"
    assert attributes(spans.only("chat"))["penstock.outcome"] == "cancelled"
    assert not caplog.records
