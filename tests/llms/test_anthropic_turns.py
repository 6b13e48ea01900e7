"""What `Claude` gives back of earlier turns: nothing that the API refuses, whoever kept the conversation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.llms.test_anthropic_requests import HELLO, IMAGE, sent
from tests.rig.native.scenarios import PNG, WEATHER

OLD = "claude-sonnet-4-5"
CALL: Any = {"id": "c_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USE: dict[str, Any] = {"type": "tool_use", "id": "c_1", "name": "weather", "input": {}}
TOLD: Any = {"role": "tool", "tool_call_id": "c_1", "content": "sunny"}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
UNSIGNED = {"type": "thinking", "thinking": "Hm", "signature": ""}


def called(*thoughts: dict[str, Any], content: str | None = None, extra: Any = None) -> Any:
    """An answer with a call and the thinking before it."""
    own = {"anthropic": {"thinking": [{"index": n, **one} for n, one in enumerate(thoughts)]}}
    return {"role": "assistant", "content": content, "tool_calls": [CALL], "extra_content": extra or own}


def back(message: Any) -> Any:
    """What is sent of an answer; None where it is left out."""
    _, *rest = sent(HELLO, message)["messages"]
    return rest[0]["content"] if rest else None


@pytest.mark.parametrize("text", ["", " ", "\n\n", [{"type": "text", "text": "\n"}]])
def test_a_blank_text_is_not_sent(text: Any) -> None:
    assert back(called(THOUGHT, content=text)) == [THOUGHT, USE]
    assert back(called(content=text)) == [USE]
    assert back({"role": "assistant", "content": text}) is None
    assert sent({"role": "system", "content": text}, HELLO) == sent(HELLO)


def test_a_blank_text_keeps_the_places_of_the_thinking_around_it() -> None:
    later = {"index": 2, "offset": 2, **HIDDEN}
    message = called(THOUGHT, content="\n\nOn.")
    message["extra_content"]["anthropic"]["thinking"].append(later)
    assert back(message) == [THOUGHT, HIDDEN, {"type": "text", "text": "On."}, USE]


def test_a_blank_text_beside_what_a_tool_shows_is_not_sent() -> None:
    result = {**TOLD, "content": [{"type": "text", "text": ""}, IMAGE]}
    (shown,) = sent(HELLO, called(), result)["messages"][-1]["content"]
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    assert shown["content"] == [picture]
    (shown,) = sent(HELLO, called(), {**TOLD, "content": "\n"})["messages"][-1]["content"]
    assert shown["content"] == ""


def test_thinking_cut_before_its_signature_is_not_given_back() -> None:
    assert back(called(UNSIGNED, THOUGHT, content="On.")) == [THOUGHT, {"type": "text", "text": "On."}, USE]


@pytest.mark.parametrize(
    "spoiled",
    [{"type": ["thinking"]}, {"type": "thinking"}, {**THOUGHT, "signature": 5}, {**HIDDEN, "data": ""}, {**USE}],
)
def test_thinking_that_a_client_has_spoiled_is_not_given_back(spoiled: dict[str, Any]) -> None:
    assert back(called(spoiled, THOUGHT)) == [THOUGHT, USE]


def test_thinking_that_nothing_follows_is_not_given_back() -> None:
    message = called(THOUGHT, content="\n\n")
    del message["tool_calls"]
    assert back(message) is None
    assert back(called({**THOUGHT, "index": 10**30})) == [USE]
    assert back(message | {"content": "On."}) == [THOUGHT, {"type": "text", "text": "On."}]


LOST: list[tuple[list[Any], bool]] = [
    ([HELLO, called(), TOLD], False),
    ([HELLO, called(UNSIGNED), TOLD], False),
    ([HELLO, called(extra={"google": {"thought_signature": "x"}}), TOLD, called(), TOLD], False),
    ([HELLO, called(), TOLD, HELLO], False),
    ([HELLO, called(THOUGHT), TOLD], True),
    ([HELLO, called(HIDDEN), TOLD, called(), TOLD], True),
    ([HELLO, called(), TOLD, {"role": "assistant", "content": "Sunny."}, HELLO], True),
    ([HELLO, {"role": "assistant", "content": "Hi."}, HELLO], True),
]


@pytest.mark.parametrize(("messages", "thinks"), LOST)
def test_a_call_whose_thinking_is_lost_goes_on_without(messages: list[Any], thinks: bool) -> None:
    asked: dict[str, Any] = {"reasoning_effort": "low", "tools": [WEATHER]}
    assert ("thinking" in sent(*messages, model=OLD, **asked)) is thinks
    assert sent(*messages, **asked)["thinking"] == {"type": "adaptive"}
    own = {"type": "enabled", "budget_tokens": 2000}
    assert sent(*messages, model=OLD, **asked, thinking=own)["thinking"] == own


def test_what_frameworks_put_on_messages_is_not_sent() -> None:
    more: Any = {"name": "Ann", "parsed": {"a": 1}, "annotations": [], "audio": None, "function_call": None}
    plain = sent(HELLO, called(THOUGHT), TOLD)
    assert sent(HELLO | more, called(THOUGHT) | more, TOLD | more) == plain
