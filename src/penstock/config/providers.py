"""Which providers the environment names, and the LLM of each: keys and addresses are read here and nowhere later."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from penstock.config.settings import DEMO, ModelSettings, check_address, one_line, split
from penstock.errors import ConfigError, MissingExtra
from penstock.llms import LLMS
from penstock.llms.services import SERVICES, Service

if TYPE_CHECKING:
    from penstock.llms.base import BaseLlm
    from penstock.llms.openai import Gpt

ENVIRONMENT = "environment"
Value = TypeVar("Value")
_UNBUILT_KEYS = {"ANTHROPIC_API_KEY": "anthropic", "GOOGLE_API_KEY": "gemini", "GEMINI_API_KEY": "gemini"}


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

    def llm(self) -> Gpt:
        """The LLM that answers for every model of this provider."""
        return _gpt(self.service, self.base_url, self.api_key, ModelSettings(name=self.name, llm=f"{self.name}:any"))


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
        written, key = _variable(env, row.base_env), _variable(env, row.key_env)
        if row.local and not written:
            continue
        if not row.base_url and bool(written) != bool(key):
            has, lacks = (row.base_env, row.key_env) if written else (row.key_env, row.base_env)
            notices.append(f"{has} is set, but {lacks} is not: {row.name} is not served")
        elif written or key:
            base_url = _checked(row.base_env, written, check_address) if written else row.base_url
            providers.append(Provider(row, base_url, _usual_key(row, env)))
    return Environment(tuple(providers), (*notices, *_unbuilt(env)))


def configured_llm(model: ModelSettings, env: Mapping[str, str]) -> BaseLlm:
    """The LLM of a configured model, without policies."""
    service, name = split(model.llm)
    if service == DEMO:
        return LLMS.get(DEMO)()
    if service not in SERVICES:
        return offered_llm(model)
    row = SERVICES[service]
    if model.base_url:  # the usual key belongs to the usual address: it is not sent to another
        return _gpt(row, model.base_url, model.api_key, model, name=name)
    written = _variable(env, row.base_env)
    base_url = _checked(row.base_env, written, check_address) if written else row.base_url
    return _gpt(row, base_url, model.api_key or _usual_key(row, env), model, name=name)


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
    options = _options(model)
    try:
        return made(model=name, **options)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found and found[1] in options:
            problem = f"the provider {provider!r} does not take {found[1]!r}: remove it"
            raise ConfigError(problem, file=place, key=found[1]) from error
        raise ConfigError(f"the provider {provider!r} cannot be made: {error}", file=place, key="llm") from error


def lacks_key(model: ModelSettings, env: Mapping[str, str]) -> str:
    """The variable that would give a configured model its key, when it has none and its service needs one."""
    row = SERVICES.get(split(model.llm)[0])
    if row is None or row.local or model.api_key or model.base_url or "authorization" in model.headers:
        return ""
    return "" if _variable(env, row.key_env) or _variable(env, row.base_env) else row.key_env


def _options(model: ModelSettings) -> dict[str, Any]:
    """The keys of a model that its LLM is made from, those that are written."""
    options = {
        "api_key": model.api_key.get_secret_value() if model.api_key else None,
        "base_url": model.base_url,
        "headers": _headers(model),
        "params": model.params,
        "timeout_s": model.timeout_s,
        "idle_timeout_s": model.idle_timeout_s,
        "connect_timeout_s": model.connect_timeout_s,
    }
    return {key: value for key, value in options.items() if value}


def _headers(model: ModelSettings) -> dict[str, str]:
    return {header: value.get_secret_value() for header, value in model.headers.items()}


def _gpt(row: Service, base_url: str, key: SecretStr | None, model: ModelSettings, *, name: str = "") -> Gpt:
    from penstock.llms.openai import Gpt
    from penstock.llms.transport import Limits

    usual = Limits()
    return Gpt(
        model=name,
        api_key=key.get_secret_value() if key else None,
        base_url=base_url,
        service=row,
        headers=_headers(model),
        params=model.params,
        limits=Limits(
            connect_s=model.connect_timeout_s or usual.connect_s,
            idle_s=model.idle_timeout_s or usual.idle_s,
            total_s=model.timeout_s or usual.total_s,
        ),
    )


def _unbuilt(env: Mapping[str, str]) -> list[str]:
    held = [name for name in _UNBUILT_KEYS if _variable(env, name)]
    notices: list[str] = []
    if "GOOGLE_API_KEY" in held and "GEMINI_API_KEY" in held:
        held.remove("GEMINI_API_KEY")
        notices.append("GOOGLE_API_KEY and GEMINI_API_KEY are both set: GOOGLE_API_KEY is the one that counts")
    notices += [f"{name} is set, but the provider {_UNBUILT_KEYS[name]} is not built yet: not served" for name in held]
    return notices


def _variable(env: Mapping[str, str], name: str) -> str:
    return env.get(name, "").strip() if name else ""


def _usual_key(row: Service, env: Mapping[str, str]) -> SecretStr | None:
    key = _variable(env, row.key_env)
    return _checked(row.key_env, SecretStr(key), one_line) if key else None


def _checked(name: str, value: Value, check: Callable[[Value], Value]) -> Value:
    try:
        return check(value)
    except ValueError as error:
        problem = str(error)
    raise ConfigError(problem, file=ENVIRONMENT, key=name)
