"""Clients that leave, seen from llama.cpp: its task is cancelled, and nothing is left behind anywhere."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import require
from tests.e2e.gateway import ADD, ENDLESS, HELLO, PLAN, descriptors, no_proc, penstock, request
from tests.rig.serving import HOST, Process
from tests.rig.tiny_llm import MODEL, TinyLlm
from tests.rig.wire import JsonObject

STARTED, CANCELLED, ENDED = "launch_slot_", "cancel task", "stop processing"
SEEN_WITHIN_S = 1.0
LOOKS_EVERY_S = 1.0  # how often llama.cpp looks whether the client of a whole answer is still there
POLL_S = 0.002


def until(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return held


def count(llm: TinyLlm, words: str) -> int:
    return llm.log().count(words)


def http_post(body: JsonObject) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def idle(llm: TinyLlm) -> bool:
    """Whether llama.cpp works on nothing."""
    slots: Any = httpx.get(f"{llm.base_url.removesuffix('/v1')}/slots").json()
    return not any(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_case_01_a_client_that_leaves_is_a_cancelled_task(
    tiny_llm: TinyLlm, gateway: Process, stream: bool, reset: bool
) -> None:
    assert until(lambda: idle(tiny_llm), 10.0)
    started, cancelled = count(tiny_llm, STARTED), count(tiny_llm, CANCELLED)
    with socket.create_connection((HOST, gateway.port)) as sock:
        sock.sendall(http_post({**ENDLESS, "stream": stream}))
        assert until(lambda: count(tiny_llm, STARTED) > started, 10.0)
        if stream:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        assert count(tiny_llm, CANCELLED) == cancelled
        if reset:
            reset_on_close(sock)
    within_s = SEEN_WITHIN_S + (0.0 if stream else LOOKS_EVERY_S)
    assert until(lambda: count(tiny_llm, CANCELLED) == cancelled + 1, within_s)
    assert until(lambda: idle(tiny_llm), SEEN_WITHIN_S)


def test_case_01_a_stream_that_the_sdk_closes_is_a_cancelled_task(tiny_llm: TinyLlm, through: openai.OpenAI) -> None:
    assert until(lambda: idle(tiny_llm), 10.0)
    cancelled = count(tiny_llm, CANCELLED)
    stream = through.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_body={"max_tokens": 4000, "ignore_eos": True}
    )
    iterator = iter(stream)
    assert [next(iterator).choices[0].index for _ in range(5)] == [0] * 5
    assert count(tiny_llm, CANCELLED) == cancelled
    stream.close()
    assert until(lambda: count(tiny_llm, CANCELLED) == cancelled + 1, SEEN_WITHIN_S)


async def test_case_01_a_call_that_the_async_sdk_gives_up_is_a_cancelled_task(
    tiny_llm: TinyLlm, gateway: Process
) -> None:
    assert until(lambda: idle(tiny_llm), 10.0)
    cancelled = count(tiny_llm, CANCELLED)
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as sdk:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await sdk.chat.completions.create(
                    model=MODEL, messages=HELLO, extra_body={"max_tokens": 4000, "ignore_eos": True}
                )
    assert until(lambda: count(tiny_llm, CANCELLED) == cancelled + 1, SEEN_WITHIN_S + LOOKS_EVERY_S)


def test_case_03_with_the_policy_finish_the_answer_goes_on_without_its_client(
    tiny_llm: TinyLlm, gateway: Process
) -> None:
    assert until(lambda: idle(tiny_llm), 10.0)
    started, cancelled, ended = (count(tiny_llm, words) for words in (STARTED, CANCELLED, ENDED))
    asked = http_post({**ENDLESS, "max_tokens": 400, "stream": True})
    with socket.create_connection((HOST, gateway.port)) as sock:
        sock.sendall(asked.replace(b"host: x", b"host: x\r\nx-disconnect-policy: finish"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert until(lambda: count(tiny_llm, ENDED) > ended, 10.0)
    assert (count(tiny_llm, STARTED), count(tiny_llm, CANCELLED)) == (started + 1, cancelled)


MIX: list[JsonObject] = [
    {"max_tokens": 8},
    {"max_tokens": 8, "stream": True},
    {"max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}},
    {"max_tokens": 4, "n": 2, "stream": True},
    {"tools": [ADD], "max_tokens": 60, "stream": True},
    {"response_format": PLAN, "max_tokens": 60},
    {"n": 99},
    {"temperature": "hot"},
]
LEAVE_ONE_IN, WHOLE_ONE_IN, AT_ONCE = 5, 100, 8


async def one(port: int, number: int, dice: random.Random) -> bytes:
    """One request of the mix on a connection of its own; every fifth leaves at a time that the dice say.

    Of those one in twenty asks for a whole answer: llama.cpp takes a second to see that it left.
    """
    leaves = number % LEAVE_ONE_IN == 0
    body = {**ENDLESS, "stream": number % WHOLE_ONE_IN > 0} if leaves else request(**MIX[number % len(MIX)])
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(http_post(body).replace(b"host: x", b"host: x\r\nconnection: close"))
        if not leaves:
            return await reader.read()
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.random() * 0.1):
                await reader.read()
        if dice.random() < 0.5:
            writer.transport.abort()
        return b""
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def mixed(port: int, requests: int) -> list[bytes]:
    dice, turns = random.Random(requests), asyncio.Semaphore(AT_ONCE)  # the same dice each time

    async def in_turn(number: int) -> bytes:
        async with turns:
            return await one(port, number, dice)

    return await asyncio.gather(*map(in_turn, range(requests)))


async def test_case_13_a_hundred_requests_of_all_kinds_leave_nothing_behind(
    tiny_llm: TinyLlm, gateway: Process
) -> None:
    require("proc", problem=no_proc())
    await mixed(gateway.port, 20)
    assert until(lambda: idle(tiny_llm), 10.0)
    before = descriptors(gateway.pid)
    answers = await mixed(gateway.port, 100)
    statuses = {answer.split(b" ", 2)[1] for answer in answers if answer}
    assert statuses == {b"200", b"400"}
    assert sum(not answer for answer in answers) == 100 // LEAVE_ONE_IN
    assert until(lambda: idle(tiny_llm), SEEN_WITHIN_S + LOOKS_EVERY_S)
    assert until(lambda: descriptors(gateway.pid) <= before, 10.0), (before, descriptors(gateway.pid))
    assert "Traceback" not in gateway.stderr()


COMPLAINTS = ("ResourceWarning", "Traceback", "never awaited", "never retrieved", "Exception ignored", "unclosed")


async def test_the_interpreter_has_nothing_to_complain_about(tiny_llm: TinyLlm) -> None:
    strict = ["-X", "dev", "-W", "error::ResourceWarning"]
    with penstock(env={"OPENAI_BASE_URL": tiny_llm.base_url}, python=strict) as process:
        answers = await mixed(process.port, 20)
        assert {answer.split(b" ", 2)[1] for answer in answers if answer} == {b"200", b"400"}
        with openai.OpenAI(base_url=f"{process.base_url}/v1", api_key="none") as client:
            assert client.models.retrieve(MODEL).id == MODEL
        assert process.terminate(10.0) == 0
        said = process.stderr()
    assert [word for word in COMPLAINTS if word in said] == [], said
