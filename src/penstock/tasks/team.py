"""`Team`: the agents that do one task under its bounds: who does it, who checks it, and the members of a hybrid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from penstock.errors import TaskFailed
from penstock.policies import Policy, wrap
from penstock.policies.budget import budget
from penstock.policies.retry import retry
from penstock.policies.timeout import timeout
from penstock.run import Executor, Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds
from penstock.tasks.modes import Answer, Work
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.review import reviewed
from penstock.tasks.slots import Turns

if TYPE_CHECKING:
    from penstock.tasks.modes.interactive import Ask


class Team:
    """Does one task: its time and its budget, of which `owner` is told, are those of all attempts and reviews together.

    Each agent speaks at the path of its name. What it told is progress and not the answer, so an attempt that had said
    something may be made again.
    """

    def __init__(  # what the agents of a task share
        self,
        agents: AgentRegistry,
        bounds: Bounds,
        owner: str,
        *,
        api: Callable[[AgentConfig], Executor[Work, Answer]],
        ask: Ask | None,
        turns: Turns,
    ) -> None:
        self._agents, self._bounds = agents, bounds
        self._api, self._ask, self._turns = api, ask, turns
        self._budgets = tuple(_budgets(bounds, owner))

    async def __call__(self, work: Work, run: Run, /) -> Answer:
        """The answer of the work's agent, which the task's reviewer, if it has one, accepts."""
        whole = wrap(self._accepted, self._budgets)
        if self._bounds.timeout_s is not None:
            whole = self._turns.within(self._bounds.timeout_s, whole)
        return await whole(work, run)  # type: ignore[no-any-return]

    async def member(self, work: Work, run: Run, /) -> Answer:
        """The answer of one of a hybrid's agents, within the bounds of its own."""
        return await self._within(work.agent, work, run)

    async def _accepted(self, work: Work, run: Run, /) -> Answer:
        do = wrap(self._alone, _retries(self._bounds))
        if work.task.review is None:
            return await do(work, run)  # type: ignore[no-any-return]
        reviewer = self._agents.get(work.task.review)
        return await reviewed(work, run, do=do, check=self._checked, reviewer=reviewer, rounds=work.task.rework)

    async def _checked(self, work: Work, run: Run, /) -> Answer:
        return await self._within(work.agent.over(Bounds(retry=self._bounds.retry)), work, run)

    async def _within(self, bounds: Bounds, work: Work, run: Run) -> Answer:
        """The answer of the work's agent, once it is its turn, within these bounds and what is left of the task's."""
        own = _budgets(bounds, f"the agent {work.agent.name!r}")
        call = wrap(self._working(work.agent), [*_timeouts(bounds), *_retries(bounds), *own, *self._budgets])
        async with self._turns.of(work.agent):
            return await call(work, run.child(work.agent.name))  # type: ignore[no-any-return]

    async def _alone(self, work: Work, run: Run, /) -> Answer:
        return await self._within(Bounds(), work, run)

    def _working(self, agent: AgentConfig) -> Executor[Work, Answer]:
        """How an agent works, by its mode."""
        match agent.mode:
            case "api":
                return self._api(agent)
            case "cli":
                from penstock.tasks.modes.cli import cli

                return cli
            case "interactive":
                from penstock.tasks.modes.interactive import ask_terminal, interactive

                return interactive(self._ask or ask_terminal)
            case "hybrid":
                from penstock.tasks.modes.hybrid import hybrid

                return hybrid(self._agents.get, self.member)


def _timeouts(bounds: Bounds) -> Iterable[Policy]:
    if bounds.timeout_s is not None:
        yield timeout(bounds.timeout_s, error=partial(TaskFailed, code="timeout"))


def _retries(bounds: Bounds) -> Iterable[Policy]:
    if bounds.retry is not None:
        said = bounds.retry
        yield retry(attempts=said.attempts, base_s=said.base_s, max_s=said.max_s, silent=True)


def _budgets(bounds: Bounds, owner: str) -> Iterable[Policy]:
    if bounds.budget is not None and bounds.budget.tokens is not None:
        yield budget(bounds.budget.tokens, name=f"tokens of {owner}")
    if bounds.budget is not None and bounds.budget.usd is not None:
        from penstock.llms.prices import cost_of

        yield budget(bounds.budget.usd, cost=cost_of, name=f"USD of {owner}")
