"""The laws of the scheduler, on random plans: whatever fails, is cancelled, retried, paused or added, and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.tasks.graph import graph_of
from penstock.tasks.limits import Limits
from penstock.tasks.scheduler import Scheduler
from penstock.tasks.states import Blocked, Change, End, Ended, Reopened, Started, State
from tests.tasks.plans import Plan, plans
from tests.tasks.rig import quiet

ACTS = ["finish", "finish", "fail", "cancel", "retry", "pause", "resume", "hold", "commit", "add"]
Step = tuple[str, int]


def rank(task: str) -> int:
    return ord(task[-1]) % 3


def keys_of(task: str) -> str:
    return ["", "a", "b", "ab"][ord(task[-1]) % 4]


class Lab:
    """A scheduler under test: its work ends, and its commits go through, when the test says so."""

    def __init__(self, plan: Plan, limits: Limits) -> None:
        self.plan, self.limits = {task: [*needs] for task, needs in plan.items()}, limits
        self.scheduler = Scheduler(graph_of(plan), self.work, limits=limits, commit=self.commit, listener=self.hear)
        self.gates: dict[str, asyncio.Future[bool]] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.paused = False
        self.committed: set[str] = set()
        self.told: dict[str, End] = {}
        self.begun: Counter[str] = Counter()
        self.reopened: Counter[str] = Counter()
        self.problems: list[str] = []
        self.run = asyncio.create_task(self.scheduler.run())

    async def work(self, task: str) -> str:
        ready = [isinstance(self.scheduler.outcomes.get(need), Finished) for need in self.plan[task]]
        self.check(all(ready) and {*self.plan[task]} <= self.committed, f"{task} before its needs")
        self.check(task not in self.gates, f"{task} twice at once")
        self.gates[task] = asyncio.get_running_loop().create_future()
        self.check(not self.full(task, 1), f"{task} above a limit")
        self.begun[task] += 1
        try:
            if not await self.gates[task]:
                raise ValueError(task)
        finally:
            del self.gates[task]
        return task

    async def commit(self, ended: Sequence[Ended]) -> None:
        await self.open.wait()
        self.committed |= {each.task for each in ended if isinstance(each.end, Finished)}

    def hear(self, change: Change) -> None:
        match change:
            case Started(task):
                self.check(task not in self.told, f"{task} started after its end")
            case Ended(task, end):
                self.check(task not in self.told, f"{task} ended twice")
                self.told[task] = end
            case Reopened(task):
                del self.told[task]
                self.reopened[task] += 1

    def check(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)

    def full(self, task: str, more: int = 0) -> bool:
        """Whether a limit holds this task back; with 1, whether one is exceeded."""
        limit = self.limits.total
        used = Counter(key for other in self.gates for key in keys_of(other))
        keys = [key for key in keys_of(task) if used[key] >= self.limits.each.get(key, 99) + more]
        return bool(keys) or (limit is not None and len(self.gates) >= limit + more)

    def act(self, step: Step) -> None:
        name, number = step
        scheduler, tasks = self.scheduler, [*self.plan]
        task = tasks[number % len(tasks)]
        match name:
            case "finish" | "fail" if self.gates:
                [*self.gates.values()][number % len(self.gates)].set_result(name == "finish")
            case "cancel":
                scheduler.cancel(task)
            case "retry":
                lost = [task for task in tasks if scheduler.states[task] in (State.FAILED, State.CANCELLED)]
                if lost:
                    scheduler.retry(lost[number % len(lost)])
            case "pause" | "resume":
                self.paused = name == "pause"
                scheduler.pause() if self.paused else scheduler.resume()
            case "hold" | "commit":
                self.open.clear() if name == "hold" else self.open.set()
            case "add" if len(tasks) < 14:
                needs = [task, tasks[number % 7 % len(tasks)]]
                self.plan[f"n{len(tasks)}"] = needs
                scheduler.add(f"n{len(tasks)}", needs)
        if self.run.done():
            self.run.result()
            self.run = asyncio.create_task(scheduler.run())

    def check_at_rest(self) -> None:
        """Nothing that may start is left waiting, and everybody was told all there is."""
        for task, state in self.scheduler.states.items():
            ready = all(isinstance(self.scheduler.outcomes.get(need), Finished) for need in self.plan[task])
            self.check(not ready or state not in (State.WAITING, State.BLOCKED), f"{task} is {state} for no reason")
            self.check(state is not State.READY or self.paused or self.full(task), f"{task} could run")
            self.check((state is State.RUNNING) == (task in self.gates), f"{task} is {state}")
        self.check(self.told == self.scheduler.outcomes, "the listener knows something else")

    def check_ends(self) -> None:
        """Every task has exactly one end, which fits those of its needs."""
        ends = self.scheduler.outcomes
        assert self.problems == []
        assert {*ends} == {*self.plan} == {*self.told}
        assert {task for task, end in ends.items() if isinstance(end, Finished)} == self.committed
        for task, end in ends.items():
            met = all(isinstance(ends[need], Finished) for need in self.plan[task])
            assert self.begun[task] <= 1 + self.reopened[task]
            match end:
                case Finished() | Failed():
                    assert met
                case Cancelled():
                    continue
                case Blocked():
                    assert not met
                    path = self.scheduler.path(task)
                    assert path[0] == end.by
                    assert isinstance(ends[path[0]], Failed | Cancelled)
                    assert all(need in self.plan[above] for need, above in pairwise(path))


async def experiment(plan: Plan, limits: Limits, steps: list[Step], *, interrupt: bool) -> None:
    lab = Lab(plan, limits)
    for step in steps:
        await quiet()
        lab.check_at_rest()
        lab.act(step)
    await quiet()
    if interrupt and not lab.run.done():
        lab.run.cancel()
        lab.open.set()
        await asyncio.wait([lab.run])
        assert lab.run.cancelled()
    lab.open.set()
    lab.scheduler.resume()
    while not lab.run.done():
        for gate in lab.gates.values():
            gate.set_result(True)
        await quiet()
    lab.check_ends()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not lab.gates


@settings(max_examples=100, deadline=None)
@given(
    plans(),
    st.none() | st.integers(1, 4),
    st.dictionaries(st.sampled_from("ab"), st.integers(1, 2)),
    st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 99)), max_size=25),
    st.booleans(),
)
def test_the_laws_hold_whatever_happens(
    plan: Plan, total: int | None, each: dict[str, int], steps: list[Step], interrupt: bool
) -> None:
    limits = Limits(total, each, keys_of=keys_of, priority_of=rank)
    asyncio.run(experiment(plan, limits, steps, interrupt=interrupt))


def kinds(ends: dict[str, End]) -> dict[str, Any]:
    """What does not depend on which of two failures came first."""
    return {task: end.result if isinstance(end, Finished) else type(end) for task, end in ends.items()}


@settings(deadline=None)
@given(plans(), st.sets(st.integers(0, 9), max_size=3), st.integers(1, 4), st.data())
def test_the_law_of_resume_any_prefix_of_the_journal_leads_to_the_same_end(
    plan: Plan, failing: set[int], width: int, data: st.DataObject
) -> None:
    begun: list[str] = []

    async def work(task: str) -> str:
        begun.append(task)
        for _ in range(int(task[1:]) % 3):
            await asyncio.sleep(0)
        if int(task[1:]) in failing:
            raise ValueError(task)
        return task.upper()

    async def run(ended: dict[str, Outcome[Any]]) -> tuple[dict[str, End], list[Ended]]:
        journal: list[Ended] = []

        async def commit(batch: Sequence[Ended]) -> None:
            await asyncio.sleep(0)
            journal.extend(batch)

        scheduler = Scheduler(graph_of(plan), work, limits=Limits(width), commit=commit, ended=ended)
        return dict(await scheduler.run()), journal

    whole, journal = asyncio.run(run({}))
    before = {
        each.task: each.end
        for each in journal[: data.draw(st.integers(0, len(journal)))]
        if not isinstance(each.end, Blocked)
    }
    begun.clear()
    resumed, rest = asyncio.run(run(before))
    assert kinds(resumed) == kinds(whole)
    assert not {*begun} & {*before}
    assert sorted([*before, *(each.task for each in rest)]) == sorted(each.task for each in journal)
