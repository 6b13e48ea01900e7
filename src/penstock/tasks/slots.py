"""`Slots`: how many calls of each agent and each provider go on at once; whoever finds none free waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from penstock.errors import TaskFailed
from penstock.events import Event
from penstock.policies.timeout import Deadline
from penstock.run import Executor, Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.project import ProjectLimits
from penstock.tasks.registry import provider_of

Request = TypeVar("Request")
Result = TypeVar("Result")


class Slots:
    """The slots that a project's limits give; without limits those of each agent's own `concurrent`.

    An agent whose limit was changed has new ones for its next calls. Each event loop has its own.
    """

    def __init__(self, limits: ProjectLimits | None = None) -> None:
        self._own = limits is None
        self._agents = {} if limits is None else limits.agents
        self._providers = {} if limits is None else {provider_of(name): n for name, n in limits.providers.items()}
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], asyncio.Semaphore]]
        self._loops = WeakKeyDictionary()

    def of(self, agent: AgentConfig, provider: Callable[[AgentConfig], str]) -> list[asyncio.Semaphore]:
        """All that a call of the agent must hold, in the order it is to be taken."""
        wanted = {f"agent:{agent.name}": agent.concurrent if self._own else self._agents.get(agent.name)}
        if self._providers:
            name = provider(agent)
            wanted[f"provider:{name}"] = self._providers.get(name)
        limited = [(key, most) for key, most in wanted.items() if most is not None]
        if not limited:
            return []
        here = self._loops.setdefault(asyncio.get_running_loop(), {})
        return [here.setdefault(each, asyncio.Semaphore(each[1])) for each in limited]


class Turns:
    """The turns of one task's agents, each with all the slots it needs, and the time of the task.

    The time stands still while every agent of the task that is to be called waits. A hybrid holds its slots while its
    members wait for theirs, and no agent is a part of itself: nobody waits for a slot in a circle.
    """

    def __init__(
        self, slots: Callable[[AgentConfig], Sequence[asyncio.Semaphore]], *, begun: Callable[[], None]
    ) -> None:
        self._slots, self._begun = slots, begun
        self._deadline: Deadline | None = None
        self._working = self._waiting = 0
        self._still = False

    def within(self, seconds: float, executor: Executor[Request, Result]) -> Executor[Request, Result]:
        """The executor with a limit on its time; raises `TaskFailed` with the code `timeout`."""

        async def call(request: Request, run: Run, /) -> Result:
            self._deadline = deadline = Deadline(seconds)
            try:
                return await deadline.over(executor(request, run.telling(partial(_tell, deadline, run.emit))))
            except TimeoutError as late:
                if not deadline.expired:
                    raise
                raise TaskFailed(f"not finished within {seconds:g} s", code="timeout") from late

        return call

    @asynccontextmanager
    async def of(self, agent: AgentConfig) -> AsyncGenerator[None]:
        """A turn of an agent: `async with turns.of(agent): ...`."""
        async with AsyncExitStack() as stack:
            with self._counted(waiting=1):
                for slot in self._slots(agent):
                    await stack.enter_async_context(slot)
            self._begun()
            with self._counted(working=agent.mode != "hybrid"):
                yield

    @contextmanager
    def _counted(self, *, waiting: int = 0, working: int = 0) -> Generator[None]:
        self._count(waiting, working)
        try:
            yield
        finally:
            self._count(-waiting, -working)

    def _count(self, waiting: int, working: int) -> None:
        self._waiting += waiting
        self._working += working
        still = self._waiting > 0 and not self._working
        deadline = self._deadline
        if deadline is not None and still != self._still and not deadline.expired:  # which is to cancel once
            self._still = still
            (deadline.pause if still else deadline.resume)()


async def _tell(deadline: Deadline, emit: Callable[[Event], Awaitable[None]], event: Event) -> None:
    """Tell an event; the time that the client takes to listen does not count."""
    deadline.pause()
    try:
        await emit(event)
    finally:
        deadline.resume()
