"""`ToolSpec` and its kinds: what a tool is called, takes, gives, may, and how it is run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from penstock.tools.arguments.parameters import Parameter, read_parameters, read_return_type

ReturnTarget: TypeAlias = Literal["llm", "human", "agent", "step"]
SHOWN = frozenset({"llm", "human"})
"""Where a value may be seen by the client."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
_Read = Field(union_mode="left_to_right")  # what is a mapping after reading is a JSON Schema


class Section(BaseModel):
    """A frozen part of a spec; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ToolExample(Section):
    """An example call, shown to the model below the description."""

    arguments: dict[str, Any]
    result: Any = None


class RetrySpec(Section):
    """How often a call is tried, the first time included, and the pauses in seconds.

    Only errors after which a repetition is safe are tried again. `attempt_timeout_s` limits one attempt.
    """

    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    base_s: Annotated[float, Field(ge=0)] = 0.5
    max_s: Annotated[float, Field(ge=0)] = 30.0
    attempt_timeout_s: Seconds | None = None


class BreakerSpec(Section):
    """After `failures` in a row the tool is not called for `reset_s` seconds, then tried by one call."""

    failures: Count = 5
    reset_s: Seconds = 30.0


class LimitSpec(Section):
    """What is refused beyond: calls a minute, and calls at once."""

    requests_per_minute: Count | None = None
    concurrent: Count | None = None


class CacheSpec(Section):
    """Results are kept `ttl_s` seconds, `max_entries` of them; the same arguments at once are one call."""

    ttl_s: Seconds = 300.0
    max_entries: Count = 1024


class IdempotencySpec(Section):
    """Whether a call may be repeated.

    `safe`: repeating does no harm, so retries may. `ledger`: a call under one key is run at most once; the key is the
    caller's, else made from the arguments named in `key_from`; results are kept `ttl_s` seconds.
    """

    safe: bool = False
    ledger: bool = False
    key_from: tuple[str, ...] = ()
    ttl_s: Seconds = 86_400.0


class ToolSpec(Section):
    """What every tool declares. `parameters` may be `Parameter`s, a mapping of names to types, or a JSON Schema.

    `timeout_s` limits a whole call in seconds, retries included; longer values than `max_result_bytes` are cut, with a
    warning; `coerce` accepts numbers and flags written as strings. `permissions` are scopes that the caller must hold.
    """

    tool_name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    id: str = ""
    version: str = "1"
    description: str = ""
    parameters: Annotated[dict[str, Any] | tuple[Parameter, ...] | None, _Read, BeforeValidator(read_parameters)] = None
    coerce: bool = False
    return_type: Annotated[dict[str, Any] | Parameter | None, _Read, BeforeValidator(read_return_type)] = None
    return_target: ReturnTarget = "llm"
    required: bool = False
    owner: str = ""
    permissions: tuple[str, ...] = ()
    timeout_s: Seconds = 30.0
    max_result_bytes: Count = 1_000_000
    examples: tuple[ToolExample, ...] = ()
    retry: RetrySpec | None = None
    circuit_breaker: BreakerSpec | None = None
    limit: LimitSpec | None = None
    cache: CacheSpec | None = None
    idempotency: IdempotencySpec = IdempotencySpec()
    metrics_tags: dict[str, str] = {}

    @property
    def parameter_names(self) -> frozenset[str]:
        """What a call may give, where the spec says so."""
        if isinstance(self.parameters, dict):
            return frozenset(self.parameters.get("properties") or ())
        return frozenset(parameter.name for parameter in self.parameters or ())

    def require_declared(self, names: Iterable[str]) -> None:
        """Raise `ValueError` for a name that is no parameter."""
        if unknown := sorted(set(names) - self.parameter_names):
            listed = ", ".join(map(repr, sorted(self.parameter_names))) or "none"
            raise ValueError(f"no parameter is called {', '.join(map(repr, unknown))}; parameters are {listed}")

    @model_validator(mode="after")
    def _one_memory(self) -> ToolSpec:
        if self.cache is not None and self.idempotency.ledger:
            raise ValueError(
                "cache and idempotency.ledger exclude each other: a cache is for reads, a ledger for effects"
            )
        return self
