"""The rig's own tests: what each real part promises to the tests that stand on it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.conftest import require
from tests.rig.otlp import Receiver
from tests.rig.serving import answers, free_port, hello, running, serve_asgi
from tests.rig.upstream import (
    Answer,
    Plain,
    Received,
    Refuse,
    Silence,
    Stream,
    Upstream,
    chunk,
    error_body,
    text_stream,
    tool_call,
    tool_fragment,
)
from tests.rig.upstream import upstream as upstream_of_its_own

HELLO: Any = [{"role": "user", "content": "hello there river"}]
PATH = "/v1/chat/completions"
REQUEST = json.dumps({"model": "m", "messages": HELLO, "stream": True}).encode()
ANSWER = text_stream("one two three")


def client_of(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=20.0)


@pytest.fixture
def client(upstream: Upstream) -> openai.OpenAI:
    return client_of(upstream.base_url)


@dataclass(frozen=True, slots=True)
class Read:
    """What a raw client has read of a body, and how that ended."""

    body: bytes
    error: Exception | None = None


def read(upstream: Upstream, timeout_s: float = 5.0) -> Read:
    """Sends a chat request and reads its body to its end, without an SDK's mercy."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=timeout_s)
    seen = b""
    try:
        connection.request("POST", PATH, REQUEST)
        reply = connection.getresponse()
        while piece := reply.read1():
            seen += piece
        if reply.length:
            raise http.client.IncompleteRead(seen, reply.length)
    except (OSError, http.client.HTTPException) as error:
        return Read(seen, error)
    finally:
        connection.close()
    return Read(seen)


def body_of(upstream: Upstream, answer: Stream) -> bytes:
    upstream.script(answer)
    whole = read(upstream)
    assert whole.error is None
    return whole.body


def open_socket(upstream: Upstream) -> socket.socket:
    """A connection that has sent a request and has not read."""
    connection = socket.create_connection(("127.0.0.1", upstream.port), timeout=5.0)
    connection.sendall(f"POST {PATH} HTTP/1.1\r\nContent-Length: {len(REQUEST)}\r\n\r\n".encode() + REQUEST)
    return connection


class TestUpstream:
    """The upstream that does what a test scripts."""

    def test_without_a_script_it_echoes_with_usage(self, client: openai.OpenAI, upstream: Upstream) -> None:
        reply = client.chat.completions.create(model="m", messages=HELLO)
        assert reply.choices[0].message.content == "hello there river"
        assert reply.usage is not None
        assert reply.usage.total_tokens == 6
        assert upstream.requests[0].json["messages"] == HELLO
        assert upstream.requests[0].headers["authorization"] == "Bearer none"

    def test_a_stream_has_usage_only_when_asked(self, client: openai.OpenAI) -> None:
        options: Any = {"include_usage": True}
        with client.chat.completions.create(model="m", messages=HELLO, stream=True) as plain:
            assert [seen.usage for seen in plain] == [None] * 5
        with client.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options=options) as counted:
            usages = [seen.usage for seen in counted]
        assert usages[:-1] == [None] * 5
        assert usages[-1] is not None

    def test_a_connection_is_kept_alive(self, upstream: Upstream) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=5.0)
        for method, path, body in (("POST", PATH, REQUEST), ("GET", "/v1/models", b""), ("POST", PATH, b"{}")) * 2:
            connection.request(method, path, body)
            assert connection.getresponse().read()
        connection.close()
        assert (len(upstream.requests), len(upstream.chats), upstream.connections) == (6, 4, 1)
        assert upstream.closed_early == []

    def test_an_unknown_path_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")

    def test_answers_are_given_in_the_order_of_the_script(self, client: openai.OpenAI, upstream: Upstream) -> None:
        slow_down = Plain(error_body("slow down", code="rate_limit"), 429, {"Retry-After": "2"})
        upstream.script(slow_down, Plain(error_body("broken"), 500))
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="m", messages=HELLO)
        assert limited.value.response.headers["retry-after"] == "2"
        assert limited.value.code == "rate_limit"
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="m", messages=HELLO)
        assert client.chat.completions.create(model="m", messages=HELLO).choices

    def test_tool_calls_stream_in_fragments(self, client: openai.OpenAI, upstream: Upstream) -> None:
        first = chunk(role="assistant", tool_calls=[tool_call("add", "", index=0)])
        rest = [chunk(tool_calls=[tool_fragment(part)]) for part in ('{"a"', ": 1}")]
        upstream.script(Stream([first, *rest, chunk(finish="tool_calls")]))
        with client.chat.completions.stream(model="m", messages=HELLO) as stream:
            calls = stream.get_final_completion().choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].function.arguments == '{"a": 1}'

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("after", range(len(ANSWER) + 1))
    def test_a_cut_after_k_chunks_shows_k_chunks_and_raises(self, upstream: Upstream, after: int, reset: bool) -> None:
        upstream.script(Stream(ANSWER, cut_after=after, reset=reset))
        seen = read(upstream)
        assert isinstance(seen.error, ConnectionResetError if reset else http.client.IncompleteRead)
        assert seen.body.count(b"data: ") == after
        assert upstream.closed_early == []

    def test_a_stall_shows_nothing_more_until_it_is_released(self, upstream: Upstream) -> None:
        upstream.script(Stream(ANSWER, stall_after=2), Stream(ANSWER, stall_after=2))
        seen = read(upstream, timeout_s=0.3)
        assert isinstance(seen.error, TimeoutError)
        assert seen.body.count(b"data: ") == 2
        upstream.release()
        assert read(upstream).body.count(b"data: ") == len(ANSWER) + 1

    @pytest.mark.parametrize("answer", [Silence(), Stream(ANSWER, think_s=60.0), Plain({}, think_s=60.0)], ids=repr)
    def test_a_client_that_leaves_before_the_first_byte_is_seen_at_once(self, upstream: Upstream, answer: Any) -> None:
        upstream.script(answer)
        connection = open_socket(upstream)
        upstream.wait_requests(1)
        left = time.monotonic()
        connection.close()
        (closed,) = upstream.wait_closed(1)
        assert 0 <= closed.at - left < 1.0
        assert closed.sent == 0
        assert closed.request is upstream.requests[0]

    def test_a_client_that_leaves_in_mid_stream_is_seen_at_once(self, upstream: Upstream) -> None:
        upstream.script(Stream(ANSWER, delay_s=30.0))
        connection = open_socket(upstream)
        assert connection.recv(65536)
        left = time.monotonic()
        connection.close()
        (closed,) = upstream.wait_closed(1)
        assert 0 <= closed.at - left < 1.0
        assert closed.sent > 0

    def test_silence_answers_nothing(self, upstream: Upstream) -> None:
        upstream.script(Silence())
        assert isinstance(read(upstream, timeout_s=0.2).error, TimeoutError)

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (Refuse(), http.client.RemoteDisconnected),
            (Refuse(reset=True), ConnectionResetError),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", http.client.IncompleteRead),
            (b"hello\r\n\r\n", http.client.BadStatusLine),
        ],
        ids=repr,
    )
    def test_a_broken_answer_raises(self, upstream: Upstream, answer: Any, error: type[Exception]) -> None:
        upstream.script(answer)
        assert isinstance(read(upstream).error, error)

    def test_split_pieces_give_the_same_body(self, upstream: Upstream) -> None:
        whole = body_of(upstream, Stream(ANSWER))
        for size in (1, 2, 7, 1000):
            assert body_of(upstream, Stream(ANSWER, split=size)) == whole
        upstream.script(Stream(ANSWER, split=1))
        connection = open_socket(upstream)
        received = b"".join(iter(lambda: b"" if b"0\r\n\r\n" in (got := connection.recv(4096)) else got, b""))
        connection.close()
        assert b"1\r\nd\r\n1\r\na\r\n1\r\nt\r\n1\r\na\r\n" in received

    def test_the_form_of_a_stream_can_be_odd(self, upstream: Upstream) -> None:
        assert body_of(upstream, Stream(["a"])) == b"data: a\n\ndata: [DONE]\n\n"
        assert body_of(upstream, Stream(["a"], done=False)) == b"data: a\n\n"
        assert body_of(upstream, Stream(["a"], newline="\r\n")) == b"data: a\r\n\r\ndata: [DONE]\r\n\r\n"
        assert body_of(upstream, Stream(["a"], bom=True, done=False)) == b"\xef\xbb\xbfdata: a\n\n"
        assert body_of(upstream, Stream([b": hm\n\n", b"data: \xff"], done=False)) == b": hm\n\ndata: \xff"
        assert body_of(upstream, Stream(["a"], chunked=False)) == b"data: a\n\ndata: [DONE]\n\n"
        assert body_of(upstream, Stream([], done=False)) == b""

    def test_headers_can_come_before_the_thinking(self, upstream: Upstream) -> None:
        upstream.script(Stream(ANSWER, think_s=30.0, early_headers=True))
        with open_socket(upstream) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")

    def test_a_client_that_does_not_read_stops_the_stream(self, upstream: Upstream) -> None:
        line = b"data: " + b"x" * 65536 + b"\n\n"
        upstream.script(Stream([line] * 640))
        with open_socket(upstream) as connection:
            before = -1
            while upstream.sent_bytes != before:
                before = upstream.sent_bytes
                time.sleep(0.2)
            assert 0 < before < 20_000_000
            while b"[DONE]" not in connection.recv(1 << 20):
                pass
        assert upstream.sent_bytes > 640 * len(line)

    def test_stopping_in_mid_answer_ends_it_and_is_no_leaving(self, capfd: pytest.CaptureFixture[str]) -> None:
        with upstream_of_its_own() as upstream:
            upstream.script(Silence())
            with (
                open_socket(upstream) as busy,
                socket.create_connection(("127.0.0.1", upstream.port), timeout=5.0) as idle,
            ):
                upstream.wait_requests(1)
                upstream.stop()
                assert (busy.recv(1), idle.recv(1)) == (b"", b"")
        assert upstream.closed_early == []
        assert upstream.open_connections == 0
        assert capfd.readouterr().err == ""

    def test_a_fault_of_the_upstream_itself_is_told(self) -> None:
        def answer(request: Received) -> Answer:
            raise ZeroDivisionError(request.path)

        with pytest.raises(ExceptionGroup) as told, upstream_of_its_own() as upstream:
            upstream.default = answer
            assert isinstance(read(upstream).error, http.client.RemoteDisconnected)
        assert isinstance(told.value.exceptions[0], ZeroDivisionError)

    def test_a_chunked_request_is_read(self, upstream: Upstream) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=5.0)
        connection.request("POST", PATH, iter([REQUEST[:20], REQUEST[20:]]), encode_chunked=True)
        assert connection.getresponse().read().count(b"data: ") == 6
        connection.close()
        assert upstream.requests[0].body == REQUEST

    def test_waiting_for_what_does_not_come_says_what_came(self, upstream: Upstream) -> None:
        with pytest.raises(TimeoutError, match="saw 0 of 1"):
            upstream.wait_closed(1, timeout_s=0.05)

    @pytest.mark.asyncio
    async def test_fifty_clients_at_once_each_get_their_own_answer(self, upstream: Upstream) -> None:
        async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="none", max_retries=0, timeout=20.0) as many:

            async def said(number: int) -> str | None:
                messages: Any = [{"role": "user", "content": f"word {number}"}]
                reply = await many.chat.completions.create(model="m", messages=messages)
                return reply.choices[0].message.content

            assert await asyncio.gather(*map(said, range(50))) == [f"word {number}" for number in range(50)]


class TestOtlp:
    """The receiver for spans."""

    def test_spans_of_the_real_exporter_arrive(self, otlp: Receiver) -> None:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=otlp.traces_url)))
        tracer = provider.get_tracer("rig")
        with (
            tracer.start_as_current_span("outer", kind=SpanKind.SERVER, attributes={"n": 3, "list": ["a", "b"]}),
            tracer.start_as_current_span("inner", kind=SpanKind.CLIENT) as inner,
        ):
            inner.add_event("first token")
            inner.set_status(Status(StatusCode.ERROR, "no"))
        provider.shutdown()
        inner_seen, outer_seen = otlp.wait_spans(2)
        assert (outer_seen.name, outer_seen.kind, outer_seen.parent_id) == ("outer", "SERVER", "")
        assert outer_seen.attributes == {"n": 3, "list": ["a", "b"]}
        assert outer_seen.status == "UNSET"
        assert (inner_seen.kind, inner_seen.status, inner_seen.message) == ("CLIENT", "ERROR", "no")
        assert inner_seen.parent_id == outer_seen.span_id
        assert inner_seen.trace_id == outer_seen.trace_id
        assert len(inner_seen.trace_id) == 32
        assert inner_seen.events == ("first token",)
        assert outer_seen.resource["telemetry.sdk.language"] == "python"
        assert inner_seen.end_ns >= inner_seen.start_ns > 0


class TestServing:
    """Servers in threads and in child processes."""

    def test_an_application_is_served_on_uvicorn(self) -> None:
        with serve_asgi(hello, lifespan="off") as url:
            assert urllib.request.urlopen(f"{url}/path").read() == b"/path"
        assert not answers(url)

    def test_an_application_that_does_not_start_is_told(self) -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": scope["type"]})

        with pytest.raises(RuntimeError, match="ended before it was ready"), serve_asgi(broken, log_level="critical"):
            pass

    def test_a_child_is_ready_when_its_url_answers_and_dead_afterwards(self) -> None:
        cmd = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
        with running(cmd, ready="http://127.0.0.1:{port}/") as child:
            assert answers(f"{child.base_url}/")
            assert child.popen.poll() is None
        assert child.popen.poll() is not None
        assert not answers(f"{child.base_url}/")

    def test_a_child_of_the_child_dies_too(self) -> None:
        script = f"{sys.executable} -m http.server --bind 127.0.0.1 {{port}} & wait"
        with running(["sh", "-c", script], ready="http://127.0.0.1:{port}/") as child:
            assert answers(f"{child.base_url}/")
        assert not answers(f"{child.base_url}/")

    def test_a_child_that_ends_first_shows_its_output(self) -> None:
        with (
            pytest.raises(RuntimeError) as told,
            running(["sh", "-c", "echo $WORD >&2"], ready="x", env={"WORD": "oops"}),
        ):
            pass
        assert "oops" in told.value.__notes__[0]

    def test_a_child_that_is_never_ready_is_killed(self) -> None:
        with pytest.raises(TimeoutError), running(["sleep", "60"], ready="http://127.0.0.1:{port}/", within_s=0.1):
            pass

    def test_a_child_can_be_terminated(self) -> None:
        with running(
            ["sh", "-c", "trap 'exit 7' TERM; echo READY; while :; do sleep 0.01; done"], ready="READY"
        ) as child:
            assert child.terminate() == 7

    def test_a_free_port_can_be_listened_on(self) -> None:
        with socket.create_server(("127.0.0.1", free_port())):
            pass

    @pytest.mark.parametrize("module", ["upstream", "otlp", "serving", "tiny_llm"])
    def test_each_part_runs_by_itself(self, module: str) -> None:
        with running([sys.executable, "-m", f"tests.rig.{module}"], ready="READY http://127.0.0.1:") as child:
            assert child.terminate() is not None


def test_what_is_missing_is_skipped_unless_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    require("present", problem="")
    with pytest.raises(pytest.skip.Exception, match="needs no-such-command"):
        require("no-such-command")
    monkeypatch.setenv("PENSTOCK_REQUIRE", "other,no-such-command")
    with pytest.raises(pytest.fail.Exception, match="no-such-command"):
        require("no-such-command")
