"""The OpenAI API in front of executors, as an ASGI application, and `respond` for everybody else's."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.server.answering import respond
    from penstock.server.app import App, Options
    from penstock.server.client import Manner
    from penstock.server.wire import answer_of, parse_chat

_LATE = {
    "App": "penstock.server.app",
    "Manner": "penstock.server.client",
    "Options": "penstock.server.app",
    "answer_of": "penstock.server.wire",
    "parse_chat": "penstock.server.wire",
    "respond": "penstock.server.answering",
}

__all__ = ["App", "Manner", "Options", "answer_of", "parse_chat", "respond"]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'penstock.server' has no attribute {name!r}")
