"""What runs flows so that they survive: one small interface, whatever machine the steps run on.

A flow is an async function that is registered by name. It is given a `Flow` and its payload, which is JSON, and does
its work in steps: calls of functions that are registered by name too, with payloads and results that are JSON. What a
step gave is stored before anything that needs it starts. When the process dies, the flow is called again and does the
same things; a step that has ended is not run again, but gives what it gave. So between its steps a flow is
deterministic: no clock, no chance, no input but its payload and what its steps gave.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from penstock.errors import UsageError
from penstock.run import Executor, Run
from penstock.store.steps import Logged, Step

Json: TypeAlias = Any
Part = TypeVar("Part")


class Call(msgspec.Struct, frozen=True):
    """What a step's function is given: the run and the step it works for, its payload, what the steps before gave."""

    run: str
    step: str
    payload: Json
    results: Mapping[str, Json]


StepFunction: TypeAlias = Executor[Call, Json]
FlowFunction: TypeAlias = "Callable[[Flow, Json], Awaitable[Json]]"


class Flow(Protocol):
    """The steps of one run, whose name is `run`."""

    run: str

    @property
    def within(self) -> Run | None:
        """The run (of an execution) that hears what steps tell from now on, each at the path of its name.

        What is logged is told at its own path, as `Item(value=Logged(...))`, in order and to the end.
        """
        ...

    @within.setter
    def within(self, run: Run | None) -> None: ...

    @property
    def steps(self) -> Mapping[str, Step]:
        """How the steps stand at this moment, those of an earlier process included."""
        ...

    def step_of(self, step: str) -> Step | None:
        """How one step stands, without a look at the others; None for one that is not there."""
        ...

    def limit(self, total: int | None = None, each: Mapping[str, int] | None = None) -> None:
        """Bound how many steps run at once, in all and for each key; before the first step."""
        ...

    def spawn(  # all that is known of a step  # noqa: PLR0913
        self,
        step: str,
        function: str,
        payload: Json = None,
        *,
        after: Iterable[str] = (),
        effects: bool = False,
        keys: Sequence[str] = (),
        priority: float = 0,
    ) -> None:
        """Add a step, which starts once those it comes `after` have succeeded, and whose results it is given.

        One with `effects` is never started twice without being asked: where it was interrupted it is `unknown`.
        Raises `UsageError` for a name that is taken, `UnknownName` for a step or a function that is not there.
        """
        ...

    async def wait(self, *steps: str) -> Mapping[str, Step]:
        """How steps ended, all that were spawned when none is named; a failed one is a value here."""
        ...

    async def step(self, step: str, function: str, payload: Json = None, **options: Any) -> Json:
        """Spawn a step and wait for it; raises `TaskFailed` with its fault's code where it did not succeed."""
        ...

    async def emit(self, kind: str, value: Json = None) -> int:
        """Log something that happened, once, also when the flow is called again: its offset."""
        ...


class RunState(StrEnum):
    """How a run stands. An `INTERRUPTED` one has no living process: `start` goes on with it."""

    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run as an engine knows it: what it gave (`value`) or its fault, how its steps stand, the end of its log.

    `at` is when it began, in seconds since 1970.
    """

    run: str
    flow: str
    payload: Json
    state: RunState
    value: Json = None
    steps: Mapping[str, Step] = {}
    offset: int = 0
    at: float = 0.0

    def part(self, kind: type[Part]) -> Part:
        """The payload as a type that has what is needed of it; of one that is not decoded, only that is.

        Raises `UsageError` for a payload that does not have it.
        """
        try:
            if isinstance(self.payload, msgspec.Raw):
                return msgspec.json.decode(self.payload, type=kind)
            return msgspec.convert(self.payload, kind)
        except msgspec.ValidationError as error:
            raise UsageError(f"the payload of the run {self.run!r} is another one: {error}") from error


class Engine(Protocol):
    """Runs flows by name; a run is known by a name of its own."""

    def register(self, name: str, function: StepFunction) -> None:
        """Let flows call a step function by this name."""
        ...

    def function(self, name: str) -> StepFunction | None:
        """The step function that is registered by a name; None where there is none."""
        ...

    def register_flow(self, name: str, function: FlowFunction) -> None:
        """Let runs be started of a flow by this name."""
        ...

    async def start(self, run: str, flow: str, payload: Json = None, *, within: Run | None = None) -> None:
        """Begin a run, or go on with one that was interrupted; returns when it is stored that it runs.

        A run that goes on here already, or has ended, is left as it is: to start twice is to start once. `within` is
        the run (of an execution) that hears what the steps tell, each at its own path. Raises `Conflict` for a name
        that stands for another flow or payload (`idempotency_conflict`), or one that another living process runs
        (`in_progress`), and `UnknownName` for a flow nobody registered.
        """
        ...

    def open(self, run: str, flow: str, payload: Json = None) -> AbstractAsyncContextManager[Flow]:
        """Be the flow of a run yourself, until the block is left: begun, or gone on with, as `start` does it.

        The end of the block is that of the run: it fails with an error, which is raised, and is interrupted by a
        cancel. One that has ended is open again meanwhile. When somebody cancels the run, its steps end `cancelled`,
        those spawned later too, and the block goes on. Raises `Conflict` as `start` does, also for a run that goes on
        here.
        """
        ...

    async def wait(self, run: str) -> RunStatus:
        """How a run that was started here ended; raises what broke it off, such as `StoreFailed`.

        Raises `UsageError` for one that was not, and has not ended.
        """
        ...

    async def status(self, run: str, *, steps: bool = True) -> RunStatus:
        """How a run stands, whoever runs it; without its `steps` quicker by far. Raises `UnknownName`."""
        ...

    async def events(self, run: str, *, after: int = 0, limit: int = 1000, wait_s: float = 0) -> list[Logged]:
        """What is logged of a run behind an offset, which is how a reader who left goes on.

        Where there is nothing yet and the run goes on, it waits at most `wait_s` seconds. Raises `UnknownName`.
        """
        ...

    async def cancel(self, run: str, step: str | None = None, *, reason: str = "cancelled") -> bool:
        """Cancel a run, or one of its steps, whoever runs it; whether there was anything to cancel.

        Returns when that is stored. In a run that nobody runs a step need not have begun, so that its name is not
        checked there; in one that goes on `UnknownName` is raised for one that is not there.
        """
        ...

    async def retry(self, run: str, step: str) -> None:
        """Take back the end of a step that did not succeed, and of those it blocked, so that they run again.

        In a run that goes on they do at once, in another one when it is started again. Raises `UsageError` for a step
        that succeeded or did not end.
        """
        ...

    async def pause(self, run: str) -> None:
        """Start no more steps of a run until `resume`, or until it is started again; those that run go on.

        Raises `UsageError` for a run that does not go on, as `resume` does.
        """
        ...

    async def resume(self, run: str) -> None:
        """Go on after `pause`."""
        ...

    async def rollback(self, run: str, offset: int) -> None:
        """Bring a run that does not go on back to an offset of its log; `start` goes on from there.

        Raises `UsageError` for an offset it does not have, `Conflict` while it goes on.
        """
        ...

    async def forget(self, run: str) -> None:
        """Remove a run that does not go on, with its log. Raises `UnknownName`, `Conflict` while it goes on."""
        ...

    async def runs(self, *, payloads: bool = True) -> list[RunStatus]:
        """All runs that are known, the oldest first, without their steps.

        Without `payloads` these are not decoded, but `msgspec.Raw`, for `RunStatus.part`: quicker by far.
        """
        ...

    async def aclose(self) -> None:
        """Interrupt what runs here, so that it can be started again, and close what is open."""
        ...
