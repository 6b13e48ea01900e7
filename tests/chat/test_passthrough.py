"""`PassthroughExecutor`: what it refuses, what it repairs, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.chat.passthrough import DENIED, OPEN_FIELDS, STATEFUL, PassthroughExecutor
from penstock.errors import Invalid, Unavailable
from penstock.events import Chunks, Event, Fold, Text, Told, Used
from penstock.messages import ChatReply, ChatRequest, Chunk, ChunkChoice, Delta, Usage
from penstock.run import Run, execute
from penstock.testing import Heard, ScriptedLlm

USAGE = Usage(3, 2, 5)
ASKING: dict[str, Any] = {"stream_options": {"include_usage": True}}


class Telling:
    """An executor that tells the views it was made with, one event for each list."""

    def __init__(self, *reads: Sequence[Chunk], usage: Usage | None = None, with_bytes: bool = True) -> None:
        self._reads, self._usage, self._with_bytes = reads, usage, with_bytes

    async def __call__(self, _: ChatRequest, run: Run, /) -> ChatReply:
        fold = Fold()
        for views in self._reads:
            data = b"".join(frame(view) for view in views)
            for view in views:
                fold.add_chunk(view)
            await run.emit(Chunks(views=list(views), data=data if self._with_bytes else None))
        await run.emit(Used(usage=self._usage or Usage()))
        return fold.reply(self._usage)


def frame(view: Chunk) -> bytes:
    said: dict[str, Any] = {
        "id": view.id,
        "object": view.object,
        "created": view.created,
        "model": view.model,
        "extra": 1,
    }
    said["choices"] = [{"index": c.index, "delta": {"content": c.delta.content}} for c in view.choices]
    return b"data: %b\n\n" % msgspec.json.encode(said)


def piece(text: str | None = None, *, finish: str | None = None, index: int = 0, role: str | None = None) -> Chunk:
    choice = ChunkChoice(delta=Delta(role=role, content=text), index=index, finish_reason=finish)
    return Chunk(choices=[choice], id="c", object="chat.completion.chunk", created=1, model="m")


def used(usage: Usage = USAGE) -> Chunk:
    return Chunk(choices=[], id="c", object="chat.completion.chunk", created=1, model="m", usage=usage)


async def told(llm: Any, *, allow: Sequence[str] = (), **params: Any) -> list[Chunks]:
    heard = Heard()
    await execute(PassthroughExecutor(llm, allow=allow), ChatRequest.of("hi", **params), heard)
    return [event for event in heard.events if isinstance(event, Chunks)]


def views_of(events: Sequence[Chunks]) -> list[Chunk]:
    return [view for event in events for view in event.views]


async def test_row_a1_a_stream_that_needs_nothing_keeps_its_bytes() -> None:
    first, second = [piece("a", role="assistant"), piece("b")], [piece("c"), piece(finish="stop")]
    events = await told(Telling(first, second))
    assert [event.data for event in events] == [b"".join(map(frame, read)) for read in (first, second)]


async def test_a_repaired_event_keeps_the_json_of_its_chunks() -> None:
    lacking = [piece("a"), piece("b")]
    (event, _) = await told(Telling(lacking, [piece(finish="stop")]))
    assert event.data is None
    assert [view.raw for view in event.views] == [frame(view)[6:-2] for view in [piece("a"), piece("b")]]
    assert [view.choices[0].delta.role for view in event.views] == ["assistant", None]


async def test_each_choice_is_given_its_role_once() -> None:
    events = await told(Telling([piece("a"), piece("b", index=1)], [piece("c"), piece("d", index=1)]))
    roles = [(c.index, c.delta.role) for view in views_of(events) for c in view.choices]
    assert roles == [(0, "assistant"), (1, "assistant"), (0, None), (1, None)]


async def test_missing_fields_are_the_same_for_all_chunks() -> None:
    bare = [Chunk(choices=[ChunkChoice(delta=Delta(content=text))]) for text in "abc"]
    views = views_of(await told(Telling(bare[:1], bare[1:])))
    assert len({(view.id, view.created, view.model, view.object) for view in views}) == 1
    assert views[0].id is not None
    assert views[0].id.startswith("chatcmpl-")
    assert views[0].created


READS: dict[str, list[list[Chunk]]] = {
    "none": [[piece("a"), piece(finish="stop")]],
    "at its place": [[piece("a"), piece(finish="stop")], [used()]],
    "twice": [[piece("a"), piece(finish="stop")], [used(), used()]],
    "too early": [[piece("a"), used()], [piece(finish="stop")]],
    "in one read": [[piece("a"), piece(finish="stop"), used()]],
}


@pytest.mark.parametrize("name", list(READS))
@pytest.mark.parametrize("with_bytes", [True, False])
async def test_usage_is_told_once_and_last_on_request_only(name: str, with_bytes: bool) -> None:
    def llm() -> Telling:
        reads = msgspec.convert(msgspec.to_builtins(READS[name]), list[list[Chunk]])
        return Telling(*reads, usage=USAGE, with_bytes=with_bytes)

    asked = views_of(await told(llm(), **ASKING))
    assert [view.usage for view in asked if view.usage] == [USAGE]
    assert (asked[-1].choices, asked[-1].usage) == ([], USAGE)
    unasked = views_of(await told(llm()))
    assert [view for view in unasked if view.usage or not view.choices] == []


async def test_row_a6_only_structured_events_are_told() -> None:
    heard: list[Event] = []
    llm = ScriptedLlm("one two three")
    reply = await execute(PassthroughExecutor(llm), ChatRequest.of("hi"), heard.append)
    assert all(isinstance(event, Told) for event in heard[:-1])
    assert [type(event).__name__ for event in heard[-2:]] == ["Used", "Finished"]
    assert not any(isinstance(event, Text | str | bytes) for event in heard)
    assert reply.content == "one two three"


async def test_case_07_the_reply_and_the_fold_of_the_events_are_equal() -> None:
    heard = Heard()
    streamed = await execute(PassthroughExecutor(ScriptedLlm("one two")), ChatRequest.of("hi", **ASKING), heard)
    whole = await execute(PassthroughExecutor(ScriptedLlm("one two")), ChatRequest.of("hi", stream=False))
    assert heard.text == streamed.content == whole.content
    assert streamed.usage == whole.usage


async def test_an_error_of_the_llm_passes() -> None:
    with pytest.raises(Unavailable, match="down"):
        await told(ScriptedLlm(Unavailable("down")))


@pytest.mark.parametrize("field", STATEFUL)
async def test_a_stateful_field_is_refused_unless_it_is_off(field: str) -> None:
    llm = ScriptedLlm("hi")
    with pytest.raises(Invalid) as refused:
        await told(llm, **dict[str, Any]({field: True}))
    assert (refused.value.param, refused.value.code) == (field, "unsupported_value")
    assert llm.requests == []
    await told(llm, **dict[str, Any]({field: False}))
    assert len(llm.requests) == 1


def nested(name: str, depth: int) -> Any:
    value: Any = {name: "x"}
    for level in range(depth):
        value = {f"level{level}": value} if level % 2 else [value]
    return value


@given(name=st.sampled_from(sorted(DENIED)), depth=st.integers(0, 60), with_data=st.booleans(), escaped=st.booleans())
async def test_case_23_a_denied_name_is_found_at_every_depth(
    name: str, depth: int, with_data: bool, escaped: bool
) -> None:
    params = {"options": nested(name, depth)}
    spelled = f"\\u{ord(name[0]):04x}{name[1:]}" if escaped else name
    body = msgspec.json.encode(params).replace(name.encode(), spelled.encode())
    request = ChatRequest(
        model="m", messages=[{"role": "user", "content": "hi"}], params=params, data=body if with_data else None
    )
    with pytest.raises(Invalid) as refused:
        await execute(PassthroughExecutor(ScriptedLlm("hi")), request)
    assert refused.value.param == f"options.{name}"


@pytest.mark.parametrize("field", sorted(OPEN_FIELDS))
async def test_case_23_users_may_use_the_names_in_their_own_data(field: str) -> None:
    llm = ScriptedLlm("hi")
    await told(llm, **{field: nested("api_key", 3)})
    assert llm.requests[0].params[field] == nested("api_key", 3)


async def test_case_23_a_name_may_be_allowed() -> None:
    llm = ScriptedLlm("hi")
    await told(llm, allow=["extra_body"], extra_body={"x": 1})
    with pytest.raises(Invalid):
        await told(llm, allow=["extra_body"], extra_body={"api_key": 1})


async def test_what_a_child_says_is_not_held_to_the_contract() -> None:
    async def planning(request: ChatRequest, run: Run) -> ChatReply:
        await ScriptedLlm("a plan")(request, run.child("plan"))
        return await ScriptedLlm("an answer")(request, run)

    request = ChatRequest.of("Hi", stream_options={"include_usage": True})
    heard = Heard()
    await execute(PassthroughExecutor(planning), request, heard)
    own = [view for event in heard.events if isinstance(event, Chunks) and not event.path for view in event.views]
    assert own[0].choices[0].delta.role == "assistant"
    assert [view.usage is not None for view in own[-2:]] == [False, True]
