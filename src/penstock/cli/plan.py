"""`penstock plan`: a project for a goal, proposed by a model, shown and saved; nothing of it runs."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from penstock.cli.chat import usual_model
from penstock.cli.check import console
from penstock.config import Catalog, load
from penstock.config.models import DEMO
from penstock.config.projects import project_of
from penstock.errors import UsageError
from penstock.messages import is_array, is_object
from penstock.tasks.agents import AgentConfig
from penstock.tasks.planner import plan as proposed

if TYPE_CHECKING:
    from penstock.tasks.project import ProjectSpec

USUAL = "project.yaml"
ALONE = "assistant"
"""The agent of a plan where the configuration names none."""


def plan(goal: str, *, model: str | None, config: str | None, output: str | None, as_json: bool) -> int:
    """Print a project for a goal and save it to `output`, by default to `project.yaml`; returns the exit code.

    As JSON it is saved only where `output` is given. Raises `UsageError` where there is such a file already.
    """
    target = output if output is not None or as_json else USUAL
    if target is not None and Path(target).exists():
        raise UsageError(f"{target!r} is there already: name another file with -o, or move it away")
    settings = load(config, os.environ)
    catalog = Catalog(settings, os.environ)
    configured = [agent.config for agent in settings.agents]
    with asyncio.Runner() as runner:
        name = catalog.meant(model) if model else runner.run(usual_model(catalog))
        agents = configured or [_alone(catalog, name)]
        spec = runner.run(proposed(goal, catalog.find(name), agents, model=name))
    found = _written(spec, () if configured else agents)
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110)
    project_of(text, target or USUAL, os.environ, settings=settings)
    if target is not None:
        _save(target, text)
    command = shlex.join(["penstock", "run", target or USUAL, *(["--config", config] if config else [])])
    if as_json:
        said = {"project": found, "file": target, "command": command if target else None}
        print(json.dumps(said, ensure_ascii=False))
        return 0
    _show(spec, text)
    print(f"saved as {target}; nothing has run yet. To run it: {command}")
    return 0


def _alone(catalog: Catalog, model: str) -> AgentConfig:
    if not catalog.configured and catalog.served[0].name == DEMO:
        return AgentConfig(name=ALONE, provider=DEMO)
    return AgentConfig(name=ALONE, model=model)


def _written(spec: ProjectSpec, agents: Any) -> dict[str, Any]:
    """The project as its file has it, a model's `${` as the characters they are."""
    found = _escaped(spec.model_dump(mode="json", exclude_defaults=True))
    tasks = found.pop("tasks")
    if agents:
        found["agents"] = [agent.model_dump(mode="json", exclude_defaults=True) for agent in agents]
    return {**found, "tasks": tasks}


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if is_object(value):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if is_array(value) else value


def _save(target: str, text: str) -> None:
    try:
        with Path(target).open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{target!r} cannot be written: {error.strerror or type(error).__name__}") from error


def _show(spec: ProjectSpec, text: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("task", "agent", "after", "what", "checked by", box=None)
    for task in spec.tasks:
        row = (task.id, task.agent or "", ", ".join(task.depends_on), task.title or task.description, task.review or "")
        table.add_row(*(Text(_printable(cell)) for cell in row))
    out = console()
    out.print(Text(_printable(f"{spec.name}: {spec.goal}")))
    out.print(table)
    out.print(Text(f"\n{text}"), soft_wrap=True)


def _printable(text: str) -> str:
    """A model's text on one line, without what steers a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
