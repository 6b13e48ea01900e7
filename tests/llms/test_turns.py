"""Reading the messages of an OpenAI request: every part with its place, nothing lost, what cannot be read named."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import BadRequest
from penstock.llms.schemas import closed_schema
from penstock.llms.turns import UNSAID, Call, Media, Other, Text, Turn, arguments_of, turns

WHERE = "messages[0].content[0]"


def read(*messages: Any) -> list[Turn]:
    return list(turns(messages))


def part(said: Any) -> Any:
    (turn,) = read({"role": "user", "content": [said]})
    (piece,) = turn.pieces
    return piece


PARTS: list[tuple[Any, Any]] = [
    ({"type": "text", "text": "a", "cache_control": {}}, Text("a", WHERE, {"cache_control": {}})),
    ({"type": "refusal", "refusal": "no"}, Text("no", WHERE, {})),
    ({"type": "image_url", "image_url": "https://a.example/b"}, Media("image", WHERE, {}, url="https://a.example/b")),
    (
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,eA==", "detail": "low"}, "x": 1},
        Media("image", WHERE, {"x": 1}, mime="image/gif", data="eA==", detail="low"),
    ),
    (
        {"type": "file", "file": {"file_data": "data:;base64,eA==", "filename": "a.pdf"}},
        Media("file", WHERE, {}, mime="application/pdf", data="eA==", name="a.pdf"),
    ),
    ({"type": "file", "file": {"file_id": "f_1"}}, Media("file", WHERE, {}, file_id="f_1")),
    (
        {"type": "input_audio", "input_audio": {"data": "eA==", "format": "mp3"}},
        Media("audio", WHERE, {}, mime="audio/mp3", data="eA=="),
    ),
    ({"type": "document", "source": {}}, Other({"type": "document", "source": {}}, WHERE)),
]


@pytest.mark.parametrize(("said", "piece"), PARTS)
def test_each_part_is_read(said: Any, piece: Any) -> None:
    assert part(said) == piece


CALL: dict[str, Any] = {"id": "c_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD: list[tuple[Any, str, str]] = [
    ("Hello", "", "invalid_value"),
    ({"role": "robot"}, ".role", "invalid_value"),
    ({"role": ["user"]}, ".role", "invalid_value"),
    ({"role": "function", "name": "f"}, ".role", "unsupported_parameter"),
    ({"role": "user", "content": 5}, ".content", "invalid_value"),
    ({"role": "user", "content": ["x"]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"text": "x"}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "file", "file": "x"}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "file", "file": {}}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "text", "text": {"a": 1}}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "input_audio", "input_audio": 5}]}, ".content[0]", "invalid_value"),
    ({"role": "user", "content": [{"type": "file", "file": {"file_id": []}}]}, ".content[0]", "invalid_value"),
    ({"role": "assistant", "content": "x", "extra_content": "x"}, ".extra_content", "invalid_value"),
    ({"role": "assistant", "refusal": 5}, ".refusal", "invalid_value"),
    ({"role": "assistant", "tool_calls": [CALL | {"id": 5}]}, ".tool_calls[0]", "invalid_value"),
    (
        {"role": "assistant", "tool_calls": [CALL | {"extra_content": 5}]},
        ".tool_calls[0].extra_content",
        "invalid_value",
    ),
    ({"role": "tool", "content": "x"}, ".tool_call_id", "invalid_value"),
    ({"role": "assistant", "tool_calls": {"id": "x"}}, ".tool_calls", "invalid_value"),
    ({"role": "assistant", "tool_calls": [{"id": "x"}]}, ".tool_calls[0]", "unsupported_parameter"),
    ({"role": "assistant", "tool_calls": [5]}, ".tool_calls[0]", "unsupported_parameter"),
]


@pytest.mark.parametrize(("message", "where", "code"), BAD)
def test_what_cannot_be_read_is_named(message: Any, where: str, code: str) -> None:
    with pytest.raises(BadRequest) as raised:
        read({"role": "user", "content": "Hello"}, message)
    error = raised.value
    assert (error.param, error.code, error.status) == (f"messages[1]{where}", code, 400)
    assert str(error).startswith(f"messages[1]{where}: ")


def test_an_answer_keeps_its_calls_and_what_its_provider_wants_back() -> None:
    call = {
        "id": "c_1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a": 1}'},
        "extra_content": {"g": 1},
    }
    answer: Any = {
        "role": "assistant",
        "content": "Hi",
        "refusal": "No.",
        "tool_calls": [call],
        "reasoning": "hm",
        "reasoning_content": "hm",
        "annotations": [],
        "audio": {"id": "audio_1"},
        "extra_content": {"anthropic": {}},
    }
    assert read(answer, {"role": "tool", "tool_call_id": "c_1", "content": "2", "name": "other"}) == [
        Turn(
            "assistant",
            [Text("Hi", "messages[0].content", {}), Text("No.", "messages[0].refusal", {})],
            "messages[0]",
            calls=[Call("c_1", "f", {"a": 1}, {"g": 1}, "messages[0].tool_calls[0]")],
            extra={"anthropic": {}},
            rest={"audio": {"id": "audio_1"}},
        ),
        Turn("tool", [Text("2", "messages[1].content", {})], "messages[1]", call_id="c_1", function="f"),
    ]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_what_sdks_and_frameworks_put_on_messages_says_nothing(role: str) -> None:
    said: Any = {"role": role, "content": "Hi", "audio": None, "function_call": None, **dict.fromkeys(UNSAID, "x")}
    (turn,) = read(said)
    assert turn.rest == {}


def test_a_result_without_its_call_keeps_the_name_it_says() -> None:
    (turn,) = read({"role": "tool", "tool_call_id": "c_9", "content": None, "name": "f", "is_error": True})
    assert (turn.function, turn.pieces, turn.rest) == ("f", [], {"is_error": True})


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {"INVALID_JSON": None}),
        ("{", {"INVALID_JSON": "{"}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a": "\\ud800"}', {"INVALID_JSON": '{"a": "\\ud800"}'}),
        ("[" * 100_000, {"INVALID_JSON": "[" * 100_000}),
    ],
)
def test_arguments_are_an_object_whatever_a_model_wrote(said: Any, arguments: Any) -> None:
    assert arguments_of(said) == arguments


SCHEMAS: list[tuple[Any, Any]] = [
    (
        {"type": "string", "description": "A day.", "pattern": "x", "maxLength": 3},
        {"type": "string", "description": 'A day.\n\n(pattern: "x", maxLength: 3)'},
    ),
    ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
    ({"type": "string", "format": "iban"}, {"type": "string", "description": '(format: "iban")'}),
    (
        {"type": "array", "minItems": 1, "items": {"type": "object", "$schema": "x"}},
        {"type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": False}},
    ),
    (
        {"type": ["array", "null"], "minItems": 2, "uniqueItems": True},
        {"type": ["array", "null"], "description": "(minItems: 2, uniqueItems: true)"},
    ),
    (
        {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        {
            "type": ["object", "null"],
            "additionalProperties": False,
            "description": '(additionalProperties: {"type":"string"})',
        },
    ),
    (
        {"properties": {"a": {"oneOf": [{"const": 1}, {"properties": {}, "additionalProperties": True}]}}},
        {
            "type": "object",
            "properties": {
                "a": {"anyOf": [{"const": 1}, {"type": "object", "properties": {}, "additionalProperties": False}]}
            },
            "additionalProperties": False,
        },
    ),
    (
        {"$defs": {"A": {"type": "integer", "minimum": 0}}, "$ref": "#/$defs/A", "description": "x", "type": "object"},
        {"$defs": {"A": {"type": "integer", "description": "(minimum: 0)"}}, "$ref": "#/$defs/A"},
    ),
    ({"properties": 5, "items": [5], "anyOf": "x", "format": [], "minItems": {}}, None),
]


@pytest.mark.parametrize(("schema", "closed"), SCHEMAS)
def test_a_schema_is_said_in_the_words_of_structured_output(schema: Any, closed: Any) -> None:
    made = closed_schema(schema, "x")
    assert closed is None or made == closed


def test_a_schema_nested_too_deeply_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(BadRequest, match="nested too deeply") as raised:
        closed_schema(deep, "response_format")
    assert raised.value.param == "response_format"
