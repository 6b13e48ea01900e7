"""`Batch`: values for many items, few calls: each value as it closes, and only what is missing asked for again.

batch = Batch(llm, Plan, instructions="Plan the next turn of each agent.")
async with batch.stream(items) as outcomes:
    async for outcome in outcomes:
        print(outcome.id, outcome.value)
outcomes = await batch.run(items)                     # the same, sorted by id
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from penstock.batch.calls import Caller
from penstock.batch.fallbacks import Fallback, distinct
from penstock.batch.items import BatchRequest, Item
from penstock.batch.outcomes import BatchResponse, ItemOutcome
from penstock.batch.plan import Plan
from penstock.batch.planner import Planner
from penstock.batch.schema import Dialect, ItemSchema
from penstock.batch.stream import Outcomes, outcome_of
from penstock.batch.work import Setup, Work
from penstock.errors import UsageError
from penstock.events import Event
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Executor, Run, execute, execute_stream


class Batch:
    """An executor from `BatchRequest` to `BatchResponse`, which tells `Item(ItemOutcome)` for each item as it ends.

    `kind` is the type of a value (see `ItemSchema`), `acts` the only ones that a `Plan` may name; `instructions` say
    what to do with an item. `concurrent` calls run at once, cut by the `planner`. What a call did not give is asked for
    again in calls of half the size, then alone, with what was wrong with a value; after that the `fallbacks` are tried.
    A call that fails in passing is made up to `attempts` times (1 for an LLM that has a `retry` of its own), and while
    a service wants to be left alone, up to a minute, no other begins. `dialect` is how much of a JSON Schema the
    service takes, where its name does not say it; `model` and `params` are those of the requests. Of an outcome that is
    told `usage`, `cost` and late faults are not final: the response's are. Raises `UsageError` for what is no LLM.
    """

    def __init__(  # what a batch is made of  # noqa: PLR0913
        self,
        llm: Executor[ChatRequest, ChatReply],
        kind: Any = Plan,
        *,
        instructions: str = "",
        acts: str | Iterable[str] = (),
        planner: Planner | None = None,
        fallbacks: Sequence[Fallback] = (),
        concurrent: int = 4,
        dialect: Dialect | None = None,
        model: str = "",
        params: Mapping[str, Any] | None = None,
        attempts: int = 3,
    ) -> None:
        if concurrent < 1:
            raise UsageError(f"concurrent={concurrent!r} lets nothing run: give at least 1")
        self.schema = kind if isinstance(kind, ItemSchema) else ItemSchema(kind, acts=acts)
        self.planner = planner or Planner()
        caller = Caller(
            llm,
            self.schema,
            instructions=instructions,
            dialect=dialect,
            model=model,
            params=params,
            attempts=attempts,
        )
        self.planner.within(caller.info)
        callers = {
            one.name: Caller(one.llm, self.schema, instructions=one.instructions or instructions, attempts=attempts)
            for one in fallbacks
            if one.llm is not None
        }
        self._setup = Setup(caller, self.planner, distinct(fallbacks), callers, concurrent)

    async def run(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        told: Callable[[ItemOutcome], Awaitable[None] | None] | None = None,
    ) -> list[ItemOutcome]:
        """The outcomes of items (`Item`s, objects with an `id`, or pairs of id and data), sorted by id.

        An async iterable is read to its end first. `told` is called with each outcome as it ends. Raises `UsageError`,
        and whatever `told` raises.
        """

        def hear(event: Event) -> Awaitable[None] | None:
            outcome = outcome_of(event)
            return None if told is None or outcome is None else told(outcome)

        response = await execute(self, BatchRequest.of(await _whole(items)), hear)
        return list(response.outcomes)

    def stream(self, items: Iterable[Any] | AsyncIterable[Any]) -> Outcomes:
        """The outcomes of items as they end: `async with batch.stream(items) as outcomes: async for outcome in ...`.

        An async iterable is read to its end first. Raises `UsageError`; for what such a one gives, inside the block.
        """
        if isinstance(items, AsyncIterable):
            return Outcomes(execute_stream(self._streamed, items))
        return Outcomes(execute_stream(self, BatchRequest.of(items)))

    async def _streamed(self, items: AsyncIterable[Any], run: Run, /) -> BatchResponse:
        return await self(BatchRequest.of(await _whole(items)), run)

    async def __call__(self, request: BatchRequest, run: Run, /) -> BatchResponse:
        """Ask, ask again for what is missing, fall back; nothing is lost when a call fails.

        Raises `UsageError` for data that is no JSON, and where the LLM cannot be called at all.
        """
        return await Work(self._setup, request, run).done()

    def prompt(self, items: Sequence[Item]) -> ChatRequest:
        """The request of one call about these items."""
        return self._setup.caller.request(items, self.planner.room(len(items)))


async def _whole(items: Iterable[Any] | AsyncIterable[Any]) -> Iterable[Any]:
    return [item async for item in items] if isinstance(items, AsyncIterable) else items
