"""`graph`: the order, what is wrong with a plan, and a draft that checks every change."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import CyclicPlan, UnknownName, UsageError
from penstock.tasks.graph import Draft, Graph, graph_of
from tests.tasks.plans import Plan, any_plans, chain, plans


def circle_in(error: CyclicPlan) -> list[str]:
    """The tasks the message names, one after the other."""
    return error.message.split(": ")[1].split(" (each")[0].split(" -> ")


def runnable(plan: Plan) -> bool:
    """What the standard library thinks of a plan."""
    try:
        TopologicalSorter(plan).prepare()
    except CycleError:
        return False
    return True


@settings(max_examples=50, deadline=None)
@given(plans())
def test_the_order_has_every_task_once_and_after_its_needs(plan: Plan) -> None:
    order = [*graph_of(plan).order]
    assert sorted(order) == sorted(plan)
    place = {task: number for number, task in enumerate(order)}
    assert all(place[need] < place[task] for task, needs in plan.items() for need in needs)


@settings(deadline=None)
@given(any_plans())
def test_a_circle_is_found_exactly_when_the_standard_library_finds_one(plan: Plan) -> None:
    if runnable(plan):
        assert sorted(graph_of(plan).order) == sorted(plan)
        return
    with pytest.raises(CyclicPlan) as caught:
        graph_of(plan)
    path = circle_in(caught.value)
    assert path[0] == path[-1]
    assert len({*path}) == len(path) - 1
    assert all(need in plan[task] for task, need in pairwise(path))


@settings(max_examples=50, deadline=None)
@given(plans())
def test_dependants_and_waits_mirror_the_dependencies(plan: Plan) -> None:
    graph = graph_of(plan)
    assert {(need, task) for task, needs in plan.items() for need in needs} == {
        (need, task) for need, tasks in graph.dependants.items() for task in tasks
    }
    assert graph.waits() == {task: len({*needs}) for task, needs in plan.items()}
    graph.waits().clear()
    assert len(graph.waits()) == len(plan)


def test_equal_tasks_stay_as_they_were_written() -> None:
    assert [*graph_of({"d": ["b"], "c": [], "b": [], "a": []}).order] == ["c", "b", "a", "d"]


def test_a_need_named_twice_counts_once() -> None:
    graph = graph_of({"a": [], "b": ["a", "a"]})
    assert [*graph.dependencies["b"]] == ["a"]
    assert [*graph.dependants["a"]] == ["b"]
    assert graph.waits() == {"a": 0, "b": 1}


def test_an_empty_plan_is_an_empty_graph() -> None:
    assert graph_of({}) == Graph({}, {}, [])


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        ({"a": ["a"]}, "a -> a"),
        ({"a": ["b"], "b": ["a"]}, "a -> b -> a"),
        ({"z": ["a"], "b": ["c"], "a": ["b"], "c": ["a"]}, "b -> c -> a -> b"),
        ({"free": [], "a": ["free", "b"], "b": ["free", "a"], "late": ["b"]}, "a -> b -> a"),
    ],
)
def test_the_path_of_a_circle_is_shown(plan: Plan, path: str) -> None:
    with pytest.raises(CyclicPlan, match=rf": {path} \(each needs the next\); take one need out"):
        graph_of(plan)


def test_a_circle_of_thousands_is_shown_in_short() -> None:
    plan = chain(10_000)
    plan["t0"] = ["t9999"]
    with pytest.raises(CyclicPlan) as caught:
        graph_of(plan)
    assert len(caught.value.message) < 400
    assert circle_in(caught.value)[-2:] == ["(9981 more)", "t0"]


def test_the_error_of_a_circle_has_the_names() -> None:
    with pytest.raises(CyclicPlan) as caught:
        graph_of({"x": ["c"], "b": ["c"], "a": ["b"], "c": ["a"]})
    assert caught.value.path == ("b", "c", "a")
    with pytest.raises(CyclicPlan) as caught:
        graph_of({"a": ["a"]})
    assert caught.value.path == ("a",)


def test_a_need_that_is_no_task_is_named() -> None:
    with pytest.raises(UnknownName, match="task 'b' needs 'x', which is no task"):
        graph_of({"a": [], "b": ["a", "x"]})


def test_ten_thousand_in_a_row_need_no_recursion() -> None:
    names = [*chain(10_000)]
    assert [*graph_of(chain(10_000)).order] == names


def test_the_price_is_linear() -> None:
    def price(size: int) -> float:
        plan = {f"t{number}": [f"t{number // 2}"] if number else [] for number in range(size)}
        least = 1.0
        for _ in range(5):
            started = perf_counter()
            graph_of(plan)
            least = min(least, perf_counter() - started)
        return least / size

    assert price(20_000) < 6 * price(2_000)


@settings(max_examples=60, deadline=None)
@given(plans(), st.data())
def test_a_draft_changed_step_by_step_is_the_graph_made_at_once(plan: Plan, data: st.DataObject) -> None:
    draft, now = Draft(graph_of(plan)), {task: [*needs] for task, needs in plan.items()}
    names = [*plan, "new", "newer", "newest"]
    for _ in range(data.draw(st.integers(1, 8))):
        task = data.draw(st.sampled_from(names))
        needs = data.draw(st.lists(st.sampled_from(names), max_size=3))
        known, right = task in now, {*needs} <= {*now}
        match data.draw(st.sampled_from(["add", "change", "remove"])):
            case "add":
                if not known and right and task not in needs:
                    draft.add(task, needs)
                    now[task] = needs
                else:
                    with pytest.raises(UsageError):
                        draft.add(task, needs)
            case "change":
                if known and right and runnable(now | {task: needs}):
                    draft.change(task, needs)
                    now[task] = needs
                else:
                    with pytest.raises(UsageError):
                        draft.change(task, needs)
            case _:
                if known and not any(task in others for others in now.values()):
                    draft.remove(task)
                    del now[task]
                else:
                    with pytest.raises(UsageError):
                        draft.remove(task)
        graph, whole = draft.graph(), graph_of(now)
        assert graph.dependencies == whole.dependencies
        assert graph.order == whole.order


def test_a_draft_says_what_is_wrong_and_keeps_what_it_had() -> None:
    draft = Draft()
    draft.add("a")
    draft.add("b", ["a"])
    draft.add("c", ["b", "a", "b"])
    before = draft.graph()
    with pytest.raises(UsageError, match="there is a task 'a' already"):
        draft.add("a")
    with pytest.raises(CyclicPlan, match="d -> d"):
        draft.add("d", ["d"])
    with pytest.raises(UnknownName, match="'d' needs 'x'"):
        draft.add("d", ["a", "x"])
    with pytest.raises(CyclicPlan, match=r"a -> c -> b -> a|a -> c -> a"):
        draft.change("a", ["c"])
    with pytest.raises(UnknownName, match="no task 'z': known are a, b, c"):
        draft.change("z", [])
    with pytest.raises(UsageError, match="'a' is needed by b, c: remove or change those first"):
        draft.remove("a")
    assert draft.graph() == before
    assert [*before.dependencies["c"]] == ["b", "a"]


def test_a_draft_of_a_graph_leaves_the_graph_alone() -> None:
    graph = graph_of({"a": [], "b": ["a"]})
    draft = Draft(graph)
    draft.remove("b")
    draft.change("a", [])
    assert graph == graph_of({"a": [], "b": ["a"]})
    assert [*draft.graph().order] == ["a"]
    draft.remove("a")
    assert draft.graph() == graph_of({})


def test_a_task_that_nobody_needs_any_more_can_be_removed() -> None:
    draft = Draft(graph_of({"a": [], "b": ["a"]}))
    draft.change("b", [])
    draft.remove("a")
    assert draft.graph() == graph_of({"b": []})


def test_twenty_thousand_added_one_by_one_cost_as_little_each() -> None:
    draft, started = Draft(), perf_counter()
    draft.add("first")
    for number in range(20_000):
        draft.add(f"t{number}", ["first"])
    for number in range(20_000):
        draft.remove(f"t{number}")
    assert perf_counter() - started < 3


def test_tasks_that_are_added_together_may_stand_in_any_order() -> None:
    draft = Draft(graph_of({"a": []}))
    draft.add_all([("c", ["b"]), ("b", ["a"])])
    assert draft.graph() == graph_of({"a": [], "c": ["b"], "b": ["a"]})


@pytest.mark.parametrize(
    ("added", "error", "message"),
    [
        ([("b", ["c"]), ("c", ["d"]), ("d", ["b"])], CyclicPlan, "b -> c -> d -> b"),
        ([("b", []), ("c", ["x"])], UnknownName, "needs 'x', which is no task"),
        ([("b", []), ("b", [])], UsageError, "a task 'b' already"),
        ([("b", []), ("a", [])], UsageError, "a task 'a' already"),
    ],
)
def test_tasks_that_are_added_together_come_all_or_none(
    added: list[tuple[str, list[str]]], error: type[UsageError], message: str
) -> None:
    draft = Draft(graph_of({"a": []}))
    with pytest.raises(error, match=message):
        draft.add_all(added)
    assert draft.graph() == graph_of({"a": []})
