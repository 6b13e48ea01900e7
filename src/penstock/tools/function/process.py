"""`in_process`: a synchronous function in a process, the only place where one that overruns can be stopped."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

from penstock.errors import ToolFailed, UsageError
from penstock.tools.function import worker
from penstock.tools.function.crew import Crew, Job

MOST = max(4, os.cpu_count() or 1)


async def in_process(func: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What `func(*positional, **named)` returns or raises, called in a process that is kept and used again.

    A cancel kills it, and every process it started that did not leave its group. At most `MOST` run at once, the
    others wait. What it prints goes to stderr. Raises `ToolFailed` where the process dies, the value cannot be pickled
    or takes more than 64 MiB, and `UsageError` for a function that a process cannot find.
    """
    if worker.starting:
        worker.misused = True
        raise UsageError("a process loads this script: put its work under `if __name__ == '__main__':`")
    call = _Call(func, positional, named)
    PROCESSES.submit(call)
    try:
        return await call.done
    finally:
        call.stop()


def check(func: Callable[..., Any]) -> None:
    """Raise `UsageError` for a function that no process can find: a lambda, or one made inside another."""
    if "<" in getattr(func, "__qualname__", ""):
        raise _lost(func)


class _Call(Job):
    """One call on its way through a process."""

    __slots__ = ("_lock", "_process", "_stopped", "func", "named", "positional")

    def __init__(self, func: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        super().__init__()
        self.func, self.positional, self.named = func, positional, named
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._stopped = False

    def begin(self, process: _Process) -> bool:
        """Note where it runs; false when nobody waits for it any more."""
        with self._lock:
            self._process = None if self._stopped else process
            return not self._stopped

    def leave(self) -> None:
        """Forget where it ran: from now on that is another call's."""
        with self._lock:
            self._process = None

    def stop(self) -> None:
        """Kill its process, if it runs in one."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()


class _Process:
    """A worker process and the socket to it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._poll = select.poll()  # unlike `select`, not limited to low descriptors
        self._poll.register(self._channel, select.POLLIN)
        with theirs:
            self._child = subprocess.Popen(  # noqa: S603  # Python itself
                [sys.executable, "-P", worker.__file__, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a group to be killed as a whole, which Ctrl-C at the terminal does not reach
            )

    @property
    def ready(self) -> bool:
        """Whether it can take a call: it lives, and has nothing to say."""
        return self._child.poll() is None and not self._poll.poll(0)

    def call(self, message: bytes) -> Any:
        """What the function in `message` returns or raises."""
        try:
            worker.send(self._channel, message)
            while not self._poll.poll(500) and self._child.poll() is None:
                pass  # once it died, a child of its own may hold the socket open
            self._channel.setblocking(self._child.poll() is None)
            answer = worker.receive(self._channel, worker.MAX_ANSWER)
        except (EOFError, OSError):
            self.kill()
            raise ToolFailed(f"the process of the function died: {_why(self._child.wait())}", code="died") from None
        kind, value = pickle.loads(answer)  # noqa: S301  # from our own child
        if kind == "value":
            return value
        raise value if kind == "error" else ToolFailed(value)

    def kill(self) -> None:
        """Kill it and its children."""
        with suppress(ProcessLookupError, PermissionError):  # gone; macOS refuses for what is ending
            os.killpg(self._child.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, gently at first, and its children."""
        self._channel.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(worker.GRACE_S)
        self.kill()
        self._child.wait()


class Processes(Crew[_Call]):
    """As many processes as run at once, at most `most`; each is owned by a thread, and ends when it is idle."""

    def _serve(self) -> None:
        process: _Process | None = None
        while (call := self._next()) is not None:
            value, error = None, None
            try:
                message = _message(call)
                if process is not None and not process.ready:
                    process.close()
                    process = None
                process = process or _Process()
                if call.begin(process):
                    value = process.call(message)
            except BaseException as raised:  # carried to who waits for it
                error = raised
            call.leave()
            with self._lock:
                self._free += 1
            call.end(value, error)
            del call, value, error
        if process is not None:
            process.close()


PROCESSES = Processes(MOST)


def _message(call: _Call) -> bytes:
    address = _address(call.func)
    try:
        arguments = pickle.dumps((call.positional, call.named))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(f"the arguments of {call.func!r} cannot be passed to a process: {error}") from error
    main = None
    if b"__main__" in arguments or address[0] == "__main__" or (isinstance(address, bytes) and b"__main__" in address):
        main = _main(call.func)
    return pickle.dumps((main, address, arguments))


def _address(func: Callable[..., Any]) -> worker.Address:
    module, name = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    if module in sys.modules and name:
        with suppress(AttributeError):
            found: Any = reduce(getattr, name.split("."), sys.modules[module])
            if found is func:
                return module, name, False
            if getattr(found, "func", None) is func:
                return module, name, True
    try:
        return pickle.dumps(func)  # a bound method, a partial
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise _lost(func) from error


def _lost(func: Callable[..., Any]) -> UsageError:
    name = getattr(func, "__qualname__", repr(func))
    return UsageError(f"a process cannot find {name!r}: define the function at the top level of a module")


def _main(func: Callable[..., Any]) -> dict[str, Any]:
    """What a worker needs to load the main script as its own `__mp_main__`."""
    from multiprocessing import spawn  # makes __main__ known as __mp_main__ here

    found = spawn.get_preparation_data("penstock")
    file = found.get("init_main_from_path", "")
    if not ("init_main_from_name" in found or Path(file).is_file()):  # a session, or text on stdin
        raise UsageError(f"{func!r} is defined where there is no file: put it into a module")
    return {key: value for key, value in found.items() if key.startswith(("init_main", "sys_argv"))}


def _why(code: int) -> str:
    if code >= 0:
        return f"it exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
