"""Agents that consist of others: one after the other, all at once, or one who checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from penstock.errors import LimitReached, TaskFailed, Unavailable, UnknownName, UsageError
from penstock.events import Retrying, Switched, Text
from penstock.run import Run, execute
from penstock.tasks.agents import AgentConfig
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.modes import Answer, Work
from penstock.tasks.modes.hybrid import hybrid
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.results import ExecutionStatus
from penstock.testing import Heard
from tests.tasks.modes.commands import TASK, living, pids, printing, script

Strategy = Literal["race", "fallback", "review"]

OUT_OF_INK = TaskFailed("out of ink", code="agent_failed", details={"exit_code": 1}, retryable=True)
ASLEEP = Unavailable("asleep")


class Members:
    """Agents by name, each an error to raise, a value to give, or a function of the work; `log` says what happened."""

    def __init__(self, **members: Any) -> None:
        self.members = members
        self.log: list[str] = []

    def find(self, name: str) -> AgentConfig:
        if name not in self.members:
            raise UnknownName(f"no agent {name!r}")
        return AgentConfig(name=name, model="m")

    async def work(self, work: Work, run: Run, /) -> Answer:
        name = work.agent.name
        self.log.append(name)
        said = self.members[name]
        await run.child(name).emit(Text("working"))
        try:
            said = await said(work) if callable(said) else said
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            self.log.append(f"{name} cancelled")
            raise
        if isinstance(said, Exception):
            raise said
        return Answer(said, name)

    async def together(self, strategy: Strategy, *names: str, heard: Heard | None = None, rounds: int = 1) -> Answer:
        agent = AgentConfig(name="team", mode="hybrid", strategy=strategy, agents=names, rounds=rounds)
        return await execute(hybrid(self.find, self.work), Work(TASK, agent), heard)


def after(seconds: float, said: Any) -> Callable[[Work], Awaitable[Any]]:
    async def wait(work: Work) -> Any:
        await asyncio.sleep(seconds)
        return said

    return wait


async def test_row_c5_a_fallback_goes_on_until_one_succeeds() -> None:
    heard, members = Heard(), Members(a=OUT_OF_INK, b=ASLEEP, c="a poem", d="another")
    assert await members.together("fallback", "a", "b", "c", "d", heard=heard) == Answer("a poem", "c")
    assert members.log == ["a", "b", "c"]
    told = [event for event in heard.events if isinstance(event, Switched)]
    assert told == [Switched(to="b", error=OUT_OF_INK), Switched(to="c", error=ASLEEP)]


@pytest.mark.parametrize("strategy", ["fallback", "race"])
async def test_row_c5_where_all_fail_one_error_lists_each(strategy: Strategy) -> None:
    members = Members(a=OUT_OF_INK, b=ASLEEP)
    with pytest.raises(TaskFailed) as raised:
        await members.together(strategy, "a", "b")
    error = raised.value
    assert error.message == "all agents of 'team' failed: 'a': out of ink; 'b': asleep"
    assert (error.code, error.retryable) == ("agent_failed", True)
    assert [(each["agent"], each["type"], each.get("code")) for each in error.details] == [
        ("a", "TaskFailed", "agent_failed"),
        ("b", "Unavailable", None),
    ]
    assert error.details[0]["details"] == {"exit_code": 1}


async def test_row_c5_a_limit_ends_a_fallback() -> None:
    members = Members(a=LimitReached("spent", limit="budget"), b="a poem")
    with pytest.raises(LimitReached):
        await members.together("fallback", "a", "b")
    assert members.log == ["a"]


@pytest.mark.parametrize("strategy", ["fallback", "race"])
async def test_row_c5_a_mistake_in_the_program_is_nobodys_failure(strategy: Strategy) -> None:
    members = Members(a=TypeError("a bug"), b=after(5, "a poem"))
    with pytest.raises(TypeError, match="a bug"):
        await members.together(strategy, "a", "b")


async def test_row_c5_in_a_race_the_first_result_counts() -> None:
    members = Members(slow=after(5, "late"), quick=after(0.01, "a poem"), never=after(9, ASLEEP))
    assert await members.together("race", "slow", "quick", "never") == Answer("a poem", "quick")
    assert sorted(members.log[3:]) == ["never cancelled", "slow cancelled"]


async def test_case_20_members_of_a_race_that_fail_or_time_out_stop_nobody() -> None:
    late = TaskFailed("not finished within 0.02 s", code="timeout")
    members = Members(a=OUT_OF_INK, b=after(0.02, late), c=after(0.04, "a poem"), d=after(0.01, ASLEEP))
    assert await members.together("race", "a", "b", "c", "d") == Answer("a poem", "c")
    assert members.log == ["a", "b", "c", "d"]


async def test_row_c5_of_two_results_at_once_the_first_written_counts() -> None:
    for _ in range(20):
        members = Members(z="z", a="a", m="m")
        assert (await members.together("race", "z", "a", "m")).agent == "z"


async def test_row_c5_a_race_that_is_cancelled_leaves_nobody_behind() -> None:
    members = Members(a=after(5, "a"), b=after(5, "b"))
    task = asyncio.create_task(members.together("race", "a", "b"))
    while len(members.log) < 2:
        await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.001)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(members.log) == ["a", "a cancelled", "b", "b cancelled"]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("strategy", ["fallback", "race", "review"])
async def test_row_c5_an_unknown_member_stops_it_before_anything_runs(strategy: Strategy) -> None:
    members = Members(a="a poem")
    with pytest.raises(UnknownName):
        await members.together(strategy, "a", "nobody")
    assert members.log == []


async def test_row_c5_in_a_review_the_second_checks_what_the_first_did() -> None:
    drafts = iter(["a pome", "a poem"])
    asked: list[Work] = []

    async def write(work: Work) -> str:
        asked.append(work)
        return next(drafts)

    async def check(work: Work) -> str:
        given = [*work.results.values()]
        return '{"unmet": []}' if given == ["a poem"] else '{"unmet": [{"criterion": "It rhymes.", "reason": "pome"}]}'

    heard, members = Heard(), Members(writer=write, editor=check)
    assert await members.together("review", "writer", "editor", heard=heard) == Answer("a poem", "writer")
    assert members.log == ["writer", "editor", "writer", "editor"]
    assert [(work.agent.name, work.feedback, work.last) for work in asked] == [
        ("writer", (), None),
        ("writer", ("It rhymes.: pome",), "a pome"),
    ]
    assert [event.attempt for event in heard.events if isinstance(event, Retrying)] == [2]


async def test_row_c5_a_review_ends_after_its_rounds() -> None:
    members = Members(writer="a pome", editor='{"unmet": [{"criterion": "It rhymes."}]}')
    with pytest.raises(TaskFailed, match="It rhymes") as raised:
        await members.together("review", "writer", "editor", rounds=2)
    assert raised.value.code == "not_accepted"
    assert members.log == ["writer", "editor"] * 3


def team(name: str, strategy: Strategy, *agents: str) -> AgentConfig:
    return AgentConfig(name=name, mode="hybrid", strategy=strategy, agents=agents)


def named(name: str, agent: AgentConfig) -> AgentConfig:
    return agent.model_copy(update={"name": name})


POEM = printing('{"status": "success", "output": "a poem"}')


async def test_row_c5_hybrids_of_hybrids_of_real_commands(tmp_path: Path) -> None:
    slow = script('echo $$ > "$0"; exec sleep 60', tmp_path / "pid")
    agents = [
        team("all", "race", "slow", "pair"),
        team("pair", "fallback", "broken", "poet"),
        named("slow", slow),
        named("broken", script("exit 1")),
        script("sleep 0.05; " + POEM),
    ]
    heard, executor = Heard(), TaskExecutor(AgentRegistry(agents))
    began = time.monotonic()

    async def call(task: Any, run: Run, /) -> Any:
        return await executor.execute(task, "all", run=run)

    result = await execute(call, TASK, heard)
    assert (result.status, result.output, result.agent) == (ExecutionStatus.SUCCESS, "a poem", "all")
    assert time.monotonic() - began < 0.9
    assert not living(pids(tmp_path / "pid", 1))
    assert [(event.path, event.to) for event in heard.events if isinstance(event, Switched)] == [("all/pair", "poet")]


async def test_row_c5_hybrids_that_consist_of_each_other_are_refused_before_anything_runs(tmp_path: Path) -> None:
    agents = [
        team("a", "fallback", "runs", "b"),
        team("b", "race", "runs", "a"),
        named("runs", script('touch "$0"', tmp_path / "ran")),
    ]
    executor = TaskExecutor(AgentRegistry(agents))
    with pytest.raises(UsageError, match="a > b > a"):
        executor.agent_for(TASK, "a")
    result = await executor.execute(TASK, "a")
    assert result.status is ExecutionStatus.FAILED
    assert not (tmp_path / "ran").exists()
