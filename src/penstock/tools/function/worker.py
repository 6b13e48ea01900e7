"""The other side of `process`: run as a script, it calls one function after another until its parent is gone.

It imports nothing of Penstock, so that a process starts in the time that Python takes.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from functools import reduce
from importlib import import_module
from typing import Any, TypeAlias

MAX_ANSWER = 64 * 2**20
GRACE_S = 1.0
_LENGTH = struct.Struct("!Q")

Address: TypeAlias = tuple[str, str, bool] | bytes
"""A function by module, qualified name and whether a tool of that name holds it; or pickled."""

starting = False
"""Whether this process is just loading the parent's main script, which must not call functions in processes then."""
loaded = misused = False


def send(channel: socket.socket, message: bytes) -> None:
    """Send a message, its length before it."""
    channel.sendall(_LENGTH.pack(len(message)))
    channel.sendall(message)


def receive(channel: socket.socket, most: int | None = None) -> bytes:
    """The next message; raises `EOFError` where the other side is gone, or says more than `most` bytes."""
    (size,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if most is not None and size > most:
        raise EOFError
    return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 2**20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def serve(descriptor: int) -> None:
    """Run what comes over the socket, one at a time; ends with its children when the other end is closed."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    busy = threading.Event()
    threading.Thread(target=_watch, args=(descriptor, busy), daemon=True).start()
    while True:
        try:
            message = receive(channel)
        except (EOFError, ConnectionError):
            return
        busy.set()
        send(channel, _answer(message))
        busy.clear()


def _watch(descriptor: int, busy: threading.Event) -> None:
    """Wait until the parent is gone, then end this process and its children: what is idle may end by itself."""
    poll = select.poll()
    poll.register(descriptor, 0)
    poll.poll()
    if not busy.is_set():
        time.sleep(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _answer(message: bytes) -> bytes:
    try:
        value = _run(*pickle.loads(message))  # noqa: S301  # from the parent alone
    except BaseException as error:  # carried to who waits for it
        return _failure(error)
    try:
        answer = pickle.dumps(("value", value))
    except Exception as error:  # pickling runs the code of whatever is pickled
        text = f"the function returned a {type(value).__name__} that cannot leave its process: {error}"
        return pickle.dumps(("failed", text[:2000]))
    if len(answer) <= MAX_ANSWER:
        return answer
    return pickle.dumps(("failed", f"the function returned {len(answer)} bytes, at most {MAX_ANSWER} can be passed on"))


def _run(main: dict[str, Any] | None, address: Address, arguments: bytes) -> Any:
    if main is not None:
        _load(main)
    if isinstance(address, bytes):
        func: Any = pickle.loads(address)  # noqa: S301  # from the parent alone
    else:
        module, name, held = address
        func = reduce(getattr, name.split("."), import_module(module))
        func = func.func if held else func
    positional, named = pickle.loads(arguments)  # noqa: S301  # from the parent alone
    return func(*positional, **named)


def _load(main: dict[str, Any]) -> None:
    """Load the parent's main script, once, as `multiprocessing` does."""
    from multiprocessing import spawn

    global loaded, starting  # noqa: PLW0603  # what `process` looks at when the script calls it
    if loaded:
        return
    starting = loaded = True
    try:
        spawn.prepare(main)
    finally:
        starting = False
    if misused:
        from penstock.errors import UsageError

        raise UsageError("the script calls tools while it is loaded: put that under `if __name__ == '__main__':`")


def _failure(error: BaseException) -> bytes:
    """An exception as itself where that can be pickled, else as text; never one that would end the parent."""
    said = f"{type(error).__name__}: {error}"[:2000]
    if not isinstance(error, Exception):
        return pickle.dumps(("failed", f"the function raised {said}"))
    error.add_note(f"In its process:\n{''.join(traceback.format_exception(error))[-10_000:]}")
    try:
        answer = pickle.dumps(("error", error))
        same = type(pickle.loads(answer)[1]) is type(error)  # noqa: S301  # just made
    except Exception:  # as above
        same, answer = False, b""
    return answer if same and len(answer) <= MAX_ANSWER else pickle.dumps(("failed", said))


if __name__ == "__main__":
    sys.modules["penstock.tools.function.worker"] = sys.modules["__main__"]  # also when the script has replaced that
    sys.path[:] = sys.argv[2:]
    serve(int(sys.argv[1]))
