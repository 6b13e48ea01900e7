"""A project as a whole: what it tells, what is stored of it, and any graph with any failures."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import Conflict, CyclicPlan, TaskFailed, Unavailable, UnknownName, UsageError
from penstock.events import Item, Used
from penstock.policies import wrap
from penstock.policies.retry import retry
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
from penstock.testing import Heard, ScriptedLlm
from tests.tasks.plans import Plan, plans
from tests.tasks.projects import Model, agent, executor, names, project, states, task


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


async def test_row_c7_a_limit_of_nobody_is_refused_and_can_be_put_right(site: ProjectOrchestrator) -> None:
    site.limits = ProjectLimits(agents={"wirter": 1})
    with pytest.raises(UnknownName, match="did you mean 'writer'"):
        await site.run()
    site.limits = ProjectLimits(agents={"writer": 1})
    assert (await site.run()).ok


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


@pytest.mark.parametrize("given", [False, True])
async def test_row_c7_as_an_executor_it_tries_again_what_failed(
    site: ProjectOrchestrator, model: Model, given: bool
) -> None:
    spec = site.spec.model_copy(update={"name": "other"}) if given else None
    for failing in ({"b", "c"}, {"b"}):
        model.failing = failing
        with pytest.raises(TaskFailed, match="'b' failed"):
            await execute(site, spec)
    model.failing = set()
    assert (await execute(site, spec)).ok
    assert (await execute(site, spec)).ok
    assert Counter(model.begun) == {"a": 1, "b": 3, "c": 2, "d": 1}


async def test_row_c7_a_retry_policy_around_a_project_has_its_effect() -> None:
    llm = ScriptedLlm(Unavailable("busy"), "Done.", Unavailable("busy"), "Done.")
    staff = TaskExecutor(AgentRegistry([agent("writer")]), llms=lambda _: llm)
    async with ProjectOrchestrator(staff) as site:
        site.add(task("a"), task("b", "a"))
        report = await execute(wrap(site, [retry(attempts=3, base_s=0.001, silent=True)]), None)
    assert report.ok
    assert len(llm.requests) == 4


async def test_row_c7_as_an_executor_it_leaves_what_was_cancelled(site: ProjectOrchestrator, model: Model) -> None:
    model.gates["b"] = asyncio.Event()
    running = asyncio.create_task(execute(site, None))
    await model.until("b", "c")
    await site.cancel("b")
    for call in (running, execute(site, None)):
        with pytest.raises(TaskFailed, match="'b' cancelled"):
            await asyncio.wait_for(call, 2)
    assert model.begun.count("b") == 1


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


async def test_row_c7_a_task_that_is_executed_costs_the_same_however_many_there_are() -> None:
    assert await _calls(200) < 1.05 * await _calls(50)


async def _calls(count: int) -> float:
    """The functions that are called for each of so many tasks, done one by one, in any order."""
    called = [0]

    def note(frame: object, event: str, _: object) -> None:
        called[0] += event == "call"

    async with ProjectOrchestrator(executor(Model())) as site:
        site.add(*(task(f"t{n}") for n in range(count)), task("last"))
        sys.setprofile(note)
        try:
            for n in range(count):
                await site.execute_task(f"t{n * 7 % count}")
        finally:
            sys.setprofile(None)
    return called[0] / count


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


async def test_row_c7_tasks_of_one_call_may_stand_in_any_order_and_come_all_or_none() -> None:
    async with ProjectOrchestrator(executor(Model())) as site:
        with pytest.raises(CyclicPlan, match="b -> c -> b"):
            site.add(task("a"), task("b", "c"), task("c", "b"))
        assert site.spec.tasks == ()
        site.add(task("b", "a"), task("a"))
        assert states(await site.run()) == {"a": "success", "b": "success"}
