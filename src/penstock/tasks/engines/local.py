"""`LocalEngine`: flows on this machine, in memory or with a journal, where they survive what ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, Self, TypeVar, overload

from penstock.errors import Conflict, StoreFailed, UnknownName, UsageError
from penstock.root import outlive
from penstock.run import Run
from penstock.store.journal import Journal
from penstock.store.steps import Change, Logged, Look, Note, Step
from penstock.tasks.engines import FlowFunction, Json, RunState, RunStatus, StepFunction
from penstock.tasks.engines.live import LocalFlow
from penstock.tasks.engines.memory import Memory
from penstock.tasks.engines.past import (
    LEGAL,
    REOPENED,
    cancelling,
    interrupted,
    past_of,
    reopening,
    status_of,
)
from penstock.tasks.engines.requests import Asked, Post
from penstock.tasks.engines.values import plain
from penstock.tasks.engines.writer import Runs

POLL_S = 0.1
GOING = (RunState.RUNNING, RunState.PAUSED)

Value = TypeVar("Value")


class _Life:
    """The time from when a run is taken until it is stored how it ended; `quiet` where a failure is its end alone."""

    def __init__(
        self, live: LocalFlow, leave: Callable[..., Coroutine[Any, Any, None]], *, quiet: bool = False
    ) -> None:
        self._live, self._leave, self._quiet = live, leave, quiet

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        complete = isinstance(error, Exception)
        try:
            if error is None:
                await self._live.settled()
                complete = True
        finally:
            leaving = asyncio.get_running_loop().create_task(self._leave(self._live, error, complete=complete))
            try:
                await outlive(leaving)
            finally:
                await self._live.told(complete=complete or self._live.cancelled)
            leaving.result()
        return self._quiet and complete and self._live.broken is None


class LocalEngine:
    """An `Engine` whose steps run in this process, with a `Journal` or, without one, as long as the process lives.

    Several processes may share a journal: each run goes on in one of them, all of them see it and may ask that one to
    cancel, retry, pause or resume. The journal is closed with the engine. Raises `StoreFailed` where the journal does.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self._runs: Runs = journal or Memory()
        self._post = None if journal is None else Post(journal, self._obey)
        self._functions: dict[str, StepFunction] = {}
        self._flows: dict[str, FlowFunction] = {}
        self._lives: dict[str, LocalFlow] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stuck: dict[str, StoreFailed] = {}
        self._taking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def register(self, name: str, function: StepFunction) -> None:
        """Let flows call a step function by this name."""
        self._functions[name] = function

    def function(self, name: str) -> StepFunction | None:
        """The step function that is registered by a name; None where there is none."""
        return self._functions.get(name)

    def register_flow(self, name: str, function: FlowFunction) -> None:
        """Let runs be started of a flow by this name."""
        self._flows[name] = function

    async def start(self, run: str, flow: str, payload: Json = None, *, within: Run | None = None) -> None:
        """Begin a run, or go on with one that was interrupted; returns when it is stored that it runs."""
        if flow not in self._flows:
            raise UnknownName(f"no flow {flow!r} is registered: known are {sorted(self._flows)}")
        spec = {"flow": flow, "payload": plain(payload, "the payload")}
        async with self._taking:
            if (live := self._lives.get(run)) is not None:
                _same(run, live.spec, spec)
                return
            with suppress(UnknownName):
                look = await self._runs.look(run, steps=False)
                _same(run, look.spec, spec)
                if past_of(look.notes).ended:
                    return
            if (live := await self._take(run, spec, reopen=False)) is None:
                return
            live.within = within
            live.task = self._tasks[run] = asyncio.create_task(self._live(live, self._flows[flow]))

    @asynccontextmanager
    async def open(self, run: str, flow: str, payload: Json = None) -> AsyncGenerator[LocalFlow]:
        """Be the flow of a run yourself, until the block is left. One that has ended is open again meanwhile.

        Raises `Conflict` where it goes on already (`in_progress`) or is another one (`idempotency_conflict`).
        """
        spec = {"flow": flow, "payload": plain(payload, "the payload")}
        async with self._taking:
            if run in self._lives:
                raise Conflict(f"the run {run!r} goes on here: wait for it, or cancel it", code="in_progress")
            live = await self._take(run, spec, reopen=True)
        async with _Life(live, self._leave):
            yield live

    async def wait(self, run: str) -> RunStatus:
        """How a run that was started here ended; raises what broke it off, such as `StoreFailed`."""
        task = self._tasks.get(run)
        if task is not None:
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()
        status = await self.status(run)
        if task is None and status.state in (*GOING, RunState.INTERRUPTED):
            raise UsageError(f"the run {run!r} was not started here: start it, or ask for its status")
        return status

    async def status(self, run: str, *, steps: bool = True) -> RunStatus:
        """How a run stands, whoever runs it: of its steps those that have begun. Raises `UnknownName`."""
        await self._flush(run)
        return status_of(await self._runs.look(run, steps=steps))

    async def runs(self, *, payloads: bool = True) -> list[RunStatus]:
        """All runs that are known, the oldest first, without their steps; quicker without their `payloads`."""
        await self._unstick()
        return [status_of(look) for look in await self._runs.looks(raw=not payloads)]

    async def events(self, run: str, *, after: int = 0, limit: int = 1000, wait_s: float = 0) -> list[Logged]:
        """What is logged of a run behind an offset, waited for at most `wait_s` seconds. Raises `UnknownName`."""
        await self._flush(run)
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            live = self._lives.get(run)
            writes = 0 if live is None else live.writer.writes
            found = await self._runs.events(run, after=after, limit=limit)
            left = until - asyncio.get_running_loop().time()
            if found or left <= 0:
                return found
            if live is None:
                if status_of(await self._runs.look(run, steps=False)).state not in GOING:
                    return await self._runs.events(run, after=after, limit=limit)
                await asyncio.sleep(min(left, POLL_S))
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(live.writer.beyond(writes), left)

    async def cancel(self, run: str, step: str | None = None, *, reason: str = "cancelled") -> bool:
        """Cancel a run, or one of its steps, whoever runs it; whether there was anything to cancel."""
        return await self._ask(run, Asked("cancel", step, reason))

    async def retry(self, run: str, step: str) -> None:
        """Take back the end of a step that did not succeed, and of those it blocked, so that they run again."""
        await self._ask(run, Asked("retry", step))

    async def pause(self, run: str) -> None:
        """Start no more steps of a run until `resume`. Raises `UsageError` for one that does not go on."""
        await self._ask(run, Asked("pause"))

    async def resume(self, run: str) -> None:
        """Go on after `pause`. Raises `UsageError` for a run that does not go on."""
        await self._ask(run, Asked("resume"))

    async def rollback(self, run: str, offset: int) -> None:
        """Bring a run that does not go on back to an offset of its log."""

        async def back(_: Look) -> None:
            await self._runs.rollback(run, offset)

        async with self._taking:
            await self._at_rest(run, back)

    async def forget(self, run: str) -> None:
        """Remove a run that does not go on, with its log. Raises `UnknownName`, `Conflict` while it goes on."""
        async with self._taking:
            if run in self._lives:
                raise Conflict(f"the run {run!r} goes on here: wait for it, or cancel it", code="in_progress")
            await self._unstick()
            await self._runs.remove(run)
            self._tasks.pop(run, None)

    async def aclose(self) -> None:
        """Interrupt what runs here, so that it can be started again, and close the journal."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel("the engine closes")
        if tasks:
            await asyncio.wait(tasks)
        if self._post is not None:
            await self._post.aclose()
        await self._runs.aclose()

    @overload
    async def _take(self, run: str, spec: Json, *, reopen: Literal[True]) -> LocalFlow: ...
    @overload
    async def _take(self, run: str, spec: Json, *, reopen: Literal[False]) -> LocalFlow | None: ...
    async def _take(self, run: str, spec: Json, *, reopen: bool) -> LocalFlow | None:
        """Take a run and what an earlier process left of it; None for one that has ended, unless it is reopened."""
        await self._unstick()
        steps = await self._runs.begin(run, spec, (), transitions=LEGAL, raw=True)
        taken = False
        try:
            look = await self._runs.look(run, steps=False)
            past = past_of(look.notes)
            if past.ended and not reopen:
                return None
            changes = interrupted(steps)
            await self._runs.write(run, *([Note(REOPENED)] if past.ended else []), *changes)
            steps.update((each.step, Step(each.state, each.value)) for each in changes)
            live = LocalFlow(run, spec, self._runs, functions=self._functions, earlier=steps, past=past)
            live.teller.offset = look.offset - 1
            taken = True
        finally:
            if not taken:
                await self._runs.release(run)
        self._lives[run] = live
        if self._post is not None:
            self._post.attend()
        return live

    async def _live(self, live: LocalFlow, function: FlowFunction) -> None:
        broken = True
        try:
            async with _Life(live, self._leave, quiet=True):
                live.value = plain(await function(live, live.spec["payload"]), f"what the run {live.run!r} gave")
            broken = False
        except asyncio.CancelledError:
            broken = not live.cancelled
            raise
        finally:  # what broke a run off is kept for `wait`; a new life may have begun by now
            if not broken and self._tasks.get(live.run) is live.task:
                del self._tasks[live.run]

    async def _leave(self, live: LocalFlow, error: BaseException | None, *, complete: bool) -> None:
        """Store how a run ended, and give it back."""
        try:
            await live.close(error, complete=complete)
        finally:
            if self._post is not None:
                await self._post.answered(live.run)
            await self._release(live.run)
            del self._lives[live.run]
            live.over.set()
            if not self._lives and self._post is not None:
                self._post.rest()

    async def _release(self, run: str) -> None:
        try:
            await self._runs.release(run)
        except StoreFailed as error:
            self._stuck[run] = error

    async def _unstick(self) -> None:
        """Give back what could not be given back: else it would seem to go on as long as this process does."""
        for run in [*self._stuck]:
            if self._stuck.pop(run, None) is not None:
                await self._release(run)

    async def _flush(self, run: str) -> None:
        await self._unstick()
        if (live := self._lives.get(run)) is not None:
            await live.writer.flush()

    async def _ask(self, run: str, asked: Asked) -> bool:
        """Do what is asked of a run where it is: here, in the process that holds it, or at rest."""
        while True:
            await self._unstick()
            if run in self._stuck:
                raise self._stuck[run]
            async with self._taking:
                live = self._lives.get(run)
                before = None if live is not None else await self._runs.look(run, steps=False)
                if before is not None and before.process is None:
                    with suppress(Conflict):  # another process was faster
                        return await self._at_rest(run, lambda look: self._change(look, asked))
            if live is not None and not live.closed:
                return await obey(live, asked)
            if live is not None:
                await live.over.wait()
            elif before is not None and self._post is not None:
                answer = await self._post.ask(run, asked)
                if answer is None and await self._done(before, asked):
                    return True
                if answer is not None:
                    return answer

    async def _done(self, before: Look, asked: Asked) -> bool:
        """Whether a process that could not say so any more did what was asked of it since it was looked at."""
        after = before.offset
        while entries := await self._runs.events(before.name, after=after):
            if any(asked.done_by(entry) for entry in entries):
                return True
            after = entries[-1].offset
        return False

    async def _at_rest(self, run: str, change: Callable[[Look], Awaitable[Value]]) -> Value:
        """Take a run that nobody holds, change it, and give it back."""
        spec = (await self._runs.look(run, steps=False)).spec
        await self._runs.begin(run, spec, (), transitions=LEGAL, raw=True)
        try:
            return await change(await self._runs.look(run))
        finally:
            await self._runs.release(run)

    async def _change(self, look: Look, asked: Asked) -> bool:
        ended = past_of(look.notes).ended
        changes: list[Change | Note] = []
        if asked.what == "cancel":
            changes += [] if ended else cancelling(look.steps, asked.reason, asked.step)
        elif asked.what == "retry":
            left = interrupted(look.steps)
            changes += [Note(REOPENED)] if ended else []
            changes += left
            stand = {**look.steps, **{each.step: Step(each.state, each.value) for each in left}}
            changes += reopening(stand, asked.step or "")
        else:
            raise UsageError(f"the run {look.name!r} does not go on: start it first")
        if changes:
            await self._runs.write(look.name, *changes)
        return bool(changes)

    async def _obey(self, run: str, asked: Asked) -> bool | None:
        live = self._lives.get(run)
        return None if live is None or live.closed else await obey(live, asked)


async def obey(live: LocalFlow, asked: Asked) -> bool:
    """Do what is asked of a run that goes on here."""
    if asked.what == "cancel":
        return await live.cancel(asked.reason, asked.step)
    if asked.what == "retry":
        await live.retry(asked.step or "")
    elif asked.what == "pause":
        await live.pause()
    else:
        await live.resume()
    return True


def _same(run: str, known: Json, spec: Json) -> None:
    if known != spec:
        text = f"the run {run!r} was begun with another flow or payload: begin this one under another name"
        raise Conflict(text, code="idempotency_conflict")
