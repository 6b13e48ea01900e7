"""Which providers the environment names, and the LLM of each: keys and addresses are read here and nowhere later."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from penstock.config.models import DEMO, REPLAY, ModelSettings
from penstock.config.values import check_address, one_line
from penstock.errors import ConfigError, MissingExtra, UsageError
from penstock.llms import LLMS
from penstock.llms.services import SERVICES, Service, split

if TYPE_CHECKING:
    from penstock.llms.base import BaseLlm
    from penstock.llms.prices import Price
    from penstock.llms.remote import RemoteLlm
    from penstock.llms.transport import Limits

ENVIRONMENT = "environment"
WITH_LIMITS = ("litellm", "replay")
"""Providers of Penstock's own whose classes are given `Limits`."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Provider:
    """A service that is served here, at an address, with the key for it."""

    service: Service
    base_url: str
    api_key: SecretStr | None = None

    @property
    def name(self) -> str:
        """The prefix of its models."""
        return self.service.name

    def llm(self) -> RemoteLlm:
        """The LLM that answers for every model of this provider."""
        return _remote(self.service, self.base_url, self.api_key, ModelSettings(name=self.name, llm=f"{self.name}:any"))


@dataclass(frozen=True, slots=True)
class Environment:
    """The providers whose usual variables are set, and what to say at start about the others."""

    providers: tuple[Provider, ...]
    notices: tuple[str, ...] = field(default=())


def read_environment(env: Mapping[str, str]) -> Environment:
    """What the environment serves; an empty variable counts as unset. Raises `ConfigError` for an unusable address."""
    providers: list[Provider] = []
    notices: list[str] = []
    for row in SERVICES.values():
        written, key = _variable(env, row.base_env), _first(env, row.key_envs)
        if key and all(_variable(env, name) for name in (row.key_env, row.other_key_env)):
            notices.append(
                f"{row.other_key_env} and {row.key_env} are both set: {row.other_key_env} is the one that counts"
            )
        if row.local and not written:
            continue
        if not row.base_url and bool(written) != bool(key):
            has, lacks = (row.base_env, row.key_env) if written else (row.key_env, row.base_env)
            notices.append(f"{has} is set, but {lacks} is not: {row.name} is not served")
        elif written or key:
            base_url = _checked(row.base_env, written, check_address) if written else row.base_url
            providers.append(Provider(row, base_url, _usual_key(row, env)))
    return Environment(tuple(providers), tuple(notices))


def configured_llm(model: ModelSettings, env: Mapping[str, str]) -> BaseLlm:
    """The LLM of a configured model, without policies."""
    service, name = split(model.llm)
    if service == DEMO:
        return LLMS.get(DEMO)()
    if service not in SERVICES:
        return offered_llm(model)
    row = SERVICES[service]
    if model.base_url:  # the usual key belongs to the usual address: it is not sent to another
        return _remote(row, model.base_url, model.api_key, model, name=name)
    written = _variable(env, row.base_env)
    base_url = _checked(row.base_env, written, check_address) if written else row.base_url
    return _remote(row, base_url, model.api_key or _usual_key(row, env), model, name=name)


def offered_llm(model: ModelSettings) -> BaseLlm:
    """The LLM of a provider that is no service: its class in `LLMS`, made from the model's name and the keys written.

    Raises `ConfigError`, whose `key` is one of the model's, for a class that cannot be loaded or made from these.
    """
    provider, name = split(model.llm)
    place = f"the model {model.name!r}"
    try:
        made = LLMS.get(provider)
    except (MissingExtra, ImportError, AttributeError) as error:
        raise ConfigError(f"the provider {provider!r} cannot be loaded: {error}", file=place, key="llm") from error
    options = _options(model, limits=provider in WITH_LIMITS)
    try:
        llm = made(model=name, **options)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found and found[1] in options:
            problem = f"the provider {provider!r} does not take {found[1]!r}: remove it"
            raise ConfigError(problem, file=place, key=found[1]) from error
        raise ConfigError(f"the provider {provider!r} cannot be made: {error}", file=place, key="llm") from error
    except UsageError as error:
        raise ConfigError(
            f"the provider {provider!r} cannot be made: {error.message}", file=place, key="llm"
        ) from error
    if model.price:
        llm.price = known_price(model)
    return llm


def known_price(model: ModelSettings) -> Price | None:
    """What a configured model costs: as written, else as the table of models says."""
    from penstock.llms.prices import FREE, Price, price_of

    if split(model.llm)[0] in (DEMO, REPLAY):
        return FREE
    written = model.price
    if written is not None:
        return Price(written.input, written.output, written.cached_input, written.cache_write)
    return price_of(*split(model.llm))


def lacks_key(model: ModelSettings, env: Mapping[str, str]) -> str:
    """The variable that would give a configured model its key, when it has none and its service needs one."""
    row = SERVICES.get(split(model.llm)[0])
    if row is None or row.local or model.api_key or model.base_url or row.key_header in model.headers:
        return ""
    return "" if _first(env, row.key_envs) or _variable(env, row.base_env) else row.key_env


def _options(model: ModelSettings, *, limits: bool) -> dict[str, Any]:
    """The keys of a model that its LLM is made from, those that are written; times as numbers or as `Limits`."""
    times = {name: getattr(model, name) for name in ("timeout_s", "idle_timeout_s", "connect_timeout_s")}
    options = {
        "api": model.api,
        "api_key": model.api_key.get_secret_value() if model.api_key else None,
        "base_url": model.base_url,
        "headers": _headers(model),
        "params": model.params,
        **({"limits": _limits(model)} if limits else times),
    }
    return {key: value for key, value in options.items() if value}


def _limits(model: ModelSettings) -> Limits:
    from penstock.llms.transport import Limits

    usual = Limits()
    return Limits(
        connect_s=model.connect_timeout_s or usual.connect_s,
        idle_s=model.idle_timeout_s or usual.idle_s,
        total_s=model.timeout_s or usual.total_s,
    )


def _headers(model: ModelSettings) -> dict[str, str]:
    return {header: value.get_secret_value() for header, value in model.headers.items()}


def _remote(row: Service, base_url: str, key: SecretStr | None, model: ModelSettings, *, name: str = "") -> RemoteLlm:
    made: Any = LLMS.get(row.wire)
    return made(  # type: ignore[no-any-return]
        model=name,
        api_key=key.get_secret_value() if key else None,
        base_url=base_url,
        service=row,
        headers=_headers(model),
        params=model.params,
        price=known_price(model) if model.price else None,
        limits=_limits(model),
        **({"api": model.api} if model.api else {}),
    )


def _variable(env: Mapping[str, str], name: str) -> str:
    return env.get(name, "").strip() if name else ""


def _first(env: Mapping[str, str], names: Iterable[str]) -> str:
    """The variable among these that is set, the first one; empty where none is."""
    return next((name for name in names if _variable(env, name)), "")


def _usual_key(row: Service, env: Mapping[str, str]) -> SecretStr | None:
    name = _first(env, row.key_envs)
    return _checked(name, SecretStr(_variable(env, name)), one_line) if name else None


def _checked(name: str, value: Value, check: Callable[[Value], Value]) -> Value:
    try:
        return check(value)
    except ValueError as error:
        problem = str(error)
    raise ConfigError(problem, file=ENVIRONMENT, key=name)
