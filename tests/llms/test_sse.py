"""The reader of server-sent events: every cutting of a stream gives the events of the whole."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.llms import sse
from penstock.llms.sse import EventTooLong, SseReader

ENDINGS = st.sampled_from(["\n", "\r\n", "\r"])
TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


def reference(stream: bytes) -> list[bytes]:
    """The events by the letter of the specification, a line at a time, up to the end mark."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf")), b""]:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
        else:
            payload, data = b"\n".join(data).strip(), []
            if payload == b"[DONE]":
                return events
            if payload:
                events.append(payload)
    return events


def read(pieces: list[bytes]) -> list[bytes]:
    reader, payloads = SseReader(), list[bytes]()
    for piece in pieces:
        step = reader.feed(piece)
        payloads += step.payloads
        if step.done:
            break
    else:
        payloads += reader.close().payloads
    return [payload.strip() for payload in payloads]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(marks)]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Events in every legal form, with one line ending throughout or a different one on each line."""
    lines: list[str] = []
    for _ in range(draw(st.integers(0, 5))):
        gap = draw(st.sampled_from([" ", "", "  "]))
        forms = [f"data:{gap}{draw(TEXTS)}", f": {draw(TEXTS)}", f"event: {draw(TEXTS)}", "retry: 3", "data: [DONE] "]
        lines += draw(st.lists(st.sampled_from(forms), min_size=1, max_size=3))
        lines += [""] * draw(st.integers(1, 2))
    lines += draw(st.sampled_from([[], ["data: [DONE]", ""], ["data: last, without its blank line"]]))
    one = draw(ENDINGS)
    mixed = draw(st.booleans())
    text = "".join(line + (draw(ENDINGS) if mixed else one) for line in lines)
    return (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + text.encode()


@settings(max_examples=300, deadline=None)
@example(stream=b"data: 1\n\rdata: 2\r\n\rdata: 3\r\r\n", places=[])
@example(stream=b"\xef\xbb\xbfdata: 1\r\n\r\n", places=[1, 2, 3, 11, 12, 13, 14])
@given(stream=streams(), places=st.lists(st.integers(0, 10_000), max_size=12))
def test_case_06_every_cutting_gives_the_events_of_the_specification(stream: bytes, places: list[int]) -> None:
    assert read(cut(stream, places)) == reference(stream)


@settings(max_examples=100, deadline=None)
@given(stream=streams())
def test_case_06_single_bytes_give_the_events_of_the_specification(stream: bytes) -> None:
    assert read([stream[at : at + 1] for at in range(len(stream))]) == reference(stream)


@settings(max_examples=200, deadline=None)
@given(stream=streams(), places=st.lists(st.integers(0, 10_000), max_size=6))
def test_bytes_that_may_be_sent_on_say_the_same_and_hold_no_end_mark(stream: bytes, places: list[int]) -> None:
    reader = SseReader()
    for piece in cut(stream, places):
        step = reader.feed(piece)
        if step.plain is not None:
            assert step.plain == b"".join(b"data: %b\n\n" % payload for payload in step.payloads)
        if step.done:
            break


@pytest.mark.parametrize("size", [1 << 10, 65_521, 1 << 20])
def test_case_06_a_line_of_one_mebibyte_is_one_event(size: int) -> None:
    long = b"data: " + b"x" * (1 << 20) + "é".encode() + b"\n\ndata: after\n\n"
    pieces = [long[at : at + size] for at in range(0, len(long), size)]
    assert [len(payload) for payload in read(pieces)] == [(1 << 20) + 2, 5]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_an_event_of_many_lines_costs_as_much_as_its_bytes(ending: bytes) -> None:
    line = b"data: " + b"x" * 20 + ending
    began = time.monotonic()
    payloads = read([line] * 60_000 + [ending])
    assert time.monotonic() - began < 3
    assert [len(payload) for payload in payloads] == [60_000 * 21 - 1]


def test_an_event_that_never_ends_is_refused() -> None:
    reader, block = SseReader(), b"x" * (1 << 20)
    with pytest.raises(EventTooLong, match=str(sse.MAX_EVENT)):
        for _ in range(sse.MAX_EVENT // len(block) + 2):
            reader.feed(block)


def test_nothing_after_the_end_mark_is_read() -> None:
    step = SseReader().feed(b'data: {"a":1}\n\ndata: [DONE]\n\ndata: [DONE]\n\ndata: {"b":2}\n\n')
    assert (step.payloads, step.plain, step.done) == ([b'{"a":1}'], None, True)


def test_untouched_bytes_are_given_without_the_end_mark() -> None:
    reader = SseReader()
    assert reader.feed(b'data: {"a":1}\n\ndata: {"b"').plain == b'data: {"a":1}\n\n'
    step = reader.feed(b":2}\n\ndata: [DONE]\n\n")
    assert (step.payloads, step.plain, step.done) == ([b'{"b":2}'], b'data: {"b":2}\n\n', True)
