"""Whatever is told is replayed as it was, however it was told: property tests of recording and `Replay` together."""

from __future__ import annotations

import asyncio
import tempfile
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.events import Chunks, Fold
from penstock.llms.replay import Replay, recording
from penstock.messages import (
    ChatReply,
    ChatRequest,
    Chunk,
    ChunkChoice,
    CompletionTokens,
    Delta,
    FunctionDelta,
    PromptTokens,
    ToolCallDelta,
    Usage,
)
from penstock.net import Secret
from penstock.policies import wrap
from penstock.run import Run, execute
from penstock.testing import Heard

SECRET = "sk-aabbccddeeff"
TEXTS = st.one_of(st.text(st.characters(codec="utf-8"), max_size=4), st.sampled_from(['"', "\\", "\n", "[DONE]"]))
SOME = st.none() | TEXTS
EXTRAS = st.none() | st.dictionaries(TEXTS, st.lists(st.integers(0, 9), max_size=2), min_size=1, max_size=2)
CALLS = st.builds(
    ToolCallDelta,
    index=st.integers(0, 2),
    id=SOME,
    function=st.none() | st.builds(FunctionDelta, name=SOME, arguments=SOME),
    extra_content=EXTRAS,
)
DELTAS = st.builds(
    Delta,
    content=SOME,
    reasoning_content=SOME,
    refusal=SOME,
    tool_calls=st.none() | st.lists(CALLS, max_size=2),
    extra_content=EXTRAS,
)
CHOICES = st.builds(
    ChunkChoice,
    delta=DELTAS,
    index=st.integers(0, 1),
    finish_reason=st.sampled_from([None, None, None, "stop", "tool_calls"]),
)
USAGES = st.builds(
    Usage,
    prompt_tokens=st.integers(0, 9),
    completion_tokens=st.integers(0, 9),
    prompt_tokens_details=st.none() | st.builds(PromptTokens, cached_tokens=st.none() | st.integers(0, 9)),
    completion_tokens_details=st.none() | st.builds(CompletionTokens, reasoning_tokens=st.none() | st.integers(0, 9)),
)
VIEWS = st.builds(
    Chunk,
    choices=st.lists(CHOICES, max_size=2),
    id=st.sampled_from(["a", "b", None]),
    created=st.sampled_from([1, None]),
    model=st.sampled_from(["m", None]),
    usage=st.none() | USAGES,
)
READS = st.lists(st.tuples(st.lists(VIEWS, max_size=3), st.booleans()), min_size=1, max_size=4)


def frame(view: Chunk) -> bytes:
    fields = msgspec.to_builtins(view)
    fields.pop(" raw")
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def service(reads: list[tuple[list[Chunk], bool]]) -> Any:
    """An executor that tells these reads, some of them with their bytes, and returns what they fold to."""

    async def call(request: ChatRequest, run: Run) -> ChatReply:
        del request
        fold = Fold()
        for views, kept in reads:
            for view in views:
                fold.add_chunk(view)
            await run.emit(Chunks(views=views, data=b"".join(map(frame, views)) if kept else None))
        return fold.reply(Usage(1, 2, 3))

    return call


async def lived_and_replayed(
    reads: list[Any], *secrets: Secret | str
) -> tuple[ChatReply, list[ChatReply], list[Heard]]:
    heard = [Heard(), Heard(), Heard()]
    with tempfile.TemporaryDirectory() as folder:
        request = ChatRequest.of("x")
        lived = await execute(wrap(service(reads), [recording(folder, secrets=secrets)]), request, heard[0])
        replay = Replay(folder)
        whole = ChatRequest.of("x", stream=False)
        return lived, [await execute(replay, request, heard[1]), await execute(replay, whole, heard[2])], heard


@settings(max_examples=60, deadline=None)
@given(reads=READS.filter(lambda reads: any(views for views, _ in reads)))
def test_case_07_any_answer_is_replayed_streamed_and_whole(reads: list[Any]) -> None:
    lived, replayed, heard = asyncio.run(lived_and_replayed(reads))
    for reply in replayed:
        assert reply.choices == lived.choices
        assert reply.usage == lived.usage
    told = [[view for event in one.events if isinstance(event, Chunks) for view in event.views] for one in heard]
    assert [view.choices for view in told[0]] == [view.choices for view in told[1]]
    assert [view.usage for view in told[0]] == [view.usage for view in told[1]]
    assert len(told[2]) == 1


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, len(SECRET) - 1), max_size=6, unique=True), field=st.sampled_from(["content", "call"])
)
def test_case_25_a_secret_cut_anywhere_is_not_recorded(cuts: list[int], field: str) -> None:
    places = [0, *sorted(cuts), len(SECRET)]
    pieces = [SECRET[start:end] for start, end in pairwise(places)]

    def delta(piece: str) -> Delta:
        if field == "content":
            return Delta(content=piece)
        return Delta(tool_calls=[ToolCallDelta(index=0, function=FunctionDelta(arguments=piece))])

    reads = [([Chunk(choices=[ChunkChoice(delta=delta(piece))])], n % 2 == 0) for n, piece in enumerate(pieces)]
    lived, replayed, _ = asyncio.run(lived_and_replayed(reads, SECRET))
    said = [reply.content + "".join(call.arguments for call in reply.tool_calls) for reply in (lived, *replayed)]
    assert said == [SECRET, "***", "***"]
