"""A model behind the upstream that answers batches: a plan for each item, but for those it leaves out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from typing import Any

from tests.rig.answers import Answer, Plain, Received, Stream
from tests.rig.wire import chunk, error_body, usage_of

Id = int | str


def asked(request: Received) -> list[Id]:
    """The keys of the items that a request asks for."""
    lines = str(request.json["messages"][-1]["content"]).splitlines()
    return [json.loads(line)["agent_id"] for line in lines if line.startswith("{")]


def data(request: Received) -> list[Any]:
    """What a request says of each of its items."""
    lines = str(request.json["messages"][-1]["content"]).splitlines()
    return [json.loads(line)["data"] for line in lines if line.startswith("{")]


def plan_of(key: Id) -> dict[str, Any]:
    """The plan that the model has for an item."""
    return {"agent_id": key, "steps": [{"act": "Go"}]}


def planner(
    *, without: Collection[Id] = (), delay_s: float = 0.0, fails: int = 0, gate: threading.Event | None = None
) -> Callable[[Received], Answer]:
    """A model with a plan for each item, an element a chunk, `delay_s` between two.

    It leaves out the items of `without`, refuses every call with the status `fails`, and stops each answer after its
    first plan until `gate` is set.
    """

    def answer(request: Received) -> Answer:
        if fails:
            return Plain(error_body("no"), status=fails)
        keys = asked(request)
        plans = [json.dumps(plan_of(key)) for key in keys if key not in without]
        pieces = ['{"plans": [', *(f"{plan}, " for plan in plans[:-1]), *plans[-1:], "]}"]
        usage = usage_of(prompt=10 * len(keys), completion=5 * len(plans))
        chunks = [*(chunk(piece) for piece in pieces), chunk(finish="stop"), chunk(usage=usage)]
        stalls = None if gate is None or gate.is_set() else 2
        return Stream(chunks, delay_s=delay_s, stall_after=stalls)

    return answer
