"""Every example of README.md, CONTRIBUTING.md and docs/ is executed, and what it shows is what comes out."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Self

import opentelemetry.trace
import pytest
from openai import OpenAI

from penstock.config import load
from penstock.config.projects import read_project
from penstock.llms.services import SERVICES
from penstock.tools import DbExecutorFactory, FunctionExecutorFactory, HttpExecutorFactory
from tests.conftest import require
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands, matches
from tests.rig.serving import Process, running, serve_asgi

SHELL = {"bash", "console", "sh", "shell"}
RUN = {"curl", "echo", "penstock", "printf"}
ELSEWHERE = {
    "cd": "every command runs in the page's own folder",
    "git": "the project is here already",
    "make": "installs an environment; .ci/run calls the targets",
    "pip": "installs; .ci/run does it with the built wheel",
}
DEMO_PORT = 8000
FACTORIES = (FunctionExecutorFactory, HttpExecutorFactory, DbExecutorFactory)
VARIABLES = [name for row in SERVICES.values() for name in (row.key_env, row.base_env) if name]


def no_providers() -> dict[str, str]:
    """Variables under which no provider is configured and the loopback is asked past any proxy."""
    names = {*VARIABLES, "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"}
    return dict.fromkeys(names, "") | {"no_proxy": "127.0.0.1,localhost", "COLUMNS": "200"}


class Reading:
    """A page being followed from top to bottom: what its blocks have defined, written and started so far."""

    def __init__(self, page: Path, folder: Path, demo: Process) -> None:
        self.page, self.folder = page, folder
        self.ports = {DEMO_PORT: demo.port}
        self.variables = no_providers()
        self.module = ModuleType(f"page_{page.stem.lower()}")
        self.code = 0
        self._servers: list[Process] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        sys.modules[self.module.__name__] = self.module
        self._open.callback(sys.modules.pop, self.module.__name__)
        self._runner = self._open.enter_context(asyncio.Runner())
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "penstock").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m penstock "$@"\n')
        (tools / "penstock").chmod(0o755)
        (self.folder / ".curlrc").write_text("silent\nshow-error\nmax-time = 20\n")
        self.variables |= {"PATH": f"{tools}:{os.environ['PATH']}", "CURL_HOME": str(self.folder)}
        self.variables |= {"PYTHONPATH": str(ROOT / "src")}
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:  # all at once, as each takes a moment to drain
            server.popen.terminate()
        for made in vars(self.module).values():  # such as an SDK's client, which keeps its connections
            if isinstance(made, OpenAI):
                made.close()
        self._open.close()

    def follow(self) -> None:
        """Do what every block says."""
        said: str | None = None
        for block in blocks(self.page):
            if block.not_run is not None:
                said = None
                continue
            try:
                if block.language == "text" and said is not None:
                    assert said.rstrip() == block.text.rstrip()
                said = self._do(block)
            except BaseException as error:
                error.add_note(f"in the block at {self.page.name}:{block.line}")
                raise

    def _do(self, block: Block) -> str | None:
        if block.language == "python":
            return self.python(block)
        if block.language == "yaml":
            self.configure(block)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language in SHELL:
            self.type_in(block)
        return None

    def python(self, block: Block) -> str:
        """Execute a block in the page's namespace; what it printed. One that names its file is written there."""
        if named := re.match(r"# (\S+\.py)\n", block.text):
            (self.folder / named[1]).write_text(block.text)
            return ""
        source = "\n" * (block.line - 1) + self._here(block.text)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: CodeType = compile(source, str(self.page), "exec", flags=flags, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            made = eval(code, self.module.__dict__)
            if code.co_flags & inspect.CO_COROUTINE:
                self._runner.run(made)
        return self._there(out.getvalue())

    def configure(self, block: Block) -> None:
        """Load a penstock.yaml, or a project that names its file in a first comment; commands that follow see it."""
        named = re.match(r"# (\S+\.yaml)\n", block.text)
        file = self.folder / (named[1] if named else "penstock.yaml")
        file.write_text(self._here(block.text))
        for name in re.findall(r"\$\{(\w+)\}", block.text):
            self.variables[name] = f"value-of-{name.lower()}"
        if named:
            read_project(str(file), self.variables)
        else:
            load(str(file), self.variables)

    def type_in(self, block: Block) -> None:
        """Run the commands of a block and compare what they print, where the block shows it."""
        for command in commands(block.text):
            said = self._command(self._here(command.line))
            if said is None:
                continue
            if command.output is None:
                assert self.code == 0, f"{command.line}\nended with {self.code}:\n{said}"
            else:
                assert matches(command.output, said), f"{command.line}\nprinted:\n{said}"

    def _command(self, line: str) -> str | None:
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words[0] == "export":
            self.variables |= dict(word.split("=", 1) for word in words[1:])
            return None
        if words[0] in ELSEWHERE:
            return None
        if words[:2] in (["penstock", "serve"], ["penstock", "record"]) and "--help" not in words:
            return self._serve(line)
        if words[0] == "uvicorn":
            return self._uvicorn(words)
        assert words[0] in RUN, f"{words[0]!r} is not run here: say why in a comment <!-- not run: ... -->"
        return self._shell(line)

    def _shell(self, line: str) -> str:
        if "curl" in line:
            require("curl")
        done = subprocess.run(
            ["sh", "-c", f"(exit {self.code}); {line}"],
            cwd=self.folder,
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        self.code = done.returncode
        return self._there(done.stdout)

    def _serve(self, line: str) -> str:
        """Start a server that stays for the rest of the page; what it printed at start."""
        port = re.search(r"--port (\d+)", line)
        line = re.sub(r" --port \d+|\s+#.*", "", line) + " --port {port}"
        script = f"cd {shlex.quote(str(self.folder))} && exec env {line}"
        ready = "http://127.0.0.1:{port}/health"
        child = self._open.enter_context(running(["sh", "-c", script], ready=ready, env=self.variables))
        self._servers.append(child)
        self.ports[int(port[1]) if port else DEMO_PORT] = child.port
        self.code = 0
        return self._there(child.stdout() + child.stderr())

    def _uvicorn(self, words: list[str]) -> str:
        """Serve an application that the page has defined, for the rest of the page."""
        app = getattr(self.module, words[1].partition(":")[2])
        url = self._open.enter_context(serve_asgi(app))
        self.ports[int(words[words.index("--port") + 1])] = int(url.rpartition(":")[2])
        self.code = 0
        return ""

    def _here(self, text: str) -> str:
        """A page's text with the ports that are used in its place."""
        ports = self.ports
        return re.sub(
            r"(127\.0\.0\.1|localhost):(\d+)", lambda at: f"{at[1]}:{ports.get(int(at[2]), int(at[2]))}", text
        )

    def _there(self, text: str) -> str:
        """What was printed, with the ports that the page names."""
        for shown, used in self.ports.items():
            text = text.replace(f":{used}", f":{shown}")
        return text


@pytest.fixture(scope="module")
def demo() -> Iterator[Process]:
    """A real `penstock serve` without any provider: the demo model."""
    command = [sys.executable, "-m", "penstock", "serve", "--config", os.devnull, "--port", "{port}"]
    variables = {**no_providers(), "PYTHONPATH": str(ROOT / "src")}
    with running(command, ready="http://127.0.0.1:{port}/health", env=variables) as child:
        yield child


@pytest.fixture
def as_found() -> Iterator[None]:
    """Gives back what is the process's: its tracer provider, which a page may set once, and its executor types."""
    before = vars(opentelemetry.trace).copy()
    types = {factory: factory.list_executor_types() for factory in FACTORIES}
    yield
    for factory, names in types.items():
        for name in set(factory.list_executor_types()) - set(names):
            factory.unregister(name)
    for name in ("_TRACER_PROVIDER", "_TRACER_PROVIDER_SET_ONCE"):
        setattr(opentelemetry.trace, name, before[name])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # an example may leave its client to the end of the process
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_do_what_they_show(
    page: Path, demo: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_found: None
) -> None:
    for row in SERVICES.values():  # so that an example which names a service talks to a server here
        for name, value in ((row.base_env, f"{demo.base_url}/v1"), (row.key_env, "a-key")):
            if name:
                monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)  # another page's
    with Reading(page, tmp_path, demo) as reading:
        reading.follow()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    silent = [f"{page.name}:{block.line}" for block in blocks(page) if block.not_run == ""]
    assert not silent
