"""`ProjectSpec`: a project as it is written, its tasks, what holds for all of them, and its limits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from penstock.errors import UsageError
from penstock.tasks.bounds import Bounds, Budget, Name, Spec
from penstock.tasks.graph import Graph, graph_of
from penstock.tasks.task import AgentTask


class Defaults(Bounds):
    """What holds for tasks that do not say it themselves.

    `agent` does the tasks that name neither an agent nor capabilities; `review` checks what it did not do itself.
    """

    agent: Name | None = None
    review: Name | None = None

    def fill(self, task: AgentTask, doer: str | None = None) -> AgentTask:
        """A task with its agent and its reviewer, where it says nothing; its bounds are left to its agent first.

        `doer` is who does it, where that is known. As long as nobody knows, the task is given no reviewer: nobody
        reviews their own work.
        """
        filled: dict[str, Any] = {}
        if task.agent is None and not task.capabilities and self.agent is not None:
            filled["agent"] = self.agent
        doer = doer or filled.get("agent", task.agent)
        if task.review is None and doer is not None and self.review not in (None, doer):
            filled["review"] = self.review
        return task.model_copy(update=filled) if filled else task

    @property
    def bounds(self) -> Bounds:
        """The bounds alone."""
        return Bounds(timeout_s=self.timeout_s, retry=self.retry, budget=self.budget)


class ProjectLimits(Spec):
    """How many tasks run at once, how many calls each agent and each provider gets at once, and what all may spend.

    `agents` and `providers` limit whoever is called: those who do tasks, reviewers, and the members of hybrids.
    """

    concurrent: Annotated[int, Field(ge=1)] = 8
    agents: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    providers: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    budget: Budget | None = None


class ProjectSpec(Spec):
    """A project: a graph of tasks given to agents, who are found by their names."""

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    goal: str = ""
    defaults: Defaults = Defaults()
    limits: ProjectLimits = ProjectLimits()
    tasks: tuple[AgentTask, ...]

    def graph(self) -> Graph:
        """Who needs whom; raises `UnknownName`, `CyclicPlan`, `UsageError` for a name that stands twice."""
        needs = {task.id: task.depends_on for task in self.tasks}
        if len(needs) < len(self.tasks):
            named = [task.id for task in self.tasks]
            twice = next(name for name in named if named.count(name) > 1)
            raise UsageError(f"there are two tasks {twice!r}: choose another name for one")
        return graph_of(needs)

    def payload(self) -> dict[str, Any]:
        """The project as JSON, as an engine is given it; what has its default value is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)
