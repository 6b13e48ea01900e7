"""`per_principal`: whose policies a call goes through."""

from __future__ import annotations

import pytest

from penstock.errors import LimitReached
from penstock.events import Used
from penstock.messages import Usage
from penstock.policies.budget import budget
from penstock.policies.limit import limit
from penstock.policies.principals import per_principal
from penstock.run import Executor, Principal, Run, execute

ALICE, BOB = Principal("alice"), Principal("bob", "tenant", frozenset({"admin"}))


async def uses(request: str, run: Run) -> str:
    await run.emit(Used(usage=Usage(5, 5, 10)))
    return request


async def refusal(executor: Executor[str, str], principal: Principal | None) -> str:
    """The limit that refused a call; empty where none did."""
    try:
        await execute(executor, "x", principal=principal)
    except LimitReached as error:
        return error.limit
    return ""


async def test_each_caller_has_its_own_policies_and_who_is_not_listed_has_none() -> None:
    own = per_principal({"alice": [limit(requests_per_minute=1)], "bob": [budget(20)], "nobody": []})
    executor = own(uses)
    assert [await refusal(executor, ALICE) for _ in range(3)] == ["", "requests_per_minute", "requests_per_minute"]
    assert [await refusal(executor, BOB) for _ in range(3)] == ["", "", "budget"]
    for free in (None, Principal("carol"), Principal("nobody")):
        assert [await refusal(executor, free) for _ in range(3)] == ["", "", ""]


async def test_a_callers_count_is_one_over_all_executors() -> None:
    own = per_principal({"alice": [limit(requests_per_minute=2)]})
    first, second = own(uses), own(uses)
    assert [await refusal(first, ALICE), await refusal(second, ALICE)] == ["", ""]
    assert [await refusal(first, ALICE), await refusal(second, ALICE)] == ["requests_per_minute"] * 2


async def test_the_first_policy_is_the_outermost_and_a_refusal_further_in_gives_back() -> None:
    own = per_principal({"alice": [limit(requests_per_minute=3), budget(10)]})
    executor = own(uses)
    assert [await refusal(executor, ALICE) for _ in range(10)] == ["", *["budget"] * 9]
    both = per_principal({"alice": [limit(concurrent=1, requests_per_minute=1), limit(tokens_per_minute=1)]})(uses)
    assert [await refusal(both, ALICE) for _ in range(2)] == ["", "requests_per_minute"]


async def test_what_is_changed_in_the_mapping_later_changes_nothing() -> None:
    policies = {"alice": [limit(requests_per_minute=1)]}
    executor = per_principal(policies)(uses)
    policies.clear()
    await execute(executor, "x", principal=ALICE)
    with pytest.raises(LimitReached):
        await execute(executor, "x", principal=ALICE)
