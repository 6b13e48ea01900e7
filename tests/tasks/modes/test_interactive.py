"""Agents that are people, asked at a real terminal."""

from __future__ import annotations

import asyncio
import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.errors import TaskFailed
from penstock.run import execute
from penstock.tasks.agents import AgentConfig
from penstock.tasks.bounds import Bounds
from penstock.tasks.executor import TaskExecutor
from penstock.tasks.modes import Answer, Work
from penstock.tasks.modes.interactive import GONE, HINT, Ask, ask_terminal, interactive
from penstock.tasks.registry import AgentRegistry
from penstock.tasks.task import AgentTask
from tests.tasks.modes.commands import TASK

ADA = AgentConfig(name="ada", mode="interactive")
SCREEN = """\
Task 'write' for 'ada': A poem

Write a poem.

Deliverables:
  - poem.txt

It is done when:
  - It rhymes.

Result of 'plan':
  aabb
  and so on

Input 'lines':
  4

What was given before:
  Oh.

It was checked, and this is still missing:
  - Line 3 does not rhyme.

"""
CHILD = """
import asyncio
from penstock.errors import TaskFailed
from penstock.tasks.modes.interactive import ask_terminal
async def main():
    print(await ask_terminal("first?"), flush=True)
    try:
        await asyncio.wait_for(ask_terminal("second?"), 0.1)
    except TimeoutError:
        print("late", flush=True)
asyncio.run(main())
"""


@dataclass
class Person:
    """Who sits at the other end of a terminal."""

    keyboard: int

    def types(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    async def sees(self, text: str, seconds: float = 3.0) -> str:
        """What is on the screen since the last look, once it holds the text."""
        return await asyncio.to_thread(self.read, text, seconds)

    def read(self, text: str, seconds: float = 3.0) -> str:
        seen, until = "", time.monotonic() + seconds
        while text not in seen:
            ready, _, _ = select.select([self.keyboard], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} is not in {seen!r}"
            try:
                seen += os.read(self.keyboard, 65536).decode()
            except OSError:
                raise AssertionError(f"the other end was closed, after {seen!r}") from None
        return seen.replace("\r\n", "\n")


@contextmanager
def at_terminal() -> Generator[Person, None, None]:
    """A person at a terminal that is this process's stdin and stderr."""
    keyboard, terminal = os.openpty()
    stdin = os.fdopen(terminal, encoding="utf-8")
    with stdin, os.fdopen(os.dup(terminal), "w", encoding="utf-8") as stderr, redirect_stderr(stderr):
        before, sys.stdin = sys.stdin, stdin
        try:
            yield Person(keyboard)
        finally:
            sys.stdin = before
            os.close(keyboard)


async def asked(work: Work, ask: Ask = ask_terminal) -> Answer:
    return await execute(interactive(ask), work)


async def test_row_c5_a_person_reads_what_to_do_and_gives_the_result() -> None:
    with at_terminal() as person:
        work = Work(TASK, ADA, {"plan": "aabb\nand so on"}, ("Line 3 does not rhyme.",), "Oh.")
        task = asyncio.create_task(asked(work))
        seen = await person.sees(HINT)
        person.types("Roses are red,\n  violets are blü.\n\n")
        assert await task == Answer("Roses are red,\n  violets are blü.", "ada")
        assert seen.strip() == SCREEN + HINT


@pytest.mark.parametrize("typed", ["\n\na poem\n\n", "a poem\n.\n", "a poem\n\x04", "a poem\x04\x04", "a \x04poem\n\n"])
async def test_row_c5_an_answer_ends_with_an_empty_line_a_dot_or_the_end(typed: str) -> None:
    with at_terminal() as person:
        task = asyncio.create_task(asked(Work(TASK, ADA)))
        await person.sees(HINT)
        for key in typed.partition("\x04"):
            person.types(key)
            await asyncio.sleep(0.01)
        assert (await task).output == "a poem"


@pytest.mark.parametrize("typed", [".\n", "\x04", "\n \n.\n"])
async def test_row_c5_a_person_who_says_nothing_has_not_done_it(typed: str) -> None:
    with at_terminal() as person:
        task = asyncio.create_task(asked(Work(TASK, ADA)))
        await person.sees(HINT)
        person.types(typed)
        with pytest.raises(TaskFailed, match="'ada' was asked, and gave no answer") as raised:
            await task
        assert (raised.value.code, raised.value.retryable) == ("agent_failed", False)


async def test_row_c5_a_person_is_asked_one_thing_at_a_time() -> None:
    with at_terminal() as person:
        tasks = [asyncio.create_task(asked(Work(AgentTask(id=name, description="?"), ADA))) for name in "abc"]
        for name in "abc":
            seen = await person.sees(HINT)
            assert seen.count("Task '") == 1
            assert f"Task '{name}'" in seen
            person.types(f"{name}!\n\n")
        assert [answer.output for answer in await asyncio.gather(*tasks)] == ["a!", "b!", "c!"]


async def test_row_c5_what_is_typed_ahead_is_for_the_next_question() -> None:
    with at_terminal() as person:
        person.types("first\n\nsecond\n\n")
        assert await ask_terminal("first?") == "first"
        assert await ask_terminal("second?") == "second"


async def test_row_c5_a_terminal_that_is_closed_ends_the_answer() -> None:
    with at_terminal() as person:
        task = asyncio.create_task(ask_terminal("?"))
        await person.sees(HINT)
        person.types("half\n")
        await asyncio.sleep(0.01)
        with Path(os.devnull).open() as elsewhere:
            os.dup2(elsewhere.fileno(), person.keyboard)  # nobody holds the other end any more
        assert await asyncio.wait_for(task, 1) == "half"


async def test_row_c5_a_question_that_is_cancelled_takes_nothing_from_the_next() -> None:
    with at_terminal() as person:
        first = asyncio.create_task(ask_terminal("first?"))
        await person.sees(HINT)
        second = asyncio.create_task(ask_terminal("second?"))
        person.types("for the second\n\n")
        await asyncio.sleep(0)  # the loop has seen that there is something to read
        first.cancel()
        assert await asyncio.wait_for(second, 3) == "for the second"
        assert first.cancelled()
        assert GONE in await person.sees(HINT)


async def test_row_c5_what_a_task_says_cannot_draw_on_the_terminal() -> None:
    with at_terminal() as person:
        task = asyncio.create_task(ask_terminal("\x1b[2Jclean\x9b1A\rso\x07"))
        seen = await person.sees(HINT)
        assert "[2Jclean1Aso" in seen
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("stdin", ["none", "text", "file", "closed"])
async def test_row_c5_without_a_terminal_nobody_is_asked(
    stdin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(os.devnull).open(encoding="utf-8") as file:
        closed = io.StringIO()
        closed.close()
        monkeypatch.setattr(
            sys, "stdin", {"none": None, "text": io.StringIO("a\n\n"), "file": file, "closed": closed}[stdin]
        )
        with pytest.raises(TaskFailed) as raised:
            await asked(Work(TASK, ADA))
    assert raised.value.code == "no_terminal"
    assert capsys.readouterr() == ("", "")


async def test_row_c5_a_person_can_be_reached_another_way() -> None:
    async def ask(text: str) -> str:
        return f"  {text.splitlines()[0]}\n"

    assert await asked(Work(TASK, ADA), ask) == Answer("Task 'write' for 'ada': A poem", "ada")


def test_row_c5_a_question_nobody_answers_does_not_hold_the_process() -> None:
    keyboard, terminal = os.openpty()
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=terminal, stdout=terminal, stderr=terminal) as child:
        os.close(terminal)
        person = Person(keyboard)
        person.read(HINT, 20)
        person.types("an answer\n\n")
        seen = person.read("late\r\n", 20)
        assert child.wait(5) == 0
    os.close(keyboard)
    assert "an answer" in seen
    assert "Error" not in seen


async def test_a_person_is_told_how_long_there_is_and_that_an_empty_answer_fails() -> None:
    asked: list[str] = []

    async def ask(text: str) -> str:
        asked.append(text)
        return "done"

    executor = TaskExecutor(AgentRegistry([ADA]), ask=ask)
    bounded = AgentTask(id="a", description="Look.")
    assert (await executor.execute(bounded, bounds=Bounds(timeout_s=90))).ok
    assert (await executor.execute(bounded)).ok
    assert ["The task has 90 s in all" in text for text in asked] == [True, False]
    assert "Without a result the task fails." in HINT
    assert "its time is over" in GONE
