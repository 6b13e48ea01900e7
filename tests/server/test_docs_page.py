"""The page of the API in a real browser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from penstock.config import Catalog, load
from penstock.server.app import App
from penstock.server.client import Receive, Scope, Send
from penstock.server.protocol import Protocol
from tests.conftest import require
from tests.rig.serving import serve_asgi

BROWSER = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
]
PRESS = b"""<script>
const wanted = ["/v1/chat/completions", "/v1/projects"];
const pressing = setInterval(() => {
  const found = [...document.querySelectorAll("details")].filter((one) =>
    one.querySelector("b").textContent === "POST" && wanted.includes(one.querySelector("code").textContent));
  if (found.length === wanted.length) {
    clearInterval(pressing);
    for (const one of found) one.querySelector("button").click();
  }
}, 50);
</script>"""
"""Somebody who sends the examples of two of the endpoints."""


@pytest.fixture(scope="module")
def dom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the browser makes of the page."""
    require("chromium")
    profile: Path = tmp_path_factory.mktemp("chromium")
    app = App(Catalog(load(None, {}), {}))

    async def pressed(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Any) -> None:
            body = message.get("body", b"")
            if message["type"] == "http.response.start" and scope["path"] == "/docs":
                kept = [one for one in message["headers"] if one[0] != b"content-length"]
                message = {**message, "headers": kept}
            elif body and scope["path"] == "/docs":
                message = {**message, "body": body + PRESS}
            await send(message)

        await app(scope, receive, sent)

    with serve_asgi(pressed, http=Protocol) as base_url:
        command = [*BROWSER, f"--user-data-dir={profile}", "--dump-dom", f"{base_url}/docs"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_page_shows_every_endpoint(dom: str) -> None:
    shown = re.findall(r"<summary><b>(\w+)</b><code>([^<]+)</code>", dom)
    assert ("POST", "/v1/chat/completions") in shown
    assert ("GET", "/v1/models") in shown
    assert ("GET", "/ready") in shown


def test_the_page_offers_an_example_to_send(dom: str) -> None:
    assert "Penstock 0." in dom
    assert "X-Disconnect-Policy" in dom
    assert dom.count("<button>Send</button>") == len(re.findall(r"<summary>", dom))


def test_the_page_sends_its_examples_where_no_token_is_asked_for(dom: str) -> None:
    sent = re.findall(r"<pre>(.*?)</pre>", dom, re.DOTALL)
    chat, project = (next(one for one in sent if what in one) for what in ("chat.completion.chunk", "agents"))
    assert chat.startswith("200 OK")
    assert "data: [DONE]" in chat
    assert project.startswith("404"), "there are none, but it may ask"
    assert "foreign_origin" not in dom
