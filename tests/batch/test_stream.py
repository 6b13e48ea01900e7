"""Outcomes that are pulled: each as it ends, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from penstock.batch.batch import Batch
from penstock.batch.items import BatchRequest, Item
from penstock.errors import UsageError
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Run, from_stream
from penstock.testing import ScriptedLlm
from tests.batch.answering import Do, all_but, does, keys

THREE = [(1, "a"), (2, "b"), (3, "c")]


async def test_row_d4_each_outcome_comes_with_its_closing_brace() -> None:
    said: list[str] = []

    async def generate(request: ChatRequest) -> AsyncGenerator[str, None]:
        for character in does(*keys(request)):
            said.append(character)
            yield character
            await asyncio.sleep(0)

    places: list[int] = []
    async with Batch(from_stream(generate), Do).stream(THREE) as outcomes:
        async for outcome in outcomes:
            assert outcome.value == Do(outcome.id, f"do {outcome.id}")
            places.append(len(said))
    answer = does(1, 2, 3)
    ends = [place + 1 for place, mark in enumerate(answer[:-1]) if mark == "}"]
    assert all(end <= place <= end + 1 for end, place in zip(ends, places, strict=True))
    assert [outcome.id for outcome in outcomes.response.outcomes] == [1, 2, 3]


async def test_outcomes_are_pulled_without_a_block_too() -> None:
    outcomes = Batch(ScriptedLlm(all_but(1), all_but()), Do).stream(THREE)
    assert [outcome.id async for outcome in outcomes] == [2, 3, 1]
    assert outcomes.response.usage.total > 0


@pytest.mark.parametrize("block", [True, False])
async def test_leaving_early_stops_the_batch(block: bool) -> None:
    ended: list[str] = []

    async def generate(request: ChatRequest) -> AsyncGenerator[str, None]:
        try:
            yield does(1)[:-1]
            await asyncio.sleep(30)
        finally:
            ended.append("ended")

    stream = Batch(from_stream(generate), Do).stream(THREE)
    if block:
        async with stream as outcomes:
            async for _ in outcomes:
                break
    else:
        async for _ in stream:
            break
        await asyncio.sleep(0.01)
    assert ended == ["ended"]
    assert len(asyncio.all_tasks()) == 1


async def test_what_ends_the_batch_is_raised_where_it_is_pulled() -> None:
    stream = Batch(ScriptedLlm(UsageError("no key is set")), Do).stream(THREE)
    with pytest.raises(UsageError, match="no key is set"):
        _ = [outcome async for outcome in stream]
    with pytest.raises(UsageError, match="two items"):
        Batch(ScriptedLlm(""), Do).stream([(1, 1), (1, 2)])
    with pytest.raises(RuntimeError, match="not finished"):
        _ = Batch(ScriptedLlm(""), Do).stream(THREE).response


async def test_the_outcomes_of_a_batch_below_are_not_its_own() -> None:
    inner = Batch(ScriptedLlm(all_but()), Do)

    async def nested(request: ChatRequest, run: Run, /) -> ChatReply:
        await inner(BatchRequest.of([Item(9, "z")]), run.child("inner"))
        return await ScriptedLlm(does(*keys(request)))(request, run)

    assert [outcome.id async for outcome in Batch(nested, Do).stream(THREE)] == [1, 2, 3]
