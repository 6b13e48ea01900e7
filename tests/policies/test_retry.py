"""`retry`: how often, after how long, and never once a part of the answer was told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from penstock.errors import BadRequest, LimitReached, PenstockError, RateLimited, TimedOut, Unauthorized, Unavailable
from penstock.events import Chunks, Event, Reasoning, Retrying, Text, Used
from penstock.messages import ChatRequest, Chunk, Usage
from penstock.outcome import Failed, Finished
from penstock.policies.limit import limit
from penstock.policies.retry import retry
from penstock.policies.timeout import timeout
from penstock.run import Executor, Run, execute
from penstock.testing import Heard, ScriptedLlm


class Flaky:
    """Fails `times` times with the error, after telling `events`; then it answers."""

    def __init__(
        self, times: int, error: Callable[[], Exception] = lambda: Unavailable("gone"), *events: Event
    ) -> None:
        self.times, self.error, self.events = times, error, events
        self.calls = 0

    async def __call__(self, request: str, run: Run, /) -> str:
        self.calls += 1
        if self.calls <= self.times:
            for event in self.events:
                await run.emit(event)
            raise self.error()
        await run.emit(Text(request))
        return request


@pytest.mark.parametrize(
    "error", [RateLimited, Unavailable, TimedOut, lambda text: PenstockError(text, retryable=True)]
)
async def test_case_09_a_failure_in_passing_is_repeated_and_the_client_sees_one_answer(error: Any) -> None:
    flaky, heard = Flaky(2, lambda: error("soon")), Heard()
    assert await execute(retry(attempts=3, base_s=0)(flaky), "hi", heard) == "hi"
    assert flaky.calls == 3
    assert [type(event) for event in heard.events] == [Retrying, Retrying, Text, Finished]
    assert [event.attempt for event in heard.events if isinstance(event, Retrying)] == [2, 3]
    assert heard.text == "hi"


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_case_09_at_most_the_configured_attempts_and_the_last_error_is_raised(attempts: int) -> None:
    errors: list[Exception] = []

    def error() -> Exception:
        errors.append(Unavailable(f"gone {len(errors)}"))
        return errors[-1]

    heard = Heard()
    flaky = Flaky(100, error)
    with pytest.raises(Unavailable) as caught:
        await execute(retry(attempts=attempts, base_s=0)(flaky), "hi", heard)
    assert flaky.calls == attempts
    assert caught.value is errors[-1]
    assert heard.end == Failed(errors[-1])
    assert [event.error for event in heard.events if isinstance(event, Retrying)] == errors[:-1]


async def waits_of(calls: int, **options: Any) -> list[list[float]]:
    """The announced waits before each further attempt, over many calls that never succeed."""
    executor = retry(**options)(Flaky(10**9))

    async def call() -> list[float]:
        heard = Heard()
        with pytest.raises(Unavailable):
            await execute(executor, "hi", heard)
        return [event.wait_s for event in heard.events if isinstance(event, Retrying)]

    return [list(row) for row in zip(*await asyncio.gather(*(call() for _ in range(calls))), strict=True)]


async def test_case_09_back_off_doubles_and_has_full_jitter() -> None:
    random.seed(9)
    for number, waits in enumerate(await waits_of(400, attempts=4, base_s=0.002)):
        bound = 0.002 * 2**number
        assert all(0 <= wait <= bound for wait in waits)
        assert min(waits) < 0.05 * bound
        assert max(waits) > 0.95 * bound
        assert 0.45 * bound < sum(waits) / len(waits) < 0.55 * bound


async def test_back_off_stays_below_its_maximum() -> None:
    random.seed(9)
    *_, last = await waits_of(200, attempts=6, base_s=0.001, max_s=0.003)
    assert 0.0028 < max(last) <= 0.003


async def test_case_09_retry_after_is_waited() -> None:
    flaky, heard = Flaky(1, lambda: RateLimited("slow down", retry_after=0.2)), Heard()
    began = monotonic()
    await execute(retry(base_s=0)(flaky), "hi", heard)
    assert monotonic() - began >= 0.18
    assert isinstance(heard.events[0], Retrying)
    assert heard.events[0].wait_s == 0.2


async def test_retry_after_zero_is_waited_as_it_is() -> None:
    flaky, heard = Flaky(2, lambda: RateLimited("slow down", retry_after=0.0)), Heard()
    async with asyncio.timeout(5):
        await execute(retry(base_s=1000, max_s=1000)(flaky), "hi", heard)
    assert [event.wait_s for event in heard.events if isinstance(event, Retrying)] == [0.0, 0.0]


async def test_a_wait_longer_than_the_maximum_is_not_begun() -> None:
    flaky, heard = Flaky(1, lambda: RateLimited("tomorrow", retry_after=30.5)), Heard()
    with pytest.raises(RateLimited, match="tomorrow"):
        await execute(retry(max_s=30)(flaky), "hi", heard)
    assert flaky.calls == 1
    assert [type(event) for event in heard.events] == [Failed]


@pytest.mark.parametrize(
    "error",
    [
        BadRequest("no"),
        Unauthorized("no"),
        ValueError("no"),
        OSError("no"),
        LimitReached("no", limit="concurrent", retry_after=0.0),
        PenstockError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_case_09_what_cannot_pass_is_tried_once(error: Exception) -> None:
    flaky, heard = Flaky(1, lambda: error), Heard()
    with pytest.raises(type(error), match="no"):
        await execute(retry(base_s=0)(flaky), "hi", heard)
    assert flaky.calls == 1
    assert heard.events == [Failed(error)]


async def test_a_refused_call_of_a_limit_inside_is_not_repeated() -> None:
    flaky = Flaky(0)
    executor = retry(base_s=0)(limit(requests_per_minute=1)(flaky))
    await execute(executor, "hi")
    with pytest.raises(LimitReached):
        await execute(executor, "hi")
    assert flaky.calls == 1


PART = Chunks(views=[Chunk(choices=[])])


@pytest.mark.parametrize("path", ["", "child"])
@pytest.mark.parametrize("said", [Text("par"), Reasoning("hm"), PART], ids=lambda event: type(event).__name__)
async def test_case_09_never_a_second_start_after_a_part_was_told(said: Event, path: str) -> None:
    async def fail(request: str, run: Run) -> str:
        calls.append(request)
        await (run.child(path) if path else run).emit(said)
        raise Unavailable("cut")

    calls: list[str] = []
    heard = Heard()
    with pytest.raises(Unavailable, match="cut"):
        await execute(retry(base_s=0)(fail), "hi", heard)
    assert calls == ["hi"]
    assert len(heard.events) == 2


async def test_a_part_told_by_a_later_attempt_is_final_too() -> None:
    async def fail(request: str, run: Run) -> str:
        calls.append(request)
        if len(calls) == 2:
            await run.emit(Text("par"))
        raise Unavailable("cut")

    calls: list[str] = []
    with pytest.raises(Unavailable):
        await execute(retry(attempts=5, base_s=0)(fail), "hi")
    assert len(calls) == 2


async def test_usage_of_a_failed_attempt_does_not_hinder_the_next() -> None:
    flaky, heard = Flaky(1, lambda: Unavailable("cut"), Used(usage=Usage(1, 0, 1))), Heard()
    assert await execute(retry(base_s=0)(flaky), "hi", heard) == "hi"
    assert [type(event) for event in heard.events] == [Used, Retrying, Text, Finished]


async def test_a_cancel_while_it_waits_is_a_cancel() -> None:
    flaky, heard = Flaky(1, lambda: RateLimited("later", retry_after=20.0)), Heard()
    task = asyncio.ensure_future(execute(retry()(flaky), "hi", heard))
    while not heard.events:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert flaky.calls == 1


async def test_an_error_raised_over_a_cancel_is_final_and_an_older_cancel_does_not_matter() -> None:
    async def stuck(request: str, run: Run) -> str:
        calls.append(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Unavailable("stopped") from None
        raise AssertionError

    async def cleans_up(request: str, run: Run) -> str:
        try:
            return await retry(base_s=0)(stuck)(request, run)
        except Unavailable:
            return await retry(base_s=0)(flaky)("after it", run)

    calls: list[str] = []
    flaky = Flaky(2)
    task = asyncio.ensure_future(execute(cleans_up, "hi"))
    while not calls:
        await asyncio.sleep(0)
    task.cancel()
    assert await task == "after it"
    assert (calls, flaky.calls) == (["hi"], 3)


async def test_a_timeout_inside_is_retried_and_one_outside_ends_all_attempts() -> None:
    async def stuck(request: str, run: Run) -> str:
        calls.append(request)
        await asyncio.Event().wait()
        raise AssertionError

    calls: list[str] = []
    inside: Executor[str, str] = retry(attempts=3, base_s=0)(timeout(0.01)(stuck))
    with pytest.raises(TimedOut):
        await execute(inside, "hi")
    assert len(calls) == 3
    outside: Executor[str, str] = timeout(0.01)(retry(attempts=3, base_s=0)(stuck))
    with pytest.raises(TimedOut):
        await execute(outside, "hi")
    assert len(calls) == 4


async def test_an_llm_with_the_policy_is_asked_again() -> None:
    llm = ScriptedLlm(Unavailable("a"), RateLimited("b", retry_after=0.0), "fine", policies=[retry(base_s=0)])
    reply = await execute(llm, ChatRequest.of("hi"))
    assert reply.content == "fine"
    assert len(llm.requests) == 3
