"""`Caller`: asks one LLM for the values of several items in one streamed call, and makes a value of how that ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from penstock.batch.items import Item, ItemId
from penstock.batch.patience import Patient
from penstock.batch.prompt import NO_PROBLEMS, BatchPromptBuilder, Problems, line
from penstock.batch.reading import Accept, Asked, Reading
from penstock.batch.schema import WEAKER, Dialect, ItemSchema, dialect_of
from penstock.batch.sharing import with_rest
from penstock.errors import BadRequest, Refused, TooLong, UsageError
from penstock.llms.prices import ModelInfo
from penstock.llms.services import SERVICES
from penstock.messages import ChatReply, ChatRequest
from penstock.outcome import Failed, Finished
from penstock.run import Executor, Run

Value = TypeVar("Value")


class Caller:
    """Asks an LLM about items; `dialect` is how much of a schema it is sent, and less once it refuses that.

    Raises `UsageError` for what is no LLM.
    """

    def __init__(  # all that a request says, and who is sent it  # noqa: PLR0913
        self,
        llm: Executor[ChatRequest, ChatReply],
        schema: ItemSchema,
        *,
        instructions: str = "",
        dialect: Dialect | None = None,
        model: str = "",
        params: Mapping[str, Any] | None = None,
        attempts: int = 1,
    ) -> None:
        self.schema = schema
        self.dialect: Dialect = dialect or dialect_of(llm)
        self._llm, self._model, self._params = llm, model, dict(params or {})
        self._patient = Patient(llm, attempts=attempts)
        self._known = self.dialect != "none" or getattr(llm, "provider", "") in SERVICES
        self._limit, self._other_reason = "max_tokens", ""
        self._builder = BatchPromptBuilder(schema, instructions=instructions)

    @property
    def info(self) -> ModelInfo | None:
        """What is known of its model."""
        of: Any = getattr(self._llm, "info_of", None)
        return None if of is None else of(getattr(self._llm, "model", "") or self._model)

    @property
    def shared(self) -> int:
        """The size of what all prompts say."""
        return len(self._builder.shared)

    def sizes(self, items: Sequence[Item], problems: Problems = NO_PROBLEMS) -> dict[ItemId, int]:
        """The size of what each item adds to a prompt. Raises `UsageError` for data that is no JSON."""
        keys = self.schema.keys(items)
        return {item.id: len(line(key, item, problems.get(item.id, ""))) for key, item in keys.items()}

    def request(self, items: Sequence[Item], room: int, problems: Problems = NO_PROBLEMS) -> ChatRequest:
        """The request about items, with room for so many tokens; one whose service nobody knows is not limited.

        `problems` say what was wrong with the last answer about an item.
        """
        keys = self.schema.keys(items)
        fields = dict(self._params)
        if (form := self.schema.response_format(list(keys), self.dialect)) is not None:
            fields.setdefault("response_format", form)
        if self._known and fields.keys().isdisjoint(("max_tokens", "max_completion_tokens")):
            fields[self._limit] = room
        return ChatRequest.of(
            self._builder.build_batch_prompt(keys, problems), model=self._model, stream=True, **fields
        )

    async def ask(
        self,
        items: Sequence[Item],
        run: Run,
        *,
        number: int,
        room: int,
        accept: Accept,
        problems: Problems = NO_PROBLEMS,
    ) -> Asked:
        """Ask for the values of items; `accept` is awaited with each. A call that fails is a value, too.

        A service that refuses the request is asked again with less of a schema. Raises `UsageError`, which no other
        call would mend, and what stops the run.
        """
        keys, usual = self.schema.keys(items), self.dialect
        weights = with_rest(list(self.sizes(items, problems).values()), self.shared)
        while True:
            dialect, limit = self.dialect, self._limit
            request = self.request(items, room, problems)
            reading = Reading(number, keys, schema=self.schema, accept=accept, weights=weights)
            ended = await tried(self._answer(request, run, reading))
            if isinstance(ended, Finished):
                return ended.result
            if isinstance(ended.error, UsageError):
                raise ended.error
            if reading.begun or not _refused(ended.error) or str(ended.error) == self._other_reason:
                return reading.fail(ended.error)
            if limit == "max_tokens" and ended.error.param == limit:
                self._limit = "max_completion_tokens"
            elif dialect == "none":  # it was not the schema
                self.dialect, self._other_reason = usual, str(ended.error)
                return reading.fail(ended.error)
            elif dialect == self.dialect:  # no other call has found out meanwhile
                self.dialect = WEAKER[dialect]

    async def _answer(self, request: ChatRequest, run: Run, reading: Reading) -> Asked:
        return await reading.end(await self._patient(request, run.listening(reading.hear)))


async def tried(work: Awaitable[Value]) -> Finished[Value] | Failed:
    """How some work ended. A failure of one call or rule is a value here: the batch goes on with other ones."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        return Finished(await work)
    except Exception as error:
        if task is not None and task.cancelling() > cancels:  # an error raised over a cancel does not take its place
            raise asyncio.CancelledError from error
        return Failed(error)


def _refused(error: Exception) -> TypeGuard[BadRequest]:
    """Whether a service does not understand the request, whatever it is about."""
    return (
        isinstance(error, BadRequest) and not isinstance(error, TooLong | Refused) and error.status in (None, 400, 422)
    )
