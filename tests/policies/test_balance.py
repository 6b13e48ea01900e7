"""`balance`: who gets a call, who is left alone and for how long, and what a call does when one fails."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import (
    BadAnswer,
    BadRequest,
    LimitReached,
    PenstockError,
    RateLimited,
    TimedOut,
    Unauthorized,
    Unavailable,
    UsageError,
)
from penstock.events import Switched, Text
from penstock.outcome import Failed, Finished
from penstock.policies import balance as balance_module
from penstock.policies.balance import Deployment, balance
from penstock.policies.breaker import breaker
from penstock.policies.retry import retry
from penstock.run import Executor, Run, execute
from penstock.testing import Heard
from tests.policies.conftest import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(monkeypatch, balance_module)


class Site:
    """A deployment that answers with its name, or fails with `error` while it has one, after telling `told`."""

    def __init__(self, name: str, error: Exception | None = None, told: str = "") -> None:
        self.name, self.error, self.told = name, error, told
        self.calls = 0

    async def __call__(self, request: Any, run: Run, /) -> str:
        self.calls += 1
        if isinstance(request, asyncio.Future):
            await request
        if self.told:
            await run.emit(Text(self.told))
        if self.error is not None:
            raise self.error
        return self.name


def over(*sites: Site, cooldown_s: float = 30.0, weights: str = "1111") -> Executor[Any, str]:
    """The sites, balanced; each digit of `weights` is one's weight."""
    deployments = [Deployment(site.name, site, float(weight)) for site, weight in zip(sites, weights, strict=False)]
    return balance(deployments, cooldown_s=cooldown_s)


async def answers(executor: Executor[Any, str], calls: int) -> str:
    """The names of those who answered, in one word."""
    return "".join([await execute(executor, "x") for _ in range(calls)])


async def error_of(executor: Executor[Any, str]) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await execute(executor, "x")
    return caught.value


async def test_calls_are_shared_by_weight_and_the_turns_of_the_heavy_are_spread() -> None:
    executor = over(Site("a"), Site("b"), Site("c"), weights="511")
    assert await answers(executor, 14) == "aabacaa" * 2
    even = await answers(over(Site("a"), Site("b"), Site("c")), 9)
    assert even == "abc" * 3


async def test_a_hundred_calls_at_once_are_shared_as_well() -> None:
    executor = over(Site("a"), Site("b"), weights="31")
    names = await asyncio.gather(*(execute(executor, "x") for _ in range(100)))
    assert Counter(names) == {"a": 75, "b": 25}


@pytest.mark.parametrize("error", [RateLimited("no"), Unavailable("no"), TimedOut("no"), Unauthorized("no")], ids=repr)
async def test_one_that_fails_is_left_alone_for_a_while_and_nobody_notices(error: Exception, clock: Clock) -> None:
    executor, heard = over(bad := Site("a", error), Site("b"), cooldown_s=30), Heard()
    assert await execute(executor, "x", heard) == "b"
    assert heard.events == [Switched(to="b", error=error), Finished("b")]
    assert await answers(executor, 5) == "bbbbb"
    clock.now += 29.9
    assert await answers(executor, 5) == "bbbbb"
    assert bad.calls == 1
    clock.now += 0.2
    bad.error = None
    assert sorted(await answers(executor, 10)) == list("aaaaabbbbb")


@pytest.mark.parametrize("retry_after", [0.0, 2.0, 600.0])
async def test_it_is_left_alone_for_as_long_as_it_asks(retry_after: float, clock: Clock) -> None:
    executor = over(bad := Site("a", RateLimited("slow down", retry_after=retry_after)), Site("b"))
    assert await answers(executor, 1) == "b"
    bad.error = None
    if retry_after:
        clock.now += retry_after - 0.1
        assert await answers(executor, 4) == "bbbb"
        clock.now += 0.2
    assert "a" in await answers(executor, 2)


@pytest.mark.parametrize("error", [BadRequest("no"), LimitReached("no", limit="steps"), ValueError("no")], ids=repr)
async def test_what_the_caller_did_wrong_is_raised_and_cools_nobody(error: Exception) -> None:
    executor = over(bad := Site("a", error), other := Site("b"))
    with pytest.raises(type(error)):
        await execute(executor, "x")
    assert other.calls == 0
    bad.error = None
    assert await answers(executor, 4) == "baba"


async def test_an_answer_that_cannot_be_read_is_asked_for_elsewhere_and_cools_nobody() -> None:
    executor = over(bad := Site("a", BadAnswer("garbage")), Site("b"))
    assert await answers(executor, 1) == "b"
    bad.error = None
    assert "a" in await answers(executor, 2)


async def test_case_09_what_one_has_no_words_for_is_asked_elsewhere_and_cools_nobody(clock: Clock) -> None:
    wordless = BadRequest("no", code="unsupported_parameter")
    executor = over(Site("a", wordless), second := Site("b"))
    assert await answers(executor, 4) == "bbbb"
    second.error = Unavailable("down")
    assert [await error_of(executor) for _ in range(2)] == [second.error] * 2
    second.error = wordless
    clock.now += 31
    assert await error_of(executor) is wordless
    down = Unavailable("down")
    assert await error_of(over(Site("a", down), Site("b", wordless))) is down


async def test_case_09_after_the_first_byte_no_other_is_asked() -> None:
    error, heard = Unavailable("cut"), Heard()
    executor = over(Site("a", error, "par"), other := Site("b"))
    with pytest.raises(Unavailable) as caught:
        await execute(executor, "x", heard)
    assert caught.value is error
    assert (other.calls, heard.events) == (0, [Text("par"), Failed(error)])
    assert await answers(executor, 3) == "bbb"


async def test_each_is_tried_once_a_call_and_the_last_error_carries_the_others(clock: Clock) -> None:
    sites = [Site(name, Unavailable(f"{name} is down")) for name in "abc"]
    error = await error_of(over(*sites))
    assert [site.calls for site in sites] == [1, 1, 1]
    assert str(error) == "c is down"
    assert error.__notes__ == [
        "before it, 'a' failed: Unavailable: a is down",
        "before it, 'b' failed: Unavailable: b is down",
    ]


async def test_when_all_cool_by_our_own_guess_the_one_that_is_due_first_is_tried(clock: Clock) -> None:
    sites = [Site(name, Unavailable(f"{name} is down")) for name in "abc"]
    executor = over(*sites)
    await error_of(executor)
    for name in "abca":
        clock.now += 1
        assert str(await error_of(executor)) == f"{name} is down"
    assert [site.calls for site in sites] == [3, 2, 2]
    for site in sites:
        site.error = None
    clock.now += 1
    assert await answers(executor, 3) == "bbb"  # it has answered, so it does not cool any more; the others do
    sites[1].error = BadAnswer("garbage")
    assert await answers(executor, 1) == "c"
    sites[1].error = None
    clock.now += 30
    assert all(9 <= count <= 11 for count in Counter(await answers(executor, 30)).values())


async def test_the_last_one_that_cools_is_tried_before_a_call_fails(clock: Clock) -> None:
    executor = over(first := Site("a", Unavailable("a")), second := Site("b"))
    assert await answers(executor, 1) == "b"
    first.error, second.error = None, Unavailable("b")
    assert await answers(executor, 1) == "a"


async def test_where_each_asked_to_wait_nobody_is_called_and_the_refusal_says_for_how_long(clock: Clock) -> None:
    sites = [
        Site("a", RateLimited("slow down", retry_after=20.0)),
        Site("b", RateLimited("slow down", retry_after=5.0)),
    ]
    executor = over(*sites)
    assert (await error_of(executor)).retry_after == 5.0
    clock.now += 1
    refusal = await error_of(executor)
    assert isinstance(refusal, Unavailable)
    assert (refusal.retryable, refusal.retry_after) == (True, 4.0)
    assert str(refusal) == "not called: each deployment asked to wait, the first for 4.0 s"
    assert [site.calls for site in sites] == [1, 1]
    clock.now += 4
    sites[1].error = None
    assert await answers(executor, 3) == "bbb"


async def test_a_retry_around_it_waits_only_for_the_first_that_is_due() -> None:
    sites = [Site("a", RateLimited("x", retry_after=0.02)), Site("b", RateLimited("x", retry_after=600.0))]

    async def mended(request: Any, run: Run) -> str:
        if sites[0].calls:
            sites[0].error = None
        return await sites[0](request, run)

    heard = Heard()
    executor = balance([Deployment("a", mended), Deployment("b", sites[1])])
    assert await execute(retry(attempts=2)(executor), "x", heard) == "a"
    assert [type(event).__name__ for event in heard.events] == ["Switched", "Retrying", "Finished"]


async def test_a_retry_inside_it_tries_one_deployment_again_before_the_next() -> None:
    bad, good, heard = Site("a", Unavailable("down")), Site("b"), Heard()
    again = retry(attempts=3, base_s=0)
    executor = balance([Deployment("a", again(bad)), Deployment("b", again(good))])
    assert await execute(executor, "x", heard) == "b"
    assert (bad.calls, good.calls) == (3, 1)
    assert [type(event).__name__ for event in heard.events] == ["Retrying", "Retrying", "Switched", "Finished"]
    assert await answers(executor, 4) == "bbbb"


async def test_an_open_breaker_inside_it_is_passed_over_at_once(clock: Clock) -> None:
    bad, good = Site("a", BadAnswer("garbage")), Site("b")
    executor = balance([Deployment("a", breaker(failures=1, reset_s=5)(bad)), Deployment("b", good)])
    assert await answers(executor, 8) == "b" * 8
    assert bad.calls == 1


@pytest.mark.parametrize("over_the_cancel", [False, True])
async def test_a_cancelled_call_decides_nothing(*, over_the_cancel: bool) -> None:
    async def stuck(request: Any, run: Run) -> str:
        if request != "stuck":
            return "a"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if over_the_cancel:
                raise Unavailable("stopped") from None
            raise
        raise AssertionError

    executor = balance([Deployment("a", stuck), Deployment("b", other := Site("b"))])
    call = asyncio.ensure_future(execute(executor, "stuck"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert other.calls == 0
    assert await answers(executor, 4) == "baba"


async def test_a_late_success_does_not_end_what_has_begun_since(clock: Clock) -> None:
    executor, late = over(bad := Site("a"), Site("b")), asyncio.get_running_loop().create_future()
    call = asyncio.ensure_future(execute(executor, late))
    await asyncio.sleep(0)
    await answers(executor, 1)
    bad.error = Unavailable("down")
    assert await answers(executor, 1) == "b"
    bad.error = None
    late.set_result(None)
    assert await call == "a"
    assert await answers(executor, 3) == "bbb"


async def test_a_late_failure_does_not_shorten_what_was_asked_for(clock: Clock) -> None:
    executor, late = over(bad := Site("a"), Site("b")), asyncio.get_running_loop().create_future()
    call = asyncio.ensure_future(execute(executor, late))
    await asyncio.sleep(0)
    await answers(executor, 1)
    bad.error = RateLimited("x", retry_after=100.0)
    await answers(executor, 1)
    bad.error = RateLimited("x", retry_after=1.0)
    late.set_result(None)
    assert await call == "b"
    bad.error = None
    clock.now += 50
    assert await answers(executor, 3) == "bbb"


@pytest.mark.parametrize(
    ("deployments", "cooldown_s", "problem"),
    [
        ([], 30.0, "give at least one"),
        ([Deployment("a", Site("a")), Deployment("a", Site("b"))], 30.0, "each a name of its own"),
        ([Deployment("a", Site("a"), 0.0)], 30.0, "the weight of 'a' is 0.0: give a number above 0"),
        ([Deployment("a", Site("a"), float("inf"))], 30.0, "give a number above 0"),
        ([Deployment("a", Site("a"), float("nan"))], 30.0, "give a number above 0"),
        ([Deployment("a", Site("a"))], -1.0, "give at least 0 seconds"),
        ([Deployment("a", Site("a"))], float("nan"), "give at least 0 seconds"),
    ],
)
def test_a_balance_that_cannot_work_is_refused(deployments: Any, cooldown_s: float, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        balance(deployments, cooldown_s=cooldown_s)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), number=st.integers(1, 5))
def test_no_history_calls_one_that_asked_to_wait_nor_one_twice_nor_fails_while_one_works(
    seed: int, number: int
) -> None:
    async def check(clock: Clock) -> None:
        chance = random.Random(seed)
        asked, asking = [0.0] * number, list[int]()

        def place(index: int) -> Deployment:
            async def executor(request: Any, run: Run) -> int:
                assert asked[index] <= clock.now
                assert index not in asking
                asking.append(index)
                if index in request:
                    return index
                wait = chance.choice((None, 0.0, 1.0, 10.0))
                asked[index] = clock.now + wait if wait else asked[index]
                raise Unavailable("down", retry_after=wait)

            return Deployment(str(index), executor, chance.uniform(0.1, 5))

        balanced = balance([place(index) for index in range(number)], cooldown_s=5)
        for _ in range(30):
            clock.now += chance.uniform(0, 4)
            asking.clear()
            working = {index for index in range(number) if chance.random() < 0.5}
            try:
                ended: Any = await execute(balanced, working)
            except Unavailable as error:
                ended = error
            if isinstance(ended, int):
                assert ended in working
            elif asking:
                assert not working.intersection(asking)
            else:
                assert min(asked) > clock.now
                assert 0 < ended.retry_after <= 14

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(check(Clock.of(patch, balance_module)))
