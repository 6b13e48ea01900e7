"""The laws of every policy: whatever it adds to an executor, these stay as they are without it.

A policy joins with one line in `POLICIES`; each is tried alone, around itself, and in random stacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BadRequest, LimitReached, RateLimited
from penstock.events import Chunks, Event, Reasoning, Retrying, Text, Used
from penstock.messages import Chunk, ChunkChoice, Delta, Usage
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.policies import Policy, wrap
from penstock.policies.balance import Deployment, balance
from penstock.policies.breaker import breaker
from penstock.policies.budget import budget
from penstock.policies.cache import cache
from penstock.policies.fallback import fallback
from penstock.policies.faults import faults
from penstock.policies.idempotency import MemoryLedger, idempotency
from penstock.policies.limit import limit
from penstock.policies.principals import per_principal
from penstock.policies.record import Record, record
from penstock.policies.retry import retry
from penstock.policies.timeout import timeout
from penstock.policies.trace import trace
from penstock.root import ListenerFailed
from penstock.run import LOCAL, Principal, Run, execute, execute_stream
from penstock.testing import Heard
from tests.policies.conftest import Spans

NUMBERS = count()
POLICIES: dict[str, Callable[[], Policy]] = {
    "timeout": lambda: timeout(30),
    "retry": lambda: retry(attempts=3, base_s=0),
    "limit": lambda: limit(requests_per_minute=100_000, tokens_per_minute=100_000, concurrent=100),
    "breaker": lambda: breaker(failures=1000),
    "cache": lambda: cache(ttl_s=30, key=lambda request, _: f"{request} {next(NUMBERS)}"),
    "idempotency": lambda: idempotency(MemoryLedger(), key=lambda *_: str(next(NUMBERS))),
    "fallback": lambda: fallback(("other", _never)),
    "balance": lambda: lambda executor: balance([Deployment("one", executor), Deployment("two", executor, 2.0)]),
    "per principal": lambda: per_principal({"local": [limit(concurrent=100)], "else": [retry(base_s=0)]}),
    "budget": lambda: budget(100_000, estimate=lambda _: 1),
    "faults that are met": lambda: faults("slow 1ms"),
    "faults that are not": lambda: faults("every 999999th call: 500"),
    "record": lambda: record(list[Record]().append),
    "record, awaited": lambda: record(_take_a_while),
    "trace llm": lambda: trace("llm", describe=_described, content=True),
    "trace server": lambda: trace("server", describe=_described),
}

Law: TypeAlias = Callable[[Policy], Awaitable[None]]
EVENTS: tuple[Event, ...] = (
    Retrying(attempt=2, wait_s=0.0, error=RateLimited("slow down")),
    Chunks(views=[Chunk(choices=[ChunkChoice(delta=Delta(role="assistant", content="a"))])], data=b"data: {}\n\n"),
    Reasoning("because"),
    Text("b"),
    Text("c", path="helper"),
    Used(usage=Usage(1, 2, 3), model="m", provider="p", ttft_s=0.1),
)
ERRORS = (
    ValueError("mine"),
    TimeoutError("mine"),
    RateLimited("mine", retry_after=0.0),
    BadRequest("mine"),
    LimitReached("mine", limit="steps"),
)
ELSE = Principal("else", "tenant", frozenset({"chat"}))


async def _take_a_while(_: object) -> None:
    await asyncio.sleep(0.001)


def _described(request: Any, result: Any, *, content: bool) -> dict[str, str]:
    return {"request": str(request)} if content else {}


async def _speak(request: str, run: Run) -> str:
    for event in EVENTS:
        await run.emit(event)
    return request.upper()


async def _never(request: Any, run: Run) -> Any:
    raise AssertionError


async def _wait(request: str, run: Run) -> str:
    await run.emit(Text(request))
    await asyncio.Event().wait()
    raise AssertionError


async def result_and_events_pass_unchanged(policy: Policy) -> None:
    heard = Heard()
    assert await execute(policy(_speak), "x", heard) == "X"
    assert heard.events == [*EVENTS, Finished("X")]
    assert all(told is event for told, event in zip(heard.events, EVENTS, strict=False))


async def an_error_passes_unchanged_and_is_told_once(policy: Policy) -> None:
    for error in ERRORS:

        async def fail(request: str, run: Run, error: Exception = error) -> str:
            await run.emit(Text(request))
            raise error

        heard = Heard()
        with pytest.raises(type(error)) as caught:
            await execute(policy(fail), "x", heard)
        assert caught.value is error
        assert error.__cause__ is None
        assert heard.events == [Text("x"), Failed(error)]


async def a_cancel_passes_and_is_told_once(policy: Policy) -> None:
    heard = Heard()
    task = asyncio.ensure_future(execute(policy(_wait), "x", heard))
    while not heard.events:
        await asyncio.sleep(0)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.events == [Text("x"), Cancelled("enough")]


async def a_consumer_may_leave_early(policy: Policy) -> None:
    outcomes: list[Outcome[Any]] = []
    async with execute_stream(policy(_wait), "x", closing=[outcomes.append]) as execution:
        async for event in execution:
            assert event == Text("x")
            break
    assert outcomes == [Cancelled("the consumer left early")]
    assert execution.content == "x"


async def a_failing_listener_is_neither_caught_nor_retried(policy: Policy) -> None:
    failure, raised = OSError("socket"), list[BaseException]()

    async def tell(request: str, run: Run) -> str:
        try:
            await run.emit(Text(request))
        except BaseException as error:
            raised.append(error)
            raise
        raise AssertionError

    def fail(event: Event) -> None:
        raise failure

    outcomes: list[Outcome[Any]] = []
    with pytest.raises(OSError, match="socket") as caught:
        await execute(policy(tell), "x", fail, closing=[outcomes.append])
    assert caught.value is failure
    assert [type(error) for error in raised] == [ListenerFailed]
    assert outcomes == [Cancelled("listener failed: socket")]


async def fifty_calls_at_once_do_not_mix(policy: Policy) -> None:
    async def answer(request: int, run: Run) -> int:
        for number in range(3):
            await run.emit(Text(f"{request}.{number}"))
            await asyncio.sleep(0)
        if request % 5 == 0:
            raise ValueError(request)
        return request

    executor, listeners = policy(answer), [Heard() for _ in range(50)]
    calls = (execute(executor, number, heard) for number, heard in enumerate(listeners))
    results = await asyncio.gather(*calls, return_exceptions=True)
    for number, (result, heard) in enumerate(zip(results, listeners, strict=True)):
        assert heard.events[:-1] == [Text(f"{number}.{turn}") for turn in range(3)]
        assert (isinstance(result, ValueError) and result.args == (number,)) if number % 5 == 0 else result == number
        assert isinstance(heard.end, Finished if number % 5 else Failed)


async def path_and_principal_are_the_callers(policy: Policy) -> None:
    seen: list[tuple[str, Principal]] = []

    async def look(request: str, run: Run) -> None:
        seen.append((run.path, run.principal))
        await run.child("below").emit(Text(request))

    inner = policy(look)

    async def outer(request: str, run: Run) -> None:
        await inner(request, run)
        await inner(request, run.child("child"))

    heard = Heard()
    await execute(policy(outer), "x", heard, principal=ELSE)
    assert seen == [("", ELSE), ("child", ELSE)]
    assert heard.events[:-1] == [Text("x", path="below"), Text("x", path="child/below")]
    await execute(inner, "x")
    assert seen[-1] == ("", LOCAL)


async def a_call_after_a_failed_one_works(policy: Policy) -> None:
    failing = True

    async def sometimes(request: str, run: Run) -> str:
        if failing:
            raise ValueError(request)
        return await _speak(request, run)

    executor = policy(sometimes)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"):
            await execute(executor, "x")
    failing = False

    def again(_: Any, /) -> Any:
        return executor

    await result_and_events_pass_unchanged(again)


async def an_inner_listener_hears_first_and_an_inner_hook_is_called(policy: Policy) -> None:
    order: list[object] = []

    async def inner(request: str, run: Run) -> str:
        run.closing(order.append)
        await run.listening(lambda _: order.append("inner")).emit(Text(request))
        return request

    await execute(policy(inner), "x", lambda event: order.append(type(event).__name__))
    assert order == ["inner", "Text", Finished("x"), "Finished"]


LAWS: tuple[Law, ...] = (
    result_and_events_pass_unchanged,
    an_error_passes_unchanged_and_is_told_once,
    a_cancel_passes_and_is_told_once,
    a_consumer_may_leave_early,
    a_failing_listener_is_neither_caught_nor_retried,
    fifty_calls_at_once_do_not_mix,
    path_and_principal_are_the_callers,
    a_call_after_a_failed_one_works,
    an_inner_listener_hears_first_and_an_inner_hook_is_called,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", POLICIES)
async def test_policy_keeps_the_law(name: str, law: Law, spans: Spans) -> None:
    await law(POLICIES[name]())
    assert len(spans.started) == len(spans.ended)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", POLICIES)
async def test_policy_around_itself_keeps_the_law(name: str, law: Law, spans: Spans) -> None:
    once, again = POLICIES[name](), POLICIES[name]()
    await law(lambda executor: once(again(once(executor))))
    assert len(spans.started) == len(spans.ended)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(sorted(POLICIES)), min_size=2, max_size=6),
    law=st.sampled_from(LAWS),
)
def test_stack_in_any_order_keeps_the_law(names: list[str], law: Law, spans: Spans) -> None:
    async def check() -> None:
        policies = [POLICIES[name]() for name in names]
        await law(lambda executor: wrap(executor, policies))

    asyncio.run(check())
    assert len(spans.started) == len(spans.ended)
