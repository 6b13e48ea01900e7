"""What the executor contract costs: an event told, with policies listening, pulled; a run as such; idle policies.

Pulling is shown twice. An executor that tells without ever waiting fills the buffer, so that one switch of tasks serves
many events; a model's events come one by one, and each of them wakes the reader.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

import uvloop

from benchmarks.table import Figure
from penstock.events import Event, Text
from penstock.policies.breaker import breaker
from penstock.policies.retry import retry
from penstock.run import Executor, Run, execute, execute_stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

TITLE = "The contract, on uvloop (best of the rounds)"
ROUNDS = 7
EVENTS = 100_000
RUNS = 5_000
CALLS = 20_000

WORD = Text("word")


async def speak(times: int, run: Run) -> int:
    for _ in range(times):
        await run.emit(WORD)
    return times


def hear(_: Event) -> None:
    """Listen as cheaply as a function can, so that the contract's own cost is left."""


async def bare(_: Event) -> None:
    """Be what every awaited call costs at least: the floor."""


def listening(executor: Executor[int, int], policies: int) -> Executor[int, int]:
    async def call(request: int, run: Run, /) -> int:
        for _ in range(policies):
            run = run.listening(hear)
        return await executor(request, run)

    return call


async def speak_slowly(times: int, run: Run) -> int:
    for _ in range(times):
        await asyncio.sleep(0)
        await run.emit(WORD)
    return times


async def floor() -> float:
    started = perf_counter()
    for _ in range(EVENTS):
        await bare(WORD)
    return (perf_counter() - started) / EVENTS


def pushed(policies: int) -> Callable[[], Awaitable[float]]:
    executor = listening(speak, policies)

    async def measured() -> float:
        started = perf_counter()
        await execute(executor, EVENTS, hear)
        return (perf_counter() - started) / EVENTS

    return measured


def pulled(executor: Executor[int, int]) -> Callable[[], Awaitable[float]]:
    async def measured() -> float:
        started = perf_counter()
        async with execute_stream(executor, EVENTS) as execution:
            async for _ in execution:
                pass
        return (perf_counter() - started) / EVENTS

    return measured


async def generated() -> float:
    """Pull from a bare async generator, in the same task: the floor of what is pulled."""

    async def words() -> AsyncGenerator[Event, None]:
        for _ in range(EVENTS):
            yield WORD

    started = perf_counter()
    async for _ in words():
        pass
    return (perf_counter() - started) / EVENTS


async def handed_over() -> float:
    """Wake another task for every event, through a bare future: the floor of what is pulled one by one."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[Event] = loop.create_future()

    async def give() -> None:
        for _ in range(EVENTS):
            await asyncio.sleep(0)
            waiting.set_result(WORD)

    started = perf_counter()
    giving = asyncio.create_task(give())
    for _ in range(EVENTS):
        await waiting
        waiting = loop.create_future()
    await giving
    return (perf_counter() - started) / EVENTS


async def one_task() -> float:
    """Start a task that does nothing and wait for it: the floor of a pulled run, which has a task of its own."""
    started = perf_counter()
    for _ in range(RUNS):
        await asyncio.create_task(bare(WORD))
    return (perf_counter() - started) / RUNS


async def one_run() -> float:
    started = perf_counter()
    for _ in range(RUNS):
        await execute(speak, 0, hear)
    return (perf_counter() - started) / RUNS


async def one_pulled_run() -> float:
    started = perf_counter()
    for _ in range(RUNS):
        async with execute_stream(speak, 0) as execution:
            async for _ in execution:
                pass
    return (perf_counter() - started) / RUNS


def called(executor: Executor[int, int]) -> Callable[[], Awaitable[float]]:
    """Call an executor that tells one event, again and again inside one run."""

    async def often(_: int, run: Run, /) -> float:
        started = perf_counter()
        for _ in range(CALLS):
            await executor(1, run)
        return (perf_counter() - started) / CALLS

    async def measured() -> float:
        return await execute(often, 0, hear)

    return measured


async def best(rounds: int) -> dict[str, float]:
    """Microseconds of every case; the cases take turns in each round, so that all meet the same machine."""
    cases: dict[str, Callable[[], Awaitable[float]]] = {
        "floor": floor,
        "pushed": pushed(0),
        "one": pushed(1),
        "two": pushed(2),
        "pulled": pulled(speak),
        "pulled slowly": pulled(speak_slowly),
        "generated": generated,
        "handed over": handed_over,
        "task": one_task,
        "run": one_run,
        "pulled run": one_pulled_run,
        "call": called(speak),
        "retry": called(retry()(speak)),
        "breaker": called(breaker()(speak)),
    }
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, case in cases.items():
            least[name] = min(least[name], await case() * 1e6)
    return least


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in this process; a floor is what asyncio asks for the same work without the contract."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        least = runner.run(best(1 if quick else ROUNDS))
    least_cost, woken, call = least["floor"], least["handed over"], least["call"]
    return [
        Figure("event, pushed", least["pushed"], "us", least_cost, 0.3),
        Figure("event, pushed, 1 policy listening", least["one"], "us", least_cost, 0.45),
        Figure("event, pushed, 2 policies listening", least["two"], "us", least_cost, 0.6),
        Figure("event, pulled, told at once", least["pulled"], "us", least["generated"], 1.5),
        Figure("event, pulled, told one by one", least["pulled slowly"], "us", woken, woken + 1.5),
        Figure("execute, nothing told", least["run"], "us", least_cost),
        Figure("execute_stream, nothing told", least["pulled run"], "us", least["task"]),
        Figure("call with one event, in a retry", least["retry"], "us", call, call + 1),
        Figure("call with one event, in a breaker", least["breaker"], "us", call, call + 1),
    ]
