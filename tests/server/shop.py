"""The functions that are tools in the tests of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from penstock.errors import LimitReached, ToolFailed
from penstock.tools import ToolContext

EVENTS: list[str] = []


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


async def wait(seconds: float) -> str:
    """Wait, and note how it ended."""
    EVENTS.append("began")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        EVENTS.append("cancelled")
        raise
    EVENTS.append("done")
    return "waited"


async def count(n: int) -> AsyncIterator[str]:
    """Count, number by number."""
    for number in range(n):
        yield f"{number} "


async def rows(n: int) -> AsyncIterator[dict[str, int]]:
    """Give rows."""
    for number in range(n):
        yield {"row": number}


def fail(how: str) -> Any:
    """Fail in one of many ways."""
    match how:
        case "raise":
            raise ValueError(f"cannot do {how}")
        case "failed":
            raise ToolFailed("the shop is closed", code="closed", details={"opens": 9}, retry_after=2)
        case "limit":
            raise LimitReached("too many orders", limit="rate", retry_after=7)
        case _:
            return object()


def pay(order: int, ctx: ToolContext) -> str:
    """Pay an order."""
    EVENTS.append(f"paid {order}")
    principal = ctx.principal
    return f"{principal.name if principal else ''} paid {order}"
