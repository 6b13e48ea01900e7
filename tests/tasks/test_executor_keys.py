"""An agent's key reaches its service, and is in nothing that is shown, told, raised, logged or stored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.errors import PenstockError, TaskFailed
from penstock.llms.base import BaseLlm
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Run, execute
from penstock.store.journal import Journal
from penstock.tasks.agents import AgentConfig
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.executor import TaskExecutor, TaskRequest
from penstock.tasks.modes import Work
from penstock.tasks.modes.api import llm_of
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.prompt import messages_of
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.task import AgentTask
from penstock.testing import Heard
from tests.rig.answers import Plain, Received
from tests.rig.upstream import Upstream, completion, error_body

KEY = "cnry-7f3aQ9zLx2Wm5TgH"
PIECES = [KEY[start : start + 8] for start in range(len(KEY) - 7)]
TASK = AgentTask(id="t", description="Say hello.")


def leaks(*seen: object) -> list[str]:
    text = "\n".join(each if isinstance(each, str) else f"{each!r}\n{each}" for each in seen)
    return [piece for piece in PIECES if piece in text]


def keyed(**fields: Any) -> AgentConfig:
    return AgentConfig(**{"name": "a", "provider": "openai", "model": "m", "api_key": KEY, **fields})


class Leaking(BaseLlm):
    """A provider of somebody's own, which says its key wherever it can."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(model="m")
        self.error = error

    async def generate_content_async(self, messages: Any, **params: Any) -> str:
        if self.error is not None:
            raise self.error
        return f"My key is {KEY}, {messages and params}."


def test_row_c10_no_representation_of_an_agent_shows_its_key() -> None:
    agent = keyed()
    agents = AgentRegistry([agent])
    work, request = Work(TASK, agent), TaskRequest(TASK, agent)
    executor = TaskExecutor(agents)
    executor.agent_for(TASK)
    assert not leaks(agent, agents.list(), agents, work, request, executor, vars(executor), llm_of(agent))
    assert not leaks(agent.model_dump_json(), json.dumps(agent.model_dump(mode="json")), messages_of(work))


def test_row_c10_a_mistake_in_an_agent_does_not_show_its_key() -> None:
    with pytest.raises(ValueError, match="write model") as caught:
        keyed(provider="", model="")
    assert not leaks(caught.value)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_row_c10_a_service_that_says_the_key_in_its_error_is_not_quoted(
    upstream: Upstream, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)

    def say(received: Received) -> Plain:
        return Plain(error_body(f"the key {received.headers['authorization']} is bad"), status=status)

    upstream.default = say
    executor, heard = TaskExecutor(AgentRegistry([keyed(base_url=upstream.base_url)])), Heard()
    with pytest.raises(PenstockError) as caught:
        await execute(executor, TaskRequest(TASK), heard)
    result = await executor.execute(TASK)
    assert KEY in upstream.chats[-1].headers["authorization"]
    assert KEY not in upstream.chats[-1].body.decode()
    assert result.error is not None
    assert "is bad" in result.error.message
    assert not leaks(caught.value, heard.events, result, msgspec.json.encode(result).decode(), caplog.text)


async def test_row_c10_an_answer_that_repeats_the_key_is_shown_without_it(upstream: Upstream) -> None:
    upstream.default = lambda received: Plain(completion(f"I was called with {received.headers['authorization']}."))
    agents = AgentRegistry([keyed(base_url=upstream.base_url)])
    result = await TaskExecutor(agents).execute(TASK)
    assert result.output == "I was called with Bearer [key of a]."
    assert not leaks(result)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError(f"cannot use {KEY}"),
        TaskFailed(f"cannot use {KEY[:12]}", code="agent_failed", details={"seen": [{KEY: KEY}]}),
    ],
)
async def test_row_c10_a_provider_of_ones_own_cannot_put_its_key_into_a_result(error: Exception | None) -> None:
    executor = TaskExecutor(AgentRegistry(), llms=lambda _: Leaking(error))
    result = await executor.execute(TASK, keyed())
    assert result.ok is (error is None)
    assert "key of a" in str(result)
    assert not leaks(result)
    if isinstance(error, TaskFailed):
        with pytest.raises(TaskFailed) as caught:
            await execute(executor, TaskRequest(TASK, keyed()))
        assert not leaks(caught.value, caught.value.details)


async def test_row_c10_the_stored_state_of_a_project_holds_no_key(tmp_path: Path) -> None:
    said = {"told": Leaking(None), "raised": Leaking(RuntimeError(f"cannot use {KEY}"))}
    agents = AgentRegistry(keyed(name=name) for name in said)
    executor = TaskExecutor(agents, llms=lambda agent: said[agent.name])
    async with (
        LocalEngine(Journal(tmp_path / "journal")) as engine,
        ProjectOrchestrator(executor, engine=engine) as run,
    ):
        run.add(AgentTask(id="one", description="Go.", agent="told"))
        run.add(AgentTask(id="two", description="Go.", agent="raised", depends_on=("one",)))
        report = await run.run()
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [result.ok for result in report.results] == [True, False]
    assert b"My key is [key 1 of several agents]" in stored
    assert b"cannot use [key 1 of several agents" in stored
    assert not leaks(stored.decode("latin-1"), report)


async def test_row_c10_the_key_of_another_agent_is_hidden_too() -> None:
    class Reading(BaseLlm):
        async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
            return await Leaking(None)(request, run)

    agents = AgentRegistry([keyed(name="b"), AgentConfig(name="a", model="m")])
    result = await TaskExecutor(agents, llms=lambda _: Reading()).execute(TASK, "a")
    assert not leaks(result)


async def test_row_c10_a_short_key_is_a_word_and_stays_in_the_text() -> None:
    executor = TaskExecutor(AgentRegistry(), llms=lambda _: Leaking(ValueError("none of this")))
    result = await executor.execute(TASK, keyed(api_key="none"))
    assert result.error is not None
    assert result.error.message == "none of this"


async def test_a_key_that_several_agents_have_is_named_after_none_of_them() -> None:
    agents = [keyed(), keyed(name="b"), keyed(name="c", api_key="other-0123456789")]
    result = await TaskExecutor(AgentRegistry(agents), llms=lambda _: Leaking(None)).execute(TASK, "b")
    assert leaks(result) == []
    assert "My key is [key 1 of several agents]," in result.output
