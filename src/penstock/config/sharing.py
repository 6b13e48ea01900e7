"""Common calls for tasks of an agent that are ready together, where the agent allows it: its `batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from penstock.errors import BadAnswer, PenstockError
from penstock.tasks.modes import Answer, Work
from penstock.tasks.modes.api import api, fields_of
from penstock.tasks.prompt import prompt_of

if TYPE_CHECKING:
    from penstock.batch.outcomes import ItemOutcome
    from penstock.run import Executor, Run
    from penstock.tasks.agents import AgentConfig
    from penstock.tasks.modes.api import Chat

_TASKS = "Each item's data is a task. Its value is the result of that task alone, as text."


class Result(msgspec.Struct, frozen=True):
    """The result of one task."""

    text: str


class Shared:
    """Asks an agent's LLM for the results of several tasks at once.

    What a review sends back, and a verdict, which has a schema of its own, are asked for alone.
    """

    def __init__(self, agent: AgentConfig, llm: Chat, *, size: int) -> None:
        from penstock.batch.batch import Batch
        from penstock.batch.patience import Watched
        from penstock.batch.planner import Planner
        from penstock.batch.waiting import Waiting

        instructions = "\n\n".join(part for part in (agent.instructions, _TASKS) if part)
        params = fields_of(agent)
        self._watched = Watched(llm)
        batch = Batch(
            self._watched,
            Result,
            instructions=instructions,
            planner=Planner(size),
            model=agent.model,
            params=params,
            attempts=1,  # the agent and its model have policies of their own
        )
        self._waiting = Waiting(batch, size=size)
        self._alone = api(agent, llm)

    async def __call__(self, work: Work, run: Run, /) -> Answer:
        """The answer of one task; raises what the call failed with, and `BadAnswer` where that gave none."""
        from penstock.batch.items import Item

        if work.feedback or work.schema is not None:
            return await self._alone(work, run)
        outcome = await self._waiting(Item(work.task.id, prompt_of(work)), run)
        if not outcome.ok:
            raise self._failure(outcome, work.agent.name)
        return Answer(outcome.value.text, work.agent.name)

    def _failure(self, outcome: ItemOutcome, agent: str) -> PenstockError:
        """Why there is no result: what the last call failed with, where that is why."""
        last = outcome.faults[-1].message if outcome.faults else ""
        for error in reversed(self._watched.failures):
            if str(error) and last.endswith(f"{type(error).__name__}: {error}"):
                return error
        problems = "; ".join(f"{fault.kind}: {fault.message}" for fault in outcome.faults)
        return BadAnswer(f"the model of {agent!r} gave no result: {problems}")


def asking(agent: AgentConfig, llm: Chat) -> Executor[Work, Answer]:
    """How an agent's LLM is asked: once for each task, or for several together."""
    return api(agent, llm) if agent.batch is None else Shared(agent, llm, size=agent.batch)
