"""What it costs to find the items of a streamed answer as they close, beside waiting for its end and decoding it whole.

Both sides are given the same pieces. The scanner makes typed, validated objects, the floor dictionaries without checks.
A model that is paced as a real one shows when the first plan of a whole `Batch` is there.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from itertools import product
from time import monotonic, process_time

import msgspec

from benchmarks.table import Figure
from penstock.batch.batch import Batch
from penstock.batch.scanner import Scanner
from penstock.messages import ChatRequest
from penstock.run import from_stream

TITLE = "Batch: plans of 460 characters out of a stream (CPU, best of the rounds)"
ROUNDS = 9
PLANS = 1_000
TOKENS_A_S = 200
ACTS = ("MoveTo", "TakeCover", "Attack", "Reload", "Scan", "Wait", "Heal", "Regroup")
NOTES = (
    'say "over" [twice]',
    "leave {by} the }] exit",
    "share D:\\maps\\4",
    "äußerst leise",
    "follow the river",
    "none",
)


class Target(msgspec.Struct):
    """Whom a step is about."""

    id: int
    kind: str


class Step(msgspec.Struct):
    """One step of a plan."""

    act: str
    x: int
    y: float
    note: str
    target: Target | None = None


class Plan(msgspec.Struct):
    """The plan of one agent."""

    agent_id: int
    plan_id: str
    steps: list[Step]


Side = Callable[[Iterable[str]], Iterator[int]]


def answer(plans: int) -> str:
    """An array of plans of five steps, with quotes, backslashes and brackets in some of their strings."""
    chance = random.Random(5)

    def step() -> dict[str, object]:
        target = {"id": chance.randrange(9999), "kind": "npc"} if chance.random() < 0.3 else None
        place = {"x": chance.randrange(-500, 500), "y": round(chance.uniform(-50, 50), 2)}
        note = chance.choice(NOTES) if chance.random() < 0.25 else "ok"
        return {"act": chance.choice(ACTS), **place, "target": target, "note": note}

    return json.dumps(
        [{"agent_id": n, "plan_id": f"batch-p{n}", "steps": [step() for _ in range(5)]} for n in range(plans)],
        ensure_ascii=False,
    )


def cut(text: str, size: int) -> list[str]:
    """Pieces of one to nearly twice the size, as tokens vary."""
    chance, pieces, at = random.Random(3), list[str](), 0
    while at < len(text):
        end = at + chance.randint(1, 2 * size - 1)
        pieces.append(text[at:end])
        at = end
    return pieces


def floor(pieces: Iterable[str]) -> Iterator[int]:
    """The ids of the plans: none before the end, then all."""
    for plan in msgspec.json.decode("".join(pieces)):
        yield plan["agent_id"]


def scanned(pieces: Iterable[str]) -> Iterator[int]:
    """The id of each plan with the piece that closes it."""
    scanner = Scanner(Plan)
    feed = scanner.feed
    for piece in pieces:
        for item in feed(piece):
            assert item.value is not None
            yield item.value.agent_id
    assert scanner.close().end == "complete"


def seconds(side: Side, pieces: Sequence[str]) -> float:
    """CPU of one pass; all plans must come, in order."""
    gc.collect()
    started = process_time()
    found = [*side(pieces)]
    took = process_time() - started
    assert found == [*range(len(found))]
    return took


def least(passes: Sequence[tuple[Side, Sequence[str]]], rounds: int) -> list[float]:
    """Seconds of each pass in its best round, in turns."""
    best = [float("inf")] * len(passes)
    for _, (number, (side, pieces)) in product(range(rounds), enumerate(passes)):
        best[number] = min(best[number], seconds(side, pieces))
    return best


def until_first(plans: int) -> tuple[int, int]:
    """How many pieces had been read when the first plan came, and how many there are."""
    pieces = cut(answer(plans), 4)
    read = iter(pieces)
    next(scanned(read))
    return len(pieces) - sum(1 for _ in read), len(pieces)


async def first_and_last_s(plans: int, tokens_a_s: int) -> tuple[float, float]:
    """Seconds until the first plan of a batch, and until all, from a model that tells so many tokens a second."""
    pieces = cut(answer(plans), 4)

    async def paced(_: ChatRequest) -> AsyncGenerator[str, None]:
        began = monotonic()
        for number, piece in enumerate(pieces, start=1):
            await asyncio.sleep(began + number / tokens_a_s - monotonic())
            yield piece

    began, first = monotonic(), 0.0
    async with Batch(from_stream(paced), Plan).stream((number, None) for number in range(plans)) as outcomes:
        async for outcome in outcomes:
            assert outcome.ok
            first = first or monotonic() - began
    return first, monotonic() - began


def peak_kb(plans: int) -> float:
    """Memory at the peak of a pass that keeps no plan, beyond the answer's own."""
    pieces = cut(answer(plans), 4)
    tracemalloc.start()
    for _ in scanned(pieces):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1024


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in this process, one side after the other."""
    rounds, plans = (1, 100) if quick else (ROUNDS, PLANS)
    figures: list[Figure] = []
    for size, factor in ((4, 6), (64, 5)):
        pieces = cut(answer(plans), size)
        bare, ours = (each / plans * 1e6 for each in least([(floor, pieces), (scanned, pieces)], rounds))
        figures.append(Figure(f"a plan, pieces of {size} characters", ours, "us", bare, factor * bare))
    half, whole = least([(scanned, cut(answer(many), 4)) for many in (5 * plans, 10 * plans)], min(rounds, 5))
    first, last = until_first(10)
    pace = 10 * TOKENS_A_S if quick else TOKENS_A_S
    first_s, last_s = asyncio.run(first_and_last_s(10, pace))
    return [
        *figures,
        Figure(f"{10 * plans:,} plans; floor: half as many", whole, "s", half, 2.2 * half),
        Figure("pieces until the first of 10 plans; floor: all", first, "", last, last / 10 * 1.05),
        Figure(f"first of 10 plans at {pace:,} tokens/s; floor: all", first_s, "s", last_s, last_s / 10 * 1.05),
        Figure(f"memory, {plans:,} plans; floor: a tenth of them", peak_kb(plans), "KB", peak_kb(plans // 10)),
    ]
