"""`Gemini` beside Google's own SDK, both against one service: it says the same requests, and reads the same answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from penstock.errors import LlmError, RateLimited, TooLong, Unauthorized, Unavailable
from penstock.llms.gemini import Gemini
from penstock.messages import ChatReply, ChatRequest, Message
from penstock.run import execute
from tests.rig.native import SCENARIOS, Scenario, native_answer
from tests.rig.native.scenarios import PARIS, PNG, SCHEMA, ZONE
from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream

ANSWERED = [scenario.name for scenario in SCENARIOS.values() if scenario.ends == "end" and not scenario.failure]
FAILED = [scenario.name for scenario in SCENARIOS.values() if scenario.failure]
Parts = types.Part
ASK = types.Content(role="user", parts=[Parts(text="How is the weather in Paris?")])
HELLO = types.Content(role="user", parts=[Parts(text="Say hello.")])


def _declared(name: str, **properties: Any) -> types.FunctionDeclaration:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return types.FunctionDeclaration(name=name, description=f"Does {name}.", parameters_json_schema=schema)


def _offered(*functions: types.FunctionDeclaration) -> list[Any]:
    return [types.Tool(function_declarations=list(functions))]


WEATHER = _declared("weather", city={"type": "string"})
CLOCK = _declared("clock", zone={"type": "string"}, parts={"type": "array", "items": {"type": "string"}})
CALLS = [types.FunctionCall(id=one.id, name=one.name, args=json.loads(one.arguments)) for one in (PARIS, ZONE)]
CALLED = [Parts(function_call=call) for call in CALLS]
TOLD = [
    types.FunctionResponse(id="call_1", name="weather", response={"output": "sunny"}),
    types.FunctionResponse(id="call_2", name="clock", response={"time": "12:00"}),
]
ANY = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
ASKED: dict[str, tuple[list[types.Content], types.GenerateContentConfig]] = {
    "text": (
        [HELLO],
        types.GenerateContentConfig(
            system_instruction=types.Content(parts=[Parts(text="Be brief.")]),
            temperature=0.5,
            max_output_tokens=50,
            stop_sequences=["END"],
        ),
    ),
    "image": (
        [
            types.Content(
                role="user",
                parts=[
                    Parts(text="What is this?"),
                    Parts(inline_data=types.Blob(mime_type="image/png", data=base64.b64decode(PNG))),
                ],
            )
        ],
        types.GenerateContentConfig(),
    ),
    "one tool": ([ASK], types.GenerateContentConfig(tools=_offered(WEATHER))),
    "two tools": (
        [ASK],
        types.GenerateContentConfig(
            tools=_offered(WEATHER, CLOCK), tool_config=types.ToolConfig(function_calling_config=ANY)
        ),
    ),
    "tool result": (
        [
            ASK,
            types.Content(
                role="model", parts=[Parts(text="I will look."), *(Parts(function_call=one) for one in CALLS)]
            ),
            types.Content(role="user", parts=[Parts(function_response=one) for one in TOLD]),
        ],
        types.GenerateContentConfig(tools=_offered(WEATHER, CLOCK)),
    ),
    "json schema": (
        [ASK],
        types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=SCHEMA),
    ),
    "reasoning": (
        [ASK],
        types.GenerateContentConfig(
            tools=_offered(WEATHER),
            max_output_tokens=4096,
            thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.MEDIUM, include_thoughts=True),
        ),
    ),
    "length": ([HELLO], types.GenerateContentConfig()),
    "refusal": ([HELLO], types.GenerateContentConfig()),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Upstream]:
    with run_upstream() as up:
        up.default = native_answer
        yield up


@pytest.fixture(scope="module")
def google(served: Upstream) -> Iterator[genai.Client]:
    """The official SDK, pointed at the loopback service."""
    options = types.HttpOptions(base_url=f"http://127.0.0.1:{served.port}", api_version="v1beta")
    client = genai.Client(api_key="key-of-google", http_options=options)
    yield client
    client.close()


async def ours(served: Upstream, scenario: Scenario, *, stream: bool) -> ChatReply:
    llm = Gemini(model=scenario.name, api_key="key-of-google", base_url=f"http://127.0.0.1:{served.port}")
    return await execute(llm, ChatRequest.of(scenario.messages, stream=stream, **scenario.params))


def theirs(google: genai.Client, name: str, *, stream: bool) -> list[types.GenerateContentResponse]:
    contents, config = ASKED[name]
    said: list[Any] = [*contents]
    if stream:
        return list(google.models.generate_content_stream(model=name, contents=said, config=config))
    return [google.models.generate_content(model=name, contents=said, config=config)]


def read_by_google(answers: list[types.GenerateContentResponse]) -> dict[str, Any]:
    """What the SDK reads, in our words."""
    found = [answer.candidates[0] for answer in answers if answer.candidates]
    parts = [part for one in found if one.content for part in one.content.parts or ()]
    calls = [(part.function_call, part.thought_signature) for part in parts if part.function_call]
    usage = answers[-1].usage_metadata
    assert usage is not None
    return {
        "text": "".join(part.text or "" for part in parts if not part.thought),
        "reasoning": "".join(part.text or "" for part in parts if part.thought),
        "calls": [(call.id, call.name, call.args, signature) for call, signature in calls],
        "ended": found[-1].finish_reason,
        "tokens": (
            usage.prompt_token_count,
            usage.cached_content_token_count,
            (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
            usage.thoughts_token_count,
        ),
        "id": answers[0].response_id,
        "model": answers[0].model_version,
    }


FREE = {"args", "response", "parametersJsonSchema", "responseJsonSchema"}


def one_spelling(said: Any) -> Any:
    """A body with its keys in one of the two spellings that Google takes, and base64 in one of its two alphabets."""
    if isinstance(said, list):
        return [one_spelling(item) for item in said]
    if not isinstance(said, dict):
        return said
    found: dict[str, Any] = {}
    for key, value in said.items():
        head, *tail = key.split("_")
        name = head + "".join(word.capitalize() for word in tail)
        found[name] = value if name in FREE else one_spelling(value)
        if name in ("data", "thoughtSignature"):
            found[name] = value.replace("-", "+").replace("_", "/")
    return found


ENDS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _bytes(signature: str | None) -> bytes | None:
    return None if signature is None else base64.b64decode(signature)


def read_by_us(reply: ChatReply) -> dict[str, Any]:
    usage = reply.usage
    assert usage is not None
    assert not usage.partial
    extras = [(call.extra_content or {"google": {}})["google"] for call in reply.tool_calls]
    return {
        "text": reply.content,
        "reasoning": reply.reasoning,
        "calls": [
            (call.id, call.name, json.loads(call.arguments), _bytes(extra.get("thought_signature")))
            for call, extra in zip(reply.tool_calls, extras, strict=True)
        ],
        "ended": types.FinishReason(ENDS[reply.finish_reason or ""]),
        "tokens": (usage.prompt, usage.cached, usage.completion, usage.reasoning),
        "id": reply.id,
        "model": reply.model,
    }


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", ANSWERED)
async def test_row_c2_request_and_answer_are_those_of_the_official_sdk(
    served: Upstream, google: genai.Client, name: str, stream: bool
) -> None:
    scenario = SCENARIOS[name]
    read = read_by_google(theirs(google, name, stream=stream))
    assert (read["text"], read["reasoning"]) == ("".join(scenario.text), "".join(scenario.reasoning))
    assert [call[:3] for call in read["calls"]] == [(c.id, c.name, json.loads(c.arguments)) for c in scenario.calls]
    assert (read["ended"].value, read["tokens"]) == (ENDS[scenario.finish], scenario.usage)
    asked = served.chats[-1]

    reply = await ours(served, scenario, stream=stream)
    assert read_by_us(reply) == read
    assert reply.finish_reason == scenario.finish
    assert [call.arguments for call in reply.tool_calls] == [call.arguments for call in scenario.calls]
    sent = served.chats[-1]
    assert sent.path == asked.path
    wanted = {key: value for key, value in asked.json.items() if value != {}}  # it says that it configures nothing
    assert one_spelling(sent.json) == one_spelling(wanted)
    assert sent.headers["x-goog-api-key"] == asked.headers["x-goog-api-key"] == "key-of-google"
    assert "key-of-google" not in sent.path + str(sent.body)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_row_c2_the_next_turn_gives_a_signature_back_as_the_official_sdk_does(
    served: Upstream, google: genai.Client, stream: bool
) -> None:
    scenario = SCENARIOS["reasoning"]
    (read,) = theirs(google, "reasoning", stream=False)
    assert read.candidates
    content = read.candidates[0].content
    assert content
    content.parts = [part for part in content.parts or () if not part.thought]
    said: list[Any] = [ASK, content, types.Content(role="user", parts=[Parts(function_response=TOLD[0])])]
    config = types.GenerateContentConfig(tools=_offered(WEATHER))
    google.models.generate_content(model="text", contents=said, config=config)
    asked = served.chats[-1].json

    reply = await ours(served, scenario, stream=stream)
    told: Message = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    turn = Scenario("text", [*scenario.messages, reply.message, told], {"tools": scenario.params["tools"]})
    await ours(served, turn, stream=False)
    assert one_spelling(served.chats[-1].json) == {key: one_spelling(asked[key]) for key in asked if asked[key]}
    assert scenario.signature in served.chats[-1].body.decode()


KINDS: dict[str, type[LlmError]] = {
    "too long": TooLong,
    "rate limited": RateLimited,
    "overloaded": Unavailable,
    "bad key": Unauthorized,
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", FAILED)
async def test_row_c2_failures_say_what_the_official_sdk_says(
    served: Upstream, google: genai.Client, name: str, stream: bool
) -> None:
    ASKED.setdefault(name, ([HELLO], types.GenerateContentConfig()))
    failure = SCENARIOS[name].failure
    assert failure is not None
    with pytest.raises(errors.APIError) as theirs_raised:
        theirs(google, name, stream=stream)
    with pytest.raises(LlmError) as raised:
        await ours(served, SCENARIOS[name], stream=stream)
    error, theirs_said = raised.value, theirs_raised.value
    assert error.status == theirs_said.code
    assert error.message.endswith(theirs_said.message or "?")
    assert error.code == ("API_KEY_INVALID" if name == "bad key" else theirs_said.status)
    assert isinstance(error, KINDS.get(name, LlmError))
    assert error.retry_after == failure.retry_after
