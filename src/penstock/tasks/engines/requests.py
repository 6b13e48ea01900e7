"""`Post`: what one process asks of a run that goes on in another, through the journal they share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import msgspec

from penstock.errors import PenstockError, StoreFailed, UnknownName, UsageError
from penstock.store.journal import Journal
from penstock.tasks.engines import Json
from penstock.tasks.engines.past import fault_of

ATTEND_S = 0.5
POLL_S = 0.05


class Asked(msgspec.Struct, frozen=True):
    """What is asked of a run: to `cancel` it, or a step, to `retry` a step, to `pause` or to `resume`."""

    what: str
    step: str | None = None
    reason: str = ""


Obey: TypeAlias = Callable[[str, Asked], Awaitable[bool | None]]


class Post:
    """Asks others, and has `obey` do what others ask; None from it says that the run is not here."""

    def __init__(self, journal: Journal, obey: Obey) -> None:
        self._journal, self._obey = journal, obey
        self._attending: asyncio.Task[None] | None = None
        self._doing: dict[asyncio.Task[None], str] = {}
        self._last = 0

    async def ask(self, run: str, asked: Asked) -> bool | None:
        """Ask the process that holds a run: its answer, or None where it holds it no more. Raises what it raised."""
        number = await self._journal.request(run, msgspec.to_builtins(asked))
        while True:
            held = (await self._journal.look(run, steps=False)).process is not None
            there, answer = await self._journal.answered(number)
            if answer is not None:
                return _understood(answer)
            if not there:
                return None
            if not held:  # and a run is not given back before what was begun of it is answered
                await self._journal.withdraw(number)
                return None
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
            done = await self._obey(run, msgspec.convert(body, Asked))
        except PenstockError as error:
            await self._journal.answer(number, {"fault": fault_of(error)})
        else:
            if done is not None:
                await self._journal.answer(number, {"done": done})


def _understood(answer: Json) -> bool:
    fault = answer.get("fault")
    if fault is None:
        return bool(answer["done"])
    errors: dict[str, type[PenstockError]] = {"UnknownName": UnknownName, "StoreFailed": StoreFailed}
    raise errors.get(fault["type"], UsageError)(fault["message"])
