"""What a chunk of each wire costs from the service's bytes to the client's, and what a provider's first use costs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.child import environment
from benchmarks.table import Figure
from penstock.chat.passthrough import PassthroughExecutor
from penstock.events import Event
from penstock.llms.answer import Answer
from penstock.llms.anthropic import Claude
from penstock.llms.failures import Who
from penstock.llms.gemini import Gemini
from penstock.llms.openai import Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest
from penstock.policies.timeout import Deadline
from penstock.run import Run, execute
from penstock.server.sse import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.llms.remote import RemoteLlm

TITLE = "A streamed chunk by wire, alone in its read, on uvloop (CPU, best of the rounds)"
ROUNDS = 9
CHUNKS = 4_000
WORD = " word"
USAGE = {"prompt_tokens": 9, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 9}
FIRST_USE = """
from time import perf_counter
from penstock.llms.openai import Gpt
Gpt(api_key="k")
started = perf_counter()
from penstock.llms.{module} import {name}
{name}(api_key="k")
print((perf_counter() - started) * 1e3)
"""


class Fed:
    """A model that answers with the bytes it is given, one read for each event, as paced streams arrive."""

    def __init__(self, llm: RemoteLlm, events: list[bytes]) -> None:
        self._llm, self._events = llm, events

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        limits = Limits()
        deadline = Deadline(limits.total_s, idle_s=limits.idle_s)
        reading = self._llm._reading(request)  # noqa: SLF001  # what a call does, without the socket
        answer = Answer(Who(self._llm.provider), run, deadline, reading=reading, prompt=lambda: 9)
        async with deadline:
            return await answer.stream(Reads(self._events))


class Reads:
    """Reads that were made already."""

    def __init__(self, events: list[bytes]) -> None:
        self._events = iter(events)

    async def block(self) -> bytes:
        return next(self._events, b"")

    async def drain(self) -> None:
        """Nothing is left."""


def framed(events: Iterator[dict[str, Any]], *, named: bool = False) -> list[bytes]:
    return [
        (f"event: {event['type']}\n" if named else "").encode() + f"data: {json.dumps(event)}\n\n".encode()
        for event in events
    ]


def openai() -> Iterator[dict[str, Any]]:
    top = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    yield {**top, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for _ in range(CHUNKS):
        yield {**top, "choices": [{"index": 0, "delta": {"content": WORD}, "finish_reason": None}]}
    yield {**top, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    yield {**top, "choices": [], "usage": USAGE}


def anthropic() -> Iterator[dict[str, Any]]:
    usage = {"input_tokens": 9, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    yield {"type": "message_start", "message": message}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for _ in range(CHUNKS):
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORD}}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": CHUNKS}}
    yield {"type": "message_stop"}


def gemini() -> Iterator[dict[str, Any]]:
    usage = {"promptTokenCount": 9, "candidatesTokenCount": CHUNKS, "totalTokenCount": CHUNKS + 9}
    top = {"usageMetadata": usage, "modelVersion": "m", "responseId": "r"}
    for _ in range(CHUNKS):
        yield {"candidates": [{"content": {"parts": [{"text": WORD}], "role": "model"}, "index": 0}], **top}
    yield {"candidates": [{"content": {"parts": []}, "finishReason": "STOP", "index": 0}], **top}


def responses() -> Iterator[dict[str, Any]]:
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    usage = {"input_tokens": 9, "output_tokens": CHUNKS, "total_tokens": CHUNKS + 9}
    answer = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": []}
    yield {"type": "response.created", "response": {**answer, "status": "in_progress"}}
    for number in range(CHUNKS):
        yield {"type": "response.output_text.delta", "sequence_number": number, "delta": WORD, **where}
    yield {"type": "response.completed", "response": {**answer, "status": "completed", "usage": usage}}


def fed() -> dict[str, Fed]:
    """The model of each wire, with its stream."""
    done = [b"data: [DONE]\n\n"]
    return {
        "openai": Fed(Gpt(api_key="k"), framed(openai()) + done),
        "anthropic": Fed(Claude(api_key="k"), framed(anthropic(), named=True)),
        "gemini": Fed(Gemini(api_key="k"), [event.replace(b"\n\n", b"\r\n\r\n") for event in framed(gemini())]),
        "openai, api: responses": Fed(Gpt(api_key="k", api="responses"), framed(responses(), named=True)),
    }


async def per_chunk(llm: Fed) -> float:
    """CPU microseconds a chunk, through the contract of streams and into the client's bytes."""
    request = ChatRequest.of("Say it.", model="m")
    encoder, executor = Encoder(request), PassthroughExecutor(llm)

    def send(event: Event) -> None:
        encoder.event(event)

    started = process_time()
    reply = await execute(executor, request, send)
    took = process_time() - started
    if reply.content != WORD * CHUNKS:
        raise AssertionError(f"{len(reply.content)} letters came")
    return took / CHUNKS * 1e6


async def best(rounds: int) -> dict[str, float]:
    """The best of the rounds for each wire, all in turns."""
    found: dict[str, float] = {}
    models = fed()
    for _ in range(rounds):
        for name, llm in models.items():
            found[name] = min(found.get(name, float("inf")), await per_chunk(llm))
    return found


def first_use(module: str, name: str, rounds: int) -> float:
    """Milliseconds to load and make a provider's class where `Gpt` was loaded before, in fresh processes."""
    script = FIRST_USE.format(module=module, name=name)
    runs = [
        subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
        for _ in range(rounds)
    ]
    return median(float(run.stdout) for run in runs)


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in this process, and the first uses in others."""
    rounds = 1 if quick else ROUNDS
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        costs = runner.run(best(rounds))
    floor = costs["openai"]
    uses = {"Claude": "anthropic", "Gemini": "gemini"}
    firsts = [(name, first_use(module, name, min(rounds, 5))) for name, module in uses.items()]
    return [
        Figure("chunk, openai", floor, "us"),
        *(Figure(f"chunk, {name}", cost, "us", floor, 2 * floor) for name, cost in costs.items() if name != "openai"),
        *(Figure(f"first use of {name}", took, "ms", target=50) for name, took in firsts),
    ]
