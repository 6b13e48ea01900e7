"""The gateway benchmark: short, and for its counters alone, as no figure of a test machine means anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gateway
from benchmarks.load import Check
from benchmarks.shape import shape_of
from benchmarks.upstream import HEAD, block, tail, whole

STREAM = "c3-d0-t0"


def dechunked(wire: bytes) -> bytes:
    """The events of a chunked body, each of which is one piece of it."""
    pieces = (piece.partition(b"\r\n")[2] for piece in wire.split(b"\n\n\r\n"))
    return b"".join(piece + b"\n\n" for piece in pieces if piece)


CHUNKS = [dechunked(block(STREAM, number, number + 1)) for number in range(3)]
FINISH, USAGE, DONE = (event + b"\n\n" for event in dechunked(tail(STREAM, with_usage=True)).split(b"\n\n")[:3])
WRONG: dict[str, tuple[list[bytes], str]] = {
    "swapped": ([CHUNKS[1], CHUNKS[0], CHUNKS[2], FINISH, USAGE, DONE], "order"),
    "doubled": ([*CHUNKS, CHUNKS[2], FINISH, USAGE, DONE], "count"),
    "lost": ([*CHUNKS[:2], FINISH, USAGE, DONE], "count"),
    "cut": ([*CHUNKS], "no [DONE]"),
    "empty": ([], "no [DONE]"),
    "torn": ([*CHUNKS, FINISH, USAGE, DONE[:-1]], "no [DONE]"),
    "unfinished": ([*CHUNKS, USAGE, DONE], "finish reason"),
    "uncounted": ([*CHUNKS, FINISH, DONE], "usage"),
    "counted twice": ([*CHUNKS, FINISH, USAGE, USAGE, DONE], "usage"),
    "counted wrong": ([*CHUNKS, FINISH, USAGE.replace(b'tokens":3', b'tokens":2'), DONE], "usage"),
    "mangled": ([CHUNKS[0][:-4] + b"\n\n", *CHUNKS[1:], FINISH, USAGE, DONE], "JSON"),
}


def test_a_right_stream_passes_again_and_again() -> None:
    check = Check(STREAM, stream=True)
    right = b"".join([*CHUNKS, FINISH, USAGE, DONE])
    assert [check(200, right), check(200, right), check(200, b": ping\n\n" + right)] == [None, None, None]


@pytest.mark.parametrize(("events", "fault"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_stream_is_a_fault_even_after_a_right_one(events: list[bytes], fault: str) -> None:
    check = Check(STREAM, stream=True)
    assert check(200, b"".join([*CHUNKS, FINISH, USAGE, DONE])) is None
    assert check(200, b"".join(events)) == fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda body: body, None),
        (lambda body: body.replace(b"w00001", b"w00007"), "text"),
        (lambda body: body.replace(b'completion_tokens":3', b'completion_tokens":4'), "usage"),
        (lambda body: body[:-1], "JSON"),
    ],
    ids=["right", "other text", "miscounted", "cut"],
)
def test_a_whole_answer_is_checked(change: Callable[[bytes], bytes], fault: str | None) -> None:
    body = whole(STREAM).partition(b"\r\n\r\n")[2]
    assert Check(STREAM, stream=False)(200, change(body)) == fault


def test_another_status_is_a_fault_whatever_the_body_says() -> None:
    assert HEAD.startswith(b"HTTP/1.1 200")
    assert Check(STREAM, stream=False)(503, whole(STREAM).partition(b"\r\n\r\n")[2]) == "status 503"


def test_a_name_that_is_no_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="'gpt-5' is no shape"):
        shape_of("gpt-5")


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="CPU is read from Linux's scheduler")
def test_both_peers_answer_every_request_rightly() -> None:
    samples = gateway.sample(gateway.QUICK)
    assert {*samples} == {"penstock", "floor"}
    for peer, rounds in samples.items():
        for one in rounds:
            assert not one.faults, peer
            assert [
                name for name in (scenario.name for scenario in gateway.FULL.scenarios) if not one.answers[name]
            ] == []
            assert [name for name in gateway.LEAVES if not math.isfinite(one.figures[name])] == []
