"""Each call says what it cost, and runs, records and budgets add it up; nobody takes an unknown price for zero."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from penstock.errors import LimitReached, LlmError
from penstock.events import Used
from penstock.llms.anthropic import Claude
from penstock.llms.base import BaseLlm
from penstock.llms.demo import Demo
from penstock.llms.gemini import Gemini
from penstock.llms.openai import Gpt
from penstock.llms.prices import FREE, Price, cost_of, model_info, price_of, reserve
from penstock.llms.services import Service
from penstock.messages import ChatReply, ChatRequest, Usage
from penstock.policies.budget import budget
from penstock.policies.record import Record, record
from penstock.run import Run, execute, execute_stream
from penstock.testing import Heard
from tests.rig.native import native_answer
from tests.rig.upstream import JsonObject, Plain, Stream, Upstream, chunk, completion, text_stream, usage_of

REPORTED: JsonObject = {**usage_of(40, 12), "prompt_tokens_details": {"cached_tokens": 32}}
COST = Decimal("0.0000268")  # of gpt-5-mini: 8 * 0.25 + 32 * 0.025 + 12 * 2, over a million
OWN = Price(Decimal(1000), Decimal(1000))
ASK = ChatRequest.of("Hello")
WHOLE = ChatRequest.of("Hello", stream=False)
WIRES: dict[str, Callable[..., BaseLlm]] = {
    "openai": Gpt,
    "openai responses": partial(Gpt, api="responses"),
    "anthropic": Claude,
    "gemini": Gemini,
}


def gpt(upstream: Upstream, **options: Any) -> Gpt:
    return Gpt(**{"model": "gpt-5-mini", "api_key": "k", "base_url": upstream.base_url} | options)


def both(upstream: Upstream, *, model: str = "gpt-5-mini") -> None:
    """Let the service say the same streamed and whole."""
    upstream.script(
        Stream(text_stream("Hello you", model=model, usage=REPORTED)),
        Plain(completion("Hello you", model=model, usage=REPORTED)),
    )


async def costs(llm: BaseLlm, *requests: ChatRequest) -> list[Decimal | None]:
    """What each of the requests cost, one after the other."""
    heard = Heard()
    for request in requests:
        await execute(llm, request, heard)
    return [event.cost for event in heard.events if isinstance(event, Used)]


async def test_case_07_streamed_and_whole_cost_the_same(upstream: Upstream) -> None:
    both(upstream)
    assert await costs(gpt(upstream), ASK, WHOLE) == [COST, COST]


@pytest.mark.parametrize("wire", WIRES)
async def test_case_07_a_call_costs_the_same_on_every_wire_streamed_and_whole(upstream: Upstream, wire: str) -> None:
    upstream.default = native_answer
    address = upstream.base_url if wire.startswith("openai") else upstream.base_url.removesuffix("/v1")
    price = Price(Decimal(3), Decimal(15), cached_input=Decimal("0.3"))
    for model, cost in (("text", "0.0001164"), ("reasoning", "0.000633")):
        llm = WIRES[wire](model=model, base_url=address, api_key="k", price=price)
        assert await costs(llm, ASK, WHOLE) == [Decimal(cost)] * 2


async def test_row_a16_a_run_adds_up_what_its_calls_cost(upstream: Upstream) -> None:
    both(upstream)
    llm, stored = gpt(upstream), list[Record]()

    async def twice(request: ChatRequest, run: Run) -> None:
        await llm(request, run.child("first"))
        await llm(WHOLE, run.child("second"))

    async with execute_stream(record(stored.append)(twice), ASK) as execution:
        assert execution.cost == 0
        async for _ in execution:
            pass
    assert execution.cost == stored[0].cost == 2 * COST
    assert execution.usage.total == 104


async def test_row_a16_a_sum_with_an_unknown_cost_is_unknown(upstream: Upstream) -> None:
    upstream.default = lambda _: Plain(completion("Hello", model="unheard-of", usage=REPORTED))
    known, unknown = gpt(upstream), gpt(upstream, model="unheard-of")

    async def works(request: ChatRequest, run: Run) -> None:
        await known(WHOLE, run)
        await unknown(WHOLE, run)
        await Demo()(request, run)

    async with execute_stream(works, ASK) as execution:
        told = [event.cost async for event in execution if isinstance(event, Used)]
    assert told == [COST, None, 0]
    assert execution.cost is None


async def test_the_name_that_was_asked_for_decides_else_the_one_that_answered(upstream: Upstream) -> None:
    both(upstream, model="gpt-5-mini-2025-08-07")
    both(upstream, model="gpt-4o")
    assert await costs(gpt(upstream, model="our-deployment"), ASK, WHOLE) == [COST, COST]
    assert await costs(gpt(upstream, model=""), ChatRequest.of("x", model="gpt-5-mini")) == [COST]


async def test_a_price_of_ones_own_goes_before_the_table(upstream: Upstream) -> None:
    both(upstream)
    llm = gpt(upstream, price=OWN)
    assert llm.price == OWN
    assert llm.info is not None
    assert llm.info.context_window == 400_000
    assert await costs(llm, ASK, WHOLE) == [Decimal("0.052")] * 2
    both(upstream)
    assert await costs(gpt(upstream, model="unheard-of", price=OWN), ASK) == [Decimal("0.052")]


async def test_a_tier_with_other_prices_is_unknown(upstream: Upstream) -> None:
    tiers: tuple[tuple[dict[str, Any], Decimal | None], ...] = (
        ({"service_tier": "flex"}, None),
        ({"service_tier": "default"}, COST),
    )
    for params, expected in tiers:
        both(upstream)
        both(upstream)
        asked = [ChatRequest.of("x", **params), ChatRequest.of("x", stream=False, **params)]
        assert await costs(gpt(upstream), *asked) == [expected] * 2
        assert await costs(gpt(upstream, params=params), ASK, WHOLE) == [expected] * 2
    both(upstream)
    assert await costs(gpt(upstream, params={"service_tier": "flex"}, price=OWN), ASK) == [Decimal("0.052")]


async def test_what_runs_on_ones_own_machine_and_the_demo_are_free(upstream: Upstream) -> None:
    both(upstream)
    both(upstream)
    assert await costs(gpt(upstream, service="ollama", model="qwen3:8b"), ASK, WHOLE) == [0, 0]
    own = Service("ours", upstream.base_url, local=True)
    assert await costs(Gpt(service=own, model="x"), ASK, WHOLE) == [0, 0]
    assert await costs(Demo(), ASK) == [0]
    assert Demo().price == FREE


async def test_case_14_a_cut_stream_costs_what_arrived(upstream: Upstream) -> None:
    upstream.script(Stream([chunk("a"), chunk("b"), chunk("c")], cut_after=3, done=False))
    heard = Heard()
    with pytest.raises(LlmError):
        await execute(gpt(upstream), ASK, heard)
    (told,) = (event for event in heard.events if isinstance(event, Used))
    assert told.usage.partial
    assert told.cost == Decimal("0.25") * told.usage.prompt / 10**6 + Decimal(2) * 3 / 10**6


async def test_an_llm_of_ones_own_counts_by_the_price_it_is_given() -> None:
    class Own(BaseLlm):
        async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
            usage = Usage(10, 10, 20)
            await run.emit(Used(usage=usage, cost=self.cost(request, usage)))
            return ChatReply(choices=())

    llm = Own(model="ours")
    assert await costs(llm, ASK) == [None]
    llm.price = OWN
    assert await costs(llm, ASK) == [Decimal("0.02")]
    assert llm.info is not None


async def test_case_16_a_budget_in_dollars_lets_only_so_many_go_at_once(upstream: Upstream) -> None:
    upstream.default = lambda _: Plain(completion("Hello you", usage=REPORTED), think_s=0.02)
    llm = gpt(upstream)
    assert llm.price is not None
    thrifty = budget(2 * COST, cost=cost_of, estimate=reserve(llm.price))(llm)
    asked = ChatRequest.of("Hello", stream=False, max_tokens=12)
    ends = await asyncio.gather(*(execute(thrifty, asked) for _ in range(5)), return_exceptions=True)
    assert [type(end) for end in ends].count(LimitReached) == 5 - len(upstream.chats)
    assert 2 <= len(upstream.chats) <= 3


def test_the_limits_of_a_model_are_known_to_its_llm() -> None:
    llm = Gpt(model="gpt-5-mini", base_url="http://127.0.0.1:9", api_key="k")
    assert llm.info == model_info("openai", "gpt-5-mini")
    assert llm.price == price_of("openai", "gpt-5-mini")
    assert llm.info_of("gpt-4o") == model_info("openai", "gpt-4o")
    assert Gpt(base_url="http://127.0.0.1:9", api_key="k").price is None
