"""What a machine lacks to run a project is said before anything runs and costs money, with file, line and key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from penstock.config import load
from penstock.config.projects import project_of, read_project
from penstock.errors import ConfigError
from penstock.tasks.agents import AgentConfig

PATH = {"PATH": "/usr/bin:/bin"}
TASK = "tasks: [{id: t, description: Do it.}]"


def read(
    folder: Path, agents: str, env: Mapping[str, str] = PATH, *, config: str = "", terminal: bool = True
) -> list[str]:
    """The names of the agents of a project that is accepted."""
    (folder / "penstock.yaml").write_text(config, "utf-8")
    (folder / "project.yaml").write_text(f"name: p\nagents:\n{agents}\n{TASK}\n", "utf-8")
    settings = load(str(folder / "penstock.yaml"), env)
    _, found = read_project(str(folder / "project.yaml"), env, settings=settings, terminal=terminal)
    return [agent.name for agent in found]


# Each row: an agent, the key, and words of the message.
LACKS = {
    "a model of a service": ("model: claude-sonnet-4-5", "model", "set ANTHROPIC_API_KEY"),
    "a model of a service that is named": ("model: 'groq:m'", "model", "set GROQ_API_KEY"),
    "a model that nobody knows": ("model: m", "model", "set OPENAI_API_KEY, or the key of another provider"),
    "a provider without a key": ("provider: openai, model: m", "api_key", "openai needs a key: set OPENAI_API_KEY"),
    "a command": ("mode: cli, command: [nosuchcommand]", "command", "no command 'nosuchcommand' on PATH"),
    "a program": ("mode: cli, command: [./do.py]", "command", "no program"),
    "a folder": ("mode: cli, command: [./do.py], cwd: gone", "cwd", "no folder"),
    "a variable": ("mode: cli, command: [sh], env: [TOKEN]", "env", "the variable 'TOKEN' is not set"),
}
FITS = {
    "the demo model": "model: demo",
    "the demo model by its name": "model: penstock-demo",
    "a provider with a key": "provider: openai, model: m, api_key: k",
    "a provider elsewhere": "provider: openai, model: m, base_url: 'http://127.0.0.1:1/v1'",
    "a provider on this machine": "provider: ollama, model: m",
    "a command": "mode: cli, command: [sh]",
}


@pytest.mark.parametrize(("agent", "key", "words"), LACKS.values(), ids=LACKS)
def test_what_is_lacking_is_placed_and_explained(tmp_path: Path, agent: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"  - {{name: a, {agent}}}")
    assert (caught.value.line, caught.value.key) == (3, f"agents[0].{key}")
    assert words in caught.value.problem


@pytest.mark.parametrize("agent", FITS.values(), ids=FITS)
def test_what_fits_is_accepted(tmp_path: Path, agent: str) -> None:
    assert read(tmp_path, f"  - {{name: a, {agent}}}") == ["a"]


def test_configured_agents_are_not_answered_by_the_demo_model_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"penstock\.yaml:1: agents\[0\]\.model: .*set ANTHROPIC_API_KEY"):
        read(tmp_path, "  []", config="agents: [{name: a, model: claude-sonnet-4-5}]")


def test_a_configured_agent_without_a_key_is_named_where_a_task_needs_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\[0\]: the agent 'a': openai needs a key"):
        read(tmp_path, "  []", config="agents: [{name: a, provider: openai, model: m}]")


def test_one_provider_that_is_there_answers_to_every_name(tmp_path: Path) -> None:
    assert read(tmp_path, "  - {name: a, model: claude-sonnet-4-5}", {**PATH, "OPENAI_API_KEY": "k"}) == ["a"]


def test_agents_that_do_nothing_need_nothing(tmp_path: Path) -> None:
    agents = "  - {name: a, provider: demo}\n  - {name: b, mode: cli, command: [nosuchcommand]}"
    assert read(tmp_path, agents) == ["a", "b"]


def test_a_program_that_another_command_may_make_is_not_looked_for(tmp_path: Path) -> None:
    agents = "  - {name: a, mode: hybrid, agents: [make, made]}\n"
    agents += "  - {name: make, mode: cli, command: [sh]}\n  - {name: made, mode: cli, command: [./made]}"
    assert read(tmp_path, agents) == ["a", "make", "made"]


def test_a_person_is_not_asked_without_a_terminal(tmp_path: Path) -> None:
    read(tmp_path, "  - {name: a, mode: interactive}")
    with pytest.raises(ConfigError, match=r"agents\[0\]\.mode: .*no terminal"):
        read(tmp_path, "  - {name: a, mode: interactive}", terminal=False)


def test_a_plan_may_be_written_on_a_machine_that_lacks_something() -> None:
    agents = "agents: [{name: a, mode: cli, command: [nosuchcommand]}]"
    _, (agent,) = project_of(f"name: p\n{agents}\n{TASK}", "p.yaml", PATH)
    assert isinstance(agent, AgentConfig)


def test_several_problems_of_a_file_are_said_at_once_a_line_each(tmp_path: Path) -> None:
    tasks = "\n".join(f"  - {{id: t{n}, description: x, agent: nobody}}" for n in range(7))
    file = tmp_path / "p.yaml"
    file.write_text(f"name: p\nagents: [{{name: a, provider: demo}}]\ntasks:\n{tasks}", "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_project(str(file), PATH)
    first, *others, last = str(caught.value).splitlines()
    assert (first, len(others)) == (f"{file}:4: tasks[0].agent: no agent 'nobody': known are 'a'", 4)
    assert others[-1].startswith(f"{file}:8: tasks[4].agent: ")
    assert last == "and 2 more"


def test_an_unknown_need_among_many_names_a_few(tmp_path: Path) -> None:
    tasks = "\n".join(f"  - {{id: t{n}, description: x}}" for n in range(1000))
    file = tmp_path / "p.yaml"
    file.write_text(f"name: p\ntasks:\n{tasks}\n  - {{id: z, description: x, depends_on: [elsewhere]}}", "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_project(str(file), PATH)
    assert "more)" in caught.value.problem
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_multiply_are_refused_before_they_fill_the_memory(form: str) -> None:
    levels = [form.replace("<<: [{}]", "k: 1").format("1"), *(form.format(", ".join([f"*a{n}"] * 9)) for n in range(7))]
    text = "\n".join(f"a{n}: &a{n} {level}" for n, level in enumerate(levels))
    with pytest.raises(ConfigError, match="aliases add more than 100,000 values") as caught:
        project_of(text, "p.yaml", {})
    assert caught.value.line is not None


def test_only_what_aliases_add_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.config.document.MOST_COPIES", 3)
    inputs = "inputs: {some: &some [1, 2], more: [3, 4, 5], same: *some}"
    text = f"name: p\nagents: [{{name: a, provider: demo}}]\ntasks: [{{id: t, description: x, {inputs}}}]"
    spec, _ = project_of(text, "p.yaml", {})
    assert spec.tasks[0].inputs["same"] == [1, 2]
    with pytest.raises(ConfigError, match="aliases add more than 3 values"):
        project_of(text.replace("[3, 4, 5]", "*some"), "p.yaml", {})
