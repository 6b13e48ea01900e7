"""`scheduler`: cancelling, pausing, retrying and adding while it runs, and going on after a crash."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.tasks.graph import graph_of
from penstock.tasks.limits import Limits
from penstock.tasks.scheduler import Scheduler
from penstock.tasks.states import Blocked, Change, Ended, State
from tests.tasks.plans import Plan, chain
from tests.tasks.rig import Journal, Work, quiet, running

THREE: Plan = {"a": [], "b": ["a"], "c": ["b"]}


async def test_a_running_task_is_cancelled_once_and_blocks_its_dependants() -> None:
    work = Work("a")
    scheduler, run = running(THREE | {"free": []}, work)
    await quiet()
    assert scheduler.cancel("a", "too dear")
    assert not scheduler.cancel("a"), "once is enough: its cleaning up is not disturbed"
    blocked = {"b": Blocked("a", "a"), "c": Blocked("a", "b")}
    assert await run == {"a": Cancelled("too dear"), "free": Finished("FREE"), **blocked}
    assert work.cleaned == ["a"]
    assert not scheduler.cancel("a")
    assert not scheduler.cancel("b")


@pytest.mark.parametrize("task", ["ready", "waiting"])
async def test_a_task_that_has_not_started_is_cancelled_and_never_runs(task: str) -> None:
    work, journal = Work("a"), Journal()
    plan: Plan = {"a": [], "ready": [], "waiting": ["a"], "above": [task]}
    scheduler, run = running(plan, work, limits=Limits(1), commit=journal)
    await quiet()
    assert scheduler.states[task] == task
    assert scheduler.cancel(task)
    await quiet()
    assert scheduler.outcomes == {task: Cancelled(), "above": Blocked(task, task)}
    assert journal.batches == [[task]], "what was decided outlives a crash"
    work.gates["a"].set()
    await run
    assert task not in work.begun


async def test_a_task_cancelled_before_the_run_never_runs() -> None:
    work = Work()
    scheduler = Scheduler(graph_of(THREE), work)
    scheduler.cancel("a")
    assert await scheduler.run() == {"a": Cancelled(), "b": Blocked("a", "a"), "c": Blocked("a", "b")}
    assert work.begun == []


async def test_a_cancel_is_kept_even_if_the_run_is_cancelled_meanwhile() -> None:
    work, journal = Work("a", "b"), Journal()
    scheduler, run = running({"a": [], "b": []}, work, commit=journal)
    await quiet()
    scheduler.cancel("a", "too dear")
    await quiet()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert scheduler.outcomes == {"a": Cancelled("too dear"), "b": Cancelled("interrupted")}
    assert journal.batches == [["a"]]
    assert work.cleaned == ["a", "b"], "nobody's cleaning up was disturbed"


async def test_work_that_ends_all_the_same_counts_as_it_ended() -> None:
    async def stubborn(task: str) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if task == "fails":
                raise ValueError from None
        return "all the same"

    scheduler = Scheduler(graph_of({"a": [], "fails": []}), stubborn)
    run = asyncio.create_task(scheduler.run())
    await quiet()
    scheduler.stop()
    outcomes = await run
    assert outcomes["a"] == Finished("all the same")
    assert isinstance(outcomes["fails"], Failed)


async def test_work_that_cancels_itself_is_cancelled_and_the_others_go_on() -> None:
    async def work(task: str) -> None:
        if task == "a":
            raise asyncio.CancelledError

    outcomes = await Scheduler(graph_of(THREE | {"free": []}), work).run()
    assert outcomes["a"] == Cancelled("cancelled by its own work")
    assert outcomes["free"] == Finished(None)
    assert outcomes["c"] == Blocked("a", "b")


async def test_stop_cancels_all_and_the_run_ends_by_itself() -> None:
    work, journal = Work("a"), Journal()
    scheduler, run = running(THREE | {"free": []}, work, commit=journal)
    await quiet()
    scheduler.pause()
    scheduler.stop("enough")
    enough = Cancelled("enough")
    assert await run == {"free": Finished("FREE"), "a": enough, "b": enough, "c": enough}
    assert sorted(task for batch in journal.batches for task in batch) == ["a", "b", "c", "free"]


async def test_while_paused_nothing_starts_and_what_runs_goes_on() -> None:
    work = Work("a")
    scheduler, run = running(THREE, work)
    await quiet()
    scheduler.pause()
    work.gates["a"].set()
    await quiet()
    assert scheduler.outcomes == {"a": Finished("A")}
    assert scheduler.states["b"] is State.READY
    assert not run.done()
    scheduler.resume()
    assert len(await run) == 3
    assert work.begun == ["a", "b", "c"]


async def test_a_retry_runs_the_task_again_and_what_it_had_blocked() -> None:
    work = Work("slow")
    work.failing["a"] = ValueError()
    scheduler, run = running(THREE | {"slow": []}, work)
    await quiet()
    assert isinstance(scheduler.outcomes["c"], Blocked)
    work.failing.clear()
    scheduler.retry("a")
    await quiet()
    assert scheduler.outcomes == {task: Finished(task.upper()) for task in THREE}
    work.gates["slow"].set()
    await run
    assert work.begun == ["a", "slow", "a", "b", "c"]


async def test_what_another_failure_blocks_too_stays_blocked_and_says_by_whom() -> None:
    work = Work()
    work.failing |= {"a": ValueError(), "b": ValueError()}
    plan: Plan = {"a": [], "b": [], "both": ["a", "b"], "only": ["a"], "top": ["both", "only"]}
    scheduler = Scheduler(graph_of(plan), work)
    outcomes = await scheduler.run()
    assert outcomes["both"] == Blocked("a", "a")
    del work.failing["a"]
    scheduler.retry("a")
    await scheduler.run()
    assert outcomes["only"] == Finished("ONLY")
    assert (outcomes["both"], outcomes["top"]) == (Blocked("b", "b"), Blocked("b", "both"))
    assert scheduler.path("top") == ("b", "both", "top")
    work.failing.clear()
    scheduler.retry("b")
    assert {type(end) for end in (await scheduler.run()).values()} == {Finished}
    assert len(work.begun) == len(plan) + 2


async def test_a_retry_blocks_again_what_is_reached_on_a_shorter_way_too() -> None:
    work = Work()
    work.failing |= {"f": ValueError(), "g": ValueError()}
    plan: Plan = {"f": [], "g": [], "z": ["f"], "p": ["f"], "y": ["z", "x"], "x": ["p", "g"]}
    scheduler = Scheduler(graph_of(plan), work)
    outcomes = await scheduler.run()
    assert (outcomes["x"], outcomes["y"]) == (Blocked("f", "p"), Blocked("f", "z"))
    scheduler.retry("f")
    assert (outcomes["x"], outcomes["y"]) == (Blocked("g", "g"), Blocked("g", "x"))
    assert "z" not in outcomes


async def test_a_retry_below_a_failure_is_blocked_by_it() -> None:
    work = Work("a")
    scheduler, run = running(THREE, work)
    await quiet()
    scheduler.cancel("b")
    await quiet()
    work.failing["a"] = ValueError()
    work.gates["a"].set()
    outcomes = await run
    scheduler.retry("b")
    await scheduler.run()
    assert (outcomes["b"], outcomes["c"]) == (Blocked("a", "a"), Blocked("a", "b"))


async def test_only_what_failed_or_was_cancelled_is_retried() -> None:
    work = Work("slow")
    work.failing["a"] = ValueError()
    scheduler, run = running(THREE | {"slow": [], "done": []}, work)
    await quiet()
    for task, state in [("slow", "running"), ("done", "finished"), ("b", "blocked")]:
        with pytest.raises(UsageError, match=f"'{task}' is {state}: only one that failed or was cancelled"):
            scheduler.retry(task)
    work.gates["slow"].set()
    await run


async def test_tasks_are_added_while_others_run() -> None:
    work = Work("a")
    graph = graph_of({"a": [], "b": []})
    scheduler = Scheduler(graph, work)
    run = asyncio.create_task(scheduler.run())
    await quiet()
    scheduler.add("free")
    scheduler.add("after", ["b"])
    scheduler.add("later", ["a", "b", "a"])
    scheduler.add("last", ["later"])
    await quiet()
    assert work.begun == ["a", "b", "free", "after"]
    work.gates["a"].set()
    assert len(await run) == 6
    assert work.begun[-2:] == ["later", "last"]
    assert graph == graph_of({"a": [], "b": []})
    scheduler.add("more", ["last"])
    assert (await scheduler.run())["more"] == Finished("MORE")


async def test_a_task_added_above_a_failure_is_blocked_at_once_and_a_retry_frees_it() -> None:
    work = Work()
    work.failing["a"] = ValueError()
    scheduler = Scheduler(graph_of(THREE), work)
    await scheduler.run()
    scheduler.add("d", ["c"])
    assert scheduler.outcomes["d"] == Blocked("a", "c")
    work.failing.clear()
    scheduler.retry("a")
    assert (await scheduler.run())["d"] == Finished("D")


async def test_the_listener_may_retry_and_add() -> None:
    work, error = Work(), ValueError()
    work.failing["a"] = error

    def hear(change: Change) -> None:
        if change == Ended("a", Failed(error)):
            work.failing.clear()
            scheduler.retry("a")
            scheduler.add("d", ["c"])

    scheduler = Scheduler(graph_of(THREE), work, listener=hear)
    assert {type(end) for end in (await scheduler.run()).values()} == {Finished}
    assert work.begun == ["a", "a", "b", "c", "d"]


async def test_row_c8_what_ended_before_does_not_run_again() -> None:
    work, journal = Work(), Journal()
    ended: dict[str, Outcome[Any]] = {"a": Finished(1), "x": Failed(ValueError()), "z": Cancelled()}
    plan: Plan = THREE | {"x": [], "y": ["x"], "z": []}
    scheduler = Scheduler(graph_of(plan), work, ended=ended, commit=journal)
    outcomes = await scheduler.run()
    assert work.begun == ["b", "c"]
    assert outcomes == ended | {"b": Finished("B"), "c": Finished("C"), "y": Blocked("x", "x")}
    assert journal.batches == [["b"], ["c"]]
    scheduler.retry("x")
    assert (await scheduler.run())["y"] == Finished("Y")


async def test_a_run_of_which_everything_ended_before_ends_at_once() -> None:
    work = Work()
    ended = {task: Finished(task) for task in chain(50)}
    assert await Scheduler(graph_of(chain(50)), work, ended=ended).run() == ended
    assert work.begun == []
