"""Row B1: every field of `ToolSpec` and its parts takes effect; each test fails when its field is ignored."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from time import monotonic
from typing import Any

import pytest
from opentelemetry import trace as otel
from pydantic import ValidationError

from penstock import Principal, execute
from penstock.errors import ToolFailed
from penstock.events import Retrying, ToolEnded
from penstock.messages import ToolCall
from penstock.policies.idempotency import MemoryLedger
from penstock.run import Run
from penstock.testing import Heard
from penstock.tools import (
    BreakerSpec,
    CacheSpec,
    FunctionToolExecutor,
    FunctionToolSpec,
    IdempotencySpec,
    LimitSpec,
    RetrySpec,
    ToolContext,
    ToolExample,
    ToolRequest,
    ToolResult,
    run_calls,
)
from tests.policies.conftest import Spans, spans

__all__ = ["spans"]
ORDERS = Principal("olga", "shop", frozenset({"orders"}))


class Calls:
    """A function that counts its calls and fails as often as it is told."""

    def __init__(self, *, failures: int = 0, retryable: bool = False, takes_s: float = 0) -> None:
        self.count = 0
        self._failures, self._retryable, self._takes_s = failures, retryable, takes_s

    async def __call__(self, args: dict[str, Any]) -> Any:
        self.seen = args
        self.count += 1
        await asyncio.sleep(self._takes_s)
        if self.count <= self._failures:
            raise ToolFailed("not now", retryable=self._retryable)
        return self.count


def tool_of(func: Any, **fields: Any) -> FunctionToolExecutor:
    return FunctionToolExecutor(FunctionToolSpec(**{"tool_name": "it", "parameters": {}, **fields}), func)


def code(result: ToolResult) -> str:
    return result.error.code if result.error else "ok"


def test_row_b1_tool_name_is_what_a_model_calls_and_must_be_one_it_can_write() -> None:
    assert tool_of(Calls(), tool_name="look_up").definition["function"]["name"] == "look_up"
    with pytest.raises(ValidationError, match="tool_name"):
        FunctionToolSpec(tool_name="look up")


async def test_row_b1_id_is_what_a_ledger_knows_a_tool_by_whatever_its_name() -> None:
    calls, ledger = Calls(), MemoryLedger()
    found: list[Any] = []
    for name, own in (("it", "shop/it"), ("renamed", "shop/it"), ("renamed", "other")):
        kept = IdempotencySpec(ledger=True)
        spec = FunctionToolSpec(tool_name=name, id=own, parameters=(), idempotency=kept)
        tool = FunctionToolExecutor(spec, calls, ledger=ledger)
        found.append((await tool.execute({}, ToolContext(idempotency_key="k1"))).content)
    assert found == [1, 1, 2]


def test_row_b1_description_and_examples_are_what_a_model_reads() -> None:
    example = ToolExample(arguments={"city": "Leeds"}, result={"c": 12})
    told = tool_of(Calls(), description="The weather.", examples=(example,)).definition["function"]["description"]
    assert told.startswith("The weather.\n")
    assert '{"city":"Leeds"}' in told
    assert '{"c":12}' in told


async def test_row_b1_parameters_are_what_is_taken() -> None:
    tool = tool_of(Calls(), parameters={"n": "integer"})
    assert tool.definition["function"]["parameters"]["properties"]["n"]["type"] == "integer"
    assert code(await tool.execute({"n": "x"})) == "bad_arguments"
    assert code(await tool.execute({"n": 1})) == "ok"


async def test_row_b1_coerce_takes_numbers_written_as_text() -> None:
    async def double(args: dict[str, Any]) -> int:
        return int(args["n"] * 2)

    strict, lax = (tool_of(double, parameters={"n": "integer"}, coerce=coerce) for coerce in (False, True))
    assert code(await strict.execute('{"n": "21"}')) == "bad_arguments"
    assert (await lax.execute('{"n": "21"}')).content == 42


async def test_row_b1_return_type_checks_the_value() -> None:
    async def give(args: dict[str, Any]) -> Any:
        return args["value"]

    tool = tool_of(
        give,
        parameters={"type": "object", "properties": {"value": {}}, "required": ["value"]},
        return_type={"type": "integer"},
    )
    assert (await tool.execute({"value": 3})).content == 3
    assert code(await tool.execute({"value": "three"})) == "bad_return_value"


@pytest.mark.parametrize(
    ("target", "in_prompt", "to_client"),
    [("llm", True, True), ("human", False, True), ("agent", False, False), ("step", False, False)],
)
async def test_row_b1_return_target_says_who_may_see_the_value(
    target: str, *, in_prompt: bool, to_client: bool
) -> None:
    async def secret(args: dict[str, Any]) -> str:
        return "the value"

    tool = tool_of(secret, return_target=target)

    async def model(_: None, run: Run) -> Any:
        return await run_calls([ToolCall("c1", "it", "{}")], [tool], run)

    [answer] = await execute(model, None, heard := Heard())
    [ended] = [event for event in heard.events if isinstance(event, ToolEnded)]
    assert ("the value" in answer.message["content"]) is in_prompt
    assert (ended.content == "the value") is to_client
    assert answer.result.content == "the value"
    assert answer.result.return_target == target


async def test_row_b1_owner_version_and_metrics_tags_label_the_span(spans: Spans) -> None:
    tool = tool_of(Calls(), owner="shop-team", metrics_tags={"tier": "gold"}, version="7", description="Counts.")
    parent = otel.get_tracer("test").start_span("parent")
    await execute(tool, ToolRequest({}), parent=parent)
    parent.end()
    span = spans.only("execute_tool it")
    attributes = span.attributes or {}
    assert span.parent is not None
    assert span.parent.span_id == parent.get_span_context().span_id
    assert attributes["penstock.tool.owner"] == "shop-team"
    assert attributes["penstock.tool.tag.tier"] == "gold"
    assert attributes["penstock.tool.version"] == "7"
    assert attributes["openinference.span.kind"] == "TOOL"
    assert attributes["gen_ai.tool.name"] == "it"
    assert "output.value" not in attributes


@pytest.mark.parametrize("run_in", ["thread", "inline", "process"])
async def test_row_b1_run_in_says_where_a_synchronous_function_runs(run_in: str) -> None:
    process = (await tool_of(os.getpid, run_in=run_in).execute({})).content
    assert (process == os.getpid()) is (run_in != "process")
    if run_in != "process":
        here = tool_of(lambda: threading.current_thread() is threading.main_thread(), run_in=run_in)
        assert (await here.execute({})).content is (run_in == "inline")


async def test_row_b1_permissions_must_be_held() -> None:
    calls = Calls()
    tool = tool_of(calls, permissions=("orders",))
    stranger = ToolContext(principal=Principal("eve", "x", frozenset({"chat"})))
    assert code(await tool.execute({}, stranger)) == "denied"
    assert calls.count == 0
    assert code(await tool.execute({}, ToolContext(principal=ORDERS))) == "ok"


async def test_row_b1_timeout_s_ends_a_call_with_its_retries() -> None:
    calls = Calls(failures=100, retryable=True)
    tool = tool_of(calls, timeout_s=0.2, retry=RetrySpec(attempts=20, base_s=10))
    began = monotonic()
    assert code(await tool.execute({})) == "timeout"
    assert monotonic() - began < 5
    assert 1 <= calls.count < 20


@pytest.mark.parametrize("value", ["x" * 5000, ["x" * 50] * 100])
async def test_row_b1_max_result_bytes_cuts_what_is_longer_with_a_marker(value: Any) -> None:
    async def long(args: dict[str, Any]) -> Any:
        return value

    result = await tool_of(long, max_result_bytes=100).execute({})
    assert result.ok
    assert len(result.content.encode()) < 200
    assert result.content.endswith("[cut: longer than 100 bytes]")
    assert result.warnings == ("the value was cut to 100 bytes",)
    whole = await tool_of(long).execute({})
    assert (whole.content, whole.warnings) == (value, ())


async def test_row_b1_retry_attempts_and_pauses() -> None:
    calls = Calls(failures=2, retryable=True)
    heard = Heard()
    result = await execute(tool_of(calls, retry=RetrySpec(attempts=3, base_s=60, max_s=0.01)), ToolRequest({}), heard)
    assert result.content == 3
    told = [event for event in heard.events if isinstance(event, Retrying)]
    assert [event.attempt for event in told] == [2, 3]
    assert all(event.wait_s <= 0.01 for event in told)
    calls = Calls(failures=2, retryable=True)
    assert code(await tool_of(calls, retry=RetrySpec(attempts=2, base_s=0)).execute({})) == "failed"
    assert calls.count == 2


async def test_row_b1_retry_base_s_is_the_first_pause_at_most() -> None:
    heard = Heard()
    await execute(tool_of(Calls(failures=1, retryable=True), retry=RetrySpec(base_s=0)), ToolRequest({}), heard)
    assert [event.wait_s for event in heard.events if isinstance(event, Retrying)] == [0]


async def test_row_b1_retry_attempt_timeout_s_ends_one_attempt() -> None:
    class Once(Calls):
        async def __call__(self, args: dict[str, Any]) -> Any:
            self.seen = args
            self.count += 1
            await asyncio.sleep(30 if self.count == 1 else 0)
            return self.count

    retry = RetrySpec(attempts=2, base_s=0, attempt_timeout_s=0.05)
    assert code(await tool_of(Once(), retry=retry).execute({})) == "timeout"
    safe = tool_of(Once(), retry=retry, idempotency=IdempotencySpec(safe=True))
    assert (await safe.execute({})).content == 2


async def test_row_b1_idempotency_safe_says_that_a_repetition_does_no_harm() -> None:
    assert tool_of(Calls(), idempotency=IdempotencySpec(safe=True)).safe
    assert not tool_of(Calls()).safe


async def test_row_b1_circuit_breaker_failures_and_reset_s() -> None:
    calls = Calls(failures=2)
    tool = tool_of(calls, circuit_breaker=BreakerSpec(failures=2, reset_s=0.1))
    assert [code(await tool.execute({})) for _ in range(3)] == ["failed", "failed", "unavailable"]
    assert calls.count == 2
    await asyncio.sleep(0.15)
    assert [code(await tool.execute({})) for _ in range(2)] == ["ok", "ok"]


async def test_row_b1_limit_requests_per_minute_and_concurrent() -> None:
    tool = tool_of(Calls(), limit=LimitSpec(requests_per_minute=2))
    results = [await tool.execute({}) for _ in range(3)]
    assert [code(result) for result in results] == ["ok", "ok", "requests_per_minute_limit"]
    assert results[2].error is not None
    assert results[2].error.details["retry_after_s"] > 0
    tool = tool_of(Calls(takes_s=0.05), limit=LimitSpec(concurrent=1))
    together = await asyncio.gather(*(tool.execute({}) for _ in range(3)))
    assert Counter(map(code, together)) == {"ok": 1, "concurrent_limit": 2}


async def test_row_b1_cache_ttl_s_and_max_entries() -> None:
    calls = Calls()
    tool = tool_of(calls, parameters={"n": "integer"}, cache=CacheSpec(ttl_s=0.2, max_entries=1))
    assert [(await tool.execute({"n": 1})).content for _ in range(3)] == [1, 1, 1]
    assert (await tool.execute({"n": 2})).content == 2
    assert (await tool.execute({"n": 1})).content == 3
    await asyncio.sleep(0.25)
    assert (await tool.execute({"n": 1})).content == 4


async def test_row_b1_idempotency_ledger_runs_a_key_once() -> None:
    calls = Calls()
    tool = tool_of(calls, parameters={"n": "integer"}, idempotency=IdempotencySpec(ledger=True))
    keyed = ToolContext(idempotency_key="k1")
    assert [(await tool.execute({"n": 1}, keyed)).content for _ in range(3)] == [1, 1, 1]
    assert code(await tool.execute({"n": 2}, keyed)) == "idempotency_conflict"
    assert (await tool.execute({"n": 1})).content == 2
    assert (await tool_of(Calls(), parameters={"n": "integer"}).execute({"n": 1}, keyed)).content == 1


async def test_row_b1_idempotency_key_from_makes_the_key_of_arguments() -> None:
    calls = Calls()
    kept = IdempotencySpec(ledger=True, key_from=("order",))
    tool = tool_of(calls, parameters={"order": "integer", "note": {"type": "string", "default": ""}}, idempotency=kept)
    assert [(await tool.execute({"order": 7})).content for _ in range(2)] == [1, 1]
    assert code(await tool.execute({"order": 7, "note": "x"})) == "idempotency_conflict"
    assert (await tool.execute({"order": 8})).content == 2


async def test_row_b1_idempotency_ttl_s_is_how_long_a_result_is_kept() -> None:
    tool = tool_of(Calls(), idempotency=IdempotencySpec(ledger=True, ttl_s=0.05))
    keyed = ToolContext(idempotency_key="k1")
    assert (await tool.execute({}, keyed)).content == 1
    await asyncio.sleep(0.1)
    assert (await tool.execute({}, keyed)).content == 2


def test_row_b1_a_spec_goes_through_json_and_refuses_what_it_does_not_know() -> None:
    spec = FunctionToolSpec.model_validate(
        {
            "tool_name": "it",
            "parameters": {"n": {"type": "integer", "minimum": 1}, "tags": {"type": "array", "items": "string"}},
            "return_type": {"type": "integer"},
            "retry": {"attempts": 2},
            "metrics_tags": {"a": "b"},
            "examples": [{"arguments": {"n": 1, "tags": []}}],
        }
    )
    assert FunctionToolSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match="nobody"):
        FunctionToolSpec.model_validate({"tool_name": "it", "nobody": 1})
    with pytest.raises(ValidationError, match="ledger"):
        FunctionToolSpec(tool_name="it", cache=CacheSpec(), idempotency=IdempotencySpec(ledger=True))
    assert json.loads(spec.model_dump_json())["tool_name"] == "it"


async def test_row_b7_a_tool_that_only_times_out_opens_its_breaker() -> None:
    tool = tool_of(Calls(takes_s=30), timeout_s=0.05, circuit_breaker=BreakerSpec(failures=2))
    assert [code(await tool.execute({})) for _ in range(3)] == ["timeout", "timeout", "unavailable"]
