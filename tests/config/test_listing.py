"""The list of models: upstreams are asked, remembered, and survived."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.config import Catalog, Settings, load
from penstock.config.listing import Listing, Model
from penstock.errors import NotFound
from penstock.llms.openai import Gpt
from penstock.llms.prices import ModelInfo, model_info, price_of
from tests.rig.answers import Plain, Silence
from tests.rig.upstream import JsonObject, Upstream, error_body, model_list
from tests.rig.upstream import upstream as run_upstream

KEY = "sk-canary-0123456789"


def asked(upstream: Upstream) -> int:
    return len([request for request in upstream.requests if request.path.endswith("/models")])


async def ids(catalog: Catalog) -> list[str]:
    return [model.id for model in await catalog.models()]


async def test_one_provider_s_models_are_listed_by_their_own_names(upstream: Upstream) -> None:
    upstream.models = Plain(model_list("a", "Qwen/b", "c:1"))
    catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": KEY})
    models = await catalog.models()
    assert [(model.id, model.owned_by) for model in models] == [("a", "rig"), ("Qwen/b", "rig"), ("c:1", "rig")]
    assert models[0].created > 0
    assert upstream.requests[-1].headers["authorization"] == f"Bearer {KEY}"


async def test_every_listed_name_leads_to_its_model(upstream: Upstream) -> None:
    upstream.models = Plain(model_list("openai/gpt-oss-20b", "groq/x", "a"))
    catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url})
    assert await ids(catalog) == ["openai:openai/gpt-oss-20b", "groq/x", "a"]


async def test_several_providers_are_listed_with_their_prefix(upstream: Upstream) -> None:
    with run_upstream() as other:
        other.models = Plain(b'[{"id": "b", "created": null}]')
        catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url, "GROQ_BASE_URL": other.base_url})
        models = await catalog.models()
    assert [(model.id, model.created > 0, model.owned_by) for model in models] == [
        ("openai:echo", True, "rig"),
        ("groq:b", False, "groq"),
    ]


async def test_azure_is_asked_with_its_own_header(upstream: Upstream) -> None:
    address = upstream.base_url.removesuffix("/v1")
    catalog = Catalog(Settings(), {"AZURE_OPENAI_ENDPOINT": address, "AZURE_OPENAI_API_KEY": KEY})
    await catalog.models()
    assert upstream.requests[-1].path == "/openai/v1/models"
    assert upstream.requests[-1].headers["api-key"] == KEY


async def test_the_demo_model_is_listed() -> None:
    catalog = Catalog(Settings(), {})
    assert await ids(catalog) == ["penstock-demo"]
    assert (await catalog.model("penstock-demo")).id == "penstock-demo"


@pytest.mark.parametrize(
    "answer",
    [
        Plain(error_body("no"), status=500),
        Plain({"data": "none"}),
        Plain({"data": [{"name": "no id"}]}),
        Plain({"object": "list"}),
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno json at",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff",
        b"no http",
    ],
    ids=["status", "shape", "row", "no list", "no JSON", "no text", "no HTTP"],
)
async def test_an_upstream_that_lists_nothing_is_survived(upstream: Upstream, answer: Plain | bytes) -> None:
    with run_upstream() as healthy:
        upstream.models = answer
        catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url, "GROQ_BASE_URL": healthy.base_url})
        assert await ids(catalog) == ["groq:echo"]


async def test_an_upstream_that_is_away_is_survived() -> None:
    catalog = Catalog(Settings(), {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"})
    assert await ids(catalog) == []
    assert (await catalog.model("any")).owned_by == "openai"


async def test_an_upstream_that_says_nothing_is_given_up(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.config.listing.ANSWER_S", 0.1)
    upstream.models = Silence()
    assert await ids(Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url})) == []


async def test_a_list_is_kept_five_minutes(upstream: Upstream) -> None:
    now = [0.0]
    listing = Listing(Gpt(base_url=upstream.base_url), clock=lambda: now[0])
    for moment, questions in ((0.0, 1), (299.0, 1), (300.0, 2), (599.0, 2)):
        now[0] = moment
        assert [model.id for model in await listing.models() or ()] == ["echo"]
        assert asked(upstream) == questions


async def test_a_failure_keeps_the_last_list_and_is_tried_again_after_half_a_minute(upstream: Upstream) -> None:
    now = [0.0]
    listing = Listing(Gpt(base_url=upstream.base_url), clock=lambda: now[0])
    healthy = upstream.models
    await listing.models()
    for moment, answer, questions in (
        (300.0, Plain(error_body("no"), status=500), 2),
        (329.0, healthy, 2),
        (330.0, healthy, 3),
        (359.0, healthy, 3),
    ):
        now[0], upstream.models = moment, answer
        assert [model.id for model in await listing.models() or ()] == ["echo"]
        assert asked(upstream) == questions


async def test_callers_at_the_same_time_share_one_question(upstream: Upstream) -> None:
    catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url})
    lists = await asyncio.gather(*(catalog.models() for _ in range(20)))
    assert all(len(models) == 1 for models in lists)
    assert asked(upstream) == 1


async def test_a_caller_that_leaves_does_not_stop_the_question(upstream: Upstream) -> None:
    upstream.models = Plain(model_list("echo"), think_s=0.2)
    catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url})
    leaving = asyncio.create_task(catalog.models())
    staying = asyncio.create_task(catalog.models())
    await asyncio.to_thread(upstream.wait_requests)
    leaving.cancel()
    assert len(await staying) == 1
    assert asked(upstream) == 1


async def test_configured_models_are_listed_without_asking(upstream: Upstream, tmp_path: Path) -> None:
    path = tmp_path / "penstock.yaml"
    path.write_text(f"models: [{{name: a, llm: 'openai:x', base_url: '{upstream.base_url}'}}, {{name: b, llm: demo}}]")
    catalog = Catalog(load(str(path), {}), {})
    assert [(model.id, model.owned_by) for model in await catalog.models()] == [("a", "openai"), ("b", "demo")]
    assert asked(upstream) == 0
    assert (await catalog.model("b")).id == "b"


async def test_one_model_is_found_by_each_of_its_names(upstream: Upstream) -> None:
    upstream.models = Plain(model_list("echo", "openai/x"))
    catalog = Catalog(Settings(), {"OPENAI_BASE_URL": upstream.base_url})
    for name in ("echo", "openai:echo", "openai/echo", "openai:openai/x"):
        found = await catalog.model(name)
        assert (found.id, found.owned_by) == (name, "rig")
    with pytest.raises(NotFound, match="'openai' lists no model 'other'"):
        await catalog.model("other")


GEMINI = {
    "models": [
        {"name": "models/gemini-2.5-pro", "inputTokenLimit": 1000, "outputTokenLimit": 99, "displayName": "Pro"},
        {"name": "models/new-one", "supportedGenerationMethods": ["generateContent", "countTokens"]},
        {"name": "models/embedding-001", "supportedGenerationMethods": ["embedContent"]},
    ]
}
ANTHROPIC = {
    "data": [
        {"id": "claude-opus-4-5-20251101", "type": "model", "created_at": "2025-11-24T00:00:00Z"},
        {"id": "odd", "type": "model", "created_at": "some day", "max_completion_tokens": "many"},
    ],
    "has_more": False,
}


async def listed(upstream: Upstream, service: str, body: JsonObject) -> list[Model]:
    upstream.models = Plain(body)
    return await Listing(Gpt(service=service, base_url=upstream.base_url, api_key=KEY)).models() or []


async def test_row_a16_gemini_lists_its_models_in_its_own_shape(upstream: Upstream) -> None:
    pro, new = await listed(upstream, "gemini", GEMINI)
    assert (pro.id, new.id, pro.owned_by) == ("gemini-2.5-pro", "new-one", "gemini")
    assert pro.info is not None
    assert (pro.info.context_window, pro.info.max_output_tokens) == (1000, 99)
    assert pro.info.price == price_of("gemini", "gemini-2.5-pro")
    assert new.info is None
    assert upstream.requests[-1].path.endswith("/models?pageSize=1000")
    assert upstream.requests[-1].headers["x-goog-api-key"] == KEY


async def test_row_a16_anthropic_lists_its_models_in_its_own_shape(upstream: Upstream) -> None:
    opus, odd = await listed(upstream, "anthropic", ANTHROPIC)
    assert (opus.id, opus.created, opus.owned_by) == ("claude-opus-4-5-20251101", 1763942400, "anthropic")
    assert opus.info == model_info("anthropic", "claude-opus-4-5")
    assert (odd.id, odd.created, odd.info) == ("odd", 0, None)
    assert upstream.requests[-1].path.endswith("/models?limit=1000")


@pytest.mark.parametrize("word", ["context_window", "context_length", "max_context_length", "max_model_len"])
async def test_a_limit_that_a_service_tells_goes_before_the_table(upstream: Upstream, word: str) -> None:
    rows = [{"id": "gpt-5-mini", word: 4096}, {"id": "unheard-of", word: 512}, {"id": "gpt-4o", word: -1}]
    known, unheard, odd = await listed(upstream, "openai", {"data": rows})
    assert known.info is not None
    assert (known.info.context_window, known.info.max_output_tokens) == (4096, 128_000)
    assert known.info.price == price_of("openai", "gpt-5-mini")
    assert unheard.info == ModelInfo(context_window=512)
    assert odd.info == model_info("openai", "gpt-4o")
