"""The gates: what keeps the house in order, each a rule over the source text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "penstock"

# Imports go down only, those under TYPE_CHECKING too; names of one row never import each other.
LEVELS = (
    "errors",
    "messages outcome",
    "events",
    "root",
    "run",
    "policies registry net",
    "llms tools store",
    "batch tasks",
    "chat",
    "config",
    "testing",
    "server",
    "cli",
    "__main__",
)
RANK = {part: rank for rank, row in enumerate(LEVELS) for part in row.split()}
ONLY_FOR = {"server": {"cli"}, "testing": set[str]()}  # part -> who may import it

# Every handler of Exception or BaseException: {file: (how many, why)}. A number that went down is lowered here too.
BROAD = {
    "batch/calls.py": (1, "a call that failed is a value: its items are asked for again"),
    "config/tools.py": (1, "a module that is imported for its function may raise anything"),
    "policies/record.py": (1, "noted for the record, then raised again"),
    "policies/timeout.py": (1, "thrown where the work waits: a step of the coroutine protocol"),
    "policies/trace.py": (2, "noted on the span, then raised again; describing a call must not fail it"),
    "root.py": (5, "a listener's failure must pass every policy; storing that fails is the run's end"),
    "run.py": (2, "the root turns how a run ended into an outcome"),
    "server/answering.py": (1, "every failure becomes the answer's honest end"),
    "server/client.py": (1, "a send that fails, with whatever error, means that nobody is there"),
    "tasks/executor.py": (1, "a task's failure is a value: it is stored, and others go on"),
    "tools/base.py": (2, "whatever a tool raises is told to the model, and never fails its siblings"),
    "tools/db/sqlite_threads.py": (1, "carried to who waits for the answer, as the thread goes on"),
    "tools/function/process.py": (1, "carried to who waits for the function"),
    "tools/function/threads.py": (2, "carried to who waits for the function"),
    "tools/function/worker.py": (3, "carried to who waits for the function; pickling runs foreign code"),
}

CLASS_NAMES = re.compile(r"^(I(?=[A-Z])|Abstract)|(Manager|Helper|Handler|Utils?)$")
FILE_NAMES = {"utils", "util", "common", "constants", "types", "helpers", "helper", "misc"}
MOCKS = {"mock", "Mock", "MagicMock", "AsyncMock", "create_autospec", "mocker", "pytest_mock", "respx", "aioresponses"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|Users)/\w|\b(?:pypi\.org|pythonhosted\.org|npmjs\.org)|--(?:extra-)?index-url"
    r'|--find-[l]inks|"resolved": *"http|registry *= *["{]'
)
HEAVY = "aiohttp fastapi httptools openai opentelemetry.sdk pydantic rich sqlite3 starlette typer uvicorn uvloop yaml"

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """A Python file of the project, read once, and parsed for as long as it is looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return [*ast.walk(self.tree)]

    def each(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in self.nodes if isinstance(node, kinds))

    def forget(self) -> None:
        """Let go of the tree: those of all files are a million objects for the collector, in all tests that follow."""
        vars(self).pop("tree", None)
        vars(self).pop("nodes", None)

    @cached_property
    def part(self) -> str:
        """The name in `LEVELS` this file belongs to."""
        first = self.path.relative_to(SRC).parts[0]
        return first.removesuffix(".py")

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and part of everything this file imports from penstock."""
        package = ".".join(self.path.relative_to(SRC.parent).parent.parts)
        for node in self.each(ast.Import, ast.ImportFrom):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert isinstance(node, ast.ImportFrom)
                base = resolve_name("." * node.level + (node.module or ""), package)
                targets = [f"{base}.{alias.name}" for alias in node.names]
            for target in targets:
                if target.split(".")[0] == "penstock":
                    yield node.lineno, target.split(".")[1] if "." in target else "__init__"


PYTHON = [Source(path) for top in ("src", "tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]
CODE = [source for source in PYTHON if source.path.is_relative_to(SRC)]
TESTS = [source for source in PYTHON if source.name.startswith("tests/")]


def import_levels(source: Source) -> Iterator[str]:
    own = source.part
    if own == "__init__":  # the face may name anything; what it loads is tested below
        return
    for line, part in source.imports():
        if own not in RANK or part not in RANK:
            yield f"{line}: {own} imports {part}: give both a level, or import from where the name is defined"
        elif part != own and (RANK[part] >= RANK[own] or own not in ONLY_FOR.get(part, {own})):
            yield f"{line}: {own} must not import {part}"


def module_size(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > 400:
        yield f"1: {lines} lines, at most 400"


def function_size(source: Source) -> Iterator[str]:
    for node in source.each(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, Function)
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > 50:
            yield f"{node.lineno}: {node.name} has {lines} lines, at most 50"


def names(source: Source) -> Iterator[str]:
    if {source.path.stem, source.path.parent.name} & FILE_NAMES:
        yield "1: name the file after what it holds"
    for node in source.each(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        if CLASS_NAMES.search(node.name):
            yield f"{node.lineno}: name {node.name} after what it is"


def module_docstring(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree) and source.path.name != "__init__.py":
        yield "1: open with a sentence that says what the module is"


def docstrings(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield "1: the module has no docstring"
    public: list[ast.AST] = [source.tree]
    while public:
        for node in ast.iter_child_nodes(public.pop()):
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                public.append(node)
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            if not ast.get_docstring(node) and not marks & {"overload", "override", "setter"}:
                yield f"{node.lineno}: {node.name} has no docstring"


def mocks(source: Source) -> Iterator[str]:
    for node in source.each(ast.Name, ast.arg, ast.alias, ast.ImportFrom):
        name = getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "name", None)
        used = {str(name).rpartition(".")[2], str(getattr(node, "module", "")).rpartition(".")[2]} & MOCKS
        if used:
            yield f"{getattr(node, 'lineno', 1)}: {used.pop()}: use the real part, or a double of penstock.testing"


def unfinished(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := UNFINISHED.search(line):
            yield f"{number}: {found[0]}"


Gate = tuple[list[Source], "Callable[[Source], Iterator[str]]"]
GATES: list[Gate] = [
    (CODE, import_levels),
    (CODE, module_size),
    (PYTHON, function_size),
    (PYTHON, names),
    (PYTHON, module_docstring),
    (CODE, docstrings),
    (CODE, unfinished),
    (TESTS, mocks),
]


@pytest.fixture(scope="module")
def problems() -> dict[str, list[str]]:
    """What each gate finds."""
    found: dict[str, list[str]] = {gate.__name__: [] for _, gate in GATES}
    for source in PYTHON:
        for sources, gate in GATES:
            if source in sources:
                found[gate.__name__] += (f"{source.name}:{problem}" for problem in gate(source))
        source.forget()
    return found


@pytest.mark.parametrize("gate", [gate.__name__ for _, gate in GATES])
def test_source_passes_the_gate(gate: str, problems: dict[str, list[str]]) -> None:
    assert not problems[gate], "\n" + "\n".join(problems[gate])


def _broad(caught: ast.expr | None) -> bool:
    named = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(one is None or ast.unparse(one).rpartition(".")[2] in {"Exception", "BaseException"} for one in named)


def test_broad_handlers_stand_only_where_they_are_named() -> None:
    found: Counter[str] = Counter()
    for source in CODE:
        for node in source.each(ast.ExceptHandler, ast.Call):
            caught = [node.type] if isinstance(node, ast.ExceptHandler) else []
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
                caught = list(node.args)
            found[source.path.relative_to(SRC).as_posix()] += sum(map(_broad, caught))
        source.forget()
    assert +found == {file: count for file, (count, _) in BROAD.items()}


def test_no_file_names_a_machine_or_a_registry() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: the files of the project are not known")
    problems = []
    for path in filter(Path.is_file, (ROOT / name for name in set(listed.stdout.split("\0")) if name)):
        text = path.read_bytes().decode("utf-8", "replace")
        if found := MACHINE.search(text):
            problems.append(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]!r}")
    assert not problems, "\n" + "\n".join(problems)


def test_importing_penstock_loads_nothing_heavy() -> None:
    script = "import sys; before = {*sys.modules}; import penstock; print(*{*sys.modules} - before)"
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": "src"},
        cwd=ROOT,
    )
    assert not {*loaded.stdout.split()} & {*HEAVY.split()}
    assert "penstock" in loaded.stdout.split()
