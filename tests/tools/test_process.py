"""`in_process`: a function that can be stopped, whatever it does, in a process that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import uvloop

from penstock.errors import ToolFailed, UsageError
from penstock.tools.function import process
from penstock.tools.function.process import PROCESSES, Processes, in_process
from tests.tools import process_functions as functions
from tests.tools.process_functions import Counter, Point

HERE = Path(__file__).parents[2]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody reaped yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end
        await asyncio.sleep(0.01)


async def call(func: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    async with asyncio.timeout(20):
        return await in_process(func, positional, named)


async def test_a_value_comes_back_from_another_process() -> None:
    assert await call(functions.double, 21) == 42
    assert await call(functions.double, value="ab") == "abab"
    assert await call(functions.gives, "point") == Point(1, 2)
    assert await call(functions.pid) != os.getpid()


async def test_a_process_is_used_again() -> None:
    own = Processes(2)
    seen = set()
    for _ in range(20):
        one = process._Call(functions.pid, (), {})
        own.submit(one)
        seen.add(await one.done)
    assert len(seen) == 1


async def test_a_large_argument_and_a_large_answer_pass() -> None:
    assert len(await call(functions.double, "x" * 5_000_000)) == 10_000_000


async def test_methods_and_partials_are_found() -> None:
    assert await call(Counter(3).add, 4) == 7
    assert await call(partial(functions.double, "a")) == "aa"


async def test_a_lambda_or_a_closure_is_refused() -> None:
    def inner() -> int:
        return 1

    for func in (lambda: 1, inner):
        with pytest.raises(UsageError, match="at the top level of a module"):
            await call(func)
        with pytest.raises(UsageError, match="at the top level of a module"):
            process.check(func)
    process.check(functions.double)
    process.check(partial(functions.double, 1))


async def test_an_argument_that_cannot_be_passed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the arguments of .*double.* cannot be passed to a process"):
        await call(functions.double, sys)


async def test_an_exception_comes_back_as_itself_and_says_where() -> None:
    with pytest.raises(ValueError, match="no such thing") as caught:
        await call(functions.fails, "value")
    assert caught.value.args == ("no such thing", 7)
    assert "in fails" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("broken", "^Broken: it breaks$"),
        ("system", "the function raised SystemExit: 3"),
        ("interrupt", "the function raised KeyboardInterrupt"),
        ("stop", "the function raised StopIteration: 5"),
    ],
)
async def test_an_exception_that_cannot_be_passed_on_is_told_as_text(kind: str, said: str) -> None:
    with pytest.raises(ToolFailed, match=said):
        await call(functions.fails, kind)
    assert await call(functions.double, 1) == 2


@pytest.mark.parametrize(
    ("how", "said"),
    [("exit", "it exited with 7"), ("segfault", "killed by SIGSEGV"), ("term", "SIGTERM"), ("orphan", "exited with 9")],
)
async def test_a_process_that_dies_is_a_failure_that_says_so(how: str, said: str) -> None:
    with pytest.raises(ToolFailed, match=f"the process of the function died: .*{said}") as caught:
        await call(functions.dies, how)
    assert caught.value.code == "died"
    assert await call(functions.double, 1) == 2


@pytest.mark.parametrize("what", ["function", "module"])
async def test_a_value_that_cannot_be_passed_on_is_a_failure_that_says_so(what: str) -> None:
    with pytest.raises(ToolFailed, match=f"returned a {what} that cannot leave its process"):
        await call(functions.gives, what)


async def test_an_answer_over_the_limit_never_reaches_this_process() -> None:
    with pytest.raises(ToolFailed, match=r"the function returned 70000.* bytes, at most 67108864"):
        await call(functions.gives, "70000000")


async def test_what_the_function_prints_harms_nothing_and_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    own = Processes(2)
    call_ = process._Call(functions.chatty, (), {})
    own.submit(call_)
    assert await call_.done == "quiet"
    out, error = capfd.readouterr()
    assert out == ""
    assert "loud loud" in error
    assert "louder" in error


async def test_a_cancel_kills_the_process_and_its_child(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    task = asyncio.create_task(in_process(functions.spin, (str(notes),), {}))
    await until(lambda: notes.exists() and " " in notes.read_text())
    pids = [int(pid) for pid in notes.read_text().split()]
    assert not any(map(gone, pids))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: all(map(gone, pids)), 1)
    assert await call(functions.double, 1) == 2


async def test_a_cancel_of_one_call_leaves_the_others() -> None:
    tasks = [asyncio.create_task(in_process(functions.slow, (seconds,), {})) for seconds in (5, 0.5)]
    await asyncio.sleep(0.3)
    tasks[0].cancel()
    assert isinstance(await tasks[1], int)
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_only_so_many_run_at_once_and_the_rest_waits() -> None:
    own = Processes(most=2)
    calls = [process._Call(functions.slow, (0.1,), {}) for _ in range(6)]
    for one in calls:
        own.submit(one)
    assert len({await one.done for one in calls}) == 2


async def test_a_call_that_is_cancelled_while_it_waits_is_never_made(tmp_path: Path) -> None:
    own, marker = Processes(most=1), tmp_path / "marker"
    first, second = process._Call(functions.slow, (0.3,), {}), process._Call(Path.touch, (marker,), {})
    third = process._Call(functions.double, (1,), {})
    for one in (first, second, third):
        own.submit(one)
    second.stop()
    assert await third.done == 2
    assert not marker.exists()


async def test_an_idle_process_ends() -> None:
    own = Processes(4, idle_s=0.2)
    one = process._Call(functions.pid, (), {})
    own.submit(one)
    pid = await one.done
    assert not gone(pid)
    await until(lambda: gone(pid), 5)
    again = process._Call(functions.pid, (), {})
    own.submit(again)
    assert await again.done != pid


async def test_a_process_that_was_killed_while_idle_is_replaced() -> None:
    own = Processes(most=1)
    one = process._Call(functions.pid, (), {})
    own.submit(one)
    pid = await one.done
    os.kill(pid, signal.SIGKILL)
    await until(lambda: gone(pid))
    await asyncio.sleep(0.1)  # its last thread goes after its first
    again = process._Call(functions.pid, (), {})
    own.submit(again)
    assert await again.done != pid


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_loops_come_and_go_and_the_process_stays(run: Callable[..., Any]) -> None:
    own = Processes(most=1)

    async def once() -> Any:
        one = process._Call(functions.pid, (), {})
        own.submit(one)
        return await one.done

    assert len({run(once()) for _ in range(3)}) == 1


PARENT = """
import asyncio, sys
from penstock.tools.function.process import in_process
from tests.tools import process_functions as functions

async def main():
    print(await in_process(functions.pid, (), {}), flush=True)
    await in_process(functions.spin, (sys.argv[1],), {})

asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
async def test_nothing_outlives_the_parent(end: signal.Signals, tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(notes)], cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    await until(lambda: notes.exists() and " " in notes.read_text())
    pids = [int(pid) for pid in notes.read_text().split()]
    parent.send_signal(end)
    parent.wait(10)
    await until(lambda: all(map(gone, pids)), 2)


SCRIPT = """
import asyncio, dataclasses, sys
from penstock.tools.function.process import in_process

@dataclasses.dataclass
class Pair:
    left: int
    right: int

def swap(pair):
    return Pair(pair.right, pair.left)

async def main():
    pair = await in_process(swap, (Pair(1, 2),), {})
    assert type(pair) is Pair, type(pair)
    print(pair)

GUARD
asyncio.run(main())
"""


def script(tmp_path: Path, text: str, *, stdin: bool = False) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "script.py"
    file.write_text(text)
    command = [sys.executable, "-"] if stdin else [sys.executable, str(file)]
    return subprocess.run(
        command, input=text if stdin else "", capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path
    )


def test_the_functions_and_classes_of_a_script_work(tmp_path: Path) -> None:
    done = script(tmp_path, SCRIPT.replace("GUARD\n", "if __name__ == '__main__': "))
    assert done.stdout == "Pair(left=2, right=1)\n", done.stderr


def test_a_script_without_a_guard_is_told_so_instead_of_starting_itself_again(tmp_path: Path) -> None:
    done = script(tmp_path, SCRIPT.replace("GUARD\n", ""))
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr


def test_a_function_typed_into_a_session_is_refused(tmp_path: Path) -> None:
    done = script(tmp_path, SCRIPT.replace("GUARD\n", ""), stdin=True)
    assert "defined where there is no file: put it into a module" in done.stderr


FORKS = """
import asyncio, os, sys
from penstock.tools.function.process import in_process
from penstock.tools.function.threads import THREADS
from tests.tools import process_functions as functions

async def main():
    await asyncio.wait_for(in_process(functions.double, (1,), {}), 10)
    await asyncio.wait_for(THREADS.run(int), 10)

asyncio.run(main())
child = os.fork()
asyncio.run(main())
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_has_processes_and_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=HERE, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shared_ones_are_bounded() -> None:
    assert PROCESSES._most == process.MOST >= 4
