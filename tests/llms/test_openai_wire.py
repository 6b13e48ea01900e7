"""Decoding what services send: any JSON at any place gives a view or one typed error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import LlmError
from penstock.events import Fold
from penstock.llms.canonical import Canonical
from penstock.llms.failures import Who
from penstock.llms.openai_wire import decode_chunk, decode_reply
from tests.rig.wire import chunk, completion, tool_call, usage_of

WHO = Who("rig")
ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DETAILS = {"prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 1}}
CHUNK = chunk("Hi", role="assistant", reasoning="hm", tool_calls=[tool_call("f", "{}", index=0)], finish="stop")
CHUNK |= {"usage": usage_of(1, 2) | DETAILS}
REPLY = completion("Hi", tool_calls=[tool_call("f", "{}")], usage=usage_of(1, 2) | DETAILS)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a JSON value, but the empty one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def decode(payload: bytes) -> None:
    """Take a payload as a chunk and as a reply, as far as it goes."""
    for read in (decode_chunk, decode_reply):
        try:
            view, _ = read(payload, WHO)
        except LlmError:
            continue
        canonical, fold = Canonical(), Fold()
        canonical.repair(view)
        fold.add_chunk(view)
        assert fold.reply(view.usage).choices is not None


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_case_06_any_value_at_any_place_is_read_or_refused(data: st.DataObject) -> None:
    body = copy.deepcopy(data.draw(st.sampled_from([CHUNK, REPLY])))
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(list(places(body))))
        inner: Any = body
        for key in way:
            inner = inner[key]
        inner[last] = data.draw(ANY)
    decode(json.dumps(body).encode())


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=40) | ANY.map(lambda value: json.dumps(value).encode()))
def test_case_06_any_bytes_are_read_or_refused(payload: bytes) -> None:
    decode(payload)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_case_06_any_changed_byte_is_read_or_refused(place: int, byte: int) -> None:
    payload = bytearray(json.dumps(CHUNK).encode())
    payload[place % len(payload)] = byte
    decode(bytes(payload))
