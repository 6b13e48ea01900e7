"""A task is given to an agent within its bounds, and how it ended is a value, or an error with that value."""

from __future__ import annotations

import asyncio
import gc
import weakref
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from penstock.errors import LimitReached, RateLimited, TaskFailed, TimedOut, UnknownName
from penstock.events import Chunks, Retrying, Used
from penstock.llms.base import BaseLlm
from penstock.llms.demo import Demo
from penstock.messages import ChatReply, ChatRequest, Usage
from penstock.outcome import Finished
from penstock.policies import wrap
from penstock.policies.limit import limit
from penstock.policies.record import Record, record
from penstock.policies.retry import retry
from penstock.policies.timeout import timeout
from penstock.run import Run, execute, execute_stream, run_sync
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds, Budget, Retry
from penstock.tasks.executor import TaskExecutor, TaskRequest
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.results import ExecutionResult, ExecutionStatus
from penstock.tasks.task import AgentTask
from penstock.testing import Heard, ScriptedLlm, no_network

TASK = AgentTask(id="greet", description="Say hello to Ada.")
AT_ONCE = Retry(attempts=3, base_s=0.001, max_s=0.002)


class Priced(BaseLlm):
    """An LLM that takes its time, and whose calls cost something each."""

    provider = "priced"

    def __init__(self, *, seconds: float = 0.0, tokens: int = 10, cost: str | None = "0.25") -> None:
        super().__init__(model="m")
        self.seconds, self.tokens, self.price_usd = seconds, tokens, cost
        self.calls = self.running = 0

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Answer with a verdict that never accepts."""
        self.calls += 1
        self.running += 1
        try:
            await asyncio.sleep(self.seconds)
            reply = await ScriptedLlm('{"unmet": [{"criterion": "more"}]}')(
                request, run.child("inner").telling(_nothing)
            )
            cost = None if self.price_usd is None else Decimal(self.price_usd)
            await run.emit(Used(usage=Usage(self.tokens, 0, self.tokens), model="m", cost=cost))
            return reply
        finally:
            self.running -= 1


async def _nothing(_: object) -> None:
    """Tell nothing."""


def executor(llm: BaseLlm, *agents: AgentConfig, **options: Any) -> TaskExecutor:
    known = agents or (AgentConfig(name="writer", model="m"),)
    return TaskExecutor(AgentRegistry(known), llms=lambda _: llm, **options)


def task(**fields: Any) -> AgentTask:
    return TASK.model_copy(update=fields)


async def test_row_c5_the_demo_llm_does_a_task_without_any_network() -> None:
    agents = AgentRegistry([AgentConfig(name="writer", provider="demo", capabilities=("writing",))])
    with no_network():
        result = await TaskExecutor(agents).execute(task(capabilities=("writing",)))
    assert (result.task, result.agent, result.status) == ("greet", "writer", ExecutionStatus.SUCCESS)
    assert result.output.endswith("hello to Ada.")
    assert (result.ok, result.error, result.attempts, result.cost) == (True, None, 1, Decimal(0))
    assert result.usage.total > 0


async def test_row_c5_times_have_a_zone_and_a_duration() -> None:
    result = await executor(Priced(seconds=0.02)).execute(TASK)
    assert result.started_at is not None
    assert result.completed_at is not None
    assert result.started_at.tzinfo is UTC
    assert result.completed_at - result.started_at >= timedelta(seconds=0.02)
    assert result.duration == pytest.approx(0.02, abs=0.1)


async def test_row_c5_a_result_is_json_and_back() -> None:
    result = await executor(Priced()).execute(TASK)
    assert msgspec.json.decode(msgspec.json.encode(result), type=ExecutionResult) == result
    assert msgspec.convert(msgspec.to_builtins(result), ExecutionResult) == result


async def test_row_c5_a_stream_shows_what_the_agent_tells_at_its_own_path() -> None:
    request = TaskRequest(TASK, results={"facts": "Ada is a person"})
    async with execute_stream(executor(llm := ScriptedLlm("hello Ada")), request) as execution:
        events = [event async for event in execution]
    said = [event for event in events if isinstance(event, Chunks)]
    assert {event.path for event in said} == {"writer"}
    assert "".join(event.text for event in said) == "hello Ada"
    assert execution.content == ""  # it is an agent's, not the task's own
    assert execution.result.output == "hello Ada"
    assert execution.usage == execution.result.usage
    assert isinstance(events[-1], Finished)
    assert "Ada is a person" in str(llm.requests[0].messages)


async def test_row_c5_it_composes_with_policies_on_either_side() -> None:
    records: list[Record] = []
    inner = executor(ScriptedLlm(RateLimited("slow down"), "hello"), policies=[record(records.append)])
    outside = wrap(inner, [timeout(5), retry(base_s=0.001)])
    result = await execute(outside, TaskRequest(TASK))
    assert (result.output, result.attempts) == ("hello", 1)
    assert len(records) == 2


def test_row_c5_it_runs_from_a_script_in_several_loops() -> None:
    one = executor(ScriptedLlm("hello"), AgentConfig(name="writer", model="m", concurrent=1))
    assert [run_sync(one, TaskRequest(TASK)).output for _ in range(2)] == ["hello"] * 2


async def test_row_c5_a_retry_begins_again_although_something_was_told() -> None:
    class Breaking(BaseLlm):
        calls = 0

        async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
            self.calls += 1
            reply = await ScriptedLlm("half an answer")(request, run)
            if self.calls < 3:
                raise TimedOut("nothing more came")
            return reply

    heard = Heard()
    result = await execute(executor(llm := Breaking()), TaskRequest(task(retry=AT_ONCE)), heard)
    assert (result.attempts, llm.calls) == (3, 3)
    assert result.output == "half an answer"
    assert [event.attempt for event in heard.events if isinstance(event, Retrying)] == [2, 3]
    assert result.usage.completion == 3 * 4  # what failed was paid for as well


async def test_row_c5_the_attempts_are_used_up() -> None:
    llm = ScriptedLlm(RateLimited("slow down", provider="scripted"))
    result = await executor(llm).execute(task(retry=AT_ONCE))
    assert (result.status, result.attempts, len(llm.requests)) == (ExecutionStatus.FAILED, 3, 3)
    assert result.error is not None
    assert (result.error.type, result.error.message, result.error.retryable) == ("RateLimited", "slow down", True)


async def test_row_c5_only_the_tasks_own_attempts_are_counted() -> None:
    llm = ScriptedLlm(RateLimited("slow down"), "hello", policies=[retry(base_s=0.001)])
    result = await executor(llm).execute(TASK)
    assert (result.output, result.attempts, len(llm.requests)) == ("hello", 1, 2)


async def test_row_c5_a_task_ends_at_its_time_and_says_so() -> None:
    llm = Priced(seconds=5)
    result = await executor(llm).execute(task(timeout_s=0.05, retry=AT_ONCE))
    assert result.status is ExecutionStatus.FAILED
    assert result.error is not None
    assert (result.error.type, result.error.code) == ("TaskFailed", "timeout")
    assert result.error.message == "not finished within 0.05 s"
    assert (llm.calls, llm.running) == (1, 0)


async def test_row_c5_the_time_is_that_of_all_attempts() -> None:
    llm = ScriptedLlm(RateLimited("slow down", retry_after=0.03))
    result = await executor(llm).execute(task(timeout_s=0.05, retry=Retry(attempts=20, max_s=0.1)))
    assert result.error is not None
    assert result.error.code == "timeout"
    assert 1 < result.attempts < 4


async def test_row_c5_a_cancel_of_the_caller_propagates() -> None:
    llm = Priced(seconds=5)
    working = asyncio.create_task(executor(llm).execute(TASK))
    while not llm.running:
        await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert llm.running == 0


@pytest.mark.parametrize(
    ("budget", "calls", "what"),
    [
        (Budget(tokens=25), 3, "the budget of 25 tokens of the task 'greet' is used up: 30 is spent"),
        (Budget(usd=Decimal("0.50")), 2, "the budget of 0.50 USD of the task 'greet' is used up: 0.50 is spent"),
        (Budget(tokens=1000, usd=Decimal("0.01")), 1, "USD of the task 'greet' is used up"),
    ],
)
async def test_case_16_a_budget_stops_the_next_call_of_a_task(budget: Budget, calls: int, what: str) -> None:
    llm = Priced()
    agents = [AgentConfig(name="writer", model="m"), AgentConfig(name="critic", model="m")]
    spending = task(agent="writer", review="critic", rework=9, budget=budget)
    result = await executor(llm, *agents).execute(spending)
    assert llm.calls == calls
    assert result.error is not None
    assert (result.error.type, result.error.code) == ("LimitReached", "budget")
    assert what in result.error.message
    assert result.cost == Decimal("0.25") * calls


async def test_case_16_a_price_that_nobody_knows_stops_the_next_call() -> None:
    llm = Priced(cost=None)
    agents = [AgentConfig(name="writer", model="m"), AgentConfig(name="critic", model="m")]
    result = await executor(llm, *agents).execute(task(agent="writer", review="critic", budget=Budget(usd=Decimal(1))))
    assert (llm.calls, result.cost) == (1, None)
    assert "the price of the model 'm' is unknown" in str(result.error)


async def test_row_c5_what_a_task_does_not_bound_its_agent_may_and_then_the_caller() -> None:
    slow = AgentConfig(name="writer", model="m", timeout_s=0.04, retry=Retry(attempts=1))
    given = Bounds(timeout_s=0.03, retry=AT_ONCE, budget=Budget(tokens=5))
    errors: list[str] = []
    for agent, spec in ((slow, task(timeout_s=0.02)), (slow, TASK), (AgentConfig(name="writer", model="m"), TASK)):
        result = await executor(Priced(seconds=5), agent).execute(spec, bounds=given)
        errors.append(str(result.error and result.error.message))
    assert errors == [f"not finished within {seconds} s" for seconds in ("0.02", "0.04", "0.03")]


async def test_row_c5_as_an_executor_it_raises_with_the_result_as_details() -> None:
    with pytest.raises(TaskFailed) as caught:
        await execute(executor(Priced(seconds=5)), TaskRequest(task(timeout_s=0.02)))
    assert caught.value.code == "timeout"
    result = msgspec.convert(caught.value.details, ExecutionResult)
    assert (result.task, result.agent, result.status) == ("greet", "writer", ExecutionStatus.FAILED)
    assert result.error is not None
    assert result.error.code == "timeout"


async def test_row_c5_an_llms_error_stays_what_it_is() -> None:
    with pytest.raises(RateLimited, match="slow down"):
        await execute(executor(ScriptedLlm(RateLimited("slow down"))), TaskRequest(TASK))
    refused = executor(ScriptedLlm("hello"), policies=[limit(requests_per_minute=1)])
    await refused.execute(TASK)
    with pytest.raises(LimitReached):
        await execute(refused, TaskRequest(TASK))
    result = await refused.execute(TASK)
    assert result.error is not None
    assert (result.error.type, result.error.code) == ("LimitReached", "requests_per_minute")


async def test_row_c5_a_mistake_in_an_llm_is_the_tasks_failure_and_keeps_its_name() -> None:
    broken = executor(ScriptedLlm(KeyError("sky")))
    result = await broken.execute(TASK)
    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("KeyError", False)
    with pytest.raises(KeyError):
        await execute(broken, TaskRequest(TASK))


async def test_row_c5_an_error_is_gone_once_nobody_holds_it() -> None:
    class Strange(Exception):
        """An error that can be referred to weakly."""

    class Odd(BaseLlm):
        async def generate_content_async(self, messages: Any, **params: Any) -> str:
            raise Strange(messages, params)

    async def failing() -> weakref.ref[BaseException]:
        try:
            await execute(executor(Odd()), TaskRequest(TASK))
        except Strange as error:
            return weakref.ref(error)
        raise AssertionError

    gc.disable()
    try:
        assert (await failing())() is None
    finally:
        gc.enable()


async def test_row_c5_what_a_foreign_error_calls_its_details_is_not_stored() -> None:
    class RpcFailed(Exception):
        code = details = print

    result = await executor(ScriptedLlm(RpcFailed("gone"))).execute(TASK)
    assert result.error is not None
    assert (result.error.type, result.error.message, result.error.details) == ("RpcFailed", "gone", None)
    assert msgspec.json.encode(result)


async def test_row_c5_a_failure_becomes_an_error_with_its_own_code() -> None:
    result = await executor(ScriptedLlm(RateLimited("slow down"))).execute(TASK)
    error = result.failure()
    assert (error.message, error.code, error.retryable) == ("slow down", "agent_failed", True)
    assert msgspec.convert(error.details, ExecutionResult) == result


async def test_row_c5_a_task_within_a_run_speaks_below_it() -> None:
    async def outer(request: AgentTask, run: Run, /) -> ExecutionResult:
        return await executor(ScriptedLlm("hello")).execute(request, run=run.child("step"))

    heard = Heard()
    result = await execute(outer, TASK, heard)
    assert result.output == "hello"
    assert {event.path for event in heard.events if isinstance(event, Chunks | Used)} == {"step/writer"}


async def test_row_c5_a_task_in_no_run_has_a_root_of_its_own() -> None:
    result = await executor(Demo()).execute(TASK, "nobody")
    assert (result.status, result.agent, result.attempts) == (ExecutionStatus.FAILED, "", 0)
    assert result.error is not None
    assert result.error.type == "UnknownName"
    with pytest.raises(UnknownName, match="no agent 'nobody'"):
        await execute(executor(Demo()), TaskRequest(TASK, "nobody"))
