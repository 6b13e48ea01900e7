"""`fallback`: who is asked next, after what, and never once a part of an answer was told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import (
    BadAnswer,
    BadRequest,
    Invalid,
    LimitReached,
    PenstockError,
    RateLimited,
    Refused,
    TimedOut,
    ToolFailed,
    TooLong,
    Unauthorized,
    Unavailable,
    UsageError,
)
from penstock.events import Chunks, Event, Item, Reasoning, Switched, Text, Used
from penstock.messages import ChatRequest, Chunk, Usage
from penstock.outcome import Failed, Finished
from penstock.policies import wrap
from penstock.policies.fallback import fallback, worth_another
from penstock.policies.limit import limit
from penstock.policies.retry import retry
from penstock.policies.timeout import timeout
from penstock.run import Executor, Run, execute
from penstock.testing import Heard, ScriptedLlm

ASK = ChatRequest.of("hi")
ANOTHERS = (
    RateLimited("no"),
    Unavailable("no"),
    TimedOut("no"),
    Unauthorized("no"),
    BadAnswer("no"),
    BadRequest("no", code="unsupported_parameter"),
    BadRequest("no", code="model_not_found"),
    ToolFailed("no", retryable=True),
    PenstockError("no", retryable=True),
)
FINAL = (
    BadRequest("no"),
    TooLong("no"),
    Refused("no"),
    Invalid("no"),
    UsageError("no"),
    LimitReached("no", limit="budget", retry_after=0.0),
    ToolFailed("no"),
    PenstockError("no"),
)
STRANGERS = (ValueError("no"), OSError("no"), TimeoutError("no"))


def kind(error: Exception) -> str:
    return type(error).__name__


def failing(error: Exception, *told: Event) -> Executor[Any, Any]:
    async def executor(request: Any, run: Run) -> Any:
        for event in told:
            await run.emit(event)
        raise error

    return executor


@pytest.mark.parametrize("error", ANOTHERS, ids=kind)
async def test_case_09_a_fallback_before_the_first_byte_is_invisible(error: Exception) -> None:
    other, heard = ScriptedLlm("all is well", model="other"), Heard()
    reply = await execute(fallback(("other", other))(ScriptedLlm(error)), ASK, heard)
    assert reply.content == heard.text == "all is well"
    assert heard.events[0] == Switched(to="other", error=error)
    assert [type(event) for event in heard.events[1:]] == [Chunks, Chunks, Chunks, Chunks, Used, Finished]
    assert worth_another(error)


@pytest.mark.parametrize("error", [*FINAL, *STRANGERS], ids=kind)
async def test_what_no_other_can_mend_is_raised_at_once(error: Exception) -> None:
    other, heard = ScriptedLlm("never"), Heard()
    with pytest.raises(type(error)) as caught:
        await execute(fallback(("other", other))(ScriptedLlm(error)), ASK, heard)
    assert caught.value is error
    assert other.requests == []
    assert heard.events == [Failed(error)]
    assert not worth_another(error)


PART = Chunks(views=[Chunk(choices=[])])


@pytest.mark.parametrize("path", ["", "child"])
@pytest.mark.parametrize("said", [Text("par"), Reasoning("hm"), Item(1), PART], ids=lambda event: type(event).__name__)
async def test_case_09_after_the_first_byte_there_is_an_honest_error_and_no_second_start(
    said: Event, path: str
) -> None:
    async def broken(request: Any, run: Run) -> Any:
        await (run.child(path) if path else run).emit(said)
        raise error

    error, other, heard = Unavailable("cut"), ScriptedLlm("never"), Heard()
    with pytest.raises(Unavailable) as caught:
        await execute(fallback(("other", other))(broken), ASK, heard)
    assert caught.value is error
    assert other.requests == []
    assert [type(event) for event in heard.events] == [type(said), Failed]


async def test_what_a_later_one_told_is_final_too() -> None:
    last = ScriptedLlm("never")
    executor = fallback(("broken", failing(BadAnswer("cut"), Text("par"))), ("last", last))(failing(TimedOut("first")))
    with pytest.raises(BadAnswer, match="cut") as caught:
        await execute(executor, ASK)
    assert last.requests == []
    assert caught.value.__notes__ == ["before it, the first failed: TimedOut: first"]


async def test_usage_that_was_told_does_not_hinder() -> None:
    other, heard = ScriptedLlm("fine"), Heard()
    await execute(fallback(("other", other))(failing(TimedOut("late"), Used(usage=Usage(1, 0, 1)))), ASK, heard)
    assert heard.text == "fine"
    assert [type(event) for event in heard.events[:2]] == [Used, Switched]


async def test_all_are_asked_in_their_order_and_the_last_error_carries_the_earlier_ones() -> None:
    asked: list[str] = []

    def named(name: str) -> Executor[Any, Any]:
        async def executor(request: Any, run: Run) -> Any:
            asked.append(name)
            raise Unavailable(f"{name} is down")

        return executor

    executor, heard = fallback(("b", named("b")), ("c", named("c")))(named("a")), Heard()
    for _ in range(2):
        with pytest.raises(Unavailable, match="c is down") as caught:
            await execute(executor, ASK, heard)
        assert caught.value.__notes__ == [
            "before it, the first failed: Unavailable: a is down",
            "before it, 'b' failed: Unavailable: b is down",
        ]
    assert asked == ["a", "b", "c"] * 2
    assert [event.to for event in heard.events if isinstance(event, Switched)] == ["b", "c"] * 2


WORDLESS, NAMELESS = (BadRequest("no", code=code) for code in ("unsupported_parameter", "model_not_found"))
DOWN, BUSY, WRONG = Unavailable("down"), RateLimited("busy"), BadRequest("wrong")


@pytest.mark.parametrize(
    ("failed", "raised"),
    [
        ([DOWN, WORDLESS], DOWN),
        ([WORDLESS, DOWN, WORDLESS], DOWN),
        ([DOWN, BUSY, WORDLESS], DOWN),
        ([DOWN, BUSY], BUSY),
        ([WORDLESS, DOWN], DOWN),
        ([NAMELESS, WORDLESS], NAMELESS),
        ([DOWN, WRONG], WRONG),
    ],
)
async def test_what_a_service_said_is_raised_rather_than_that_another_has_no_words(
    failed: list[PenstockError], raised: PenstockError
) -> None:
    first, *others = (ScriptedLlm(error) for error in failed)
    executor = fallback(*((str(n), other) for n, other in enumerate(others)))(first)
    with pytest.raises(PenstockError) as caught:
        await execute(executor, ASK)
    assert caught.value is raised


async def test_an_error_that_is_raised_again_is_not_noted_twice() -> None:
    same = Unavailable("down")
    executor = fallback(("b", failing(same)))(failing(TimedOut("late")))
    for _ in range(3):
        with pytest.raises(Unavailable):
            await execute(executor, ASK)
    assert same.__notes__ == ["before it, the first failed: TimedOut: late"]


async def test_the_caller_may_say_what_is_worth_another() -> None:
    def longer(error: Exception) -> bool:
        return isinstance(error, TooLong)

    executor = fallback(("long", ScriptedLlm("it fits")), when=longer)
    assert (await execute(executor(ScriptedLlm(TooLong("no"))), ASK)).content == "it fits"
    with pytest.raises(Unavailable):
        await execute(executor(ScriptedLlm(Unavailable("no"))), ASK)


async def test_with_no_others_the_error_is_as_it_was() -> None:
    error = Unavailable("down")
    with pytest.raises(Unavailable) as caught:
        await execute(fallback()(failing(error)), ASK)
    assert caught.value is error
    assert not hasattr(error, "__notes__")


async def test_a_cancel_is_a_cancel_and_nobody_else_is_asked() -> None:
    async def stuck(request: Any, run: Run) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise (TimedOut("stopped") if request == "over it" else asyncio.CancelledError) from None

    other = ScriptedLlm("never")
    for request in ("plain", "over it"):
        call = asyncio.ensure_future(execute(fallback(("other", other))(stuck), request))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled() or isinstance(call.exception(), TimedOut)
    assert other.requests == []


@pytest.mark.parametrize("around", [(), (limit(concurrent=10), timeout(30)), (retry(attempts=1),)])
async def test_fallbacks_that_lead_to_each_other_ask_each_once_and_end(around: Any) -> None:
    asked, ring = list[str](), dict[str, Executor[Any, Any]]()

    def model(name: str, following: str) -> Executor[Any, Any]:
        async def own(request: Any, run: Run) -> Any:
            asked.append(name)
            raise errors[name]

        async def other(request: Any, run: Run) -> Any:
            return await ring[following](request, run)

        return wrap(own, [*around, fallback((following, other))])

    errors = {name: Unavailable(f"{name} is down") for name in "abc"}
    ring |= {name: model(name, following) for name, following in ("ab", "bc", "ca")}
    for _ in range(2):
        asked.clear()
        with pytest.raises(Unavailable, match="a is down"):
            await asyncio.wait_for(execute(ring["a"], ASK), 5)
        assert asked == ["a", "b", "c"]
    assert "before it, the first failed: Unavailable: c is down" in errors["a"].__notes__


async def test_the_same_executor_is_not_asked_again_further_in() -> None:
    last = ScriptedLlm(Unavailable("last is down"))
    inner = fallback(("last", last), ("first", first := ScriptedLlm(Unavailable("first is down"))))
    executor = fallback(("first", first), ("inner", inner(failing(Unavailable("inner is down")))))
    with pytest.raises(Unavailable, match="last is down"):
        await execute(executor(failing(Unavailable("down"))), ASK)
    assert (len(first.requests), len(last.requests)) == (1, 1)


async def test_a_program_that_calls_again_after_a_failure_is_served_again() -> None:
    model = ScriptedLlm(Unavailable("a"), "mended")
    guarded = fallback(("other", ScriptedLlm(Unavailable("b"))))(model)

    async def agent(request: Any, run: Run) -> Any:
        with pytest.raises(Unavailable, match="b"):
            await guarded(request, run.child("first"))
        return await guarded(request, run)

    for executor in (agent, fallback(("other", failing(Unavailable("c"))))(agent), retry(base_s=0)(guarded)):
        model.requests.clear()
        assert (await execute(executor, ASK)).content == "mended"
