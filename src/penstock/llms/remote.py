"""`RemoteLlm`: an LLM of a service that is reached over HTTP; a child adds how its wire is written and read."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from penstock.errors import BadRequest, LlmError, UnknownName, UsageError
from penstock.llms.answer import MOST_WHOLE, Answer, Reading
from penstock.llms.base import BaseLlm, accounted
from penstock.llms.failures import Who, from_status
from penstock.llms.prices import LOCAL, ModelInfo, Price, prompt_tokens
from penstock.llms.services import SERVICES, Service
from penstock.llms.transport import Exchange, Limits, Target
from penstock.messages import ChatReply, ChatRequest
from penstock.net import Secret
from penstock.net.http import request_head
from penstock.policies.timeout import Deadline
from penstock.run import Run

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from penstock.policies import Policy

SAME = (
    frozenset(("max_tokens", "max_completion_tokens", "max_output_tokens")),
    frozenset(("reasoning_effort", "reasoning", "thinking")),
    frozenset(("stop", "stop_sequences")),
)
"""Fields that say the same: a request that holds one replaces a default that is written as another."""
_KEYED = re.compile("auth|cookie|key|secret|token", re.IGNORECASE)
"""Names of headers whose values are keys, and not words that may stand in any answer."""
_encode = msgspec.json.Encoder().encode


class RemoteLlm(BaseLlm, ABC):
    """A model of a service in `SERVICES`.

    `model` empty: each request names its own. `params` are defaults that a request may override. Without `base_url` the
    service's own environment variables are read; a key from there is never sent to an address given here. `price` goes
    before the table of prices. Raises `LlmError`s.
    """

    path: ClassVar[str] = ""
    """Where requests go, below the service's address."""

    def __init__(  # noqa: PLR0913  # the public constructor: each argument is one thing a user may set
        self,
        *,
        model: str = "",
        api_key: str | None = None,
        base_url: str | None = None,
        service: str | Service = "",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        price: Price | None = None,
        policies: Iterable[Policy] = (),
    ) -> None:
        super().__init__(model=model, policies=policies)
        row = service if isinstance(service, Service) else _row(service or self.provider)
        address = _address(row, base_url)
        key = api_key or ("" if base_url else _variable(row.key_envs))
        self.provider = row.name
        self.base_url = address
        self.params = dict(params or {})
        self.limits = limits or Limits()
        self.secret = Secret(key, origin=address) if key else None
        self._service = row
        self.price = price
        self._headers = {
            "content-type": "application/json",
            "user-agent": "penstock",
            **dict(row.headers),
            **(headers or {}),
        }
        self._target = self._at(self.path)
        try:
            request_head("POST", self._target.url, self._headers, 0)
        except ValueError as error:
            raise UsageError(f"{row.name} cannot be called: {error}") from error
        hidden = tuple(Secret(value, origin=address) for value in (headers or {}).values())
        self.secrets = hidden if self.secret is None else (self.secret, *hidden)
        keyed = [one for name, one in zip(headers or {}, hidden, strict=True) if _KEYED.search(name)]
        self.hides = (*keyed, *((self.secret,) if self.secret else ()))
        self._who = Who(self.provider, self.secrets, model)

    @abstractmethod
    def _body(self, request: ChatRequest) -> bytes:
        """The bytes to send."""

    @abstractmethod
    def _reading(self, request: ChatRequest) -> Reading:
        """How the answer to a request is read."""

    def _target_of(self, request: ChatRequest) -> Target:
        """Where a request goes; most wires have one address for all."""
        del request
        return self._target

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Send the request as it is wanted, streamed or whole, and tell what comes."""
        deadline = Deadline(self.limits.total_s, idle_s=self.limits.idle_s)
        body, target = self._body(request), self._target_of(request)
        reading, cost = self._reading(request), partial(self.cost, request)
        answer = Answer(self._who, run, deadline, reading=reading, prompt=partial(prompt_tokens, request), cost=cost)
        exchange = Exchange(target, headers=self._head(target.url, run.span), body=body)
        try:
            async with accounted(answer.account), deadline, exchange:
                if exchange.status != 200:
                    raise from_status(exchange.status, exchange.headers, await exchange.read(65536), who=self._who)
                if exchange.headers.get("content-type", "").startswith("text/event-stream"):
                    return await answer.stream(exchange)
                return await answer.whole(await exchange.read(MOST_WHOLE))
        except TimeoutError as late:
            if not deadline.expired:
                raise
            raise answer.late(self.limits, idled=deadline.idled) from late
        except LlmError as error:
            raise answer.with_partial(error) from error.__cause__

    def info_of(self, model: str) -> ModelInfo | None:
        """What is known of a model of the service."""
        return super().info_of(model) or (LOCAL if self._service.local else None)

    def auth_headers(self, url: str) -> dict[str, str]:
        """The headers that carry the key, for a request to `url`; raises `UsageError` where it may not be sent."""
        if self.secret is None:
            return {}
        header = self._service.key_header
        return {header: f"Bearer {self.secret.reveal(url)}" if header == "authorization" else self.secret.reveal(url)}

    def _at(self, path: str) -> Target:
        return Target(f"{self.base_url}{path}", self.provider, self.limits)

    def _fields(self, request: ChatRequest) -> dict[str, Any]:
        """The fields of a request over the defaults, without its model and messages; one word of several counts."""
        if not self.params:
            return dict(request.params)
        said = request.params.keys()
        meant = {name for words in SAME for name in words if not said.isdisjoint(words)}
        return {**{name: value for name, value in self.params.items() if name not in meant}, **request.params}

    def _encoded(self, fields: Any) -> bytes:
        try:
            return _encode(fields)
        except RecursionError as error:
            raise BadRequest("the request is nested too deeply", provider=self.provider, status=400) from error

    def _head(self, url: str, span: Span | None) -> dict[str, str]:
        headers = {**self._headers, **self.auth_headers(url)}
        if span is not None:
            context = span.get_span_context()
            if context.is_valid:
                headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
                if context.trace_state:
                    headers["tracestate"] = context.trace_state.to_header()
        return headers


def _row(name: str) -> Service:
    if name not in SERVICES:
        raise UnknownName(f"no service {name!r}; known are {', '.join(sorted(SERVICES))}")
    return SERVICES[name]


def _address(row: Service, base_url: str | None) -> str:
    """Where a service is: as written, else as its environment variable says, else its usual address."""
    address = base_url or os.environ.get(row.base_env, "") or row.base_url
    if not address:
        raise UsageError(f"{row.name} needs an address: give base_url or set {row.base_env}")
    if "@" in address:
        raise UsageError("an address holds no user name or password: give api_key")
    address = address.rstrip("/")
    return address if address.endswith(row.base_suffix) else address + row.base_suffix


def _variable(names: Iterable[str]) -> str:
    """The first of the environment variables that is set."""
    return next((value for name in names if (value := os.environ.get(name, ""))), "")
