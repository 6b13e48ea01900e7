"""Traces over the wire: the caller's context in, the service's context out, and spans at a real collector."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from penstock.server.tracing import parent_of
from tests.rig.otlp import Receiver, SeenSpan
from tests.rig.serving import Process, running
from tests.rig.upstream import Plain, Stream, Upstream, error_body, text_stream
from tests.server.gateway import KEY, MESSAGES, NO_DRAIN, gateway, settings_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"
SERVER, LLM = "POST /v1/chat/completions", "chat"

MALFORMED = [
    "",
    "nonsense",
    "00",
    VALID[:-1],
    VALID + "0",
    f"{VALID}-",
    f"{VALID}-more",
    VALID.upper(),
    VALID.replace("-", "_"),
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE[:-1]}g-{SPAN}-01",
    f"00-{TRACE[:-1]}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}a-01",
    f"00-{TRACE}-{SPAN}-0x",
    f"00-{TRACE}-{SPAN}",
    f"ff-{TRACE}-{SPAN}-01",
    f"0-{TRACE}-{SPAN}-01",
    f"0g-{TRACE}-{SPAN}-01",
    f"01-{TRACE}-{SPAN}-01more",
    f"{VALID},{VALID}",
    "é" * 55,
]


@pytest.mark.parametrize("header", MALFORMED)
def test_case_29_a_malformed_header_is_ignored(header: str) -> None:
    assert parent_of(header.encode()) is None
    assert parent_of(header.encode(), b"vendor=1") is None


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (VALID, 1),
        (VALID[:-2] + "00", 0),
        (VALID[:-2] + "03", 3),
        (f"  {VALID} ", 1),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", 1),
    ],
)
def test_case_29_the_callers_span_is_read(header: str, flags: int) -> None:
    parent = parent_of(header.encode())
    assert parent is not None
    context = parent.get_span_context()
    assert context.is_valid
    assert context.is_remote
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE, SPAN)
    assert context.trace_flags == flags
    assert not parent.is_recording()


def test_no_header_is_no_parent() -> None:
    assert parent_of(None) is None
    assert parent_of(None, b"vendor=1") is None


def test_case_29_the_vendors_state_goes_along() -> None:
    parent = parent_of(VALID.encode(), b"vendor=value,other@tenant=1")
    assert parent is not None
    assert parent.get_span_context().trace_state.to_header() == "vendor=value,other@tenant=1"


@pytest.mark.parametrize("state", [b"", b"=", b",,,", b"UPPER=1", b"a=b=c", b"\xff\xfe", b"x" * 10_000, b"a=1," * 100])
def test_a_malformed_state_loses_only_itself(state: bytes) -> None:
    parent = parent_of(VALID.encode(), state)
    assert parent is not None
    assert parent.get_span_context().is_valid


headers = st.one_of(
    st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z]{0,3})?", fullmatch=True),
    st.from_regex(r"0[01]-0{31}[01]-0{15}[01]-0[01]-?", fullmatch=True),
    st.tuples(st.integers(0, 54), st.characters(codec="ascii", exclude_categories=["Cc"])).map(
        lambda change: VALID[: change[0]] + change[1] + VALID[change[0] + 1 :]
    ),
    st.text(st.characters(codec="latin-1"), max_size=80),
)


@given(headers)
def test_case_29_a_header_is_read_as_opentelemetry_reads_it(header: str) -> None:
    context = TraceContextTextMapPropagator().extract({"traceparent": header}, context=Context())
    theirs = get_current_span(context).get_span_context()
    ours = parent_of(header.encode("latin-1"))
    assert (ours.get_span_context() if ours else None) == (theirs if theirs.is_valid else None)


@pytest.mark.parametrize("stream", [False, True])
def test_case_29_the_upstream_carries_the_callers_trace(upstream: Upstream, stream: bool) -> None:
    body = {"model": "rig", "messages": MESSAGES, "stream": stream}
    with gateway(upstream) as server:
        assert server.post(body, traceparent=VALID, tracestate="vendor=1").status_code == 200
        assert server.post(body, traceparent="00-nonsense", tracestate="vendor=1").status_code == 200
        assert server.post(body).status_code == 200
    told = [(chat.headers.get("traceparent"), chat.headers.get("tracestate")) for chat in upstream.chats]
    assert told == [(VALID, "vendor=1"), (None, None), (None, None)]


@contextlib.contextmanager
def traced_server(upstream: Upstream, otlp: Receiver, *, content: bool = False) -> Generator[Process]:
    """The server as users start it, which sends its spans to the receiver."""
    settings: dict[str, Any] = settings_of(upstream.base_url, server=NO_DRAIN)
    settings["tracing"] = {"otlp": otlp.endpoint, "content": content}
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        file = Path(folder, "penstock.yaml")
        file.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--port", "{port}"]
        ready = "http://127.0.0.1:{port}/health"
        with running(command, ready=ready, env={"PYTHONPATH": "src"}) as process:
            yield process


def ask(server: Process, *, said: str = "one two three", **headers: str) -> httpx.Response:
    body = {"model": "rig", "messages": [{"role": "user", "content": said}], "stream": True}
    return httpx.post(f"{server.base_url}/v1/chat/completions", json=body, headers=headers, timeout=20, trust_env=False)


def leave_early(server: Process) -> None:
    body = {"model": "rig", "messages": MESSAGES, "stream": True}
    url = f"{server.base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=20, trust_env=False) as answer:
        next(answer.iter_bytes())


def named(spans: list[SeenSpan], name: str) -> list[SeenSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_ns)


def test_row_a6_spans_reach_the_collector_and_no_text_and_no_secret_do(upstream: Upstream, otlp: Receiver) -> None:
    upstream.script(
        Stream(text_stream("secret answer", usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})),
        Plain(error_body(f"Incorrect API key provided: {KEY}"), status=401),
        Stream(text_stream("secret word " * 50), delay_s=0.02),
    )
    with traced_server(upstream, otlp) as server:
        assert ask(server, said="secret question", traceparent=VALID).status_code == 200
        assert ask(server, said="secret question").status_code >= 400
        leave_early(server)
        upstream.wait_closed()
        assert server.terminate() == 0
        spans = otlp.wait_spans(6)
        logged = server.stdout() + server.stderr()
    servers, llms = named(spans, SERVER), named(spans, LLM)
    assert (len(servers), len(llms), len(spans)) == (3, 3, 6)
    assert [span.parent_id for span in llms] == [span.span_id for span in servers]
    assert [span.kind for span in (servers[0], llms[0])] == ["SERVER", "CLIENT"]
    assert (servers[0].trace_id, servers[0].parent_id) == (TRACE, SPAN)
    assert servers[1].parent_id == ""
    assert upstream.chats[0].headers["traceparent"][:53] == f"00-{TRACE}-{llms[0].span_id}-"
    for span in (servers[0], llms[0]):
        assert span.attributes["llm.token_count.total"] == 5
        assert span.attributes["gen_ai.usage.output_tokens"] == 2
        assert span.attributes["penstock.outcome"] == "finished"
    assert llms[0].resource["service.name"] == "penstock"
    assert [span.status for span in servers] == ["UNSET", "ERROR", "UNSET"]
    assert servers[1].attributes["error.type"] == "Unauthorized"
    assert [span.attributes["penstock.outcome"] for span in (servers[2], llms[2])] == ["cancelled"] * 2
    assert servers[2].attributes["penstock.cancel_reason"] == "the client left"
    assert llms[2].attributes["penstock.usage.partial"] is True
    sent = b"".join(otlp.bodies)
    assert b"secret" not in sent
    for start in range(3, len(KEY) - 8):
        assert KEY[start : start + 8].encode() not in sent
        assert KEY[start : start + 8] not in logged
    assert "different Context" not in logged


def test_row_a7_texts_reach_the_collector_when_asked_for_the_last_one_too(upstream: Upstream, otlp: Receiver) -> None:
    upstream.script(Stream(text_stream("first then nothing"), stall_after=3))
    with traced_server(upstream, otlp, content=True) as server:
        leave_early(server)
        upstream.wait_closed()
        server.terminate()
        spans = otlp.wait_spans(2)
    for span in spans:
        assert "one two three" in span.attributes["input.value"]
        assert span.attributes["output.value"].startswith("first")


def test_without_the_sdk_the_error_says_how_to_install_it() -> None:
    script = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "from penstock.errors import MissingExtra\n"
        "from penstock.server.tracing import export_to, flush\n"
        "flush()\n"
        "try: export_to('http://127.0.0.1:9')\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": "src"}
    )
    assert done.stdout == "tracing needs an extra: pip install 'penstock[tracing]'\n"
