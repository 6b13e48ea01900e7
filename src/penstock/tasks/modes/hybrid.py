"""How an agent of mode `hybrid` works: several agents do the task together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from penstock.errors import LimitReached, PenstockError, TaskFailed
from penstock.events import Switched
from penstock.root import outlive
from penstock.run import Executor, Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes import Answer, Work
from penstock.tasks.results import Fault
from penstock.tasks.review import reviewed


def hybrid(find: Callable[[str], AgentConfig], member: Executor[Work, Answer]) -> Executor[Work, Answer]:
    """The executor of agents that consist of others, which `find` gives by their names and `member` lets work.

    `race`: all at once; the first result counts, the others are cancelled, and have ended before it is returned.
    `fallback`: one after the other until one succeeds, told as `Switched`; a `LimitReached` ends it. `review`: the
    first does it, the second checks it, as `reviewed` has it. The answer names the one who did it. Where all fail, a
    `TaskFailed` with the code `agent_failed` lists each of them with its error. Any error that is not a
    `PenstockError` is a mistake in the program, and passes at once.
    """

    async def call(work: Work, run: Run, /) -> Answer:
        agents = [find(name) for name in work.agent.agents]
        match work.agent.strategy:
            case "race":
                return await _race(work, run, agents, member)
            case "fallback":
                return await _fallback(work, run, agents, member)
            case "review":
                doer, reviewer = agents

                async def do(work: Work, run: Run, /) -> Answer:
                    return await member(replace(work, agent=doer), run)

                return await reviewed(work, run, do=do, check=member, reviewer=reviewer, rounds=work.agent.rounds)

    return call


async def _fallback(work: Work, run: Run, agents: Sequence[AgentConfig], member: Executor[Work, Answer]) -> Answer:
    failures = list[PenstockError]()
    for agent in agents:
        if failures:
            await run.emit(Switched(to=agent.name, error=failures[-1]))
        try:
            return await member(replace(work, agent=agent), run)
        except LimitReached:
            raise
        except PenstockError as error:
            failures.append(error)
    raise _all_failed(work.agent, zip(agents, failures, strict=True)) from failures[-1]


async def _race(work: Work, run: Run, agents: Sequence[AgentConfig], member: Executor[Work, Answer]) -> Answer:
    racing = {asyncio.create_task(member(replace(work, agent=agent), run)): agent for agent in agents}
    failures: dict[asyncio.Task[Answer], PenstockError] = {}
    try:
        while len(failures) < len(racing):
            await asyncio.wait(racing.keys() - failures, return_when=asyncio.FIRST_COMPLETED)
            for task in racing:
                if task.done() and task not in failures:
                    try:
                        return task.result()
                    except PenstockError as error:
                        failures[task] = error
    finally:
        for task in racing:
            task.cancel()
        await outlive(asyncio.create_task(_ended(racing)))
    raise _all_failed(work.agent, ((agent, failures[task]) for task, agent in racing.items()))


async def _ended(tasks: Iterable[asyncio.Task[Answer]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _all_failed(agent: AgentConfig, failures: Iterable[tuple[AgentConfig, PenstockError]]) -> TaskFailed:
    each = [(member.name, error) for member, error in failures]
    return TaskFailed(
        f"all agents of {agent.name!r} failed: {'; '.join(f'{name!r}: {error}' for name, error in each)}",
        code="agent_failed",
        details=[{"agent": name, **msgspec.to_builtins(Fault.of(error))} for name, error in each],
        retryable=any(error.retryable for _, error in each),
    )
