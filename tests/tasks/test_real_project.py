"""Projects with real parts: a process that is killed, llama.cpp as the model of twenty tasks."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pydantic import SecretStr

from penstock.store.journal import Journal
from penstock.tasks.agents import AgentConfig
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.orchestrator import ProjectOrchestrator
from penstock.tasks.project import Defaults, ProjectLimits
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.report import report_of, tree
from penstock.tasks.task import AgentTask
from tests.rig.tiny_llm import MODEL, TinyLlm
from tests.tasks.run_project import COUNT, go_on

ROOT = Path(__file__).parents[2]


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def test_row_c8_case_16_a_project_whose_process_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    journal, done = tmp_path / "journal", tmp_path / "done"
    command = [sys.executable, "-m", "tests.tasks.run_project", str(journal), str(done), "0.01"]
    chance = random.Random(16)
    finished: set[str] = set()
    for _ in range(2):
        begun = len(lines(done))
        child = subprocess.Popen(command, cwd=ROOT)
        until = time.monotonic() + 20
        while len(lines(done)) < begun + chance.randint(3, 7) and time.monotonic() < until:
            time.sleep(0.002)
        child.kill()
        assert child.wait() == -9
        finished |= await ended(journal)
        assert 0 < len(finished) < COUNT
    once = Counter(lines(done))
    report = await go_on(journal, done, 0)
    assert report.ok
    assert [result.output for result in report.results] == [f"{result.task} is done" for result in report.results]
    counts = Counter(lines(done))
    assert len(counts) == COUNT
    assert {name for name in finished if counts[name] > once[name]} == set()


async def ended(journal: Path) -> set[str]:
    """The tasks that the journal says have succeeded."""
    async with LocalEngine(Journal(journal)) as engine:
        return {name for name, step in (await engine.status("killed")).steps.items() if step.state == "succeeded"}


async def test_row_c7_llama_cpp_does_a_project_of_twenty_tasks(tiny_llm: TinyLlm, tmp_path: Path) -> None:
    agents = AgentRegistry(
        AgentConfig(
            name=name,
            provider="local",
            model=MODEL,
            base_url=tiny_llm.base_url,
            api_key=SecretStr("none"),
            temperature=0,
            max_tokens=4,
            capabilities=(name,),
        )
        for name in ("planner", "writer", "editor")
    )
    tasks = [AgentTask(id="plan", description="Plan a small book.", capabilities=("planner",))]
    for n in range(1, 10):
        tasks.append(AgentTask(id=f"write-{n}", description=f"Write chapter {n}.", depends_on=("plan",)))
        draft = (f"write-{n}",)
        tasks.append(AgentTask(id=f"edit-{n}", description="Edit it.", depends_on=draft, agent="editor"))
    edited = tuple(f"edit-{n}" for n in range(1, 10))
    tasks.append(AgentTask(id="bind", description="Put it together.", depends_on=edited, agent="editor"))
    async with (
        LocalEngine(Journal(tmp_path / "journal")) as engine,
        ProjectOrchestrator(
            TaskExecutor(agents),
            name="book",
            engine=engine,
            limits=ProjectLimits(concurrent=4, agents={"editor": 1}),
            defaults=Defaults(agent="writer", timeout_s=30),
        ) as project,
    ):
        project.add(*tasks)
        report = await project.run()
        stored = report_of(await engine.status("book"))
    assert len(report.results) == 20
    assert report.ok, report.markdown()
    assert {result.agent for result in report.results} == {"planner", "writer", "editor"}
    assert all(result.output for result in report.results)
    assert all(0 < result.usage.completion <= 4 for result in report.results)
    assert report.usage.prompt > 20
    assert stored.results == report.results
    assert tree(project.spec, report.results).count("success") == 20
