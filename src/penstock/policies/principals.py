"""`per_principal`: the policies of each caller, chosen by the principal's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from penstock.policies import Policy, wrap
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")


def per_principal(policies: Mapping[str, Sequence[Policy]]) -> Policy:
    """Put the policies of `run.principal.name` around each call, the first outermost; who is not listed has none.

    The same policies serve all executors that are given this one, so a caller's limit counts over all of them.
    """
    chains = {name: tuple(own) for name, own in policies.items()}

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        wrapped: dict[str, Executor[Request, Result]] = {name: wrap(executor, own) for name, own in chains.items()}

        async def call(request: Request, run: Run, /) -> Result:
            return await wrapped.get(run.principal.name, executor)(request, run)

        return call

    return policy
