"""The connections of a tool, on a real server: who waits is served in turn, and no place is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from weakref import ref

import asyncpg
import pytest

from penstock.tools.db.connections import Connections
from tests.rig.postgres import Postgres

Some: TypeAlias = Connections[Any]


@asynccontextmanager
async def connections(postgres: Postgres, most: int = 1) -> AsyncIterator[Some]:
    """Up to `most` connections, closed at the end."""
    found: Some = Connections(lambda: asyncpg.connect(postgres.dsn), most=most)
    yield found
    await found.aclose()


async def all_are_there(some: Some, most: int) -> None:
    """All can be taken at once, and not one more."""
    taken = [await asyncio.wait_for(some.take(), 1) for _ in range(most)]
    assert len({id(one) for one in taken}) == most
    waiting = asyncio.create_task(some.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    for one in taken:
        assert await one.fetchval("SELECT 1") == 1
        some.give(one)


async def test_who_waits_is_served_in_turn_and_nobody_pushes_in(postgres: Postgres) -> None:
    async with connections(postgres) as some:
        order: list[int] = []

        async def use(number: int) -> None:
            one = await some.take()
            order.append(number)
            await asyncio.sleep(0)
            some.give(one)

        first = await some.take()
        users = [asyncio.create_task(use(number)) for number in range(4)]
        await asyncio.sleep(0)
        some.give(first)
        await asyncio.gather(*users, use(4))
        assert order == [0, 1, 2, 3, 4]


async def test_the_one_used_last_is_used_next(postgres: Postgres) -> None:
    async with connections(postgres, 2) as some:
        first, second = await some.take(), await some.take()
        some.give(first)
        some.give(second)
        assert await some.take() is second
        some.give(second)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("lost", [True, False])
async def test_who_is_cancelled_while_waiting_passes_his_turn_on(postgres: Postgres, early: bool, lost: bool) -> None:
    async with connections(postgres) as some:
        one = await some.take()
        waiting = [asyncio.create_task(some.take()) for _ in range(2)]
        await asyncio.sleep(0)
        if lost:
            one.terminate()
        if early:
            waiting[0].cancel()
            some.give(one)
        else:  # served, and cancelled in the same moment
            some.give(one)
            waiting[0].cancel()
        served = await asyncio.wait_for(waiting[1], 1)
        assert waiting[0].cancelled()
        assert (served is one) is not lost
        some.give(served)
        await all_are_there(some, 1)


async def test_a_caller_who_is_dropped_while_waiting_takes_no_turn(postgres: Postgres) -> None:
    async with connections(postgres) as some:
        one = await some.take()
        dropped = some.take()
        dropped.send(None)
        dropped.close()
        some.give(one)
        await all_are_there(some, 1)


async def test_a_lost_connection_makes_room_for_another(postgres: Postgres) -> None:
    async with connections(postgres, 2) as some:
        first, second = await some.take(), await some.take()
        some.give(second)
        first.terminate()
        some.give(first)
        assert await some.take() is second
        some.give(second)
        second.terminate()  # while nobody uses it
        await all_are_there(some, 2)
        lost = ref(first), ref(second)
        del first, second
        assert [one() for one in lost] == [None, None]


@pytest.mark.parametrize("how", ["refused", "cancelled"])
async def test_what_keeps_a_connection_from_opening_leaves_its_place(postgres: Postgres, how: str) -> None:
    hindered = True

    async def connect() -> Any:
        await asyncio.sleep(0.02)
        if hindered:
            raise ConnectionRefusedError(how)
        return await asyncpg.connect(postgres.dsn)

    some: Some = Connections(connect, most=1)
    tries = [asyncio.create_task(some.take()) for _ in range(2)]
    await asyncio.sleep(0)
    if how == "cancelled":
        tries[0].cancel()
    ends = await asyncio.wait_for(asyncio.gather(*tries, return_exceptions=True), 1)
    assert isinstance(ends[1], ConnectionRefusedError)
    hindered = False
    await all_are_there(some, 1)
    await some.aclose()


async def test_only_what_nobody_needed_for_long_is_closed(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.tools.db.connections.IDLE_S", 0.05)
    async with connections(postgres, 3) as some:
        used, *idle = [await some.take() for _ in range(3)]
        for one in (*idle, used):
            some.give(one)

        async with asyncio.timeout(2):
            while not all(one.is_closed() for one in idle):
                assert await some.take() is used
                some.give(used)
                await asyncio.sleep(0.005)
            assert not used.is_closed()
            while not used.is_closed():
                await asyncio.sleep(0.005)
        await all_are_there(some, 3)


async def test_closing_waits_for_who_uses_a_connection_and_who_waits_for_it(postgres: Postgres) -> None:
    some: Some = Connections(lambda: asyncpg.connect(postgres.dsn), most=1)
    one = await some.take()
    waiting = asyncio.create_task(some.take())
    await asyncio.sleep(0)
    closing = asyncio.create_task(some.aclose())
    await asyncio.sleep(0)
    some.give(one)
    assert await waiting is one
    assert not closing.done()
    assert await one.fetchval("SELECT 1") == 1
    some.give(one)
    await asyncio.wait_for(closing, 1)
    assert one.is_closed()
    with pytest.raises(ConnectionError, match="closed meanwhile"):
        await some.take()


async def test_closing_does_not_wait_for_long(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.tools.db.connections.CLOSE_S", 0.05)
    opening, opened = asyncio.Event(), list[Any]()

    async def connect() -> Any:
        if opened:
            await opening.wait()
        opened.append(await asyncpg.connect(postgres.dsn))
        return opened[-1]

    some: Some = Connections(connect, most=2)
    one = await some.take()
    late, waiting = asyncio.create_task(some.take()), asyncio.create_task(some.take())
    asking = asyncio.create_task(one.fetchval("SELECT pg_sleep(5)"))
    await asyncio.sleep(0.01)
    await some.aclose()
    await asyncio.wait([waiting], timeout=1)
    assert waiting.done()
    opening.set()
    ends = await asyncio.wait_for(asyncio.gather(asking, late, waiting, return_exceptions=True), 1)
    assert [type(end) for end in ends] == [asyncpg.ConnectionDoesNotExistError, ConnectionError, ConnectionError]
    assert [connection.is_closed() for connection in opened] == [True] * 2
