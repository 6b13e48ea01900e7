"""`Plan`: what an agent is to do, the default type of a batch's values."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.batch.items import Key


class Act(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a plan: what to do, with which arguments, and why."""

    act: str
    args: dict[str, Any] = {}
    why: str = ""


class Plan(msgspec.Struct, frozen=True):
    """The steps of one agent, in order."""

    agent_id: Key
    steps: list[Act]
    plan_id: str = ""
