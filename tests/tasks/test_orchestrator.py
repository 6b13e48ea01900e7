"""A project in one's hands: tasks are added, changed and executed one by one, or run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from penstock.errors import AgentUnavailable, CyclicPlan, UnknownName, UsageError
from penstock.events import Used
from penstock.run import execute
from penstock.tasks.bounds import Budget
from penstock.tasks.engines import RunState
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.project import Defaults, ProjectLimits
from penstock.tasks.results import ExecutionStatus
from tests.tasks.projects import Model, agent, executor, names, states, task


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def site(model: Model) -> AsyncIterator[ProjectOrchestrator]:
    """A project in memory: a, then b and c, then d."""
    async with ProjectOrchestrator(executor(model), name="site") as opened:
        opened.add(task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"))
        yield opened


async def test_row_c7_tasks_are_added_updated_removed_and_got(site: ProjectOrchestrator) -> None:
    assert site.get("b").depends_on == ("a",)
    site.update(task("b", title="other"))
    assert site.get("b").title == "other"
    assert names(site.ready()) == ["a", "b"]
    site.remove("d")
    site.remove("c")
    assert names(site.spec.tasks) == ["a", "b"]
    for call in (partial(site.get, "d"), partial(site.remove, "d"), partial(site.update, task("d"))):
        with pytest.raises(UnknownName, match="no task 'd'"):
            call()


@pytest.mark.parametrize(
    ("added", "error", "message"),
    [
        (task("e", "nowhere"), UnknownName, "'nowhere', which is no task"),
        (task("e", "e"), CyclicPlan, "e -> e"),
        (task("a"), UsageError, "a task 'a' already"),
        (task("e", agent="nobody"), UnknownName, "nobody"),
        (task("e", agent="off"), AgentUnavailable, "off"),
        (task("e", capabilities=("flying",)), AgentUnavailable, "flying"),
        (task("e", agent=None, capabilities=("flying",)), AgentUnavailable, "flying"),
        (task("e", review="nobody"), UnknownName, "nobody"),
    ],
)
def test_row_c7_what_is_wrong_is_refused_when_it_is_added_and_changes_nothing(
    added: Any, error: type[Exception], message: str
) -> None:
    site = ProjectOrchestrator(executor(Model(), agent("writer"), agent("off", enabled=False)))
    site.add(task("a"), task("b", "a"))
    before = site.spec
    with pytest.raises(error, match=message):
        site.add(added)
    if added.id == "e":
        needs = tuple("b" if need == "e" else need for need in added.depends_on)
        with pytest.raises(error, match=message.replace("e -> e", "b -> b")):
            site.update(added.model_copy(update={"id": "b", "depends_on": needs}))
    assert site.spec == before


def test_row_c7_a_change_that_closes_a_circle_is_refused_with_its_path(model: Model) -> None:
    site = ProjectOrchestrator(executor(model))
    site.add(task("a"), task("b", "a"), task("c", "b"))
    with pytest.raises(CyclicPlan, match="a -> c -> b -> a"):
        site.update(task("a", "c"))
    with pytest.raises(UsageError, match="needed by b"):
        site.remove("a")
    assert site.get("a").depends_on == ()


def test_a_name_that_is_none_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="name"):
        ProjectOrchestrator(executor(model), name="my project!")


async def test_row_c7_an_agent_that_went_away_is_refused_before_anything_runs(model: Model) -> None:
    tasks = executor(model, agent("writer"), agent("other"))
    async with ProjectOrchestrator(tasks) as site:
        site.add(task("a"), task("b", agent="other"))
        tasks.agents.disable("other")
        with pytest.raises(AgentUnavailable, match="other"):
            await site.run()
        assert model.begun == []
        tasks.agents.enable("other")
        assert (await site.run()).ok


async def test_row_c7_ready_tasks_are_executed_one_by_one_and_the_outcome_is_written_back(
    site: ProjectOrchestrator, model: Model
) -> None:
    assert names(site.ready()) == ["a"]
    result = await site.execute_task("a")
    assert (result.task, result.status, result.output, result.agent) == ("a", ExecutionStatus.SUCCESS, "A", "writer")
    assert names(site.ready()) == ["b", "c"]
    site.update(task("c", "a", priority=1))
    assert names(site.ready()) == ["c", "b"]
    assert (await site.execute_task("b")).output == "B"
    assert states(site.report()) == {"a": "success", "b": "success", "c": "pending", "d": "pending"}
    assert site.report()["a"] == result
    report = await site.run()
    assert report.ok
    assert model.begun == ["a", "b", "c", "d"]
    assert site.ready() == []
    assert (report.usage.total, report.state) == (60, RunState.SUCCEEDED)


async def test_row_c7_a_task_whose_needs_have_not_succeeded_is_refused_with_their_names(
    site: ProjectOrchestrator, model: Model
) -> None:
    with pytest.raises(UsageError, match=r"task 'd' needs 'b' \(pending\), 'c' \(pending\): these must succeed first"):
        await site.execute_task("d")
    model.failing = {"b"}
    await site.run()
    with pytest.raises(UsageError, match="task 'd' is blocked: retry what blocks it first"):
        await site.execute_task("d")
    with pytest.raises(UnknownName):
        await site.execute_task("e")
    assert "d" not in model.begun


async def test_row_c7_a_task_that_runs_or_has_ended_is_not_executed_again() -> None:
    model = Model("a", failing=["b"])
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"), task("b"))
        first = asyncio.create_task(site.execute_task("a"))
        await model.until("a")
        with pytest.raises(UsageError, match="'a' is in progress: await that"):
            await site.execute_task("a")
        for change in (partial(site.update, task("a")), partial(site.remove, "a")):
            with pytest.raises(UsageError, match="'a' is in progress: it cannot be changed"):
                change()
        model.gates["a"].set()
        assert (await first).ok
        with pytest.raises(UsageError, match="'a' is success"):
            await site.execute_task("a")
        failed = await site.execute_task("b")
        assert (failed.status, failed.error and failed.error.type) == (ExecutionStatus.FAILED, "BadRequest")
        with pytest.raises(UsageError, match="'b' is failed: retry it first"):
            await site.execute_task("b")
        with pytest.raises(UsageError, match="'a'"):
            await site.retry("a")
    assert model.begun == ["a", "b"]


async def test_row_c7_a_retried_task_runs_again_and_so_does_what_it_blocked(
    site: ProjectOrchestrator, model: Model
) -> None:
    model.failing = {"b"}
    report = await site.run()
    assert states(report) == {"a": "success", "b": "failed", "c": "success", "d": "blocked"}
    assert "'b'" in report.blocked["d"]
    model.failing = set()
    await site.retry("b")
    assert states(site.report()) == {"a": "success", "b": "pending", "c": "success", "d": "pending"}
    assert names(site.ready()) == ["b"]
    assert (await site.execute_task("b")).ok
    assert (await site.run()).ok
    assert model.begun == ["a", "b", "c", "b", "d"]


async def test_row_c7_another_agent_does_what_one_failed_to_do() -> None:
    bad, good = Model(failing=["a", "b"]), Model()
    tasks = executor(None, agent("writer"), agent("other"))
    tasks = type(tasks)(tasks.agents, llms=lambda one: good if one.name == "other" else bad)
    async with ProjectOrchestrator(tasks) as site:
        site.add(task("a"), task("b"), task("c"))
        assert not (await site.execute_task("a")).ok
        await site.retry("a")
        assert (await site.execute_task("a", agent="other")).agent == "other"
        with pytest.raises(UnknownName, match="nobody"):
            await site.execute_task("b", agent="nobody")
        await site.run()
        await site.retry("b")
        site.update(task("b", agent="other"))
        assert (await site.run()).ok
        assert site.report()["b"].agent == "other"


async def test_row_c7_a_retry_while_it_runs_counts_at_once() -> None:
    model = Model("slow", failing=["b"])
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("slow"), task("b"), task("c", "b"))
        running = asyncio.create_task(site.run())
        await model.until("slow", "b")
        async with asyncio.timeout(5):
            while site.report().counts.get(ExecutionStatus.BLOCKED) != 1:
                await asyncio.sleep(0.001)
        model.failing = set()
        await site.retry("b")
        await model.until("c")
        model.gates["slow"].set()
        assert (await running).ok


async def test_tasks_that_are_added_while_it_runs_run_too() -> None:
    model = Model("a")
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"))
        running = asyncio.create_task(site.run())
        await model.until("a")
        site.add(task("b", "a"))
        model.gates["a"].set()
        assert states(await running) == {"a": "success", "b": "success"}
        site.add(task("c", "b"))
        assert names(site.ready()) == ["c"]
        assert (await site.run()).ok


async def test_row_c7_priorities_and_limits_hold(model: Model) -> None:
    async with ProjectOrchestrator(executor(model), limits=ProjectLimits(concurrent=1)) as site:
        site.add(task("low"), task("high", priority=2), task("middle", priority=1))
        await site.run()
    assert model.begun == ["high", "middle", "low"]
    assert model.most == 1


async def test_row_c7_the_budget_of_a_project_holds_for_all_that_is_done_in_it(model: Model) -> None:
    limits = ProjectLimits(budget=Budget(tokens=31))
    async with ProjectOrchestrator(executor(model), limits=limits) as site:
        site.add(task("a"), task("b"), task("c"), task("d"))
        assert (await site.execute_task("a")).ok
        assert states(await site.run()) == {"a": "success", "b": "success", "c": "success", "d": "failed"}
        await site.retry("d")
        error = (await site.execute_task("d")).error
        assert error is not None
        assert error.message == "the budget of 31 tokens of project 'project' is used up: 45 is spent"
    assert model.begun == ["a", "b", "c"]


async def test_the_defaults_of_an_orchestrator_hold(model: Model) -> None:
    async with ProjectOrchestrator(executor(model), defaults=Defaults(agent="writer")) as site:
        site.add(task("a", agent=None))
        assert (await site.execute_task("a")).agent == "writer"


async def test_row_c7_nothing_starts_while_it_is_paused() -> None:
    model = Model("a")
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"), task("b", "a"))
        running = asyncio.create_task(site.run())
        await model.until("a")
        await site.pause()
        model.gates["a"].set()
        await asyncio.sleep(0.03)
        assert model.begun == ["a"]
        assert site.report().state is RunState.PAUSED
        await site.resume()
        assert (await running).ok


async def test_row_c7_a_cancelled_task_blocks_its_dependants_and_no_others() -> None:
    model = Model("b", "c")
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"), task("b", "a"), task("c", "a"), task("d", "b"))
        assert not await site.cancel("a")
        running = asyncio.create_task(site.run())
        await model.until("b", "c")
        assert await site.cancel("b", reason="not wanted")
        model.gates["c"].set()
        report = await running
        assert states(report) == {"a": "success", "b": "cancelled", "c": "success", "d": "blocked"}
        assert report["b"].error is not None
        assert "not wanted" in report["b"].error.message
        assert report.state is RunState.FAILED
    assert model.stopped == ["b"]


async def test_row_c7_a_project_that_is_cancelled_stops_all_of_it() -> None:
    model = Model("b")
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"), task("b", "a"), task("c", "b"))
        running = asyncio.create_task(site.run())
        await model.until("b")
        assert await site.cancel()
        report = await asyncio.wait_for(running, 5)
        assert report["b"].status is ExecutionStatus.CANCELLED
        assert not report["c"].ok
        assert report.state is RunState.CANCELLED
    assert model.stopped == ["b"]


async def test_a_project_that_is_cancelled_between_two_steps_is_so_in_the_journal(site: ProjectOrchestrator) -> None:
    assert not await site.cancel()
    await site.execute_task("a")
    assert await site.cancel(reason="enough")
    assert site.report().state is RunState.CANCELLED
    assert states(site.report())["b"] == "pending"
    assert not await site.cancel()


async def test_calls_that_come_while_the_last_one_leaves_go_on_with_the_same_run(
    site: ProjectOrchestrator, model: Model
) -> None:
    site.update(task("b"))
    results = await asyncio.gather(*(site.execute_task(name) for name in "ab"))
    assert all(result.ok for result in results)
    running = [asyncio.create_task(site.run()) for _ in range(3)]
    while not running[0].done():
        await asyncio.sleep(0)
    site.add(task("e"))
    reports = await asyncio.gather(site.run(), site.run())
    assert all(report.ok for report in reports)
    assert all(report["d"].ok for report in await asyncio.gather(*running))
    assert model.begun == ["a", "b", "c", "d", "e"]


async def test_a_listener_that_fails_interrupts_the_project(site: ProjectOrchestrator, model: Model) -> None:
    def broken(event: Any) -> None:
        if isinstance(event, Used):
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await execute(site, None, broken)
    assert site.report().state is RunState.INTERRUPTED
    assert (await site.run()).ok
    assert model.begun == ["a", "a", "b", "c", "d"]


async def test_a_run_that_is_cancelled_by_its_caller_is_interrupted_and_goes_on_later() -> None:
    model = Model("b")
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"), task("b", "a"), task("c", "b"))
        running = asyncio.create_task(site.run())
        await model.until("b")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert model.stopped == ["b"]
        assert states(site.report()) == {"a": "success", "b": "pending", "c": "pending"}
        model.gates["b"].set()
        assert (await site.run()).ok
    assert model.begun == ["a", "b", "b", "c"]


async def test_a_project_that_is_left_while_it_runs_is_interrupted() -> None:
    model = Model("b")
    site = ProjectOrchestrator(executor(model))
    site.add(task("a"), task("b", "a"))
    running = asyncio.create_task(site.run())
    await model.until("b")
    await site.aclose()
    report = await running
    assert (report.state, states(report)) == (RunState.INTERRUPTED, {"a": "success", "b": "pending"})
    assert model.stopped == ["b"]


async def test_row_c7_an_agent_that_is_given_a_task_does_not_review_it(model: Model) -> None:
    staff = executor(model, agent("writer"), agent("boss"))
    async with ProjectOrchestrator(staff, defaults=Defaults(review="boss")) as site:
        site.add(task("a"), task("b", review="boss"))
        assert (await site.execute_task("a", "boss")).ok
        with pytest.raises(UsageError, match="'boss' cannot review its own work"):
            await site.execute_task("b", "boss")
    assert model.begun == ["a"]


async def test_a_task_whose_caller_is_cancelled_is_cancelled() -> None:
    model = Model("a")
    async with ProjectOrchestrator(executor(model)) as site:
        site.add(task("a"), task("b"))
        running = asyncio.create_task(site.execute_task("a"))
        await model.until("a")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert site.report()["a"].status is ExecutionStatus.CANCELLED
        assert (await site.execute_task("b")).ok


async def test_a_task_is_removed_while_the_project_goes_on(site: ProjectOrchestrator, model: Model) -> None:
    model.failing = {"b"}
    assert states(await site.run())["d"] == "blocked"
    site.remove("d")
    with pytest.raises(UsageError, match="'b' is failed: one that has begun stays"):
        site.remove("b")
    model.failing = set()
    await site.retry("b")
    assert (await site.run()).ok
    assert model.begun == ["a", "b", "c", "b"]


def test_inputs_that_are_no_json_are_refused_when_they_are_added(model: Model) -> None:
    with pytest.raises(UsageError, match="inputs of task 'a' are no JSON"):
        ProjectOrchestrator(executor(model)).add(task("a", inputs={"x": object()}))
