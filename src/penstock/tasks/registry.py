"""`AgentRegistry`: the agents that tasks can be given to, by name, capability and type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from penstock.errors import AgentUnavailable, UnknownName, UsageError
from penstock.messages import AgentType
from penstock.tasks.agents import AgentConfig
from penstock.tasks.graph import near


class AgentRegistry:
    """Agents by name, in the order they were registered.

    A task that runs keeps the agent it was given: what is changed here holds for the tasks that start later.
    """

    def __init__(self, agents: Iterable[AgentConfig] = ()) -> None:
        self._agents: dict[str, AgentConfig] = {}
        for agent in agents:
            self.register(agent)

    def __contains__(self, name: object) -> bool:
        return name in self._agents

    def __iter__(self) -> Iterator[AgentConfig]:
        return iter(self.list())

    def __len__(self) -> int:
        return len(self._agents)

    def register(self, agent: AgentConfig, *, replace: bool = False) -> None:
        """Add an agent; raises `UsageError` for a name that is taken, unless `replace` is true."""
        if agent.name in self._agents and not replace:
            raise UsageError(f"the agent {agent.name!r} is registered already: pass replace=True to replace it")
        self._agents[agent.name] = agent

    def unregister(self, name: str) -> AgentConfig:
        """Take an agent out, and return it; raises `UnknownName`."""
        agent = self.get(name)
        del self._agents[name]
        return agent

    def get(self, name: str) -> AgentConfig:
        """The agent of this name; raises `UnknownName`, which says what may have been meant."""
        agent = self._agents.get(name)
        if agent is None:
            raise UnknownName(f"no agent {name!r}: {near(name, self._agents)}")
        return agent

    def list(self) -> tuple[AgentConfig, ...]:
        """All agents, disabled ones included."""
        return (*self._agents.values(),)

    def enable(self, name: str) -> None:
        """Let an agent be given tasks (again); raises `UnknownName`."""
        self._agents[name] = self.get(name).model_copy(update={"enabled": True})

    def disable(self, name: str) -> None:
        """Give an agent no more tasks; those it has go on. Raises `UnknownName`."""
        self._agents[name] = self.get(name).model_copy(update={"enabled": False})

    def by_capability(self, *capabilities: str) -> tuple[AgentConfig, ...]:
        """The agents that have all of these capabilities, disabled ones included."""
        return tuple(agent for agent in self._agents.values() if not lacks(agent, capabilities))

    def by_type(self, kind: AgentType | str) -> tuple[AgentConfig, ...]:
        """The agents of a provider, by its own name or by its `AgentType`, disabled ones included."""
        wanted = provider_of(kind)
        return tuple(
            agent for agent in self._agents.values() if agent.provider and provider_of(agent.provider) == wanted
        )

    def recommend(self, capabilities: Iterable[str] = ()) -> AgentConfig:
        """The first enabled agent that has all of these; raises `AgentUnavailable`, which says what each one lacks."""
        wanted = tuple(capabilities)
        for agent in self._agents.values():
            if agent.enabled and not lacks(agent, wanted):
                return agent
        what = f"with {', '.join(map(repr, wanted))}" if wanted else "that is enabled"
        each = "; ".join(_why_not(agent, wanted) for agent in self._agents.values())
        known = {name for agent in self._agents.values() for name in agent.capabilities}
        strange = next((name for name in wanted if name not in known), None)
        hint = f"; {near(strange, known)}" if strange and known else ""
        each = f"{each}{hint}" if each else "there is none: write one, such as {name: writer, provider: demo}"
        raise AgentUnavailable(f"no agent {what}: {each}")


def lacks(agent: AgentConfig, capabilities: Iterable[str]) -> tuple[str, ...]:
    """Those of the capabilities that an agent does not have."""
    return tuple(name for name in capabilities if name not in agent.capabilities)


def provider_of(kind: AgentType | str) -> str:
    """The provider's own name of an `AgentType`, or of a name such as "openai:gpt-5-mini"."""
    from penstock.llms.lookup import PROVIDERS
    from penstock.llms.services import split

    for known, provider in PROVIDERS.items():
        if kind in (known.value, known.name):
            return provider
    return split(kind)[0].lower()


def _why_not(agent: AgentConfig, wanted: Iterable[str]) -> str:
    missing = ", ".join(map(repr, lacks(agent, wanted)))
    reasons = ([] if agent.enabled else ["is disabled"]) + ([f"lacks {missing}"] if missing else [])
    return f"{agent.name!r} {' and '.join(reasons)}"
