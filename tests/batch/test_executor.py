"""A queue of agents and one call for all of them: what is asked, what is told on the way, what waits again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from penstock.batch.batch import Batch
from penstock.batch.executor import BatchInferenceExecutor, BatchProgress, BatchResponseParser
from penstock.batch.fallbacks import Fallback
from penstock.batch.items import BatchRequest, Item
from penstock.batch.outcomes import FaultKind
from penstock.batch.plan import Act, Plan
from penstock.errors import BadAnswer, LimitReached, LlmError, RateLimited, Unavailable, UnknownName, UsageError
from penstock.events import Item as Told
from penstock.messages import ChatRequest
from penstock.run import execute, execute_stream
from penstock.testing import Heard, ScriptedLlm
from tests.batch.answering import Do, all_but, cuttings, does, keys, told

pytestmark = pytest.mark.asyncio


def plans(request: ChatRequest) -> str:
    """A plan for each agent that is asked for."""
    return plan_of(*keys(request))


def plan_of(*agents: Any, act: str = "MoveTo") -> str:
    return json.dumps({"plans": [{"agent_id": agent, "steps": [{"act": act}]} for agent in agents]})


def queued(*agents: int | str, size: int = 10, **options: Any) -> BatchInferenceExecutor:
    executor = BatchInferenceExecutor(size, **{"attempts": 1, **options})
    for agent in agents:
        executor.queue_agent(agent, {"hp": 7})
    return executor


def waiting(executor: BatchInferenceExecutor) -> list[Any]:
    return [item.id for item in executor.flush_batch().items]


async def test_row_d1_all_that_wait_get_their_plans_from_one_call() -> None:
    executor = queued(2, 1)
    response = await executor.execute_batch(llm := ScriptedLlm(plans), "MoveTo|Attack")
    assert response.get_plan(1) == Plan(1, [Act("MoveTo")])
    assert (len(response), len(llm.requests), executor.batch_size) == (2, 1, 0)
    with pytest.raises(UnknownName):
        response.get_plan(3)


async def test_row_d1_two_or_more_are_ready() -> None:
    executor, found = BatchInferenceExecutor(), list[tuple[int, bool]]()
    for agent in range(3):
        found.append((executor.batch_size, executor.is_ready))
        executor.queue_agent(agent, None)
    assert [*found, (executor.batch_size, executor.is_ready)] == [(0, False), (1, False), (2, True), (3, True)]
    assert len(executor.flush_batch()) == 3
    assert (executor.batch_size, executor.is_ready) == (0, False)


@pytest.mark.parametrize("tools", ["MoveTo|Attack", "MoveTo | Attack", ["MoveTo", "Attack"], ("Attack", "MoveTo")])
async def test_row_d1_an_act_outside_the_list_is_a_schema_failure_of_that_item(tools: Any) -> None:
    answers = [f'{{"plans": [{plan_of(1)[11:-2]}, {plan_of(2, act="Fly")[11:-2]}]}}', plan_of(2, act="Attack")]
    response = await queued(1, 2).execute_batch(ScriptedLlm(*answers), tools)
    assert [plan.steps[0].act for plan in map(response.get_plan, (1, 2))] == ["MoveTo", "Attack"]
    assert [[fault.kind for fault in outcome.faults] for outcome in response.outcomes] == [[], [FaultKind.SCHEMA]]
    assert "Fly" in response.outcomes[1].faults[0].message


async def test_without_a_list_all_acts_are_good_and_one_call_after_another_has_its_own() -> None:
    llm, executor = ScriptedLlm(plans), queued(1, tool_list="MoveTo")
    assert (await executor.execute_batch(llm)).outcomes[0].ok
    executor.queue_agent(1, None)
    with pytest.raises(BadAnswer, match="checking the schema: step 0 does 'MoveTo', which is none of Attack"):
        await executor.execute_batch(llm, "Attack")
    assert (await executor.execute_batch(llm, "")).outcomes[0].ok


@pytest.mark.parametrize("flushed", [False, True])
async def test_row_d2_with_nobody_queued_there_is_no_batch_to_execute(flushed: bool) -> None:
    executor = queued(*[1] * flushed, llm=ScriptedLlm(plans))
    executor.flush_batch()
    with pytest.raises(UsageError, match="No batch to execute"):
        await executor.execute_batch()
    with pytest.raises(UsageError, match="No batch to execute"):
        await execute(executor, BatchRequest(()))


UNUSABLE = {
    "I cannot do that.": "finding the items: the answer has no element for this item",
    "": "finding the items",
    '{"plans": [{"agent_id": 1, "steps": [': "reading to the end",
    '{"plans": [{"agent_id": 1, "steps": oops}, {"agent_id": 2, "steps": 3}]}': "reading the JSON",
    '{"plans": [{"agent_id": 1, "steps": 3}]}': "checking the schema",
    '{"plans": [{"agent_id": 0, "steps": []}]}': "matching the keys: nobody has the key 0",
}


@pytest.mark.parametrize(("answer", "reason"), UNUSABLE.items())
async def test_row_d2_an_unusable_answer_says_the_stage_and_the_reason_and_all_wait_again(
    answer: str, reason: str
) -> None:
    executor = queued(3, 1, 2)
    with pytest.raises(BadAnswer, match=f"^Failed to parse the answer about 3 items: {reason}"):
        await executor.execute_batch(ScriptedLlm(answer))
    assert waiting(executor) == [1, 2, 3]


@pytest.mark.parametrize(
    "error", [RateLimited("slow down", retry_after=0.01), LimitReached("no money", limit="budget")]
)
async def test_row_d2_when_the_calls_fail_their_error_is_raised_and_all_wait_again(error: Exception) -> None:
    executor = queued(3, 1, 2)
    with pytest.raises(type(error)) as raised:
        await executor.execute_batch(ScriptedLlm(error))
    assert raised.value is error
    assert executor.is_ready
    assert len(await executor.execute_batch(ScriptedLlm(plans))) == 3
    assert executor.batch_size == 0


async def test_an_error_of_an_earlier_batch_is_not_raised_again() -> None:
    executor, llm = queued(1), told(RateLimited("slow down"), ValueError("odd"))
    with pytest.raises(RateLimited):
        await executor.execute_batch(llm)
    with pytest.raises(LlmError, match="about 1 item: asking: ValueError: unexpected") as raised:
        await executor.execute_batch(llm)
    assert type(raised.value) is LlmError


async def test_row_d2_items_of_those_calls_that_failed_wait_again() -> None:
    def answer(request: ChatRequest) -> Any:
        return Unavailable("gone") if {3, 4} & {*keys(request)} else plans(request)

    executor = queued(1, 2, 3, 4, size=2)
    response = await executor.execute_batch(ScriptedLlm(answer))
    assert [outcome.ok for outcome in response.outcomes] == [True, True, False, False]
    assert waiting(executor) == [3, 4]


async def test_an_item_that_a_model_answered_badly_does_not_wait_again() -> None:
    executor = queued(1, 2)
    response = await executor.execute_batch(ScriptedLlm(plan_of(1)))
    assert [outcome.ok for outcome in response.outcomes] == [True, False]
    assert executor.batch_size == 0


async def test_a_cancelled_batch_waits_again_behind_nobody_who_came_later() -> None:
    executor = queued(2, "b", llm=told(Unavailable("x")))
    running = asyncio.Event()

    async def silent(*_: Any) -> Any:
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(executor.execute_batch(silent))
    await running.wait()
    executor.queue_agent(2, "newer")
    executor.queue_agent("a", "newer")
    task.cancel()
    await asyncio.wait([task])
    assert executor.flush_batch().items == (Item(2, "newer"), Item("a", "newer"), Item("b", {"hp": 7}))


async def test_who_waits_again_may_bring_a_newer_snapshot_once() -> None:
    executor = queued(1, 2)
    with pytest.raises(BadAnswer):
        await executor.execute_batch(ScriptedLlm(""))
    executor.queue_agent(1, "newer")
    with pytest.raises(UsageError, match="the agent 1 is queued already"):
        executor.queue_agent(1, "newest")
    assert [item.data for item in executor.flush_batch().items] == ["newer", {"hp": 7}]


async def test_row_d3_whoever_came_first_the_prompt_and_the_order_are_the_same() -> None:
    prompts, orders = set[str](), set[tuple[Any, ...]]()
    for _ in range(50):
        arrivals: list[list[Any]] = [[3, 1, 2, "b", 10], ["b", 10, 2, 1, 3], [1, "b", 3, 10, 2]]
        for agents in arrivals:
            response = await queued(*agents).execute_batch(llm := ScriptedLlm(plans))
            prompts.add(json.dumps(llm.requests[0].messages))
            orders.add(tuple(outcome.id for outcome in response.outcomes))
    assert len(prompts) == 1
    assert orders == {(1, 2, 3, 10, "b")}


@pytest.mark.parametrize("agent", [1, "one"])
async def test_row_d3_an_id_that_waits_already_is_refused(agent: int | str) -> None:
    executor = queued(1, "one", "1")
    with pytest.raises(UsageError, match="is queued already"):
        executor.queue_agent(agent, None)
    assert executor.batch_size == 3


@pytest.mark.parametrize("agent", [None, True, "", 1.5])
async def test_row_d3_what_names_nobody_is_refused(agent: Any) -> None:
    with pytest.raises(UsageError, match="names no item"):
        queued(agent)


async def test_a_bad_snapshot_or_id_is_refused_before_it_spoils_a_batch() -> None:
    executor = queued(1)
    with pytest.raises(UsageError, match="JSON"):
        executor.queue_agent(2, object())
    assert executor.batch_size == 1
    strict = queued(1, kind={"type": "object", "properties": {"agent_id": {"type": "integer"}}})
    with pytest.raises(UsageError, match="integer"):
        strict.queue_agent("two", None)
    assert strict.batch_size == 1


async def test_row_d3_more_than_the_largest_batch_are_split() -> None:
    response = await queued(*range(25)).execute_batch(llm := ScriptedLlm(plans))
    assert [len(keys(request)) for request in llm.requests] == [10, 10, 5]
    assert [outcome.id for outcome in response.outcomes] == [*range(25)]


async def test_row_d7_agents_of_different_groups_share_no_prompt() -> None:
    executor = BatchInferenceExecutor()
    for agent in range(4):
        executor.queue_agent(agent, None, group="ab"[agent % 2])
    await executor.execute_batch(llm := ScriptedLlm(plans))
    assert sorted(keys(request) for request in llm.requests) == [[0, 2], [1, 3]]


async def test_row_d4_progress_is_told_at_the_closing_brace_however_the_answer_is_cut() -> None:
    answer = does(1, 2)
    first = answer.index("}") + 1
    for pieces in cuttings(answer):
        at, heard = list[tuple[int, int, Any]](), [0]

        def note(progress: BatchProgress, at: list[Any] = at, heard: list[int] = heard) -> None:
            assert progress.total == 2
            at.append((heard[0], progress.done, progress.outcome.value))

        class Counted(list[str]):
            def __iter__(self, heard: list[int] = heard) -> Any:
                for piece in list.__iter__(self):
                    heard[0] += len(piece)
                    yield piece

        await queued(1, 2, kind=Do).execute_batch(told(Counted(pieces)), on_progress=note)
        ends = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
        assert at[0] == (next(end for end in ends if end >= first), 1, Do(1, "do 1"))
        assert at[1][1:] == (2, Do(2, "do 2"))


async def test_row_d4_the_first_of_ten_plans_is_there_after_a_tenth_of_the_tokens() -> None:
    plans = [{"agent_id": n, "steps": [{"act": "MoveTo", "args": {"x": n, "y": 7}}] * 8} for n in range(10)]
    text = json.dumps({"plans": plans})
    tokens = [text[at : at + 4] for at in range(0, len(text), 4)]
    heard, at = [0], list[int]()

    class Tokens(list[str]):
        def __iter__(self) -> Any:
            for heard[0], token in enumerate(list.__iter__(self), start=1):
                yield token

    await queued(*range(10)).execute_batch(told(Tokens(tokens)), "MoveTo", on_progress=lambda _: at.append(heard[0]))
    assert at[0] <= len(tokens) / 10 * 1.05
    assert all(here <= len(tokens) * number / 10 * 1.05 for number, here in enumerate(at, start=1))


async def test_a_progress_callback_may_wait_and_what_it_raises_ends_the_batch() -> None:
    seen: list[Any] = []

    async def note(progress: BatchProgress) -> None:
        await asyncio.sleep(0)
        seen.append(progress.outcome.id)
        if len(seen) == 2:
            raise ZeroDivisionError

    executor = queued(1, 2, 3)
    with pytest.raises(ZeroDivisionError):
        await executor.execute_batch(ScriptedLlm(plans), on_progress=note)
    assert (seen, waiting(executor)) == ([1, 2], [1, 2, 3])


async def test_it_is_an_executor_on_the_one_contract() -> None:
    executor = queued(2, 1, llm=ScriptedLlm(plans), tool_list="MoveTo")
    async with execute_stream(executor, executor.flush_batch()) as execution:
        ids = [event.value.id async for event in execution if isinstance(event, Told)]
    assert ids == [1, 2]
    assert execution.result.get_plan(2) == Plan(2, [Act("MoveTo")])
    with pytest.raises(UsageError, match="no LLM"):
        await execute(queued(), BatchRequest.of([Item(1, 1)]))


async def test_its_caller_keeps_the_request_and_can_give_it_back() -> None:
    executor = queued(2, 1, llm=ScriptedLlm(""))
    request = executor.flush_batch()
    with pytest.raises(BadAnswer):
        await execute(executor, request)
    assert executor.batch_size == 0
    executor.give_back(request.items)
    assert waiting(executor) == [1, 2]


async def test_fallbacks_give_what_the_calls_did_not() -> None:
    executor = queued(1, 2, kind=Do, fallbacks=[Fallback(name="wait", default={"do": "wait"})])
    response = await executor.execute_batch(ScriptedLlm(Unavailable("gone")))
    assert [(outcome.value, outcome.tier) for outcome in response.outcomes] == [
        (Do(1, "wait"), "wait"),
        (Do(2, "wait"), "wait"),
    ]
    assert executor.batch_size == 0


@pytest.mark.parametrize("size", [0, -1])
async def test_a_batch_of_nobody_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="max_batch_size"):
        BatchInferenceExecutor(size)


ANSWERS = {
    "good": does(1, 2, 3),
    "seven": f"Sure!\n```json\n{does(3, 1)}\n```",
    "twice": does(1, 1, 2, 0),
    "cut": does(1, 2, 3)[:-30],
    "lines": '{"agent_id": 1, "do": "a"}\n{"agent_id": 2, "do": 3}\n{"agent_id": "3", "do": "c"}',
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_row_d1_a_whole_text_is_read_as_a_call_is(name: str) -> None:
    request = BatchRequest.of(Item(n, None) for n in (3, 1, 2))
    whole = BatchResponseParser(Do).parse_batch_response(ANSWERS[name], request)
    heard = Heard()
    asked = await execute(Batch(told([ANSWERS[name]], Unavailable("no second call")), Do, attempts=1), request, heard)
    assert [outcome.value for outcome in whole.outcomes] == [outcome.value for outcome in asked.outcomes]
    for one, other in zip(whole.outcomes, asked.outcomes, strict=True):
        assert one.faults == tuple(fault for fault in other.faults if fault.call == 1)
    assert whole.foreign == asked.foreign
    assert [outcome.tier for outcome in whole.outcomes if outcome.ok] == ["batch"] * sum(o.ok for o in asked.outcomes)


@pytest.mark.parametrize(("answer", "reason"), UNUSABLE.items())
async def test_row_d2_a_text_that_gives_nothing_fails_to_parse(answer: str, reason: str) -> None:
    parser, request = BatchResponseParser(acts="MoveTo"), BatchRequest.of([Item(n, None) for n in (1, 2, 3)])
    with pytest.raises(BadAnswer, match=f"^Failed to parse the answer about 3 items: {reason}"):
        parser.parse_batch_response(answer, request)


async def test_of_ten_only_the_three_that_are_missing_are_asked_for_again() -> None:
    llm = ScriptedLlm(all_but(2, 5, 9, of=3))
    response = await queued(*range(10), kind=Do).execute_batch(llm)
    assert [keys(request) for request in llm.requests] == [[*range(10)], [2, 5, 9]]
    assert all(outcome.ok for outcome in response.outcomes)
