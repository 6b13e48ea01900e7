"""Policies: functions from executor to executor, so they nest in any order."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from penstock.run import Executor

Request = TypeVar("Request")
Result = TypeVar("Result")


class Policy(Protocol):
    """Wraps an executor into another one that takes and gives the same."""

    def __call__(self, executor: Executor[Request, Result], /) -> Executor[Request, Result]:
        """The wrapped executor."""
        ...


def wrap(executor: Executor[Any, Any], policies: Iterable[Policy]) -> Executor[Any, Any]:
    """The executor inside its policies; the first policy is the outermost."""
    for policy in reversed(list(policies)):
        executor = policy(executor)
    return executor
