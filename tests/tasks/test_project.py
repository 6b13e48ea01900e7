"""A project as the flow of an engine: what is spawned how, limits, budgets, and what is refused before it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import AgentUnavailable, CyclicPlan, UnknownName, UsageError
from penstock.store.journal import Journal
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds, Budget, Retry
from penstock.tasks.engines import RunState, RunStatus
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.flow import PROJECT, register_projects
from penstock.tasks.project import Defaults, ProjectLimits, ProjectSpec
from penstock.tasks.report import report_of
from tests.tasks.projects import Model, agent, executor, project, quiet, states, task


@pytest.fixture
async def engine() -> AsyncIterator[LocalEngine]:
    async with LocalEngine() as opened:
        yield opened


async def ran(engine: LocalEngine, spec: ProjectSpec, model: Any, *agents: AgentConfig) -> RunStatus:
    register_projects(engine, executor(model, *agents))
    await engine.start("r", PROJECT, spec.payload())
    return await asyncio.wait_for(engine.wait("r"), 10)


async def test_row_c7_a_project_runs_each_task_after_its_needs_with_their_results(engine: LocalEngine) -> None:
    model = Model()
    ended = await ran(engine, project(task("d", "b", "c"), task("b", "a"), task("c", "a"), task("a")), model)
    assert ended.state is RunState.SUCCEEDED
    assert ended.value == {"tasks": 4, "tokens": 60, "cost": "1.00"}
    assert (model.begun[0], model.begun[-1]) == ("a", "d")
    assert "B" in model.asked["d"]
    assert "C" in model.asked["d"]
    report = report_of(await engine.status("r"))
    assert report.ok
    assert [(one.output, one.agent) for one in report.results] == [(name, "writer") for name in "ABCD"]


async def test_row_c7_a_failed_task_fails_the_project_by_name_and_blocks_its_dependants(engine: LocalEngine) -> None:
    spec = project(task("a"), task("b", "a"), task("c", "b"), task("d", "c"), task("e"))
    ended = await ran(engine, spec, Model(failing=["b"]))
    assert ended.state is RunState.FAILED
    assert ended.value["code"] == "agent_failed"
    assert "'b' failed (" in ended.value["message"]
    assert "b cannot be done; blocked by that: 2" in ended.value["message"]
    assert ended.value["details"] == {"tasks": ["b"], "failed": 1, "blocked": 2}
    report = report_of(ended)
    expected = {"a": "success", "b": "failed", "c": "blocked", "d": "blocked", "e": "success"}
    assert states(report) == expected
    assert {name: "'b'" in reason for name, reason in report.blocked.items()} == {"c": True, "d": True}
    assert (report["b"].usage.total, report["b"].agent) == (15, "writer")
    assert report["b"].error is not None
    assert report["b"].error.type == "BadRequest"


BAD: list[tuple[ProjectSpec, type[Exception], str]] = [
    (project(task("a", "b")), UnknownName, "needs 'b', which is no task"),
    (project(task("a", "b"), task("b", "a")), CyclicPlan, "a -> b -> a"),
    (project(task("a"), task("a")), UsageError, "two tasks 'a'"),
    (project(task("ok"), task("a", agent="nobody")), UnknownName, "nobody"),
    (project(task("ok"), task("a", agent="off")), AgentUnavailable, "off"),
    (project(task("ok"), task("a", capabilities=("flying",))), AgentUnavailable, "flying"),
    (project(task("ok"), task("a", agent=None, capabilities=("flying",))), AgentUnavailable, "flying"),
    (project(task("ok"), task("a", review="nobody")), UnknownName, "nobody"),
    (project(task("ok"), task("a", agent=None), defaults=Defaults(agent="nobody")), UnknownName, "nobody"),
]


@pytest.mark.parametrize(("spec", "error", "message"), BAD)
async def test_row_c7_what_is_wrong_is_refused_before_anything_runs(
    engine: LocalEngine, spec: ProjectSpec, error: type[Exception], message: str
) -> None:
    model = Model()
    ended = await ran(engine, spec, model, agent("writer"), agent("off", enabled=False))
    assert (ended.state, ended.value["type"]) == (RunState.FAILED, error.__name__)
    assert message in ended.value["message"]
    assert model.begun == []


async def test_row_c7_an_unknown_provider_is_refused_before_anything_runs(engine: LocalEngine) -> None:
    from penstock.tasks.executor import TaskExecutor
    from penstock.tasks.registry import AgentRegistry

    agents = AgentRegistry([agent("writer"), AgentConfig(name="odd", provider="nonesuch", model="m")])
    register_projects(engine, TaskExecutor(agents))
    await engine.start("r", PROJECT, project(task("ok"), task("a", agent="odd")).payload())
    ended = await engine.wait("r")
    assert ended.value["type"] == "UnknownName"
    assert "nonesuch" in ended.value["message"]
    assert states(dict(ended.steps)) == {}


async def test_a_payload_that_is_no_project_is_refused(engine: LocalEngine) -> None:
    register_projects(engine, executor(Model()))
    await engine.start("r", PROJECT, {"name": "p", "tasks": [{"id": "a"}]})
    ended = await engine.wait("r")
    assert (ended.value["type"], ended.state) == ("UsageError", RunState.FAILED)


@pytest.mark.parametrize(
    ("limits", "concurrent", "most"),
    [
        (ProjectLimits(concurrent=2), None, 2),
        (ProjectLimits(agents={"writer": 3}), None, 3),
        (ProjectLimits(agents={"writer": 3}), 2, 2),
        (ProjectLimits(agents={"writer": 1}), 2, 1),
        (ProjectLimits(providers={"demo": 2}), None, 2),
        (ProjectLimits(), None, 8),
    ],
)
async def test_row_c7_as_many_run_at_once_as_the_limits_allow(
    engine: LocalEngine, limits: ProjectLimits, concurrent: int | None, most: int
) -> None:
    model = Model()
    spec = project(*(task(f"t{n}") for n in range(12)), limits=limits)
    ended = await ran(engine, spec, model, agent("writer", concurrent=concurrent))
    assert ended.state is RunState.SUCCEEDED
    assert model.most == most


async def test_row_c7_a_task_that_its_agent_holds_back_takes_no_place_of_another(engine: LocalEngine) -> None:
    model = Model("a")
    spec = project(
        *(task(name) for name in "abc"),
        *(task(name, agent="other") for name in "xyz"),
        limits=ProjectLimits(concurrent=2, agents={"writer": 5}),
    )
    register_projects(engine, executor(model, agent("writer", concurrent=1), agent("other")))
    await engine.start("r", PROJECT, spec.payload())
    await model.until("a", "x", "y", "z")
    assert "b" not in model.begun
    model.gates["a"].set()
    assert (await engine.wait("r")).state is RunState.SUCCEEDED


async def test_row_c7_of_tasks_that_are_held_back_those_of_higher_priority_start_first(engine: LocalEngine) -> None:
    model = Model()
    tasks = [task("low", priority=-1), task("first"), task("second"), task("high", priority=2.5)]
    await ran(engine, project(*tasks, limits=ProjectLimits(concurrent=1)), model)
    assert model.begun == ["high", "first", "second", "low"]


async def test_the_defaults_hold_for_tasks_that_say_nothing(engine: LocalEngine) -> None:
    model = Model(failing=["b"])
    defaults = Defaults(agent="other", retry=Retry(attempts=2, base_s=0.001))
    tasks = [task("a", agent=None), task("b"), task("c", agent=None, capabilities=("drawing",))]
    agents = [agent("writer"), agent("other"), agent("artist", capabilities=("drawing",))]
    report = report_of(await ran(engine, project(*tasks, defaults=defaults), model, *agents))
    assert [(one.task, one.agent) for one in report.results] == [("a", "other"), ("b", "writer"), ("c", "artist")]


def test_a_default_review_is_not_given_to_the_reviewer_itself() -> None:
    defaults = Defaults(agent="boss", review="boss", timeout_s=5)
    assert defaults.fill(task("a")).review == "boss"
    assert defaults.fill(task("a", agent="boss")).review is None
    assert defaults.fill(task("a", agent=None)).review is None
    assert defaults.fill(task("a", review="other")).review == "other"
    able = task("a", agent=None, capabilities=("any",))
    assert [defaults.fill(able, doer).review for doer in (None, "boss", "other")] == [None, None, "boss"]
    assert defaults.bounds == Bounds(timeout_s=5)


async def test_row_c7_a_default_review_checks_what_it_did_not_do_whoever_is_found_for_a_task(
    engine: LocalEngine,
) -> None:
    model = Model()
    able = {"agent": None, "capabilities": ("any",)}
    spec = project(task("a", **able), task("b"), defaults=Defaults(review="boss"))
    report = report_of(await ran(engine, spec, model, agent("boss"), agent("writer")))
    assert {one.task: one.agent for one in report.results} == {"a": "boss", "b": "writer"}
    assert model.begun.count("a") == 1
    assert states(report) == {"a": "success", "b": "failed"}  # for the model knows nothing of reviews
    assert report["b"].error is not None
    assert "the verdict of 'boss' cannot be read" in report["b"].error.message


async def test_row_c7_a_default_reviewer_who_cannot_review_is_refused_before_anything_runs(engine: LocalEngine) -> None:
    spec = project(task("a", agent=None, capabilities=("any",)), defaults=Defaults(review="nobody"))
    model = Model()
    ended = await ran(engine, spec, model)
    assert (ended.state, ended.value["type"], model.begun) == (RunState.FAILED, "UnknownName", [])


async def test_case_20_tasks_that_fail_or_time_out_stop_no_other_and_each_has_one_result(engine: LocalEngine) -> None:
    model = Model("late", failing=["bad"])
    spec = project(task("good"), task("bad"), task("late", timeout_s=0.02), task("other"), task("after", "good"))
    ended = await ran(engine, spec, model)
    assert states(report_of(ended)) == {
        "good": "success",
        "bad": "failed",
        "late": "failed",
        "other": "success",
        "after": "success",
    }
    ends = [entry.step for entry in await engine.events("r") if entry.state in ("succeeded", "failed")]
    assert sorted(map(str, ends)) == ["after", "bad", "good", "late", "other"]
    assert model.stopped == ["late"]


async def test_the_bounds_of_a_project_hold_where_task_and_agent_say_nothing(engine: LocalEngine) -> None:
    model = Model("a", "b")
    spec = project(task("a"), task("b", timeout_s=30), defaults=Defaults(timeout_s=0.02))
    register_projects(engine, executor(model))
    await engine.start("r", PROJECT, spec.payload())
    await model.until("a", "b")
    await asyncio.sleep(0.05)
    model.gates["b"].set()
    ended = await engine.wait("r")
    assert states(report_of(ended)) == {"a": "failed", "b": "success"}
    assert model.stopped == ["a"]


MONEY = Decimal("0.8")


@pytest.mark.parametrize("budget", [Budget(tokens=40), Budget(usd=MONEY), Budget(tokens=1000, usd=MONEY)])
async def test_a_projects_budget_holds_over_all_its_tasks(engine: LocalEngine, budget: Budget) -> None:
    model = Model()
    ended = await ran(engine, project(*(task(f"t{n}") for n in range(9)), limits=ProjectLimits(budget=budget)), model)
    report = report_of(ended)
    done = 3 if budget.usd is None else 4
    assert report.counts == {"success": done, "failed": 9 - done}
    assert len(model.begun) == done
    errors = [one.error for one in report.results if one.error is not None]
    assert {(error.type, error.code) for error in errors} == {("LimitReached", "budget")}
    assert "of project 'site' is used up" in errors[0].message


async def test_a_task_of_unknown_price_uses_up_a_budget_in_money(engine: LocalEngine) -> None:
    limits = ProjectLimits(budget=Budget(usd=Decimal(5)))
    report = report_of(await ran(engine, project(task("a"), task("b", "a"), limits=limits), Model(cost=None)))
    assert states(report) == {"a": "success", "b": "failed"}
    assert report["b"].error is not None
    assert "unknown" in report["b"].error.message


@pytest.mark.parametrize(
    ("budget", "left", "spent"),
    [
        (Budget(tokens=50), "5 left of 50 tokens of project 'site' is used up: 15", "50 tokens of project 'site'"),
        (
            Budget(usd=MONEY),
            "0.05 left of 0.8 USD of project 'site' is used up: 0.25",
            "0.8 USD of project 'site'",
        ),
    ],
)
async def test_row_c8_what_was_spent_before_a_crash_counts_and_so_does_what_failed(
    tmp_path: Path, budget: Budget, left: str, spent: str
) -> None:
    tasks = task("a"), task("b", priority=1), task("c"), task("stuck", "a", "c"), task("more", "stuck")
    spec = project(*tasks, limits=ProjectLimits(budget=budget))
    model = Model("stuck", failing=["b"])
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        register_projects(engine, executor(model))
        await engine.start("r", PROJECT, spec.payload())
        await model.until("b", "stuck")
    again = Model()
    for message in (left, f"the budget of {spent} is used up: {'60' if budget.tokens else '1.00'} is spent"):
        async with LocalEngine(Journal(tmp_path / "j")) as engine:
            register_projects(engine, executor(again))
            await engine.start("r", PROJECT, spec.payload())
            report = report_of(await engine.wait("r"))
            assert report["more"].error is not None
            assert message in report["more"].error.message
            await engine.retry("r", "more")
    assert again.begun == ["stuck"]


async def test_row_c8_a_budget_of_which_nobody_knows_what_was_spent_is_used_up(tmp_path: Path) -> None:
    spec = project(task("a"), task("b", "a"), limits=ProjectLimits(budget=Budget(usd=Decimal(99))))
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        register_projects(engine, executor(Model(cost=None)))
        await engine.start("r", PROJECT, spec.payload())
        assert states(report_of(await engine.wait("r"))) == {"a": "success", "b": "failed"}
        await engine.retry("r", "b")
        await engine.start("r", PROJECT, spec.payload())
        report = report_of(await engine.wait("r"))
    assert report["b"].error is not None
    assert "what was spent of it is unknown" in report["b"].error.message


async def test_row_c8_what_is_brought_back_is_not_spent_twice(tmp_path: Path) -> None:
    limits = ProjectLimits(budget=Budget(tokens=31))
    spec = project(task("a"), task("b", "a"), task("c", "b"), limits=limits)
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        model = Model(failing=["a"])
        register_projects(engine, executor(model))
        await engine.start("r", PROJECT, spec.payload())
        offset = (await engine.wait("r")).offset
        await engine.retry("r", "a")
        await engine.rollback("r", offset)
        await engine.retry("r", "a")
        model.failing = set()
        await engine.start("r", PROJECT, spec.payload())
        assert states(report_of(await engine.wait("r"))) == {"a": "success", "b": "success", "c": "failed"}
    assert model.begun == ["a", "a", "b"]


async def test_row_c8_a_task_with_effects_that_was_interrupted_is_not_done_again(tmp_path: Path) -> None:
    agents = agent("writer"), agent("sender", effects=True)
    spec = project(task("a"), task("send", "a", agent="sender"), task("slow", "a"), task("last", "send", "slow"))
    model = Model("send", "slow")
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        register_projects(engine, executor(model, *agents))
        await engine.start("r", PROJECT, spec.payload())
        await model.until("send", "slow")
    again = Model()
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        register_projects(engine, executor(again, *agents))
        await engine.start("r", PROJECT, spec.payload())
        ended = await engine.wait("r")
        report = report_of(ended)
        assert again.begun == ["slow"]
        assert states(report) == {"a": "success", "send": "unknown", "slow": "success", "last": "blocked"}
        assert ended.value["code"] == "outcome_unknown"
        await engine.retry("r", "send")
        await engine.start("r", PROJECT, spec.payload())
        assert report_of(await engine.wait("r")).ok
    assert again.begun == ["slow", "send", "last"]


async def test_row_c8_a_project_goes_on_though_the_agent_of_what_has_ended_is_gone(tmp_path: Path) -> None:
    spec = project(task("a", agent="temp"), task("b", "a"))
    model = Model("b")
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        register_projects(engine, executor(model, agent("writer"), agent("temp")))
        await engine.start("r", PROJECT, spec.payload())
        await model.until("b")
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        register_projects(engine, executor(Model()))
        await engine.start("r", PROJECT, spec.payload())
        assert report_of(await engine.wait("r")).ok


async def test_an_engine_takes_one_executor_of_tasks(engine: LocalEngine) -> None:
    first = executor(Model())
    register_projects(engine, first)
    register_projects(engine, first)
    with pytest.raises(UsageError, match="another TaskExecutor"):
        register_projects(engine, executor(Model()))


def test_a_payload_comes_back_as_the_project_it_was() -> None:
    spec = project(
        task("a", inputs={"n": [1, {"x": None}]}, budget=Budget(usd=Decimal("0.10"))),
        task("b", "a", priority=2),
        goal="g",
        defaults=Defaults(agent="writer", retry=Retry(attempts=5)),
        limits=ProjectLimits(concurrent=3, budget=Budget(tokens=7)),
    )
    assert ProjectSpec.model_validate(spec.payload()) == spec
    assert "concurrent" not in str(project(task("a")).payload())


async def test_what_is_in_the_way_of_a_step_is_all_that_waits(engine: LocalEngine) -> None:
    model = Model("a")
    register_projects(engine, executor(model))
    await engine.start("r", PROJECT, project(task("a"), task("b", "a"), task("c")).payload())
    await model.until("a", "c")
    await quiet()
    assert states(report_of(await engine.status("r"))) == {"a": "in_progress", "c": "success", "b": "pending"}
    model.gates["a"].set()
    assert (await engine.wait("r")).state is RunState.SUCCEEDED
