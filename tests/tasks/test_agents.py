"""What is written of agents, tasks and bounds: what does not fit together is refused, with what to write instead."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds, Budget, Retry
from penstock.tasks.results import ExecutionResult, ExecutionStatus
from penstock.tasks.task import AgentTask


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "write model \\(one that is configured\\), or provider and model"),
        ({"mode": "cli"}, "write command, a list such as"),
        ({"mode": "hybrid", "agents": ("a",)}, "write agents, a list of at least two"),
        ({"mode": "hybrid", "strategy": "review", "agents": ("a", "b", "c")}, "for review write two agents"),
        ({"mode": "hybrid", "strategy": "review", "agents": ("a", "a")}, "another who checks it"),
        ({"mode": "interactive", "model": "m"}, "'model' is for agents of mode 'api', and this one is 'interactive'"),
        ({"model": "m", "command": ("true",)}, "'command' is for agents of mode 'cli', and this one is 'api'"),
        ({"mode": "cli", "command": ("true",), "rounds": 1}, "'rounds' is for agents of mode 'hybrid'"),
        ({"model": "m", "temperature": 2.1}, "less than or equal to 2"),
        ({"model": "m", "concurrent": 0}, "greater than or equal to 1"),
        ({"model": "m", "modell": "x"}, "Extra inputs are not permitted"),
        ({"model": "m", "timeout_s": 0}, "greater than 0"),
        ({"model": "m", "retry": {"attempts": 0}}, "greater than or equal to 1"),
        ({"model": "m", "budget": {}}, "write tokens, usd, or both"),
        ({"model": "m", "mode": "robot"}, "'api', 'interactive', 'cli' or 'hybrid'"),
    ],
)
def test_row_c4_what_does_not_fit_an_agent_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        AgentConfig(**{"name": "a", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m"},
        {"provider": "demo"},
        {"mode": "interactive"},
        {"mode": "cli", "command": ("true",), "env": ("LANG",), "cwd": ".", "max_output_kb": 1},
        {"mode": "hybrid", "agents": ("a", "b", "c"), "strategy": "race"},
        {"mode": "hybrid", "agents": ("a", "b"), "strategy": "review", "rounds": 0},
    ],
)
def test_row_c4_each_mode_has_an_agent_that_fits(fields: dict[str, Any]) -> None:
    made = AgentConfig(**{"name": "a", **fields})
    assert AgentConfig.model_validate_json(made.model_dump_json(exclude_unset=True)) == made


def test_row_c5_bounds_are_filled_from_those_below() -> None:
    task = AgentTask(id="t", description="x", timeout_s=1)
    agent = AgentConfig(name="a", model="m", timeout_s=2, retry=Retry(attempts=2))
    given = Bounds(timeout_s=3, retry=Retry(attempts=3), budget=Budget(tokens=5))
    assert task.over(agent).over(given) == Bounds(timeout_s=1, retry=Retry(attempts=2), budget=Budget(tokens=5))
    assert Bounds().over(given) == given


def test_row_c5_a_result_without_an_end_has_no_duration() -> None:
    result = ExecutionResult(task="t", status=ExecutionStatus.IN_PROGRESS, started_at=datetime.now(UTC))
    assert (result.ok, result.duration, result.cost) == (False, None, Decimal(0))
    assert result.usage.total == 0
    error = result.failure()
    assert (error.message, error.code) == ("the task 't' is in_progress", "agent_failed")
