"""`BatchInferenceExecutor`: a queue of agents that wait for their plans, and `BatchResponseParser` for a whole answer.

executor = BatchInferenceExecutor(max_batch_size=20)
executor.queue_agent(7, {"hp": 12, "sees": ["wolf"]})
response = await executor.execute_batch(llm, "MoveTo|Attack", on_progress=lambda progress: print(progress.outcome))
response.get_plan(7)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from penstock.batch.batch import Batch
from penstock.batch.fallbacks import TIERS, Fallback
from penstock.batch.items import BatchRequest, Item, ItemId, Key
from penstock.batch.outcomes import BatchResponse, FaultKind, ItemFault, ItemOutcome
from penstock.batch.patience import Watched
from penstock.batch.plan import Plan
from penstock.batch.planner import Planner
from penstock.batch.prompt import line
from penstock.batch.reading import Reading
from penstock.batch.schema import ItemSchema
from penstock.batch.stream import outcome_of
from penstock.errors import BadAnswer, LlmError, UsageError
from penstock.events import Event
from penstock.messages import ChatReply, ChatRequest, Choice
from penstock.run import Executor, Run, execute

STAGES = {
    FaultKind.CALL: "asking",
    FaultKind.MISSING: "finding the items",
    FaultKind.TRUNCATED: "reading to the end",
    FaultKind.MALFORMED: "reading the JSON",
    FaultKind.FOREIGN: "matching the keys",
    FaultKind.DUPLICATE: "matching the keys",
    FaultKind.SCHEMA: "checking the schema",
    FaultKind.FALLBACK: "falling back",
}
"""Where an item's part of an answer failed, by what was wrong with it."""
_NOTHING_CAME = (FaultKind.MISSING, FaultKind.CALL, FaultKind.FALLBACK)

Llm: TypeAlias = Executor[ChatRequest, ChatReply]
Value = TypeVar("Value")


class BatchProgress(msgspec.Struct, frozen=True):
    """An item has ended, the `done`th of `total`: its outcome, whose usage and cost are not final (see `Batch`)."""

    done: int
    total: int
    outcome: ItemOutcome


OnProgress: TypeAlias = Callable[[BatchProgress], Awaitable[None] | None]


class BatchInferenceExecutor:
    """Queues agents, and asks for the plans of all that wait, at most `max_batch_size` in one call.

    It is an executor from `BatchRequest` to `BatchResponse` as well, of `llm` and `tool_list`, the acts that a step may
    name: "MoveTo|Attack", or a sequence; none allows all. `kind`, `instructions`, `fallbacks` and `attempts` are those
    of `Batch`.
    The size of calls is learned from one batch to the next. Not to be used from several threads.
    """

    def __init__(  # what a batch is made of  # noqa: PLR0913
        self,
        max_batch_size: int = 10,
        *,
        llm: Llm | None = None,
        tool_list: str | Iterable[str] = (),
        kind: Any = Plan,
        instructions: str = "",
        fallbacks: Sequence[Fallback] = (),
        attempts: int = 3,
    ) -> None:
        self.max_batch_size, self._attempts = max_batch_size, attempts
        self._llm, self._kind, self._schema = llm, kind, ItemSchema(kind, acts=tool_list)
        self._instructions, self._fallbacks = instructions, tuple(fallbacks)
        self._planner = Planner(max_batch_size)
        self._waiting: dict[ItemId, Item] = {}
        self._again: set[ItemId] = set()
        self._made: tuple[Watched, Batch] | None = None

    def queue_agent(self, agent_id: ItemId, snapshot: Any, *, group: str = "") -> None:
        """Let an agent wait for its plan; `snapshot` (JSON) is what the model is told of it.

        Agents of different groups share no prompt. One that waits again because a call failed gets the new snapshot.
        Raises `UsageError` for an id that waits already or that the schema does not allow, and for a snapshot that is
        no JSON.
        """
        item = Item(agent_id, snapshot, group)
        BatchRequest.of([item])
        for key in self._schema.keys([item]):
            line(key, item)
        if agent_id in self._waiting and agent_id not in self._again:
            raise UsageError(f"the agent {agent_id!r} is queued already: execute the batch before you queue it again")
        self._again.discard(agent_id)
        self._waiting[agent_id] = item

    @property
    def is_ready(self) -> bool:
        """Whether a batch pays: two or more agents wait."""
        return len(self._waiting) > 1

    @property
    def batch_size(self) -> int:
        """How many agents wait."""
        return len(self._waiting)

    def flush_batch(self) -> BatchRequest:
        """Take all that wait, in the order of their ids, integers first; nobody waits then."""
        request = BatchRequest.of(self._waiting.values())
        self._waiting.clear()
        self._again.clear()
        return request

    def give_back(self, items: Iterable[Item]) -> None:
        """Let items wait again, before those that came later; one with a newer snapshot keeps that."""
        again = {item.id: item for item in items}
        self._again |= again.keys() - self._waiting.keys()
        self._waiting = {**again, **self._waiting}

    async def execute_batch(
        self,
        llm: Llm | None = None,
        tool_list: str | Iterable[str] | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> BatchResponse:
        """Ask for the plans of all that wait; each is told to `on_progress` with the last character of its element.

        Raises `UsageError` where nobody waits; where no item got a value, `BadAnswer` with the stage and the reason, or
        what the calls raised; and what `on_progress` raises. Then all items wait again; and where only some calls
        failed, theirs do, whose outcomes are without a value.
        """
        schema = self._schema if tool_list is None else ItemSchema(self._kind, acts=tool_list)
        request = self.flush_batch()
        done = 0

        def hear(event: Event) -> Awaitable[None] | None:
            nonlocal done
            if on_progress is None or (outcome := outcome_of(event)) is None:
                return None
            done += 1
            return on_progress(BatchProgress(done, len(request), outcome))

        async def work(asked: BatchRequest, run: Run) -> BatchResponse:
            return await self._ask(asked, run, llm or self._llm, schema)

        lost: Iterable[Item] = request.items
        try:
            response = await execute(work, request, hear)
            failed = {outcome.id for outcome in response.outcomes if _only_calls_failed(outcome)}
            lost = [item for item in request.items if item.id in failed]
        finally:
            self.give_back(lost)
        return response

    async def __call__(self, request: BatchRequest, run: Run, /) -> BatchResponse:
        """Ask for the values of a request, which its caller keeps: `give_back(request.items)` lets them wait again.

        Raises as `execute_batch` does.
        """
        return await self._ask(request, run, self._llm, self._schema)

    async def _ask(self, request: BatchRequest, run: Run, llm: Llm | None, schema: ItemSchema) -> BatchResponse:
        if not request.items:
            raise UsageError("No batch to execute: queue an agent first")
        if llm is None:
            raise UsageError("no LLM to execute a batch with: give one here, or to BatchInferenceExecutor(llm=...)")
        watched, batch = self._batch(llm, schema)
        watched.failures.clear()
        response = await batch(request, run)
        if any(outcome.ok for outcome in response.outcomes):
            return response
        if all(_only_calls_failed(outcome) for outcome in response.outcomes):
            raise (watched.failures or [LlmError(_unusable(response))])[-1]
        raise BadAnswer(_unusable(response))

    def _batch(self, llm: Llm, schema: ItemSchema) -> tuple[Watched, Batch]:
        """What asks this LLM; the last one where that is the same, as it knows what the service takes."""
        if self._made is None or self._made[0].llm is not llm or self._made[1].schema.acts != schema.acts:
            watched, planner = Watched(llm), self._planner
            fallbacks, instructions = self._fallbacks, self._instructions
            made = Batch(
                watched,
                schema,
                instructions=instructions,
                planner=planner,
                fallbacks=fallbacks,
                attempts=self._attempts,
            )
            self._made = watched, made
        return self._made


class BatchResponseParser:
    """Reads the whole text of an answer about a batch, as a call does that streams it."""

    def __init__(self, kind: Any = Plan, *, acts: str | Iterable[str] = ()) -> None:
        self._schema = kind if isinstance(kind, ItemSchema) else ItemSchema(kind, acts=acts)

    def parse_batch_response(self, text: str, request: BatchRequest) -> BatchResponse:
        """What a text says about each item of a request; nothing is asked again.

        Raises `BadAnswer` with the stage and the reason where it gives no item a value.
        """
        values: dict[ItemId, Any] = {}

        async def accept(item: Item, value: Any) -> None:
            values[item.id] = value

        keys: dict[Key, Item] = self._schema.keys(request.items)
        reading = Reading(1, keys, schema=self._schema, accept=accept, weights=[1] * len(keys))
        asked = _at_once(reading.end(ChatReply(choices=(Choice(content=text, finish_reason="stop"),))))
        outcomes = (
            ItemOutcome(
                id=item.id,
                value=values.get(item.id),
                tier=TIERS[len(request) == 1] if item.id in values else "",
                attempts=1,
                faults=tuple(asked.faults.get(item.id, ())),
            )
            for item in request.items
        )
        response = BatchResponse(tuple(outcomes), tuple(asked.foreign))
        if not values:
            raise BadAnswer(_unusable(response))
        return response


def _at_once(work: Coroutine[Any, Any, Value]) -> Value:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        value: Value = end.value
        return value
    raise RuntimeError("what waits for nothing has waited")


def _only_calls_failed(outcome: ItemOutcome) -> bool:
    """Whether an item has no value because nobody ever answered."""
    kinds = {fault.kind for fault in outcome.faults} - {FaultKind.FALLBACK}
    return not outcome.ok and kinds == {FaultKind.CALL}


def _unusable(response: BatchResponse) -> str:
    """Why nothing of an answer can be used: what was wrong first, an element of nobody's where nothing else came."""
    faults = [fault for outcome in response.outcomes for fault in outcome.faults if fault.kind not in _NOTHING_CAME]
    faults += [*response.foreign, *(fault for outcome in response.outcomes for fault in outcome.faults)]
    first = faults[0] if faults else ItemFault(FaultKind.MISSING, "nothing is said", 1)
    said = f" ({first.said!r:.80})" if first.said else ""
    items = "1 item" if len(response) == 1 else f"{len(response)} items"
    return f"Failed to parse the answer about {items}: {STAGES[first.kind]}: {first.message}{said}"
