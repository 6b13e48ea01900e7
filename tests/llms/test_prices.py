"""The table of models is sound, names are found in it, and money is counted exactly."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.events import Used
from penstock.llms.prices import (
    FREE,
    LOCAL,
    ModelInfo,
    Price,
    _table,
    as_of,
    cost_of,
    model_info,
    price_of,
    reserve,
    reserve_tokens,
    usd,
)
from penstock.llms.services import SERVICES
from penstock.messages import ChatRequest, PromptTokens, Usage

MINI = Price(Decimal("0.25"), Decimal(2), cached_input=Decimal("0.025"))
KEEPING = Price(Decimal(3), Decimal(15), cached_input=Decimal("0.3"), cache_write=Decimal("3.75"))
GROWING = Price(Decimal(1), Decimal(10), over=200_000, long=Price(Decimal(2), Decimal(15)))
ROWS = [(service, name, info) for service, rows in _table().services.items() for name, info in rows.items()]
LAZY = """
import sys
opened = []
sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == "open" else None)
from penstock import Gpt
gpt = Gpt(model="gpt-5-mini", base_url="http://127.0.0.1:9", api_key="k")
before = [path for path in opened if path.endswith("models.json")]
assert gpt.price is not None
print(before, [path for path in opened if path.endswith("models.json")] != [])
"""


def used(prompt: int, completion: int, cached: int = 0, written: int = 0) -> Usage:
    return Usage(prompt, completion, prompt + completion, prompt_tokens_details=PromptTokens(cached, written))


@pytest.mark.parametrize(("service", "name", "info"), ROWS, ids=[f"{service}:{name}" for service, name, _ in ROWS])
def test_a_row_of_the_table_is_sound(service: str, name: str, info: ModelInfo) -> None:
    assert service in {*SERVICES, "demo"}
    assert set(info.capabilities) <= {"tools", "images", "json_schema", "reasoning"}
    assert info.max_output_tokens is None or 0 < info.max_output_tokens <= (info.context_window or 0)
    if (price := info.price) is not None and service != "demo":
        assert 0 < price.input <= price.output
        assert price.cached_input is None or 0 < price.cached_input <= price.input
        assert price.cache_write is None or price.cache_write >= price.input
        assert (price.over > 0) == (price.long is not None)
        assert price.long is None or (price.long.input > price.input and price.long.output > price.output)
    assert model_info(service, name) == info


def test_the_table_is_dated_and_covers_the_services() -> None:
    assert date(2026, 1, 1) < date.fromisoformat(as_of()) <= datetime.now(UTC).date()
    assert len(ROWS) >= 40
    priced = {service for service, _, info in ROWS if info.price is not None}
    assert {"openai", "anthropic", "gemini", "mistral", "groq", "deepseek", "xai", "demo"} == priced


def test_every_alias_leads_to_a_row() -> None:
    for service, names in _table().aliases.items():
        for alias, name in names.items():
            assert alias not in _table().services[service]
            assert model_info(service, alias) == _table().services[service][name]


@pytest.mark.parametrize(
    ("provider", "model", "same"),
    [
        ("openai", "gpt-5-mini-2025-08-07", ("openai", "gpt-5-mini")),
        ("azure", "gpt-5-mini", ("openai", "gpt-5-mini")),
        ("anthropic", "claude-sonnet-4-5-20250929", ("anthropic", "claude-sonnet-4-5")),
        ("anthropic", "claude-3-5-haiku-latest", ("anthropic", "claude-3-5-haiku")),
        ("anthropic", "claude-opus-4@20250514", ("anthropic", "claude-opus-4")),
        ("gemini", "models/gemini-2.5-flash", ("gemini", "gemini-2.5-flash")),
        ("gemini", "gemini-2.5-flash-001", ("gemini", "gemini-2.5-flash")),
        ("mistral", "mistral-large-latest", ("mistral", "mistral-large-2512")),
        ("openrouter", "anthropic/claude-sonnet-4.5", ("anthropic", "claude-sonnet-4-5")),
        ("openrouter", "google/gemini-2.5-pro", ("gemini", "gemini-2.5-pro")),
        ("litellm", "groq/openai/gpt-oss-20b", ("groq", "openai/gpt-oss-20b")),
    ],
)
def test_a_model_is_found_by_its_other_names(provider: str, model: str, same: tuple[str, str]) -> None:
    found = price_of(provider, model)
    assert found is not None
    assert found == price_of(*same)


def test_a_version_with_a_price_of_its_own_keeps_it() -> None:
    may, november, usual = (price_of("openai", f"gpt-4o{version}") for version in ("-2024-05-13", "-2024-11-20", ""))
    assert may != november == usual


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-99"),
        ("openai", ""),
        ("openai", "gpt-5-mini@" + "x" * 1000),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::1"),
        ("nobody", "gpt-5-mini"),
        ("openrouter", "gpt-5-mini"),
        ("openrouter", "deepseek/deepseek-chat"),
        ("together", "openai/gpt-oss-20b"),
        ("openai", "gpt-5.6-sol"),
    ],
)
def test_an_unknown_price_is_unknown_and_not_zero(provider: str, model: str) -> None:
    assert price_of(provider, model) is None


@pytest.mark.parametrize("provider", [row.name for row in SERVICES.values() if row.local])
def test_a_local_service_is_free(provider: str) -> None:
    assert model_info(provider, "any/model:7b") == LOCAL
    assert price_of(provider, "") == FREE


@pytest.mark.parametrize(
    ("price", "usage", "expected"),
    [
        (MINI, used(1_000_000, 0), "0.25"),
        (MINI, used(0, 1_000_000), "2"),
        (MINI, used(40, 12, cached=32), "0.0000268"),
        (KEEPING, used(1000, 10, cached=600, written=300), "0.001755"),
        (Price(Decimal(1), Decimal(2)), used(1000, 0, cached=400, written=100), "0.001"),
        (GROWING, used(200_000, 1000), "0.21"),
        (GROWING, used(200_001, 1000), "0.415002"),
        (FREE, used(10**9, 10**9), "0"),
        (MINI, used(1, 0, cached=1), "0.000000025"),
        (MINI, used(1, 0, cached=9), "0.000000225"),
    ],
)
def test_row_a16_cached_written_and_long_prompts_are_priced_apart(price: Price, usage: Usage, expected: str) -> None:
    assert price.cost(usage) == Decimal(expected)
    assert usd(price.cost(usage)) == expected


@pytest.mark.parametrize("amount", [0.25, 1, "1", None, Decimal(-1), Decimal("NaN"), Decimal("Infinity")])
def test_what_is_no_price_is_refused(amount: Any) -> None:
    with pytest.raises(UsageError, match="input="):
        Price(amount, Decimal(1))
    with pytest.raises(UsageError, match="output="):
        Price(Decimal(1), amount)
    if amount is not None:
        with pytest.raises(UsageError, match="cached_input="):
            Price(Decimal(1), Decimal(1), cached_input=amount)


ASKED = ChatRequest.of("x" * 400, max_tokens=100)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}


def tokens(**params: Any) -> int:
    """What is reserved for the answer of a short prompt."""
    return reserve_tokens(ChatRequest.of("Hi", **params)) - reserve_tokens(ChatRequest.of("Hi", max_tokens=1)) + 1


def test_the_reservation_covers_the_prompt_and_the_longest_answer() -> None:
    assert 200 <= reserve_tokens(ASKED) <= 225
    assert Decimal("0.000225") <= reserve(MINI)(ASKED) <= Decimal("0.00024")
    assert 20 < tokens(max_tokens=20, n=3) - 40 < 30
    assert tokens(max_completion_tokens=9, max_tokens=500) < 30
    assert 4050 < tokens() <= 4096
    assert reserve_tokens(ChatRequest.of("Hi"), max_output=128_000) > 128_000
    assert reserve_tokens(ChatRequest.of("Hi")) < 4200
    assert reserve(MINI, max_output=10**6)(ChatRequest.of("Hi")) > 2


@pytest.mark.parametrize("odd", [None, "7", 0, -5, 1.5, [], True])
def test_what_a_client_writes_cannot_make_the_reservation_fail_or_vanish(odd: Any) -> None:
    assert tokens(max_tokens=odd, n=odd) >= 1
    assert reserve(MINI)(ChatRequest.of("Hi", max_tokens=odd, n=odd)) > 0


def test_a_reservation_counts_a_picture_as_one_and_the_body_where_there_is_one() -> None:
    seen = ChatRequest.of([{"role": "user", "content": [PICTURE]}], max_tokens=1)
    assert 2000 < reserve_tokens(seen) < 2100
    body = ChatRequest(messages=[], params={"max_tokens": 1}, data=b"x" * 4000)
    assert reserve_tokens(body) == 1001


def test_a_reservation_is_made_at_the_dearest_way_a_prompt_may_be_taken() -> None:
    assert reserve(KEEPING)(ASKED) > KEEPING.cost(used(reserve_tokens(ASKED) - 100, 100))


def test_a_request_nested_too_deeply_can_be_reserved() -> None:
    nest: Any = []
    for _ in range(100_000):
        nest = [nest]
    assert reserve_tokens(ChatRequest.of([{"role": "user", "content": nest}], max_tokens=1)) == 1


def test_the_cost_of_a_budget_is_what_was_told() -> None:
    assert cost_of(Used(usage=Usage(), cost=Decimal("0.1"))) == Decimal("0.1")
    assert cost_of(Used(usage=Usage())) is None


def test_the_table_is_read_on_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[] True\n"
