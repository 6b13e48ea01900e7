"""What `penstock.yaml` may say: one frozen model for each section; unknown keys are refused."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict, model_validator

from penstock.chat.passthrough import DENIED
from penstock.config.problems import HASH, SCOPE
from penstock.config.section import Name, Section, flag, number
from penstock.config.tools import ToolSettings
from penstock.llms import LLMS
from penstock.llms.services import SERVICES

DEMO = "demo"
SCOPES = ("chat", "tools", "admin")
# Known names of providers whose wire is not spoken yet.
UNBUILT_PROVIDERS = ("anthropic", "gemini")
_OWN_FIELDS = ("messages", "model", "stream")
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def check_address(value: str) -> str:
    """An http address without credentials, query or fragment; what is wrong is said without quoting it."""
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").encode("idna")
        usable = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
        usable = usable and value.isascii() and value.isprintable() and " " not in value
    except ValueError:
        usable, parts = False, urlsplit("")
    if "@" in value:
        raise ValueError("an address holds no user name or password: put the key into api_key")
    if not usable:
        raise ValueError("expected an address such as http://127.0.0.1:8080/v1")
    if parts.query or parts.fragment:
        raise ValueError("an address ends with its path: remove what follows '?' or '#'")
    return value


def _origin(value: str) -> str:
    if value != "*" and (check_address(value) and urlsplit(value).path):
        raise ValueError("expected '*' or an origin without a path, such as https://app.example.com")
    return value


def _llm(value: str) -> str:
    """A service's name, or that of a provider in `LLMS`, and a model of it."""
    service, model = split(value)
    known = {*SERVICES, *LLMS.names()}
    if service not in known:
        services = f"services are {', '.join(sorted(known))}"
        if service in UNBUILT_PROVIDERS:
            raise ValueError(f"the provider {service!r} is not supported by this version: {services}")
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


def one_line(value: SecretStr) -> SecretStr:
    """A secret that can stand in a header; raises `ValueError` for any other."""
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("expected one line of printable ASCII characters")
    return value


def _params(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in _OWN_FIELDS or name in DENIED:
            raise ValueError(f"{name!r} cannot be a default of the request")
    return value


def _refusable(value: str) -> str:
    if value not in DENIED:
        raise ValueError(f"only fields that are refused otherwise are allowed here: {', '.join(sorted(DENIED))}")
    return value


def split(llm: str) -> tuple[str, str]:
    """Service and model of `service:model` or `service/model`, split at the first of either."""
    found = re.search(r"[:/]", llm)
    return (llm[: found.start()], llm[found.end() :]) if found else (llm, "")


Count = Annotated[int, Field(ge=1), BeforeValidator(number)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(flag)]
Address = Annotated[str, AfterValidator(check_address)]
Scope = Annotated[str, Field(pattern=SCOPE)]
Text = Annotated[SecretStr, Field(min_length=1), AfterValidator(one_line)]


class ServerSettings(Section):
    """Where and how the server listens, and how it treats its clients; times in seconds."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535), BeforeValidator(number)] = 8000
    workers: Annotated[int, Field(ge=1, le=256), BeforeValidator(number)] = 1
    disconnect: Literal["cancel", "finish"] = "cancel"
    heartbeat_s: Seconds = 15.0
    write_stall_s: Seconds = 60.0
    drain_s: Seconds = 30.0
    max_body_mb: Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)] = 20.0
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Strict(strict=False)] = ()
    log: Literal["plain", "json"] = "plain"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class TokenSettings(Section):
    """One caller: a name, the token's hash or the token itself, and what it may do."""

    name: Name
    hash: Annotated[str, Field(pattern=HASH)] | None = None
    value: Text | None = None
    scopes: Annotated[tuple[Scope, ...], Strict(strict=False), Field(min_length=1)] = ("chat",)
    tenant: Name | None = None

    @model_validator(mode="after")
    def _one_of(self) -> TokenSettings:
        if (self.hash is None) == (self.value is None):
            raise ValueError("write either hash or value; `penstock token new NAME` makes a token with its hash")
        return self


class AuthSettings(Section):
    """Who may call the server; without tokens everybody who can connect."""

    tokens: Annotated[tuple[TokenSettings, ...], Strict(strict=False)] = ()


class RetrySettings(Section):
    """How often a call is tried, the first time included."""

    attempts: Annotated[int, Field(ge=1, le=20), BeforeValidator(number)] = 3


class LimitSettings(Section):
    """What one model may be asked for, in each worker."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent: Count | None = None


class ModelSettings(Section):
    """A model under a name of its own. Without `base_url` the service's usual address and key are used."""

    name: Name
    llm: Annotated[str, AfterValidator(_llm)]
    api_key: Text | None = None
    base_url: Address | None = None
    headers: dict[Annotated[str, AfterValidator(_header_name)], Annotated[SecretStr, AfterValidator(one_line)]] = Field(
        default_factory=dict
    )
    params: Annotated[dict[str, Any], AfterValidator(_params)] = Field(default_factory=dict)
    timeout_s: Seconds | None = None
    idle_timeout_s: Seconds | None = None
    connect_timeout_s: Seconds | None = None
    retry: RetrySettings | None = None
    limit: LimitSettings | None = None
    allow: Annotated[tuple[Annotated[str, AfterValidator(_refusable)], ...], Strict(strict=False)] = ()


class TracingSettings(Section):
    """Where spans are sent, and whether they carry the texts of requests and answers."""

    otlp: Address | None = None
    content: Flag = False


class StoreSettings(Section):
    """Where what must outlive the process is kept: `dir` holds the ledger."""

    dir: Annotated[str, Field(min_length=1)] = ".penstock"


class Settings(Section):
    """A whole `penstock.yaml`, checked; every key has a default."""

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    models: Annotated[tuple[ModelSettings, ...], Strict(strict=False)] = ()
    tools: Annotated[tuple[ToolSettings, ...], Strict(strict=False)] = ()
    store: StoreSettings = StoreSettings()
    tracing: TracingSettings = TracingSettings()
