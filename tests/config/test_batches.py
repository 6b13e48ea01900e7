"""A model of the catalog as a batch asks it."""

from __future__ import annotations

import asyncio

import pytest

from penstock.config import Catalog, load
from penstock.config.batches import Asked, refused
from penstock.errors import LimitReached, NotFound
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Run, execute
from penstock.testing import ScriptedLlm

ASK = ChatRequest.of("one")


class Limited:
    """A catalog of one model, which is beyond its limit twice."""

    def __init__(self, limit: str, wait_s: float | None) -> None:
        self.errors = [LimitReached("no more", limit=limit, retry_after=wait_s) for _ in range(2)]
        self.llm = ScriptedLlm("done")

    def find(self, model: str) -> Limited:
        assert model == "m"
        return self

    def provider(self, _: str) -> str:
        return "scripted"

    def info(self, _: str) -> None:
        return None

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        if self.errors:
            raise self.errors.pop()
        return await self.llm(request, run)


async def test_a_rate_that_is_used_up_is_waited_for() -> None:
    asked = Asked(Limited("requests_per_minute", 0.001), "m", patience_s=1)
    assert (await execute(asked, ASK)).content == "done"
    assert asked.calls == 1


async def test_while_it_waits_for_a_rate_it_says_so() -> None:
    asked = Asked(Limited("requests_per_minute", 60.0), "m", patience_s=90)
    going = asyncio.ensure_future(execute(asked, ASK))
    async with asyncio.timeout(1):
        while not asked.waiting:
            await asyncio.sleep(0)
    going.cancel()
    await asyncio.wait((going,))
    assert (asked.waiting, asked.failures) == (0, {})


def test_fields_that_are_a_batchs_own_or_lead_elsewhere_are_refused() -> None:
    assert refused({"temperature": 1, "max_tokens": 2, "seed": 3}) == ""
    assert [refused({"seed": 1, name: 1}) for name in ("api_key", "stream", "store")] == ["api_key", "stream", "store"]


@pytest.mark.parametrize(
    ("limit", "wait_s", "patience_s"),
    [("requests_per_minute", 2.0, 1.0), ("requests_per_minute", 0.001, 0.0), ("tokens", None, 1), ("budget", 0.001, 1)],
)
async def test_a_longer_wait_and_a_budget_are_not(limit: str, wait_s: float | None, patience_s: float) -> None:
    asked = Asked(Limited(limit, wait_s), "m", patience_s=patience_s)
    with pytest.raises(LimitReached) as raised:
        await execute(asked, ASK)
    assert asked.failures == {LimitReached: raised.value}


def test_it_knows_whose_the_model_is_and_what_it_can_do() -> None:
    catalog = Catalog(load(None, {}), {"OPENAI_API_KEY": "sk-x"})
    asked = Asked(catalog, "gpt-4o-mini")
    info = asked.info_of("")
    assert asked.provider == "openai"
    assert info is not None
    assert info.max_output_tokens
    with pytest.raises(NotFound):
        Asked(Catalog(load(None, {}), {"OPENAI_API_KEY": "sk-x", "GROQ_API_KEY": "x"}), "nobody")
