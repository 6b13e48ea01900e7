"""Metrics and spans of tools, under the names of the gen_ai and OpenInference conventions.

Sources: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans and https://arize-ai.github.io/openinference/spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import metrics
from opentelemetry.util.types import AttributeValue

from penstock.policies import Policy
from penstock.policies.trace import SCOPE, Attributes, Describe, trace
from penstock.tools.result import ToolRequest, ToolResult
from penstock.tools.spec import ToolSpec
from penstock.tools.value import text_of

DURATION = metrics.get_meter(SCOPE).create_histogram("penstock.tool.duration", "s", "Time of one call of a tool")
MOST_OUTCOMES = 64


def meter(spec: ToolSpec) -> Callable[[float, str], None]:
    """A function that records the seconds of a call and how it ended, labelled with tool, owner and the spec's tags.

    The outcome is "ok", the code of the error, or "cancelled".
    """
    tags = {"gen_ai.tool.name": spec.tool_name, "penstock.tool.version": spec.version, **_labels(spec)}
    labels: dict[str, dict[str, str]] = {}

    def record(seconds: float, outcome: str) -> None:
        if outcome not in labels and len(labels) < MOST_OUTCOMES:
            labels[outcome] = {**tags, "penstock.outcome": outcome}
        DURATION.record(seconds, labels.get(outcome, tags))

    return record


def traced(spec: ToolSpec, *, content: bool) -> Policy:
    """Put each call into a span of kind "tool"."""
    return trace("tool", name=f"execute_tool {spec.tool_name}", describe=describer(spec), content=content)


def describer(spec: ToolSpec) -> Describe:
    """What describes a call of the tool on a span."""
    fixed: dict[str, AttributeValue] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": spec.tool_name,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.description": spec.description,
        "tool.name": spec.tool_name,
        "tool.description": spec.description,
        "penstock.tool.version": spec.version,
        **_labels(spec),
    }

    def describe(request: ToolRequest, result: Any, /, *, content: bool) -> Attributes:
        found = dict(fixed)
        if isinstance(result, ToolResult):
            found["penstock.tool.latency_s"] = result.latency_s
            if result.warnings:
                found["penstock.tool.warnings"] = list(result.warnings)
        if content:
            raw = request.arguments
            found["input.value"] = raw if isinstance(raw, str) else _text(raw)
            found["input.mime_type"] = "application/json"
            if isinstance(result, ToolResult):
                found["output.value"] = text_of(result.content)
        return found

    return describe


def _labels(spec: ToolSpec) -> dict[str, str]:
    labels = {f"penstock.tool.tag.{name}": value for name, value in spec.metrics_tags.items()}
    return labels | ({"penstock.tool.owner": spec.owner} if spec.owner else {})


def _text(raw: bytes | Mapping[str, Any]) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else text_of(raw)
