"""What models an upstream says it has: asked at most every five minutes, remembered when it does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.errors import LlmError
from penstock.llms.transport import Exchange, Limits, Target

if TYPE_CHECKING:
    from penstock.llms.openai import Gpt

FRESH_S = 300.0
AGAIN_S = 30.0
ANSWER_S = 3.0
MOST_BYTES = 8 * 1024 * 1024


class Model(msgspec.Struct, frozen=True):
    """One row of the list of models; `created` in seconds since 1970."""

    id: str
    created: int
    owned_by: str


class _Row(msgspec.Struct):
    id: str
    created: Any = None
    owned_by: Any = None


class _Rows(msgspec.Struct):
    data: list[_Row]


_log = logging.getLogger("penstock.config")
_decode = msgspec.json.Decoder(_Rows | list[_Row]).decode


class Listing:
    """The models of one upstream. `models()` never raises: None until it has answered once."""

    def __init__(self, llm: Gpt, *, clock: Callable[[], float] = monotonic) -> None:
        self._target = Target(f"{llm.base_url}/models", llm.provider, Limits(connect_s=ANSWER_S), method="GET")
        self._llm = llm
        self._clock = clock
        self._known: list[Model] | None = None
        self._due = clock()
        self._asking: asyncio.Task[None] | None = None

    async def models(self) -> list[Model] | None:
        """The models as last known; callers at the same time share one question."""
        if self._clock() >= self._due:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.shield(self._asking)
        return self._known

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                body = await self._get()
            found = _decode(body)
        except (LlmError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._due = self._clock() + AGAIN_S
            _log.warning("%s does not list its models: %s", self._target.provider, str(error) or "no answer in time")
            return
        rows = found.data if isinstance(found, _Rows) else found
        self._known = [self._model(row) for row in rows]
        self._due = self._clock() + FRESH_S

    async def _get(self) -> bytes:
        headers = {"user-agent": "penstock", "accept": "application/json", **self._llm.auth_headers(self._target.url)}
        async with Exchange(self._target, headers=headers) as exchange:
            body = await exchange.read(MOST_BYTES)
            if exchange.status != 200:
                raise LlmError(f"it answered {exchange.status}", provider=self._target.provider)
            return body

    def _model(self, row: _Row) -> Model:
        created = int(row.created) if isinstance(row.created, int | float) else 0
        return Model(row.id, created, row.owned_by if isinstance(row.owned_by, str) else self._target.provider)
