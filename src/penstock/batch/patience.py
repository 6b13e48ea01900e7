"""`Patient`: a model whose calls are made again when they fail in passing, and wait while its service wants that."""

from __future__ import annotations

import asyncio
from collections import deque
from inspect import isawaitable
from time import monotonic
from typing import Any, TypeAlias

from penstock.errors import LimitReached, PenstockError, UsageError
from penstock.messages import ChatReply, ChatRequest
from penstock.policies.retry import Start, retry
from penstock.run import Executor, Run

Model: TypeAlias = Executor[ChatRequest, ChatReply]
KEPT = 100
LONGEST_S = 60.0
"""A service that wants to be left alone for longer is not waited for."""


def checked(llm: Model) -> Model:
    """An LLM as it is. Raises `UsageError` for what is none, as its name."""
    given: Any = llm
    if isinstance(given, str):
        raise UsageError(f"{given!r:.80} is the name of an LLM: give the LLM itself, llm({given!r:.80})")
    if isinstance(given, type) or not callable(given):
        raise UsageError(f'{given!r:.80} is no LLM: give one, for instance llm("gpt-5")')
    return llm


class Patient:
    """Asks an LLM; one call is made up to `attempts` times, unless its answer has begun (see `retry`).

    While a `retry_after` of at most a minute lasts, no other call begins. A rate of our own that is used up is waited
    for as long, however often; a budget is not. Raises `UsageError` for what is no LLM.
    """

    def __init__(self, llm: Model, *, attempts: int) -> None:
        self._llm: Any = checked(llm)
        self._from = 0.0
        self._call = retry(attempts=attempts, max_s=LONGEST_S)(self._once)

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Ask; where a rate is used up, wait for the next call."""
        start = Start.of(run)
        heard = run.telling(start.tell)
        while True:
            try:
                return await self._call(request, heard)
            except LimitReached as error:
                if start.over or not waits_for(error):
                    raise

    async def _once(self, request: ChatRequest, run: Run, /) -> ChatReply:
        while (wait := self._from - monotonic()) > 0:  # it may be told to wait longer meanwhile  # noqa: ASYNC110
            await asyncio.sleep(wait)
        try:
            return await self._asked(request, run)
        except PenstockError as error:
            if error.retry_after is not None and error.retry_after <= LONGEST_S:  # also one that is final itself
                self._from = max(self._from, monotonic() + error.retry_after)
            raise

    async def _asked(self, request: ChatRequest, run: Run) -> ChatReply:
        try:
            answering = self._llm(request, run)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # not even its first line ran
                raise UsageError(f"{self._llm!r:.80} cannot be called as an LLM is: {error}") from error
            raise
        reply = await answering if isawaitable(answering) else answering
        if not isinstance(reply, ChatReply):
            raise UsageError(f"{self._llm!r:.80} is no LLM: it gave {reply!r:.80}, which is no ChatReply")
        return reply


def waits_for(error: LimitReached) -> bool:
    """Whether what is used up is there again soon."""
    return error.limit != "budget" and error.retry_after is not None and error.retry_after <= LONGEST_S


class Watched:
    """An LLM whose last failures are kept; in all else it is that LLM."""

    def __init__(self, llm: Model) -> None:
        self.llm = checked(llm)
        self.failures = deque[PenstockError](maxlen=KEPT)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Ask."""
        try:
            return await self.llm(request, run)
        except PenstockError as error:
            self.failures.append(error)
            raise
