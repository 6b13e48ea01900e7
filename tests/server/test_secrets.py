"""Canaries: neither the configured key nor a token shows in a log, an error, a header or a page."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any

import pytest

from penstock.config import Catalog, Settings
from penstock.llms.services import SERVICES
from penstock.server.log import access
from penstock.server.serve import application
from tests.rig.upstream import Plain, Refuse, Stream, Upstream, text_stream
from tests.server.gateway import KEY, NO_DRAIN, chat, gateway_process, settings_of

TOKEN = "pk-canary-token-zyxwvutsrqponmlk"
TELLTALE = 8


def pieces(secret: str) -> set[str]:
    """Every eight characters of a secret, but for the prefix that all of its kind have."""
    return {secret[at : at + TELLTALE] for at in range(3, len(secret) - TELLTALE + 1)}


CANARIES = pieces(KEY) | pieces(TOKEN)


def leaked(text: str) -> list[str]:
    return [piece for piece in CANARIES if piece in text]


@pytest.mark.parametrize("log", ["plain", "json"])
async def test_case_25_no_secret_leaves_the_server(log: str, upstream: Upstream) -> None:
    said = f"bad key {KEY}, seen as {KEY[5:20]} in 'Authorization: Bearer {KEY}'"
    failing: list[Any] = [
        Plain({"error": {"message": said, "code": "invalid_api_key", "param": "x"}}, status=401),
        Plain({"error": {"message": said}}, status=400),
        Plain({"error": said}, status=500),
        Plain(said.encode(), status=429, headers={"x-said": said}),
        Stream([*text_stream("a b")[:2], {"error": {"message": said}}]),
        Refuse(),
        Plain(said.encode()),
    ]
    authorized = {"authorization": f"Bearer {TOKEN}"}
    tokens = [{"name": "canary", "value": TOKEN, "scopes": ["chat"]}]
    with gateway_process(upstream, "--log", log, server=NO_DRAIN, tokens=tokens) as served:
        upstream.script(*failing)
        answers = [served.post(chat(stream=n % 2 == 0), **authorized) for n in range(len(failing))]
        answers += [
            served.post(chat(), **authorized),
            served.post(chat(api_key=KEY), **authorized),
            served.post(chat(), authorization=f"Bearer {TOKEN}x"),
            served.post(chat(), authorization=TOKEN),
            served.get("/v1/models", **authorized),
            served.get("/openapi.json"),
            served.get(f"/v1/models/{TOKEN}"),
        ]
        for answer in answers:
            assert leaked(answer.text + str(answer.headers)) == [], answer.text
        _, writer = await served.open(headers=authorized)
        writer.transport.abort()
        await asyncio.sleep(0.2)
        process = served.process
        assert process is not None
        assert process.terminate() == 0
        assert process.stderr().count("/v1/chat/completions") >= len(failing)
        assert leaked(process.stderr() + process.stdout()) == []
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in upstream.chats)


def test_case_25_no_secret_shows_in_a_repr(upstream: Upstream) -> None:
    settings = Settings.model_validate(
        settings_of(upstream.base_url, tokens=[{"name": "canary", "value": TOKEN, "scopes": ["chat"]}])
    )
    app = application(settings)
    seen = [repr(settings), str(settings), repr(settings.model_dump()), repr(app), repr(vars(app)), repr(SERVICES)]
    executor = Catalog(settings, {}).find("rig")
    seen += [repr(executor), repr(vars(executor))]
    assert leaked("".join(seen)) == []


async def test_the_log_has_one_line_for_each_request(upstream: Upstream) -> None:
    with gateway_process(upstream, "--log", "json", server=NO_DRAIN) as served:
        served.post(chat(), x_request_id="first")
        served.post(b"{", x_request_id="second")
        process = served.process
        assert process is not None
        assert process.terminate() == 0
        lines = [line for line in process.stderr().splitlines() if '"path"' in line]
    assert [line.count('"id":"first"') for line in lines] == [1, 0]
    for part in ('"status":200', '"model":"rig"', '"stream":true', '"by":"local"', '"in":3', '"out":3', '"ms":'):
        assert part in lines[0], part
    assert '"status":400' in lines[1]
    assert '"error":"Invalid: ' in lines[1]


def test_any_formatter_can_show_a_request(caplog: pytest.LogCaptureFixture) -> None:
    style = "%(asctime)s %(name)s %(levelname)s %(filename)s:%(lineno)d %(funcName)s %(threadName)s %(message)s"
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter(style))
    logger = logging.getLogger("penstock.access")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, "penstock.access")
    try:
        access({"id": "x"})
    finally:
        logger.removeHandler(handler)
    assert "penstock.access INFO" in handler.stream.getvalue()
    assert [record.getMessage() for record in caplog.records] == ["request"]
