"""`BaseLlm`: what every LLM is, an executor from `ChatRequest` to `ChatReply` with a name."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from penstock.events import Chunks, Used
from penstock.llms.prices import BYTES_A_TOKEN, ModelInfo, Price, model_info, prompt_tokens
from penstock.messages import ChatReply, ChatRequest, Choice, Chunk, ChunkChoice, Delta, Message, Usage
from penstock.net.secrets import Secret
from penstock.policies import Policy, wrap
from penstock.run import Executor, Run, execute

USUAL_TIERS = (None, "auto", "default", "standard", "standard_only")
"""The tiers of a service that its usual prices are for."""


class BaseLlm:
    """Extend it with `__call__(request, run)`, which streams, or only with `generate_content_async(messages)`.

    `policies` wrap each call of this LLM, the first outermost; its name and provider stay visible.
    """

    provider: str = "custom"
    model: str = ""
    policies: tuple[Policy, ...] = ()
    params: Mapping[str, Any] = {}
    hides: tuple[Secret, ...] = ()
    """Keys, which no result of a task may show, whatever the service says."""
    _price: Price | None = None
    _wrapped: Executor[ChatRequest, ChatReply] | None = None

    def __init__(self, *, model: str = "", policies: Iterable[Policy] = ()) -> None:
        self.model = model
        self.policies = tuple(policies)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__call__")
        if own is not None:
            cls.__call__ = _with_policies(own)  # type: ignore[method-assign]
        elif cls.__call__ is BaseLlm.__call__ and cls.generate_content_async is BaseLlm.generate_content_async:
            raise TypeError(f"{cls.__name__} must implement __call__ or generate_content_async")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r})"

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Answer a request; a class of its own tells `Chunks` as they come, and `Used` once.

        Of a class that gives the text alone the tokens are estimated, a token for four bytes.
        """
        text = await self.generate_content_async(request.messages, **request.params)
        model = self.model or request.model
        choice = ChunkChoice(delta=Delta(role="assistant", content=text), finish_reason="stop")
        prompt, completion = prompt_tokens(request), -(-len(text.encode()) // BYTES_A_TOKEN)
        usage = Usage(prompt, completion, prompt + completion, partial=True)
        async with accounted(functools.partial(run.emit, self._used(request, usage))):
            await run.emit(Chunks(views=[Chunk(choices=[choice], model=model)]))
        return ChatReply(model=model, choices=(Choice(content=text, finish_reason="stop"),), usage=usage)

    def _used(self, request: ChatRequest, usage: Usage) -> Used:
        model = self.model or request.model
        return Used(usage=usage, model=model, provider=self.provider, cost=self.cost(request, usage))

    @property
    def info(self) -> ModelInfo | None:
        """What is known of its model, with the price it was given."""
        return self.info_of(self.model)

    @property
    def price(self) -> Price | None:
        """What its model costs: as it was given, else as the table says; None where that is not known."""
        info = self.info
        return None if info is None else info.price

    @price.setter
    def price(self, price: Price | None) -> None:
        self._price = price

    def cost(self, request: ChatRequest, usage: Usage, answered: str = "") -> Decimal | None:
        """What a call costs in USD, by the model it was asked for, else by the one that answered; None: not known."""
        tier = request.params.get("service_tier", self.params.get("service_tier"))
        if self._price is None and tier not in USUAL_TIERS:
            return None
        for model in (self.model or request.model, answered):
            info = self.info_of(model)
            if info is not None and info.price is not None:
                return info.price.cost(usage)
        return None

    def info_of(self, model: str) -> ModelInfo | None:
        """What is known of a model that a request may ask it for."""
        info = model_info(self.provider, model)
        return info if self._price is None else replace(info or ModelInfo(), price=self._price)

    def wrapped(self, call: Any) -> Executor[ChatRequest, ChatReply]:
        """This LLM's `call` inside its policies, put together once: a limit counts over all calls."""
        if self._wrapped is None:
            self._wrapped = wrap(call.__get__(self), self.policies)
        return self._wrapped

    async def generate_content_async(self, messages: str | Sequence[Message], **params: Any) -> str:
        """The text of the answer to one prompt or a conversation; `params` are the fields of an OpenAI request."""
        reply = await execute(self, ChatRequest.of(messages, **params))
        return reply.content


class accounted:  # noqa: N801  # a context manager
    """Awaits `account()` however its block ends, unless its coroutine was closed: then nothing can be awaited."""

    __slots__ = ("_account",)

    def __init__(self, account: Callable[[], Awaitable[None]]) -> None:
        self._account = account

    async def __aenter__(self) -> None:
        """Nothing is owed yet."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:
            await self._account()


def _with_policies(own: Any) -> Any:
    """A class's `__call__` inside the policies of its instance; a call through `super()` passes them by."""

    @functools.wraps(own)
    async def call(self: BaseLlm, request: ChatRequest, run: Run, /) -> ChatReply:
        if not self.policies or type(self).__call__ is not call:
            return await own(self, request, run)  # type: ignore[no-any-return]
        return await self.wrapped(own)(request, run)

    return call


BaseLlm.__call__ = _with_policies(BaseLlm.__call__)  # type: ignore[method-assign]
