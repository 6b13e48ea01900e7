"""`budget` in money: exact, reserved before the call, and what becomes of a price that is unknown."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from penstock.errors import LimitReached
from penstock.events import Used
from penstock.messages import Usage
from penstock.policies import budget as budget_module
from penstock.policies.budget import budget
from penstock.run import Executor, Run, execute
from penstock.server.wire import answer_of
from tests.policies.conftest import Clock
from tests.policies.test_budget import Costs, together


async def test_money_is_decimal_and_exact() -> None:
    def price(used: Used) -> Decimal:
        return used.usage.total * Decimal("0.1")

    executor = budget(Decimal("0.3"), cost=price)(costs := Costs())
    for _ in range(3):
        await execute(executor, 1)
    with pytest.raises(LimitReached, match=r"the budget of 0\.3 is used up: 0\.3 is spent"):
        await execute(executor, 1)
    assert costs.calls == 3


def dime(used: Used) -> Decimal | None:
    """Ten cents a token; the price of "new" is unknown."""
    return None if used.model == "new" else used.usage.total * Decimal("0.10")


@pytest.mark.parametrize("estimate", [None, lambda _: Decimal("3.00")])
async def test_case_16_twenty_calls_at_once_spend_the_money_and_at_most_one_call_more(estimate: Any) -> None:
    executor = budget(Decimal("10.00"), cost=dime, estimate=estimate)(costs := Costs())
    refused = await together(executor, [30] * 20)
    assert (costs.spent * Decimal("0.10"), len(refused)) == (Decimal("12.00"), 16)
    assert str(refused[0]) == "the budget of 10.00 is used up: 12.00 is spent"
    answer = answer_of(refused[0])
    assert (answer.status, answer.body["error"]["code"]) == (429, "budget_exhausted")


def uses(model: str) -> Executor[int, int]:
    async def executor(request: int, run: Run) -> int:
        await asyncio.sleep(0)
        await run.emit(Used(usage=Usage(request, 0, request), model=model))
        return request

    return executor


async def test_a_price_that_is_unknown_is_not_zero_and_the_next_call_is_refused() -> None:
    shared = budget(Decimal(10), cost=dime)
    old, new = shared(uses("old")), shared(uses("new"))
    assert await execute(old, 1) == 1
    assert await execute(new, 1) == 1
    for executor in (old, new):
        with pytest.raises(LimitReached) as caught:
            await execute(executor, 1)
        assert caught.value.limit == "budget"
        assert str(caught.value) == "the price of the model 'new' is unknown, and so is what is spent of 10"


async def test_case_16_of_twenty_calls_at_once_at_an_unknown_price_one_is_made() -> None:
    refused = await together(budget(Decimal(10), cost=dime)(uses("new")), [1] * 20)
    assert [error.limit for error in refused] == ["budget"] * 19


async def test_an_unknown_price_stops_an_agent_at_its_next_call_and_counts_until_the_window_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, shared, calls = (
        Clock.of(monkeypatch, budget_module),
        budget(Decimal(10), cost=dime, window_s=60),
        list[int](),
    )
    inner = shared(uses("new"))

    async def agent(request: int, run: Run) -> int:
        for _ in range(3):
            calls.append(await inner(1, run))
        return request

    for expected in (1, 2):
        with pytest.raises(LimitReached, match="the price of the model 'new' is unknown"):
            await execute(shared(agent), 1)
        assert len(calls) == expected
        clock.now += 60


async def test_a_call_at_an_unknown_price_says_nothing_of_what_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shared, costs = Clock.of(monkeypatch, budget_module), budget(Decimal(10), cost=dime, window_s=60), Costs()
    await execute(shared(uses("new")), 1)
    clock.now += 60
    await together(shared(costs), [60] * 5)
    assert costs.most == 1
