"""Agents in the configuration: what is written is what the registry gets, and every mistake is placed and explained."""

from __future__ import annotations

import traceback
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from penstock.config import Catalog, load, schema
from penstock.config.agents import AgentSettings
from penstock.errors import ConfigError
from penstock.llms import LLMS
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Budget, Retry
from penstock.testing import ScriptedLlm

CANARY = "k-canary-0123456789"
ENV = {"KEY": CANARY, "SECONDS": "5", "ON": "true", "HOT": "0.7"}
FULL = """
models: [{name: fast, llm: demo}]
agents:
  - name: writer
    description: Writes.
    capabilities: [writing, french]
    enabled: ${ON}
    concurrent: ${SECONDS}
    effects: false
    timeout_s: ${SECONDS}
    retry: {attempts: 2, base_s: 0.1, max_s: 1}
    budget: {tokens: 1000, usd: 0.1}
    provider: openai
    model: gpt-5-mini
    instructions: Be short.
    api_key: ${KEY}
    base_url: http://127.0.0.1:1/v1
    temperature: ${HOT}
    max_tokens: 100
    params: {seed: 1}
  - {name: editor, model: fast}
  - {name: ana, mode: interactive}
  - {name: build, mode: cli, command: [python, "${KEY}"], env: [HOME], cwd: work, max_output_kb: 10}
  - {name: team, mode: hybrid, strategy: review, agents: [writer, editor], rounds: 2}
"""


def read(folder: Path, text: str) -> tuple[AgentSettings, ...]:
    path = folder / "penstock.yaml"
    path.write_text(text, "utf-8")
    return load(str(path), ENV).agents


def test_every_key_of_an_agent_reaches_the_registry(tmp_path: Path) -> None:
    writer, editor, ana, build, team = (one.config for one in read(tmp_path, FULL))
    assert writer.model_dump(exclude={"api_key", "budget", "retry"}, exclude_defaults=True) == {
        "name": "writer",
        "description": "Writes.",
        "capabilities": ("writing", "french"),
        "concurrent": 5,
        "effects": False,
        "timeout_s": 5.0,
        "provider": "openai",
        "model": "gpt-5-mini",
        "instructions": "Be short.",
        "base_url": "http://127.0.0.1:1/v1",
        "temperature": 0.7,
        "max_tokens": 100,
        "params": {"seed": 1},
    }
    assert writer.retry == Retry(attempts=2, base_s=0.1, max_s=1)
    assert writer.budget == Budget(tokens=1000, usd=Decimal("0.1"))
    assert writer.api_key is not None
    assert writer.api_key.get_secret_value() == CANARY
    assert (editor.provider, editor.model, ana.mode) == ("", "fast", "interactive")
    assert (build.command, build.env, build.max_output_kb) == (("python", CANARY), ("HOME",), 10)
    assert build.cwd == str(tmp_path / "work")
    assert (team.agents, team.strategy, team.rounds) == (("writer", "editor"), "review", 2)


def test_the_settings_have_the_fields_of_an_agent_with_their_defaults() -> None:
    own, known = AgentSettings.model_fields, AgentConfig.model_fields
    assert {*own} == {*known}
    for name, field in own.items():
        value, usual = (one.get_default(call_default_factory=True, validated_data={}) for one in (field, known[name]))
        assert value == usual or (value is None and usual == ""), name


def test_a_command_runs_in_the_folder_of_its_file(tmp_path: Path) -> None:
    (build,) = read(tmp_path, "agents: [{name: b, mode: cli, command: [x]}]")
    assert build.config.cwd == str(tmp_path)


def test_a_key_without_a_value_says_nothing(tmp_path: Path) -> None:
    (agent,) = read(tmp_path, "agents: [{name: a, provider: demo, model: null, description: null, effects: null}]")
    assert agent.config == AgentConfig(name="a", provider="demo")


def test_an_agent_whose_key_is_not_there_is_told_at_start(tmp_path: Path) -> None:
    path = tmp_path / "penstock.yaml"
    rows = ["provider: openai_gpt, model: m", "provider: ollama, model: m", "provider: demo", "mode: interactive"]
    path.write_text("agents:\n" + "\n".join(f"  - {{name: a{n}, {row}}}" for n, row in enumerate(rows)), "utf-8")
    settings = load(str(path), {})
    assert Catalog(settings, {}).notices == ["the agent 'a0' has no api_key, and OPENAI_API_KEY is not set"]
    assert Catalog(settings, {"OPENAI_API_KEY": "k"}).notices == []


# Each row: the agents, the line, the key within `agents`, and words that the message must hold.
ONE = "agents:\n  - name: a\n    "
BOTH = "mode: hybrid, agents"
MODELS = "models: [{name: fast, llm: demo}]\n"
WRONG: dict[str, tuple[str, int | None, str, str]] = {
    "unknown key": (f"{ONE}modell: x", 3, "[0].modell", "did you mean 'model'"),
    "unknown mode": (f"{ONE}mode: robot", 3, "[0].mode", "'hybrid', not 'robot'"),
    "no name": ("agents: [{model: x}]", 1, "[0].name", "required"),
    "number as text": (f"{ONE}provider: demo\n    concurrent: '2'", 4, "[0].concurrent", "whole number, got text"),
    "flag as number": (f"{ONE}provider: demo\n    timeout_s: true", 4, "[0].timeout_s", "a number, got true"),
    "too hot": (f"{ONE}provider: demo\n    temperature: 3", 4, "[0].temperature", "at most 2"),
    "an empty budget": (f"{ONE}provider: demo\n    budget: {{}}", 4, "[0].budget", "tokens, usd, or both"),
    "a name twice": (f"{ONE}provider: demo\n  - {{name: a, provider: demo}}", 4, "[1].name", "lines 2 and 4"),
    "unknown provider": (f"{ONE}provider: opnai", 3, "[0].provider", "did you mean 'openai'"),
    "provider like no other": (f"{ONE}provider: zzz", 3, "[0].provider", "known are 'anthropic'"),
    "provider without model": (f"{ONE}provider: openai_gpt", 2, "[0].model", "write one of its models"),
    "no address": (f"{ONE}provider: azure\n    model: m", 2, "[0].base_url", "AZURE_OPENAI_ENDPOINT"),
    "a key without provider": (
        f"models: [{{name: m, llm: demo}}]\n{ONE}model: m\n    api_key: x",
        5,
        "[0].api_key",
        "models have",
    ),
    "unknown model": (
        f"{MODELS}{ONE}model: fats",
        4,
        "[0].model",
        "the configuration serves 'fast': did you mean 'fast'",
    ),
    "no model at all": ("agents:\n  - name: a", 2, "[0]", "write model (one that is configured), or provider"),
    "the demo model by another name": (f"{ONE}provider: demo\n    model: x", 4, "[0].model", "does not take 'model'"),
    "a field the demo model lacks": (f"{ONE}provider: demo\n    params: {{seed: 1}}", 4, "[0].params", "take 'seed'"),
    "no pace": (f"{ONE}provider: demo\n    params: {{pace_s: 11}}", 4, "[0].params", "seconds from 0 to 10"),
    "a request's own field": (f"{ONE}provider: openai\n    params: {{stream: true}}", 4, "[0].params", "'stream'"),
    "no command": (f"{ONE}mode: cli", 3, "[0].mode", "write command, a list such as"),
    "an empty command": (f"{ONE}mode: cli\n    command: []", 3, "[0].mode", "write command"),
    "a command of one text": (f"{ONE}mode: cli\n    command: ls", 4, "[0].command", "expected a list, got text"),
    "field of another mode": (f"{ONE}command: [x]\n    model: m", 3, "[0].command", "for agents of mode 'cli'"),
    "model of a person": (f"{ONE}mode: interactive\n    model: m", 4, "[0].model", "for agents of mode 'api'"),
    "a hybrid of one": (f"{ONE}mode: hybrid\n    agents: [b]", 3, "[0].mode", "at least two"),
    "a review of three": (
        f"{ONE}mode: hybrid\n    strategy: review\n    agents: [b, c, d]",
        4,
        "[0].strategy",
        "for review write two agents",
    ),
    "no such member": (
        f"{ONE}mode: hybrid\n    agents: [writer, wirter]\n  - {{name: writer, provider: demo}}",
        4,
        "[0].agents[1]",
        "no agent 'wirter': did you mean 'writer'",
    ),
    "a member like itself": (
        f"agents:\n  - {{name: team, {BOTH}: [w, tea]}}\n  - {{name: w, provider: demo}}",
        2,
        "[0].agents[1]",
        "no agent 'tea': known are 'w'",
    ),
    "members in a circle": (
        f"{ONE}provider: demo\n  - {{name: b, {BOTH}: [a, c]}}\n  - {{name: c, {BOTH}: [a, b]}}",
        4,
        "[1].agents",
        "b -> c -> b",
    ),
    "a member of itself": ("agents: [{name: a, mode: hybrid, agents: [a, a]}]", 1, "[0].agents", "a -> a"),
}


@pytest.mark.parametrize(("text", "line", "key", "words"), WRONG.values(), ids=WRONG)
def test_case_27_a_wrong_agent_is_refused_with_line_and_key(
    tmp_path: Path, text: str, line: int | None, key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    error = caught.value
    assert (error.line, error.key) == (line, f"agents{key}")
    assert words in error.problem


class Plain(ScriptedLlm):
    """An LLM of one's own that takes a model and nothing else."""

    def __init__(self, *, model: str) -> None:
        super().__init__("yes", model=model)


@pytest.mark.parametrize(
    ("provider", "line", "key", "words"),
    [("plain\n    base_url: http://h/v1", 4, "base_url", "take 'base_url'"), ("absent", 3, "provider", "be loaded")],
)
def test_a_provider_of_ones_own_that_cannot_be_made_is_refused(
    tmp_path: Path, provider: str, line: int, key: str, words: str
) -> None:
    LLMS.register("plain", Plain)
    LLMS.register("absent", "no.such.module:Llm")
    try:
        assert read(tmp_path, f"{ONE}model: m\n    provider: plain")[0].config.provider == "plain"
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, f"{ONE}provider: {provider}\n    model: m")
    finally:
        LLMS.unregister("plain")
        LLMS.unregister("absent")
    error = caught.value
    assert (error.line, error.key) == (line, f"agents[0].{key}")
    assert words in error.problem


LEAKY = [
    f"{ONE}provider: openai\n    model: m\n    api_key: {CANARY}ü",
    f"{ONE}provider: ${{KEY}}x\n    api_key: [{CANARY}]",
    f"{ONE}provider: openai\n    api_key: ${{KEY}}",
    f"{ONE}model: m\n    api_key: ${{KEY}}",
    f"{ONE}apikey: {CANARY}",
    f"{ONE}temperature: ${{KEY}}",
    f"{ONE}mode: cli\n    api_key: ${{KEY}}",
]


@pytest.mark.parametrize("text", LEAKY)
def test_case_25_no_message_shows_the_key_of_an_agent(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(vars(caught.value))
    assert not any(CANARY[at : at + 8] in shown for at in range(len(CANARY) - 7))


def test_case_25_agents_do_not_show_their_keys(tmp_path: Path) -> None:
    writer, *_ = read(tmp_path, FULL)
    shown = f"{writer!r} {writer.model_dump()} {writer.config!r} {writer.config.model_dump_json()}"
    assert CANARY not in shown


def test_the_schema_knows_agents() -> None:
    published = jsonschema.Draft202012Validator(schema())
    found: dict[str, Any] = yaml.safe_load(
        FULL.replace("${ON}", "true").replace("${SECONDS}", "5").replace("${HOT}", "1")
    )
    published.validate(found)
    found["agents"][0]["modell"] = "x"
    assert not published.is_valid(found)
