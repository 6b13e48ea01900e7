"""The page of the API in a real browser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from penstock.config import Catalog, load
from penstock.server.app import App
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


@pytest.fixture(scope="module")
def dom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the browser makes of the page."""
    require("chromium")
    profile: Path = tmp_path_factory.mktemp("chromium")
    with serve_asgi(App(Catalog(load(None, {}), {}))) as base_url:
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
