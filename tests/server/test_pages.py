"""Models, health, and the page that describes the API."""

from __future__ import annotations

import re
from collections.abc import Iterator

import openai
import pytest

from penstock.config import Settings
from penstock.server.protocol import Protocol
from penstock.server.serve import application
from tests.rig.serving import serve_asgi
from tests.rig.upstream import Plain, Upstream, model_list
from tests.server.gateway import Calm, Gateway, access_log, error_of, gateway

NAMES = ["Qwen/Qwen3-8B", "llama3.2:3b", "a b"]


@pytest.fixture
def served(calm: Calm) -> Gateway:
    return calm.served


@pytest.fixture
def provider(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    """A server whose models are those that its one provider lists."""
    upstream.models = Plain(model_list(*NAMES))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.base_url)
    with (
        serve_asgi(application(Settings()), http=Protocol, log_config=None) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
    ):
        yield client


def test_health_and_readiness(served: Gateway) -> None:
    assert served.get("/health").json() == {"status": "ok"}
    assert served.get("/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(path: str, served: Gateway) -> None:
    head, get = served.get(path, "HEAD"), served.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_the_models_are_listed(path: str, served: Gateway) -> None:
    answer = served.get(path).json()
    assert answer["object"] == "list"
    assert [set(row) for row in answer["data"]] == [{"id", "object", "created", "owned_by"}]
    assert served.get(f"{path}/rig").json() == answer["data"][0]
    assert (answer["data"][0]["id"], answer["data"][0]["object"]) == ("rig", "model")


def test_the_sdk_lists_a_providers_models_and_finds_each(provider: openai.OpenAI) -> None:
    assert [model.id for model in provider.models.list()] == NAMES
    for name in NAMES:
        assert provider.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as refused:
        provider.models.retrieve("other/model")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/models/other", "/models/a/b:c"])
def test_a_model_that_is_not_there_is_404(path: str, served: Gateway) -> None:
    answer = served.get(path)
    assert answer.status_code == 404
    assert (error_of(answer)["code"], error_of(answer)["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "path", ["/v1", "/nothing", "/v1/embeddings", "/v1/chat/completions/", "/%ff", "/v1/completions"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_is_not_there_is_404(method: str, path: str, served: Gateway) -> None:
    answer = served.get(path, method)
    assert answer.status_code == 404
    assert (error_of(answer)["type"], error_of(answer)["code"]) == ("invalid_request_error", "not_found")
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/docs"])
def test_another_method_is_405(path: str, served: Gateway) -> None:
    answer = served.get(path, "POST")
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert error_of(answer)["code"] == "method_not_allowed"


def test_a_preflight_of_nobody_is_answered(served: Gateway) -> None:
    assert served.get("/v1/models", "OPTIONS").status_code == 405


def test_the_description_contains_the_chat_endpoint(served: Gateway) -> None:
    found = served.get("/openapi.json").json()
    assert found["openapi"].startswith("3.1")
    assert {"/v1/chat/completions", "/v1/models", "/v1/models/{model}", "/health", "/ready"} <= set(found["paths"])
    operation = found["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "4XX", "5XX"} <= set(operation["responses"])
    assert operation["requestBody"]["content"]["application/json"]["schema"]["required"] == ["model", "messages"]
    for path, methods in found["paths"].items():
        for method, described in methods.items():
            assert described["summary"], (method, path)
            assert described["responses"], (method, path)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_loads_nothing_from_elsewhere(path: str, served: Gateway) -> None:
    answer = served.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    loaded = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import""", answer.text)
    assert not [target for target in loaded if re.match(r"(https?:)?//", "".join(target))]
    assert "openapi.json" in answer.text


def test_the_models_survive_an_upstream_that_fails(upstream: Upstream) -> None:
    upstream.models = Plain(b"broken", status=500)
    with gateway(upstream) as served:
        assert [row["id"] for row in served.get("/v1/models").json()["data"]] == ["rig"]


def test_every_request_is_logged_but_probes_that_succeed(upstream: Upstream) -> None:
    with access_log() as log, gateway(upstream, tokens=[{"name": "a", "value": "pk-a-token"}]) as served:
        assert served.get("/health").status_code == 200
        assert served.get("/v1/models").status_code == 401
        assert served.get("/nowhere").status_code == 404
    assert [(row["path"], row["status"]) for row in log.rows] == [("/v1/models", 401), ("(unknown)", 404)]


def test_row_a16_a_model_is_listed_with_its_limits_prices_and_capabilities(
    provider: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.models = Plain(model_list("gemini-2.5-pro", "gpt-5.5", "gpt-5.6-sol"))
    unknown, known, unpriced = (model.to_dict() for model in provider.models.list())
    assert set(unknown) == {"id", "object", "created", "owned_by"}
    assert known["context_window"] == 1_050_000
    assert known["max_output_tokens"] == 128_000
    assert known["pricing"] == {
        "input": "5",
        "output": "30",
        "cached_input": "0.5",
        "over": 272_000,
        "long": {"input": "10", "output": "45", "cached_input": "1"},
    }
    assert known["capabilities"] == ["tools", "images", "json_schema", "reasoning"]
    assert "pricing" not in unpriced
    assert provider.models.retrieve("gpt-5.5").to_dict() == known
