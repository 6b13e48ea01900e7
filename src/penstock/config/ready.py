"""What agents need of this machine before a project runs: their keys, variables, commands, and a terminal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from penstock.config.agents import modelled, service_of
from penstock.config.providers import lacks_key
from penstock.llms.services import SERVICES
from penstock.tasks.agents import AgentConfig
from penstock.tasks.check import staff_of

if TYPE_CHECKING:
    from penstock.config.document import Path as Place
    from penstock.tasks.project import ProjectSpec
    from penstock.tasks.registry import AgentRegistry


class Lack(NamedTuple):
    """What is missing, and the key of the agent that asks for it."""

    key: str
    problem: str


def lacks_of(
    spec: ProjectSpec, agents: AgentRegistry, env: Mapping[str, str], *, keys: bool = True, terminal: bool = True
) -> Iterator[tuple[Place, AgentConfig, Lack]]:
    """What each agent of a project lacks to work, once for each agent, at the first task that it takes part in.

    A command that is a path may be what other commands or people make meanwhile: where there are any, it is not looked
    for. Without a `terminal` nobody can be asked who does or reviews a task.
    """
    asked: dict[str, tuple[Place, AgentConfig]] = {}
    for number, task in enumerate(spec.tasks):
        _, everyone = staff_of(agents, spec.defaults.fill(task))
        for agent in everyone:
            asked.setdefault(agent.name, (("tasks", number), agent))
    makers = sum(agent.mode in ("cli", "interactive") for _, agent in asked.values())
    for place, agent in asked.values():
        lack = None
        if agent.mode == "api" and keys:
            lack = _key(agent, env)
        elif agent.mode == "cli":
            lack = _command(agent, env, alone=makers == 1)
        elif agent.mode == "interactive" and not terminal:
            lack = Lack("mode", "a person is to be asked, and stdin is no terminal: run this in one")
        if lack is not None:
            yield place, agent, lack


def _key(agent: AgentConfig, env: Mapping[str, str]) -> Lack | None:
    variable = lacks_key(modelled(agent), env) if service_of(agent) in SERVICES else ""
    return Lack("api_key", f"{agent.provider} needs a key: set {variable}") if variable else None


def _command(agent: AgentConfig, env: Mapping[str, str], *, alone: bool) -> Lack | None:
    missing = next((name for name in agent.env if name not in env), None)
    if missing is not None:
        return Lack("env", f"the variable {missing!r} is not set: set it")
    name, folder = agent.command[0], Path(agent.cwd or "")
    if os.sep not in name:
        if shutil.which(name, path=env.get("PATH")) is not None:
            return None
        return Lack("command", f"there is no command {name!r} on PATH: install it, or write its path")
    if alone and not folder.is_dir():
        return Lack("cwd", f"there is no folder {str(folder)!r}: make it")
    if alone and not os.access(folder / name, os.X_OK):
        return Lack("command", f"there is no program {str(folder / name)!r} that can be executed: see `ls -l`")
    return None
