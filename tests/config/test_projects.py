"""Project files: what is read, what runs of it, and for every mistake the line, the key and what to write instead."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from penstock.config import Catalog, Settings, load
from penstock.config.projects import make_tasks, open_engine, project_schema, read_project
from penstock.errors import ConfigError, LimitReached, StoreFailed
from penstock.events import Used
from penstock.llms import LLMS
from penstock.run import Principal, execute
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Budget, Retry
from penstock.tasks.executor import TaskRequest
from penstock.tasks.project import ProjectSpec
from penstock.tasks.task import AgentTask
from penstock.testing import Heard, ScriptedLlm

EXAMPLE = Path(__file__).parents[2] / "examples" / "project.yaml"
GREET = AgentTask(id="t", description="Say hello.")
CANARY = "k-canary-0123456789"
FULL = """
name: shop-1.0
goal: Open the shop.
agents:
  - {name: writer, provider: openai, model: m, api_key: "${KEY}", capabilities: [writing]}
  - {name: build, mode: cli, command: [make], cwd: work}
defaults: {agent: writer, review: build, timeout_s: 60, retry: {attempts: 2}, budget: {tokens: 100}}
limits: {concurrent: 3, agents: {writer: 2}, providers: {openai: 4}, budget: {usd: 1.5}}
tasks:
  - {id: a, description: "Begin, for $${5}."}
  - id: b
    description: Go on.
    title: The middle
    deliverables: [a text]
    success_criteria: [it is short]
    depends_on: [a]
    agent: build
    capabilities: []
    priority: 2
    inputs: {n: 1, since: 2026-01-01, deep: {list: [1.5, true, null]}}
    review: writer
    rework: 3
    timeout_s: 5
"""


def read(folder: Path, text: str, config: str = "", env: Mapping[str, str] | None = None) -> Any:
    (folder / "project.yaml").write_text(text, "utf-8")
    (folder / "penstock.yaml").write_text(config, "utf-8")
    variables = {"KEY": CANARY} if env is None else env
    settings = load(str(folder / "penstock.yaml"), variables)
    return read_project(str(folder / "project.yaml"), variables, settings=settings)


def test_every_key_of_a_project_file_is_read(tmp_path: Path) -> None:
    spec, (writer, build) = read(tmp_path, FULL)
    assert (spec.name, spec.goal) == ("shop-1.0", "Open the shop.")
    assert spec.defaults.bounds.retry == Retry(attempts=2)
    assert (spec.defaults.agent, spec.defaults.review, spec.defaults.budget) == ("writer", "build", Budget(tokens=100))
    assert spec.limits.model_dump() == {
        "concurrent": 3,
        "agents": {"writer": 2},
        "providers": {"openai": 4},
        "budget": {"tokens": None, "usd": Decimal("1.5")},
    }
    first, second = spec.tasks
    assert first.description == "Begin, for ${5}."
    assert second.inputs == {"n": 1, "since": "2026-01-01", "deep": {"list": [1.5, True, None]}}
    assert second.model_dump(include={"depends_on", "priority", "rework", "timeout_s", "review"}) == {
        "depends_on": ("a",),
        "priority": 2.0,
        "rework": 3,
        "timeout_s": 5.0,
        "review": "writer",
    }
    assert writer.api_key.get_secret_value() == CANARY
    assert build.cwd == str(tmp_path / "work")


def test_row_c10_the_project_that_is_stored_has_no_key(tmp_path: Path) -> None:
    spec, agents = read(tmp_path, FULL)
    assert CANARY not in spec.model_dump_json()
    assert CANARY not in repr((spec, agents))


def test_the_schema_of_a_project_file_accepts_it_and_refuses_unknown_keys() -> None:
    published = jsonschema.Draft202012Validator(project_schema())
    for text in (FULL.replace("2026-01-01", "'2026-01-01'"), EXAMPLE.read_text("utf-8")):
        found = yaml.safe_load(text)
        published.validate(found)
        assert not published.is_valid({**found, "task": []})
        assert not published.is_valid({**found, "agents": [{"name": "a", "modell": "x"}]})


# Each row: the project, the line, the key, and words that the message must hold.
HEAD = "name: p\nagents: [{name: w, provider: demo, capabilities: [writing]}]\n"
TASK = f"{HEAD}tasks:\n  - id: a\n    description: Do it.\n    "
NEEDS = "description: x, depends_on"
WRONG: dict[str, tuple[str, int | None, str, str]] = {
    "empty": ("", None, "name", "required"),
    "a list": ("- a", 1, "", "expected a mapping"),
    "no tasks": (HEAD, 1, "tasks", "required"),
    "an empty list of tasks": (f"{HEAD}tasks: []", 3, "tasks", "at least one task"),
    "name with a space": ("name: a b\ntasks: []", 1, "name", "letters, digits, dots"),
    "unknown section": (f"{HEAD}taks: []", 3, "taks", "did you mean 'tasks'"),
    "section of the other file": (f"{HEAD}models: []\ntasks: []", 3, "models", "known here are agents, defaults, goal"),
    "unknown key of a task": (f"{TASK}depend_on: []", 6, "tasks[0].depend_on", "did you mean 'depends_on'"),
    "unknown key of a budget": (f"{TASK}budget: {{euro: 1}}", 6, "tasks[0].budget.euro", "known here are tokens, usd"),
    "unknown key of an agent": ("name: p\nagents: [{name: w, modell: x}]", 2, "agents[0].modell", "'model'"),
    "the first of two mistakes": (f"{TASK}rework: x\n    priority: y", 6, "tasks[0].rework", "whole number, got text"),
    "an agent before a task": ("name: p\nagents: [{name: 1}]\ntasks: [{id: 2}]", 2, "agents[0].name", "text, got a"),
    "a task before an agent": ("name: p\ntasks: [{id: 2}]\nagents: [{name: 1}]", 2, "tasks[0].id", "text, got a"),
    "no description": (f"{HEAD}tasks: [{{id: a}}]", 3, "tasks[0].description", "required"),
    "text as a list": (f"{TASK}deliverables: a text", 6, "tasks[0].deliverables", "expected a list, got text"),
    "number in quotes": (f"{TASK}rework: '2'", 6, "tasks[0].rework", "whole number, got text"),
    "true as a number": (f"{TASK}timeout_s: true", 6, "tasks[0].timeout_s", "a number, got true or false"),
    "nothing": (f"{TASK}title:", 6, "tasks[0].title", "got nothing"),
    "no time": (f"{TASK}timeout_s: 0", 6, "tasks[0].timeout_s", "more than 0"),
    "too much rework": (f"{TASK}rework: 11", 6, "tasks[0].rework", "at most 10, not 11"),
    "no number": (f"{TASK}inputs: {{x: .nan}}", 6, "tasks[0].inputs.x", "finite number"),
    "endless priority": (f"{TASK}priority: .inf", 6, "tasks[0].priority", "finite number"),
    "a huge number": (f"{TASK}inputs: {{x: [{10**30}]}}", 6, "tasks[0].inputs.x[0]", "put it in quotes"),
    "half a letter": (f'{TASK}title: "\\ud800"', 6, "tasks[0].title", "not text"),
    "too deep": (f"{TASK}inputs: {{x: {'[' * 210}{']' * 210}}}", 1, "", "nested too deeply"),
    "a task twice": (f"{TASK}\n  - {{id: a, description: x}}", 7, "tasks[1].id", "'a' stands twice, on lines 4 and 7"),
    "unknown dependency": (
        f"{TASK}depends_on: [begni]\n  - {{id: begin, description: x}}",
        6,
        "tasks[0].depends_on[0]",
        "needs 'begni', which is no task: did you mean 'begin'",
    ),
    "a need of itself": (f"{TASK}depends_on: [a]", 6, "tasks[0].depends_on[0]", "a -> a "),
    "a circle": (
        f"{HEAD}tasks:\n  - {{id: z, {NEEDS}: [b]}}\n  - {{id: a, {NEEDS}: [b]}}\n  - {{id: b, {NEEDS}: [a]}}",
        5,
        "tasks[1].depends_on[0]",
        "a -> b -> a (each needs the next)",
    ),
    "unknown agent": (f"{TASK}agent: v", 6, "tasks[0].agent", "no agent 'v': known are 'off', 'team', 'w'"),
    "agent misspelt": (f"{TASK}agent: taem", 6, "tasks[0].agent", "did you mean 'team'"),
    "disabled agent": (f"{TASK}agent: 'off'", 6, "tasks[0].agent", "the agent 'off' is disabled"),
    "disabled member": (f"{TASK}agent: team", 6, "tasks[0].agent", "the agent 'off' is disabled"),
    "incapable agent": (
        f"{TASK}agent: w\n    capabilities: [writing, law]",
        7,
        "tasks[0].capabilities[1]",
        "'w' lacks 'law', which the task 'a' asks for: it has 'writing'",
    ),
    "unknown capability": (f"{TASK}capabilities: [writin]", 6, "tasks[0].capabilities[0]", "did you mean 'writing'"),
    "no agent has both": (
        f"{TASK}capabilities: [writing, checks]",
        6,
        "tasks[0].capabilities",
        "no agent with 'writing', 'checks'",
    ),
    "unknown reviewer": (f"{TASK}review: v", 6, "tasks[0].review", "no agent 'v'"),
    "unknown default": (f"{TASK}\ndefaults: {{agent: v}}", 7, "defaults.agent", "no agent 'v'"),
    "disabled default": (f"{TASK}\ndefaults: {{review: 'off'}}", 7, "defaults.review", "is disabled"),
    "limit of nobody": (f"{TASK}\nlimits: {{agents: {{ww: 1}}}}", 7, "limits.agents.ww", "did you mean 'w'"),
    "limit of no provider": (f"{TASK}\nlimits: {{providers: {{opnai: 1}}}}", 7, "limits.providers.opnai", "'openai'"),
    "limit of nothing": (f"{TASK}\nlimits: {{agents: {{w: 0}}}}", 7, "limits.agents.w", "at least 1, not 0"),
    "unknown provider": ("name: p\nagents: [{name: w, provider: x}]", 2, "agents[0].provider", "no provider 'x'"),
    "unknown model": (
        "name: p\nagents: [{name: w, model: fats}]\ntasks: [{id: a, description: x}]",
        2,
        "agents[0].model",
        "did you mean 'fast'",
    ),
    "a variable in a task": (f"{TASK}title: ${{KEY}}", 6, "tasks[0].title", "'agents' only, for this is stored"),
    "a variable that is not set": (f"{TASK}title: ${{NOPE}}", 6, "tasks[0].title", "write $${ for"),
    "a shell's variable": (f"{TASK}title: ${{A:-b}}", 6, "tasks[0].title", "write $${ for"),
    "a variable in the goal": ("goal: ${KEY}", 1, "goal", "'agents' only"),
    "an agent's variable": ('agents: [{name: "${NOPE}"}]', 1, "agents[0].name", "'NOPE' is not set"),
    "not YAML": ("name: [", 1, "", "not valid YAML"),
}
STAFF = """
models: [{name: fast, llm: demo}]
agents:
  - {name: "off", provider: demo, enabled: false, capabilities: [law]}
  - {name: team, mode: hybrid, agents: [w2, "off"], capabilities: [checks]}
  - {name: w2, provider: demo, capabilities: [writing]}
"""


@pytest.mark.parametrize(("text", "line", "key", "words"), WRONG.values(), ids=WRONG)
def test_case_27_a_wrong_project_is_refused_with_line_and_key(
    tmp_path: Path, text: str, line: int | None, key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, STAFF)
    error = caught.value
    assert error.file == str(tmp_path / "project.yaml")
    assert (error.line, error.key) == (line, key)
    assert words in error.problem
    assert CANARY not in str(error)


def test_a_project_without_agents_is_told_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write one, such as") as caught:
        read(tmp_path, "name: p\ntasks: [{id: a, description: x}]")
    assert caught.value.key == "tasks[0]"


def test_tasks_that_name_nobody_go_to_the_agent_of_the_defaults(tmp_path: Path) -> None:
    text = "name: p\ntasks: [{id: a, description: x}]\nagents: [{name: t, mode: hybrid, agents: [w2, 'off']}]"
    with pytest.raises(ConfigError, match="'off' is disabled"):
        read(tmp_path, text, STAFF)
    spec, _ = read(tmp_path, f"{text}\ndefaults: {{agent: w2}}", STAFF)
    assert spec.defaults.agent == "w2"


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_project("nowhere.yaml", {})


def test_a_chain_of_many_tasks_is_read_without_recursion(tmp_path: Path) -> None:
    lines = [f"  - {{id: t{n}, description: x{f', depends_on: [t{n - 1}]' if n else ''}}}" for n in range(1000)]
    spec, _ = read(tmp_path, HEAD + "tasks:\n" + "\n".join(lines))
    assert len(spec.tasks) == 1000


class Loud(ScriptedLlm):
    """An LLM of a provider of one's own."""

    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        self.made.append(options)
        super().__init__(f"I am {options['model']}.", model=options["model"])


@pytest.fixture
def loud() -> Iterator[None]:
    Loud.made.clear()
    LLMS.register("loud", Loud)
    yield
    LLMS.unregister("loud")


def done(settings: Settings, agents: tuple[AgentConfig, ...], agent: str, env: Mapping[str, str]) -> tuple[Any, Heard]:
    executor = make_tasks(settings, Catalog(settings, env), agents, env=env)
    heard = Heard()
    task = AgentTask(id="t", description='Say "done"', agent=agent)
    return asyncio.run(execute(executor, TaskRequest(task), heard)), heard


def test_agents_of_the_project_file_win(tmp_path: Path) -> None:
    config = "agents: [{name: w, provider: demo}, {name: v, provider: demo}]"
    (tmp_path / "penstock.yaml").write_text(config, "utf-8")
    settings = load(str(tmp_path / "penstock.yaml"), {})
    own = AgentConfig(name="w", provider="demo", description="mine")
    registry = make_tasks(settings, Catalog(settings, {}), [own]).agents
    assert [agent.name for agent in registry.list()] == ["w", "v"]
    assert registry.get("w").description == "mine"


def test_a_projects_agents_may_consist_of_configured_ones(tmp_path: Path) -> None:
    text = (
        "name: p\nagents: [{name: both, mode: hybrid, agents: [w, v]}]\ntasks: [{id: a, description: x, agent: both}]"
    )
    _, agents = read(tmp_path, text, "agents: [{name: w, provider: demo}, {name: v, provider: demo}]")
    result, _ = done(load(str(tmp_path / "penstock.yaml"), {}), agents, "both", {})
    assert result.ok


@pytest.mark.usefixtures("loud")
def test_an_agent_with_a_provider_has_a_model_of_its_own(tmp_path: Path) -> None:
    text = (
        "name: p\nagents: [{name: w, provider: loud, model: m1, api_key: '${KEY}'}]\ntasks: [{id: a, description: x}]"
    )
    _, agents = read(tmp_path, text, "models: [{name: fast, llm: demo}]")
    settings = load(str(tmp_path / "penstock.yaml"), {})
    result, heard = done(settings, agents, "w", {})
    assert result.output == "I am m1."
    assert Loud.made[-1] == {"model": "m1", "api_key": CANARY}
    assert [event.provider for event in heard.events if isinstance(event, Used)] == ["scripted"]


def test_an_agent_with_a_configured_model_has_all_that_is_around_it(tmp_path: Path) -> None:
    config = "models: [{name: fast, llm: demo, budget: {tokens: 1}}]\nagents: [{name: w, model: fast}]"
    (tmp_path / "penstock.yaml").write_text(config, "utf-8")
    settings = load(str(tmp_path / "penstock.yaml"), {})
    executor = make_tasks(settings, Catalog(settings, {}))
    first, second = (asyncio.run(executor.execute(GREET, "w")) for _ in range(2))
    assert first.ok
    assert second.error is not None
    assert second.error.type == "LimitReached"
    assert executor.provider(executor.agents.get("w")) == "demo"


def test_the_pace_of_the_demo_model_is_kept() -> None:
    quick = AgentConfig(name="quick", provider="demo")
    slow = AgentConfig(name="slow", provider="demo", params={"pace_s": 0.005})
    times = {agent.name: done(Settings(), (agent,), agent.name, {})[0].duration for agent in (quick, slow)}
    assert times["slow"] >= 0.1
    assert times["quick"] < times["slow"]


@pytest.mark.usefixtures("loud")
def test_what_is_recorded_answers_for_agents_of_any_provider(tmp_path: Path) -> None:
    settings = Settings.model_validate({"recordings": {"record": str(tmp_path / "tape")}})
    agent = AgentConfig(name="w", provider="loud", model="m1")
    first, _ = done(settings, (agent,), "w", {})
    assert len(Loud.made) == 1
    replay = Settings.model_validate({"recordings": {"replay": str(tmp_path / "tape")}})
    again, _ = done(replay, (agent,), "w", {})
    assert again.output == first.output == "I am m1."
    assert len(Loud.made) == 1


def test_a_tokens_budget_counts_what_its_projects_ask_of_agents_own_models(tmp_path: Path) -> None:
    token = "{name: ci, value: pk-0123456789, budget: {tokens: 1}}"
    text = f"auth: {{tokens: [{token}]}}\nmodels: [{{name: fast, llm: 'ollama:m'}}]"
    (tmp_path / "penstock.yaml").write_text(text, "utf-8")
    settings = load(str(tmp_path / "penstock.yaml"), {})
    executor = make_tasks(settings, Catalog(settings, {}), [AgentConfig(name="w", provider="demo")])
    request = TaskRequest(GREET, "w")
    asyncio.run(execute(executor, request, principal=Principal("ci")))
    with pytest.raises(LimitReached):
        asyncio.run(execute(executor, request, principal=Principal("ci")))


def test_the_example_runs_offline_with_the_demo_model(tmp_path: Path) -> None:
    spec, agents = read_project(str(EXAMPLE), {})
    quick = [agent.model_copy(update={"params": {}}) for agent in agents]
    settings = Settings.model_validate({"store": {"dir": str(tmp_path / "deep" / "store")}})
    executor = make_tasks(settings, Catalog(settings, {}), quick, env={})

    async def run() -> Any:
        async with open_engine(settings, executor) as engine:
            await engine.start("release", "project", spec.model_dump(mode="json"))
            return await engine.wait("release")

    status = asyncio.run(run())
    assert status.state == "succeeded", status.value
    assert len(status.steps) == len(spec.tasks) == 12
    assert "finds your notes" in status.steps["headline"].value["output"]
    assert (tmp_path / "deep" / "store" / "projects.sqlite").is_file()
    assert stat.S_IMODE((tmp_path / "deep" / "store").stat().st_mode) == 0o700


def test_the_example_has_something_to_watch() -> None:
    spec, _ = read_project(str(EXAMPLE), {})
    assert isinstance(spec, ProjectSpec)
    starts = [task for task in spec.tasks if not task.depends_on]
    assert len(starts) >= 3
    assert any(task.review for task in spec.tasks)
    assert max(len(task.depends_on) for task in spec.tasks) >= 4


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    settings = Settings.model_validate({"store": {"dir": str(tmp_path / "file" / "store")}})
    with pytest.raises(StoreFailed, match=r"set store\.dir"):
        open_engine(settings, make_tasks(settings, Catalog(settings, {}), env={}))
