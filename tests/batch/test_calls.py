"""Calls: what a service is sent, and what is left out once it refuses that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest

from penstock.batch.batch import Batch
from penstock.batch.element import Caps
from penstock.batch.fallbacks import Fallback
from penstock.batch.items import Item
from penstock.batch.planner import Planner
from penstock.errors import BadRequest, Refused, UsageError
from penstock.llms.base import BaseLlm
from penstock.llms.demo import Demo
from penstock.llms.openai import Gpt
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Run, from_stream
from penstock.testing import ScriptedLlm
from tests.batch.answering import Do, all_but, does, keys, told

FOUR = [(number, number) for number in range(4)]


def bad(param: str = "", status: int | None = 400) -> BadRequest:
    error = BadRequest("not so", status=status)
    error.param = param or None
    return error


def forms(llm: ScriptedLlm) -> list[str]:
    """What schema each request has held."""
    found: list[str] = []
    for request in llm.requests:
        form = request.params.get("response_format")
        listed: Any = form["json_schema"]["schema"]["properties"]["plans"] if form else {}
        found.append("positions" if "prefixItems" in listed else "elements" if listed else "none")
    return found


def picky(*, refuses: str) -> ScriptedLlm:
    def answer(request: ChatRequest) -> Any:
        return bad("response_format") if refuses in str(request.params) else does(*keys(request))

    return ScriptedLlm(answer)


async def test_a_service_that_refuses_the_schema_is_asked_with_less_of_it_and_that_is_remembered() -> None:
    batch = Batch(llm := picky(refuses="prefixItems"), Do, dialect="positions", planner=Planner(2), concurrent=1)
    outcomes = await batch.run(FOUR)
    assert all(outcome.ok and not outcome.faults and outcome.attempts == 1 for outcome in outcomes)
    assert forms(llm) == ["positions", "elements", "elements"]
    await batch.run(FOUR)
    assert forms(llm)[3:] == ["elements"] * 2
    batch = Batch(llm := picky(refuses="response_format"), Do, dialect="positions", planner=Planner(1))
    assert all(outcome.ok for outcome in await batch.run(FOUR))
    assert forms(llm)[:3] == ["positions", "elements", "none"]


async def test_calls_that_are_refused_side_by_side_give_up_one_step_of_the_schema() -> None:
    inner = picky(refuses="prefixItems")

    async def slow(request: ChatRequest, run: Run, /) -> ChatReply:
        await asyncio.sleep(0.01)
        return await inner(request, run)

    outcomes = await Batch(slow, Do, dialect="positions", planner=Planner(1)).run(FOUR)
    assert all(outcome.ok for outcome in outcomes)
    assert forms(inner) == ["positions"] * 4 + ["elements"] * 4


async def test_a_refusal_that_is_not_about_the_schema_costs_nothing_of_it() -> None:
    llm = ScriptedLlm(bad(), bad(), bad(), all_but())
    outcomes = await Batch(llm, Do, dialect="positions").run(FOUR)
    assert forms(llm) == ["positions", "elements", "none", "positions", "positions"]
    assert [len(outcome.faults) for outcome in outcomes] == [1] * 4


async def test_an_answer_that_has_begun_is_not_asked_for_again_with_less_of_the_schema() -> None:
    told: list[int | str] = []

    async def generate(request: ChatRequest) -> AsyncGenerator[str, None]:
        yield does(*keys(request)[:1])[:-1]
        raise bad()

    batch = Batch(from_stream(generate), Do, dialect="positions", concurrent=1)
    outcomes = await batch.run(FOUR, told=lambda outcome: told.append(outcome.id))
    assert told == [0, 1, 3, 2]
    assert [outcome.attempts for outcome in outcomes] == [1, 2, 3, 2]


@pytest.mark.parametrize("error", [bad(status=404), Refused("no", status=400)])
async def test_other_refusals_are_failed_calls(error: BadRequest) -> None:
    llm = ScriptedLlm(error, all_but())
    await Batch(llm, Do, dialect="positions").run(FOUR)
    assert forms(llm)[:2] == ["positions", "positions"]
    assert len(llm.requests) == 3


async def test_a_model_that_knows_the_newer_word_for_its_limit_is_told_that() -> None:
    llm = ScriptedLlm(bad("max_tokens"), all_but())
    outcomes = await Batch(llm, Do, dialect="elements").run(FOUR)
    assert [min(request.params) for request in llm.requests] == ["max_tokens", "max_completion_tokens"]
    assert all(outcome.attempts == 1 for outcome in outcomes)


async def test_room_for_the_answer_is_made_where_the_service_is_known_and_no_other_was() -> None:
    llm = ScriptedLlm(all_but())
    await Batch(llm, Do).run(FOUR)
    await Batch(llm, Do, dialect="elements").run(FOUR)
    await Batch(llm, Do, dialect="elements", params={"max_completion_tokens": 9, "seed": 1}).run(FOUR)
    rooms = [
        (request.params.get("max_tokens"), request.params.get("max_completion_tokens")) for request in llm.requests
    ]
    assert rooms == [(None, None), (1264, None), (None, 9)]


def test_the_limits_of_a_known_model_are_kept() -> None:
    batch = Batch(Gpt(model="gpt-4o-mini", api_key="k"), Do, planner=Planner(1000, tokens_per_item=1000))
    request = batch.prompt([Item(number, None) for number in range(100)])
    assert request.params["max_tokens"] == 16384


async def test_the_demo_model_answers_batches() -> None:
    outcomes = await Batch(Demo()).run([*FOUR, ("an id", 1)])
    assert [outcome.value.agent_id for outcome in outcomes] == [0, 1, 2, 3, "an id"]
    assert {outcome.tier for outcome in outcomes} == {"batch"}
    assert sum(outcome.cost or Decimal(0) for outcome in outcomes) == 0


@pytest.mark.parametrize(
    "wrong",
    [{}, {"default": 1, "rule": print}, {"llm": Demo(), "default": None}],
)
def test_a_fallback_is_one_thing(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the fallback 'x' is one thing"):
        Fallback(name="x", **wrong)


def test_fallbacks_have_names_of_their_own() -> None:
    for name in ("", "batch", "single"):
        with pytest.raises(UsageError, match="name of its own"):
            Fallback(name=name, default=1)
    with pytest.raises(UsageError, match="two fallbacks are called 'x'"):
        Batch(Demo(), fallbacks=[Fallback(name="x", default=1), Fallback(name="x", default=2)])
    with pytest.raises(UsageError, match="concurrent=0"):
        Batch(Demo(), concurrent=0)


async def test_the_usage_of_a_model_that_only_estimates_is_partial() -> None:
    class Whole(BaseLlm):
        async def generate_content_async(self, messages: Any, **params: Any) -> str:
            return does(*keys(ChatRequest.of(messages)))

    outcomes = await Batch(Whole(), Do).run(FOUR)
    assert all(outcome.usage.partial and outcome.usage.prompt for outcome in outcomes)


async def test_values_that_come_before_an_answer_grows_too_large_are_kept() -> None:
    endless = json.dumps({"plans": [{"agent_id": 0, "do": "go"}]})[:-2] + "," + " " * Caps().total
    (first, second) = await Batch(told([endless], [does(1)]), Do, concurrent=1).run([(0, 0), (1, 1)])
    assert (first.tier, first.attempts, first.faults) == ("batch", 1, ())
    assert (second.tier, second.attempts) == ("single", 2)
    assert "no end" in second.faults[0].message
