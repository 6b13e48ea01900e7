"""Batches against llama.cpp itself: its grammar holds the shape, a model with random weights gives the rest."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
import pytest

from penstock.batch.batch import Batch
from penstock.batch.executor import BatchInferenceExecutor
from penstock.batch.items import BatchRequest, Item, order_of
from penstock.batch.plan import Plan
from penstock.batch.planner import Planner
from penstock.batch.voting import Voting
from penstock.batch.waiting import Waiting
from penstock.events import Chunks, Used
from penstock.events import Item as Told
from penstock.llms.openai import Gpt
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.tiny_llm import TinyLlm

pytestmark = pytest.mark.asyncio

ACTS = ("MoveTo", "Attack", "Wait")
PLAN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "agent_id": {"type": ["integer", "string"]},
        "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}, "minItems": 1, "maxItems": 1},
    },
    "required": ["agent_id", "steps"],
    "additionalProperties": False,
    "$defs": {"Step": {"enum": [*ACTS]}},
}
"""Short, so that a call takes about a second."""


@pytest.fixture
def llm(tiny_llm: TinyLlm) -> Gpt:
    return Gpt(
        service="llamacpp", base_url=tiny_llm.base_url, model=tiny_llm.model, params={"temperature": 1, "seed": 3}
    )


async def test_row_d4_twenty_agents_get_their_plans_from_one_call_the_first_of_them_early(llm: Gpt) -> None:
    executor, heard = BatchInferenceExecutor(20, llm=llm, kind=PLAN), Heard()
    agents = [*range(19, 9, -1), -1, -2, 123456789, "anna", "b-2", "a name with blanks", 0, "0", "äöü", '"}]']
    for agent in agents:
        executor.queue_agent(agent, {"hp": 7, "sees": f"agent {agent}"})
    response = await execute(executor, executor.flush_batch(), heard)
    assert [outcome.id for outcome in response.outcomes] == sorted(agents, key=order_of)
    for outcome in response.outcomes:
        assert (outcome.tier, outcome.attempts, outcome.faults) == ("batch", 1, ())
        assert outcome.value["agent_id"] == outcome.id
        assert outcome.value["steps"][0] in ACTS
    assert len(used(heard)) == 1
    assert response.usage.total == used(heard)[0].usage.total
    first = next(n for n, event in enumerate(heard.events) if isinstance(event, Told))
    chunks = [n for n, event in enumerate(heard.events) if isinstance(event, Chunks)]
    assert sum(n < first for n in chunks) < len(chunks) / 10
    assert [event.value.id for event in heard.events if isinstance(event, Told)] == [o.id for o in response.outcomes]


async def test_batches_of_any_size_are_answered_whole_and_in_order(llm: Gpt) -> None:
    batch = Batch(llm, PLAN, planner=Planner(20))
    for size in (1, 2, 3, 6, 11):
        request = BatchRequest.of(Item(3 * n, n) for n in range(size))
        response = await execute(batch, request, heard := Heard())
        told = [event.value for event in heard.events if isinstance(event, Told)]
        assert [outcome.id for outcome in told] == [item.id for item in request.items]
        assert {outcome.tier for outcome in told} == {"single" if size == 1 else "batch"}
        assert response.foreign == ()
        assert sum(outcome.usage.completion for outcome in response.outcomes) == used(heard)[0].usage.completion


class Label(msgspec.Struct):
    """A value without a key of its own."""

    label: Literal["good", "bad"]


@pytest.mark.parametrize("kind", [Label, Plan, PLAN, {"enum": [1, 2]}], ids=["struct", "plan", "schema", "enum"])
async def test_the_grammar_holds_for_each_kind_of_value(llm: Gpt, kind: Any) -> None:
    batch = Batch(llm, kind, acts=ACTS if kind is Plan else ())
    outcomes = await batch.run([("one", 1), (2, 2), ("the third", 3)])
    assert [(outcome.id, outcome.tier, outcome.attempts) for outcome in outcomes] == [
        (2, "batch", 1),
        ("one", "batch", 1),
        ("the third", "batch", 1),
    ]


async def test_callers_that_wait_get_their_own_and_votes_are_counted(llm: Gpt) -> None:
    batch = Batch(llm, {"enum": ["yes", "no"]})
    async with Waiting(batch) as waiting:
        found = await asyncio.gather(*(waiting.submit((n, n)) for n in range(4)))
    assert [outcome.id for outcome in found] == [*range(4)]
    votes = await Voting(batch, votes=3).run([(n, n) for n in range(4)])
    assert {*map(votes.get_plan, range(4))} <= {"yes", "no"}
    assert {votes.agreement(n) for n in range(4)} <= {2 / 3, 1.0}
    assert [outcome.attempts for outcome in votes.outcomes] == [3] * 4


def used(heard: Heard) -> list[Used]:
    """What each call has used."""
    return [event for event in heard.events if isinstance(event, Used)]
