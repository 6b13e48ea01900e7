"""Rows B3 and B7: what goes in and comes out, and the one order of the pipeline."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import BaseModel

from penstock import Principal, execute, execute_stream, timeout
from penstock.errors import BadArguments, ToolFailed, ToolTimeout
from penstock.events import Event, Item, Text, ToolEnded, ToolStarted, Used
from penstock.messages import ToolCall, Usage
from penstock.policies import Policy
from penstock.run import Executor, Run
from penstock.testing import Heard, ScriptedLlm
from penstock.tools import (
    BaseFunctionExecutor,
    FunctionToolExecutor,
    FunctionToolSpec,
    LimitSpec,
    RetrySpec,
    ToolContext,
    ToolRequest,
    ToolResult,
    run_calls,
    tool,
)
from penstock.tools import meter as metering


class Point(BaseModel):
    x: int
    y: int


@tool
async def move(to: Point, steps: int = 1) -> dict[str, int]:
    """Move."""
    return {"x": to.x, "y": to.y, "steps": steps}


async def test_row_b3_a_result_has_a_value_or_an_error_and_its_time() -> None:
    good = await move.execute({"to": {"x": 1, "y": 2}})
    assert (good.ok, good.content, good.error) == (True, {"x": 1, "y": 2, "steps": 1}, None)
    assert 0 < good.latency_s < 5
    bad = await move.execute({"to": {"x": "one", "z": 2}, "steps": None})
    assert (bad.ok, bad.content) == (False, None)
    assert bad.error is not None
    assert sorted(problem["path"] for problem in bad.error.details) == ["steps", "to.x", "to.y", "to.z"]
    assert not bad.error.retryable


async def test_row_b3_a_context_gives_principal_tenant_and_run() -> None:
    seen: list[ToolContext] = []

    @tool
    async def look(ctx: ToolContext) -> None:
        seen.append(ctx)

    olga = Principal("olga", "shop", frozenset({"tools"}))
    await look.execute({})
    await look.execute({}, ToolContext(principal=olga, idempotency_key="k"))
    await look.execute({}, ToolContext(principal=olga, tenant="bakery"))

    async def caller(_: None, run: Run) -> None:
        await look.execute({}, ToolContext(run=run))
        await look.execute({}, ToolContext(run=run, principal=olga))

    await execute(caller, None, principal=dataclasses.replace(olga, name="igor"))
    assert [(ctx.principal.name, ctx.tenant) for ctx in seen if ctx.principal] == [
        ("local", "local"),
        ("olga", "shop"),
        ("olga", "bakery"),
        ("igor", "shop"),
        ("olga", "shop"),
    ]
    assert seen[1].idempotency_key == "k"
    assert [ctx.run.path for ctx in seen if ctx.run] == ["", "", "", "look", "look"]


async def test_row_b3_usage_of_models_that_a_tool_asks_is_in_its_result() -> None:
    llm = ScriptedLlm("two words")

    @tool
    async def ask(ctx: ToolContext) -> str:
        assert ctx.run is not None
        for _ in range(2):
            await ctx.run.emit(Used(usage=Usage(10, 5, 15)))
        return llm.model

    result = await ask.execute({})
    assert result.usage == Usage(20, 10, 30, *dataclasses_of(result.usage))
    assert (await move.execute({"to": {"x": 1, "y": 2}})).usage is None


def dataclasses_of(usage: Usage | None) -> tuple[Any, Any]:
    assert usage is not None
    return usage.prompt_tokens_details, usage.completion_tokens_details


async def test_row_b3_run_calls_tells_each_call_and_answers_in_order() -> None:
    @tool
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return f"{seconds:g}"

    calls = [
        ToolCall("a", "nap", '{"seconds": 0.05}'),
        ToolCall("b", "nap", '{"seconds": 0}'),
        ToolCall("c", "nap", "{"),
    ]

    async def model(_: None, run: Run) -> Any:
        return await run_calls(calls, {"nap": nap}, run.child("tools"))

    answers = await execute(model, None, heard := Heard())
    assert [answer.message for answer in answers[:2]] == [
        {"role": "tool", "tool_call_id": "a", "content": "0.05"},
        {"role": "tool", "tool_call_id": "b", "content": "0"},
    ]
    assert "are not JSON" in answers[2].message["content"]
    started = [event.call_id for event in heard.events if isinstance(event, ToolStarted)]
    ended = {event.call_id: event for event in heard.events if isinstance(event, ToolEnded)}
    assert started == ["a", "b", "c"]
    assert list(ended)[-1] == "a"
    assert (ended["a"].content, ended["a"].path, ended["c"].content) == ("0.05", "tools", None)
    assert ended["c"].error


async def test_row_b3_a_cancel_of_run_calls_stops_every_tool() -> None:
    stopped: list[int] = []

    @tool
    async def nap(n: int) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            stopped.append(n)

    async def model(_: None, run: Run) -> Any:
        return await run_calls([ToolCall(str(n), "nap", f'{{"n": {n}}}') for n in range(5)], [nap], run)

    running = asyncio.create_task(execute(model, None))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(stopped) == list(range(5))


async def test_row_b7_the_pipeline_has_one_order() -> None:
    """What refuses earlier leaves what comes later alone."""
    made: list[str] = []

    def noting(name: str) -> Policy:
        def policy(executor: Executor[Any, Any]) -> Executor[Any, Any]:
            async def call(request: Any, run: Run, /) -> Any:
                made.append(name)
                return await executor(request, run)

            return call

        return policy

    async def flaky(args: dict[str, Any]) -> int:
        made.append("call")
        if made.count("call") == 1:
            raise ToolFailed("again", retryable=True)
        return args["n"]  # type: ignore[no-any-return]

    spec = FunctionToolSpec(
        tool_name="it",
        parameters={"n": "integer"},
        return_type={"type": "integer", "maximum": 5},
        permissions=("p",),
        limit=LimitSpec(requests_per_minute=2),
        retry=RetrySpec(base_s=0),
    )
    it = FunctionToolExecutor(spec, flaky, policies=[noting("own policy")])
    stranger = ToolContext(principal=Principal("eve", "x"))
    codes = []
    for arguments, ctx in (
        ({"n": "x"}, stranger),
        ({"n": "x"}, None),
        ({"n": 3}, None),
        ({"n": 9}, None),
        ({"n": 3}, None),
    ):
        result = await it.execute(arguments, ctx or ToolContext())
        codes.append(result.error.code if result.error else "ok")
    # the permission before the arguments; the arguments before the limit, which two wrong calls have not used up;
    # the limit before the retries, which are one call to it; the value is checked last
    assert codes == ["denied", "bad_arguments", "ok", "bad_return_value", "requests_per_minute_limit"]
    assert made.count("own policy") == 5
    assert made.count("call") == 3


async def test_row_b7_a_deadline_does_not_count_the_time_of_a_slow_client() -> None:
    @tool(timeout_s=0.2)
    async def tell(ctx: ToolContext) -> str:
        assert ctx.run is not None
        for _ in range(3):
            await ctx.run.emit(Text("x"))
        return "told"

    async def slow(event: Event) -> None:
        await asyncio.sleep(0.15)

    assert (await execute(tell, ToolRequest("{}"), slow)).content == "told"


async def test_row_b7_a_policy_goes_around_a_tool_as_around_anything() -> None:
    @tool
    async def nap() -> None:
        await asyncio.sleep(30)

    with pytest.raises(ToolTimeout):
        await execute(timeout(0.05, error=ToolTimeout)(nap), ToolRequest("{}"))


async def test_metrics_tell_each_call_with_owner_tags_and_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metering, "DURATION", provider.get_meter("test").create_histogram("penstock.tool.duration"))

    @tool(owner="shop", metrics_tags={"tier": "gold"})
    async def it(n: int) -> int:
        if n:
            raise ValueError("no")
        return n

    for n in (0, 0, 1):
        await it.execute({"n": n})
    await it.execute({"n": "x"})
    data = reader.get_metrics_data()
    assert data is not None
    [metric] = data.resource_metrics[0].scope_metrics[0].metrics
    points: dict[Any, Any] = {}
    for point in metric.data.data_points:
        assert point.attributes is not None
        assert point.attributes["penstock.tool.owner"] == "shop"
        assert point.attributes["penstock.tool.tag.tier"] == "gold"
        points[point.attributes["penstock.outcome"]] = getattr(point, "count", None)
    assert points == {"ok": 2, "failed": 1, "bad_arguments": 1}
    assert metrics is not None


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}} | {"b": object()}, lambda: None])
async def test_a_value_that_json_cannot_carry_is_a_typed_error(value: Any) -> None:
    async def give(args: dict[str, Any]) -> Any:
        return value

    result = await FunctionToolExecutor(FunctionToolSpec(tool_name="it", parameters={}), give).execute({})
    assert result.error is not None
    assert result.error.code == "bad_return_value"


@pytest.mark.parametrize("value", [Point(x=1, y=2), Decimal("1.5"), None, 0, "", [], {"a": Point(x=1, y=2)}])
async def test_a_value_that_json_can_carry_is_the_content_as_it_is(value: Any) -> None:
    async def give(args: dict[str, Any]) -> Any:
        return value

    result = await FunctionToolExecutor(FunctionToolSpec(tool_name="it", parameters={}), give).execute({})
    assert result.ok
    assert result.content == value


async def test_what_a_function_raises_is_told_with_its_type() -> None:
    @tool
    async def broken() -> None:
        raise KeyError("missing")

    result = await broken.execute({})
    assert result.error is not None
    assert (result.error.code, result.error.details) == ("failed", {"type": "KeyError"})
    assert "missing" in result.error.message


async def test_a_function_that_exits_has_failed_and_the_process_goes_on() -> None:
    @tool
    async def leave() -> None:
        raise SystemExit(3)

    result = await leave.execute({})
    assert result.error is not None
    assert result.error.details == {"type": "SystemExit"}


async def test_a_function_that_cancels_itself_has_failed_and_its_caller_goes_on() -> None:
    @tool
    async def gives_up() -> None:
        raise asyncio.CancelledError

    result = await gives_up.execute({})
    assert result.error is not None
    assert result.error.code == "cancelled"


async def test_case_21_an_endless_stream_is_cut_at_the_limit_with_a_marker() -> None:
    closed: list[bool] = []

    class Endless(BaseFunctionExecutor):
        async def _execute_function(
            self, args: dict[str, Any], ctx: ToolContext, timeout: float
        ) -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield "x" * 1000
            finally:
                closed.append(True)

    spec = FunctionToolSpec(tool_name="it", parameters={}, max_result_bytes=10_000)
    result = await Endless(spec, move.func).execute({})
    assert result.ok
    assert len(result.content) < 10_100
    assert result.content.endswith("[cut: longer than 10000 bytes]")
    assert result.warnings
    assert closed == [True]


async def test_row_b11_items_are_told_and_pulled_as_they_come() -> None:
    async def count(args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        for n in range(3):
            yield n if args else f"{n} "

    texts, numbers = (
        FunctionToolExecutor(FunctionToolSpec(tool_name="it", parameters={"n": {"default": default}}), count)
        for default in ("x", 1)
    )
    async with execute_stream(numbers, ToolRequest("{}")) as execution:
        items = [event.value async for event in execution if isinstance(event, Item)]
    assert items == execution.result.content == [0, 1, 2]
    assert (await texts.execute({})).content in ("0 1 2 ", [0, 1, 2])


async def test_a_hook_may_return_a_result_of_its_own() -> None:
    class Warns(BaseFunctionExecutor):
        async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> ToolResult:
            assert 0 < timeout <= self.spec.timeout_s
            return ToolResult(7, warnings=("old data",))

    result = await Warns(FunctionToolSpec(tool_name="it", parameters={}, return_target="human"), move.func).execute({})
    assert (result.content, result.warnings, result.return_target) == (7, ("old data",), "human")


async def test_case_26_arguments_beyond_all_bounds_are_refused() -> None:
    deep = '{"to": ' + "[" * 10_000 + "]" * 10_000 + "}"
    for text in (deep, '{"to": NaN}', '{"steps": 1, "steps": 2}', '{"to": "' + "x" * 2_000_000 + '"}', "null", "1"):
        with pytest.raises(BadArguments) as refused:
            await execute(move, ToolRequest(text))
        assert len(str(refused.value)) < 2000
