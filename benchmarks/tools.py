"""What a tool costs: functions, HTTP, SQLite, PostgreSQL and the ledger, each beside the same work done by hand.

CPU is that of this process and all its threads; servers run in others. The ledger is timed by the clock, as it waits
for the disk.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, process_time
from typing import Any

from pydantic import BaseModel

from benchmarks.child import serving
from benchmarks.table import Figure
from penstock.policies.timeout import Deadline
from penstock.store.ledger import SqliteLedger
from penstock.tools import (
    BaseToolExecutor,
    FunctionToolExecutor,
    FunctionToolSpec,
    HttpToolExecutor,
    HttpToolSpec,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
    RetrySpec,
    SqliteExecutor,
    SqliteToolSpec,
)
from penstock.tools.meter import meter
from penstock.tools.value import normaliser

TITLE = "Tools, on asyncio (medians of the rounds; microseconds of CPU for one call)"
ROUNDS = 9
LIMIT_S = 30.0
RETRY = RetrySpec()
GOOD = '{"order_id": 481516, "address": {"street": "7 Mill Road", "city": "York", "zip": 42108}, "sizes": [36, 40, 42]}'
WRONG = {
    "type": GOOD.replace("481516", '"none"'),
    "type inside an object": GOOD.replace("42108", '"none"'),
    "type inside a list": GOOD.replace("[36,", '["none",'),
    "number as text": GOOD.replace("481516", '"481516"'),
    "fraction": GOOD.replace("481516", "4815.16"),
    "unknown key": GOOD.replace('"order_id"', '"note": "", "order_id"'),
    "unknown key inside": GOOD.replace('"city"', '"state": "", "city"'),
    "key twice": GOOD.replace('"order_id"', '"order_id": 1, "order_id"'),
    "key missing": GOOD.replace('"order_id": 481516, ', ""),
    "no object": f"[{GOOD}]",
    "no JSON": GOOD[:-1],
}
ROWS = 10_000
SELECT = "SELECT id, name, city, score, note FROM item WHERE id = "
TABLE = "CREATE TABLE item (id integer PRIMARY KEY, name text, city text, score double precision, note text)"

Call = Callable[[], Awaitable[object]]


class Address(BaseModel):
    """Where an order goes."""

    street: str
    city: str
    zip: int


async def order(order_id: int, address: Address, sizes: list[int]) -> str:
    return f"{order_id}: {len(sizes)} for {type(address).__name__}"


async def order_later(order_id: int, address: Address, sizes: list[int]) -> str:
    await asyncio.sleep(0)
    return f"{order_id}: {len(sizes)} for {type(address).__name__}"


def order_in_thread(order_id: int, address: Address, sizes: list[int]) -> str:
    return f"{order_id}: {len(sizes)} for {type(address).__name__}"


def function(func: Callable[..., Any]) -> FunctionToolExecutor:
    return FunctionToolExecutor(FunctionToolSpec(tool_name="order", timeout_s=LIMIT_S, retry=RETRY), func)


def by_hand(func: Callable[..., Awaitable[object]], text: str = GOOD) -> Call:
    """The floor: decode the arguments, check nothing, call."""

    async def call() -> object:
        return await func(**json.loads(text))

    return call


def limited(func: Callable[..., Awaitable[object]]) -> Call:
    async def call() -> object:
        async with asyncio.timeout(LIMIT_S):
            return await func(**json.loads(GOOD))

    return call


def of_parts(tool: FunctionToolExecutor) -> Call:
    """The floor of a tool without policies: the parts that it is made of, called one after the other."""
    spec, func, parse = tool.spec, tool.func, tool.arguments.parse
    normalise, record = normaliser(spec), meter(spec)

    async def call() -> object:
        began = monotonic()
        with Deadline(spec.timeout_s):
            value = await func(**parse(GOOD))
        result = normalise(value, monotonic() - began, None)
        record(monotonic() - began, "ok")
        return result.content

    return call


def asking(tool: BaseToolExecutor[Any], write: Callable[[], str] = lambda: GOOD) -> Call:
    """Calls of a tool with what `write` gives, each of which must succeed."""

    async def call() -> object:
        result = await tool.execute(write())
        if not result.ok:
            raise RuntimeError(f"{tool.name!r} failed: {result.error}")
        return result.content

    return call


async def cost(call: Call, times: int, at_once: int, clock: Callable[[], float]) -> float:
    async def lane() -> None:
        for _ in range(times // at_once):
            await call()

    gc.collect()
    began = clock()
    await asyncio.gather(*(lane() for _ in range(at_once)))
    return (clock() - began) / times * 1e6


async def in_turns(
    cases: Mapping[str, Call],
    *,
    times: int,
    quick: bool,
    at_once: int = 1,
    clock: Callable[[], float] = process_time,
) -> dict[str, float]:
    """Microseconds of one call of every case; they take turns in each round, so that all meet the same machine."""
    if quick:
        at_once = min(at_once, 10)
        times = max(at_once, times // 50)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(2 if quick else ROUNDS + 1):
        for name, call in cases.items():
            taken[name].append(await cost(call, times, at_once, clock))
    return {name: median(costs[1:]) for name, costs in taken.items()}


def beside(name: str, found: Mapping[str, float], most: float | None = None) -> Figure:
    """The tool beside its floor, of which it may cost `most` times as much."""
    return Figure(name, found["tool"], "us", found["floor"], most and found["floor"] * most)


async def functions(*, quick: bool) -> list[Figure]:
    tool, slow, threaded = function(order), function(order_later), function(order_in_thread)
    plain = FunctionToolExecutor(FunctionToolSpec(tool_name="order", timeout_s=LIMIT_S), order)

    async def refused() -> object:
        return await tool.execute(WRONG["type"])

    async def in_thread() -> object:
        return await asyncio.to_thread(order_in_thread, **json.loads(GOOD))

    cases = {"floor": by_hand(order), "limited": limited(order), "tool": asking(tool), "refused": refused}
    none = {"parts": of_parts(plain), "plain": asking(plain)}
    one = await in_turns(cases | none, times=2000, quick=quick)
    many_cases = {"floor": by_hand(order_later), "limited": limited(order_later), "tool": asking(slow)}
    many = await in_turns(many_cases, times=1000, quick=quick, at_once=1000)
    threads = await in_turns({"floor": in_thread, "tool": asking(threaded)}, times=500, quick=quick)
    let_through = sum([(await tool.execute(text)).ok for text in WRONG.values()])
    limit = one["limited"]
    return [
        Figure("function, by hand with asyncio.timeout", limit, "us", one["floor"]),
        Figure("function, deadline and retry (floor: that)", one["tool"], "us", limit, limit),
        Figure("function, deadline alone", one["plain"], "us", limit, limit),
        Figure("function, deadline alone (floor: its parts)", one["plain"], "us", one["parts"], 1.3 * one["parts"]),
        Figure("function, wrong arguments", one["refused"], "us", one["floor"], 4 * one["floor"]),
        Figure("by hand with asyncio.timeout, 1,000 at once", many["limited"], "us", many["floor"]),
        beside("function, 1,000 at once", many, 1.5),
        beside("function, in a thread", threads),
        Figure(f"wrong arguments let through, of {len(WRONG)}", let_through, "", None, 0),
    ]


async def requests(*, quick: bool) -> list[Figure]:
    import aiohttp

    with serving("benchmarks.item") as server:
        base = f"http://127.0.0.1:{server.port}"
        spec = HttpToolSpec(
            tool_name="items",
            base_url=base,
            path="/items",
            query={"q": "{q}"},
            parameters={"q": "string"},
            allow_private=True,
            timeout_s=LIMIT_S,
            retry=RETRY,
        )
        tool = HttpToolExecutor(spec)
        async with aiohttp.ClientSession() as session:

            async def get() -> object:
                async with session.get(f"{base}/items", params={"q": "1"}) as answer:
                    return await answer.json()

            cases = {"floor": get, "tool": asking(tool, lambda: '{"q": "1"}')}
            one = await in_turns(cases, times=400, quick=quick)
            many = await in_turns(cases, times=1000, quick=quick, at_once=100)
        await tool.aclose()
    return [beside("HTTP (floor: aiohttp)", one, 1.25), beside("HTTP, 100 at once", many, 1.25)]


def rows() -> list[tuple[Any, ...]]:
    return [(number, f"name {number}", "York", number / 2, "n" * 40) for number in range(ROWS)]


def keys() -> Callable[[], int]:
    """A function that gives one key after the other, spread over the table."""
    numbers = count()
    return lambda: next(numbers) * 7919 % ROWS


async def sqlite(*, quick: bool) -> list[Figure]:
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        path, key, loop = Path(folder) / "items.db", keys(), asyncio.get_running_loop()
        with closing(sqlite3.connect(path, check_same_thread=False)) as file:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute(TABLE)
            file.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?)", rows())
            file.commit()

            def fetch(number: int) -> object:
                return file.execute(f"{SELECT}?", (number,)).fetchone()

            async def by_executor() -> object:
                return await loop.run_in_executor(thread, fetch, key())

            spec = SqliteToolSpec(
                tool_name="item",
                path=str(path),
                statement=f"{SELECT}:id",
                fetch="one",
                parameters={"id": "integer"},
                timeout_s=LIMIT_S,
                retry=RETRY,
            )
            tool = SqliteExecutor(spec)
            cases = {"floor": by_executor, "tool": asking(tool, lambda: f'{{"id": {key()}}}')}
            one = await in_turns(cases, times=500, quick=quick)
            many = await in_turns(cases, times=1000, quick=quick, at_once=50)
            await tool.aclose()
    return [beside("SQLite (floor: sqlite3 in one thread)", one, 1.25), beside("SQLite, 50 at once", many, 1.25)]


async def postgresql(*, quick: bool) -> list[Figure]:
    from tests.rig.postgres import serve_postgres

    key = keys()
    with serve_postgres() as server:
        asyncpg: Any = import_module("asyncpg")  # it ships no types
        async with asyncpg.create_pool(server.dsn, min_size=10, max_size=10) as pool:
            await pool.execute(TABLE)
            await pool.copy_records_to_table("item", records=rows())

            async def fetch() -> object:
                return tuple(await pool.fetchrow(f"{SELECT}$1", key()))

            spec = PostgreSqlToolSpec(
                tool_name="item",
                dsn=server.dsn,
                statement=f"{SELECT}:id",
                fetch="one",
                parameters={"id": "integer"},
                timeout_s=LIMIT_S,
                retry=RETRY,
            )
            tool = PostgreSqlExecutor(spec)
            cases = {"floor": fetch, "tool": asking(tool, lambda: f'{{"id": {key()}}}')}
            one = await in_turns(cases, times=400, quick=quick)
            many = await in_turns(cases, times=1000, quick=quick, at_once=50)
            await tool.aclose()
    return [beside("PostgreSQL (floor: asyncpg's pool)", one, 1), beside("PostgreSQL, 50 at once", many, 1)]


async def ledger(*, quick: bool) -> list[Figure]:
    """A claim and a commit, both durable; the floor are two writes of a page, each with an fsync."""
    with TemporaryDirectory() as folder, (Path(folder) / "pages").open("wb", buffering=0) as pages:
        book, numbers = SqliteLedger(Path(folder) / "ledger.db"), count()

        async def call() -> None:
            key = str(next(numbers))
            await book.claim(key, "fingerprint")
            await book.commit(key, b"x" * 100, failed=False, ttl_s=100)

        async def sync() -> None:
            for _ in range(2):
                pages.write(bytes(4096))
                os.fsync(pages.fileno())

        cases = {"floor": sync, "tool": call}
        one = await in_turns(cases, times=100, quick=quick, clock=perf_counter)
        many = await in_turns({"tool": call}, times=500, quick=quick, at_once=100, clock=perf_counter)
        await book.aclose()
    return [
        beside("ledger, claim and commit, on the clock (floor: 2 fsync)", one),
        beside("ledger, 100 at once", many | {"floor": one["floor"]}),
    ]


async def all_of(*, quick: bool) -> list[Figure]:
    parts = (functions, requests, sqlite, postgresql, ledger)
    return [figure for part in parts for figure in await part(quick=quick)]


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in this process, as asyncio runs it; a floor is the same work without Penstock, in the same rounds."""
    return asyncio.run(all_of(quick=quick))
