"""How a run ended: `Finished`, `Failed` or `Cancelled`, told once by its root."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import msgspec

Result = TypeVar("Result")


class Finished(msgspec.Struct, Generic[Result], frozen=True):
    """The executor returned `result`."""

    result: Result


class Failed(msgspec.Struct, frozen=True):
    """The executor raised `error`, or its end could not be stored."""

    error: Exception


class Cancelled(msgspec.Struct, frozen=True):
    """The run was stopped from outside; `reason` says by what, in a few words."""

    reason: str = "cancelled"


Outcome: TypeAlias = Finished[Result] | Failed | Cancelled
