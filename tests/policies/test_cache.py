"""`cache`: what a hit tells and returns, who shares a call, and what is kept for how long."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.events import Chunks, Reasoning, Retrying, Text, Used
from penstock.messages import ChatRequest, Usage
from penstock.outcome import Finished
from penstock.policies import cache as cache_module
from penstock.policies.cache import by_caller, cache
from penstock.run import LOCAL, Principal, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm
from tests.policies.conftest import Clock

ALICE, BOB, CAROL = Principal("alice", "one"), Principal("bob", "one"), Principal("alice", "two")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(monkeypatch, cache_module)


class Counted:
    """An executor that counts its calls, tells of each, and waits for `go` where it is given one."""

    def __init__(self, go: asyncio.Event | None = None) -> None:
        self.calls: list[Any] = []
        self.go = go

    async def __call__(self, request: Any, run: Run, /) -> Any:
        self.calls.append(request)
        await run.emit(Text(f"{request}?"))
        if self.go is not None:
            await self.go.wait()
        if isinstance(request, Exception):
            raise request
        return [request, len(self.calls)]


async def test_row_b8_a_hit_is_the_answer_again_without_a_call() -> None:
    executor = cache(ttl_s=30)(counted := Counted())
    first, again = Heard(), Heard()
    assert await execute(executor, "x", first) == ["x", 1]
    assert await execute(executor, "x", again) == ["x", 1]
    assert first.events == again.events == [Text("x?"), Finished(["x", 1])]
    assert counted.calls == ["x"]
    assert await execute(executor, "y") == ["y", 2]


async def test_a_chat_answer_is_streamed_again_and_costs_nothing() -> None:
    llm = ScriptedLlm("It is noon.", policies=[cache(ttl_s=30)])
    request = ChatRequest.of("What time is it?")
    told = []
    for tokens in (5, 0):
        async with execute_stream(llm, request) as execution:
            told.append([event async for event in execution if isinstance(event, Chunks)])
        assert execution.content == execution.result.content == "It is noon."
        assert execution.usage.total == tokens
    assert told[0] == told[1]
    assert len(llm.requests) == 1


async def test_only_the_answer_is_told_again_and_only_what_the_executor_said_itself() -> None:
    async def speaks(request: str, run: Run) -> str:
        await run.emit(Retrying(attempt=2, wait_s=0.0, error=OSError("x")))
        await run.emit(Reasoning("because"))
        await run.child("below").emit(Text("elsewhere"))
        await run.emit(Used(usage=Usage(1, 2, 3)))
        await run.emit(Text(request))
        return request

    executor = cache(ttl_s=30)(speaks)

    async def parent(request: str, run: Run) -> str:
        return await executor(request, run.child("part"))

    await execute(parent, "x")
    heard = Heard()
    await execute(executor, "x", heard)
    assert heard.events == [Reasoning("because"), Text("x"), Finished("x")]
    await execute(parent, "x", heard := Heard())
    assert heard.events[:-1] == [Reasoning("because", path="part"), Text("x", path="part")]


async def test_what_a_caller_does_to_an_answer_changes_no_other_one() -> None:
    executor = cache(ttl_s=30)(Counted())
    for _ in range(3):
        answer = await execute(executor, "x")
        assert answer == ["x", 1]
        answer.append("mine")
    llm = ScriptedLlm("noon", policies=[cache(ttl_s=30)])
    for _ in range(3):
        async with execute_stream(llm, ChatRequest.of("What time is it?")) as execution:
            async for event in execution:
                if isinstance(event, Chunks) and event.views[0].choices[0].delta.content:
                    assert event.text == "noon"
                    event.views[0].choices[0].delta.content = "mine"


async def test_a_result_that_cannot_be_copied_is_shared() -> None:
    async def lock(request: str, run: Run) -> Any:
        return threading.Lock()

    executor = cache(ttl_s=30)(lock)
    assert await execute(executor, "x") is await execute(executor, "x")


async def test_nobody_is_given_the_answer_of_another_principal_or_tenant() -> None:
    executor = cache(ttl_s=30)(Counted())
    answers = [await execute(executor, "x", principal=who) for who in (ALICE, BOB, CAROL, LOCAL, ALICE)]
    assert [number for _, number in answers] == [1, 2, 3, 4, 1]


@dataclass(frozen=True)
class Other:
    """A request of another type with the same content."""

    model: str


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"1": 1}, {1: 1}, False),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": float("nan")}, {"a": None}, False),
        (b"x", "x", False),
        (Other("m"), {"model": "m"}, False),
        (ChatRequest.of("x", temperature=0), ChatRequest.of("x", temperature=0), True),
        (ChatRequest.of("x", temperature=0), ChatRequest.of("x", temperature=1), False),
        (ChatRequest.of("x"), ChatRequest.of("x", stream=False), False),
    ],
)
async def test_equal_requests_have_equal_keys_and_others_do_not(one: Any, two: Any, same: bool) -> None:
    async def key_of(request: Any, run: Run) -> Any:
        return by_caller(request, run)

    assert (await execute(key_of, one) == await execute(key_of, two)) is same


@pytest.mark.parametrize("request_", [object(), {"a": 2**70}, "\ud800", threading.Lock()])
async def test_a_request_that_is_not_plain_data_is_not_kept(request_: Any) -> None:
    executor = cache(ttl_s=30)(counted := Counted())
    for _ in range(2):
        await execute(executor, request_)
    assert len(counted.calls) == 2


async def test_the_key_is_the_callers_choice_and_none_is_not_kept() -> None:
    executor = cache(ttl_s=30, key=lambda request, _: None if request < 0 else request % 10)(counted := Counted())
    for request in (3, 13, 4, -1, -1):
        await execute(executor, request)
    assert counted.calls == [3, 4, -1, -1]


async def test_an_answer_is_kept_for_its_time(clock: Clock) -> None:
    executor = cache(ttl_s=30)(counted := Counted())
    for gap, calls in ((0.0, 1), (29.9, 1), (0.1, 2), (29.9, 2)):
        clock.now += gap
        await execute(executor, "x")
        assert len(counted.calls) == calls


async def test_the_answer_whose_use_is_longest_ago_makes_room() -> None:
    executor = cache(ttl_s=30, max_entries=2)(counted := Counted())
    for request in ("a", "b", "a", "c", "a", "b"):
        await execute(executor, request)
    assert counted.calls == ["a", "b", "c", "b"]


async def test_a_failure_is_not_kept() -> None:
    executor = cache(ttl_s=30, key=lambda *_: 1)(counted := Counted())
    with pytest.raises(OSError, match="x"):
        await execute(executor, OSError("x"))
    assert await execute(executor, "y") == ["y", 2]
    assert len(counted.calls) == 2


async def test_executors_with_the_same_policy_share_the_room_and_not_the_answers() -> None:
    shared = cache(ttl_s=30, max_entries=1)
    one, two = Counted(), Counted()
    first, second = shared(one), shared(two)
    await execute(first, "x")
    await execute(second, "x")
    assert (one.calls, two.calls) == (["x"], ["x"])
    await execute(first, "x")
    assert one.calls == ["x", "x"]


async def test_row_b8_a_hundred_at_once_are_one_call_and_each_hears_all_of_it() -> None:
    executor = cache(ttl_s=30)(counted := Counted(asyncio.Event()))
    assert counted.go is not None
    heard = [Heard() for _ in range(100)]
    calls = [asyncio.ensure_future(execute(executor, "x", one)) for one in heard]
    await asyncio.sleep(0)
    counted.go.set()
    assert await asyncio.gather(*calls) == [["x", 1]] * 100
    assert all(one.events == [Text("x?"), Finished(["x", 1])] for one in heard)
    assert counted.calls == ["x"]


async def test_those_who_wait_share_the_failure() -> None:
    executor = cache(ttl_s=30, key=lambda *_: 1)(counted := Counted(asyncio.Event()))
    assert counted.go is not None
    calls = [asyncio.ensure_future(execute(executor, OSError(number))) for number in range(5)]
    await asyncio.sleep(0)
    counted.go.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(error) for error in errors] == ["0"] * 5
    assert len(counted.calls) == 1


@pytest.mark.parametrize("how", ["cancelled", "listener"])
async def test_when_the_first_caller_leaves_the_next_one_calls(how: str) -> None:
    executor = cache(ttl_s=30)(counted := Counted(asyncio.Event()))
    assert counted.go is not None
    failing = asyncio.Event()

    async def fail(event: object) -> None:
        await failing.wait()
        raise OSError("gone")

    first = asyncio.ensure_future(execute(executor, "x", fail if how == "listener" else None))
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(execute(executor, "x")) for _ in range(3)]
    await asyncio.sleep(0)
    (failing.set if how == "listener" else first.cancel)()
    await asyncio.wait([first])
    counted.go.set()
    assert await asyncio.gather(*others) == [["x", 2]] * 3
    assert first.cancelled() or isinstance(first.exception(), OSError)
    assert len(counted.calls) == 2


@pytest.mark.parametrize(("ttl_s", "max_entries"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (1.0, 0)])
def test_a_cache_that_keeps_nothing_is_refused(ttl_s: float, max_entries: int) -> None:
    with pytest.raises(UsageError, match="give more than 0 seconds and at least 1 entry"):
        cache(ttl_s=ttl_s, max_entries=max_entries)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_cancels_hurt_nobody_else_and_never_two_calls_run_at_once(seed: int) -> None:
    async def check() -> None:
        chance, inside = random.Random(seed), dict[int, int]()

        async def works(request: int, run: Run) -> int:
            assert inside.setdefault(request, 0) == 0
            inside[request] += 1
            try:
                for _ in range(chance.randrange(4)):
                    await run.emit(Text(str(request)))
                    await asyncio.sleep(0)
                return request
            finally:
                inside[request] -= 1

        executor = cache(ttl_s=1e-9 if seed % 2 else 30, max_entries=2)(works)
        calls = []
        for number in range(30):
            calls.append(asyncio.ensure_future(execute(executor, number % 3)))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if chance.random() < 0.4:
                chance.choice(calls).cancel()
        cancelled = {number for number, call in enumerate(calls) if call.cancelling()}
        for number, call in enumerate(calls):
            with suppress(asyncio.CancelledError):
                assert await call == number % 3
            assert not call.cancelled() or number in cancelled

    asyncio.run(check())
