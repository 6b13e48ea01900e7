"""`ExecutionResult`: how a task ended, as it is returned, stored and served."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec

from penstock.errors import PenstockError, TaskFailed
from penstock.messages import Usage


class ExecutionStatus(StrEnum):
    """How a task stands.

    A `BLOCKED` one needs another that failed. `UNKNOWN` is one with effects that was interrupted: it may have had them.
    """

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is stored: the name of its class, its message and code, and what else is known (JSON values)."""

    type: str
    message: str
    code: str | None = None
    retryable: bool = False
    details: Any = None

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """An error as a fault."""
        name = type(error).__name__
        if not isinstance(error, PenstockError):
            return cls(name, str(error))
        code = getattr(error, "code", None) or getattr(error, "limit", None)
        return cls(name, str(error), code, error.retryable, getattr(error, "details", None))


class Review(msgspec.Struct, frozen=True):
    """What a reviewer said of a task's output, in which round (1-based); work with nothing `unmet` was accepted.

    What is unmet is a text each: the success criterion, and what is wrong.
    """

    reviewer: str
    round: int
    unmet: tuple[str, ...] = ()


class ExecutionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a task ended; times have a time zone, `cost` is in USD and None where a price is not known.

    `reviews` are all verdicts on it, in their order: an output that was done again is told of by its verdict only.
    """

    task: str
    agent: str = ""
    status: ExecutionStatus
    output: Any = None
    error: Fault | None = None
    attempts: int = 0
    usage: Usage = msgspec.field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)
    started_at: datetime | None = None
    completed_at: datetime | None = None
    reviews: tuple[Review, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is an output."""
        return self.status is ExecutionStatus.SUCCESS

    def failure(self) -> TaskFailed:
        """The error of a task that has no output, to be raised: its details are this result, as JSON."""
        fault = self.error or Fault("TaskFailed", f"the task {self.task!r} is {self.status.value}")
        told = msgspec.to_builtins(self)
        return TaskFailed(fault.message, code=fault.code or "agent_failed", details=told, retryable=fault.retryable)

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, as the clock on the wall shows them."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()
