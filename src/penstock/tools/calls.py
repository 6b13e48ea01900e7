"""`run_calls`: the tools that a model asked for, called side by side; each call has exactly one result."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from penstock.errors import BadArguments, UsageError
from penstock.events import ToolEnded, ToolStarted
from penstock.messages import Message, ToolCall
from penstock.root import outlive
from penstock.run import Run, execute
from penstock.tools.base import BaseToolExecutor
from penstock.tools.result import ToolContext, ToolFault, ToolResult
from penstock.tools.spec import SHOWN
from penstock.tools.value import fault_of, text_of

Tool = BaseToolExecutor[Any]
_GAVE_UP = ToolResult(error=ToolFault("cancelled", "the tool cancelled its own task"))


class ToolAnswer(msgspec.Struct, frozen=True):
    """A call with its result."""

    call: ToolCall
    result: ToolResult

    @property
    def message(self) -> Message:
        """The message of role `tool` for the conversation; a note stands for a value that is not meant for it."""
        return {"role": "tool", "tool_call_id": self.call.id, "content": _told(self.result)}


async def run_calls(
    calls: Sequence[ToolCall], tools: Mapping[str, Tool] | Sequence[Tool], run: Run | None = None
) -> list[ToolAnswer]:
    """Call the tools side by side within `run`; one answer for each call, in order, whatever happens to the others.

    Every failure of a tool is its own answer's error, an unknown name and arguments that are not JSON too. Each call
    is told by a `ToolStarted` and a `ToolEnded`. A cancel stops all of them. Without a run they make a root of their
    own. Raises `UsageError` for two tools of one name.
    """
    known = _by_name(tools) if isinstance(tools, Sequence) else tools
    if not calls:
        return []
    if run is None:
        return await execute(partial(_together, calls), known)
    return await _together(calls, known, run)


def _by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    known: dict[str, Tool] = {}
    for tool in tools:
        if tool.name in known:
            raise UsageError(f"two tools are called {tool.name!r}: give one of them another tool_name")
        known[tool.name] = tool
    return known


async def _together(calls: Sequence[ToolCall], known: Mapping[str, Tool], run: Run) -> list[ToolAnswer]:
    if len(calls) == 1:
        return [await _one(calls[0], known, run)]
    tasks = [asyncio.create_task(_one(call, known, run)) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:
        await _stop(tasks)
        raise
    if failed := [task for task in tasks if task.done() and not task.cancelled() and task.exception()]:
        await _stop(tasks)
        failed[0].result()
    return [
        await _answer(call, _GAVE_UP, run) if task.cancelled() else task.result()
        for call, task in zip(calls, tasks, strict=True)
    ]


async def _stop(tasks: Sequence[asyncio.Task[ToolAnswer]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        await outlive(task)


async def _one(call: ToolCall, known: Mapping[str, Tool], run: Run) -> ToolAnswer:
    await run.emit(ToolStarted(call_id=call.id, name=call.name, arguments=call.arguments))
    tool = known.get(call.name)
    result = _unknown(call.name, known) if tool is None else await tool.execute(call.arguments, ToolContext(run=run))
    return await _answer(call, result, run)


async def _answer(call: ToolCall, result: ToolResult, run: Run) -> ToolAnswer:
    await run.emit(
        ToolEnded(
            call_id=call.id,
            name=call.name,
            content=result.content if result.return_target in SHOWN else None,
            error=result.error.message if result.error else "",
            seconds=result.latency_s,
        )
    )
    return ToolAnswer(call, result)


def _unknown(name: str, known: Mapping[str, Any]) -> ToolResult:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    text = f"there is no tool {name[:100]!r}: known are {', '.join(map(repr, known)) or 'none'}{hint}"
    return ToolResult(error=fault_of(BadArguments(text, code="unknown_tool")))


def _told(result: ToolResult) -> str:
    if result.error is not None:
        return text_of({"error": msgspec.to_builtins(result.error)})
    if result.return_target == "human":
        return "The result was shown to the user."
    if result.return_target != "llm":
        return "The result was handed on."
    text = text_of(result.content)
    return "\n".join([text, *(f"[warning: {warning}]" for warning in result.warnings)])
