"""What models an upstream says it has: asked at most every five minutes, remembered when it does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from penstock.errors import LlmError
from penstock.llms.prices import ModelInfo
from penstock.llms.transport import Exchange, Limits, Target

if TYPE_CHECKING:
    from penstock.llms.remote import RemoteLlm

FRESH_S = 300.0
AGAIN_S = 30.0
ANSWER_S = 3.0
MOST_BYTES = 8 * 1024 * 1024


class Model(msgspec.Struct, frozen=True):
    """One row of the list of models; `created` in seconds since 1970, `info` what is known of it."""

    id: str
    created: int
    owned_by: str
    info: ModelInfo | None = None


class _Row(msgspec.Struct):
    """A model as most services list it; each has its own word for a limit."""

    id: str
    created: Any = None
    created_at: Any = None
    owned_by: Any = None
    context_window: Any = None
    context_length: Any = None
    max_context_length: Any = None
    max_model_len: Any = None
    max_completion_tokens: Any = None


class _Named(msgspec.Struct, rename="camel"):
    """A model as Gemini lists it."""

    name: str
    input_token_limit: Any = None
    output_token_limit: Any = None
    supported_generation_methods: tuple[str, ...] = ("generateContent",)

    @property
    def row(self) -> _Row:
        limits = {"context_length": self.input_token_limit, "max_completion_tokens": self.output_token_limit}
        return _Row(self.name.removeprefix("models/"), **limits)


class _Rows(msgspec.Struct):
    data: list[_Row] | None = None
    models: list[_Named] | None = None

    @property
    def rows(self) -> list[_Row]:
        if self.data is not None:
            return self.data
        if self.models is None:
            raise msgspec.ValidationError("it has neither `data` nor `models`")
        return [model.row for model in self.models if "generateContent" in model.supported_generation_methods]


PAGE = {"anthropic": "?limit=1000", "gemini": "?pageSize=1000"}
"""What asks for all models at once, where the first page has few."""
_log = logging.getLogger("penstock.config")
_decode = msgspec.json.Decoder(_Rows | list[_Row]).decode


class Listing:
    """The models of one upstream. `models()` never raises: None until it has answered once."""

    def __init__(self, llm: RemoteLlm, *, clock: Callable[[], float] = monotonic) -> None:
        url = f"{llm.base_url}/models{PAGE.get(llm.provider, '')}"
        self._target = Target(url, llm.provider, Limits(connect_s=ANSWER_S), method="GET")
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
            rows = found.rows if isinstance(found, _Rows) else found
        except (LlmError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._due = self._clock() + AGAIN_S
            _log.warning("%s does not list its models: %s", self._target.provider, str(error) or "no answer in time")
            return
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
        owner = row.owned_by if isinstance(row.owned_by, str) else self._target.provider
        return Model(row.id, _seconds(row.created or row.created_at), owner, self._info(row))

    def _info(self, row: _Row) -> ModelInfo | None:
        """What the table knows, with the limits as the service tells them."""
        contexts = (row.context_window, row.context_length, row.max_context_length, row.max_model_len)
        told = {
            "context_window": next(filter(_is_count, contexts), None),
            "max_output_tokens": row.max_completion_tokens if _is_count(row.max_completion_tokens) else None,
        }
        info, told = self._llm.info_of(row.id), {name: limit for name, limit in told.items() if limit is not None}
        return replace(info or ModelInfo(), **told) if told else info


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _seconds(moment: object) -> int:
    """A moment as seconds since 1970, written as a number or as ISO 8601; 0 for anything else."""
    with suppress(ValueError, OverflowError):
        if isinstance(moment, str):
            return int(datetime.fromisoformat(moment).timestamp())
        if isinstance(moment, int | float):
            return int(moment)
    return 0
