"""A project as a whole: what it tells, what is stored of it, and any graph with any failures."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import Conflict, TaskFailed, UnknownName, UsageError
from penstock.events import Item, Used
from penstock.run import execute, execute_stream
from penstock.store.journal import Journal
from penstock.store.steps import Logged
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Budget
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.flow import register_projects
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.project import ProjectLimits
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.report import report_of
from penstock.testing import Heard
from tests.tasks.plans import Plan, plans
from tests.tasks.projects import Model, executor, names, project, states, task


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def site(model: Model) -> AsyncIterator[ProjectOrchestrator]:
    """A project in memory: a, then b and c, then d."""
    async with ProjectOrchestrator(executor(model), name="site") as opened:
        opened.add(task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"))
        yield opened


async def test_row_c8_manual_steps_and_run_share_what_is_stored(tmp_path: Path) -> None:
    tasks = task("a"), task("b", "a"), task("c", "b")
    model = Model()
    async with (
        LocalEngine(Journal(tmp_path / "j")) as engine,
        ProjectOrchestrator(executor(model), name="site", engine=engine) as site,
    ):
        site.add(*tasks)
        await site.execute_task("a")
    again = Model()
    async with (
        LocalEngine(Journal(tmp_path / "j")) as engine,
        ProjectOrchestrator(executor(again), name="site", engine=engine) as site,
    ):
        site.add(*tasks)
        assert names(site.ready()) == ["b"]
        with pytest.raises(UsageError, match="'a' is success"):
            await site.execute_task("a")
        assert (await site.execute_task("b")).ok
        site.add(task("d", "c"))
        assert (await site.run()).ok
        assert again.begun == ["b", "c", "d"]
        assert report_of(await engine.status("site")).ok


async def test_row_c8_a_project_is_brought_back_and_runs_again_from_there(tmp_path: Path) -> None:
    model = Model()
    tasks = task("a"), task("b", "a"), task("c", "b")
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        async with ProjectOrchestrator(executor(model), name="site", engine=engine) as site:
            site.add(*tasks)
            await site.run()
        log = await engine.events("site")
        await engine.rollback("site", next(one.offset for one in log if (one.step, one.state) == ("a", "succeeded")))
    async with (
        LocalEngine(Journal(tmp_path / "j")) as engine,
        ProjectOrchestrator(executor(model), name="site", engine=engine) as site,
    ):
        site.add(task("a"), task("b", "a", title="another one"), task("c", "b"))
        assert names(site.ready()) == ["b"]
        assert (await site.run()).ok
    assert model.begun == ["a", "b", "c", "b", "c"]


async def test_row_c8_a_backup_goes_on_where_it_was_taken(tmp_path: Path) -> None:
    tasks = task("a"), task("b", "a")
    journal, model = Journal(tmp_path / "j"), Model()
    async with (
        LocalEngine(journal) as engine,
        ProjectOrchestrator(executor(model), name="site", engine=engine) as site,
    ):
        site.add(*tasks)
        await site.execute_task("a")
        await journal.backup(tmp_path / "copy")
        assert (await site.run()).ok
    async with (
        LocalEngine(Journal(tmp_path / "copy")) as engine,
        ProjectOrchestrator(executor(model), name="site", engine=engine) as site,
    ):
        site.add(*tasks)
        assert (await site.run()).ok
    assert model.begun == ["a", "b", "b"]


async def test_row_c8_two_who_run_one_project_do_not_both_do_it(tmp_path: Path) -> None:
    model, other = Model("a"), Model()
    async with LocalEngine(Journal(tmp_path / "j")) as one, LocalEngine(Journal(tmp_path / "j")) as two:
        first = ProjectOrchestrator(executor(model), name="site", engine=one)
        second = ProjectOrchestrator(executor(other), name="site", engine=two)
        for site in (first, second):
            site.add(task("a"), task("b", "a"))
        running = asyncio.create_task(first.run())
        await model.until("a")
        with pytest.raises(Conflict, match="site") as caught:
            await second.run()
        assert caught.value.code == "in_progress"
        model.gates["a"].set()
        assert (await running).ok
        assert (await second.run()).ok
    assert (model.begun, other.begun) == (["a", "b"], [])


async def test_row_c8_another_project_of_the_same_name_is_a_conflict(tmp_path: Path) -> None:
    async with LocalEngine(Journal(tmp_path / "j")) as engine:
        tasks = executor(Model(failing=["b"]))
        async with ProjectOrchestrator(tasks, name="site", engine=engine) as site:
            site.add(task("a"), task("b"), task("c"))
            await site.execute_task("a")
            await site.execute_task("b")
        for other in ([task("x")], [task("a", title="changed"), task("b")], [task("a")]):
            async with ProjectOrchestrator(tasks, name="site", engine=engine) as site:
                site.add(*other)
                with pytest.raises(Conflict, match="site"):
                    await site.run()


async def test_row_c8_what_had_not_succeeded_may_be_another_now(tmp_path: Path) -> None:
    model = Model(failing=["b"])
    async with (
        LocalEngine(Journal(tmp_path / "j")) as engine,
        ProjectOrchestrator(executor(model), name="site", engine=engine) as site,
    ):
        site.add(task("a"), task("b"), task("c", "a"), task("d"))
        await site.execute_task("a")
        await site.execute_task("b")
    model.failing = set()
    async with (
        LocalEngine(Journal(tmp_path / "j")) as engine,
        ProjectOrchestrator(executor(model), name="site", engine=engine) as site,
    ):
        site.add(task("a"), task("b", title="easier"), task("c", "b"), task("e", "c"))
        await site.retry("b")
        assert (await site.run()).ok
    assert model.begun == ["a", "b", "b", "c", "e"]


async def test_a_budget_ends_with_the_orchestrator_that_had_it(model: Model) -> None:
    tasks = executor(model)
    async with LocalEngine() as engine:
        for limits, ends in ((ProjectLimits(budget=Budget(tokens=1)), "failed"), (ProjectLimits(), "success")):
            async with ProjectOrchestrator(tasks, name="site", engine=engine, limits=limits) as site:
                site.add(task("a"), task("b", "a"))
                if ends == "success":
                    await site.retry("b")
                assert states(await site.run()) == {"a": "success", "b": ends}


def test_row_c7_an_unknown_provider_is_refused_when_its_task_is_added() -> None:
    odd = AgentConfig(name="odd", provider="nonesuch", model="m")
    site = ProjectOrchestrator(TaskExecutor(AgentRegistry([odd])))
    with pytest.raises(UnknownName, match="nonesuch"):
        site.add(task("a", agent="odd"))
    assert site.spec.tasks == ()


def test_an_engine_that_nobody_uses_is_forgotten_with_its_projects(model: Model) -> None:
    engine = LocalEngine()
    seen = weakref.ref(engine)
    register_projects(engine, executor(model))
    del engine
    gc.collect()
    assert seen() is None


async def test_it_tells_as_an_executor_what_happens(site: ProjectOrchestrator) -> None:
    logged: list[Logged] = []
    paths: list[str] = []
    async with execute_stream(site, None) as execution:
        async for event in execution:
            if isinstance(event, Item) and isinstance(event.value, Logged):
                logged.append(event.value)
            if isinstance(event, Used):
                paths.append(event.path)
    assert execution.result.ok
    assert execution.usage.total == 60
    ended = [entry.step for entry in logged if entry.state == "succeeded"]
    assert sorted(map(str, ended)) == ["a", "b", "c", "d"]
    assert [entry.offset for entry in logged] == sorted({entry.offset for entry in logged})
    assert {path.split("/")[0] for path in paths} == {"a", "b", "c", "d"}


async def test_as_an_executor_it_raises_with_the_names_of_what_failed(site: ProjectOrchestrator, model: Model) -> None:
    model.failing = {"b"}
    with pytest.raises(TaskFailed, match="'b' failed") as caught:
        await execute(site, None, Heard())
    assert caught.value.details == {"tasks": ["b"], "failed": 1, "blocked": 1}


async def test_as_an_executor_it_runs_a_project_that_is_given(site: ProjectOrchestrator, model: Model) -> None:
    other = project(task("y", "x"), task("x")).model_copy(update={"name": "other"})
    report = await execute(site, other)
    assert (report.name, states(report)) == ("other", {"x": "success", "y": "success"})
    assert names(site.ready()) == ["a"]


async def test_an_orchestrator_needs_no_block(model: Model) -> None:
    site = ProjectOrchestrator(executor(model))
    assert (await site.run()).results == ()
    site.add(task("a"))
    assert (await site.run()).ok
    await site.aclose()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans(7), data=st.data())
async def test_row_c7_any_plan_with_any_failures_ends_as_the_model_says(plan: Plan, data: st.DataObject) -> None:
    failing = data.draw(st.sets(st.sampled_from(sorted(plan)), max_size=3))
    total = data.draw(st.integers(1, 3))
    model = Model(failing=failing)
    async with ProjectOrchestrator(executor(model), limits=ProjectLimits(concurrent=total)) as site:
        spec = project(*(task(name, *needs) for name, needs in plan.items()))
        order = spec.graph().order
        site.add(*sorted(spec.tasks, key=lambda one: order.index(one.id)))
        expected: dict[str, str] = {}
        for name in order:
            met = all(expected[need] == "success" for need in plan[name])
            expected[name] = "blocked" if not met else "failed" if name in failing else "success"
        assert states(await site.run()) == expected
        assert sorted(model.begun) == sorted(name for name, end in expected.items() if end != "blocked")
        model.failing = set()
        for name in order:
            if expected[name] == "failed":
                await site.retry(name)
        report = await site.run()
    assert report.ok
    assert sorted(model.begun) == sorted([*plan, *(name for name, end in expected.items() if end == "failed")])
    assert model.most <= total


async def test_a_chain_of_ten_thousand_runs_without_recursion() -> None:
    count = 10_000
    model = Model()
    async with ProjectOrchestrator(executor(model)) as site:
        begin = time.perf_counter()
        site.add(*(task(f"t{n}", *([f"t{n - 1}"] if n else [])) for n in range(count)))
        report = await site.run()
        seconds = time.perf_counter() - begin
    assert report.counts == {"success": count}
    assert model.begun == [f"t{n}" for n in range(count)]
    assert seconds < 60
