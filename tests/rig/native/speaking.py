"""Answers a request in the wire of its path."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import unquote

from tests.rig.answers import Answer, Plain, Received, Stream
from tests.rig.native import anthropic, gemini, openai_chat, openai_responses
from tests.rig.native.scenarios import SCENARIOS, Failure, Scenario
from tests.rig.wire import JsonObject, error_body


class Wire(Protocol):
    """How one wire says a scenario. Each of the modules beside this one is one."""

    NAME: str
    """The name of the provider that speaks it."""

    def asked(self, path: str, body: JsonObject) -> tuple[str, bool] | None:
        """The model that a request names and whether it wants a stream; None where the path is another wire's."""

    def events(self, scenario: Scenario) -> list[bytes]:
        """Its answer as server-sent events; the last ones are left out where `ends` is not "end"."""

    def whole(self, scenario: Scenario) -> JsonObject:
        """Its answer unstreamed."""

    def failure(self, failure: Failure) -> tuple[JsonObject, dict[str, str]]:
        """An error as body and headers."""


WIRES: tuple[Wire, ...] = (openai_chat, openai_responses, anthropic, gemini)


def native_answer(request: Received) -> Answer:
    """What the service says to a request; an unknown model is told to be one."""
    path = unquote(request.path)
    for wire in WIRES:
        asked = wire.asked(path, request.json)
        if asked is not None and asked[0] in SCENARIOS:
            return _said(wire, SCENARIOS[asked[0]], streamed=asked[1])
    return Plain(error_body(f"no such scenario: {path!r}", code="not_found"), status=404)


def _said(wire: Wire, scenario: Scenario, *, streamed: bool) -> Answer:
    if scenario.failure is not None:
        body, headers = wire.failure(scenario.failure)
        return Plain(body, status=scenario.failure.status, headers=headers)
    if not streamed:
        return Plain(wire.whole(scenario))
    events = wire.events(scenario)
    written = len(events)
    return Stream(
        [*events, b": nothing more comes\n\n"] if scenario.ends == "stall" else events,
        done=False,
        cut_after=written if scenario.ends == "cut" else None,
        stall_after=written if scenario.ends == "stall" else None,
    )
