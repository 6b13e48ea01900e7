"""What `penstock.yaml` may say: one frozen model for each section; unknown keys are refused."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from penstock.config.agents import AgentSettings
from penstock.config.models import BudgetSettings, LimitSettings, ModelSettings
from penstock.config.problems import HASH
from penstock.config.section import Name, Section, number
from penstock.config.tools import ToolSettings
from penstock.config.values import Address, Flag, Scope, Seconds, Text, check_address

SCOPES = ("chat", "tools", "projects", "admin")


def _origin(value: str) -> str:
    if value != "*" and (check_address(value) and urlsplit(value).path):
        raise ValueError("expected '*' or an origin without a path, such as https://app.example.com")
    return value


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
    """One caller: a name, the token's hash or the token itself, and what it may do, ask for and spend."""

    name: Name
    hash: Annotated[str, Field(pattern=HASH)] | None = None
    value: Text | None = None
    scopes: Annotated[tuple[Scope, ...], Strict(strict=False), Field(min_length=1)] = ("chat",)
    tenant: Name | None = None
    limit: LimitSettings | None = None
    budget: BudgetSettings | None = None

    @model_validator(mode="after")
    def _one_of(self) -> TokenSettings:
        if (self.hash is None) == (self.value is None):
            raise ValueError("write either hash or value; `penstock token new NAME` makes a token with its hash")
        return self


class AuthSettings(Section):
    """Who may call the server; without tokens everybody who can connect."""

    tokens: Annotated[tuple[TokenSettings, ...], Strict(strict=False)] = ()


class TracingSettings(Section):
    """Where spans are sent, and whether they carry the texts of requests and answers."""

    otlp: Address | None = None
    content: Flag = False


class StoreSettings(Section):
    """Where what must outlive the process is kept: `dir` holds the ledger and the projects."""

    dir: Annotated[str, Field(min_length=1)] = ".penstock"


class RecordingSettings(Section):
    """The folders that exchanges are written into, and that they are answered from in place of any service."""

    record: Annotated[str, Field(min_length=1)] | None = None
    replay: Annotated[str, Field(min_length=1)] | None = None


class Settings(Section):
    """A whole `penstock.yaml`, checked; every key has a default."""

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    models: Annotated[tuple[ModelSettings, ...], Strict(strict=False)] = ()
    tools: Annotated[tuple[ToolSettings, ...], Strict(strict=False)] = ()
    agents: Annotated[tuple[AgentSettings, ...], Strict(strict=False)] = ()
    store: StoreSettings = StoreSettings()
    recordings: RecordingSettings = RecordingSettings()
    tracing: TracingSettings = TracingSettings()
