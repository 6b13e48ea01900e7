"""`AgentTask`: a piece of work for an agent, and what it needs of other tasks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from penstock.tasks.bounds import Bounds, Name


class AgentTask(Bounds):
    """One task of a project.

    `agent` is who does it; without one it is given to the first enabled agent that has all its `capabilities`.
    `inputs` are JSON values for the prompt, or for a command's stdin. Of tasks that are held back by a limit those of
    higher `priority` start first. `review` names an agent that checks the success criteria; what it does not accept
    is done again, at most `rework` times.
    """

    id: Name
    description: Annotated[str, Field(min_length=1)]
    title: str = ""
    deliverables: tuple[str, ...] = ()
    success_criteria: tuple[str, ...] = ()
    depends_on: tuple[Name, ...] = ()
    agent: Name | None = None
    capabilities: tuple[Name, ...] = ()
    priority: float = 0
    inputs: dict[str, Any] = Field(default_factory=dict)
    review: Name | None = None
    rework: Annotated[int, Field(ge=0, le=10)] = 1
