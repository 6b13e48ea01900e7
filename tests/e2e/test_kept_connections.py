"""Kept connections to a service: one that it closed meanwhile costs nobody an answer, one given up is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from penstock.errors import Unavailable
from penstock.llms.transport import STALE_S, Exchange, Limits, Target

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Service:
    """A server that gives each request its scripted answer; `requests` counts them, `open` are its connections."""

    answers: list[Answer] = field(default_factory=list)
    requests: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing() and await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                await (self.answers.pop(0) if self.answers else well)(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.open.discard(writer)


async def well(writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def close_late(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(STALE_S + 0.1)
    writer.close()


async def half(writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER[:20])
    writer.close()


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


@asynccontextmanager
async def service(*answers: Answer) -> AsyncGenerator[Service]:
    served = Service(list(answers))
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        yield served
    for writer in served.open:
        writer.close()
    async with asyncio.timeout(1.0):
        while served.open:
            await asyncio.sleep(0.001)


async def ask(served: Service) -> bytes:
    async with Exchange(Target(served.url, "it", Limits(total_s=10)), headers={}) as exchange:
        return await exchange.read(65_536)


async def test_a_kept_connection_that_was_closed_meanwhile_costs_no_answer() -> None:
    async with service(well, close) as served:
        assert [await ask(served), await ask(served)] == [b"ok", b"ok"]
        assert served.requests == 3


ANSWERS: dict[str, list[Answer]] = {
    "new_connection": [close],
    "twice": [well, close, close],
    "late": [well, close_late],
    "half_a_head": [well, half],
}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
async def test_a_request_that_may_have_been_read_is_not_sent_again(answers: list[Answer]) -> None:
    async with service(*answers) as served:
        if answers[0] is well:
            await ask(served)
        with pytest.raises(Unavailable):
            await ask(served)
        assert served.requests == len(answers)


async def test_case_01_a_call_given_up_in_any_moment_leaves_no_connection_behind() -> None:
    moments = 40
    async with service(*[endless] * moments) as served:
        for turns in range(moments):
            task = asyncio.create_task(ask(served))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.002)
            async with asyncio.timeout(1.0):
                while served.open:
                    await asyncio.sleep(0.001)
    assert 0 < served.requests < moments
