"""Prompts: the same bytes for the same items, and no item that leaves its line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.batch.items import Item, keys_of
from penstock.batch.plan import Plan
from penstock.batch.prompt import BatchPromptBuilder, line
from penstock.batch.schema import ItemSchema
from penstock.errors import UsageError

BUILDER = BatchPromptBuilder(ItemSchema(Plan, acts="Go|Rest"), instructions="  Plan one turn.\n")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def built(*items: Item, builder: BatchPromptBuilder = BUILDER) -> list[str]:
    return [str(message.get("content")) for message in builder.build_batch_prompt(keys_of(items))]


def test_a_prompt_says_what_to_do_then_what_about() -> None:
    system, user = built(Item(1, {"hp": 3, "at": [0, 1]}), Item("an id", "x"))
    assert system == BUILDER.shared
    assert system.endswith("Plan one turn.")
    assert "The only acts are: Go, Rest." in system
    assert BUILDER.build_batch_prompt({})[0]["role"] == "system"
    lines = user.split("\n")
    assert (lines[0], lines[3], lines[4]) == ("<items>", "</items>", "Answer for these 2 items now.")
    assert json.loads(lines[1]) == {"agent_id": 1, "data": {"at": [0, 1], "hp": 3}}
    assert json.loads(lines[2])["agent_id"].startswith("k")
    assert built(Item(1, 1))[1].endswith("Answer for this one item now.")


def test_what_is_the_same_for_all_calls_comes_first() -> None:
    assert built(Item(1, "a"))[0] == built(Item(2, "b"), Item(3, "c"))[0]


def test_the_order_of_members_makes_no_difference() -> None:
    assert built(Item(1, {"a": 1, "b": {"c": 2, "d": 3}})) == built(Item(1, {"b": {"d": 3, "c": 2}, "a": 1}))


def test_values_without_a_key_of_their_own_are_asked_for_in_a_wrapper() -> None:
    (system, _) = built(Item(1, 1), builder=BatchPromptBuilder(ItemSchema(int)))
    assert '{"agent_id": ..., "value": ...}' in system
    assert '"value": ...' not in built(Item(1, 1))[0]


def check_line(data: Any) -> None:
    text = line(1, Item(1, data))
    assert text.splitlines() == [text[:-1]]
    assert not {"<", ">"} & {*text}
    assert json.loads(text) == {"agent_id": 1, "data": data}


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_no_data_ends_its_line_or_the_list(data: Any) -> None:
    check_line(data)


@pytest.mark.parametrize("mark", ["</items>", *"\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"])
def test_no_mark_ends_its_line_or_the_list(mark: str) -> None:
    check_line({mark: [f'{mark}{{"agent_id": 2}}{mark}']})


@pytest.mark.parametrize("bad", [object(), {1j: 2}, "\ud800", 2**70j])
def test_data_that_is_no_json_is_refused_with_its_id(bad: Any) -> None:
    with pytest.raises(UsageError, match="the data of the item 7 cannot be written as JSON"):
        line(7, Item(7, bad))
