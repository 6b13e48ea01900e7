"""`Post`: what one process asks of a run that goes on in another, through the journal they share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

import msgspec

from penstock.errors import Conflict, PenstockError, StoreFailed, TaskFailed, UnknownName, UsageError
from penstock.store.journal import Journal
from penstock.store.steps import CANCELLED, PENDING, Logged
from penstock.tasks.engines import Json
from penstock.tasks.engines.past import ENDED, fault_of
from penstock.tasks.results import Fault

ATTEND_S = 0.5
POLL_S = 0.05
PATIENCE_S = 30.0  # for an answer of a process that lives


class Asked(msgspec.Struct, frozen=True):
    """What is asked of a run: to `cancel` it, or a step, to `retry` a step, to `pause` or to `resume`."""

    what: Literal["cancel", "retry", "pause", "resume"]
    step: str | None = None
    reason: str = ""

    def done_by(self, entry: Logged) -> bool:
        """Whether an entry of the log says that this was done."""
        if self.what == "cancel" and self.step is None:
            return entry.kind == ENDED and entry.value["state"] == CANCELLED
        state = {"cancel": CANCELLED, "retry": PENDING}.get(self.what)
        return state is not None and (entry.step, entry.state) == (self.step, state)


ERRORS: Mapping[str, Callable[[Fault], PenstockError]] = {
    "Conflict": lambda fault: Conflict(fault.message, code=fault.code),
    "StoreFailed": lambda fault: StoreFailed(fault.message),
    "TaskFailed": lambda fault: TaskFailed(
        fault.message, code=fault.code or "agent_failed", details=fault.details, retryable=fault.retryable
    ),
    "UnknownName": lambda fault: UnknownName(fault.message),
}
"""The errors that an answer may hold besides a `UsageError`."""

Obey: TypeAlias = Callable[[str, Asked], Awaitable[bool | None]]


class Post:
    """Asks others, and has `obey` do what others ask; None from it says that the run is not here."""

    def __init__(self, journal: Journal, obey: Obey) -> None:
        self._journal, self._obey = journal, obey
        self._attending: asyncio.Task[None] | None = None
        self._doing: dict[asyncio.Task[None], str] = {}
        self._last = 0

    async def ask(self, run: str, asked: Asked) -> bool | None:
        """Ask the process that holds a run: its answer, or None where it holds it no more.

        Raises what it raised, and `Conflict` (`in_progress`) where it lives but says nothing.
        """
        until = asyncio.get_running_loop().time() + PATIENCE_S
        number = await self._journal.request(run, msgspec.to_builtins(asked))
        while True:
            holder = (await self._journal.look(run, steps=False)).process
            there, answer = await self._journal.answered(number)
            if answer is not None:
                return _understood(answer)
            if not there:
                return None
            if holder is None:  # and a run is not given back before what was begun of it is answered
                await self._journal.withdraw(number)
                return None
            if asyncio.get_running_loop().time() > until:
                await self._journal.withdraw(number)
                text = f"the process {holder}, which runs {run!r}, does not answer: is it stopped? wake it or end it"
                raise Conflict(text, code="in_progress")
            await asyncio.sleep(POLL_S)

    def attend(self) -> None:
        """Look from now on for what others ask."""
        if self._attending is None:
            self._attending = asyncio.get_running_loop().create_task(self._attend())

    def rest(self) -> None:
        """Look no more."""
        if self._attending is not None:
            self._attending.cancel()
            self._attending = None

    async def aclose(self) -> None:
        """End what is still done."""
        self.rest()
        for task in self._doing:
            task.cancel()
        if self._doing:
            await asyncio.wait(self._doing)

    async def answered(self, run: str) -> None:
        """Wait until what was asked of a run is answered."""
        if doing := [task for task, of in self._doing.items() if of == run]:
            await asyncio.wait(doing)

    async def _attend(self) -> None:
        while True:
            await asyncio.sleep(ATTEND_S)
            asked: list[tuple[int, str, Json]] = []
            with suppress(StoreFailed):  # those who run here are told it when they write
                asked = await self._journal.requested()
            for number, run, body in asked:
                if number > self._last:
                    self._last = number
                    doing = asyncio.get_running_loop().create_task(self._do(number, run, body))
                    self._doing[doing] = run
                    doing.add_done_callback(self._doing.pop)

    async def _do(self, number: int, run: str, body: Json) -> None:
        try:
            done = await self._obey(run, _asked(body))
        except PenstockError as error:
            answer = {"fault": fault_of(error)}
        else:
            answer = {"done": done}
        if answer.get("done", True) is not None:
            with suppress(StoreFailed):  # whoever asks looks whether it was done when the run is given back
                await self._journal.answer(number, answer)


def _asked(body: Json) -> Asked:
    """What is asked, unless that is something which only another version knows."""
    try:
        return msgspec.convert(body, Asked)
    except msgspec.ValidationError as error:
        text = f"the process that runs it does not know what {body!r:.200} asks for: is it of another version?"
        raise UsageError(f"{text} ({error})") from error


def _understood(answer: Json) -> bool:
    fault = answer.get("fault")
    if fault is None:
        return bool(answer["done"])
    known = msgspec.convert(fault, Fault)
    error = ERRORS.get(known.type)
    raise UsageError(known.message) if error is None else error(known)
