"""Policies: functions from executor to executor, so they nest in any order."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from penstock.run import Executor

Policy: TypeAlias = Callable[[Executor[Any, Any]], Executor[Any, Any]]


def wrap(executor: Executor[Any, Any], policies: Iterable[Policy]) -> Executor[Any, Any]:
    """The executor inside its policies; the first policy is the outermost."""
    for policy in reversed(list(policies)):
        executor = policy(executor)
    return executor
