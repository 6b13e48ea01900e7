"""What is made canonical: reasoning apart from content, and tool calls one after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.events import Chunks, Fold
from penstock.llms.canonical import Canonical, Thinking, ToolCalls
from penstock.messages import Chunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta


def piece(
    index: int | None, arguments: str | None = None, *, name: str | None = None, call_id: str | None = None
) -> ToolCallDelta:
    return ToolCallDelta(index=index, id=call_id, function=FunctionDelta(name=name, arguments=arguments))


def passed(batches: Sequence[Sequence[ToolCallDelta]]) -> list[ToolCallDelta]:
    """What leaves, after checking the order that clients rely on."""
    calls = ToolCalls()
    out: list[ToolCallDelta] = []
    for batch in batches:
        ready = calls.feed(list(batch))
        assert len({one.index for one in ready}) == len(ready), "one entry for an index in a chunk"
        out += ready
    out += calls.end()
    indexes = [one.index for one in out]
    assert None not in indexes
    assert indexes == sorted(index for index in indexes if index is not None), "one index after another"
    for index in set(indexes):
        named = [(one.id, one.type, one.function and one.function.name) for one in out if one.index == index]
        assert all(named[0]), "the first piece of an index has id, type and name"
        assert not any(any(later) for later in named[1:]), "id and name come once"
    return out


def whole(pieces: Sequence[ToolCallDelta]) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    fold = Fold()
    fold.add(Chunks(views=[Chunk(choices=[ChunkChoice(delta=Delta(tool_calls=list(pieces)))])]))
    return [(call.name, call.arguments) for call in fold.reply().tool_calls]


F, G = ("f", '{"a":1}'), ("g", '{"b":[2,3]}')
TABLE: dict[str, tuple[list[list[ToolCallDelta]], list[tuple[str, str]]]] = {
    "arguments in the chunk with the name": ([[piece(0, F[1], name="f", call_id="1")]], [F]),
    "index missing": (
        [
            [piece(None, "", name="f", call_id="1")],
            [piece(None, F[1])],
            [piece(None, G[1], name="g", call_id="2")],
        ],
        [F, G],
    ),
    "index all zero": (
        [
            [piece(0, "", name="f", call_id="1")],
            [piece(0, '{"a"')],
            [piece(0, ":1}")],
            [piece(0, "", name="g", call_id="2")],
            [piece(0, G[1])],
        ],
        [F, G],
    ),
    "index all zero, no ids": ([[piece(0, F[1], name="f")], [piece(0, '{"a":2}', name="f")]], [F, ("f", '{"a":2}')]),
    "index all zero, no ids, arguments apart": (
        [[piece(0, "", name="f")], [piece(0, F[1])], [piece(0, "", name="f")], [piece(0, '{"a":2}')]],
        [F, ("f", '{"a":2}')],
    ),
    "all in one chunk without an index": ([[piece(None, F[1], name="f"), piece(None, G[1], name="g")]], [F, G]),
    "two entries of one index in one chunk": (
        [[piece(0, "", name="f", call_id="1"), piece(0, '{"a"'), piece(0, ":1}")]],
        [F],
    ),
    "name and id repeated": (
        [
            [piece(0, '{"a"', name="f", call_id="1")],
            [piece(0, ":1", name="f", call_id="1")],
            [piece(0, "}", name="f", call_id="1")],
        ],
        [F],
    ),
    "name repeated without an id": ([[piece(0, '{"a":', name="f")], [piece(0, "1}", name="f")]], [F]),
    "name repeated after the arguments": ([[piece(0, F[1], name="f", call_id="1")], [piece(0, "", name="f")]], [F]),
    "id first, name later": ([[piece(0, call_id="1")], [piece(0, "", name="f")], [piece(0, F[1])]], [F]),
    "interleaved": (
        [
            [piece(0, "", name="f", call_id="1"), piece(1, "", name="g", call_id="2")],
            [piece(1, '{"b":')],
            [piece(0, '{"a":1')],
            [piece(1, "[2,3]")],
            [piece(0, "}")],
            [piece(1, "}")],
        ],
        [F, G],
    ),
    "an empty piece for a call that is over": (
        [[piece(0, F[1], name="f", call_id="1")], [piece(1, G[1], name="g", call_id="2")], [piece(0, "")]],
        [F, G],
    ),
    "no arguments at all": (
        [[piece(0, name="f", call_id="1")], [piece(1, name="g", call_id="2")]],
        [("f", ""), ("g", "")],
    ),
    "never valid": ([[piece(0, "{", name="f", call_id="1")], [piece(1, G[1], name="g", call_id="2")]], [("f", "{"), G]),
    "an unknown index": ([[piece(0, "", name="f", call_id="1")], [piece(3, F[1])]], [F]),
}


@pytest.mark.parametrize("case", TABLE)
def test_case_08_odd_tool_calls_leave_in_order(case: str) -> None:
    batches, calls = TABLE[case]
    assert whole(passed(batches)) == calls


ARGUMENTS = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6), max_size=3).map(json.dumps)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_case_08_every_interleaving_leaves_one_index_after_another(data: st.DataObject) -> None:
    arguments = data.draw(st.lists(ARGUMENTS, min_size=1, max_size=4))
    repeats = data.draw(st.booleans())
    waiting: list[list[ToolCallDelta]] = []
    for index, text in enumerate(arguments):
        marks = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        parts = [text[start:end] for start, end in zip([0, *marks], [*marks, len(text)], strict=True)]
        again = {"name": f"f{index}", "call_id": f"id{index}"} if repeats else {}
        waiting.append([piece(index, parts[0], name=f"f{index}", call_id=f"id{index}")])
        waiting[-1] += [piece(index, part, **again) for part in parts[1:]]
    batches: list[list[ToolCallDelta]] = []
    begun = 0
    while any(waiting):
        # Indexes are given out in the order in which calls begin; how their pieces mix after that is free.
        ready = [n for n, left in enumerate(waiting) if left and n <= begun]
        chosen = data.draw(st.sampled_from(ready))
        begun = max(begun, chosen + 1)
        if not batches or data.draw(st.booleans()):
            batches.append([])
        batches[-1].append(waiting[chosen].pop(0))
    out = passed(batches)
    assert whole(out) == [(f"f{index}", text) for index, text in enumerate(arguments)]
    assert [one.id for one in out if one.id] == [f"id{index}" for index in range(len(arguments))]


def test_case_08_a_later_call_waits_only_until_the_one_before_it_is_complete() -> None:
    calls = ToolCalls()
    calls.feed([piece(0, '{"a":', name="f", call_id="1")])
    assert calls.feed([piece(1, "{}", name="g", call_id="2")]) == []
    ready = calls.feed([piece(0, "1}")])
    assert [(one.index, one.function and one.function.arguments) for one in ready] == [(0, "1}"), (1, "{}")]
    assert calls.end() == []


def test_case_08_a_call_without_an_id_is_given_one() -> None:
    first, second = passed([[piece(0, "{}", name="f")], [piece(1, "{}", name="g")]])
    assert first.id
    assert second.id
    assert first.id != second.id


def test_long_arguments_in_small_pieces_stay_cheap() -> None:
    calls = ToolCalls()
    calls.feed([piece(0, '{"a":"', name="f", call_id="1")])
    for _ in range(100_000):
        assert calls.feed([piece(0, "x" * 8)])[0].index == 0
    assert calls.end() == []


THOUGHTS: dict[str, tuple[str, str]] = {
    "<think>hm, 1 < 2</think>\n\nHi </think>": ("hm, 1 < 2", "Hi </think>"),
    "  \n<think>hm</think>Hi": ("hm", "Hi"),
    "<think></think>\n\nHi": ("", "Hi"),
    "<think>never closed </thin": ("never closed </thin", ""),
    "Hi <think>not at the start</think>": ("", "Hi <think>not at the start</think>"),
    "<thin": ("", "<thin"),
    "  ": ("", "  "),
    "<b>bold</b>": ("", "<b>bold</b>"),
    "<think>é😀</think>\nß": ("é😀", "ß"),
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_thinking_is_split_the_same_at_every_place(text: str) -> None:
    for place in range(len(text) + 1):
        for size in (len(text) + 1, 1):
            thinking = Thinking()
            parts = [text[:place], *(text[at : at + size] for at in range(place, len(text), size))]
            told = [*(thinking.feed(part) for part in parts if part), thinking.end()]
            assert ("".join(thought for thought, _ in told), "".join(said for _, said in told)) == THOUGHTS[text]


def view(index: int = 0, finish: str | None = None, **fields: Any) -> Chunk:
    return Chunk(choices=[ChunkChoice(delta=Delta(**fields), index=index, finish_reason=finish)])


def test_each_choice_has_thoughts_of_its_own() -> None:
    canonical, fold = Canonical(), Fold()
    chunks = [
        view(0, content="<think>a"),
        view(1, content="no "),
        view(0, content="</think>b"),
        view(1, "stop", content="<think>"),
        view(0, "stop"),
    ]
    changed = [canonical.repair(chunk) for chunk in chunks]
    for chunk in chunks:
        fold.add_chunk(chunk)
    assert [(c.reasoning, c.content) for c in fold.reply().choices] == [("a", "b"), (None, "no <think>")]
    assert changed == [True, False, True, False, False]


def test_what_is_still_held_is_told_with_the_finish_reason() -> None:
    canonical = Canonical()
    assert canonical.repair(view(content="<thi"))
    last = view(finish="stop")
    assert canonical.repair(last)
    assert last.choices[0].delta.content == "<thi"


def test_thoughts_that_never_end_are_told_as_thoughts() -> None:
    canonical, fold = Canonical(), Fold()
    for chunk in (view(content="<think>hm </thi"), view(finish="length")):
        canonical.repair(chunk)
        fold.add_chunk(chunk)
    assert (fold.reasoning, fold.content) == ("hm </thi", "")


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_stands_under_both_names(field: str) -> None:
    fields: dict[str, Any] = {field: "hm"}
    chunk = view(**fields)
    assert Canonical().repair(chunk)
    delta = chunk.choices[0].delta
    assert (delta.reasoning, delta.reasoning_content) == ("hm", "hm")


def test_reasoning_in_details_is_told_by_its_text() -> None:
    details = [{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.encrypted", "data": "x"}, {"summary": "m"}]
    chunk = view(reasoning_details=details)
    assert Canonical().repair(chunk)
    assert chunk.choices[0].delta.reasoning_content == "hm"


def test_what_needs_nothing_is_not_touched() -> None:
    canonical = Canonical()
    first = ToolCallDelta(index=0, id="1", type="function", function=FunctionDelta(name="f", arguments=""))
    for delta in (
        Delta(role="assistant", content=""),
        Delta(content="Hi"),
        Delta(tool_calls=[first]),
        Delta(tool_calls=[piece(0, "{}")]),
        Delta(),
    ):
        assert not canonical.repair(Chunk(choices=[ChunkChoice(delta=delta)])), delta
