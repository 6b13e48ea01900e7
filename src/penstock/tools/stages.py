"""The policies between a tool's validated arguments and its call, made from its spec."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from penstock.errors import ToolFailed, ToolTimeout
from penstock.policies import Policy
from penstock.policies.breaker import speaks_against_it
from penstock.policies.idempotency import Ledger
from penstock.run import Run
from penstock.tools.result import Arguments, ToolResult
from penstock.tools.spec import BreakerSpec, CacheSpec, RetrySpec, ToolSpec
from penstock.tools.value import encoded


class Checked(msgspec.Struct, frozen=True, gc=False):
    """A call whose arguments are validated: the values, and the arguments as they were given.

    `key` is its idempotency key, `until` the moment (monotonic, s) until which it may run.
    """

    values: dict[str, Any]
    given: Arguments
    key: str | None
    until: float


# Answers of a service that works: they say something of the call, not of the service.
ANSWERS = frozenset(
    {
        "address_denied",
        "bad_operation",
        "bad_return_value",
        "bad_statement",
        "conditional_check_failed",
        "conflict",
        "constraint_violation",
        "invalid_value",
        "missing_column",
        "missing_table",
        "permission_denied",
        "read_only_violation",
        "redirect_denied",
        "syntax_error",
        "too_large",
    }
)
BUSY = frozenset({"http_408", "http_425", "http_429"})
Late = Callable[[str], ToolTimeout]


def canonical(value: Any) -> bytes:
    """A value as JSON with sorted keys: equal values are equal bytes, in this process and in the next."""
    from pydantic_core import to_jsonable_python

    return msgspec.json.encode(value, enc_hook=to_jsonable_python, order="deterministic")


def stages(
    spec: ToolSpec, *, defaults: Mapping[str, Any], safe: bool, speaks: bool, late: Late, ledger: Ledger | None
) -> list[Policy]:
    """The policies that a spec asks for, the outermost first; `late` makes the error of a call that overran."""
    found: list[Policy] = []
    if spec.cache is not None:
        found.append(_cached(spec, spec.cache, defaults))
    if spec.idempotency.ledger:
        found.append(_kept(spec, ledger, defaults))
    if spec.limit is not None:
        from penstock.policies.limit import limit

        found.append(limit(**spec.limit.model_dump(exclude_none=True)))
    if spec.circuit_breaker is not None:
        found += _guarded(spec, spec.circuit_breaker, late)
    if spec.retry is not None:
        found += _repeated(spec.retry, safe=safe, speaks=speaks, late=late)
    return found


def _guarded(spec: ToolSpec, breaker_spec: BreakerSpec, late: Late) -> list[Policy]:
    """A breaker, and a time limit inside it: the whole call's deadline looks to it like a caller who left."""
    from penstock.policies.breaker import breaker
    from penstock.policies.timeout import timeout

    refused = partial(ToolFailed, code="unavailable", retryable=True)
    seconds = spec.timeout_s - min(0.05, spec.timeout_s / 10)

    def overran(_: str) -> ToolTimeout:
        return late(f"not finished within {spec.timeout_s:g} s")

    return [breaker(**breaker_spec.model_dump(), error=refused, counts=_troubled), timeout(seconds, error=overran)]


def _troubled(error: Exception) -> bool:
    """Whether an error says that the tool itself is in trouble, and not this one call."""
    if isinstance(error, ToolFailed):
        return error.code not in ANSWERS and (not error.code.startswith("http_4") or error.code in BUSY)
    return speaks_against_it(error)


def _repeated(spec: RetrySpec, *, safe: bool, speaks: bool, late: Late) -> list[Policy]:
    """Retries, and the time limit of one attempt."""
    from penstock.policies.retry import retry
    from penstock.policies.timeout import timeout

    again = retry(**spec.model_dump(exclude={"attempt_timeout_s"}), silent=not speaks)
    if spec.attempt_timeout_s is None:
        return [again]

    def overran(message: str) -> ToolTimeout:
        error = late(message)
        error.retryable = safe
        return error

    return [again, timeout(spec.attempt_timeout_s, error=overran)]


def _cached(spec: ToolSpec, kept: CacheSpec, defaults: Mapping[str, Any]) -> Policy:
    from penstock.policies.cache import cache

    tool = (spec.id or spec.tool_name, spec.version)

    def key(call: Checked, run: Run) -> Hashable:
        return (run.principal.tenant, run.principal.name, *tool, canonical(_as_given(call, defaults)))

    return cache(ttl_s=kept.ttl_s, max_entries=kept.max_entries, key=key)


def _kept(spec: ToolSpec, ledger: Ledger | None, defaults: Mapping[str, Any]) -> Policy:
    """At most one call under a key: the caller's, else one made of the arguments that the spec names."""
    from penstock.policies.idempotency import Codec, MemoryLedger, idempotency

    tool, named = spec.id or spec.tool_name, spec.idempotency.key_from

    def key(call: Checked, _: Run) -> str | None:
        if call.key is not None:
            return canonical([tool, call.key]).decode()
        if not named:
            return None
        given = _as_given(call, defaults)
        return canonical([tool, sha256(canonical([given.get(name) for name in named])).hexdigest()]).decode()

    def fingerprint(call: Checked) -> str:
        return sha256(canonical(_as_given(call, defaults))).hexdigest()

    codec = Codec(_written, _read)
    kept = ledger or MemoryLedger()
    return idempotency(kept, key=key, fingerprint=fingerprint, codec=codec, ttl_s=spec.idempotency.ttl_s)


def _as_given(call: Checked, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as JSON has them, with the defaults: typed values may hide a part, or have no order."""
    given = call.given
    if isinstance(given, Mapping):
        return {**defaults, **given}
    found: dict[str, Any] = msgspec.json.decode(given) if given.strip() else {}
    return {**defaults, **found}


def _written(value: Any) -> bytes:
    given = value if isinstance(value, ToolResult) else ToolResult(value)
    return encoded([given.content, given.warnings])


def _read(data: bytes) -> ToolResult:
    content, warnings = msgspec.json.decode(data)
    return ToolResult(content, warnings=tuple(warnings))
