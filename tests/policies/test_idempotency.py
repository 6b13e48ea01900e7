"""`idempotency`: what a key gives, by how its first call ended."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import (
    BadArguments,
    BadRequest,
    Conflict,
    Denied,
    Invalid,
    LimitReached,
    PenstockError,
    RateLimited,
    TimedOut,
    ToolFailed,
    ToolTimeout,
    Unavailable,
    UsageError,
)
from penstock.events import Text
from penstock.outcome import Finished
from penstock.policies import Policy
from penstock.policies import idempotency as idempotency_module
from penstock.policies.idempotency import Codec, Ledger, MemoryLedger, idempotency
from penstock.run import Principal, Run, execute
from penstock.store.ledger import SqliteLedger
from penstock.testing import Heard

ALICE, BOB, CAROL = Principal("alice", "one"), Principal("bob", "one"), Principal("alice", "two")


class Order(msgspec.Struct, frozen=True):
    """A request: what to do, under which key."""

    what: Any
    key: str | None = "k"


class Shop:
    """An executor with a side effect: `done` holds what was done. An error is raised after that, a future awaited."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    async def __call__(self, request: Any, run: Run, /) -> Any:
        self.done.append(request.what)
        await run.emit(Text("done"))
        if isinstance(request.what, BaseException):
            raise request.what
        if isinstance(request.what, asyncio.Future):
            return await request.what
        return {"order": request.what, "number": len(self.done)}


class Odd:
    """A request that is no plain data, so it needs a fingerprint of its own."""

    def __init__(self, what: Any, key: str | None = "k") -> None:
        self.what, self.key = what, key


def once(ledger: Ledger | None = None, **choices: Any) -> Policy:
    """The policy under the key that the request names; errors and futures are the same request."""
    return idempotency(
        ledger or MemoryLedger(),
        key=lambda request, _: request.key,
        fingerprint=lambda request: request.what if isinstance(request.what, str) else "",
        **choices,
    )


async def code_of(executor: Any, request: Any, principal: Principal | None = None) -> str | None:
    """The code of the conflict that a call ends in."""
    with pytest.raises(Conflict) as caught:
        await execute(executor, request, principal=principal)
    assert caught.value.status == 409
    return caught.value.code


async def test_row_b8_the_same_key_and_request_is_run_once_and_its_result_given_again() -> None:
    executor, heard = once()(shop := Shop()), Heard()
    assert await execute(executor, Order("tea")) == {"order": "tea", "number": 1}
    assert await execute(executor, Order("tea"), heard) == {"order": "tea", "number": 1}
    assert heard.events == [Finished({"order": "tea", "number": 1})]
    assert shop.done == ["tea"]
    assert await execute(executor, Order("tea", "other key")) == {"order": "tea", "number": 2}


async def test_without_a_key_every_call_runs() -> None:
    executor = once()(shop := Shop())
    for _ in range(3):
        await execute(executor, Order("tea", None))
    assert len(shop.done) == 3


async def test_case_15_another_request_under_the_key_is_a_conflict() -> None:
    executor = idempotency(MemoryLedger(), key=lambda *_: "k")(shop := Shop())
    await execute(executor, Order("tea"))
    assert await code_of(executor, Order("milk")) == "idempotency_conflict"
    assert shop.done == ["tea"]


async def test_case_15_calls_at_once_wait_for_the_first_and_another_request_is_refused() -> None:
    executor = once()(shop := Shop())
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    calls = [asyncio.ensure_future(execute(executor, Odd(answer))) for _ in range(20)]
    await asyncio.sleep(0.01)
    assert await code_of(executor, Order("milk")) == "idempotency_conflict"
    answer.set_result([1])
    results = await asyncio.gather(*calls)
    assert results == [[1]] * 20
    assert len({id(result) for result in results}) == 20
    assert len(shop.done) == 1


async def test_case_15_a_call_that_runs_elsewhere_is_a_conflict() -> None:
    ledger, shop = MemoryLedger(), Shop()
    here, elsewhere = once(ledger)(shop), once(ledger)(shop)
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call = asyncio.ensure_future(execute(here, Odd(answer)))
    await asyncio.sleep(0.01)
    with pytest.raises(Conflict) as caught:
        await execute(elsewhere, Odd(answer))
    assert (caught.value.code, caught.value.retry_after) == ("in_progress", 1.0)
    answer.set_result("well")
    assert await call == await execute(elsewhere, Odd(answer)) == "well"
    assert len(shop.done) == 1


@pytest.mark.parametrize(
    "error",
    [
        BadArguments("no"),
        BadRequest("no"),
        Denied("no"),
        Invalid("no"),
        LimitReached("no", limit="rate"),
        UsageError("no"),
        ToolFailed("no", retryable=True),
        ToolTimeout("no", retryable=True),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_that_did_nothing_frees_the_key(error: PenstockError) -> None:
    executor = once(ledger := MemoryLedger())(shop := Shop())
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await execute(executor, Order(error))
        assert caught.value is error
    assert len(shop.done) == 2
    assert await ledger.entries("running") == []


async def test_a_definite_failure_is_kept_and_raised_again() -> None:
    executor = once()(shop := Shop())
    failure = ToolFailed("out of stock", code="sold_out", details={"left": 0})
    for _ in range(3):
        with pytest.raises(ToolFailed) as caught:
            await execute(executor, Order(failure))
        again = caught.value
        assert (again.message, again.code, again.details) == ("out of stock", "sold_out", {"left": 0})
        assert not again.retryable
    assert len(shop.done) == 1


@pytest.mark.parametrize(
    "error",
    [
        ToolTimeout("slow"),
        ToolFailed("lost", details={"outcome": "unknown"}),
        ToolFailed("odd", details=object()),
        ValueError("mine"),
        TimeoutError("slow"),
        PenstockError("?"),
        PenstockError("again", retryable=True),
        RateLimited("later"),
        Unavailable("down"),
        TimedOut("silent"),
    ],
    ids=str,
)
async def test_row_b8_an_end_that_nobody_knows_is_reported_and_never_run_again(error: Exception) -> None:
    executor = once(ledger := MemoryLedger())(shop := Shop())
    with pytest.raises(type(error)) as caught:
        await execute(executor, Order(error))
    assert caught.value is error
    for _ in range(2):
        assert await code_of(executor, Order(error)) == "outcome_unknown"
    assert len(shop.done) == 1
    (entry,) = await ledger.entries("unknown")
    assert await ledger.forget(entry.key)
    assert not await ledger.forget(entry.key)
    with pytest.raises(type(error)):
        await execute(executor, Order(error))


async def test_what_is_harmless_is_the_callers_choice() -> None:
    executor = once(harmless=lambda error: isinstance(error, TimedOut))(shop := Shop())
    for _ in range(2):
        with pytest.raises(TimedOut):
            await execute(executor, Order(TimedOut("x")))
    with pytest.raises(Unavailable):
        await execute(executor, Order(Unavailable("x")))
    assert await code_of(executor, Order(Unavailable("x"))) == "outcome_unknown"
    assert len(shop.done) == 3


async def test_a_cancelled_call_is_unknown_to_all_who_waited_for_it() -> None:
    executor = once()(shop := Shop())
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    calls = [asyncio.ensure_future(execute(executor, Odd(answer))) for _ in range(5)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert [one.code for one in ended[1:] if isinstance(one, Conflict)] == ["outcome_unknown"] * 4
    assert len(shop.done) == 1


async def test_one_who_waits_and_is_cancelled_disturbs_nobody() -> None:
    executor = once()(shop := Shop())
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    calls = [asyncio.ensure_future(execute(executor, Odd(answer))) for _ in range(3)]
    await asyncio.sleep(0.01)
    calls[1].cancel()
    await asyncio.sleep(0)
    answer.set_result(1)
    assert await calls[0] == await calls[2] == 1
    assert len(shop.done) == 1


async def test_a_call_that_is_abandoned_is_unknown() -> None:
    policy = once(ledger := MemoryLedger())

    async def waits(request: Any, run: Run) -> Any:
        return await asyncio.get_running_loop().create_future()

    coroutine = execute(policy(waits), Order("tea"))
    future = coroutine.send(None)
    while not await ledger.entries("running"):
        await asyncio.sleep(0)
    del future
    await asyncio.sleep(0.01)
    future = coroutine.send(None)
    coroutine.close()
    del future
    gc.collect()
    await asyncio.sleep(0.01)
    assert [entry.state for entry in await ledger.entries("unknown")] == ["unknown"]


async def test_keys_belong_to_one_principal_of_one_tenant() -> None:
    executor = once()(shop := Shop())
    numbers = [(await execute(executor, Order("tea"), principal=who))["number"] for who in (ALICE, BOB, CAROL, ALICE)]
    assert numbers == [1, 2, 3, 1]
    tricky = [Principal("a", 'b", "c'), Principal('c", "a', "b"), Principal("a\ud800", "b")]
    for who in tricky:
        await execute(executor, Order("tea"), principal=who)
    assert len(shop.done) == 6


async def test_a_codec_writes_and_reads_results() -> None:
    codec = Codec(lambda result: result["order"].encode(), lambda data: {"order": data.decode(), "number": 0})
    executor = once(codec=codec)(Shop())
    assert await execute(executor, Order("tea")) == {"order": "tea", "number": 1}
    assert await execute(executor, Order("tea")) == {"order": "tea", "number": 0}


async def test_a_result_that_cannot_be_written_leaves_the_key_unknown() -> None:
    async def odd(request: Any, run: Run) -> object:
        return object()

    executor = once()(odd)
    with pytest.raises(TypeError):
        await execute(executor, Order("tea"))
    assert await code_of(executor, Order("tea")) == "outcome_unknown"


async def test_a_result_is_kept_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(idempotency_module, "time", lambda: now)
    executor = once(MemoryLedger(), ttl_s=60)(shop := Shop())
    for gap, runs in ((0.0, 1), (59.0, 1), (1.0, 2)):
        now += gap
        await execute(executor, Order("tea"))
        assert len(shop.done) == runs
    with pytest.raises(ValueError, match="x"):
        await execute(executor, Order(ValueError("x"), "doubt"))
    now += 10_000
    assert await code_of(executor, Order(ValueError("x"), "doubt")) == "outcome_unknown"


async def test_what_is_kept_for_long_keeps_nothing_else_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(idempotency_module, "time", lambda: now)
    ledger, shop = MemoryLedger(), Shop()
    long, short = once(ledger, ttl_s=600)(shop), once(ledger, ttl_s=60)(shop)
    await execute(long, Order("tea", "long"))
    await execute(short, Order("milk", "short"))
    now += 60
    assert [one.key for one in await ledger.entries("done")] == ['["local", "local", "long"]']
    for _ in range(2):
        await execute(long, Order("tea", "long"))
        await execute(short, Order("milk", "short"))
    assert shop.done == ["tea", "milk", "milk"]


async def test_a_call_that_runs_under_an_expired_key_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(idempotency_module, "time", lambda: now)
    ledger = MemoryLedger()
    for key, ttl_s in (("long", 600.0), ("short", 60.0)):
        assert await ledger.claim(key, "") is None
        await ledger.commit(key, b"", failed=False, ttl_s=ttl_s)
    now += 60
    assert await ledger.claim("short", "") is None
    now += 600
    found = await ledger.claim("short", "")
    assert found is not None
    assert found.state == "running"


class Chancy:
    """An executor that ends in any way; `open` counts what began and did not say that it did nothing."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.open = chance, Counter[str]()

    async def __call__(self, request: Order, _: Run, /) -> str:
        self.open[request.what] += 1
        for _turn in range(self.chance.randrange(3)):
            await asyncio.sleep(0)
        how = self.chance.random()
        if how < 0.2:
            self.open[request.what] -= 1
            raise Denied("no")
        if how < 0.4:
            raise ValueError("?")
        return str(request.what)


async def at_random(ledger: MemoryLedger | SqliteLedger, chance: random.Random) -> None:
    executor = Chancy(chance)
    policies, calls = [once(ledger) for _ in range(2)], []
    for _ in range(30):
        key = chance.choice("abc")
        calls.append(asyncio.ensure_future(execute(chance.choice(policies)(executor), Order(key, key))))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(calls).cancel()
    for ended in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(ended, str | Conflict | Denied | ValueError | asyncio.CancelledError)
    assert max(executor.open.values()) <= 1
    assert await ledger.entries("running") == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), durable=st.booleans())
def test_row_b8_no_order_of_calls_and_cancels_runs_a_key_twice(seed: int, durable: bool, tmp_path: Path) -> None:
    async def check() -> None:
        if not durable:
            return await at_random(MemoryLedger(), random.Random(seed))
        ledger = SqliteLedger(tmp_path / uuid4().hex / "ledger.db")
        try:
            await at_random(ledger, random.Random(seed))
        finally:
            await ledger.aclose()

    asyncio.run(check())
