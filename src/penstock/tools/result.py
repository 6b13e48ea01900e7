"""What goes into a tool and what comes out of it: `ToolRequest`, `ToolContext`, `ToolResult`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from penstock.messages import Usage
from penstock.run import Principal, Run

if TYPE_CHECKING:
    from penstock.tools.spec import ReturnTarget

Arguments: TypeAlias = str | bytes | Mapping[str, Any]
"""A JSON object as text, as a model writes it, or one that is decoded."""


class ToolRequest(msgspec.Struct, frozen=True, gc=False):
    """One call of a tool: its arguments, and the key under which it runs at most once where the tool keeps a ledger."""

    arguments: Arguments
    idempotency_key: str | None = None


class ToolContext(msgspec.Struct, frozen=True):
    """On whose behalf and within which run a tool is called; a function may ask for it.

    For `execute(args, ctx)` all is optional: without a run the call is a root of its own, and without a principal it is
    `local`'s. A tool is always given a full one.
    """

    principal: Principal | None = None
    tenant: str | None = None
    idempotency_key: str | None = None
    run: Run | None = None


class ToolFault(msgspec.Struct, frozen=True):
    """Why a tool gave no value, as a model is told: a code, a message, whether to try again, and what else is known."""

    code: str
    message: str
    retryable: bool = False
    details: Any = None


class ToolResult(msgspec.Struct, frozen=True):
    """A tool's value, or its error, never both; `latency_s` is the time it took in seconds.

    `return_target` says where the value may go: into the conversation (`llm`), to the client only (`human`), or to the
    caller and not into a prompt (`agent`, `step`).
    """

    content: Any = None
    error: ToolFault | None = None
    usage: Usage | None = None
    latency_s: float = 0.0
    warnings: tuple[str, ...] = ()
    return_target: ReturnTarget = "llm"

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None
