"""Streams as clients read them: cut ones are seen to be cut, and streamed or not an answer is the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Generator
from typing import Any

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.rig.upstream import (
    Plain,
    Refuse,
    Silence,
    Stream,
    Upstream,
    chunk,
    completion,
    text_stream,
    tool_call,
    tool_fragment,
    usage_of,
)
from tests.server.gateway import MESSAGES, Calm, Gateway, chat, dechunked, error_of, events_of, gateway

CHUNKS = text_stream("one two three")
USAGE = usage_of(prompt=5, completion=7)


@pytest.fixture
def served(calm: Calm) -> Gateway:
    return calm.served


@pytest.fixture
def upstream(calm: Calm) -> Upstream:
    return calm.cleared()


@pytest.mark.parametrize("reset", [False, True])
async def test_case_04_a_cut_stream_never_ends_cleanly(reset: bool, served: Gateway, upstream: Upstream) -> None:
    async with served.async_sdk() as client:
        for k in range(2, len(CHUNKS) + 1):  # the role alone says nothing yet
            upstream.script(*[Stream(CHUNKS, cut_after=k, reset=reset)] * 3)
            reader, writer = await served.open()
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), k
            body = dechunked(await reader.readuntil(b"0\r\n\r\n"))
            *told, last = events_of(body)
            assert last["error"]["code"] == "provider_bad_answer", k
            assert "[DONE]" not in told
            assert set(last["error"]) == {"message", "type", "param", "code"}
            writer.close()

            with pytest.raises(openai.APIError):
                async for _ in await client.chat.completions.create(model="rig", messages=MESSAGES, stream=True):
                    pass
            with pytest.raises(openai.APIError), served.sdk() as sync:
                await asyncio.to_thread(list, sync.chat.completions.create(model="rig", messages=MESSAGES, stream=True))


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Stream(CHUNKS, cut_after=0), 502, "provider_bad_answer"),
        (Stream(CHUNKS, cut_after=0, early_headers=True, think_s=0.05), 502, "provider_bad_answer"),
        (Stream([]), 502, "provider_bad_answer"),
        (Refuse(), 503, "provider_unavailable"),
        (Refuse(reset=True), 503, "provider_unavailable"),
        (b"not http at all\r\n\r\n", 503, "provider_unavailable"),
        (Plain(b"<html>busy</html>", status=500), 500, "provider_unavailable"),
        (Plain(b"<html>fine</html>"), 502, "provider_bad_answer"),
        (Plain({"error": {"message": "no such key"}}, status=401), 502, "provider_unauthorized"),
        (Plain({"error": {"message": "long", "code": "context_length_exceeded"}}, 400), 400, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_case_04_before_the_first_byte_an_error_keeps_its_status(
    stream: bool, answer: Any, status: int, code: str, served: Gateway, upstream: Upstream
) -> None:
    upstream.script(answer, answer)  # the second for a connection that was kept, which is tried anew
    got = served.post(chat(stream=stream))
    assert (got.status_code, error_of(got)["code"]) == (status, code)
    assert got.headers["content-type"] == "application/json"


def test_case_04_an_error_object_in_the_middle_ends_the_stream(served: Gateway, upstream: Upstream) -> None:
    upstream.script(Stream([*CHUNKS[:2], {"error": {"message": "overheated", "code": "server_error"}}]))
    got = served.post(chat())
    assert events_of(got.content)[-1]["error"]["message"] == "overheated"
    assert b"[DONE]" not in got.content


@pytest.mark.parametrize("stream", [True, False])
def test_case_05_a_stalled_upstream_is_told_and_the_next_call_passes(stream: bool, upstream: Upstream) -> None:
    with gateway(upstream, model={"timeout_s": 0.6, "idle_timeout_s": 0.3}) as served:
        upstream.script(Stream(CHUNKS, stall_after=2) if stream else Silence())
        got = served.post(chat(stream=stream))
        assert got.status_code == (200 if stream else 504)
        said = events_of(got.content)[-1]["error"] if stream else error_of(got)
        assert said["code"] == ("provider_bad_answer" if stream else "provider_timeout")
        assert served.post(chat(stream=stream)).status_code == 200


def _answers() -> dict[str, tuple[list[Any], Any]]:
    two = [tool_call("add", '{"a": 1}', call_id="c1"), tool_call("mul", '{"b": 2}', call_id="c2")]
    pieces = [
        chunk(role="assistant", tool_calls=[tool_call("add", "", call_id="c1", index=0)]),
        chunk(tool_calls=[tool_fragment('{"a"')]),
        chunk(tool_calls=[tool_fragment(": 1}")]),
        chunk(tool_calls=[tool_call("mul", '{"b": 2}', call_id="c2", index=1)]),
        chunk(finish="tool_calls"),
    ]
    long = completion("one two", finish="length", usage=USAGE)
    thought = completion("yes", usage=USAGE)
    thought["choices"][0]["message"]["reasoning"] = "let me see"
    tagged = completion("<think>let me see</think>yes", usage=USAGE)
    both = completion("left", usage=USAGE)
    both["choices"].append({"index": 1, "message": {"role": "assistant", "content": "right"}, "finish_reason": "stop"})
    return {
        "text": (text_stream("one two three"), completion("one two three", usage=USAGE)),
        "cut off by its length": ([*text_stream("one two")[:-1], chunk(finish="length")], long),
        "tool calls": (pieces, completion(tool_calls=two, usage=USAGE)),
        "reasoning": ([chunk(reasoning_content="let me "), chunk(reasoning="see"), *text_stream("yes")], thought),
        "tagged reasoning": (text_stream("<think>let me see</think>yes"), tagged),
        "two choices": (
            [chunk("le"), chunk("ri", index=1), chunk("ft", finish="stop"), chunk("ght", finish="stop", index=1)],
            both,
        ),
    }


@pytest.mark.parametrize("name", list(_answers()))
def test_case_07_streamed_and_whole_answers_are_equal(name: str, served: Gateway, upstream: Upstream) -> None:
    pieces, whole = _answers()[name]
    upstream.script(Stream([*pieces, chunk(usage=USAGE)]), Plain(whole))
    asked: dict[str, Any] = {"model": "rig", "messages": MESSAGES}
    with served.sdk() as client:
        state = ChatCompletionStreamState()
        for piece in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            state.handle_chunk(piece)
        streamed = state.current_completion_snapshot
        plain = client.chat.completions.create(**asked)
    assert streamed.usage == plain.usage
    for one, other in zip(streamed.choices, plain.choices, strict=True):
        assert one.index == other.index
        assert one.finish_reason == other.finish_reason
        assert (one.message.content or "") == (other.message.content or "")
        calls = [[(c.id, c.function) for c in said.message.tool_calls or ()] for said in (one, other)]
        assert [(i, f.name, f.arguments) for i, f in calls[0]] == [(i, f.name, f.arguments) for i, f in calls[1]]
        for field in ("reasoning", "reasoning_content"):
            assert (one.message.model_extra or {}).get(field) == (other.message.model_extra or {}).get(field)


@contextlib.contextmanager
def impatient_proxy(port: int, idle_s: float) -> Generator[int]:
    """Passes bytes between a client and a port, and resets both when nothing passes for `idle_s` seconds."""
    listener = socket.create_server(("127.0.0.1", 0))

    def carry() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            for source in (client, server):
                source.settimeout(0.01)
            passed = time.monotonic()
            while time.monotonic() - passed < idle_s:
                for source, target in ((client, server), (server, client)):
                    with contextlib.suppress(TimeoutError):
                        if not (data := source.recv(65536)):
                            return
                        target.sendall(data)
                        passed = time.monotonic()

    thread = threading.Thread(target=carry, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        thread.join(5)


@pytest.mark.parametrize("heartbeat_s", [0.1, 15.0])
def test_case_10_heartbeats_carry_a_long_think_through_an_idle_proxy(heartbeat_s: float, upstream: Upstream) -> None:
    upstream.script(Stream(text_stream("done"), think_s=1.2))
    with (
        gateway(upstream, server={"heartbeat_s": heartbeat_s}) as served,
        impatient_proxy(int(served.url.rsplit(":", 1)[1]), idle_s=0.4) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0) as client,
    ):
        asked = client.chat.completions
        if heartbeat_s > 1:  # the proxy does cut a silent stream
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                list(asked.create(model="rig", messages=MESSAGES, stream=True))
            return
        pieces = [c.choices[0].delta.content or "" for c in asked.create(model="rig", messages=MESSAGES, stream=True)]
    assert "".join(pieces) == "done"


async def test_heartbeats_come_at_event_boundaries_and_bring_the_headers(upstream: Upstream) -> None:
    events = [chunk("", role="assistant"), *(chunk(f" {n}") for n in range(8)), chunk(finish="stop")]
    upstream.script(Stream(events, think_s=0.5, delay_s=0.06, split=40))
    with gateway(upstream, server={"heartbeat_s": 0.025}) as served:
        began = time.monotonic()
        reader, writer = await served.open()
        head = await reader.readuntil(b"\r\n\r\n")
        assert time.monotonic() - began < 0.45, "the head waits for the first token"
        assert b"content-type: text/event-stream" in head
        body = dechunked(await reader.readuntil(b"0\r\n\r\n"))
        writer.close()
    parts = body.split(b"\n\n")
    assert parts.pop() == b""
    assert {part[:6] for part in parts} == {b": ping", b"data: "}
    assert [part for part in parts if part.startswith(b":")] == [b": ping"] * parts.count(b": ping")
    assert parts.count(b": ping") >= 12
    assert len(events_of(body)) == len(events) + 1


def test_a_stream_that_is_never_silent_has_no_heartbeat(upstream: Upstream) -> None:
    upstream.script(Stream(text_stream("a b c d e f g h i j"), delay_s=0.03))
    with gateway(upstream, server={"heartbeat_s": 0.25}) as served:
        assert b"ping" not in served.post(chat()).content


def test_a_whole_answer_has_no_heartbeat(upstream: Upstream) -> None:
    upstream.script(Plain(completion("late"), think_s=0.3))
    with gateway(upstream, server={"heartbeat_s": 0.05}) as served:
        assert served.post(chat(stream=False)).json()["choices"][0]["message"]["content"] == "late"
