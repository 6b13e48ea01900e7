"""`scheduler`: what starts when, what a failure blocks, what a cancel stops, and what is committed when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.errors import CyclicPlan, StoreFailed, UnknownName, UsageError
from penstock.outcome import Cancelled, Failed, Finished
from penstock.tasks.graph import graph_of
from penstock.tasks.limits import Limits
from penstock.tasks.scheduler import Scheduler
from penstock.tasks.states import LEGAL, Blocked, Change, Ended, Reopened, Started, State
from tests.tasks.plans import Plan, chain
from tests.tasks.rig import Journal, Work, quiet, running

DIAMOND: Plan = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


async def test_every_task_runs_once_and_its_result_is_kept() -> None:
    work = Work()
    outcomes = await Scheduler(graph_of(DIAMOND), work).run()
    assert outcomes == {task: Finished(task.upper()) for task in DIAMOND}
    assert work.begun == ["a", "b", "c", "d"]


async def test_row_c7_a_task_starts_the_moment_its_last_need_ends() -> None:
    work = Work("slow", "b", "c")
    _, run = running(DIAMOND | {"slow": []}, work)
    await quiet()
    assert work.begun == ["a", "slow", "b", "c"]
    work.gates["b"].set()
    await quiet()
    assert "d" not in work.begun
    work.gates["c"].set()
    await quiet()
    assert work.begun[-1] == "d"
    work.gates["slow"].set()
    await run


async def test_row_c7_a_failure_blocks_its_dependants_with_the_reason_and_nobody_else() -> None:
    work, error = Work(), ValueError("no")
    work.failing["b"] = error
    scheduler = Scheduler(graph_of(DIAMOND | {"e": ["d"], "free": ["c"]}), work)
    outcomes = await scheduler.run()
    assert outcomes["b"] == Failed(error)
    assert (outcomes["d"], outcomes["e"]) == (Blocked("b", "b"), Blocked("b", "d"))
    assert scheduler.path("e") == ("b", "d", "e")
    assert scheduler.path("b") == ("b",)
    assert (outcomes["c"], outcomes["free"]) == (Finished("C"), Finished("FREE"))


async def test_work_that_fails_before_its_first_await_is_a_failure_too() -> None:
    def work(task: str) -> Any:
        raise KeyError(task)

    outcomes = await Scheduler(graph_of({"a": []}), work).run()
    assert isinstance(outcomes["a"], Failed)


async def test_priorities_decide_among_those_held_back_and_equals_keep_their_order() -> None:
    work = Work()
    ranks = {"high": 2, "mid": 1, "mid2": 1}
    plan: Plan = {"low": [], "mid": [], "high": [], "low2": [], "mid2": []}
    await Scheduler(graph_of(plan), work, limits=Limits(1, priority_of=lambda task: ranks.get(task, 0))).run()
    assert work.begun == ["high", "mid", "mid2", "low", "low2"]


async def test_a_full_key_holds_back_its_own_tasks_only() -> None:
    names = ["a1", "a2", "a3", "b1", "b2"]
    work = Work(*names)
    limits = Limits(total=3, each={"a": 1}, keys_of=lambda task: [task[0]])
    scheduler, run = running({name: [] for name in names}, work, limits=limits)
    await quiet()
    assert work.begun == ["a1", "b1", "b2"]
    assert scheduler.states["a2"] is State.READY
    work.gates["b1"].set()
    await quiet()
    assert len(work.begun) == 3
    for gate in work.gates.values():
        gate.set()
    await run
    assert work.begun[3:] == ["a2", "a3"]


async def test_ten_thousand_in_a_row_run_and_block_without_recursion() -> None:
    plan = chain(10_000)
    assert len(await Scheduler(graph_of(plan), Work()).run()) == 10_000
    work = Work()
    work.failing["t0"] = ValueError()
    scheduler = Scheduler(graph_of(plan), work)
    outcomes = await scheduler.run()
    assert outcomes["t9999"] == Blocked("t0", "t9998")
    assert scheduler.path("t9999") == tuple(plan)


async def test_waiting_tasks_cost_no_asyncio_task_and_nothing_polls() -> None:
    work = Work("t0")
    _, run = running(chain(1_000), work)
    await quiet()
    loop: Any = asyncio.get_running_loop()
    assert len(asyncio.all_tasks()) == 3  # this one, the run, the work
    assert not loop._ready
    assert not loop._scheduled
    work.gates["t0"].set()
    await run


async def test_the_listener_hears_every_change_in_order() -> None:
    work, heard = Work(), list[Change]()
    error = work.failing["b"] = ValueError()
    scheduler = Scheduler(graph_of(chain(1) | {"b": ["t0"], "c": ["b"]}), work, listener=heard.append)
    await scheduler.run()
    first: list[Change] = [Started("t0"), Ended("t0", Finished("T0")), Started("b"), Ended("b", Failed(error))]
    assert heard == [*first, Ended("c", Blocked("b", "b"))]
    heard.clear()
    work.failing.clear()
    scheduler.retry("b")
    await scheduler.run()
    again: list[Change] = [Reopened("b"), Reopened("c"), Started("b"), Ended("b", Finished("B")), Started("c")]
    assert heard == [*again, Ended("c", Finished("C"))]


async def test_no_dependant_starts_before_its_need_is_committed() -> None:
    work, journal = Work(), Journal()
    journal.gate.clear()
    scheduler, run = running(DIAMOND | {"free": []}, work, commit=journal, limits=Limits(1))
    await quiet()
    assert work.begun == ["a", "free"], "the place is free while the end is being committed"
    assert scheduler.states["a"] is State.ENDING
    assert "a" not in scheduler.outcomes
    journal.gate.set()
    await run
    assert journal.batches == [["a"], ["free"], ["b"], ["c"], ["d"]]


async def test_ends_that_come_while_one_commits_share_the_next_commit() -> None:
    names = [f"t{number}" for number in range(100)]
    work, journal = Work(*names), Journal()
    journal.gate.clear()
    _, run = running({name: [] for name in names}, work, commit=journal)
    await quiet()
    work.gates["t7"].set()
    await quiet()
    for gate in work.gates.values():
        gate.set()
    await quiet()
    journal.gate.set()
    await run
    assert [len(batch) for batch in journal.batches] == [1, 99]


async def test_a_commit_that_has_stored_already_is_not_awaited() -> None:
    stored: list[list[str]] = []

    def commit(ended: Sequence[Ended]) -> None:
        stored.append([each.task for each in ended])

    outcomes = await Scheduler(graph_of(DIAMOND), Work(), commit=commit).run()
    assert outcomes["d"] == Finished("D")
    assert stored == [["a"], ["b", "c"], ["d"]]


async def test_a_commit_that_raises_when_it_is_called_stops_everything() -> None:
    def commit(_: Sequence[Ended]) -> None:
        raise StoreFailed("closed")

    work = Work("slow")
    scheduler, run = running(DIAMOND | {"slow": []}, work, commit=commit)
    with pytest.raises(StoreFailed, match="closed"):
        await asyncio.wait_for(run, 5)
    assert work.cleaned == ["slow"]
    assert isinstance(scheduler.outcomes["a"], Failed)
    assert scheduler.outcomes["b"] == Cancelled("interrupted")


async def test_a_task_is_added_with_the_end_it_had_in_an_earlier_run() -> None:
    work = Work()
    scheduler = Scheduler(graph_of({"a": []}), work)
    await scheduler.run()
    scheduler.add("b", ["a"], end=Finished("kept"))
    scheduler.add("c", end=Failed(ValueError("no")))
    scheduler.add("d", ["b"])
    scheduler.add("e", ["c"])
    outcomes = await scheduler.run()
    assert work.begun == ["a", "d"]
    assert (outcomes["b"], outcomes["e"]) == (Finished("kept"), Blocked("c", "c"))
    scheduler.retry("c")
    assert (await scheduler.run())["e"] == Finished("E")


async def test_a_commit_that_fails_stops_everything_and_nothing_counts_as_finished() -> None:
    work, journal = Work("slow"), Journal()
    journal.error = StoreFailed("disk full")
    scheduler, run = running({"a": [], "slow": [], "b": ["a"]}, work, commit=journal)
    with pytest.raises(StoreFailed, match="disk full"):
        await run
    unstored, interrupted = Failed(journal.error), Cancelled("interrupted")
    assert scheduler.outcomes == {"a": unstored, "slow": interrupted, "b": Blocked("a", "a")}
    assert work.cleaned == ["slow"]
    journal.error = None
    work.gates["slow"].set()
    for task in ("a", "slow"):
        scheduler.retry(task)
    assert {*(await scheduler.run()).values()} == {Finished("A"), Finished("B"), Finished("SLOW")}


async def test_what_ends_after_a_failed_commit_is_not_finished_either() -> None:
    async def work(task: str) -> str:
        try:
            await asyncio.sleep(60 if task == "slow" else 0)
        except asyncio.CancelledError:
            return "late"
        return task

    journal = Journal()
    journal.error = StoreFailed("disk full")
    scheduler = Scheduler(graph_of({"a": [], "slow": []}), work, commit=journal)
    with pytest.raises(StoreFailed, match="disk full"):
        await scheduler.run()
    assert scheduler.outcomes == dict.fromkeys(("a", "slow"), Failed(journal.error))


async def test_a_commit_that_fails_while_everything_is_cancelled_leaves_nothing_behind() -> None:
    work, journal = Work("slow"), Journal()
    journal.gate.clear()
    journal.error = StoreFailed("disk full")
    scheduler, run = running({"a": [], "slow": []}, work, commit=journal)
    await quiet()
    run.cancel()
    await asyncio.sleep(0)
    journal.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert scheduler.outcomes == {"a": Failed(journal.error), "slow": Cancelled("interrupted")}
    assert work.cleaned == ["slow"]


async def test_a_listener_that_fails_stops_everything_and_its_error_is_raised() -> None:
    def hear(change: Change) -> None:
        heard.append(change)
        if change == Ended("a", Finished("A")):
            raise ConnectionError("gone")

    heard = list[Change]()
    work, journal = Work("slow"), Journal()
    scheduler, run = running({"a": [], "slow": []}, work, commit=journal, listener=hear)
    with pytest.raises(ConnectionError, match="gone"):
        await run
    assert scheduler.outcomes == {"a": Finished("A"), "slow": Cancelled("interrupted")}
    assert work.cleaned == ["slow"]
    assert journal.batches == [["a"]]
    assert heard == [Started("a"), Started("slow"), Ended("a", Finished("A"))]


async def test_what_says_who_goes_first_may_fail_and_leaves_nothing_behind() -> None:
    def keys_of(task: str) -> list[str]:
        return {"a": ["x"], "slow": ["x"]}[task]

    work = Work("slow")
    scheduler, run = running({"a": [], "slow": [], "b": ["a"], "c": ["a"]}, work, limits=Limits(keys_of=keys_of))
    with pytest.raises(KeyError):
        await run
    assert work.cleaned == ["slow"]
    assert {*scheduler.states.values()} == {State.FINISHED, State.CANCELLED}


async def test_work_that_raises_more_than_an_exception_stops_everything() -> None:
    class Halt(BaseException):
        pass

    work = Work("slow")
    work.failing["a"] = Halt()
    scheduler, run = running({"slow": [], "a": [], "b": ["a"]}, work)
    with pytest.raises(Halt):
        await run
    assert work.cleaned == ["slow"]
    assert all(isinstance(end, Cancelled) for end in scheduler.outcomes.values())
    assert len(scheduler.outcomes) == 3


@pytest.mark.parametrize("cancels", [1, 3])
async def test_cancelling_the_caller_cancels_everything_and_waits(cancels: int) -> None:
    work, journal = Work("b", "c"), Journal()
    scheduler, run = running({"a": [], "b": [], "c": [], "d": ["b"]}, work, commit=journal)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    journal.gate.clear()
    await quiet()
    for _ in range(cancels):
        run.cancel()
        await quiet()
    assert not run.done(), "what had finished is still being committed"
    journal.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert journal.batches == [["a"]], "an interruption is no end to keep"
    assert sorted(work.cleaned) == ["b", "c"]
    interrupted = Cancelled("interrupted")
    assert scheduler.outcomes == {"a": Finished("A"), "b": interrupted, "c": interrupted, "d": interrupted}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancelled_run_can_be_taken_up_again() -> None:
    work = Work("b")
    scheduler, run = running({"a": [], "b": ["a"], "c": ["b"]}, work)
    await quiet()
    run.cancel()
    await quiet()
    with pytest.raises(UsageError, match="winding up"):
        scheduler.add("late")
    with pytest.raises(UsageError, match="winding up"):
        scheduler.retry("c")
    with pytest.raises(asyncio.CancelledError):
        await run
    work.gates["b"].set()
    scheduler.retry("b")
    scheduler.retry("c")
    assert await scheduler.run() == {"a": Finished("A"), "b": Finished("B"), "c": Finished("C")}
    assert work.begun == ["a", "b", "b", "c"]


async def test_a_task_cancelled_before_its_first_step_ends_too() -> None:
    work = Work("a")
    scheduler, run = running({"a": []}, work)
    await asyncio.sleep(0)
    assert scheduler.states["a"] is State.RUNNING
    assert scheduler.cancel("a", "not wanted")
    assert await run == {"a": Cancelled("not wanted")}
    assert work.begun == []


async def test_a_second_run_at_once_is_refused() -> None:
    work = Work("a")
    scheduler, run = running({"a": []}, work)
    await quiet()
    with pytest.raises(RuntimeError, match="runs already"):
        await scheduler.run()
    work.gates["a"].set()
    assert await run == await scheduler.run()


def test_only_legal_changes_of_state_pass() -> None:
    for before in State:
        for after in State:
            scheduler = Scheduler(graph_of({"a": []}), Work())
            scheduler._state["a"] = before
            if after in LEGAL[before]:
                scheduler._move("a", after)
                continue
            with pytest.raises(RuntimeError, match=f"from {before} to {after}"):
                scheduler._move("a", after)
    assert not LEGAL[State.FINISHED]


async def test_what_is_no_task_is_refused() -> None:
    scheduler = Scheduler(graph_of({"a": []}), Work())
    for wrong in (scheduler.cancel, scheduler.retry, scheduler.path):
        with pytest.raises(UnknownName, match="no task 'x'"):
            wrong("x")
    with pytest.raises(UnknownName, match="'b' needs 'x'"):
        scheduler.add("b", ["x"])
    with pytest.raises(CyclicPlan):
        scheduler.add("b", ["b"])
    with pytest.raises(UsageError, match="a task 'a' already"):
        scheduler.add("a")
    with pytest.raises(UnknownName, match="no task 'x'"):
        Scheduler(graph_of({"a": []}), Work(), ended={"x": Finished(1)})
    assert {*await scheduler.run()} == {"a"}
