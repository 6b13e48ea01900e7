"""What a request and a chunk cost on their way through the server, beside the least that an ASGI application costs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from time import sleep

import msgspec

from benchmarks.child import Child, cores, environment, pin, serving
from benchmarks.load import Report
from benchmarks.probes import leaving, stalled
from benchmarks.table import Figure

TITLE = "Gateway, one process on one core (median of the rounds)"
RATIO = 1.3
LEAVES_MS = 50.0
FLOOR = ("uvicorn", "benchmarks.floor:app", "--loop", "uvloop", "--http", "httptools", "--no-access-log")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load whose CPU is counted for each request, or for each chunk where `stream`; `model` names the shape."""

    name: str
    model: str
    connections: int
    seconds: float
    stream: bool = True
    ramp_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: the scenarios, how often, and for how long the calm and the stalled client are watched."""

    rounds: int
    scenarios: tuple[Scenario, ...]
    settle_s: float
    stall_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What one peer did in one round: its figures by name, right answers by scenario, wrong ones by their fault."""

    figures: dict[str, float] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


WHOLE = Scenario("whole request, 32 connections", "c1-d0-t0", 32, 2.0, stream=False)
BURST = Scenario("chunk of a burst, 32 connections", "c200-d0-t0", 32, 2.0)
PACED = Scenario("chunk each 20 ms, 100 connections", "c50-d20-t0", 100, 4.0, ramp_s=1.0)
MANY = Scenario("chunk each 20 ms, 400 connections", "c50-d20-t0", 400, 4.0, ramp_s=1.0)
WARM = (
    replace(WHOLE, connections=4, seconds=0.5),
    replace(BURST, connections=4, seconds=0.5),
    replace(PACED, connections=4, seconds=0.2),
)
FULL = Plan(3, (WHOLE, BURST, PACED, MANY), settle_s=1.0, stall_s=3.0)
QUICK = Plan(
    1,
    (
        replace(WHOLE, seconds=0.2),
        replace(BURST, seconds=0.2),
        replace(PACED, model="c10-d20-t0", seconds=0.3, ramp_s=0.1),
        replace(MANY, model="c10-d20-t0", seconds=0.3, ramp_s=0.1),
    ),
    settle_s=0.1,
    stall_s=0.3,
)
# name: (model, stream, whether the client has begun to read)
LEAVES = {
    "client leaves in mid-stream": ("c500-d20-t0", True, True),
    "client leaves before the first token": ("c5-d20-t2000", True, False),
    "client leaves a whole call": ("c5-d20-t2000", False, False),
}
STALLED = "client that stops reading 30 MB"
LONG = "c130000-d0-t0"
IDLE, READY = "memory, idle", "ready"
PACE = "pace kept with 400 connections"


def sample(plan: Plan) -> dict[str, list[Sample]]:
    """Run the plan; the peers take turns in each round, each alone on its core."""
    for_peer, for_load = cores()
    samples: dict[str, list[Sample]] = {"penstock": [], "floor": []}
    with serving("benchmarks.upstream", core=for_load) as upstream:
        address = f"http://127.0.0.1:{upstream.port}"
        peers = {
            "penstock": (("penstock", "serve"), {"OPENAI_BASE_URL": f"{address}/v1"}),
            "floor": (FLOOR, {"UPSTREAM": address}),
        }
        for _ in range(plan.rounds):
            for name, (command, env) in peers.items():
                with serving(*command, env=env, core=for_peer) as peer:
                    samples[name].append(one(peer, upstream, plan, core=for_load))
    return samples


def one(peer: Child, upstream: Child, plan: Plan, *, core: int | None) -> Sample:
    """Measure one peer that was just started."""
    found = Sample()
    sleep(plan.settle_s)
    found.figures.update({READY: peer.ready_s, IDLE: peer.resident_mb()})
    for scenario in WARM if plan.rounds > 1 else ():
        loaded(peer, scenario, core)
    for scenario in plan.scenarios:
        before = peer.cpu_s()
        report = loaded(peer, scenario, core)
        spent = peer.cpu_s() - before
        found.answers[scenario.name] += report.answers
        found.faults.update(report.faults)
        count = report.chunks if scenario.stream else report.answers
        found.figures[scenario.name] = spent * 1e6 / max(count, 1)
        found.figures[PACE] = report.pace * 100  # of the last scenario, which asks most
    for name, (model, stream, reading) in LEAVES.items():
        found.figures[name] = leaving(peer, upstream, model, stream=stream, reading=reading)
    found.figures[STALLED] = stalled(peer, LONG, plan.stall_s)
    return found


def loaded(peer: Child, scenario: Scenario, core: int | None) -> Report:
    """Put a load on a peer from a process of its own."""
    line = [sys.executable, "-m", "benchmarks.load", "--port", str(peer.port), "--model", scenario.model]
    line += ["--connections", str(scenario.connections), "--seconds", str(scenario.seconds)]
    line += ["--ramp", str(scenario.ramp_s), *(["--stream"] if scenario.stream else [])]
    with subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE) as load:
        pin(load.pid, core)
        printed, _ = load.communicate()
    if load.returncode:
        raise RuntimeError(f"the load {scenario.name!r} ended with code {load.returncode}")
    return msgspec.json.decode(printed, type=Report)


def measure(*, quick: bool = False) -> list[Figure]:
    """Measure in child processes; the floor is `benchmarks/floor.py`. CPU and sizes come from /proc (Linux)."""
    samples = sample(QUICK if quick else FULL)

    def middle(peer: str, name: str) -> float:
        return median(each.figures[name] for each in samples[peer])

    def beside(name: str, unit: str, target: Callable[[float], float]) -> Figure:
        floor = middle("floor", name)
        return Figure(name, middle("penstock", name), unit, floor, target(floor))

    return [
        *(beside(scenario.name, "us", lambda floor: RATIO * floor) for scenario in FULL.scenarios),
        Figure(PACE, middle("penstock", PACE), "%", middle("floor", PACE)),
        *(beside(name, "ms", lambda _: LEAVES_MS) for name in LEAVES),
        beside(STALLED, "MB", lambda _: 2.0),
        beside(IDLE, "MB", lambda _: 70.0),
        beside(READY, "s", lambda _: 1.5),
        wrong(samples),
    ]


def wrong(samples: dict[str, list[Sample]]) -> Figure:
    """How many answers were not what the upstream had said."""
    faults = {peer: sum(each.faults.total() for each in rounds) for peer, rounds in samples.items()}
    answers = sum(each.answers.total() for each in samples["penstock"])
    return Figure("wrong answers", faults["penstock"], f"of {answers:,}", faults["floor"], 0)
