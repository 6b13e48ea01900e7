"""How agents work: one module for each mode, each with one executor from `Work` to `Answer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from penstock.messages import Usage
from penstock.tasks.agents import AgentConfig
from penstock.tasks.results import Review
from penstock.tasks.task import AgentTask


def _untold(_: Review) -> None:
    pass


class Work(msgspec.Struct, frozen=True):
    """A task as an agent is given it, with the outputs of the tasks it depends on.

    `feedback` is what a review asks, and `last` what the agent gave before that; `schema` is the JSON schema that the
    output should fit, of a verdict for one. `judged` is told what reviewers say of it. The task has
    `timeout_s` seconds in all.
    """

    task: AgentTask
    agent: AgentConfig
    results: Mapping[str, Any] = {}
    feedback: tuple[str, ...] = ()
    last: Any = None
    schema: Mapping[str, Any] | None = None
    judged: Callable[[Review], None] = _untold
    timeout_s: float | None = None


class Answer(msgspec.Struct, frozen=True):
    """What an agent gave: text, or another JSON value, and who did it; its tokens were told on the run."""

    output: Any
    agent: str = ""


class Spent(msgspec.Struct, frozen=True):
    """What a command says it used, in the `usage` of its answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: Decimal | None = None

    @property
    def usage(self) -> Usage:
        """These tokens."""
        return Usage(self.prompt_tokens, self.completion_tokens, self.prompt_tokens + self.completion_tokens)
