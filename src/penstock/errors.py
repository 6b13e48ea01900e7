"""Every exception Penstock raises, ordered by what the caller can do about it.

PenstockError                 retryable, retry_after: all that a retry asks for
├── UsageError                the calling code or the configuration is wrong
│   ├── UnknownName           nothing is registered under this name (also a ValueError)
│   ├── MissingExtra          an optional dependency is not installed; says the command
│   ├── CyclicPlan            a graph of tasks leads back to itself
│   ├── AgentUnavailable      an agent is disabled, or cannot do what a task asks for
│   └── ConfigError           file, line and key of what is wrong
├── RequestError              what a client sent
│   ├── Invalid               400
│   ├── Unauthenticated       401
│   ├── Forbidden             403
│   ├── NotFound              404
│   ├── Conflict              409
│   └── TooLarge              413
├── LlmError                  the service said no, or nothing
│   ├── Unauthorized          it does not accept the key, the account or the model that is configured
│   ├── BadRequest            it does not accept the request
│   │   ├── TooLong           the context does not fit
│   │   └── Refused           a content rule stopped it
│   ├── Transient             the same call may succeed later
│   │   ├── RateLimited
│   │   ├── Unavailable
│   │   └── TimedOut          nothing arrived within the limit
│   └── BadAnswer             cut, stalled after a start, malformed; carries what had arrived
├── ToolError                 told to the model, not to the caller
│   ├── BadArguments
│   ├── Denied
│   ├── ToolTimeout
│   └── ToolFailed
├── TaskFailed                an agent did not finish its task
├── LimitReached              steps, tokens, money, time or rate; stopped before the next call
└── StoreFailed               what must outlive the process cannot be written or read
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class PenstockError(Exception):
    """Base of all errors; `retryable` says whether the same call may be repeated, `retry_after` (seconds) when."""

    retryable: bool = False
    retry_after: float | None = None

    def __init__(self, message: str, *, retryable: bool | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retryable is not None:
            self.retryable = retryable
        if retry_after is not None:
            self.retry_after = retry_after


class UsageError(PenstockError):
    """The calling code or the configuration is wrong."""


class UnknownName(UsageError, ValueError):
    """Nothing is registered under this name; the message lists what is."""


class MissingExtra(UsageError):
    """An optional dependency is not installed; the message says the install command."""


class CyclicPlan(UsageError):
    """A graph of tasks leads back to itself; the message shows the path.

    `path` has the names: each needs the next, and the last the first.
    """

    def __init__(self, message: str, *, path: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.path = tuple(path)


class AgentUnavailable(UsageError):
    """An agent is disabled, or lacks a capability that a task asks for, or no agent has them all."""


class ConfigError(UsageError):
    """A configuration file is wrong at `file`, `line` (1-based, None if the key is absent) and `key` (dotted path)."""

    def __init__(self, problem: str, *, file: str, line: int | None = None, key: str = "") -> None:
        where = f"{file}:{line}" if line else file
        super().__init__(f"{where}: {key}: {problem}" if key else f"{where}: {problem}")
        self.problem, self.file, self.line, self.key = problem, file, line, key


class RequestError(PenstockError):
    """What a client sent is wrong; `param` names the field, `code` is the machine-readable reason."""

    status: ClassVar[int] = 400

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class Invalid(RequestError):
    """The request cannot be understood (400)."""


class Unauthenticated(RequestError):
    """No token, or one that is not known (401)."""

    status = 401


class Forbidden(RequestError):
    """The token lacks a scope (403)."""

    status = 403


class NotFound(RequestError):
    """No such model or path (404)."""

    status = 404


class Conflict(RequestError):
    """The same idempotency key was used before (409).

    `code` says how: `in_progress`, `idempotency_conflict` (for another request) or `outcome_unknown` (that call may
    have happened: look before you repeat it under a new key).
    """

    status = 409


class TooLarge(RequestError):
    """The body exceeds the limit (413)."""

    status = 413


class LlmError(PenstockError):
    """An LLM service said no, or nothing.

    `provider` is its name, `status` the HTTP status if one came; `request_id`, `code`, `param` and `type` are its own.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        request_id: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.provider, self.status, self.request_id, self.code = provider, status, request_id, code
        self.param: str | None = None
        self.type: str | None = None


class Unauthorized(LlmError):
    """The service does not accept what is configured: the key, an account that can pay, or a model it has."""


class BadRequest(LlmError):
    """The service does not accept the request; repeating it cannot help."""


class TooLong(BadRequest):
    """The request does not fit the model's context."""


class Refused(BadRequest):
    """A content rule of the service stopped the request."""


class Transient(LlmError):
    """The same call may succeed later."""

    retryable = True


class RateLimited(Transient):
    """The service asks to slow down; `retry_after` says for how long when it told."""


class Unavailable(Transient):
    """The service could not be reached, or failed on its side."""


class TimedOut(Transient):
    """Nothing arrived within the limit."""


class BadAnswer(LlmError):
    """An answer was cut, stalled after a start, or malformed; `partial` is what had arrived (a `ChatReply`)."""

    partial: Any = None


class ToolError(PenstockError):
    """A tool did not give a value; told to the model, not to the caller.

    `code` is the machine-readable reason, `details` what is known beyond the message (JSON values).
    """

    default_code: ClassVar[str] = "tool_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Any = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.code, self.details = code or self.default_code, details


class BadArguments(ToolError):
    """The arguments do not fit the tool's parameters; the message lists every problem.

    `details` is a list of `{"path": ..., "problem": ...}`, one for each.
    """

    default_code = "bad_arguments"


class Denied(ToolError):
    """The caller may not use the tool, or the tool may not do this."""

    default_code = "denied"


class ToolTimeout(ToolError):
    """The tool took longer than it may; `details["outcome"]` is "unknown" where it could not be stopped."""

    default_code = "timeout"


class ToolFailed(ToolError):
    """The tool ran and failed, or cannot be reached."""

    default_code = "failed"


class TaskFailed(PenstockError):
    """An agent did not finish its task.

    `code` is the machine-readable reason: `agent_failed`, `agent_misconfigured`, `bad_output`, `output_too_large`,
    `not_accepted` (by the reviewer), `no_terminal`, `timeout`, `blocked`, `cancelled` or `outcome_unknown` (it may
    have had its effects: look before you retry it). `details` is what is known beyond the message (JSON values).
    """

    def __init__(self, message: str, *, code: str, details: Any = None, retryable: bool | None = None) -> None:
        super().__init__(message, retryable=retryable)
        self.code, self.details = code, details


class LimitReached(PenstockError):
    """A limit of steps, tokens, money, time or rate stopped the next call; `limit` names it. Never retried."""

    def __init__(self, message: str, *, limit: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.limit = limit


class StoreFailed(PenstockError):
    """A store cannot be read or written; what it had committed before stays as it is."""
