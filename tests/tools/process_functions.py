"""Functions that tests call in a process of its own; small, as each process loads it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


@dataclass
class Point:
    """A value of a class of its own."""

    x: int
    y: int


class Broken(Exception):
    """An exception that pickles, but not back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class Counter:
    """A method to call, and the state of a process."""

    calls = 0

    def __init__(self, step: int) -> None:
        self.step = step

    def add(self, value: int) -> int:
        return value + self.step


def double(value: Any) -> Any:
    return value * 2


def pid() -> int:
    Counter.calls += 1
    return os.getpid()


def slow(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def spin(notes: str) -> NoReturn:
    """Never return; note this process and a child of it first."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(notes).write_text(f"{os.getpid()} {child.pid}")
    while True:
        pass


def chatty() -> str:
    print("loud " * 1000)  # noqa: T201  # the point
    os.write(1, b"louder")
    sys.stdout.flush()
    return "quiet"


def fails(kind: str) -> Any:
    errors: dict[str, BaseException] = {
        "value": ValueError("no such thing", 7),
        "broken": Broken("it", "breaks"),
        "system": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "stop": StopIteration(5),
    }
    raise errors[kind]


def dies(how: str) -> Any:
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "orphan":  # a child that keeps the socket open
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        os._exit(9)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)


def gives(what: str) -> Any:
    values: dict[str, Any] = {"function": lambda: 1, "point": Point(1, 2), "module": sys}
    return "x" * int(what) if what.isdigit() else values[what]


def double_all(items: list[dict[str, int]]) -> list[list[int]]:
    """A batch: each number doubled, and where."""
    return [[item["n"] * 2, os.getpid()] for item in items]
