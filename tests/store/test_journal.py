"""`Journal`: legal transitions, the log and its offsets, and who may write a run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import Conflict, StoreFailed, UnknownName, UsageError
from penstock.store.journal import Journal
from penstock.store.steps import (
    ABSENT,
    BLOCKED,
    CANCELLED,
    FAILED,
    PENDING,
    RUNNING,
    SUCCEEDED,
    TRANSITIONS,
    UNKNOWN,
    Change,
    Note,
    Step,
)

SPEC = {"tasks": ["a", "b", "c"]}
STATES = sorted(TRANSITIONS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal(path) as opened:
        yield opened


async def test_a_run_goes_through_its_states_and_survives_a_new_start(path: Path) -> None:
    async with Journal(path) as journal:
        assert await journal.begin("r", SPEC, "abc") == dict.fromkeys("abc", Step(PENDING))
        await journal.write("r", Change("a", RUNNING))
        await journal.write("r", Change("a", SUCCEEDED, {"text": "é", "n": [1, 2.5, None]}), Change("b", RUNNING))
        await journal.write("r", Change("b", FAILED, "why"), Change("c", BLOCKED, {"because": "b"}))
    async with Journal(path) as again:
        steps = await again.begin("r", {"tasks": ["a", "b", "c"]}, "abc")
        assert steps == await again.steps("r")
        assert list(steps.items()) == [
            ("a", Step(SUCCEEDED, {"text": "é", "n": [1, 2.5, None]})),
            ("b", Step(FAILED, "why")),
            ("c", Step(BLOCKED, {"because": "b"})),
        ]
        await again.write("r", Change("b", PENDING), Change("c", PENDING))
        (run,) = await again.runs()
        assert (run.name, run.spec, run.offset) == ("r", SPEC, 9)


@pytest.mark.parametrize("to", STATES)
@pytest.mark.parametrize("state", STATES)
async def test_only_legal_transitions_are_written(state: str, to: str, journal: Journal) -> None:
    ways = {ABSENT: (ABSENT,), PENDING: (), RUNNING: (RUNNING,), BLOCKED: (BLOCKED,), CANCELLED: (CANCELLED,)}
    ends = {end: (RUNNING, end) for end in (SUCCEEDED, FAILED, UNKNOWN)}
    await journal.begin("r", SPEC, "ab")
    for way in (ways | ends)[state]:
        await journal.write("r", Change("a", way))
    before = await journal.steps("r"), (await journal.runs())[0].offset
    if to in TRANSITIONS[state]:
        await journal.write("r", Change("a", to))
        assert (await journal.steps("r")).get("a", Step(ABSENT)) == Step(to)
        return
    with pytest.raises(UsageError, match=f"the step 'a' is '{state}' and may not become '{to}': legal is "):
        await journal.write("r", Note("before"), Change("b", RUNNING), Change("a", to))
    assert (await journal.steps("r"), (await journal.runs())[0].offset) == before
    await journal.write("r", Change("b", RUNNING))


def test_what_has_succeeded_stays_so_and_what_failed_begins_anew() -> None:
    assert TRANSITIONS[SUCCEEDED] == frozenset()
    legal = {(state, to) for state, ways in TRANSITIONS.items() for to in ways}
    assert legal > {(RUNNING, PENDING), (FAILED, PENDING), (PENDING, BLOCKED), (BLOCKED, PENDING), (RUNNING, UNKNOWN)}
    assert not legal & {(PENDING, SUCCEEDED), (FAILED, RUNNING), (FAILED, SUCCEEDED), (ABSENT, RUNNING)}


async def test_a_run_may_have_a_table_of_its_own(journal: Journal) -> None:
    await journal.begin("r", None, ["x"], transitions={PENDING: frozenset({"sent"})})
    with pytest.raises(UsageError, match="is 'pending' and may not become 'running': legal is sent"):
        await journal.write("r", Change("x", RUNNING))
    await journal.write("r", Change("x", "sent"))
    with pytest.raises(UsageError, match="is 'sent' and may not become 'pending': legal is nothing"):
        await journal.write("r", Change("x", PENDING))


async def test_steps_come_and_go_while_a_run_goes_on(journal: Journal) -> None:
    await journal.begin("r", SPEC, ["a"])
    await journal.write("r", Change("child", PENDING), Change("child", RUNNING), Change("a", ABSENT))
    assert await journal.steps("r") == {"child": Step(RUNNING)}
    with pytest.raises(UsageError, match="'never' is 'absent'"):
        await journal.write("r", Change("never", RUNNING))


async def test_the_log_has_every_entry_at_an_offset_without_gaps(journal: Journal) -> None:
    await journal.begin("other", None, [])
    await journal.begin("r", SPEC, "ab")
    assert await journal.write("r", Change("a", RUNNING), Note("said", {"n": 1}, "a"), Note("said", {"n": 2})) == 4
    await journal.write("other", Note("apart"))
    assert await journal.write("r", Change("a", SUCCEEDED, 7)) == 5
    logged = await journal.events("r")
    assert [(one.offset, one.step, one.state, one.kind, one.value) for one in logged] == [
        (1, None, None, "begun", ["a", "b"]),
        (2, "a", RUNNING, None, None),
        (3, "a", None, "said", {"n": 1}),
        (4, None, None, "said", {"n": 2}),
        (5, "a", SUCCEEDED, None, 7),
    ]
    assert [one.at for one in logged] == sorted(one.at for one in logged)
    assert await journal.events("r", after=1, limit=2) == logged[1:3]
    assert await journal.events("r", after=5) == []
    with pytest.raises(UnknownName, match="has no run 'nobody'"):
        await journal.events("nobody")
    with pytest.raises(UnknownName):
        await journal.steps("nobody")


async def test_what_cannot_be_written_is_told_and_harms_nothing_else(journal: Journal) -> None:
    await journal.begin("r", SPEC, "abc")
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        await journal.write("r", Change("a", RUNNING, object()))
    with pytest.raises(UsageError, match="have one name twice"):
        await journal.begin("twice", None, "aa")
    answers = await asyncio.gather(
        journal.write("r", Change("a", RUNNING)),
        journal.write("r", Change("b", SUCCEEDED)),
        journal.write("nobody", Note("x")),
        journal.write("r", Note("\ud800")),
        journal.write("r", Change("b", RUNNING)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [int, UsageError, UsageError, StoreFailed, int]
    assert [step.state for step in (await journal.steps("r")).values()] == [RUNNING, RUNNING, PENDING]
    assert [one.offset for one in await journal.events("r")] == [1, 2, 3]


async def test_a_run_with_another_spec_is_a_conflict(journal: Journal) -> None:
    await journal.begin("r", {"a": 1, "b": 2}, "ab")
    await journal.release("r")
    with pytest.raises(Conflict, match="'r' was begun with another spec") as caught:
        await journal.begin("r", {"a": 1, "b": 3}, "ab")
    assert caught.value.code == "idempotency_conflict"
    assert await journal.begin("r", {"b": 2, "a": 1}, "xyz") == dict.fromkeys("ab", Step(PENDING))


async def test_case_18_of_two_who_begin_a_run_exactly_one_proceeds(path: Path, journal: Journal) -> None:
    async with Journal(path) as other:
        both = [one.begin("r", SPEC, "abc") for one in (journal, other, journal, other)]
        answers = await asyncio.gather(*both, return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 3 + ["dict"]
        for answer in answers:
            if isinstance(answer, Conflict):
                assert answer.code == "in_progress"
                assert f"held by the process {os.getpid()}:" in answer.message
        holder, waiting = (journal, other) if isinstance(answers[0], dict) else (other, journal)
        with pytest.raises(UsageError, match="'r' is not held here"):
            await waiting.write("r", Change("a", RUNNING))
        await holder.write("r", Change("a", RUNNING))
        await holder.release("r")
        assert (await waiting.begin("r", SPEC, "abc"))["a"] == Step(RUNNING)
        assert (await waiting.events("r"))[-1].kind == "resumed"
        with pytest.raises(UsageError, match="not held here"):
            await holder.write("r", Note("late"))


async def test_a_run_whose_beginning_is_cancelled_is_not_held(journal: Journal) -> None:
    beginning = asyncio.ensure_future(journal.begin("r", None, "ab"))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    assert len(await journal.begin("r", None, "ab")) == 2
    beginning = asyncio.ensure_future(journal.begin("r", None, "ab"))
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.gather(beginning, return_exceptions=True)
    await journal.write("r", Change("a", RUNNING))


async def test_row_c8_a_run_is_rolled_back_and_the_log_only_grows(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.begin("r", SPEC, "ab")
        point = await journal.write("r", Change("a", RUNNING), Change("a", SUCCEEDED, "first"))
        at_point = await journal.steps("r")
        await journal.write("r", Change("b", RUNNING), Change("child", PENDING), Change("b", FAILED, "no"))
        before = await journal.events("r")
        assert await journal.rollback("r", point) == at_point == await journal.steps("r")
        logged = await journal.events("r")
        assert logged[: len(before)] == before
        assert (logged[len(before)].kind, logged[len(before)].value) == ("rolled_back", {"to": point})
        await journal.write("r", Change("b", RUNNING))
        assert await journal.rollback("r", 1) == dict.fromkeys("ab", Step(PENDING))
        assert await journal.rollback("r", before[-1].offset) == {
            "a": Step(SUCCEEDED, "first"), "b": Step(FAILED, "no"), "child": Step(PENDING)
        }  # fmt: skip
        for offset in (0, 1000):
            with pytest.raises(UsageError, match=f"has no offset {offset}: give one from 1 to"):
                await journal.rollback("r", offset)
        with pytest.raises(UsageError, match="not held here"):
            await journal.rollback("nobody", 1)
        last = await journal.steps("r")
    async with Journal(path) as again:
        assert await again.begin("r", SPEC, "ab") == last
        await again.write("r", Change("b", PENDING))


ACTIONS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([*STATES, "roll"]), st.integers(0, 9)), max_size=30
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(ACTIONS, max_size=4))
def test_it_keeps_what_a_plain_dictionary_would(groups: list[list[tuple[str, str, int]]], tmp_path: Path) -> None:
    async def check() -> None:
        path = tmp_path / f"{uuid4()}.db"
        model = dict.fromkeys("ab", PENDING)
        past = [(1, model)]
        for group in groups:
            async with Journal(path) as journal:
                begun = await journal.begin("r", None, "ab")
                assert {step: stands.state for step, stands in begun.items()} == model
                for step, state, back in group:
                    if state == "roll":
                        offset, model = past[max(0, len(past) - back - 1)]
                        await journal.rollback("r", offset)
                    elif state in TRANSITIONS[model.get(step, ABSENT)]:
                        last = await journal.write("r", Change(step, state))
                        model = {name: at for name, at in (model | {step: state}).items() if at != ABSENT}
                        past.append((last, model))
                    else:
                        with pytest.raises(UsageError):
                            await journal.write("r", Change(step, state))
                assert {step: stands.state for step, stands in (await journal.steps("r")).items()} == model

    asyncio.run(check())
