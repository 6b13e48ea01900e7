"""Projects of the tests: commands that note when they run, and a way to leave one behind as a dead process does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from penstock.cli.run import Staff
from penstock.config import Settings
from penstock.config.projects import JOURNAL, read_project
from penstock.config.settings import StoreSettings
from penstock.store.journal import Journal
from penstock.tasks.engines import RunStatus
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.flow import PROJECT

WAIT_S = 20.0
# Each task notes its name in the file `ran`; `slow` waits until there is a file `go`, `bad` fails until there is one.
PROJECT_YAML = """\
name: site
agents:
  - {name: quick, mode: cli, effects: false, command: [sh, quick.sh]}
  - {name: slow, mode: cli, effects: false, command: [sh, slow.sh]}
  - {name: bad, mode: cli, command: [sh, bad.sh]}
defaults: {agent: quick}
tasks:
  - {id: plan, description: Plan it.}
  - {id: write, description: Write it., agent: AGENT, depends_on: [plan]}
  - {id: check, description: Check it., depends_on: [write]}
"""
_WAITS = "n=0; until [ -e go -o $n -gt 600 ]; do sleep 0.05; n=$((n+1)); done"
_SAYS = """echo '{"status": "success", "output": "done so"}'\n"""
SCRIPTS = {
    "quick.sh": f"echo quick >> ran; {_SAYS}",
    "slow.sh": f"echo slow >> ran; echo $$ > pid; {_WAITS}; {_SAYS}",
    "bad.sh": f"echo bad >> ran; test -e go || exit 1; {_SAYS}",
}


def written(folder: Path, agent: str = "quick", *, name: str = "project.yaml") -> Path:
    """A project file whose task `write` is done by an agent, with the commands beside it."""
    for script, text in SCRIPTS.items():
        (folder / script).write_text(text)
    (folder / name).write_text(PROJECT_YAML.replace("AGENT", agent))
    return folder / name


def ran(folder: Path) -> list[str]:
    """Which commands have run."""
    file = folder / "ran"
    return file.read_text().split() if file.exists() else []


def seen(path: Path, seconds: float = WAIT_S) -> str:
    """What a file says once there is one."""
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.01)
    return path.read_text().strip()


def left_behind(folder: Path, run: str | None = None) -> None:
    """Run the project in a folder until its slow task runs, and leave it; the run has its name, or another one."""
    settings = Settings(store=StoreSettings(dir=str(folder / ".penstock")))

    async def work() -> None:
        spec, agents = read_project(str(folder / "project.yaml"), {}, settings=settings)
        staff = Staff.of(settings, agents, as_json=True, file=str(folder / "project.yaml"))
        async with staff.engine() as engine:
            await engine.start(run or spec.name, PROJECT, spec.payload())
            await asyncio.to_thread(seen, folder / "pid")

    asyncio.run(work())


def stands(folder: Path, run: str = "site") -> RunStatus:
    """How a run stands in the journal of a folder."""

    async def look() -> RunStatus:
        async with LocalEngine(Journal(folder / ".penstock" / JOURNAL)) as engine:
            return await engine.status(run)

    return asyncio.run(look())
