"""Which executor a model's name leads to, what the environment serves, and what every call passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.config import Catalog, Settings, load
from penstock.errors import ConfigError, Invalid, LimitReached, NotFound
from penstock.messages import ChatReply, ChatRequest
from penstock.run import execute
from tests.rig.answers import Plain, Silence
from tests.rig.upstream import Upstream, error_body
from tests.rig.upstream import upstream as run_upstream

KEY = "sk-canary-0123456789"


def configured(folder: Path, text: str, env: Mapping[str, str] | None = None) -> Catalog:
    path = folder / "penstock.yaml"
    path.write_text(text, "utf-8")
    return Catalog(load(str(path), env or {}), env or {})


def from_environment(**env: str) -> Catalog:
    return Catalog(Settings(), env)


async def ask(catalog: Catalog, model: str, *, data: bool = False, **params: Any) -> ChatReply:
    request = ChatRequest.of("hello", model=model, stream=False, **params)
    if data:
        body = {"model": model, "messages": request.messages, **params}
        request = msgspec.structs.replace(request, data=msgspec.json.encode(body))
    return await execute(catalog.find(model), request)


def sent(upstream: Upstream) -> dict[str, Any]:
    """The body of the last chat request."""
    body = msgspec.json.decode(upstream.chats[-1].body)
    assert isinstance(body, dict)
    return body


# With one provider, openai: what is asked for, and what the upstream is asked for.
ONE_PROVIDER = {
    "bare": ("gpt-5-mini", "gpt-5-mini"),
    "bare with a slash": ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    "bare with a colon": ("llama3.2:3b", "llama3.2:3b"),
    "bare path": ("/models/a:b.gguf", "/models/a:b.gguf"),
    "bare windows path": ("C:\\models\\a.gguf", "C:\\models\\a.gguf"),
    "prefix with a colon": ("openai:gpt-5-mini", "gpt-5-mini"),
    "prefix with a slash": ("openai/gpt-5-mini", "gpt-5-mini"),
    "split at the first separator only": ("openai:openai/a:b", "openai/a:b"),
    "split at a slash before a colon": ("openai/llama3.2:3b", "llama3.2:3b"),
    "prefix of a provider that does not serve": ("groq:llama", "groq:llama"),
    "provider's name alone": ("openai", "openai"),
    "other case": ("OpenAI:gpt", "OpenAI:gpt"),
    "no name at all": ("", ""),
    "very long": ("openai:" + "x" * 5000, "x" * 5000),
}


@pytest.mark.parametrize(("asked", "expected"), ONE_PROVIDER.values(), ids=ONE_PROVIDER)
@pytest.mark.parametrize("data", [True, False])
async def test_one_provider_takes_every_bare_name(upstream: Upstream, asked: str, expected: str, data: bool) -> None:
    catalog = from_environment(OPENAI_BASE_URL=upstream.base_url)
    await ask(catalog, asked, data=data)
    assert sent(upstream)["model"] == expected


async def test_a_client_s_bytes_are_forwarded_when_the_name_stays(upstream: Upstream) -> None:
    catalog = from_environment(OPENAI_BASE_URL=upstream.base_url)
    data = b'{ "model" : "a/b", "messages":[{"role":"user","content":"hi"}] }'
    request = ChatRequest(model="a/b", messages=[{"role": "user", "content": "hi"}], stream=False, data=data)
    await execute(catalog.find("a/b"), request)
    assert upstream.chats[-1].body == data


def test_one_executor_serves_a_name() -> None:
    catalog = from_environment(OPENAI_API_KEY=KEY)
    assert catalog.find("a") is catalog.find("b")
    assert catalog.find("openai:a") is catalog.find("openai:a")
    for number in range(2000):
        catalog.find(f"openai:m{number}")
    assert catalog._bound.cache_info().currsize == 1024


async def test_several_providers_are_told_apart_by_prefix(upstream: Upstream) -> None:
    with run_upstream() as other:
        catalog = from_environment(OPENAI_BASE_URL=upstream.base_url, GROQ_BASE_URL=other.base_url)
        await ask(catalog, "openai:one")
        await ask(catalog, "groq/openai/two")
        assert (sent(upstream)["model"], sent(other)["model"]) == ("one", "openai/two")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt-5", "several providers serve (openai, groq): write which one, as in 'openai:gpt-5'"),
        ("Qwen/Qwen3-8B", "several providers serve"),
        ("mistral:7b", "'mistral' is not served here: its variables are not set; served are openai, groq"),
        ("anthropic:claude", "'anthropic' is not served here: its variables are not set; served are openai, groq"),
        ("openai:", "write openai:MODEL"),
        ("", "several providers serve"),
    ],
)
def test_a_name_that_several_providers_may_serve_is_not_found(model: str, words: str) -> None:
    catalog = from_environment(OPENAI_API_KEY=KEY, GROQ_API_KEY=KEY)
    with pytest.raises(NotFound) as caught:
        catalog.find(model)
    assert words in caught.value.message
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


TWO_MODELS = """
models:
  - {name: fast, llm: openai:gpt-5-mini}
  - {name: "openai:other", llm: "groq:x"}
"""


@pytest.mark.parametrize("model", ["fast", "openai:other", "openai:gpt-5-mini", "openai/gpt-5-mini", "groq/x"])
def test_a_configured_model_is_found_by_its_name_and_by_its_llm(tmp_path: Path, model: str) -> None:
    catalog = configured(tmp_path, TWO_MODELS)
    name = {"openai:other": "openai:other", "groq/x": "openai:other"}.get(model, "fast")
    assert catalog.find(model) is catalog.find(name)


@pytest.mark.parametrize("model", ["Fast", "gpt-5-mini", "openai:gpt-5", "fast:", "demo", "", "x" * 9999])
def test_what_the_configuration_does_not_name_is_not_found(tmp_path: Path, model: str) -> None:
    catalog = configured(tmp_path, TWO_MODELS, {"OPENAI_API_KEY": KEY})
    with pytest.raises(NotFound, match="the configuration serves 'fast', 'openai:other'") as caught:
        catalog.find(model)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert len(caught.value.message) < 300


def test_a_file_without_models_serves_the_environment(tmp_path: Path) -> None:
    catalog = configured(tmp_path, "server: {port: 1}", {"OPENAI_API_KEY": KEY})
    assert [one.name for one in catalog.served] == ["openai"]


# What the environment holds, the providers it serves, and words of the notices.
OPENAI_URL = "http://127.0.0.1:9/v1"
AZURE = {"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": "https://r.example.com"}
ENVIRONMENTS: dict[str, tuple[dict[str, str], list[str], list[str]]] = {
    "nothing": ({}, ["demo"], []),
    "a key": ({"OPENAI_API_KEY": KEY}, ["openai"], []),
    "an address alone": ({"OPENAI_BASE_URL": OPENAI_URL}, ["openai"], []),
    "an empty key": ({"OPENAI_API_KEY": ""}, ["demo"], []),
    "a blank key": ({"OPENAI_API_KEY": " "}, ["demo"], []),
    "an empty key and an address": ({"OPENAI_API_KEY": " ", "OPENAI_BASE_URL": OPENAI_URL}, ["openai"], []),
    "an empty address": ({"OLLAMA_BASE_URL": ""}, ["demo"], []),
    "a local service": ({"OLLAMA_BASE_URL": OPENAI_URL}, ["ollama"], []),
    "a local service's key alone": ({"VLLM_API_KEY": KEY}, ["demo"], []),
    "several": (
        {"OPENAI_API_KEY": KEY, "XAI_API_KEY": KEY, "VLLM_BASE_URL": OPENAI_URL},
        ["openai", "vllm", "xai"],
        [],
    ),
    "azure": (AZURE, ["azure"], []),
    "azure without address": (
        {"AZURE_OPENAI_API_KEY": KEY},
        ["demo"],
        ["AZURE_OPENAI_ENDPOINT is not: azure is not served"],
    ),
    "azure without key": (
        {"AZURE_OPENAI_ENDPOINT": OPENAI_URL},
        ["demo"],
        ["AZURE_OPENAI_API_KEY is not: azure is not"],
    ),
    "anthropic": ({"ANTHROPIC_API_KEY": KEY}, ["anthropic"], []),
    "empty keys": ({"ANTHROPIC_API_KEY": "", "GEMINI_API_KEY": ""}, ["demo"], []),
    "gemini": ({"GEMINI_API_KEY": KEY}, ["gemini"], []),
    "gemini by Google's name": ({"GOOGLE_API_KEY": KEY, "GEMINI_API_KEY": " "}, ["gemini"], []),
    "both of Google's keys": (
        {"GEMINI_API_KEY": KEY, "GOOGLE_API_KEY": KEY},
        ["gemini"],
        ["GOOGLE_API_KEY is the one that counts"],
    ),
}


@pytest.mark.parametrize(("env", "served", "notices"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_environment_decides_who_serves(env: dict[str, str], served: list[str], notices: list[str]) -> None:
    catalog = Catalog(Settings(), env)
    assert [one.name for one in catalog.served] == served
    assert len(catalog.notices) == len(notices)
    assert all(words in notice for words, notice in zip(notices, catalog.notices, strict=True))


@pytest.mark.parametrize("model", ["penstock-demo", "gpt-5", "demo:x", ""])
async def test_the_demo_model_answers_by_any_name(model: str) -> None:
    reply = await ask(from_environment(), model)
    assert reply.model == "penstock-demo"


@pytest.mark.parametrize("address", ["http://u:canary-1234@h/v1", "localhost:80", "http://h/v1?key=canary-1234"])
def test_an_address_of_the_environment_that_cannot_be_used_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(OPENAI_BASE_URL=address)
    assert (caught.value.file, caught.value.key) == ("environment", "OPENAI_BASE_URL")
    assert "canary" not in str(caught.value)


def test_a_key_of_the_environment_that_no_header_can_carry_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(OPENAI_API_KEY=f"{KEY}\nx")
    assert caught.value.key == "OPENAI_API_KEY"
    assert KEY not in str(caught.value)


async def test_a_configured_model_is_asked_as_configured(upstream: Upstream, tmp_path: Path) -> None:
    text = f"""
models:
  - name: fast
    llm: openai:gpt-5-mini
    api_key: ${{KEY}}
    base_url: {upstream.base_url}
    headers: {{X-Project: p1}}
    params: {{temperature: 0.5, top_p: 0.1}}
    allow: [extra_body]
"""
    catalog = configured(tmp_path, text, {"KEY": KEY})
    await ask(catalog, "fast", data=True, temperature=1, extra_body={"a": 1})
    body, headers = sent(upstream), upstream.chats[-1].headers
    assert (body["model"], body["temperature"], body["top_p"], body["extra_body"]) == ("gpt-5-mini", 1, 0.1, {"a": 1})
    assert (headers["authorization"], headers["x-project"]) == (f"Bearer {KEY}", "p1")
    with pytest.raises(Invalid, match="api_key"):
        await ask(catalog, "fast", api_key="sk-mine")


async def test_the_usual_key_goes_to_the_usual_address_only(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": upstream.base_url}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with run_upstream() as other:
        text = f"models: [{{name: usual, llm: 'openai:a'}}, {{name: b, llm: 'openai:b', base_url: '{other.base_url}'}}]"
        catalog = configured(tmp_path, text, env)
        await ask(catalog, "usual")
        await ask(catalog, "b")
        assert upstream.chats[-1].headers["authorization"] == f"Bearer {KEY}"
        assert "authorization" not in other.chats[-1].headers


def test_a_configured_model_without_a_key_is_noticed(tmp_path: Path) -> None:
    catalog = configured(tmp_path, TWO_MODELS, {"GROQ_API_KEY": KEY})
    assert catalog.notices == ["the model 'fast' has no api_key, and OPENAI_API_KEY is not set"]


POLICIES = """
models:
  - name: all
    llm: openai:x
    timeout_s: 20
    idle_timeout_s: 5
    connect_timeout_s: 1.5
    retry: {attempts: 2}
    limit: {requests_per_minute: 60, tokens_per_minute: 1000, concurrent: 8}
  - {name: none, llm: demo}
tracing: {otlp: "http://127.0.0.1:9"}
"""


def test_the_order_of_policies_is_shown(tmp_path: Path) -> None:
    wrapped, bare = configured(tmp_path, POLICIES).served
    assert wrapped.order == (
        "trace",
        "limit 60 requests/minute, 1000 tokens/minute, 8 concurrent",
        "retry up to 2 attempts",
        "timeout 20 s, idle 5 s, connect 1.5 s",
        "openai:x",
    )
    assert bare.order == ("trace", "demo:penstock-demo")


async def test_a_limit_counts_every_call_of_its_model(upstream: Upstream, tmp_path: Path) -> None:
    text = f"models: [{{name: a, llm: 'openai:x', base_url: '{upstream.base_url}', limit: {{requests_per_minute: 2}}}}]"
    catalog = configured(tmp_path, text)
    await ask(catalog, "a")
    await ask(catalog, "openai:x")
    with pytest.raises(LimitReached):
        await ask(catalog, "a")
    assert len(upstream.chats) == 2


async def test_a_retry_is_one_call_to_the_limit(upstream: Upstream, tmp_path: Path) -> None:
    options = "retry: {attempts: 2}, limit: {requests_per_minute: 1}"
    catalog = configured(
        tmp_path, f"models: [{{name: a, llm: 'openai:x', base_url: '{upstream.base_url}', {options}}}]"
    )
    upstream.script(Plain(error_body("busy"), status=503))
    await ask(catalog, "a")
    assert len(upstream.chats) == 2


async def test_the_time_limit_of_a_model_holds(upstream: Upstream, tmp_path: Path) -> None:
    catalog = configured(
        tmp_path, f"models: [{{name: a, llm: 'openai:x', base_url: '{upstream.base_url}', timeout_s: 0.2}}]"
    )
    upstream.script(Silence())
    with pytest.raises(Exception, match=r"within 0\.2 s"):
        await ask(catalog, "a")


def test_case_25_a_catalog_does_not_show_its_secrets(tmp_path: Path) -> None:
    text = "models: [{name: a, llm: 'openai:x', api_key: '${KEY}', headers: {x-key: '${KEY}'}}]"
    for catalog in (configured(tmp_path, text, {"KEY": KEY}), from_environment(OPENAI_API_KEY=KEY)):
        shown = f"{catalog!r} {catalog.served!r} {[one.llm for one in catalog.served]} {catalog.notices}"
        assert not any(KEY[at : at + 8] in shown for at in range(len(KEY) - 7))
