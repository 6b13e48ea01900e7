"""`limits`: which ready task starts next, compared with the simplest queue there could be."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.tasks.limits import Limits, ReadyQueue

KEYS = "abc"
Task = tuple[int, str]  # its priority, and the keys it counts for


def limits_of(tasks: dict[str, Task], total: int | None, each: dict[str, int]) -> Limits:
    return Limits(total, each, keys_of=lambda task: tasks[task][1], priority_of=lambda task: tasks[task][0])


class Plain:
    """A sorted list, searched from the front."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.ready, self.running = limits, list[str](), list[str]()

    def take(self) -> str | None:
        used = Counter(key for task in self.running for key in {*self.limits.keys_of(task)})
        for task in sorted(self.ready, key=lambda task: -self.limits.priority_of(task)):
            if self.limits.total is not None and len(self.running) >= self.limits.total:
                return None
            if all(used[key] < self.limits.each.get(key, 99) for key in self.limits.keys_of(task)):
                self.ready.remove(task)
                self.running.append(task)
                return task
        return None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.text(KEYS + "x", max_size=3)), min_size=1, max_size=14),
    st.none() | st.integers(1, 5),
    st.dictionaries(st.sampled_from(KEYS), st.integers(1, 2)),
    st.lists(st.tuples(st.sampled_from(["put", "take", "take", "leave", "drop"]), st.integers(0, 99)), max_size=60),
)
def test_the_queue_gives_what_the_plainest_one_gives(
    wanted: list[Task], total: int | None, each: dict[str, int], steps: list[tuple[str, int]]
) -> None:
    tasks = {f"t{number}": task for number, task in enumerate(wanted)}
    limits = limits_of(tasks, total, each)
    queue, plain, outside = ReadyQueue(limits), Plain(limits), [*tasks]

    def pick(names: list[str], number: int) -> str:
        return names.pop(number % len(names))

    for step, number in [*steps, *[("take", 0)] * len(tasks)]:
        if step == "put" and outside:
            task = pick(outside, number)
            queue.put(task)
            plain.ready.append(task)
        elif step == "take":
            assert queue.take() == plain.take()
        elif step == "leave" and plain.running:
            outside.append(pick(plain.running, number))
            queue.leave(outside[-1])
        elif step == "drop" and plain.ready:
            outside.append(pick(plain.ready, number))
            queue.drop(outside[-1])


def test_a_task_that_was_dropped_and_put_back_stands_behind_the_others() -> None:
    queue = ReadyQueue(Limits())
    queue.put("t")
    queue.put("u")
    queue.drop("t")
    queue.put("t")
    assert [queue.take(), queue.take(), queue.take()] == ["u", "t", None]


def queue_of(each: dict[str, int], *running: str) -> ReadyQueue:
    """A queue whose tasks count for the letters of their names, some of them running."""
    queue = ReadyQueue(Limits(each=each, keys_of=lambda task: task, priority_of=lambda task: "!" in task))
    for task in running:
        queue.put(task)
        assert queue.take() == task
    return queue


def test_a_place_goes_to_the_next_when_the_first_was_dropped() -> None:
    queue = queue_of({"a": 1, "b": 1}, "a")
    queue.put("a1")
    queue.put("ab")
    assert queue.take() is None
    queue.drop("a1")
    queue.leave("a")
    assert queue.take() == "ab"


def test_a_place_goes_to_the_next_when_the_first_lacks_another_place() -> None:
    queue = queue_of({"a": 1, "b": 1}, "a", "b")
    queue.put("ab")
    queue.put("a1")
    assert queue.take() is None
    queue.leave("a")
    assert queue.take() == "a1"


def test_a_place_goes_to_the_next_when_the_first_was_overtaken_before() -> None:
    queue = queue_of({"a": 1, "b": 1}, "a")
    for late in ("a1", "a!", "ab"):
        queue.put(late)
        assert queue.take() is None
    order = ["a", "a!", "a1", "ab"]
    for before, after in pairwise(order):
        queue.leave(before)
        assert queue.take() == after
        assert queue.take() is None


def test_a_key_named_twice_counts_once() -> None:
    queue = queue_of({"a": 2}, "aa", "aaa")
    queue.put("a")
    assert queue.take() is None


def test_a_task_put_back_with_other_keys_counts_for_those() -> None:
    keys = {"t": "a", "u": "a"}
    queue = ReadyQueue(Limits(each={"a": 1, "b": 1}, keys_of=lambda task: keys[task]))
    queue.put("t")
    queue.drop("t")
    keys["t"] = "b"
    queue.put("t")
    queue.put("u")
    assert [queue.take(), queue.take()] == ["t", "u"]


def test_thousands_that_a_full_key_holds_back_cost_nothing() -> None:
    """Each has a lane of its own, and all wait for the same two keys in turn."""
    names = [f"t{number}" for number in range(4_000)]
    limits = Limits(each=dict.fromkeys(names, 1) | {"a": 1, "b": 1}, keys_of=lambda task: (task, "a", "b"))
    started, queue = perf_counter(), ReadyQueue(limits)
    for name in names:
        queue.put(name)
    order = []
    while (task := queue.take()) is not None:
        assert queue.take() is None
        order.append(task)
        queue.leave(task)
    assert order == names
    assert perf_counter() - started < 1


@pytest.mark.parametrize(("total", "each"), [(0, {}), (-1, {}), (None, {"a": 0})])
def test_a_limit_that_lets_nothing_run_is_refused(total: int | None, each: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="lets nothing run: give at least 1"):
        Limits(total, each)
