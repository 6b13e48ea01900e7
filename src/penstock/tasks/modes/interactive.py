"""How an agent of mode `interactive` works: a person is told what to do, and gives the result."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import TextIO, TypeAlias
from weakref import WeakKeyDictionary

from penstock.errors import TaskFailed
from penstock.run import Executor, Run
from penstock.tasks.modes import Answer, Work
from penstock.tasks.prompt import text_of

Ask: TypeAlias = Callable[[str], Awaitable[str]]
"""Given what a person must do, gives what the person answers."""

HINT = "Write the result, then an empty line, or one with a single dot. Without a result the task fails."
GONE = "\n(No longer needed: somebody else did it, it was cancelled, or its time is over.)\n"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def ask_terminal(text: str) -> str:
    """Show a person what to do, on stderr, and read the answer from the terminal: lines up to an empty one.

    Empty lines before it do not count; a line with a single dot ends it too, and so does the end of the input. One
    question is asked at a time. A cancel takes effect at once, and takes nothing from the terminal. Raises
    `TaskFailed` with the code `no_terminal` where stdin is none, before anything is shown.
    """
    stdin = _terminal()
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        _show(f"\n{text}\n\n{HINT}\n")
        try:
            return await _answer(stdin)
        except asyncio.CancelledError:
            _show(GONE)
            raise


def interactive(ask: Ask = ask_terminal) -> Executor[Work, Answer]:
    """The executor of agents who are people, whom `ask` reaches.

    Raises `TaskFailed` with the code `agent_failed` for an answer that says nothing, and what `ask` raises.
    """

    async def call(work: Work, run: Run, /) -> Answer:  # noqa: ARG001  # a person tells nothing meanwhile
        said = (await ask(told(work))).strip()
        if not said:
            raise TaskFailed(f"{work.agent.name!r} was asked, and gave no answer", code="agent_failed")
        return Answer(said, work.agent.name)

    return call


def told(work: Work) -> str:
    """What a person reads of a task: all that it says, what other tasks gave, and what a review found missing."""
    task, who = work.task, work.agent.name
    given = {
        **{f"Result of {name!r}": value for name, value in work.results.items()},
        **{f"Input {name!r}": value for name, value in task.inputs.items()},
        **({} if work.last is None else {"What was given before": work.last}),
    }
    parts = [
        f"Task {task.id!r} for {who!r}{': ' if task.title else ''}{task.title}",
        task.description.strip(),
        *_listed("Deliverables", task.deliverables),
        *_listed("It is done when", task.success_criteria),
        *(f"{name}:\n{_indented(text_of(value))}" for name, value in given.items()),
        *_listed("It was checked, and this is still missing", work.feedback),
        *([] if work.timeout_s is None else [f"The task has {work.timeout_s:g} s in all; then it fails."]),
    ]
    return "\n\n".join(parts)


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    found = [f"  - {line}" for line in lines]
    return ["\n".join((f"{title}:", *found))] if found else []


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _terminal() -> int:
    """The descriptor of the terminal that stdin is."""
    stdin: TextIO | None = sys.stdin
    try:
        if stdin is not None and stdin.isatty():
            return stdin.fileno()
    except (ValueError, OSError):  # closed, or of something that has no descriptor
        pass
    raise TaskFailed(
        "a person is to be asked, and stdin is no terminal: run this in one, or give the task to another agent",
        code="no_terminal",
    )


def _show(text: str) -> None:
    """Print to stderr; what could move the cursor, or pass for another question, is left out."""
    print(_CONTROLS.sub("", text), end="", file=sys.stderr, flush=True)  # noqa: T201  # its work


async def _answer(stdin: int) -> str:
    """Read lines as they arrive, in the loop: a thread could not be stopped, and would hold the process."""
    loop, lines = asyncio.get_running_loop(), _Lines()
    ended: asyncio.Future[None] = loop.create_future()

    def take() -> None:
        if ended.done():  # what comes now is not for this question
            return
        try:
            piece = os.read(stdin, 4096)  # a terminal gives at most a line: what is typed ahead is the next question's
        except OSError:  # it was closed
            piece = b""
        if lines.add(piece):
            ended.set_result(None)

    loop.add_reader(stdin, take)
    try:
        await ended
    finally:
        loop.remove_reader(stdin)
    return "\n".join(lines.whole)


class _Lines:
    """The lines of an answer as they come, in pieces; no piece at all is the end of the input."""

    def __init__(self) -> None:
        self.whole: list[str] = []
        self._part = b""

    def add(self, piece: bytes) -> bool:
        """Take a piece; whether the answer has ended."""
        self._part += piece
        if piece and not piece.endswith(b"\n"):
            return False
        line, self._part = self._part.decode("utf-8", "replace").rstrip(), b""
        if line and line != ".":
            self.whole.append(line)
        return not piece or line == "." or (not line and bool(self.whole))
