"""What llama.cpp refuses, refused by Penstock in front of it in the same words; and what Penstock refuses first."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.e2e.gateway import ADD, HELLO, request
from tests.rig.serving import Process
from tests.rig.tiny_llm import MODEL
from tests.rig.wire import JsonObject

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
REFUSED: dict[str, JsonObject] = {
    "image": {"messages": IMAGE},
    "too_long": {"messages": [{"role": "user", "content": "x " * 6000}]},
    "too_many_choices": {"n": 99},
    "wrong_schema": {"response_format": SCHEMA},
    "wrong_format": {"response_format": {"type": "nonsense"}},
    "wrong_tool_choice": {"tools": [ADD], "tool_choice": "nonsense"},
    "wrong_grammar": {"grammar": "root ::= ("},
}


def refusal(sdk: openai.OpenAI, fields: JsonObject, *, stream: bool) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=HELLO, stream=stream, extra_body=request(**fields))
    return caught.value


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_the_one_of_the_server_behind(
    direct: openai.OpenAI, through: openai.OpenAI, name: str, stream: bool
) -> None:
    expected, said = (refusal(sdk, REFUSED[name], stream=stream) for sdk in (direct, through))
    assert type(said) is type(expected)
    assert said.status_code == expected.status_code
    words, theirs = dict[str, Any](said.body or {}), dict[str, Any](expected.body or {})  # type: ignore[call-overload]
    assert (words["message"], words["type"]) == (theirs["message"], theirs["type"])
    # A code is text in this API; for a conversation that is too long there is one that clients look for.
    assert words["code"] == ("context_length_exceeded" if name == "too_long" else str(theirs["code"]))
    assert words.keys() == {"message", "type", "param", "code"}


MISTYPED: list[tuple[str, Any]] = [
    ("temperature", "hot"),
    ("max_tokens", "9"),
    ("messages", "hello"),
    ("messages", []),
    ("messages[0].content", [{"role": "user", "content": 5}]),
    ("messages[0].role", [{"content": "hello"}]),
    ("stream", "yes"),
    ("n", 1.5),
    ("stop", 5),
    ("tools", "add"),
    ("response_format", "json"),
    ("model", 7),
]


@pytest.mark.parametrize(("param", "value"), MISTYPED, ids=[f"{param}={value!r}" for param, value in MISTYPED])
def test_case_26_a_wrong_type_is_refused_before_the_server_behind_sees_it(
    through: openai.OpenAI, param: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        through.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body=request(**{param.partition("[")[0]: value})
        )
    assert (caught.value.status_code, caught.value.type) == (400, "invalid_request_error")
    assert caught.value.param == param


def test_the_list_of_models_is_the_one_of_the_server_behind(direct: openai.OpenAI, through: openai.OpenAI) -> None:
    expected = [(model.id, model.object, model.owned_by) for model in direct.models.list()]
    assert [(model.id, model.object, model.owned_by) for model in through.models.list()] == expected
    assert expected[0][0] == MODEL


def test_a_model_is_found_by_its_name_and_no_other(through: openai.OpenAI) -> None:
    assert through.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        through.models.retrieve("some/other:name")
    assert caught.value.code == "model_not_found"


def test_a_path_without_a_page_is_not_found_in_the_shape_of_the_api(gateway: Process) -> None:
    answer = httpx.post(f"{gateway.base_url}/v1/completions", json={"model": MODEL, "prompt": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
