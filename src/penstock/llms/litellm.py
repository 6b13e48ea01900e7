"""`Litellm`: the long tail of providers through the package `litellm`, which is loaded on first use and only then.

It comes with the extra of the same name. Nothing else in Penstock needs it, and it is slow: a provider that speaks the
OpenAI wire is better served by `Gpt` and a row of `SERVICES`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import msgspec

from penstock.errors import BadRequest, LlmError, MissingExtra, UsageError
from penstock.llms.answer import Answer
from penstock.llms.base import BaseLlm, accounted
from penstock.llms.failures import Who, from_status
from penstock.llms.openai import ChatReading
from penstock.llms.prices import prompt_tokens
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest
from penstock.net import Secret
from penstock.policies.timeout import Deadline
from penstock.run import Run

if TYPE_CHECKING:
    from penstock.llms.prices import Price
    from penstock.policies import Policy

ANYWHERE = "https://any.invalid"
FORWARDED = frozenset(
    (
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    )
)
"""What a request may hold: the package reads further fields as addresses, keys and other models to call."""
_encode = msgspec.json.Encoder().encode


class Litellm(BaseLlm):
    """A model by LiteLLM's own name: `Litellm(model="cohere/command-r")`, or `litellm:cohere/command-r`.

    Keys come from the variables that LiteLLM reads, unless `api_key` is given. Raises `LlmError`s, and `MissingExtra`
    where the package is not installed.
    """

    provider = "litellm"

    def __init__(  # noqa: PLR0913  # the public constructor: each argument is one thing a user may set
        self,
        *,
        model: str = "",
        api_key: str | None = None,
        base_url: str | None = None,
        params: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        price: Price | None = None,
        policies: Iterable[Policy] = (),
    ) -> None:
        super().__init__(model=model, policies=policies)
        if not model:
            raise UsageError("name a model as LiteLLM does, as in litellm:cohere/command-r")
        if find_spec("litellm") is None:
            raise MissingExtra("litellm: needs the package 'litellm': pip install 'penstock[litellm]'")
        self.limits = limits or Limits()
        self.price = price
        self.params = dict(params or {})
        self.secrets = (Secret(api_key, origin=base_url or ANYWHERE),) if api_key else ()
        self.hides = self.secrets
        self._where = {"api_key": api_key, "api_base": base_url}
        self._who = Who(self.provider, self.secrets, model)

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Ask through LiteLLM, streamed or whole as it is wanted."""
        litellm = await asyncio.to_thread(_library)
        deadline = Deadline(self.limits.total_s, idle_s=self.limits.idle_s)
        fields = self._fields(request)
        prompt, cost = partial(prompt_tokens, request), partial(self.cost, request)
        answer = Answer(self._who, run, deadline, reading=ChatReading(self._who), prompt=prompt, cost=cost)
        try:
            async with accounted(answer.account), deadline:
                said = await litellm.acompletion(**fields)
                if not request.stream:
                    return await answer.whole(said.model_dump_json().encode())
                async with _Blocks(said) as blocks:
                    return await answer.stream(blocks)
        except TimeoutError as late:
            if not deadline.expired:
                raise
            raise answer.late(self.limits, idled=deadline.idled) from late
        except LlmError as error:
            raise answer.with_partial(error) from error.__cause__
        except litellm.exceptions.openai.OpenAIError as error:
            raise answer.with_partial(_translated(error, self._who)) from error

    def _fields(self, request: ChatRequest) -> dict[str, Any]:
        for name in request.params:
            if name not in FORWARDED:
                error = BadRequest(f"{name!r} is not passed on to LiteLLM", provider=self.provider, status=400)
                error.param, error.code = name, "unsupported_parameter"
                raise error
        fields: dict[str, Any] = {**self.params, **request.params, **self._where}
        fields |= {"model": self.model, "messages": list(request.messages), "stream": request.stream}
        if request.stream:
            fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
        return {**fields, "num_retries": 0, "max_retries": 0, "timeout": self.limits.total_s}


class _Blocks:
    """The chunks of LiteLLM as the server-sent events that they were."""

    def __init__(self, chunks: Any) -> None:
        self._stream = chunks
        self._chunks: AsyncIterator[Any] = aiter(chunks)
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._ended and (close := getattr(self._stream, "aclose", None)) is not None:
            await close()

    async def block(self) -> bytes:
        """The next event; empty after the last."""
        if self._ended:
            return b""
        chunk = await anext(self._chunks, None)
        if chunk is None:
            self._ended = True
            return b"data: [DONE]\n\n"
        return b"data: %b\n\n" % chunk.model_dump_json(exclude_none=True).encode()

    async def drain(self) -> None:
        """Nothing is left."""


def _library() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import fetches a file
    litellm: Any = import_module("litellm")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


def _translated(error: Any, who: Who) -> LlmError:
    """The error of LiteLLM as its status and kind say."""
    kind = type(error).__name__
    code = {"ContextWindowExceededError": "context_length_exceeded", "ContentPolicyViolationError": "content_filter"}
    message = str(getattr(error, "message", error)).partition("Traceback (most recent call last)")[0].strip()
    said = {"message": message, "code": code.get(kind), "type": kind}
    told: Mapping[str, Any] = getattr(error, "litellm_response_headers", None) or {}
    headers = {name.lower(): str(value) for name, value in told.items()}
    return from_status(getattr(error, "status_code", None) or 503, headers, _encode({"error": said}), who=who)
