"""Who does a task is chosen and checked before anything runs, and all that is written of an agent has its effect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from penstock.errors import AgentUnavailable, UnknownName, UsageError
from penstock.llms.base import BaseLlm
from penstock.llms.demo import Demo
from penstock.messages import AgentType, ChatReply, ChatRequest
from penstock.run import Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.task import AgentTask
from penstock.testing import ScriptedLlm
from tests.rig.answers import Received, Stream
from tests.rig.upstream import Upstream
from tests.rig.wire import chunk

TASK = AgentTask(id="t", description="Say hello.")
WRITER = AgentConfig(name="writer", model="m", capabilities=("writing",))
CODER = AgentConfig(name="coder", model="m", capabilities=("code",))
SHELL = AgentConfig(name="shell", mode="cli", command=("true",))
PERSON = AgentConfig(name="person", mode="interactive")


def executor(*agents: AgentConfig, llm: BaseLlm | None = None) -> TaskExecutor:
    return TaskExecutor(AgentRegistry(agents), llms=lambda _: llm or ScriptedLlm("hello"))


def task(**fields: Any) -> AgentTask:
    return AgentTask(**{**TASK.model_dump(), **fields})


def team(name: str, *agents: str, **fields: Any) -> AgentConfig:
    return AgentConfig(**{"name": name, "mode": "hybrid", "agents": agents, **fields})


class Slow(ScriptedLlm):
    """Notes how many calls go on at once."""

    running = most = 0
    seconds = 0.01

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
            return await super().__call__(request, run)
        finally:
            self.running -= 1


def test_row_c5_the_given_agent_goes_before_the_tasks_own_and_that_before_any_other() -> None:
    choose = executor(WRITER, CODER, PERSON).agent_for
    assert choose(task(agent="coder"), "person") is PERSON
    assert choose(task(agent="coder")) is CODER
    assert choose(task(capabilities=("code",))) is CODER
    assert choose(TASK) is WRITER
    other = WRITER.model_copy(update={"name": "guest"})
    assert choose(task(agent="coder"), other) is other


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"agent": "codr"}, UnknownName, "no agent 'codr': did you mean 'coder'"),
        ({"agent": "off"}, AgentUnavailable, "the agent 'off' is disabled: enable it"),
        ({"agent": "writer", "capabilities": ("code",)}, AgentUnavailable, "'writer' lacks 'code', which the task 't'"),
        ({"capabilities": ("cooking",)}, AgentUnavailable, "no agent with 'cooking': 'writer' lacks 'cooking'"),
        ({"review": "nobody"}, UnknownName, "no agent 'nobody'"),
        ({"review": "off"}, AgentUnavailable, "'off' is disabled"),
        ({"agent": "pair"}, AgentUnavailable, "'off' is disabled"),
        ({"agent": "lost"}, UnknownName, "no agent 'gone'"),
        ({"agent": "coder", "review": "coder"}, UsageError, "'coder' cannot review its own work on the task 't': name"),
        ({"capabilities": ("code",), "review": "coder"}, UsageError, "'coder' cannot review its own work"),
        ({"agent": "ring"}, UsageError, "the agents ring > loop > ring consist of each other"),
        ({"agent": "foreign"}, UnknownName, "the agent 'foreign': No LLM implementation found for agent type: acme"),
        ({"agent": "nameless"}, UnknownName, "'nameless': No LLM implementation found for agent type: fast"),
        ({"agent": "wrong"}, UsageError, "the agent 'wrong': its provider 'demo' cannot be made: .*base_url"),
    ],
)
async def test_row_c5_what_can_be_known_to_be_wrong_is_raised_before_anything_runs(
    fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    agents = [
        WRITER.model_copy(update={"provider": "demo"}),
        CODER.model_copy(update={"provider": "demo"}),
        AgentConfig(name="off", provider="demo", enabled=False),
        team("pair", "writer", "off"),
        team("lost", "writer", "gone"),
        team("ring", "writer", "loop"),
        team("loop", "coder", "ring"),
        AgentConfig(name="foreign", provider="acme", model="x"),
        AgentConfig(name="nameless", model="fast"),
        AgentConfig(name="wrong", provider="demo", base_url="http://127.0.0.1:1"),
    ]
    chosen = TaskExecutor(AgentRegistry(agents))
    with pytest.raises(error, match=text):
        chosen.agent_for(task(**fields))
    result = await chosen.execute(task(**fields))
    assert result.error is not None
    assert (result.error.type, result.attempts) == (error.__name__, 0)


def test_row_c4_the_provider_of_an_agent_has_one_name() -> None:
    made = executor(llm=Demo())
    agents = [
        AgentConfig(name="a", provider=AgentType.ANTHROPIC_CLAUDE, model="c"),
        AgentConfig(name="b", provider="openai:gpt-5", model=""),
        AgentConfig(name="c", model="fast"),
        SHELL,
        team("e", "a", "b"),
    ]
    assert [made.provider(agent) for agent in agents] == ["anthropic", "openai", "demo", "", ""]


def test_row_c8_who_changes_something_outside_is_known() -> None:
    quiet = SHELL.model_copy(update={"name": "quiet", "effects": False})
    loud = WRITER.model_copy(update={"name": "loud", "effects": True})
    agents = (
        WRITER,
        SHELL,
        PERSON,
        quiet,
        loud,
        team("safe", "writer", "quiet"),
        team("mixed", "writer", "safe", "shell"),
    )
    asked = executor(*agents)
    assert {agent.name for agent in agents if asked.effects(agent)} == {"shell", "person", "loud", "mixed"}
    assert not asked.effects(team("told", "shell", "person", effects=False))


def _body(received: Received) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(received.body)
    return body


async def _asked(upstream: Upstream, **fields: Any) -> Received:
    agent = AgentConfig(
        **{"name": "a", "provider": "openai", "model": "gpt-x", "base_url": upstream.base_url, **fields}
    )
    result = await TaskExecutor(AgentRegistry([agent])).execute(TASK)
    assert result.ok, result.error
    return upstream.chats[-1]


async def test_row_c4_endpoint_model_and_key_reach_the_service(upstream: Upstream) -> None:
    asked = await _asked(upstream, api_key="sk-canary-0123456789")
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer sk-canary-0123456789"
    assert _body(asked)["model"] == "gpt-x"
    assert _body(asked)["messages"] == [{"role": "user", "content": "Say hello."}]
    assert {"temperature", "max_tokens"}.isdisjoint(_body(asked))


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ({"temperature": 0.2}, {"temperature": 0.2}),
        ({"max_tokens": 77}, {"max_tokens": 77}),
        ({"params": {"seed": 7, "logit_bias": {"1": 2}}}, {"seed": 7, "logit_bias": {"1": 2}}),
        ({"params": {"temperature": 1, "top_p": 0.5}, "temperature": 0}, {"temperature": 0, "top_p": 0.5}),
        ({"model": "other"}, {"model": "other"}),
        ({"provider": AgentType.OPENAI_GPT}, {"model": "gpt-x"}),
        ({"provider": "groq"}, {"model": "gpt-x"}),
        ({"provider": "openai:gpt-y", "model": ""}, {"model": "gpt-y"}),
        ({"provider": "", "model": "openai:gpt-z"}, {"model": "gpt-z"}),
    ],
)
async def test_row_c4_each_field_of_an_agent_is_used(
    upstream: Upstream, written: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = _body(await _asked(upstream, **written))
    assert {name: body[name] for name in sent} == sent


async def test_row_c4_instructions_are_the_system_message(upstream: Upstream) -> None:
    messages = _body(await _asked(upstream, instructions="Be brief."))["messages"]
    assert messages[0] == {"role": "system", "content": "Be brief."}


async def test_row_c4_an_agents_type_decides_the_wire(upstream: Upstream) -> None:
    agent = AgentConfig(name="a", provider=AgentType.ANTHROPIC_CLAUDE, model="claude", base_url=upstream.base_url)
    await TaskExecutor(AgentRegistry([agent])).execute(TASK)
    assert upstream.requests[-1].path == "/v1/messages"


@contextmanager
def _counted() -> Iterator[tuple[list[AgentConfig], TaskExecutor]]:
    made: list[AgentConfig] = []

    def llms(agent: AgentConfig) -> BaseLlm:
        made.append(agent)
        return ScriptedLlm(f"{agent.model} {len(made)}")

    yield made, TaskExecutor(AgentRegistry([WRITER]), llms=llms)


async def test_row_c4_an_agents_llm_is_made_once_and_again_when_it_was_changed() -> None:
    with _counted() as (made, one):
        outputs = [(await one.execute(TASK)).output for _ in range(3)]
        one.agents.disable("writer")
        one.agents.enable("writer")
        outputs.append((await one.execute(TASK)).output)
        one.agents.register(WRITER.model_copy(update={"model": "n"}), replace=True)
        outputs.append((await one.execute(TASK)).output)
    assert outputs == ["m 1"] * 4 + ["n 2"]
    assert len(made) == 2


async def test_row_c4_a_task_that_runs_keeps_its_agent_and_the_next_one_is_refused() -> None:
    one = executor(WRITER, llm=(llm := Slow("hello")))
    working = asyncio.create_task(one.execute(TASK))
    while not llm.running:
        await asyncio.sleep(0)
    one.agents.disable("writer")
    refused = await one.execute(TASK)
    one.agents.unregister("writer")
    assert (await working).output == "hello"
    assert refused.error is not None
    assert refused.error.type == "AgentUnavailable"


@pytest.mark.parametrize(("concurrent", "most"), [(1, 1), (2, 2), (None, 5)])
async def test_row_c4_an_agent_does_as_many_tasks_at_once_as_it_may(concurrent: int | None, most: int) -> None:
    one = executor(WRITER.model_copy(update={"concurrent": concurrent}), llm=(llm := Slow("hello")))
    results = await asyncio.gather(*(one.execute(TASK) for _ in range(5)))
    assert [result.output for result in results] == ["hello"] * 5
    assert llm.most == most


async def test_row_c4_time_begins_when_an_agent_has_a_place() -> None:
    one = executor(WRITER.model_copy(update={"concurrent": 1}), llm=(llm := Slow("hello")))
    llm.seconds = 0.03
    results = await asyncio.gather(*(one.execute(task(timeout_s=0.14)) for _ in range(5)))
    assert [result.ok for result in results] == [True] * 5
    assert max(result.duration or 1 for result in results) < 0.14


async def test_row_c4_who_is_cancelled_while_it_waits_leaves_its_place_to_the_next() -> None:
    busy = executor(WRITER.model_copy(update={"concurrent": 1}), llm=(llm := Slow("hello")))
    working = [asyncio.create_task(busy.execute(TASK)) for _ in range(4)]
    await asyncio.sleep(0)
    working[1].cancel()
    working[0].cancel()
    await asyncio.sleep(0)
    working[2].cancel()  # its turn has come just now
    assert (await asyncio.wait_for(working[3], 2)).ok
    assert llm.most == 1
    assert all(one.cancelled() for one in working[:3])
    assert (await busy.execute(TASK)).ok


async def test_row_c4_a_limit_that_was_changed_holds_for_the_next_tasks() -> None:
    limited = WRITER.model_copy(update={"concurrent": 1})
    busy = executor(limited, llm=(llm := Slow("hello")))
    before = [asyncio.create_task(busy.execute(TASK)) for _ in range(2)]
    await asyncio.sleep(0)
    busy.agents.register(limited.model_copy(update={"concurrent": 3}), replace=True)
    assert len(await asyncio.gather(*(busy.execute(TASK) for _ in range(6)), *before)) == 8
    assert llm.most == 1 + 3


async def test_row_c4_agents_that_review_each_other_do_not_wait_for_each_other() -> None:
    llm = Slow('{"unmet": []}')
    both = [agent.model_copy(update={"concurrent": 1}) for agent in (WRITER, CODER)]
    one = executor(*both, llm=llm)
    crossed = [task(agent="writer", review="coder"), task(agent="coder", review="writer")]
    results = await asyncio.wait_for(asyncio.gather(*map(one.execute, crossed)), 2)
    assert [result.ok for result in results] == [True, True]


async def test_row_c5_a_member_of_a_hybrid_has_bounds_and_a_place_of_its_own() -> None:
    slow = AgentConfig(name="slow", model="m", timeout_s=0.005)
    agents = [slow, WRITER.model_copy(update={"concurrent": 1}), team("both", "slow", "writer")]
    llms = {"slow": Slow("never"), "writer": Slow("hello")}
    one = TaskExecutor(AgentRegistry(agents), llms=lambda agent: llms[agent.name])
    results = await asyncio.gather(*(one.execute(TASK, "both") for _ in range(3)))
    assert [(result.agent, result.output, result.attempts) for result in results] == [("both", "hello", 1)] * 3
    assert llms["writer"].most == 1


async def test_case_16_a_budget_does_not_make_the_agents_of_a_race_wait_for_each_other() -> None:
    agents = [WRITER, CODER, team("both", "writer", "coder", strategy="race")]
    one = executor(*agents, llm=(llm := Slow("hello")))
    assert (await one.execute(task(budget={"tokens": 100}), "both")).ok
    assert llm.most == 2


@pytest.mark.parametrize("reply", ["", "   "])
async def test_row_c5_a_model_that_gives_no_text_has_not_done_its_task(reply: str) -> None:
    result = await executor(WRITER, llm=ScriptedLlm(reply)).execute(TASK)
    assert result.error is not None
    assert result.error.type == "BadAnswer"
    assert "the model of 'writer' gave no text (finish_reason 'stop')" in result.error.message


async def test_row_c5_an_answer_that_a_limit_of_tokens_cut_says_so() -> None:
    agent = AgentConfig(name="a", provider="demo", max_tokens=4)
    result = await TaskExecutor(AgentRegistry([agent])).execute(TASK)
    assert result.output == "I am Penstock'\n[cut: the model reached its limit of tokens]"


async def test_row_c5_an_answer_that_a_content_rule_stopped_is_refused(upstream: Upstream) -> None:
    upstream.script(Stream([chunk("I can not", role="assistant"), chunk(finish="content_filter")]))
    agent = AgentConfig(name="a", provider="openai", model="x", base_url=upstream.base_url)
    result = await TaskExecutor(AgentRegistry([agent])).execute(TASK)
    assert result.error is not None
    assert (result.error.type, result.output) == ("Refused", None)
