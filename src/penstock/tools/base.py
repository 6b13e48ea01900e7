"""`BaseToolExecutor`: the one pipeline of every tool, whatever it calls.

In this order: deadline, authorise, validate, cache or ledger, limit, breaker, retry (with a limit for an attempt), the
call itself, normalise; metered and traced as a whole. What a spec does not ask for is not there.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import aclosing
from time import monotonic
from types import CoroutineType
from typing import Any, Generic, NoReturn, TypeGuard, TypeVar, cast

import msgspec

from penstock.errors import Denied, PenstockError, ToolError, ToolFailed, ToolTimeout, UsageError
from penstock.events import Event, Item, Text, Used
from penstock.messages import Usage
from penstock.policies import Policy, wrap
from penstock.policies.idempotency import Ledger
from penstock.policies.timeout import Deadline
from penstock.root import Root
from penstock.run import LOCAL, Run, execute
from penstock.tools.arguments.parsing import Arguments
from penstock.tools.meter import meter, traced
from penstock.tools.result import Arguments as RawArguments
from penstock.tools.result import ToolContext, ToolRequest, ToolResult
from penstock.tools.spec import SHOWN, ToolSpec
from penstock.tools.stages import Checked, stages
from penstock.tools.value import Sized, code_of, fault_of, normaliser

Spec = TypeVar("Spec", bound=ToolSpec)
Hook = Awaitable[Any] | AsyncIterator[Any]

_NO_CONTEXT = ToolContext()
_UNHEARD = Root(None, ())
_ALONE = Run("", _UNHEARD.tell, LOCAL, None, _UNHEARD)  # of calls that nobody hears, and that are not given it


class BaseToolExecutor(Generic[Spec]):
    """A tool: an executor from `ToolRequest` to `ToolResult` with a spec. Called as an executor it raises its errors.

    `policies` go around the whole pipeline, the first outermost. `ledger` is where a spec with `idempotency.ledger`
    keeps its calls; without one they are kept in memory. `trace_content` puts arguments and values on spans.
    """

    speaks: bool = True
    """Whether a call may tell events; where it cannot, nobody listens for the usage of models it asks."""
    alone: bool = False
    """Whether the run stays unknown to what a call reaches: one that nobody hears then needs no root of its own."""

    def __init__(
        self,
        spec: Spec,
        *,
        arguments: Arguments | None = None,
        policies: Iterable[Policy] = (),
        ledger: Ledger | None = None,
        trace_content: bool = False,
    ) -> None:
        self.spec = spec
        self.arguments = arguments or declared(spec)
        """What the tool takes: `.schema` for a model, `.parse(text)` for a call."""
        self.policies, self.ledger = tuple(policies), ledger
        self._permissions = frozenset(spec.permissions)
        self._normalise = normaliser(spec)
        self._meter = meter(spec)
        self._speaks = self.speaks
        defaults: dict[str, dict[str, Any]] = self.arguments.schema.get("properties") or {}
        inner = stages(
            spec,
            defaults={name: about["default"] for name, about in defaults.items() if "default" in about},
            safe=self.safe,
            speaks=self._speaks,
            late=self._late,
            ledger=ledger,
        )
        retried = len(inner) == 1 and spec.retry is not None
        self._again = inner[0] if retried else None
        plain = not self._speaks and (retried or not inner)
        self._inner = None if plain else wrap(self._attempt, inner)
        self._rootless = self.alone and not self.policies
        self._outer = wrap(self._pipeline, self.policies)
        self._traced = wrap(self._outer, [traced(spec, content=trace_content)])

    @property
    def name(self) -> str:
        """The name that a model calls."""
        return self.spec.tool_name

    @property
    def safe(self) -> bool:
        """Whether repeating a call does no harm."""
        return self.spec.idempotency.safe

    @property
    def description(self) -> str:
        """What a model reads: the description, and the examples below it."""
        examples = [_example(example.arguments, example.result) for example in self.spec.examples]
        return "\n".join([self.spec.description, "Examples:", *examples]) if examples else self.spec.description

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as the OpenAI request field `tools` describes it."""
        function = {"name": self.name, "description": self.description, "parameters": self.arguments.schema}
        return {"type": "function", "function": function}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def __call__(self, request: ToolRequest, run: Run, /) -> ToolResult:
        """Call the tool; raises `ToolError` where there is no value."""
        call = self._outer if run.span is None else self._traced
        return await call(request, run)  # type: ignore[no-any-return]

    async def execute(self, args: RawArguments, ctx: ToolContext = _NO_CONTEXT) -> ToolResult:
        """Call the tool and have its error as a value, as a model is told it: see `result.ok`.

        Within `ctx.run` the call is a child of that run; without one it is a root of its own.
        """
        began = monotonic()
        request = ToolRequest(args, ctx.idempotency_key)
        try:
            if ctx.run is not None:
                return await self(request, _within(ctx, ctx.run, self.name))
            if self._rootless:
                return await self._pipeline(request, _ALONE if ctx is _NO_CONTEXT else _alone(ctx))
            return await execute(self._outer, request, principal=_principal(ctx))
        except PenstockError as error:
            target = self.spec.return_target
            return ToolResult(error=fault_of(error), latency_s=monotonic() - began, return_target=target)

    async def aclose(self) -> None:
        """Free what the tool holds, such as connections; it may be called again afterwards."""

    def _operate(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:
        """Do the work: what each kind of tool fills in. `timeout` is the seconds left."""
        raise UsageError(f"{type(self).__name__} has nothing to call: extend one of its children")

    def _late(self, message: str) -> ToolTimeout:
        """What a call that overran is told."""
        return ToolTimeout(message)

    async def _pipeline(self, request: ToolRequest, run: Run, /) -> ToolResult:
        began, outcome = monotonic(), "failed"
        seconds, usage = self.spec.timeout_s, None
        deadline = Deadline(seconds)
        try:
            if self._permissions:
                self._authorise(run)
            given = request.arguments
            call = Checked(self.arguments.parse(given), given, request.idempotency_key, began + seconds)
            with deadline:
                if self._inner is None:  # as few layers as there are: each costs a call that waits
                    try:
                        value = await self._start(call, run)
                    except (Exception, SystemExit, asyncio.CancelledError) as error:
                        value = await self._after([error], call, run, deadline)
                elif self._speaks:
                    value, usage = await self._overheard(call, run, deadline)
                else:
                    value = await self._inner(call, run)
            result = self._normalise(value, monotonic() - began, usage)
            outcome = "ok"
        except TimeoutError as late:
            if not deadline.expired:
                raise
            outcome = ToolTimeout.default_code
            raise self._late(f"not finished within {seconds:g} s") from late
        except PenstockError as error:
            outcome = code_of(error)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._meter(monotonic() - began, outcome)
        return result

    async def _after(self, failed: list[BaseException], call: Checked, run: Run, deadline: Deadline) -> Any:
        """The value of another attempt, where there is one, after the first has failed."""

        async def attempt(call: Checked, run: Run, /) -> Any:
            if failed:
                self._tell(failed.pop())
            return await self._attempt(call, run)

        if self._again is None or deadline.cancelled:
            self._tell(failed.pop())
        return await self._again(attempt)(call, run)

    async def _overheard(self, call: Checked, run: Run, deadline: Deadline) -> tuple[Any, Usage | None]:
        """The value of a call that may tell events: that takes none of its time, and what models used is counted."""
        used: list[Usage] = []

        async def tell(event: Event) -> None:
            if isinstance(event, Used):
                used.append(event.usage)
            deadline.pause()
            try:
                await run.emit(event)
            finally:
                deadline.resume()

        value = await cast("Any", self._inner)(call, run.telling(tell))
        return value, sum(used, Usage()) if used else None

    def _authorise(self, run: Run) -> None:
        missing = sorted(scope for scope in self._permissions if not run.principal.holds(scope))
        if missing:
            raise Denied(f"{run.principal.name!r} lacks the permission {', '.join(map(repr, missing))} for this tool")

    def _start(self, call: Checked, run: Run) -> Awaitable[Any]:
        principal = run.principal
        ctx = ToolContext(principal, principal.tenant, call.key, run)
        answer = self._operate(call.values, ctx, call.until - monotonic())
        if type(answer) is not CoroutineType and _streams(answer):
            return self._drain(answer, run)
        return cast("Awaitable[Any]", answer)

    async def _attempt(self, call: Checked, run: Run, /) -> Any:
        try:
            return await self._start(call, run)
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            self._tell(error)

    def _tell(self, error: BaseException) -> NoReturn:
        """Raise what a model is told of the error; it must not end the process, nor the call's siblings."""
        try:
            if isinstance(error, ToolError):
                raise error
            if isinstance(error, PenstockError):
                if self.safe or not error.retryable:
                    raise error
                raise ToolFailed(str(error), code=code_of(error), retryable=False) from error
            if isinstance(error, asyncio.CancelledError):
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise error
                raise ToolFailed("the tool was cancelled from within", code="cancelled") from error
            passing = self.safe and isinstance(error, OSError)
            raise ToolFailed(_said(error), details={"type": type(error).__name__}, retryable=passing) from error
        finally:
            del error  # its traceback holds this frame

    async def _drain(self, items: AsyncIterator[Any], run: Run) -> Any:
        """Tell each item as it comes, where a client may see it; the value is the joined text, or the list of items.

        Stops at the size limit.
        """
        kept = Sized(self.spec.max_result_bytes)
        async with aclosing(cast("Any", items)):
            async for item in items:
                if not kept.add(item):
                    break
                if self.spec.return_target in SHOWN:
                    await run.emit(Text(item) if isinstance(item, str) else Item(item))
        return kept.value()


def declared(spec: ToolSpec) -> Arguments:
    """What a spec says that its tool takes."""
    if isinstance(spec.parameters, dict):
        return Arguments.from_schema(spec.parameters, coerce=spec.coerce)
    return Arguments.from_parameters(spec.parameters or (), coerce=spec.coerce)


def _streams(answer: Hook) -> TypeGuard[AsyncIterator[Any]]:
    return isinstance(answer, AsyncIterator)


def _principal(ctx: ToolContext) -> Any:
    principal = ctx.principal or (ctx.run.principal if ctx.run is not None else LOCAL)
    return principal if ctx.tenant is None else dataclasses.replace(principal, tenant=ctx.tenant)


def _alone(ctx: ToolContext) -> Run:
    return msgspec.structs.replace(_ALONE, principal=_principal(ctx))


def _within(ctx: ToolContext, run: Run, name: str) -> Run:
    child = run.child(name)
    if ctx.principal is None and ctx.tenant is None:
        return child
    return msgspec.structs.replace(child, principal=_principal(ctx))


def _example(arguments: dict[str, Any], result: Any) -> str:
    shown = msgspec.json.encode(arguments).decode()
    return f"- {shown}" if result is None else f"- {shown} gives {msgspec.json.encode(result).decode()}"


def _said(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text if len(text) <= 2000 else f"{text[:2000]}..."
