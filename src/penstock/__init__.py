"""Penstock runs LLM work through one executor contract and serves it over the OpenAI API."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError
from penstock.events import Chunks, Event, Fold, Item, Reasoning, Retrying, Text, ToolEnded, ToolStarted, Used
from penstock.messages import AgentType, ChatReply, ChatRequest, Message, ToolCall, Usage
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.root import Listener
from penstock.run import (
    LOCAL,
    Execution,
    Executor,
    Principal,
    Run,
    execute,
    execute_stream,
    from_stream,
    run_sync,
)

if TYPE_CHECKING:
    from penstock.chat.passthrough import PassthroughExecutor
    from penstock.llms.base import BaseLlm
    from penstock.llms.demo import Demo
    from penstock.llms.openai import Gpt
    from penstock.policies.breaker import breaker
    from penstock.policies.budget import budget
    from penstock.policies.cache import cache
    from penstock.policies.idempotency import idempotency
    from penstock.policies.limit import limit
    from penstock.policies.record import Record, record
    from penstock.policies.retry import retry
    from penstock.policies.timeout import timeout
    from penstock.policies.trace import trace

# Imported on first use, so that `import penstock` loads no provider, no server and no HTTP client.
_LATE = {
    "BaseLlm": "penstock.llms.base",
    "Demo": "penstock.llms.demo",
    "Gpt": "penstock.llms.openai",
    "PassthroughExecutor": "penstock.chat.passthrough",
    "Record": "penstock.policies.record",
    "breaker": "penstock.policies.breaker",
    "budget": "penstock.policies.budget",
    "cache": "penstock.policies.cache",
    "idempotency": "penstock.policies.idempotency",
    "limit": "penstock.policies.limit",
    "record": "penstock.policies.record",
    "retry": "penstock.policies.retry",
    "timeout": "penstock.policies.timeout",
    "trace": "penstock.policies.trace",
}

__all__ = [
    "LOCAL",
    "AgentType",
    "BaseLlm",
    "Cancelled",
    "ChatReply",
    "ChatRequest",
    "Chunks",
    "Demo",
    "Event",
    "Execution",
    "Executor",
    "Failed",
    "Finished",
    "Fold",
    "Gpt",
    "Item",
    "Listener",
    "Message",
    "Outcome",
    "PassthroughExecutor",
    "PenstockError",
    "Principal",
    "Reasoning",
    "Record",
    "Retrying",
    "Run",
    "Text",
    "ToolCall",
    "ToolEnded",
    "ToolStarted",
    "Usage",
    "Used",
    "breaker",
    "budget",
    "cache",
    "execute",
    "execute_stream",
    "from_stream",
    "idempotency",
    "limit",
    "record",
    "retry",
    "run_sync",
    "timeout",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
