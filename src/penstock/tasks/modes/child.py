"""A command as a child process, which ends together with what it started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from penstock.root import outlive

GRACE_S = 1.0
"""How long a command that is stopped may take to end by itself, after SIGTERM."""
LAST_WORDS_S = 0.5
"""How long what a command started may go on printing, after it ended itself."""
REAPED_S = 5.0
"""How long a killed process is waited for, which ends at once unless the system holds it."""
TAIL = 8192
"""How many bytes of stderr are kept, the last ones."""

_GUARD = 'read -r _ || kill -s KILL -- "-$1"'
"""Waits for the end of stdin, which comes when this process dies, however it does; then kills a group."""


@dataclass(frozen=True, slots=True)
class Printed:
    """How a command ended: its exit code (minus the signal that killed it), its stdout, the end of its stderr.

    It is not `whole` where the command was stopped for what it printed.
    """

    code: int
    output: bytes
    errors: bytes = b""
    whole: bool = True


async def run_child(  # as much as there is to say of a process
    command: Sequence[str], *, stdin: bytes, env: Mapping[str, str], cwd: str | None, most: int
) -> Printed:
    """Run a command without a shell, and stop it when it prints more than `most` bytes, or when this is cancelled.

    To stop it means SIGTERM, `GRACE_S` later SIGKILL, for all in its process group, and on Linux for those descendants
    that left it; only what no longer has a parent there lives on. When it ends by itself, the rest of its group is
    killed. When this process is killed, so is the group, by a shell that watches over it (where there is a `/bin/sh`).
    Raises `OSError` or `ValueError` where it cannot be started.
    """
    child = _Child(most)
    living = asyncio.create_task(_live(child, partial(_start, child, command, stdin, env, cwd)))
    try:
        await asyncio.wait((living,))
    except asyncio.CancelledError:
        child.over.set()
        await outlive(living)
        raise
    return living.result()


class _Child(asyncio.SubprocessProtocol):
    """What a process prints, until it is over: it ended, it printed too much, or nobody waits for it any more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = {1, 2}
        self.output, self.errors = bytearray(), bytearray()
        self.whole = True
        self.over, self.exited, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.errors += data
            del self.errors[:-TAIL]
        elif len(self.output) + len(data) <= self._most:
            self.output += data
        else:
            self.whole = False
            self.over.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        self._open.discard(fd)
        self._look()

    def process_exited(self) -> None:
        self.exited.set()
        self.over.set()
        self._look()

    def _look(self) -> None:
        """See whether it ended with all that print for it."""
        if self.exited.is_set() and not self._open:
            self.ended.set()


async def _start(
    child: _Child, command: Sequence[str], stdin: bytes, env: Mapping[str, str], cwd: str | None
) -> asyncio.SubprocessTransport:
    with _file(stdin) as file:
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: child, *command, stdin=file, env=dict(env), cwd=cwd, start_new_session=True
        )
    return transport


def _file(data: bytes) -> IO[bytes]:
    """The data as a file without a name, which, unlike a pipe, nobody need read, and which `/dev/stdin` can open."""
    file: IO[bytes]
    if sys.platform == "linux":
        file = os.fdopen(os.memfd_create("penstock"), "w+b")  # memory: it touches no disk
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller's to close
    file.write(data)
    file.seek(0)
    return file


async def _live(child: _Child, start: Callable[[], Awaitable[asyncio.SubprocessTransport]]) -> Printed:
    transport = await start()
    group = transport.get_pid()
    guard = _guard(group)
    try:
        await child.over.wait()
        alone = child.exited.is_set()
        if not alone:
            _signal(child, group, signal.SIGTERM)
        await _within(LAST_WORDS_S if alone else GRACE_S, child.ended)
    finally:
        _signal(child, group, signal.SIGKILL)
        if guard is not None:
            guard.kill()
            with guard:  # reaps it
                pass
    await _within(REAPED_S, child.exited)
    code = transport.get_returncode()
    transport.close()
    return Printed(-signal.SIGKILL if code is None else code, bytes(child.output), bytes(child.errors), child.whole)


def _guard(group: int) -> subprocess.Popen[bytes] | None:
    command = ["/bin/sh", "-c", _GUARD, "penstock", str(group)]
    null = subprocess.DEVNULL
    with suppress(OSError):  # without a shell, or room for one, the group has no guard
        return subprocess.Popen(  # noqa: S603  # a group's number is all that varies
            command, stdin=subprocess.PIPE, stdout=null, stderr=null, env={}, start_new_session=True
        )
    return None


def _signal(child: _Child, group: int, number: int) -> None:
    """Send a signal to a group; the descendants outside it are killed, as long as its first process names them."""
    for pid in () if child.exited.is_set() else _strays(group):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):  # gone; macOS refuses for what is ending
        os.killpg(group, number)


def _strays(group: int) -> list[int]:
    """The descendants of a group's first process that left the group, as far as the system shows them."""
    found = [group]
    for pid in found:  # which grows meanwhile
        with suppress(OSError):
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text("ascii").split())
    return [pid for pid in found if _group_of(pid) not in {group, None}]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


async def _within(seconds: float, event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
