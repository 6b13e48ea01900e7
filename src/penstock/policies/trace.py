"""`trace`: an OpenTelemetry span for each call, in the names of OpenInference and of the gen_ai conventions.

Sources: https://arize-ai.github.io/openinference/spec and https://opentelemetry.io/docs/specs/semconv/gen-ai. Spans are
passed on explicitly, through the run, and never become the current span of anybody's context.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
from opentelemetry import trace as otel
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from penstock.errors import LlmError, ToolError
from penstock.events import Event, Fold, Used
from penstock.messages import ChatReply, ChatRequest
from penstock.outcome import Cancelled, Failed, Finished, Outcome
from penstock.policies import Policy
from penstock.run import Executor, Run

Request = TypeVar("Request")
Result = TypeVar("Result")
Attributes: TypeAlias = Mapping[str, AttributeValue]


class Describe(Protocol):
    """What of a request, and of its result or what there is of it, describes a call."""

    def __call__(self, request: Any, result: Any, /, *, content: bool) -> Attributes:
        """The attributes; texts only when `content` is true."""
        ...


_log = logging.getLogger("penstock.trace")
KINDS = {"server": SpanKind.SERVER, "llm": SpanKind.CLIENT}
SCOPE = "penstock"


def describe_chat(request: ChatRequest, reply: ChatReply | None, *, content: bool) -> Attributes:
    """A chat call as span attributes; its texts only when `content` is asked for."""
    parameters = {key: value for key, value in request.params.items() if isinstance(value, str | int | float | bool)}
    found: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": request.model,
        "llm.invocation_parameters": msgspec.json.encode(parameters).decode(),
        "metadata": msgspec.json.encode({"stream": request.stream, "messages": len(request.messages)}).decode(),
    }
    if reply is not None:
        reasons = [choice.finish_reason or "" for choice in reply.choices]
        found |= {"llm.model_name": reply.model, "gen_ai.response.model": reply.model, "gen_ai.response.id": reply.id}
        found["gen_ai.response.finish_reasons"] = reasons
    if content:
        found |= {"input.value": msgspec.json.encode(request.messages).decode(), "input.mime_type": "application/json"}
        if reply is not None:
            found["output.value"] = reply.content or msgspec.json.encode(reply.tool_calls).decode()
    return found


def trace(kind: str, *, name: str = "", describe: Describe | None = None, content: bool = False) -> Policy:
    """Put each call into a span called `name`, or the kind.

    `describe(request, result, content=...)` gives the attributes; `result` is what was said so far when the call did
    not finish. A span of kind "server" ends with its run, when the outcome is fixed; every other one with its call.
    """

    def policy(executor: Executor[Request, Result]) -> Executor[Request, Result]:
        async def call(request: Request, run: Run, /) -> Result:
            context = otel.set_span_in_context(run.span) if run.span is not None else None
            span = otel.get_tracer(SCOPE).start_span(name or kind, context, KINDS.get(kind, SpanKind.INTERNAL))
            if not span.is_recording():
                return await executor(request, run if run.span is not None else run.under(span))
            fold = Fold()

            def end(outcome: Outcome[Any]) -> None:
                _note_end(span, kind, outcome, content=content)
                result = outcome.result if isinstance(outcome, Finished) else fold.reply()
                try:
                    span.set_attributes(describe(request, result, content=content) if describe else {})
                except Exception:  # a trace may lack something, a call may not fail by it
                    _log.exception("a call cannot be described for its span")
                span.end()

            def note(event: Event) -> None:
                fold.add(event)
                if isinstance(event, Used):
                    _count(span, event, fold)

            inner = run.under(span).listening(note)
            if kind == "server":
                run.closing(end)
                return await executor(request, inner)
            outcome: Outcome[Any] = Cancelled()
            try:
                result = await executor(request, inner)
                outcome = Finished(result)
            except Exception as error:  # noted on the span and raised again
                outcome = Failed(error)
                raise
            finally:
                end(outcome)
            return result

        return call

    return policy


def _count(span: Span, used: Used, fold: Fold) -> None:
    usage = fold.usage
    span.set_attributes(
        {
            "llm.token_count.prompt": usage.prompt,
            "llm.token_count.completion": usage.completion,
            "llm.token_count.total": usage.total,
            "llm.token_count.prompt_details.cache_read": usage.cached,
            "llm.token_count.completion_details.reasoning": usage.reasoning,
            "gen_ai.usage.input_tokens": usage.prompt,
            "gen_ai.usage.output_tokens": usage.completion,
            "gen_ai.provider.name": used.provider,
            "llm.provider": used.provider,
            "penstock.usage.partial": usage.partial,
        }
    )
    if fold.cost is not None:
        span.set_attribute("llm.cost.total", float(fold.cost))
    if used.ttft_s is not None:
        span.set_attribute("penstock.time_to_first_token_s", used.ttft_s)


def _note_end(span: Span, kind: str, outcome: Outcome[Any], *, content: bool) -> None:
    span.set_attribute("openinference.span.kind", "CHAIN" if kind == "server" else kind.upper())
    span.set_attribute("penstock.outcome", type(outcome).__name__.lower())
    if isinstance(outcome, Failed):
        error = outcome.error
        span.set_attribute("error.type", type(error).__name__)
        if isinstance(error, LlmError) and error.request_id:
            span.set_attribute("penstock.provider_request_id", error.request_id)
        # the message of a tool's error may quote its arguments
        said = error.code if isinstance(error, ToolError) and not content else str(error)
        span.set_status(Status(StatusCode.ERROR, said))
    elif isinstance(outcome, Cancelled):
        span.set_attribute("penstock.cancel_reason", outcome.reason)
