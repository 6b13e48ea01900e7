"""The policies between a tool's validated arguments and its call, made from its spec."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from penstock.errors import ToolFailed, ToolTimeout
from penstock.policies import Policy
from penstock.policies.idempotency import Ledger
from penstock.run import Run
from penstock.tools.result import ToolResult
from penstock.tools.spec import CacheSpec, ToolSpec
from penstock.tools.value import encoded


class Checked(msgspec.Struct, frozen=True, gc=False):
    """A call with validated arguments, its idempotency key, and the moment (monotonic, s) until which it may run."""

    values: dict[str, Any]
    key: str | None
    until: float


def canonical(values: Any) -> bytes:
    """Values as JSON with sorted keys: equal values are equal bytes."""
    from pydantic_core import to_jsonable_python

    return msgspec.json.encode(to_jsonable_python(values), order="deterministic")


Late = Callable[[str], ToolTimeout]


def stages(spec: ToolSpec, *, safe: bool, speaks: bool, late: Late, ledger: Ledger | None) -> list[Policy]:
    """The policies that a spec asks for, the outermost first; `late` makes the error of an attempt that overran."""
    found: list[Policy] = []
    if spec.cache is not None:
        found.append(_cached(spec, spec.cache))
    if spec.idempotency.ledger:
        found.append(_kept(spec, ledger))
    if spec.limit is not None:
        from penstock.policies.limit import limit

        found.append(limit(**spec.limit.model_dump(exclude_none=True)))
    if spec.circuit_breaker is not None:
        from penstock.policies.breaker import breaker

        refused = partial(ToolFailed, code="unavailable", retryable=True)
        found.append(breaker(**spec.circuit_breaker.model_dump(), error=refused))
    if spec.retry is not None:
        from penstock.policies.retry import retry

        pauses = spec.retry.model_dump(exclude={"attempt_timeout_s"})
        found.append(retry(**pauses, silent=not speaks))
    if (seconds := _attempt_s(spec)) is not None:
        from penstock.policies.timeout import timeout

        def error(message: str) -> ToolTimeout:
            overrun = late(message)
            overrun.retryable = safe
            return overrun

        found.append(timeout(seconds, error=error))
    return found


def _attempt_s(spec: ToolSpec) -> float | None:
    """The limit of one attempt. A breaker needs one: the whole call's deadline looks like a caller who left."""
    own = spec.retry.attempt_timeout_s if spec.retry is not None else None
    if own is not None or spec.circuit_breaker is None:
        return own
    return spec.timeout_s - min(0.05, spec.timeout_s / 10)


def _cached(spec: ToolSpec, kept: CacheSpec) -> Policy:
    from penstock.policies.cache import cache

    tool = (spec.id or spec.tool_name, spec.version)

    def key(call: Checked, run: Run) -> Hashable:
        return (run.principal.tenant, run.principal.name, *tool, canonical(call.values))

    return cache(ttl_s=kept.ttl_s, max_entries=kept.max_entries, key=key)


def _kept(spec: ToolSpec, ledger: Ledger | None) -> Policy:
    """At most one call under a key: the caller's, else one made of the arguments that the spec names.

    Each tenant has its own keys, so that none is given what another's call returned.
    """
    from penstock.policies.idempotency import Codec, MemoryLedger, idempotency

    tool, named = spec.id or spec.tool_name, spec.idempotency.key_from

    def key(call: Checked, run: Run) -> str | None:
        own = [run.principal.tenant, tool]
        if call.key is not None:
            return canonical([*own, call.key]).decode()
        if not named:
            return None
        return canonical([*own, sha256(canonical([call.values.get(name) for name in named])).hexdigest()]).decode()

    def fingerprint(call: Checked) -> str:
        return sha256(canonical(call.values)).hexdigest()

    codec = Codec(_written, _read)
    kept = ledger or MemoryLedger()
    return idempotency(kept, key=key, fingerprint=fingerprint, codec=codec, ttl_s=spec.idempotency.ttl_s)


def _written(value: Any) -> bytes:
    given = value if isinstance(value, ToolResult) else ToolResult(value)
    return encoded([given.content, given.warnings])


def _read(data: bytes) -> ToolResult:
    content, warnings = msgspec.json.decode(data)
    return ToolResult(content, warnings=tuple(warnings))
