"""What `penstock.yaml` writes around a model: order, limits of tokens, budgets, fallbacks, deployments, faults."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock import ChatRequest, Principal, execute
from penstock.config import Catalog, load
from penstock.errors import ConfigError, Invalid, LimitReached, RateLimited
from penstock.events import Switched
from penstock.testing import Heard
from tests.rig.upstream import Plain, Upstream, completion, error_body, upstream, usage_of

ASK = ChatRequest.of("Say hello.", model="fast", stream=False)
WHOLE = """
models:
  - name: fast
    llm: openai:gpt-5-mini
    base_url: BASE
    api_key: sk-test-key-1
    limit: {requests_per_minute: 60}
    budget: {tokens: 1000, usd: 0.5, window_s: 60}
    fallback: [spare]
    breaker: {failures: 3, reset_s: 9}
    retry: {attempts: 2, base_s: 0.001}
    deployments:
      - {weight: 2}
      - {base_url: OTHER, api_key: sk-test-key-2}
    cooldown_s: 5
    faults: [429 once]
  - {name: spare, llm: demo}
auth:
  tokens:
    - {name: alice, value: alice-token, limit: {concurrent: 2}, budget: {tokens: 50}}
tracing: {otlp: "http://127.0.0.1:4318"}
"""


def catalog(folder: Path, text: str, env: Mapping[str, str] | None = None) -> Catalog:
    (folder / "penstock.yaml").write_text(text)
    return Catalog(load(str(folder / "penstock.yaml"), env or {}), env or {})


def model(base_url: str, more: str = "", *, name: str = "fast") -> str:
    return f"  - {{name: {name}, llm: openai:gpt-5-mini, base_url: {base_url!r}, api_key: sk-test-key-1{more}}}\n"


def test_the_order_is_one_and_is_shown(tmp_path: Path) -> None:
    text = WHOLE.replace("BASE", "http://127.0.0.1:9/v1").replace("OTHER", "http://127.0.0.1:8/v1")
    order = catalog(tmp_path, text).served[0].order
    assert order == (
        "by token (alice: limit 2 concurrent, budget 50 tokens)",
        "trace",
        "limit 60 requests/minute",
        "budget 1000 tokens in 60 s",
        "budget 0.5 USD in 60 s",
        "fallback to spare",
        "breaker after 3 failures for 9 s",
        "retry up to 2 attempts",
        "balance 1 (openai http://127.0.0.1:9/v1) weight 2, 2 (openai http://127.0.0.1:8/v1) weight 1, cool-down 5 s",
        "faults 429 once",
        "timeout 600 s, idle 60 s, connect 10 s",
        "openai:gpt-5-mini",
    )


async def test_a_fallback_answers_where_the_model_fails(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Plain(error_body("slow down"), status=429))
    found = catalog(
        tmp_path, f"models:\n{model(upstream.base_url, ', fallback: [spare]')}  - {{name: spare, llm: demo}}\n"
    )
    reply = await execute(found.find("fast"), ASK, heard := Heard())
    assert reply.model == "penstock-demo"
    switched = [event for event in heard.events if isinstance(event, Switched)]
    assert [(event.to, type(event.error)) for event in switched] == [("spare", RateLimited)]


async def test_a_fallback_keeps_its_own_policies(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(*[Plain(error_body("slow down"), status=429)] * 2)
    spare = model(upstream.base_url, ", retry: {attempts: 2, base_s: 0.001}", name="spare")
    found = catalog(tmp_path, f"models:\n{model(upstream.base_url, ', fallback: [spare]')}{spare}")
    assert (await execute(found.find("fast"), ASK)).content
    assert len(upstream.chats) == 3


async def test_a_fallback_does_not_fall_back_itself(upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = lambda _: Plain(error_body("slow down"), status=429)
    both = model(upstream.base_url, ", fallback: [other]") + model(
        upstream.base_url, ", fallback: [fast]", name="other"
    )
    with pytest.raises(RateLimited):
        await execute(catalog(tmp_path, f"models:\n{both}").find("fast"), ASK)
    assert len(upstream.chats) == 2


async def test_deployments_share_calls_and_keep_their_keys(upstream: Upstream, tmp_path: Path) -> None:
    with upstream_of() as second:
        more = f", deployments: [{{weight: 1}}, {{base_url: {second.base_url!r}, api_key: sk-test-key-2}}]"
        found = catalog(tmp_path, f"models:\n{model(upstream.base_url, more)}").find("fast")
        for _ in range(4):
            await execute(found, ASK)
        assert [len(upstream.chats), len(second.chats)] == [2, 2]
        assert {call.headers["authorization"] for call in upstream.chats} == {"Bearer sk-test-key-1"}
        assert {call.headers["authorization"] for call in second.chats} == {"Bearer sk-test-key-2"}


upstream_of = upstream


async def test_a_deployment_elsewhere_is_not_sent_the_models_key(upstream: Upstream, tmp_path: Path) -> None:
    more = f", headers: {{x-own: secret-header}}, deployments: [{{base_url: {upstream.base_url!r}}}]"
    found = catalog(tmp_path, f"models:\n{model('http://127.0.0.1:9/v1', more)}").find("fast")
    await execute(found, ASK)
    assert "authorization" not in upstream.chats[0].headers
    assert "x-own" not in upstream.chats[0].headers


async def test_a_tokens_limit_counts_over_all_models(tmp_path: Path) -> None:
    text = (
        "models:\n  - {name: fast, llm: demo}\n  - {name: slow, llm: demo}\n"
        "auth: {tokens: [{name: alice, value: alice-token, limit: {requests_per_minute: 2}}]}\n"
    )
    found = catalog(tmp_path, text)
    alice, bob = Principal("alice"), Principal("bob")
    await execute(found.find("fast"), ASK, principal=alice)
    await execute(found.find("slow"), ASK, principal=alice)
    with pytest.raises(LimitReached, match="2 requests a minute"):
        await execute(found.find("fast"), ASK, principal=alice)
    await execute(found.find("fast"), ASK, principal=bob)


async def test_case_16_a_budget_in_money_stops_the_next_call(upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = lambda _: Plain(completion("one", usage=usage_of(0, 1_000_000)))
    more = ", budget: {usd: 1}, price: {input: 1, output: 2}, params: {max_tokens: 10}"
    found = catalog(tmp_path, f"models:\n{model(upstream.base_url, more)}").find("fast")
    await execute(found, ASK)
    with pytest.raises(LimitReached, match="the budget of 1 USD of the model 'fast' is used up") as caught:
        await execute(found, ASK)
    assert caught.value.limit == "budget"
    assert len(upstream.chats) == 1


async def test_case_16_a_budget_in_tokens_reserves_what_an_answer_may_be(upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = lambda _: Plain(completion("one", usage=usage_of(10, 20_000)), think_s=0.02)
    found = catalog(tmp_path, f"models:\n{model(upstream.base_url, ', budget: {tokens: 130000}')}").find("fast")
    ends = await asyncio.gather(*(execute(found, ASK) for _ in range(20)), return_exceptions=True)
    passed = [end for end in ends if not isinstance(end, BaseException)]
    assert len(passed) == 7  # 6 do not use it up, and one more was let in
    assert {type(end) for end in ends} - {type(passed[0])} == {LimitReached}


async def test_one_call_of_an_unusual_tier_does_not_close_a_budget(upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = lambda _: Plain(completion("one", usage=usage_of(10, 10)))
    found = catalog(tmp_path, f"models:\n{model(upstream.base_url, ', budget: {usd: 5}')}").find("fast")
    await execute(found, ChatRequest.of("Hi", model="fast", stream=False, service_tier="flex"))
    assert (await execute(found, ASK)).content == "one"


async def test_a_token_that_pays_may_not_ask_for_a_model_without_a_price(tmp_path: Path, upstream: Upstream) -> None:
    text = "auth: {tokens: [{name: alice, value: alice-token, budget: {usd: 1}}]}\n"
    found = catalog(tmp_path, text, {"OPENAI_BASE_URL": upstream.base_url})
    alice = Principal("alice")
    for name in ("nobody-knows", "openai:nobody-knows"):
        with pytest.raises(Invalid, match="the price of 'nobody-knows' is not known"):
            await execute(found.find(name), ChatRequest.of("Hi", model=name), principal=alice)
    for name in ("gpt-5-mini", "openai:gpt-5-mini"):
        await execute(found.find(name), ChatRequest.of("Hi", model=name, stream=False), principal=alice)
    assert len(upstream.chats) == 2


async def test_a_requests_field_wins_over_a_default_in_other_words(upstream: Upstream, tmp_path: Path) -> None:
    more = ", params: {max_completion_tokens: 5000, temperature: 0.1}"
    found = catalog(tmp_path, f"models:\n{model(upstream.base_url, more)}").find("fast")
    await execute(found, ChatRequest.of("Hi", model="fast", stream=False, max_tokens=10))
    sent = upstream.chats[0].json
    assert (sent["max_tokens"], sent["temperature"], "max_completion_tokens" in sent) == (10, 0.1, False)


async def test_scripted_faults_are_injected(tmp_path: Path) -> None:
    text = "models:\n  - {name: fast, llm: demo, faults: 429 once, retry: {attempts: 2, base_s: 0.001}}\n"
    heard = Heard()
    assert (await execute(catalog(tmp_path, text).find("fast"), ASK, heard)).content
    assert [type(event.error) for event in heard.events if hasattr(event, "error")] == [RateLimited]


DEMO = "{name: fast, llm: demo,"
WRONG: dict[str, tuple[str, str, str]] = {
    "fallback to nothing": (f"{DEMO}\n     fallback: [slow]}}", "fallback[0]", "'slow' is no other model"),
    "fallback to itself": (f"{DEMO}\n     fallback: [fast]}}", "fallback[0]", "'fast' is no other model"),
    "faults": (f"{DEMO}\n     faults: [explode]}}", "faults", "'explode'"),
    "budget of nothing": (f"{DEMO}\n     budget: {{}}}}", "budget", "write tokens, usd, or both"),
    "budget of 0": (f"{DEMO}\n     budget: {{usd: 0}}}}", "budget.usd", "must be more than 0"),
    "price as text": (f"{DEMO}\n     price: {{input: x, output: 1}}}}", "price.input", "expected a number"),
    "weight of 0": (f"{DEMO}\n     deployments: [{{weight: 0}}]}}", "deployments[0].weight", "more than 0"),
    "api of another wire": ("{name: fast, llm: anthropic:c,\n     api: responses}", "api", "one wire of its own"),
    "cool-down of nothing": (f"{DEMO}\n     cooldown_s: 5}}", "cooldown_s", "only deployments cool down"),
    "address of the demo": (f"{DEMO}\n     base_url: http://127.0.0.1:9}}", "base_url", "does not take 'base_url'"),
    "price of the demo": (f"{DEMO}\n     price: {{input: 1, output: 1}}}}", "price", "does not take 'price'"),
    "no recordings": ("{name: fast,\n     llm: replay:nowhere}", "llm", "nowhere"),
}


@pytest.mark.parametrize(("text", "key", "said"), WRONG.values(), ids=WRONG)
def test_case_27_what_is_wrong_is_said_with_its_place(text: str, key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        catalog(tmp_path, f"models:\n  - {text}\n")
    assert (caught.value.line, caught.value.key) == (3, f"models[0].{key}")


def test_money_needs_a_known_price(tmp_path: Path) -> None:
    unknown = "models:\n  - {name: fast, llm: openai:nobody-knows, budget: {usd: 1}}\n"
    with pytest.raises(ConfigError, match="the price of 'openai:nobody-knows' is not known") as caught:
        catalog(tmp_path, unknown)
    assert caught.value.key == "models[0].price"
    token = "auth: {tokens: [{name: alice, value: alice-token, budget: {usd: 1}}]}\n"
    with pytest.raises(ConfigError, match="the budget of the token 'alice'"):
        catalog(tmp_path, unknown.replace(", budget: {usd: 1}", "") + token)
    catalog(tmp_path, unknown.replace("budget", "price: {input: 1, output: 1}, budget") + token)
    spare = "models:\n  - {name: fast, llm: demo, budget: {usd: 1}, fallback: [spare]}\n"
    with pytest.raises(ConfigError, match="the budget of the model 'fast'") as caught:
        catalog(tmp_path, spare + "  - {name: spare, llm: openai:nobody-knows}\n")
    assert caught.value.key == "models[1].price"


async def test_recordings_are_made_and_served(upstream: Upstream, tmp_path: Path) -> None:
    token = "auth: {tokens: [{name: alice, value: alice-token, budget: {usd: 1}}]}\n"
    text = f"{token}recordings: {{record: taken}}\nmodels:\n{model(upstream.base_url)}"
    said = await execute(catalog(tmp_path, text).find("fast"), ASK)
    assert list((tmp_path / "taken").iterdir())
    served = catalog(tmp_path, text.replace("record:", "replay:"))
    assert [row.id for row in await served.models()] == ["fast"]
    assert (await execute(served.find("fast"), ASK, principal=Principal("alice"))).content == said.content
    assert len(upstream.chats) == 1


def test_what_is_replayed_needs_no_key(tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("models:\n  - {name: fast, llm: openai:m, api_key: '${NO_SUCH_KEY}'}\n")
    assert not load(str(tmp_path / "penstock.yaml"), {}, overrides={"recordings": {"replay": "taken"}}).models
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        load(str(tmp_path / "penstock.yaml"), {})


def test_notices_name_what_is_missing_and_what_fails_on_purpose(tmp_path: Path) -> None:
    text = (
        "models:\n  - {name: fast, llm: anthropic:c, faults: 429 once,\n"
        "     deployments: [{api_key: sk-test-key-1}, {llm: openai:m}]}\n"
    )
    assert catalog(tmp_path, text).notices == [
        "the model 'fast' has no api_key, and OPENAI_API_KEY is not set",
        "the model 'fast' fails on purpose: 429 once",
    ]


def test_the_command_line_says_where_recordings_go(tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("recordings: {record: taken}\n")
    overrides: dict[str, Any] = {"port": 9, "recordings": {"record": "elsewhere"}}
    settings = load(str(tmp_path / "penstock.yaml"), {}, overrides=overrides)
    assert (settings.recordings.record, settings.server.port) == ("elsewhere", 9)
