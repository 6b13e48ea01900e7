"""Penstock runs LLM work through one executor contract and serves it over the OpenAI API."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError
from penstock.events import Chunks, Event, Fold, Item, Reasoning, Retrying, Switched, Text, ToolEnded, ToolStarted, Used
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
    from penstock.batch.batch import Batch
    from penstock.batch.executor import BatchInferenceExecutor
    from penstock.batch.fallbacks import Fallback
    from penstock.batch.items import BatchRequest
    from penstock.batch.outcomes import BatchResponse, ItemOutcome
    from penstock.batch.plan import Plan
    from penstock.batch.planner import Planner
    from penstock.chat.passthrough import PassthroughExecutor
    from penstock.llms.anthropic import Claude
    from penstock.llms.base import BaseLlm
    from penstock.llms.demo import Demo
    from penstock.llms.gemini import Gemini
    from penstock.llms.lookup import llm
    from penstock.llms.openai import Gpt
    from penstock.llms.prices import Price
    from penstock.llms.replay import Replay
    from penstock.llms.replay.recording import recording
    from penstock.policies.balance import Deployment, balance
    from penstock.policies.breaker import breaker
    from penstock.policies.budget import budget
    from penstock.policies.cache import cache
    from penstock.policies.fallback import fallback
    from penstock.policies.faults import faults
    from penstock.policies.idempotency import idempotency
    from penstock.policies.limit import limit
    from penstock.policies.principals import per_principal
    from penstock.policies.record import Record, record
    from penstock.policies.retry import retry
    from penstock.policies.timeout import timeout
    from penstock.policies.trace import trace
    from penstock.store.journal import Journal
    from penstock.tasks.agents import AgentConfig
    from penstock.tasks.engines.local import LocalEngine
    from penstock.tasks.executor import TaskExecutor
    from penstock.tasks.orchestrator import ProjectOrchestrator
    from penstock.tasks.project import ProjectSpec
    from penstock.tasks.registry import AgentRegistry
    from penstock.tasks.results import ExecutionResult, ExecutionStatus
    from penstock.tasks.task import AgentTask

# Imported on first use, so that `import penstock` loads no provider, no server and no HTTP client.
_LATE = {
    "AgentConfig": "penstock.tasks.agents",
    "AgentRegistry": "penstock.tasks.registry",
    "AgentTask": "penstock.tasks.task",
    "BaseLlm": "penstock.llms.base",
    "Batch": "penstock.batch.batch",
    "BatchInferenceExecutor": "penstock.batch.executor",
    "BatchRequest": "penstock.batch.items",
    "BatchResponse": "penstock.batch.outcomes",
    "Claude": "penstock.llms.anthropic",
    "Demo": "penstock.llms.demo",
    "Deployment": "penstock.policies.balance",
    "ExecutionResult": "penstock.tasks.results",
    "ExecutionStatus": "penstock.tasks.results",
    "Fallback": "penstock.batch.fallbacks",
    "Gemini": "penstock.llms.gemini",
    "Gpt": "penstock.llms.openai",
    "ItemOutcome": "penstock.batch.outcomes",
    "Journal": "penstock.store.journal",
    "LocalEngine": "penstock.tasks.engines.local",
    "PassthroughExecutor": "penstock.chat.passthrough",
    "Plan": "penstock.batch.plan",
    "Planner": "penstock.batch.planner",
    "Price": "penstock.llms.prices",
    "ProjectOrchestrator": "penstock.tasks.orchestrator",
    "ProjectSpec": "penstock.tasks.project",
    "Record": "penstock.policies.record",
    "Replay": "penstock.llms.replay",
    "TaskExecutor": "penstock.tasks.executor",
    "balance": "penstock.policies.balance",
    "breaker": "penstock.policies.breaker",
    "budget": "penstock.policies.budget",
    "cache": "penstock.policies.cache",
    "fallback": "penstock.policies.fallback",
    "faults": "penstock.policies.faults",
    "idempotency": "penstock.policies.idempotency",
    "limit": "penstock.policies.limit",
    "llm": "penstock.llms.lookup",
    "per_principal": "penstock.policies.principals",
    "record": "penstock.policies.record",
    "recording": "penstock.llms.replay.recording",
    "retry": "penstock.policies.retry",
    "timeout": "penstock.policies.timeout",
    "trace": "penstock.policies.trace",
}

__all__ = [
    "LOCAL",
    "AgentConfig",
    "AgentRegistry",
    "AgentTask",
    "AgentType",
    "BaseLlm",
    "Batch",
    "BatchInferenceExecutor",
    "BatchRequest",
    "BatchResponse",
    "Cancelled",
    "ChatReply",
    "ChatRequest",
    "Chunks",
    "Claude",
    "Demo",
    "Deployment",
    "Event",
    "Execution",
    "ExecutionResult",
    "ExecutionStatus",
    "Executor",
    "Failed",
    "Fallback",
    "Finished",
    "Fold",
    "Gemini",
    "Gpt",
    "Item",
    "ItemOutcome",
    "Journal",
    "Listener",
    "LocalEngine",
    "Message",
    "Outcome",
    "PassthroughExecutor",
    "PenstockError",
    "Plan",
    "Planner",
    "Price",
    "Principal",
    "ProjectOrchestrator",
    "ProjectSpec",
    "Reasoning",
    "Record",
    "Replay",
    "Retrying",
    "Run",
    "Switched",
    "TaskExecutor",
    "Text",
    "ToolCall",
    "ToolEnded",
    "ToolStarted",
    "Usage",
    "Used",
    "balance",
    "breaker",
    "budget",
    "cache",
    "execute",
    "execute_stream",
    "fallback",
    "faults",
    "from_stream",
    "idempotency",
    "limit",
    "llm",
    "per_principal",
    "record",
    "recording",
    "retry",
    "run_sync",
    "timeout",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
