"""`Tally`: what is known of a task while it is done, and the result it ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from penstock.events import Event, Retrying, Used, summed
from penstock.messages import Usage
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes import Answer
from penstock.tasks.results import ExecutionResult, ExecutionStatus, Fault, Review

if TYPE_CHECKING:
    from pydantic import SecretStr

    from penstock.tasks.modes.hidden import Hidden

_ENDS = {
    "cancelled": ExecutionStatus.CANCELLED,
    "blocked": ExecutionStatus.BLOCKED,
    "outcome_unknown": ExecutionStatus.UNKNOWN,
}


class Tally:
    """Counts attempts, tokens and cost from what is told on a run: `run.listening(tally.note)`."""

    __slots__ = ("_agents", "_attempts", "_cost", "_llms", "_reviews", "_started", "_task", "_usage", "agent")

    def __init__(self, task: str, agents: Iterable[AgentConfig], llms: Callable[[], Iterable[object]]) -> None:
        self._task, self._agents, self._llms = task, agents, llms
        self.agent: AgentConfig | None = None
        self._attempts = 0
        self._usage = Usage()
        self._cost: Decimal | None = Decimal(0)
        self._started = datetime.now(UTC)
        self._reviews: list[Review] = []

    def begin(self) -> None:
        """The first attempt starts now."""
        self._attempts, self._started = 1, datetime.now(UTC)

    def judge(self, review: Review) -> None:
        """Take in what a reviewer said."""
        self._reviews.append(review)

    def note(self, event: Event) -> None:
        """Take in an event; an attempt is counted where the task itself begins anew, not a call inside it."""
        if isinstance(event, Used):
            self._usage, self._cost = self._usage + event.usage, summed(self._cost, event)
        elif isinstance(event, Retrying) and not event.path:
            self._attempts += 1

    def succeeded(self, answer: Answer) -> ExecutionResult:
        """The result with what the agent gave."""
        hidden = self._hidden()
        return self._result(ExecutionStatus.SUCCESS, hidden, output=hidden.json(answer.output))

    def failed(self, error: Exception) -> ExecutionResult:
        """The result with an error."""
        fault, hidden = Fault.of(error), self._hidden()
        fault = replace(fault, message=hidden.text(fault.message), details=hidden.json(fault.details))
        return self._result(_ENDS.get(fault.code or "", ExecutionStatus.FAILED), hidden, error=fault)

    def _result(
        self, status: ExecutionStatus, hidden: Hidden, *, output: Any = None, error: Fault | None = None
    ) -> ExecutionResult:
        return ExecutionResult(
            task=self._task,
            agent=self.agent.name if self.agent else "",
            status=status,
            output=output,
            error=error,
            attempts=self._attempts,
            usage=self._usage,
            cost=self._cost,
            started_at=self._started,
            completed_at=datetime.now(UTC),
            reviews=tuple(replace(one, unmet=tuple(map(hidden.text, one.unmet))) for one in self._reviews),
        )

    def _hidden(self) -> Hidden:
        """What takes the keys of agents and their LLMs out of whatever a service, a model or a command says."""
        from penstock.tasks.modes.hidden import Hidden

        agents = [*self._agents] if self.agent is None else [*self._agents, self.agent]
        owners: dict[SecretStr, set[str]] = {}
        for agent in agents:
            if agent.api_key is not None:
                owners.setdefault(agent.api_key, set()).add(agent.name)
        others = dict.fromkeys(secret for llm in self._llms() for secret in getattr(llm, "hides", ()))
        keys = {
            f"key of {next(iter(names))}" if len(names) == 1 else f"key {number} of several agents": key
            for number, (key, names) in enumerate(owners.items(), 1)
        }
        return Hidden({name: key.get_secret_value() for name, key in keys.items()}, others)
