"""The agents that tasks can be given to: kept by name, found by what they can do, recommended in order."""

from __future__ import annotations

import pytest

from penstock.errors import AgentUnavailable, UnknownName, UsageError
from penstock.messages import AgentType
from penstock.tasks.agents import AgentConfig
from penstock.tasks.registry import AgentRegistry, provider_of

WRITER = AgentConfig(name="writer", provider="openai", model="gpt-5-mini", capabilities=("writing", "english"))
CODER = AgentConfig(name="coder", provider=AgentType.ANTHROPIC_CLAUDE, model="claude", capabilities=("code",))
SHELL = AgentConfig(name="shell", mode="cli", command=("true",), capabilities=("code", "writing"))


@pytest.fixture
def agents() -> AgentRegistry:
    return AgentRegistry([WRITER, CODER, SHELL])


def test_row_c4_agents_are_kept_by_name_in_their_order(agents: AgentRegistry) -> None:
    assert agents.get("coder") is CODER
    assert agents.list() == (*agents,) == (WRITER, CODER, SHELL)
    assert "shell" in agents
    assert agents.unregister("coder") is CODER
    assert [agent.name for agent in agents.list()] == ["writer", "shell"]
    assert len(agents) == 2


def test_row_c4_a_taken_name_is_refused_unless_it_is_to_be_replaced(agents: AgentRegistry) -> None:
    other = CODER.model_copy(update={"model": "claude-2"})
    with pytest.raises(UsageError, match="'coder' is registered already: pass replace=True"):
        agents.register(other)
    agents.register(other, replace=True)
    assert agents.get("coder").model == "claude-2"
    assert [agent.name for agent in agents.list()] == ["writer", "coder", "shell"]


@pytest.mark.parametrize("call", ["get", "enable", "disable", "unregister"])
def test_row_c4_an_unknown_name_says_what_may_have_been_meant(agents: AgentRegistry, call: str) -> None:
    with pytest.raises(UnknownName, match="no agent 'writr': did you mean 'writer'\\?"):
        getattr(agents, call)("writr")
    with pytest.raises(UnknownName, match="no agent 'zzz': known are none"):
        getattr(AgentRegistry(), call)("zzz")


def test_row_c4_a_disabled_agent_is_known_and_never_recommended(agents: AgentRegistry) -> None:
    agents.disable("writer")
    assert agents.get("writer").enabled is False
    assert agents.recommend(["writing"]) is SHELL
    agents.enable("writer")
    assert agents.recommend(["writing"]) == WRITER


def test_row_c4_agents_are_found_by_capability(agents: AgentRegistry) -> None:
    agents.disable("coder")
    assert [agent.name for agent in agents.by_capability("code")] == ["coder", "shell"]
    assert agents.by_capability("code", "writing") == (SHELL,)
    assert agents.by_capability("cooking") == ()


@pytest.mark.parametrize("kind", [AgentType.ANTHROPIC_CLAUDE, "anthropic_claude", "ANTHROPIC_CLAUDE", "anthropic"])
def test_row_c4_agents_are_found_by_their_type_or_provider(agents: AgentRegistry, kind: AgentType | str) -> None:
    assert agents.by_type(kind) == (CODER,)


def test_row_c4_a_provider_has_one_name_however_it_is_written(agents: AgentRegistry) -> None:
    assert agents.by_type(AgentType.OPENAI_GPT) == (WRITER,)
    assert agents.by_type("groq") == ()
    assert [provider_of(name) for name in ("openai_gpt", "OpenAI:gpt-5", AgentType.LOCAL)] == [
        "openai",
        "openai",
        "ollama",
    ]


def test_row_c4_the_first_agent_that_can_and_may_is_recommended(agents: AgentRegistry) -> None:
    assert agents.recommend() is WRITER
    assert agents.recommend(["code"]) is CODER
    assert agents.recommend(["code", "writing"]) is SHELL


def test_row_c4_where_nobody_can_the_error_says_what_each_lacks(agents: AgentRegistry) -> None:
    agents.disable("shell")
    agents.disable("coder")
    with pytest.raises(AgentUnavailable) as caught:
        agents.recommend(["code", "writing"])
    assert caught.value.message == (
        "no agent with 'code', 'writing': 'writer' lacks 'code'; 'coder' is disabled and lacks 'writing'; "
        "'shell' is disabled"
    )
    agents.disable("writer")
    with pytest.raises(AgentUnavailable, match="no agent that is enabled: 'writer' is disabled; 'coder' is"):
        agents.recommend()
    with pytest.raises(AgentUnavailable, match="there is none: write one"):
        AgentRegistry().recommend(["code"])
