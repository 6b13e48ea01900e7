"""The laws of tools: what holds for every executor, built-in or written by a user; each joins in `subjects.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any

import msgspec
import pytest

from penstock import Principal, execute
from penstock.errors import BadArguments, Denied, ToolFailed, ToolTimeout
from penstock.messages import ToolCall
from penstock.run import Run
from penstock.testing import Heard
from penstock.tools import ToolContext, ToolRequest, run_calls
from penstock.tools.value import encoded
from tests.tools.subjects import SUBJECTS, Subject

NOBODY = Principal("nobody", "nowhere", frozenset({"chat"}))


@pytest.fixture(params=list(SUBJECTS))
async def subject(request: pytest.FixtureRequest) -> AsyncGenerator[Subject, None]:
    async with SUBJECTS[request.param](request) as found:
        yield found


async def test_the_value_is_the_same_called_either_way(subject: Subject) -> None:
    tool = subject.make("good")
    text = msgspec.json.encode(subject.arguments).decode()
    for arguments in (subject.arguments, text, text.encode()):
        result = await tool.execute(arguments)
        assert result.ok, result.error
        assert (result.content, result.error) == (subject.value, None)
        assert result.latency_s > 0
    raised = await execute(tool, ToolRequest(text))
    assert raised.content == subject.value
    assert encoded(raised.content)


async def test_wrong_arguments_are_refused_with_what_is_wrong(subject: Subject) -> None:
    tool = subject.make("good")
    for arguments in ("{", "[]", '{"nobody_knows": 1}', b"\xff", "", '{"a": 1, "a": 2}'):
        result = await tool.execute(arguments)
        assert not result.ok
        assert result.content is None
        assert result.error is not None
        assert result.error.code == "bad_arguments"
        assert not result.error.retryable
        with pytest.raises(BadArguments):
            await execute(tool, ToolRequest(arguments))


async def test_without_the_permission_nothing_happens(subject: Subject) -> None:
    tool = subject.make("failing", permissions=("orders",))
    result = await tool.execute(subject.arguments, ToolContext(principal=NOBODY))
    assert result.error is not None
    assert result.error.code == "denied"
    with pytest.raises(Denied, match="'orders'"):
        await execute(tool, ToolRequest(subject.arguments), principal=NOBODY)


async def test_a_failure_is_a_typed_error_and_no_value(subject: Subject) -> None:
    tool = subject.make("failing")
    result = await tool.execute(subject.arguments)
    assert not result.ok
    assert result.content is None
    assert result.error is not None
    assert result.error.message
    with pytest.raises(ToolFailed):
        await execute(tool, ToolRequest(subject.arguments))


async def test_the_deadline_ends_what_takes_long(subject: Subject) -> None:
    tool = subject.make("slow", timeout_s=0.05)
    began = monotonic()
    result = await tool.execute(subject.arguments)
    assert monotonic() - began < 5
    assert result.error is not None
    assert result.error.code == "timeout"
    with pytest.raises(ToolTimeout):
        await execute(tool, ToolRequest(subject.arguments))


async def test_a_cancel_ends_a_call_and_leaves_no_task(subject: Subject) -> None:
    tool = subject.make("slow")
    before = asyncio.all_tasks()
    call = asyncio.create_task(tool.execute(subject.arguments))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 5)
    for _ in range(100):
        if asyncio.all_tasks() <= before:
            break
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() <= before


async def test_many_calls_at_once_do_not_mix(subject: Subject) -> None:
    tool = subject.make("good")
    results = await asyncio.gather(*(tool.execute(subject.arguments) for _ in range(4)))
    assert [result.content for result in results] == [subject.value] * 4


async def test_case_20_each_call_has_its_own_result_when_siblings_fail(subject: Subject) -> None:
    tools = {form: subject.make(form) for form in ("good", "failing")}
    tools["slow"] = subject.make("slow", timeout_s=0.05)
    arguments = msgspec.json.encode(subject.arguments).decode()
    names = ["good", "failing", "slow", "nobody", "good"]
    calls = [ToolCall(f"call_{n}", name, arguments) for n, name in enumerate(names)]

    async def model(_: None, run: Run) -> list[Any]:
        return await run_calls(calls, tools, run)

    answers = await execute(model, None, heard := Heard())
    assert [answer.call.id for answer in answers] == [call.id for call in calls]
    codes = [answer.result.error.code if answer.result.error else "ok" for answer in answers]
    assert (codes[0], codes[2:]) == ("ok", ["timeout", "unknown_tool", "ok"])
    assert codes[1] != "ok"
    assert len(heard.events) >= 2 * len(calls)


async def test_a_tool_serves_one_event_loop_after_another(subject: Subject) -> None:
    tool = subject.make("good")

    def elsewhere() -> Any:
        return asyncio.run(_once(tool, subject.arguments))

    for _ in range(2):
        assert (await asyncio.to_thread(elsewhere)).content == subject.value
    assert (await tool.execute(subject.arguments)).content == subject.value
    await tool.aclose()


async def _once(tool: Any, arguments: dict[str, Any]) -> Any:
    try:
        return await tool.execute(arguments)
    finally:
        await tool.aclose()
