"""What must not happen in the pipeline, however a tool behaves: lost cancels, second effects, values that are none."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncGenerator
from types import CoroutineType
from typing import Any

import pytest
from pydantic import SecretStr

from penstock import execute
from penstock.errors import BadArguments, ToolFailed, Unavailable, UsageError
from penstock.events import Retrying, Text
from penstock.messages import ToolCall, text_of
from penstock.policies.idempotency import MemoryLedger
from penstock.run import Run
from penstock.testing import Heard
from penstock.tools import (
    BaseFunctionExecutor,
    BreakerSpec,
    CacheSpec,
    FunctionToolExecutor,
    FunctionToolSpec,
    IdempotencySpec,
    LimitSpec,
    RetrySpec,
    ToolContext,
    ToolFault,
    ToolRequest,
    ToolResult,
    run_calls,
    tool,
)
from penstock.tools.stages import canonical

KEYED = ToolContext(idempotency_key="k")


def code(result: ToolResult) -> str:
    return result.error.code if result.error else "ok"


async def test_a_deadline_holds_when_the_tool_answers_its_cancel_with_a_retryable_error() -> None:
    calls = 0

    @tool(timeout_s=0.1, retry=RetrySpec(attempts=5, base_s=0))
    async def stubborn() -> str:
        nonlocal calls
        calls += 1
        try:
            await asyncio.sleep(30)
        finally:
            raise ToolFailed("cleaning up failed", retryable=True)

    async with asyncio.timeout(5):
        assert code(await stubborn.execute({})) == "timeout"
    assert calls == 1


async def test_a_cancel_is_not_lost_when_the_tool_answers_it_with_an_error() -> None:
    @tool(retry=RetrySpec(attempts=5, base_s=0))
    async def stubborn() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            raise ToolFailed("cleaning up failed", retryable=True)

    running = asyncio.create_task(stubborn.execute({}))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)


async def test_a_result_with_an_error_does_not_become_a_value() -> None:
    class Inner(BaseFunctionExecutor):
        async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> ToolResult:
            return ToolResult(error=ToolFault("sold_out", "nothing left", retryable=False, details={"left": 0}))

    async def nothing(args: dict[str, Any]) -> None:
        return None

    spec = FunctionToolSpec(tool_name="it", parameters={}, idempotency=IdempotencySpec(ledger=True))
    for _ in range(2):
        result = await Inner(spec, nothing).execute({}, KEYED)
        assert result.error == ToolFault("sold_out", "nothing left", retryable=False, details={"left": 0})


@pytest.mark.parametrize(("safe", "times"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("error", [Unavailable("the model is away"), ConnectionResetError("gone")])
async def test_an_effect_is_not_repeated_for_an_error_of_somebody_else(
    error: Exception, *, safe: bool, times: int
) -> None:
    done: list[int] = []

    @tool(retry=RetrySpec(attempts=3, base_s=0), idempotency=IdempotencySpec(safe=safe))
    async def order() -> None:
        done.append(1)
        raise error

    assert not (await order.execute({})).ok
    assert len(done) == times


async def test_a_ledger_does_not_free_a_key_for_an_error_of_somebody_else() -> None:
    done: list[int] = []

    @tool(idempotency=IdempotencySpec(ledger=True))
    async def order() -> None:
        done.append(1)
        raise Unavailable("the model is away")

    for _ in range(3):
        assert not (await order.execute({}, KEYED)).ok
    assert done == [1]


def test_keys_do_not_depend_on_the_order_of_sets() -> None:
    assert canonical({"tags": {"b", "a", "c"}}) == b'{"tags":["a","b","c"]}'


async def test_a_cache_tells_secrets_apart() -> None:
    @tool(cache=CacheSpec())
    async def who(password: SecretStr) -> str:
        return password.get_secret_value()

    assert [(await who.execute({"password": word})).content for word in ("one", "two", "one")] == ["one", "two", "one"]


@pytest.mark.parametrize("text", ["", " ", b"", b" \n", "{}", " {} ", "\ufeff{}", b"\xef\xbb\xbf{}"])
async def test_whatever_is_read_as_no_arguments_is_cached_as_that(text: str | bytes) -> None:
    made = 0

    @tool(cache=CacheSpec())
    async def count() -> int:
        nonlocal made
        made += 1
        return made

    results = [await count.execute(given) for given in (text, text, "{}")]
    if results[0].ok:
        assert [result.content for result in results] == [1, 1, 1]
    else:
        assert [code(result) for result in results] == ["bad_arguments", "bad_arguments", "ok"]


async def test_two_tools_share_a_ledger_and_not_their_keys() -> None:
    ledger, made = MemoryLedger(), []
    for id_ in ("pay", "pay:eu"):

        async def give(args: dict[str, Any], id_: str = id_) -> str:
            return id_

        spec = FunctionToolSpec(tool_name="pay", id=id_, parameters={}, idempotency=IdempotencySpec(ledger=True))

        class Giving(BaseFunctionExecutor):
            async def _execute_function(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> str:
                return self.spec.id

        made.append(Giving(spec, give, ledger=ledger))
    first = await made[0].execute({}, ToolContext(idempotency_key="eu:7"))
    second = await made[1].execute({}, ToolContext(idempotency_key="7"))
    assert (first.content, second.content) == ("pay", "pay:eu")


async def test_row_b7_a_breaker_opens_for_a_safe_tool_that_hangs_with_retries() -> None:
    @tool(
        timeout_s=0.1,
        circuit_breaker=BreakerSpec(failures=1),
        retry=RetrySpec(attempts=3, base_s=0, attempt_timeout_s=0.06),
        idempotency=IdempotencySpec(safe=True),
    )
    async def hangs() -> None:
        await asyncio.sleep(30)

    results = [await hangs.execute({}) for _ in range(2)]
    assert [code(result) for result in results] == ["timeout", "unavailable"]


@pytest.mark.parametrize(
    ("said", "opens"),
    [
        ("http_404", False),
        ("constraint_violation", False),
        ("http_503", True),
        ("http_429", True),
        ("failed", True),
    ],
)
async def test_row_b7_what_says_something_of_the_call_alone_does_not_open_the_breaker(
    said: str, *, opens: bool
) -> None:
    @tool(circuit_breaker=BreakerSpec(failures=2))
    async def says() -> None:
        raise ToolFailed("no", code=said)

    codes = [code(await says.execute({})) for _ in range(3)]
    assert codes[-1] == ("unavailable" if opens else said)


@pytest.mark.parametrize("value", [{"x": math.nan}, [math.inf]])
async def test_a_number_that_json_does_not_know_is_null_where_it_is_shown(value: Any) -> None:
    @tool
    async def give() -> Any:
        return value

    async def model(_: None, run: Run) -> Any:
        return await run_calls([ToolCall("a", "give", "{}")], [give], run)

    [answer] = await execute(model, None)
    assert "null" in answer.message["content"]


@pytest.mark.parametrize("value", ["\ud800", ["\ud800"], (n for n in range(3)), {"a": iter([1])}, {(1, 2): 3}])
async def test_a_value_that_cannot_be_written_is_refused(value: Any) -> None:
    @tool
    async def give() -> Any:
        return value

    assert code(await give.execute({})) == "bad_return_value"


@pytest.mark.parametrize("target", ["agent", "step"])
async def test_row_b1_return_target_holds_for_a_stream_too(target: str) -> None:
    async def words(args: dict[str, Any]) -> AsyncGenerator[str, None]:
        yield "for the "
        yield "caller"

    spec = FunctionToolSpec(tool_name="it", parameters={}, return_target=target)  # type: ignore[arg-type]
    result = await execute(FunctionToolExecutor(spec, words), ToolRequest("{}"), heard := Heard())
    assert result.content == "for the caller"
    assert not [event for event in heard.events if isinstance(event, Text)]


async def test_case_20_a_tool_that_cancels_its_task_takes_no_sibling_with_it() -> None:
    @tool
    async def gives_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    @tool
    async def good() -> str:
        await asyncio.sleep(0.02)
        return "good"

    calls = [ToolCall("a", "gives_up", "{}"), ToolCall("b", "good", "{}")]
    answers = await run_calls(calls, [gives_up, good])
    assert [code(answer.result) for answer in answers] == ["cancelled", "ok"]


async def test_case_21_a_stream_of_nothing_ends_too() -> None:
    async def nothing(args: dict[str, Any]) -> AsyncGenerator[str, None]:
        while True:
            yield ""

    spec = FunctionToolSpec(tool_name="it", parameters={}, max_result_bytes=100)
    assert (await FunctionToolExecutor(spec, nothing).execute({})).ok


async def test_details_that_json_cannot_carry_are_told_as_text() -> None:
    @tool
    async def fails() -> None:
        raise ToolFailed("no", details={"what": object()})

    [answer] = await run_calls([ToolCall("a", "fails", "{}")], [fails])
    assert "object object" in text_of(answer.message)


@pytest.mark.parametrize("arguments", [None, [], 7, object()])
async def test_case_26_arguments_of_another_kind_are_refused(arguments: Any) -> None:
    @tool
    async def it() -> None:
        return None

    with pytest.raises(BadArguments):
        await execute(it, ToolRequest(arguments))


async def test_two_tools_of_one_name_are_refused() -> None:
    @tool(name="it")
    async def one() -> None:
        return None

    with pytest.raises(UsageError, match="'it'"):
        await run_calls([], [one, one])


async def test_an_answer_without_calls_has_no_answers() -> None:
    assert await run_calls([], []) == []


@pytest.mark.parametrize(("fields", "own"), [({}, 2), ({"retry": RetrySpec()}, 2), ({"limit": LimitSpec()}, 4)])
async def test_a_policy_that_is_not_configured_is_no_layer_of_a_call(fields: dict[str, Any], own: int) -> None:
    done = asyncio.Event()

    @tool(**fields)
    async def waits() -> str:
        await done.wait()
        return "done"

    call = asyncio.create_task(waits.execute({}))
    await asyncio.sleep(0)
    layers = list[str]()
    inner: Any = call.get_coro()
    while isinstance(inner, CoroutineType):
        layers.append(inner.__name__)
        inner = inner.cr_await
    assert layers.index("waits") == own
    done.set()
    assert (await call).content == "done"


async def test_a_retried_call_tells_that_and_what_it_raised_is_freed_at_once() -> None:
    class Lost(Exception):
        pass

    left: list[weakref.ref[Lost]] = []

    @tool(retry=RetrySpec(attempts=2, base_s=0), idempotency=IdempotencySpec(safe=True))
    async def fails() -> None:
        left.append(weakref.ref(error := Lost("gone")))
        try:
            raise ToolFailed("again", retryable=True) from error
        finally:
            del error

    gc.disable()
    try:
        with pytest.raises(ToolFailed, match="again"):
            await execute(fails, ToolRequest("{}"), heard := Heard())
        assert [event.attempt for event in heard.events if isinstance(event, Retrying)] == [2]
        heard.events.clear()
        assert not (await fails.execute({})).ok
        assert [each() for each in left] == [None] * 4
    finally:
        gc.enable()


async def test_a_call_without_a_run_is_a_root_of_its_own_for_a_function_that_is_given_one() -> None:
    ended: list[str] = []

    @tool
    async def notes(name: str, ctx: ToolContext) -> str:
        assert ctx.run is not None
        ctx.run.closing(lambda outcome: ended.append(f"{name}: {type(outcome).__name__}"))
        return name

    for name in ("one", "two"):
        await notes.execute({"name": name})
    assert ended == ["one: Finished", "two: Finished"]
