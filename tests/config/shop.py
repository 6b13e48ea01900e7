"""The functions and classes that configured tools name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from penstock.policies import Policy
from penstock.policies.idempotency import MemoryLedger
from penstock.run import Executor, Run
from penstock.tools import (
    BaseFunctionExecutor,
    FunctionToolExecutor,
    FunctionToolSpec,
    SqliteExecutor,
    ToolContext,
    tool,
)

SEEN: list[str] = []
LEDGER = MemoryLedger()
NUMBER = 7


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first of them
        b: the second of them
    """
    SEEN.append("add")
    return a + b


async def count(n: int) -> AsyncIterator[str]:
    """Count up."""
    for number in range(n):
        yield f"{number} "


def noted(executor: Executor[Any, Any]) -> Executor[Any, Any]:
    """A policy that notes each call."""

    async def call(request: Any, run: Run, /) -> Any:
        SEEN.append("noted")
        return await executor(request, run)

    return call


POLICIES: list[Policy] = [noted]


@tool(description="Cancel an order.", timeout_s=5, permissions=["orders"], policies=POLICIES)
def cancel(order: int) -> str:
    """Ignored."""
    return f"cancelled {order}"


@tool(idempotency={"ledger": True}, ledger=LEDGER)
def pay(order: int) -> str:
    """Pay an order."""
    SEEN.append("pay")
    return f"paid {order}"


class Loud(BaseFunctionExecutor):
    """Shouts what its function gives."""

    async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        return f"{self.binding.call(args, ctx)}!"


class Wrapped(SqliteExecutor):
    """Puts what SQLite gives into a list."""

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        return [await super()._execute_db_operation(args, ctx, timeout)]


class Twice(FunctionToolExecutor):
    """An executor that is used in place of the usual one where it decorates."""


twice = Twice(FunctionToolSpec(tool_name="twice"), add)


def broken(folder: Path) -> None:
    """Write a module that cannot be imported."""
    (folder / "broken_shop.py").write_text("raise KeyError('boom')\n")
