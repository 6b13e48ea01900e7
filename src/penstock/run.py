"""The one contract: an executor takes a request and a run, tells events on the run, and returns its result.

    async def shout(request: str, run: Run) -> str:
        await run.emit(Text(request.upper()))
        return request.upper()

    result = await execute(shout, "hello", listener)              # push
    async with execute_stream(shout, "hello") as execution:       # pull
        async for event in execution: ...

A timeout, a retry, a limit or a trace is a function from executor to executor, so they nest in any order. Only
`execute` and `execute_stream` make a root, and the root decides the end, once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from penstock.events import Event, Fold, Text, Told
from penstock.messages import ChatReply, Usage
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.root import Closing, Listener, ListenerFailed, Root, abandon, outlive

if TYPE_CHECKING:
    from opentelemetry.trace import Span

PULL_BUFFER = 64

Emit: TypeAlias = Callable[[Event], Awaitable[None]]

Request = TypeVar("Request", contravariant=True)
Result = TypeVar("Result", covariant=True)
Value = TypeVar("Value")


class Executor(Protocol[Request, Result]):
    """Anything that can be run: called with a request and a run, it returns or raises exactly once."""

    async def __call__(self, request: Request, run: Run, /) -> Result:
        """Do the work; tell events with `await run.emit(event)`."""
        ...


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a run works: a name, the tenant it belongs to, and the scopes it holds."""

    name: str
    tenant: str = ""
    scopes: frozenset[str] = frozenset()

    def holds(self, scope: str) -> bool:
        """Whether the scope is held; `admin` implies all."""
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Principal("local", "local", frozenset({"admin"}))


def _fan(taps: tuple[Listener, ...], emit: Emit) -> Emit:
    async def tell(event: Event) -> None:
        for tap in taps:
            if (taking := tap(event)) is not None:
                await taking
        await emit(event)

    return tell


class Run(msgspec.Struct, frozen=True):
    """The handle an executor is given: where it speaks (`path`), on whose behalf (`principal`), under which `span`.

    `await run.emit(event)` tells an event; it returns when the listener has taken it, so a slow client slows the model
    instead of filling memory.
    """

    path: str
    emit: Emit
    principal: Principal
    span: Span | None
    _root: Root
    _taps: tuple[Listener, ...] = ()
    _untapped: Emit | None = None

    def __repr__(self) -> str:
        return f"Run(path={self.path!r}, principal={self.principal!r}, span={self.span!r})"

    def child(self, name: str) -> Run:
        """The run of something this executor calls; what it tells carries its path and is not the answer's text."""
        path = f"{self.path}/{name}" if self.path else name
        emit = self.emit

        async def tell(event: Event) -> None:
            if isinstance(event, Told):
                await emit(event if event.path else replace(event, path=path))
            else:
                raise TypeError(f"{type(event).__name__} is told by the root alone")

        return replace(self, path=path, emit=tell, _taps=(), _untapped=None)

    def listening(self, listener: Listener) -> Run:
        """The same run with one more listener, which hears an event before the client does: how a policy taps events.

        A plain function costs less than a coroutine function, here and at the root.
        """
        taps, untapped = (listener, *self._taps), self._untapped or self.emit
        return replace(self, emit=_fan(taps, untapped), _taps=taps, _untapped=untapped)

    def telling(self, emit: Emit) -> Run:
        """The same run whose events go through `emit`: for a policy that changes events, or times them."""
        return replace(self, emit=emit, _taps=(), _untapped=None)

    def under(self, span: Span) -> Run:
        """The same run below a span."""
        return replace(self, span=span)

    def closing(self, hook: Closing) -> None:
        """Call `hook(outcome)` when the root's end is fixed, before it is told; hooks added last are called first."""
        self._root.hooks += (hook,)


async def execute(
    executor: Executor[Request, Value],
    request: Request,
    listener: Listener | None = None,
    *,
    principal: Principal | None = None,
    parent: Span | None = None,
    closing: Iterable[Closing] = (),
) -> Value:
    """Run an executor as a root: push its events to `listener`, fix and store its end, tell it, return its result.

    Raises what the executor raised, or what the listener raised when that ended the run. `parent` is the span to work
    under; `closing` hooks receive the outcome before the terminal event is told, within 5 s in all.
    """
    root = Root(listener, closing)
    run = Run("", root.tell, principal or LOCAL, parent, root)
    outcome: Outcome[Value]
    try:
        outcome = Finished(await executor(request, run))
    except Exception as error:  # the root turns how a run ended into a value, and raises it again below
        outcome = Failed(error)
    except GeneratorExit:
        abandon(root)
        raise
    except BaseException as stop:
        outcome = Cancelled(str(stop) or "cancelled")
        if root.failure is None or isinstance(stop, asyncio.CancelledError):
            await root.settle(outcome)
            raise
    outcome = await root.settle(outcome)
    if isinstance(outcome, Finished):
        return outcome.result
    try:
        raise outcome.error if isinstance(outcome, Failed) else root.failure or ListenerFailed(outcome.reason)
    finally:
        del outcome, root  # the error's traceback holds this frame, which must not hold the error


class Execution(Generic[Value]):
    """One run, pulled: enter it once, iterate it once. `content`, `usage` and `cost` grow while it runs."""

    def __init__(self, start: Callable[[Listener], Coroutine[Any, Any, Value]]) -> None:
        self._start = start
        self._task: asyncio.Task[Value] | None = None
        self._iterated = self._left = self._raised = self._ended = False
        self._events: deque[Event] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._fold = Fold()

    async def __aenter__(self) -> Execution[Value]:
        if self._task is not None:
            raise RuntimeError("an execution is single-use: call execute_stream again")
        self._task = asyncio.create_task(self._start(self._tell))
        self._task.add_done_callback(self._notify)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        task = self._task
        if task is None:
            return
        self._left = True
        self._room.set()
        # Soon, not now: a task that is cancelled before its first step would never settle.
        if not self._ended and not task.done():
            asyncio.get_running_loop().call_soon(task.cancel, "the consumer left early")
        await outlive(task)
        failure = None if task.cancelled() else task.exception()
        if kind is None and failure is not None and not self._raised:
            raise failure

    def __aiter__(self) -> Execution[Value]:
        if self._task is None:
            raise RuntimeError("enter the execution first: async with execute_stream(...) as execution")
        if self._iterated:
            raise RuntimeError("an execution is single-use: it is already iterated")
        self._iterated = True
        return self

    async def __anext__(self) -> Event:
        task = self._task
        if task is None or self._wake is not None:
            raise RuntimeError("an execution is iterated by one task, after it was entered")
        while not self._events:
            if self._left:
                raise RuntimeError("an execution is iterated inside its block")
            if task.done():
                self._raised = True
                try:
                    task.result()
                except StopAsyncIteration as error:  # raised as it is, it would look like the end of the iteration
                    raise RuntimeError("the executor raised StopAsyncIteration") from error
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        event = self._events.popleft()
        if len(self._events) == PULL_BUFFER // 2:
            self._room.set()
        return event

    def _tell(self, event: Event) -> Awaitable[None] | None:
        self._fold.add(event)
        if not isinstance(event, Told):
            self._ended = True
        elif self._left:
            return asyncio.sleep(0)  # so that the cancel reaches an executor that does nothing but tell
        self._events.append(event)
        self._notify()
        if len(self._events) < PULL_BUFFER or self._ended:
            return None
        self._room.clear()
        return self._take()

    async def _take(self) -> None:
        await self._room.wait()

    def _notify(self, _: object = None) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    @property
    def result(self) -> Value:
        """What the executor returned; raises what it raised, and `RuntimeError` until it is finished."""
        if self._task is None or not self._task.done():
            raise RuntimeError("the execution has not finished")
        if self._task.cancelled():
            raise RuntimeError("the execution was cancelled")
        return self._task.result()

    @property
    def content(self) -> str:
        """The answer's text so far."""
        return self._fold.content

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return self._fold.reasoning

    @property
    def usage(self) -> Usage:
        """The usage told so far, of all paths."""
        return self._fold.usage

    @property
    def cost(self) -> Decimal | None:
        """What the calls told so far cost in USD, those of all paths; None as soon as one is not known."""
        return self._fold.cost


def execute_stream(
    executor: Executor[Request, Value],
    request: Request,
    *,
    principal: Principal | None = None,
    parent: Span | None = None,
    closing: Iterable[Closing] = (),
) -> Execution[Value]:
    """A run to pull events from: `async with execute_stream(executor, request) as execution`.

    Leaving the block early cancels the run and waits for its end. After the terminal event the iteration stops, or
    raises what the executor raised.
    """
    return Execution(partial(execute, executor, request, principal=principal, parent=parent, closing=closing))


def run_sync(executor: Executor[Request, Value], request: Request, *, principal: Principal | None = None) -> Value:
    """Run an executor from a script and return its result."""
    return asyncio.run(execute(executor, request, principal=principal))


def from_stream(
    generate: Callable[[Request], AsyncGenerator[Event | str, None]],
) -> Executor[Request, ChatReply]:
    """An executor from an async generator function that yields text or events; the generator is always closed."""

    async def executor(request: Request, run: Run, /) -> ChatReply:
        fold = Fold()
        async with aclosing(generate(request)) as items:
            async for item in items:
                event = Text(item) if isinstance(item, str) else item
                fold.add(event)
                await run.emit(event)
        return fold.reply(fold.usage)

    return executor
