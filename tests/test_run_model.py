"""The root's ending against a model: any order of finish, failure, cancels, a broken listener and broken storing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock import root as root_module
from penstock.events import Event, Text
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.root import Closing, Listener
from penstock.run import Run, execute, execute_stream

TAIL_S = 0.02
BOUND_S = 10.0  # far above what any of this takes: it only turns a hang into a failure
HookKind = Literal["plain", "async", "plain fails", "async fails", "hangs"]
HOOKS: tuple[HookKind, ...] = ("plain", "async", "plain fails", "async fails", "hangs")
FAILING = ("plain fails", "async fails", "hangs")


@dataclass(frozen=True, slots=True)
class Script:
    """What happens to one run: `None` means never; numbers are events, or turns of the loop for `cancels`."""

    events: int
    fails: bool
    pauses: bool
    hooks: tuple[HookKind, ...]
    cancels: tuple[int, ...]
    listener: Literal["none", "plain", "async"]
    listener_fails_at: int | None


scripts = st.builds(
    Script,
    events=st.integers(0, 4),
    fails=st.booleans(),
    pauses=st.booleans(),
    hooks=st.lists(st.sampled_from(HOOKS), max_size=4).map(tuple),
    cancels=st.lists(st.integers(0, 14), max_size=2).map(lambda turns: tuple(sorted(turns))),
    listener=st.sampled_from(("none", "plain", "async")),
    listener_fails_at=st.none() | st.integers(0, 4),
)


@dataclass(slots=True)
class Seen:
    """What the parts of one run saw; `log` is everything in the order it was seen."""

    script: Script
    error: ValueError = field(default_factory=lambda: ValueError("executor"))
    listener_error: OSError = field(default_factory=lambda: OSError("listener"))
    storing_errors: list[Exception] = field(default_factory=list[Exception])
    hooks: list[tuple[int, Outcome[Any]]] = field(default_factory=list[tuple[int, Outcome[Any]]])
    told: list[Event] = field(default_factory=list[Event])
    log: list[str] = field(default_factory=list[str])
    listener_failed: bool = False
    started: bool = False

    async def executor(self, request: str, run: Run, /) -> str:
        self.started = True
        for number in range(self.script.events):
            await run.emit(Text(str(number)))
            if self.script.pauses:
                await asyncio.sleep(0)
        if self.script.fails:
            raise self.error
        return request

    def hook(self, number: int, kind: HookKind) -> Closing:
        """One closing hook, called last to first; it stands for a span that is ended."""

        def now(outcome: Outcome[Any]) -> None:
            self.log.append("hook")
            self.hooks.append((number, outcome))
            if kind.endswith("fails"):
                self.storing_errors.append(RuntimeError(f"storing {number}"))
                raise self.storing_errors[-1]

        async def later(outcome: Outcome[Any]) -> None:
            try:
                now(outcome)
            finally:
                await asyncio.sleep(0)
            if kind == "hangs":
                await asyncio.Event().wait()

        return now if kind.startswith("plain") else later

    def listener(self) -> Listener | None:
        def take(event: Event) -> bool:
            assert not self.listener_failed, "a failed listener is not called again"
            self.told.append(event)
            self.log.append("told")
            return len(self.told) - 1 == self.script.listener_fails_at and isinstance(event, Text)

        def fail() -> None:
            self.listener_failed = True
            raise self.listener_error

        def now(event: Event) -> None:
            if take(event):
                fail()

        async def later(event: Event) -> None:
            breaks = take(event)
            await asyncio.sleep(0)
            if breaks:
                fail()

        return {"none": None, "plain": now, "async": later}[self.script.listener]

    def check(self, *, cancelled: bool, result: str | BaseException) -> None:
        """Everything that must hold, whatever the order was."""
        hooks = self.script.hooks
        if not self.started:
            assert cancelled
            assert not self.log
            return
        assert [number for number, _ in self.hooks] == list(reversed(range(len(hooks)))), "each hook once, newest first"
        ends = [event for event in self.told if not isinstance(event, Text)]
        heard = self.script.listener != "none" and not self.listener_failed
        assert len(ends) == heard, "one terminal event, or none where the listener failed"
        assert not ends or self.log[-1] == "told", "the end is told after all hooks"
        if not hooks:
            return
        last_number, last = self.hooks[-1]
        stored = not any(kind in FAILING for kind in hooks)
        if stored:
            assert all(outcome == last for _, outcome in self.hooks)
        if heard and hooks[last_number] not in FAILING and "hangs" not in hooks:
            assert ends == [last], "what is told is what was stored"
        elif heard:
            assert isinstance(ends[0], Failed)
        self.check_first(self.hooks[0][1], cancelled=cancelled)
        self.check_result(ends[0] if heard else None, result, cancelled=cancelled, stored=stored)

    def check_first(self, first: Outcome[Any], *, cancelled: bool) -> None:
        """The outcome as it was before any storing could fail."""
        if self.listener_failed:
            assert first == Cancelled("listener failed: listener")
        elif isinstance(first, Cancelled):
            assert cancelled
        else:
            assert first == (Failed(self.error) if self.script.fails else Finished("request"))

    def check_result(self, end: Event | None, result: str | BaseException, *, cancelled: bool, stored: bool) -> None:
        """What `execute` returned or raised agrees with the end."""
        if isinstance(result, asyncio.CancelledError):
            assert cancelled
        elif not stored:
            assert isinstance(result, TimeoutError) or result in self.storing_errors
            assert end is None or end == Failed(result)
        elif self.listener_failed:
            assert result is self.listener_error
        else:
            assert result == (self.error if self.script.fails else "request")
            assert end is None or end == (Failed(self.error) if self.script.fails else Finished("request"))


async def outcome_of(task: asyncio.Task[str]) -> str | BaseException:
    await asyncio.wait([task], timeout=BOUND_S)
    assert task.done(), "the run hangs"
    return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


async def push(script: Script) -> None:
    seen = Seen(script)
    hooks = [seen.hook(number, kind) for number, kind in enumerate(script.hooks)]
    task = asyncio.create_task(execute(seen.executor, "request", seen.listener(), closing=hooks))
    turn, cancelled = 0, False
    for cancel_at in script.cancels:
        while turn < cancel_at:
            turn += 1
            await asyncio.sleep(0)
        cancelled = task.cancel() or cancelled
    seen.check(cancelled=cancelled, result=await outcome_of(task))
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left behind"


async def pull(script: Script) -> None:
    """The same run, pulled; its block is left after the first cancel's number of events."""
    seen = Seen(script)
    hooks = [seen.hook(number, kind) for number, kind in enumerate(script.hooks)]
    take, events = script.cancels[0] if script.cancels else 99, list[Event]()
    result: str | BaseException = "left"
    try:
        async with asyncio.timeout(BOUND_S), execute_stream(seen.executor, "request", closing=hooks) as execution:
            while len(events) < take and (event := await anext(execution, None)) is not None:
                events.append(event)
        result = execution.result
    except (ValueError, RuntimeError, TimeoutError) as error:
        result = error
    assert seen.started
    assert [number for number, _ in seen.hooks] == list(reversed(range(len(hooks))))
    ends = [event for event in events if not isinstance(event, Text)]
    assert len(ends) <= 1
    if ends:
        assert events[-1] is ends[0]
        assert ends[0] == (Failed(result) if isinstance(result, Exception) else Finished(result))
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left behind"


@pytest.fixture(autouse=True)
def _short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_module, "TAIL_S", TAIL_S)


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(scripts)
@example(
    Script(0, fails=False, pauses=False, hooks=("hangs",), cancels=(3, 4), listener="async", listener_fails_at=None)
)
@example(
    Script(
        2, fails=True, pauses=True, hooks=("async", "plain fails"), cancels=(), listener="plain", listener_fails_at=1
    )
)
def test_pushed_run_ends_once_whatever_happens(script: Script) -> None:
    asyncio.run(push(script))


@quick
@given(scripts)
def test_pulled_run_ends_once_whatever_happens(script: Script) -> None:
    asyncio.run(pull(script))
