"""What models cost and can do: a dated table that comes with Penstock and is never fetched, and sums in decimal money.

A price that nobody knows is None, never 0: a sum that holds one is unknown, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache, lru_cache

import msgspec

from penstock.errors import UsageError
from penstock.events import Used
from penstock.llms.services import SERVICES
from penstock.messages import ChatRequest, PromptTokens, Usage

BYTES_A_TOKEN = 4
USUAL_OUTPUT = 4096
IMAGE_TOKENS = 2000
LONGEST_NAME = 200
_VERSION = re.compile(r"(?:-\d{4}-\d\d-\d\d|-\d{8}|-00\d|-latest|@\w+)$")
_EMBEDDED = re.compile(rb'"data:[^"]*"')
_ONE_VENDOR = {"anthropic": "anthropic", "google": "gemini", "openai": "openai", "x-ai": "xai"}
_RESOLD = {
    "openrouter": _ONE_VENDOR,
    "litellm": {name: name for name in ("anthropic", "deepseek", "gemini", "groq", "mistral", "openai", "xai")},
}
"""Whose prices hold for `vendor/model`, by the service that is asked; what many companies host costs what each asks."""


class Price(msgspec.Struct, frozen=True):
    """What a model costs, in USD for a million tokens.

    `cached_input` is for prompt tokens read from the service's cache and `cache_write` for those written into it, both
    as `input` where there is no price of their own. A call whose prompt has more than `over` tokens costs `long`.
    Raises `UsageError` for an amount that is no `Decimal`, or below 0.
    """

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    over: int = 0
    long: Price | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input", "cache_write"):
            amount: object = getattr(self, name)
            if amount is None and name.startswith("cache"):
                continue
            if not isinstance(amount, Decimal) or not (amount.is_finite() and amount >= 0):
                raise UsageError(f"{name}={amount!r} is no price: give dollars for a million tokens, Decimal('0.15')")

    def cost(self, usage: Usage) -> Decimal:
        """What a call with this usage costs, in USD."""
        if self.long is not None and usage.prompt > self.over:
            return self.long.cost(usage)
        cached, written = usage.cached, usage.cache_written
        total = max(0, usage.prompt - cached - written) * self.input + usage.completion * self.output
        total += cached * (self.input if self.cached_input is None else self.cached_input)
        total += written * (self.input if self.cache_write is None else self.cache_write)
        return total.scaleb(-6)


FREE = Price(Decimal(0), Decimal(0))


class ModelInfo(msgspec.Struct, frozen=True):
    """What is known of a model: its price, its limits in tokens, and what it can do; None where that is not known.

    Capabilities are `tools`, `images` (in the prompt), `json_schema` and `reasoning`.
    """

    price: Price | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    capabilities: tuple[str, ...] = ()


LOCAL = ModelInfo(price=FREE)


class _Table(msgspec.Struct, frozen=True):
    as_of: str
    aliases: dict[str, dict[str, str]]
    services: dict[str, dict[str, ModelInfo]]


@cache
def _table() -> _Table:
    from importlib import resources

    return msgspec.json.decode(resources.files("penstock.llms").joinpath("models.json").read_bytes(), type=_Table)


def as_of() -> str:
    """The day whose prices the table holds, as YYYY-MM-DD."""
    return _table().as_of


def model_info(provider: str, model: str) -> ModelInfo | None:
    """What is known of a model of a service, by its name or by its name without the version; None for an unknown one.

    Nothing but the electricity is paid for a service that runs on one's own machine, so any model of it costs 0.
    """
    return None if len(model) > LONGEST_NAME else _found(provider, model)


def price_of(provider: str, model: str) -> Price | None:
    """What a model of a service costs; None where that is not known."""
    info = model_info(provider, model)
    return None if info is None else info.price


@lru_cache(maxsize=1024)
def _found(provider: str, model: str) -> ModelInfo | None:
    service = SERVICES.get(provider)
    if service is not None and service.local:
        return LOCAL
    if provider in _RESOLD:
        vendor, _, model = model.partition("/")
        if provider == "openrouter" and vendor == "anthropic":
            model = model.replace(".", "-")
        provider = _RESOLD[provider].get(vendor, "")
    provider, model = "openai" if provider == "azure" else provider, model.removeprefix("models/")
    table = _table()
    rows, aliases = table.services.get(provider, {}), table.aliases.get(provider, {})
    for name in (model, _VERSION.sub("", model)):
        if info := rows.get(aliases.get(name, name)):
            return info
    return None


def cost_of(used: Used) -> Decimal | None:
    """What a call cost, in USD: the `cost` of a `budget` in money."""
    return used.cost


def reserve(price: Price, *, max_output: int | None = None) -> Callable[[ChatRequest], Decimal]:
    """What a request may cost at most: the `estimate` of a `budget` in USD.

    The prompt counts as a token for four bytes, the answer as long as the request allows, else as `max_output` tokens,
    else as 4,096.
    """

    def most(request: ChatRequest) -> Decimal:
        prompt, completion = prompt_tokens(request), _completion_tokens(request, max_output)
        ways = (None, PromptTokens(cache_write_tokens=prompt))
        return max(price.cost(Usage(prompt, completion, prompt_tokens_details=way)) for way in ways)

    return most


def reserve_tokens(request: ChatRequest, *, max_output: int | None = None) -> int:
    """The tokens that a request may use at most, counted as by `reserve`: the `estimate` of a `budget` in tokens."""
    return prompt_tokens(request) + _completion_tokens(request, max_output)


def prompt_tokens(request: ChatRequest) -> int:
    """The tokens of a request, estimated: one for four bytes, and a fixed number for each image in it."""
    body = request.data
    if body is None:
        try:
            body = msgspec.json.encode([request.messages, request.params], enc_hook=str)
        except RecursionError:  # the service would refuse it, and be paid nothing
            return 0
    images = _EMBEDDED.findall(body)
    return (len(body) - sum(map(len, images))) // BYTES_A_TOKEN + len(images) * IMAGE_TOKENS


def _completion_tokens(request: ChatRequest, usual: int | None) -> int:
    most, older, choices = (request.params.get(name) for name in ("max_completion_tokens", "max_tokens", "n"))
    return (_count(most) or _count(older) or usual or USUAL_OUTPUT) * (_count(choices) or 1)


def _count(value: object) -> int:
    return max(0, value) if isinstance(value, int) else 0


def usd(cost: Decimal) -> str:
    """An amount as text, without an exponent and without zeros at its end: `0.00042`."""
    return format(cost.normalize(), "f")
