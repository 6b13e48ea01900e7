"""Spans of tools over the wire: below the server's and the caller's, without arguments unless they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.rig.otlp import Receiver
from tests.rig.serving import Process, running
from tests.server.gateway import NO_DRAIN
from tests.server.test_tracing import SPAN, TRACE, VALID, named

SERVER, TOOL = "POST /v1/tools/{name}", "execute_tool add"
TOOLS = [{"name": "add", "function": "tests.server.shop:add", "owner": "shop", "metrics_tags": {"team": "a"}}]


@contextmanager
def traced(folder: Path, otlp: Receiver, *, content: bool) -> Generator[Process]:
    """The server as users start it, with a tool, which sends its spans to the receiver."""
    file = folder / "penstock.yaml"
    file.write_text(
        yaml.safe_dump({"server": NO_DRAIN, "tools": TOOLS, "tracing": {"otlp": otlp.endpoint, "content": content}})
    )
    command = [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--port", "{port}"]
    with running(command, ready="http://127.0.0.1:{port}/health", env={"PYTHONPATH": "src"}) as process:
        yield process


def call(server: Process, body: str, **headers: str) -> int:
    url = f"{server.base_url}/v1/tools/add"
    return httpx.post(url, content=body, headers=headers, timeout=20, trust_env=False).status_code


@pytest.mark.parametrize("content", [False, True])
def test_case_29_a_tools_span_stands_below_the_callers_trace(tmp_path: Path, otlp: Receiver, content: bool) -> None:
    with traced(tmp_path, otlp, content=content) as server:
        assert call(server, '{"a": 424242}', traceparent=VALID) == 200
        assert call(server, '{"a": "a-private-text"}') == 400
        assert server.terminate() == 0
        spans = otlp.wait_spans(4)
    servers, tools = named(spans, SERVER), named(spans, TOOL)
    assert (len(servers), len(tools)) == (2, 2)
    assert (servers[0].trace_id, servers[0].parent_id) == (TRACE, SPAN)
    assert [span.parent_id for span in tools] == [span.span_id for span in servers]
    for span in (servers[0], tools[0]):
        assert span.attributes["gen_ai.tool.name"] == "add"
        assert span.attributes["penstock.tool.owner"] == "shop"
        assert span.attributes["penstock.tool.tag.team"] == "a"
        assert span.attributes.get("input.value") == ('{"a": 424242}' if content else None)
    assert [span.status for span in tools] == ["UNSET", "ERROR"]
    sent = b"".join(otlp.bodies)
    assert (b"424242" in sent, b"a-private-text" in sent) == (content, content)
