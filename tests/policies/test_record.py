"""`record`: what a run said and used is stored once, however it ended, before its end is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import RateLimited
from penstock.events import Chunks, Event, Reasoning, Text, Used
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta, Usage
from penstock.outcome import Cancelled, Failed, Finished
from penstock.policies.record import Record, record
from penstock.policies.retry import retry
from penstock.run import Principal, Run, execute, execute_stream
from penstock.testing import Heard, ScriptedLlm

ALICE = Principal("alice", "acme", frozenset({"chat"}))


@pytest.fixture
def stored() -> list[Record]:
    return []


async def think(request: str, run: Run) -> str:
    await run.emit(Reasoning("let me see"))
    await run.emit(Text("an "))
    await run.child("tool").emit(Text("not the answer"))
    await run.child("tool").emit(Used(usage=Usage(5, 1, 6)))
    await run.emit(Text("answer"))
    await run.emit(Used(usage=Usage(10, 2, 12)))
    return request


async def test_row_a5_a_finished_run_is_stored_whole(stored: list[Record]) -> None:
    assert await execute(record(stored.append)(think), "why", principal=ALICE) == "why"
    (kept,) = stored
    assert kept.request == "why"
    assert kept.reply.content == "an answer"
    assert kept.reply.reasoning == "let me see"
    assert (kept.usage.prompt, kept.usage.completion, kept.usage.total) == (15, 3, 18)
    assert kept.reply.usage == kept.usage
    assert kept.outcome == Finished("why")
    assert kept.principal == ALICE
    assert 0 <= kept.seconds < 10


async def test_row_a5_reasoning_of_chunks_is_kept_apart(stored: list[Record]) -> None:
    deltas = (Delta(role="assistant", reasoning_content="hm "), Delta(reasoning="so"), Delta(content="yes"))

    async def works(request: str, run: Run) -> None:
        for delta in deltas:
            await run.emit(Chunks(views=[Chunk(choices=[ChunkChoice(delta=delta)], id="c1", model="m1")]))

    await execute(record(stored.append)(works), "x")
    reply = stored[0].reply
    assert (reply.content, reply.reasoning, reply.id, reply.model) == ("yes", "hm so", "c1", "m1")


async def test_row_a5_a_failed_run_is_stored_with_what_it_had_said(stored: list[Record]) -> None:
    error = RateLimited("slow down")

    async def fails(request: str, run: Run) -> str:
        await think(request, run)
        raise error

    with pytest.raises(RateLimited):
        await execute(record(stored.append)(fails), "x")
    (kept,) = stored
    assert kept.outcome == Failed(error)
    assert (kept.reply.content, kept.usage.total) == ("an answer", 18)


@pytest.mark.parametrize("taken", [1, 2, 3])
async def test_row_a5_the_last_chunk_is_stored_when_the_consumer_leaves(stored: list[Record], taken: int) -> None:
    async def talks(request: list[str], run: Run) -> None:
        try:
            for word in request:
                await run.emit(Text(word))
            await asyncio.Event().wait()
        finally:
            await run.emit(Used(usage=Usage(1, taken, 1 + taken, partial=True)))

    words = ["one ", "two ", "three "][:taken]
    async with execute_stream(record(stored.append)(talks), words) as execution:
        async for event in execution:
            if event == Text(words[-1]):
                break
    (kept,) = stored
    assert kept.reply.content == execution.content == "".join(words)
    assert kept.outcome == Cancelled("the consumer left early")
    assert (kept.usage.completion, kept.usage.partial) == (taken, True)


async def test_row_a5_a_chunk_that_the_client_never_got_is_stored(stored: list[Record]) -> None:
    def fails(event: Event) -> None:
        if event == Text("answer"):
            raise OSError("socket closed")

    with pytest.raises(OSError, match="socket closed"):
        await execute(record(stored.append)(think), "x", fails)
    assert stored[0].reply.content == "an answer"
    assert stored[0].outcome == Cancelled("listener failed: socket closed")


@pytest.mark.parametrize("waits", [False, True])
async def test_the_record_is_stored_before_the_end_is_told(waits: bool) -> None:
    order: list[str] = []

    async def slow(kept: Record) -> None:
        await asyncio.sleep(0.01)
        order.append("stored")

    def quick(kept: Record) -> None:
        order.append("stored")

    def hear(event: Event) -> None:
        order.append(type(event).__name__)

    await execute(record(slow if waits else quick)(think), "x", hear)
    assert order[-2:] == ["stored", "Finished"]
    assert order.count("stored") == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_a_store_that_fails_fails_the_run(waits: bool) -> None:
    full = OSError("disk full")

    async def slow(kept: Record) -> None:
        await asyncio.sleep(0)
        raise full

    def quick(kept: Record) -> None:
        raise full

    heard = Heard()
    with pytest.raises(OSError, match="disk full") as caught:
        await execute(record(slow if waits else quick)(think), "x", heard)
    assert caught.value is full
    assert heard.end == Failed(full)
    assert heard.text == "an answer"


async def test_a_cancel_while_storing_does_not_lose_the_record() -> None:
    begun, stored, heard = asyncio.Event(), list[Record](), Heard()

    async def slow(kept: Record) -> None:
        begun.set()
        await asyncio.sleep(0.02)
        stored.append(kept)

    task = asyncio.ensure_future(execute(record(slow)(think), "x", heard))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [kept.outcome for kept in stored] == [Finished("x")]
    assert heard.end == Finished("x")


async def test_attempts_that_failed_are_no_records_of_their_own(stored: list[Record]) -> None:
    llm = ScriptedLlm(RateLimited("slow down", retry_after=0.0), "fine now")
    reply = await execute(record(stored.append)(retry(base_s=0)(llm)), ChatRequest.of("hi"))
    (kept,) = stored
    assert isinstance(kept.outcome, Finished)
    assert kept.outcome.result is reply
    assert kept.reply.choices == reply.choices
    assert reply.usage is not None
    assert kept.usage.total == reply.usage.total


async def test_each_call_has_its_own_record(stored: list[Record]) -> None:
    async def answers(request: int, run: Run) -> ChatReply:
        for _ in range(3):
            await run.emit(Text(str(request)))
            await asyncio.sleep(0)
        return ChatReply(choices=())

    executor = record(stored.append)(answers)
    await asyncio.gather(*(execute(executor, number) for number in range(50)))
    assert {kept.request: kept.reply.content for kept in stored} == {n: str(n) * 3 for n in range(50)}


async def test_a_recorded_child_keeps_what_it_said_itself(stored: list[Record]) -> None:
    inner = record(stored.append)(think)

    async def parent(request: str, run: Run) -> Any:
        await run.emit(Text("the parent's"))
        return await inner(request, run.child("child"))

    heard = Heard()
    await execute(parent, "x", heard)
    assert stored[0].reply.content == "an answer"
    assert heard.text == "the parent's"


async def test_each_attempt_is_recorded_as_it_ended() -> None:
    records: list[Record] = []
    llm = ScriptedLlm(RateLimited("busy"), "fine")
    await execute(retry(attempts=2, base_s=0)(record(records.append)(llm)), ChatRequest.of("Hi"))
    assert [type(one.outcome) for one in records] == [Finished, Failed]
    assert [one.reply.content for one in records] == ["fine", ""]
