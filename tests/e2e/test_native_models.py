"""The official OpenAI SDK through Penstock to models whose own wire is another: Anthropic's, Google's, Responses."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
import yaml

from tests.e2e.conftest import client
from tests.e2e.gateway import environment
from tests.rig.native import SCENARIOS, WIRES, Scenario, native_answer
from tests.rig.native.scenarios import PNG
from tests.rig.serving import Process, running
from tests.rig.upstream import Upstream, upstream
from tests.rig.wire import JsonObject

KEY = "sk-kanarie-91d0f7ab3c5e2468"
MODELS: dict[str, JsonObject] = {
    "anthropic": {"llm": "anthropic:"},
    "gemini": {"llm": "gemini:"},
    "openai_responses": {"llm": "openai:", "api": "responses"},
}
every_wire = pytest.mark.parametrize("wire", MODELS)
each_way = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


class Trip(pydantic.BaseModel):
    """What the model is asked to answer with."""

    city: str
    days: int


@dataclass(frozen=True, slots=True)
class Served:
    """Penstock, the SDK on it, and the service behind."""

    process: Process
    sdk: openai.OpenAI
    behind: Upstream

    def ask(self, wire: str, scenario: Scenario, *, stream: bool, **fields: Any) -> JsonObject:
        """The answer's choice and usage; a streamed one as the SDK's own helper puts it together."""
        asked: Any = {"model": named(wire, scenario), "messages": scenario.messages, **scenario.params, **fields}
        if wire == "openai_responses":
            asked.pop("stop", None)
        if not stream:
            said: JsonObject = self.sdk.chat.completions.create(**asked).to_dict()
        else:
            asked["tools"] = strict(asked.get("tools", []))
            with self.sdk.chat.completions.stream(**asked, stream_options={"include_usage": True}) as events:
                for _ in events:
                    pass
                said = events.current_completion_snapshot.to_dict()
        return {**said["choices"][0], "usage": said["usage"]}

    @property
    def last(self) -> str:
        """What the service behind was sent last."""
        return self.behind.chats[-1].body.decode()


def strict(tools: list[Any]) -> Any:
    """The tools as the helper of the SDK wants them."""
    return [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools] or openai.omit


def named(wire: str, scenario: Scenario) -> str:
    return f"{wire}-{scenario.name.replace(' ', '-')}"


def configuration(base_url: str) -> str:
    rows = [
        {"name": named(wire, scenario), **row, "llm": row["llm"] + name, "base_url": base_url, "api_key": KEY}
        for wire, row in MODELS.items()
        for name, scenario in SCENARIOS.items()
    ]
    return yaml.safe_dump({"models": rows})


@pytest.fixture(scope="module")
def serving() -> Iterator[Served]:
    with upstream() as behind, tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        behind.default = native_answer
        file = Path(folder, "penstock.yaml")
        file.write_text(configuration(behind.base_url))
        command = [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--port", "{port}"]
        ready = "http://127.0.0.1:{port}/health"
        with (
            running(command, ready=ready, env=environment()) as process,
            client(f"{process.base_url}/v1") as sdk,
        ):
            yield Served(process, sdk, behind)


@pytest.fixture
def served(serving: Served) -> Served:
    serving.behind.requests.clear()
    return serving


@each_way
@every_wire
def test_row_c2_text_comes_with_its_usage(served: Served, wire: str, stream: bool) -> None:
    scenario = SCENARIOS["text"]
    said = served.ask(wire, scenario, stream=stream)
    assert said["message"]["content"] == "".join(scenario.text)
    assert said["finish_reason"] == "stop"
    prompt, cached, completion, _ = scenario.usage
    usage = said["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, completion)
    assert usage["total_tokens"] == prompt + completion
    assert usage["prompt_tokens_details"]["cached_tokens"] == cached
    assert "Be brief." in served.last


@every_wire
def test_row_c2_an_image_is_sent_on(served: Served, wire: str) -> None:
    said = served.ask(wire, SCENARIOS["image"], stream=False)
    assert said["message"]["content"] == "A red dot."
    assert PNG in served.last


@each_way
@every_wire
def test_row_c2_tools_are_called_and_their_results_come_back(served: Served, wire: str, stream: bool) -> None:
    scenario, after = SCENARIOS["two tools"], SCENARIOS["tool result"]
    said = served.ask(wire, scenario, stream=stream)
    message = said["message"]
    assert said["finish_reason"] == "tool_calls"
    assert message["content"] == "I will look."
    calls = [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]
    assert calls == [(call.id, call.name, json.loads(call.arguments)) for call in scenario.calls]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"seen by {call['function']['name']}"}
        for call in message["tool_calls"]
    ]
    turns = [*scenario.messages, sendable(message), *results]
    last = served.ask(wire, after, stream=stream, messages=turns)
    assert last["message"]["content"] == "It is sunny."
    for call in scenario.calls:
        assert f"seen by {call.name}" in served.last


def sendable(message: JsonObject) -> JsonObject:
    """A message as clients send it back: what the SDK added for itself is left out."""
    sent = {key: value for key, value in message.items() if key != "parsed"}
    for call in sent.get("tool_calls") or ():
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    return sent


@each_way
@every_wire
def test_row_c2_structured_output_is_parsed(served: Served, wire: str, stream: bool) -> None:
    scenario = SCENARIOS["json schema"]
    asked: Any = {"model": named(wire, scenario), "messages": scenario.messages, "response_format": Trip}
    if stream:
        with served.sdk.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            parsed: Any = events.get_final_completion().choices[0].message.parsed
    else:
        parsed = served.sdk.chat.completions.parse(**asked).choices[0].message.parsed
    assert parsed == Trip(city="Paris", days=3)
    assert '"days"' in served.last, "the schema is in the request"


@each_way
@every_wire
def test_row_c2_reasoning_is_kept_with_its_signature_over_two_turns(served: Served, wire: str, stream: bool) -> None:
    scenario, after = SCENARIOS["reasoning"], SCENARIOS["tool result"]
    said = served.ask(wire, scenario, stream=stream)
    message = said["message"]
    assert message["reasoning_content"] == message["reasoning"] == "Let me think."
    assert said["usage"]["completion_tokens_details"]["reasoning_tokens"] == scenario.usage[3]
    assert json.dumps(message).count(scenario.signature) == 1, "in extra_content"
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
    served.ask(wire, after, stream=stream, messages=[*scenario.messages, sendable(message), result])
    assert served.last.count(scenario.signature) == 1


@each_way
@every_wire
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("rate limited", openai.RateLimitError),
        ("too long", openai.BadRequestError),
        ("bad request", openai.BadRequestError),
        ("overloaded", openai.InternalServerError),
    ],
)
def test_row_c2_a_failure_is_the_error_of_the_sdk(
    served: Served, wire: str, stream: bool, case: str, kind: type[openai.APIStatusError]
) -> None:
    scenario = SCENARIOS[case]
    with pytest.raises(kind) as raised:
        served.ask(wire, scenario, stream=stream)
    assert scenario.failure is not None
    assert raised.value.status_code == scenario.failure.status
    assert scenario.failure.message in raised.value.message
    if scenario.failure.retry_after is not None:
        assert raised.value.response.headers["retry-after"] == str(scenario.failure.retry_after)
    if case == "too long":
        assert raised.value.code == "context_length_exceeded"


@every_wire
def test_case_04_a_cut_stream_raises_in_the_sdk(served: Served, wire: str) -> None:
    scenario, said = SCENARIOS["cut"], ""
    asked: Any = {"model": named(wire, scenario), "messages": scenario.messages, "stream": True}
    with pytest.raises(openai.APIError):
        for chunk in served.sdk.chat.completions.create(**asked):
            said += chunk.choices[0].delta.content or ""
            assert chunk.choices[0].finish_reason is None
    assert said == "one two three"


def test_what_a_wire_has_no_words_for_is_refused_by_name(served: Served) -> None:
    asked: Any = {"model": "openai_responses-text", "messages": SCENARIOS["text"].messages, "stop": ["END"]}
    with pytest.raises(openai.BadRequestError) as raised:
        served.sdk.chat.completions.create(**asked)
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "stop")


def test_case_25_no_key_is_in_what_the_server_writes(served: Served) -> None:
    for wire in MODELS:
        with pytest.raises(openai.APIStatusError):
            served.ask(wire, SCENARIOS["bad key"], stream=False)
    assert all(KEY in "".join(request.headers.values()) for request in served.behind.chats)
    written = served.process.stdout() + served.process.stderr()
    assert "openai_responses-bad-key" in written
    for start in range(len("sk-"), len(KEY) - 7):
        assert KEY[start : start + 8] not in written


def test_every_wire_but_the_sdk_s_own_is_tried() -> None:
    assert {"openai", *MODELS} == {wire.NAME for wire in WIRES}
