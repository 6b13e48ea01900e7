"""The section `models` of `penstock.yaml`, and the limits that models and tokens share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict, model_validator

from penstock.chat.passthrough import DENIED
from penstock.config.section import Name, Section, number
from penstock.config.values import Address, Count, Money, Seconds, Text, one_line
from penstock.errors import UsageError
from penstock.llms import LLMS
from penstock.llms.services import SERVICES, split

DEMO = "demo"
REPLAY = "replay"
_OWN_FIELDS = ("messages", "model", "stream")
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def _llm(value: str) -> str:
    """A service's name, or that of a provider in `LLMS`, and a model of it."""
    service, model = split(value)
    known = {*SERVICES, *LLMS.names()}
    if service not in known:
        services = f"services are {', '.join(sorted(known))}"
        named = (
            f"no service {service!r}: " if model else "write the service before the model, as in openai:gpt-5-mini: "
        )
        raise ValueError(named + services)
    if service != DEMO and not model:
        raise ValueError(f"name the model too, as in {service}:MODEL")
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("expected a header name such as X-Project")
    return value.lower()


def _params(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in _OWN_FIELDS or name in DENIED:
            raise ValueError(f"{name!r} cannot be a default of the request")
    return value


def _refusable(value: str) -> str:
    if value not in DENIED:
        raise ValueError(f"only fields that are refused otherwise are allowed here: {', '.join(sorted(DENIED))}")
    return value


def _script(value: tuple[str, ...]) -> tuple[str, ...]:
    from penstock.policies.faults import faults

    try:
        faults(value)
    except UsageError as error:
        problem = error.message
    else:
        return value
    raise ValueError(problem)


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _placed(llm: str, folder: Path) -> str:
    provider, name = split(llm)
    return f"{provider}:{folder / name}" if provider == REPLAY else llm


class RetrySettings(Section):
    """How often a call is tried, the first time included, and how long is waited in between, in seconds."""

    attempts: Annotated[int, Field(ge=1, le=20), BeforeValidator(number)] = 3
    base_s: Seconds = 0.5
    max_s: Seconds = 30.0


class BreakerSettings(Section):
    """After how many failures in a row a model is left alone, and for how many seconds."""

    failures: Count = 5
    reset_s: Seconds = 30.0


class LimitSettings(Section):
    """What one model or token may ask for, in each worker."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent: Count | None = None


class BudgetSettings(Section):
    """What one model or token may spend, in each worker: for good, or in each window of so many seconds."""

    tokens: Count | None = None
    usd: Annotated[Money, Field(gt=0)] | None = None
    window_s: Seconds | None = None

    @model_validator(mode="after")
    def _some(self) -> BudgetSettings:
        if self.tokens is None and self.usd is None:
            raise ValueError("write tokens, usd, or both")
        return self


class PriceSettings(Section):
    """What a model costs, in USD for a million tokens."""

    input: Money
    output: Money
    cached_input: Money | None = None
    cache_write: Money | None = None


Headers = dict[Annotated[str, AfterValidator(_header_name)], Annotated[SecretStr, AfterValidator(one_line)]]
Params = Annotated[dict[str, Any], AfterValidator(_params)]


class DeploymentSettings(Section):
    """One of several places or keys of a model; what is not written is as the model has it."""

    llm: Annotated[str, AfterValidator(_llm)] | None = None
    api_key: Text | None = None
    base_url: Address | None = None
    headers: Headers | None = None
    params: Params | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)] = 1.0


class ModelSettings(Section):
    """A model under a name of its own. Without `base_url` the service's usual address and key are used."""

    name: Name
    llm: Annotated[str, AfterValidator(_llm)]
    api: Literal["chat", "responses"] | None = None
    api_key: Text | None = None
    base_url: Address | None = None
    headers: Headers = Field(default_factory=dict)
    params: Params = Field(default_factory=dict)
    timeout_s: Seconds | None = None
    idle_timeout_s: Seconds | None = None
    connect_timeout_s: Seconds | None = None
    retry: RetrySettings | None = None
    breaker: BreakerSettings | None = None
    limit: LimitSettings | None = None
    budget: BudgetSettings | None = None
    fallback: Annotated[tuple[Name, ...], Strict(strict=False)] = ()
    deployments: Annotated[tuple[DeploymentSettings, ...], Strict(strict=False)] = ()
    cooldown_s: Seconds = 30.0
    price: PriceSettings | None = None
    faults: Annotated[tuple[str, ...], Strict(strict=False), BeforeValidator(_listed), AfterValidator(_script)] = ()
    allow: Annotated[tuple[Annotated[str, AfterValidator(_refusable)], ...], Strict(strict=False)] = ()

    def placed(self, folder: Path) -> ModelSettings:
        """The same model with the recordings it is answered from found from a folder."""
        others = [one.model_copy(update={"llm": one.llm and _placed(one.llm, folder)}) for one in self.deployments]
        return self.model_copy(update={"llm": _placed(self.llm, folder), "deployments": tuple(others)})

    def deployed(self, deployment: DeploymentSettings) -> ModelSettings:
        """This model at one of its deployments; a key, an address and headers stay with the service they are for."""
        written = deployment.model_dump(exclude_none=True, exclude={"weight"})
        own: dict[str, Any] = {key: getattr(deployment, key) for key in written}
        elsewhere = deployment.llm is not None and split(deployment.llm)[0] != split(self.llm)[0]
        if elsewhere or deployment.base_url is not None:
            own = {"api_key": None, "headers": {}, "base_url": None, **own}
        return self.model_copy(update=own)
