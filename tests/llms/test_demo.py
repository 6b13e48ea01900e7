"""The demo model: honest, deterministic, and valid in every form it is asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import BadRequest
from penstock.events import Chunks, Event, Fold, Used
from penstock.llms.demo import Demo
from penstock.llms.demo.rules import INTRODUCTION
from penstock.messages import ChatReply, ChatRequest, Message, Usage
from penstock.outcome import Finished
from penstock.run import execute, execute_stream

EARLIER: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


def tool(
    name: str, description: str = "", /, *, required: Sequence[str] | None = None, **properties: Any
) -> dict[str, Any]:
    needed = list(properties) if required is None else list(required)
    parameters = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


NUMBER, INTEGER, STRING = {"type": "number"}, {"type": "integer"}, {"type": "string"}
ADD = tool("add", "Add two numbers.", a=NUMBER, b=NUMBER)
MULTIPLY = tool("multiply", "Multiply two integers", a=INTEGER, b=INTEGER)
CALCULATE = tool("calculator", "Evaluates an expression", expression=STRING)
COMPUTE = tool("compute", "Does arithmetic", op={"enum": ["add", "divide"]}, values={"type": "array", "items": NUMBER})
WEATHER = tool(
    "get_weather",
    "Current weather in a city",
    required=["city"],
    city=STRING,
    unit={"enum": ["celsius", "fahrenheit"], "default": "celsius"},
)
TIME = tool("now", "The current date and time")
SEARCH = tool("web_search", "Searches the web", query=STRING)
ORDER = tool("getOrder", "Look up one order", order_id={"type": "integer", "minimum": 1})
PLACE = {"$defs": {"Place": {"type": "object", "properties": {"city": STRING}, "required": ["city"]}}}
SCHEDULE = {
    "type": "function",
    "function": {
        "name": "forecast",
        "parameters": {
            **PLACE,
            "type": "object",
            "properties": {"place": {"$ref": "#/$defs/Place"}, "day": {"type": "string", "format": "date"}},
            "required": ["place", "day"],
        },
    },
}
ALL = [ADD, MULTIPLY, WEATHER, TIME, SEARCH, ORDER]


async def ask(prompt: str | Sequence[Message], **params: Any) -> ChatReply:
    return await execute(Demo(), ChatRequest.of(prompt, **params))


async def said(prompt: str) -> str:
    """The answer to a prompt that is not the first of its conversation."""
    return (await ask([*EARLIER, {"role": "user", "content": prompt}])).content


async def told(request: ChatRequest) -> tuple[ChatReply, list[Event]]:
    events: list[Event] = []
    reply = await execute(Demo(), request, events.append)
    return reply, events


def calls(reply: ChatReply) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in reply.tool_calls]


async def test_first_answer_says_that_it_is_a_demo_and_how_to_get_a_real_model() -> None:
    reply = await ask("Hello")
    assert reply.content.startswith(INTRODUCTION)
    assert "rule-based" in INTRODUCTION
    assert "OPENAI_API_KEY" in INTRODUCTION
    assert "OPENAI_BASE_URL" in INTRODUCTION
    assert "Hello!" in reply.content


@pytest.mark.parametrize(
    ("messages", "params"),
    [
        ([*EARLIER, {"role": "user", "content": "Hello"}], {}),
        ([{"role": "user", "content": "Hello"}], {"response_format": {"type": "json_object"}}),
        ([{"role": "user", "content": "What is 2 + 3?"}], {"tools": [ADD]}),
    ],
)
async def test_only_the_first_plain_answer_introduces_it(messages: list[Message], params: dict[str, Any]) -> None:
    reply = await ask(messages, **params)
    assert "Penstock" not in reply.content


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Good morning", "Good morning! What can I do for you?"),
        ("What is 2 + 3 * 4?", "2 + 3 * 4 is 14."),
        ("what is (2+3)*4", "(2+3)*4 is 20."),
        ("What is seven times eight?", "7 * 8 is 56."),
        ("sum of 1, 2 and 3", "1 + 2 + 3 is 6."),
        ("subtract 3 from 10", "10 - 3 is 7."),
        ("What's 15% of 80?", "15/100*80 is 12."),
        ("what is 0.1 + 0.2", "0.1 + 0.2 is 0.3."),
        ("2^10", "2**10 is 1024."),
        ("1,000 + 1", "1000 + 1 is 1001."),
        ("divide 1 by 0", "1 / 0 is not defined."),
        ("count to 5", "1, 2, 3, 4, 5"),
        ("Count from 3 to 1", "3, 2, 1"),
        ("count down from 2", "2, 1, 0"),
        ("Say hello there", "hello there"),
        ("Please repeat after me: foo bar", "foo bar"),
        ("say 'x y' 2 times", "x y x y"),
        ("Summarize: One thing. Two things.", "In short: One thing."),
        ("summarise", "Give me the text to summarise after a colon."),
        ("List three fruits", "1. apple\n2. banana\n3. cherry"),
        ("list these: a, b and c", "1. a\n2. b\n3. c"),
        ("what time is it?", "I have no clock. Offer me a tool that tells the time and I will call it."),
        ("thank you", "You are welcome."),
        ("bye", "Goodbye!"),
        ("", "I have nothing to go by. Ask me what I can do."),
    ],
)
async def test_text_is_answered_by_rules(prompt: str, answer: str) -> None:
    assert await said(prompt) == answer


async def test_what_it_cannot_do_is_said_with_words_of_the_prompt() -> None:
    answer = await said("Why is the sky blue on 2024-10-12?")
    assert '"sky", "blue"' in answer
    assert "rules" in answer


async def test_abilities_are_named() -> None:
    assert "arithmetic" in await said("What can you do?")


@pytest.mark.parametrize(
    "prompt", ["9**9**9", "(" * 60 + "1+1", "1" * 300 + "*2", "7**64/3*7**64*7**64*7**64*7**64*7**64"]
)
async def test_sums_that_are_too_large_are_left_alone(prompt: str) -> None:
    assert len(await said(prompt)) < 500


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(max_size=60) | st.from_regex(r"[-+*/(). 0-9x^%]{1,30}", fullmatch=True))
def test_any_text_has_an_answer(prompt: str) -> None:
    assert asyncio.run(said(prompt))


@pytest.mark.parametrize(
    ("prompt", "tools", "expected"),
    [
        ("What is 2 + 3?", ALL, [("add", {"a": 2, "b": 3})]),
        ("Add 2.5 and -3", ALL, [("add", {"a": 2.5, "b": -3})]),
        ("What is 12 times 3?", ALL, [("multiply", {"a": 12, "b": 3})]),
        ("What is 2 + 3?", [CALCULATE], [("calculator", {"expression": "2 + 3"})]),
        ("What is 2 + 3?", [CALCULATE, ADD], [("add", {"a": 2, "b": 3})]),
        ("What is 8 divided by 2?", [COMPUTE], [("compute", {"op": "divide", "values": [8, 2]})]),
        ("What's the weather in New York?", ALL, [("get_weather", {"city": "New York"})]),
        ("Will it rain in Paris, in fahrenheit?", ALL, [("get_weather", {"city": "Paris", "unit": "fahrenheit"})]),
        ("weather in oslo today", ALL, [("get_weather", {"city": "oslo"})]),
        (
            "forecast for Oslo on 2026-01-31",
            [SCHEDULE],
            [("forecast", {"place": {"city": "Oslo"}, "day": "2026-01-31"})],
        ),
        ("What time is it?", ALL, [("now", {})]),
        ("Search for penguins", ALL, [("web_search", {"query": "penguins"})]),
        ("Who was Ada Lovelace?", ALL, [("web_search", {"query": "Ada Lovelace"})]),
        ("Find order 42", ALL, [("getOrder", {"order_id": 42})]),
        ("Please use getOrder", ALL, [("getOrder", {"order_id": 1})]),
        (
            "Add 2 and 3, and what is the weather in Paris?",
            ALL,
            [("add", {"a": 2, "b": 3}), ("get_weather", {"city": "Paris"})],
        ),
        ("add 2 and 3 and multiply 4 by 5", ALL, [("add", {"a": 2, "b": 3}), ("multiply", {"a": 4, "b": 5})]),
        ("Hello", ALL, []),
        ("What can you do?", ALL, []),
        ("I have had a good time, many times", ALL, []),
        ("What is 2 + 3?", [WEATHER], []),
    ],
)
async def test_tools_are_called_when_the_words_ask(
    prompt: str, tools: list[dict[str, Any]], expected: list[tuple[str, dict[str, Any]]]
) -> None:
    reply = await ask(prompt, tools=tools)
    assert sorted(calls(reply)) == sorted(expected)
    assert reply.finish_reason == ("tool_calls" if expected else "stop")
    assert (reply.first.content is None) is bool(expected)
    assert [call.id for call in reply.tool_calls] == [f"call_demo_{n + 1}" for n in range(len(expected))]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", []),
        ("auto", ["add"]),
        ("required", ["add"]),
        ({"type": "function", "function": {"name": "getOrder"}}, ["getOrder"]),
    ],
)
async def test_tool_choice_is_obeyed(choice: Any, expected: list[str]) -> None:
    reply = await ask("What is 2 + 3?", tools=ALL, tool_choice=choice)
    assert [call.name for call in reply.tool_calls] == expected


async def test_a_required_call_is_made_even_where_nothing_fits() -> None:
    reply = await ask("Hello", tools=[WEATHER, ADD], tool_choice="required")
    assert len(reply.tool_calls) == 1


async def test_parallel_calls_can_be_forbidden() -> None:
    prompt = "Add 2 and 3, and what is the weather in Paris?"
    reply = await ask(prompt, tools=ALL, parallel_tool_calls=False)
    assert len(reply.tool_calls) == 1


async def test_a_forced_tool_that_was_not_offered_is_refused() -> None:
    with pytest.raises(BadRequest, match="'nope'"):
        await ask("Hello", tools=[ADD], tool_choice={"type": "function", "function": {"name": "nope"}})


async def test_tool_results_are_answered_in_text() -> None:
    asked: Message = {"role": "user", "content": "Add 2 and 3, and what is the weather in Paris?"}
    first = await ask([asked], tools=ALL)
    results: list[Message] = [
        {"role": "tool", "tool_call_id": "call_demo_1", "content": "5"},
        {"role": "tool", "tool_call_id": "call_demo_2", "content": '{"sky": "clear", "celsius": 21}'},
    ]
    reply = await ask([asked, first.message, *results], tools=ALL)
    assert reply.tool_calls == ()
    assert reply.content == "Here is what I found. add: 5. get_weather: sky clear, celsius 21."
    one = await ask([asked, first.message, results[0]], tools=ALL)
    assert one.content == "The answer is 5."


_leaves = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-9, 9),
        st.integers(0, 9),
    ),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-9, 9)),
    st.builds(
        lambda step, low: {"type": "integer", "multipleOf": step, "minimum": low},
        st.integers(1, 9),
        st.integers(-20, 20),
    ),
    st.builds(
        lambda least, size: {"type": "string", "minLength": least, "maxLength": least + size}, *[st.integers(0, 5)] * 2
    ),
    st.sampled_from(["date", "date-time", "email", "uuid", "ipv4"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.sampled_from([r"^[a-z]{3}-\d+$", "^(yes|no)$", r"\w+@\w+\.com", "[^a-z]{2}"]).map(
        lambda text: {"pattern": text, "type": "string"}
    ),
    st.lists(st.integers(-3, 3) | st.text(max_size=3), min_size=1).map(lambda members: {"enum": members}),
    st.integers(-3, 3).map(lambda value: {"const": value}),
)


def _wider(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    return st.one_of(
        st.builds(lambda item, least: {"type": "array", "items": item, "minItems": least}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: {"type": "array", "prefixItems": items, "minItems": len(items)}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.builds(
            lambda properties, most: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:most],
                "additionalProperties": False,
            },
            fields,
            st.integers(0, 3),
        ),
        fields.map(lambda parts: {"allOf": [{"properties": parts}, {"type": "object", "required": list(parts)}]}),
    )


SCHEMAS = st.recursive(_leaves, _wider, max_leaves=6)


async def _instance(schema: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return json.loads((await ask("Answer", response_format=form)).content)


def _check(value: Any, schema: Any) -> None:
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator, format_checker=jsonschema.FormatChecker())


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMAS)
def test_any_schema_gets_a_valid_instance(schema: Any) -> None:
    _check(asyncio.run(_instance(schema)), schema)


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.sampled_from(
        ["use the_tool in Paris with 3 and 'x'", "use the_tool", "the_tool 2026-01-31, 7 plus 8 for a@b.com"]
    ),
    properties=st.dictionaries(st.sampled_from(["city", "count", "expression"]), SCHEMAS, max_size=3),
)
def test_arguments_fit_any_parameters(prompt: str, properties: dict[str, Any]) -> None:
    offered = tool("the_tool", **properties)
    [(name, arguments)] = calls(asyncio.run(ask(prompt, tools=[offered])))
    assert name == "the_tool"
    _check(arguments, offered["function"]["parameters"])


NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
    "required": ["next"],
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}, "b": STRING}, "required": ["a"]},
            {"a": 3},
        ),
        ({"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"}, {"next": None}),
        ({"$defs": {"A": {"enum": ["x", "y"]}}, "allOf": [{"$ref": "#/$defs/A"}, {"enum": ["y", "z"]}]}, "y"),
        ({"oneOf": [{"type": "integer"}, {"type": "integer", "maximum": 5}]}, 6),
        ({"type": "array", "items": STRING, "minItems": 2, "uniqueItems": True}, ["", "a"]),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": "b"}], "items": False, "minItems": 2}, [1, "b"]),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "integer", "maximum": -5}, -5),
        ({"type": "string", "pattern": "^a+$", "minLength": 4}, "aaaa"),
        ({"type": "string", "pattern": r"^(foo|bar)+\.[^abc]x?$"}, "foo.0"),
        ({"not": {"type": "null"}}, False),
        ({"minProperties": 1, "additionalProperties": {"type": "boolean"}}, {"key1": False}),
        ({"required": ["n1"], "patternProperties": {"^n": {"type": "integer"}}}, {"n1": 0}),
        (
            {"anyOf": [{"const": "x"}, {"const": 1}], "allOf": [{"anyOf": [{"type": "integer"}, {"type": "null"}]}]},
            1,
        ),
        ({"type": "integer", "enum": ["a", True, 2]}, 2),
        ({"properties": {"a": False}, "type": "object"}, {}),
        (True, None),
        ({"type": ["integer", "string"], "allOf": [{"type": ["number", "null"]}]}, 0),
        ({"allOf": [{"const": 1}], "const": 1}, 1),
        ({"not": {"const": ""}, "allOf": [{"not": {"const": "a"}}], "type": "string"}, "aa"),
        ({"items": {"type": "integer"}, "minItems": 1, "allOf": [{"items": {"minimum": 4}}]}, [4]),
        ({"type": "string", "pattern": r"^(?:\w\d{2,}\.|x)(?!z)b?\Sb$"}, "a00.ab"),
        ({"type": "string", "pattern": r"^[\d]{2}[^\]0a]\$"}, "00 $"),
    ],
)
async def test_the_instance_of_a_schema_is_small(schema: Any, expected: Any) -> None:
    value = await _instance(schema)
    assert value == expected
    _check(value, schema)


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "minItems": 40}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"properties": []},
        {"$ref": "#/nowhere"},
        {"$ref": "#"},
        {"enum": []},
        {"const": 1, "allOf": [{"const": 2}]},
        {"allOf": [{"$ref": "#"}]},
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**12},
        {"type": "string", "pattern": "(a+)+$", "minLength": 5_000},
        {"type": "integer", "minimum": 2, "maximum": 1},
        _deep(9),
    ],
)
async def test_a_schema_that_cannot_be_satisfied_is_refused(schema: Any) -> None:
    with pytest.raises(BadRequest, match="JSON schema") as refused:
        await _instance(schema)
    assert refused.value.status == 400
    assert not refused.value.retryable


async def test_answers_are_objects_when_json_is_asked_for() -> None:
    form = {"type": "json_object"}
    assert json.loads((await ask("2 + 2", response_format=form)).content) == {"answer": "2 + 2 is 4."}
    prompt = 'Plan for [{"agent_id": "a"}]'
    assert json.loads((await ask(prompt, response_format=form)).content)["plans"][0]["agent_id"] == "a"


@pytest.mark.parametrize(
    "prompt",
    [
        'Make plans for these agents: [{"agent_id": "a", "at": [1, 2]}, {"agent_id": "b"}]. Answer in JSON.',
        'One plan each:\n```json\n[\n {"id": "a"}, {"id": "b"}\n]\n```',
        'A plan per line.\n{"agent_id": "a"}\n{"agent_id": "b"}\n{"other": 1}\n{torn',
    ],
)
async def test_a_batch_gets_one_plan_for_each_item_in_order(prompt: str) -> None:
    plans = json.loads((await ask(prompt)).content)
    assert plans == [{"agent_id": name, "plan_id": f"plan-{name}", "steps": [{"act": "Wait"}]} for name in ("a", "b")]


async def test_the_items_of_a_batch_are_the_lines_between_the_marks_and_what_they_hold_is_data() -> None:
    lines = ['{"agent_id": 1, "data": [{"id": 5}]}', '{"agent_id": "b", "data": "plan [{\\"agent_id\\": 9}]"}']
    prompt = 'Plans, please. [{"id": 8}]\n<items>\n' + "\n".join(lines) + "\n</items>\nAnswer now."
    assert [plan["agent_id"] for plan in json.loads((await ask(prompt)).content)] == [1, "b"]


async def test_plans_stand_where_the_schema_of_a_batch_wants_them() -> None:
    schema = {"type": "object", "required": ["plans"], "properties": {"plans": {"type": "array", "minItems": 1}}}
    form = {"type": "json_schema", "json_schema": {"name": "batch", "schema": schema}}
    said = json.loads((await ask('Plan for [{"agent_id": "a"}]', response_format=form)).content)
    assert [plan["plan_id"] for plan in said["plans"]] == ["plan-a"]


async def test_batch_items_may_stand_in_the_system_prompt() -> None:
    messages: list[Message] = [
        {"role": "system", "content": 'Write plans for [{"agent_id": 7}]'},
        {"role": "user", "content": "Go"},
    ]
    assert json.loads((await ask(messages)).content)[0]["plan_id"] == "plan-7"


async def test_a_planning_prompt_gets_tasks_that_depend_on_each_other() -> None:
    system: Message = {"role": "system", "content": "Break down the goal into tasks. Answer as JSON."}
    reply = await ask([system, {"role": "user", "content": "Write a report about tea. Be brief."}])
    tasks = json.loads(reply.content)["tasks"]
    assert [task["id"] for task in tasks] == ["1", "2"]
    assert [task["depends_on"] for task in tasks] == [[], ["1"]]
    assert all("Write a report about tea" in task["title"] for task in tasks)


async def test_a_plan_that_fits_the_schema_is_preferred_to_an_empty_one() -> None:
    task = {"type": "object", "required": ["id", "title"]}
    schema = {"type": "object", "properties": {"tasks": {"type": "array", "items": task}}, "required": ["tasks"]}
    form = {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}
    reply = await ask("Plan the tasks of a picnic as JSON", response_format=form)
    assert len(json.loads(reply.content)["tasks"]) == 2


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("Hello", {}),
    ("List three fruits\nplease", {}),
    ("Add 2 and 3, and what is the weather in Paris?", {"tools": ALL}),
    ("Hello", {"n": 3}),
    ("Hello", {"max_tokens": 4}),
    ("Hello", {"stop": "demo"}),
    ('Make plans: [{"id": 1}]', {}),
]


@pytest.mark.parametrize(("prompt", "params"), REQUESTS)
async def test_streamed_and_whole_answers_are_the_fold_of_their_events(prompt: str, params: dict[str, Any]) -> None:
    replies: list[ChatReply] = []
    for stream in (True, False):
        reply, events = await told(ChatRequest.of(prompt, stream=stream, **params))
        fold = Fold()
        for event in events:
            fold.add(event)
        assert fold.reply(fold.usage) == reply
        assert sum(isinstance(event, Used) for event in events) == 1
        assert isinstance(events[-2], Used)
        assert isinstance(events[-1], Finished)
        assert stream or sum(isinstance(event, Chunks) for event in events) == 1
        replies.append(reply)
    assert replies[0] == replies[1]


async def test_the_same_request_gets_the_same_events() -> None:
    request = ChatRequest.of("Why is the sky blue?")
    first, second = (await told(request))[1], (await told(request))[1]
    assert first[:-1] == second[:-1]
    assert msgspec.json.encode(first[0]) == msgspec.json.encode(second[0])
    other, _ = await told(ChatRequest.of("Why is the sky grey?"))
    assert other.id != first[0].views[0].id if isinstance(first[0], Chunks) else False


async def test_how_an_answer_is_sent_does_not_change_it() -> None:
    plain = await ask("Hello")
    assert await ask("Hello", stream_options={"include_usage": True}) == plain
    assert await ask("Hello", seed=7) != plain


async def test_a_stream_has_the_shape_of_openai_chunks() -> None:
    _, events = await told(ChatRequest.of([*EARLIER, {"role": "user", "content": "say a b c"}], n=2))
    views = [view for event in events if isinstance(event, Chunks) for view in event.views]
    assert {(view.object, view.created, view.model) for view in views} == {
        ("chat.completion.chunk", 1_700_000_000, "penstock-demo")
    }
    assert all((view.id or "").startswith("chatcmpl-demo-") for view in views)
    for index in range(2):
        mine = [choice for view in views for choice in view.choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert [choice.delta.content for choice in mine[1:-1]] == ["a", " b", " c"]
        assert [choice.finish_reason for choice in mine] == [None] * 4 + ["stop"]


async def test_a_streamed_call_brings_id_and_name_once_and_one_index_after_another() -> None:
    _, events = await told(ChatRequest.of("add 2 and 3 and multiply 4 by 5", tools=ALL))
    deltas = [c.delta for event in events if isinstance(event, Chunks) for view in event.views for c in view.choices]
    pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
    assert [piece.index for piece in pieces] == [0, 0, 1, 1]
    assert [piece.id for piece in pieces] == ["call_demo_1", None, "call_demo_2", None]
    assert [piece.type for piece in pieces] == ["function", None, "function", None]


async def test_n_choices_are_given_by_index() -> None:
    reply = await ask("Hello", n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.content for choice in reply.choices}) == 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_ends_at_the_token_limit(field: str) -> None:
    messages: list[Message] = [*EARLIER, {"role": "user", "content": "count to 9"}]
    reply = await ask(messages, **{field: 5})
    assert (reply.content, reply.finish_reason) == ("1, 2, 3", "length")
    assert reply.usage is not None
    assert reply.usage.completion == 5
    assert (await ask(messages, **{field: 17})).finish_reason == "stop"


async def test_a_call_is_cut_at_the_token_limit() -> None:
    reply = await ask("What is 2 + 3?", tools=[ADD], max_tokens=4)
    assert reply.finish_reason == "length"
    assert [call.arguments for call in reply.tool_calls] == ['{"a']


@pytest.mark.parametrize("stop", ["4", ["9", "4"], ["", "4"]])
async def test_an_answer_ends_before_a_stop_text(stop: str | list[str]) -> None:
    reply = await ask([*EARLIER, {"role": "user", "content": "count to 9"}], stop=stop)
    assert (reply.content, reply.finish_reason) == ("1, 2, 3, ", "stop")


async def test_usage_counts_words_and_punctuation() -> None:
    reply = await ask([*EARLIER, {"role": "user", "content": "say one, two."}])
    assert reply.content == "one, two."
    assert reply.usage is not None
    assert (reply.usage.prompt, reply.usage.completion, reply.usage.total) == (8, 4, 12)
    assert not reply.usage.partial


async def test_a_cancelled_stream_tells_the_partial_usage_of_what_was_said() -> None:
    events: list[Event] = []
    started = asyncio.Event()

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Chunks) and event.text == " 3,":
            started.set()

    messages: list[Message] = [*EARLIER, {"role": "user", "content": "count to 9"}]
    running = asyncio.create_task(execute(Demo(pace_s=0.001), ChatRequest.of(messages), listen))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    usages = [event.usage for event in events if isinstance(event, Used)]
    assert len(usages) == 1
    assert usages[0].partial
    assert 6 <= usages[0].completion < 17
    assert usages[0].prompt == 6


async def test_a_listener_that_fails_still_leaves_usage_to_policies() -> None:
    heard: list[Usage] = []

    def broken(event: Event) -> None:
        raise OSError("gone")

    def spying(executor: Any) -> Any:
        async def call(request: ChatRequest, run: Any) -> Any:
            return await executor(
                request, run.listening(lambda e: heard.append(e.usage) if isinstance(e, Used) else None)
            )

        return call

    with pytest.raises(OSError, match="gone"):
        await execute(Demo(policies=[spying]), ChatRequest.of("Hello"), broken)
    assert [usage.partial for usage in heard] == [True]


async def test_a_pulled_stream_left_early_ends() -> None:
    async with execute_stream(Demo(pace_s=0.001), ChatRequest.of("count to 900")) as execution:
        async for _ in execution:
            break
    assert execution.usage.partial


async def test_a_closed_coroutine_does_not_wait_for_its_listener() -> None:
    async def slow(event: Event) -> None:
        await asyncio.sleep(0)

    heard = asyncio.Event()
    running = execute(Demo(pace_s=60), ChatRequest.of("count to 9"), slow, closing=[lambda _: heard.set()])
    for _ in range(2):
        running.send(None)
    running.close()
    await heard.wait()
    await asyncio.sleep(0.01)


async def test_the_model_is_always_the_demo() -> None:
    reply, events = await told(ChatRequest.of("Hello", model="gpt-5"))
    assert reply.model == "penstock-demo"
    assert [(event.model, event.provider) for event in events if isinstance(event, Used)] == [("penstock-demo", "demo")]
    assert repr(Demo()) == "Demo(model='penstock-demo')"


@pytest.mark.parametrize(
    ("messages", "params"),
    [
        ([{"role": "user", "content": 5}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], {}),
        (["hello"], {}),
        ([{"role": "user", "content": "x"}], {"tools": {}}),
        ([{"role": "user", "content": "x"}], {"tools": [{"type": "function", "function": {}}]}),
        ([{"role": "user", "content": "x"}], {"n": 0}),
        ([{"role": "user", "content": "x"}], {"max_tokens": "many"}),
        ([{"role": "user", "content": "x"}], {"response_format": {"type": "json_schema", "json_schema": 3}}),
    ],
)
async def test_a_mistyped_request_is_refused(messages: Any, params: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        await ask(messages, **params)
    assert refused.value.status == 400


async def test_messages_may_have_parts_and_nulls_as_clients_send_them() -> None:
    messages: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "tool_calls": None, "refusal": None, "name": None},
        {
            "role": "user",
            "content": [{"type": "text", "text": "say "}, {"type": "image_url"}, {"type": "text", "text": "yes"}],
        },
    ]
    assert (await ask(messages)).content == "yes"


async def test_long_prompts_are_answered() -> None:
    for piece in ("\n", "count ", "[ ", "' ", "3 times ", "1.1+", "a-", "(((", "{", "from 1 "):
        assert (await ask(piece * 50_000)).content
