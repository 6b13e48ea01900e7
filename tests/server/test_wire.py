"""The wire's two tables: bodies to requests, and every error to an answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import errors
from penstock.errors import (
    BadAnswer,
    BadRequest,
    ConfigError,
    Forbidden,
    Invalid,
    LimitReached,
    LlmError,
    NotFound,
    PenstockError,
    RateLimited,
    Refused,
    TimedOut,
    TooLarge,
    TooLong,
    Unauthenticated,
    Unauthorized,
    Unavailable,
)
from penstock.events import Chunks, Text
from penstock.messages import ChatReply, ChatRequest, Choice, Chunk, ChunkChoice, Delta, Usage
from penstock.server.sse import DONE, Encoder, reply_bytes
from penstock.server.wire import answer_of, parse_chat, shutting_down

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
EACH: list[tuple[BaseException, int, str, str | None]] = [
    (Invalid("x", code="c"), 400, "invalid_request_error", "c"),
    (Unauthenticated("x"), 401, "authentication_error", "invalid_api_key"),
    (Forbidden("x"), 403, "permission_error", "insufficient_scope"),
    (NotFound("x"), 404, "invalid_request_error", "not_found"),
    (TooLarge("x"), 413, "invalid_request_error", None),
    (LimitReached("x", limit="rate"), 429, "rate_limit_error", "rate_limit_exceeded"),
    (LimitReached("x", limit="money"), 429, "rate_limit_error", "budget_exhausted"),
    (Unauthorized("x", status=401), 502, "provider_error", "provider_unauthorized"),
    (BadRequest("x", status=422, code="c"), 422, "invalid_request_error", "c"),
    (BadRequest("x"), 400, "invalid_request_error", None),
    (TooLong("x"), 400, "invalid_request_error", "context_length_exceeded"),
    (Refused("x"), 400, "invalid_request_error", "content_filter"),
    (RateLimited("x"), 429, "rate_limit_error", "rate_limit_exceeded"),
    (Unavailable("x"), 503, "provider_error", "provider_unavailable"),
    (TimedOut("x"), 504, "provider_error", "provider_timeout"),
    (BadAnswer("x", status=200), 502, "provider_error", "provider_bad_answer"),
    (LlmError("x"), 502, "provider_error", None),
    (ConfigError("x", file="f"), 500, "server_error", None),
    (ValueError("x"), 500, "server_error", "internal_error"),
    (RuntimeError("x"), 500, "server_error", "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), EACH)
def test_every_error_has_an_answer(error: BaseException, status: int, kind: str, code: str | None) -> None:
    told = answer_of(error)
    said = told.body["error"]
    assert (told.status, said["type"], said["code"]) == (status, kind, code)
    assert set(said) == {"message", "type", "param", "code"}
    assert (said["message"] == str(error)) == isinstance(error, PenstockError)
    assert (told.retry_after is not None) == (status in {429, 503})


def test_no_class_of_error_lacks_an_answer() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PenstockError)]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "x")
        vars(error).update(message="x", param=None, code=None, limit="rate", type=None, details=None)
        if isinstance(error, LlmError):
            error.status = None
        assert 400 <= answer_of(error).status < 600


def test_a_canonical_body_is_kept_as_it_came() -> None:
    body = msgspec.json.encode({**ASKED, "stream": True, "top_k": 3})
    assert parse_chat(body) == ChatRequest(
        model="m",
        messages=ASKED["messages"],
        stream=True,
        params={"top_k": 3},
        data=body,
    )


@pytest.mark.parametrize("said", [False, None])
def test_a_body_that_does_not_ask_for_a_stream_gets_none(said: bool | None) -> None:
    assert parse_chat(json.dumps(ASKED).encode()).stream is False
    assert parse_chat(json.dumps({**ASKED, "stream": said}).encode()).stream is False


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(extra=st.dictionaries(st.text(min_size=20), _JSON, max_size=4), indent=st.none() | st.integers(0, 3))
def test_any_spelling_of_a_body_means_the_same(extra: dict[str, Any], indent: int | None) -> None:
    body = json.dumps({**ASKED, **extra}, indent=indent)
    found = parse_chat(body.encode())
    assert dict(found.params) == extra
    assert found.data == body.encode()


@given(names=st.lists(st.sampled_from("abc"), min_size=2, max_size=6), depth=st.integers(0, 4))
def test_case_26_a_key_that_stands_twice_is_refused_at_every_depth(names: list[str], depth: int) -> None:
    inner = "{" + ", ".join(f'"{name}": 1' for name in names) + "}"
    for _ in range(depth):
        inner = f'{{"in": [{inner}]}}'
    body = json.dumps({**ASKED, "x": 0}).replace('"x": 0', f'"x": {inner}')
    if len(set(names)) == len(names):
        assert parse_chat(body.encode()).params
        return
    with pytest.raises(Invalid, match="stands twice"):
        parse_chat(body.encode())


def view(text: str) -> Chunk:
    return Chunk(choices=[ChunkChoice(delta=Delta(content=text))], id="c", created=1, model="m", object="o")


def test_row_a6_bytes_that_came_are_sent_and_views_are_encoded_where_there_are_none() -> None:
    encoder = Encoder(ChatRequest.of("hi"))
    assert encoder.event(Chunks(views=[view("a")], data=b"data: as it came\n\n")) == b"data: as it came\n\n"
    made = encoder.event(Chunks(views=[view("a"), view("b")]))
    assert made.count(b"data: ") == 2
    assert encoder.event(Chunks(views=[view("a")], data=b"x", path="inner")) == b""
    assert encoder.event(Text("x", path="inner")) == b""
    assert encoder.end(ChatReply(choices=()), Usage()) == DONE


def test_a_changed_view_keeps_what_the_service_sent_beside_it() -> None:
    raw = b'{"id":"old","provider":"p","choices":[{"index":0,"logprobs":{"x":1},"delta":{"content":"old","odd":2}}]}'
    changed = view("new")
    changed.raw = raw
    made = json.loads(Encoder(ChatRequest.of("hi")).event(Chunks(views=[changed])).removeprefix(b"data: "))
    assert (made["id"], made["provider"]) == ("c", "p")
    assert made["choices"][0]["logprobs"] == {"x": 1}
    assert made["choices"][0]["delta"] == {"content": "new", "odd": 2}


def test_a_reply_without_bytes_is_whole() -> None:
    made = json.loads(reply_bytes(ChatReply(choices=(Choice(content="hi"),)), model="m", usage=Usage(1, 2, 3)))
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(made)
    assert made["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": "stop",
    }
    assert made["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_case_26_many_keys_are_looked_through_once() -> None:
    keys = [f'"k{n}":0' for n in range(200_000)]
    body = "{" + ", ".join([*keys, '"k1":1']) + "}"
    with pytest.raises(Invalid, match="'k1' stands twice"):
        parse_chat(body.encode())


def test_case_26_a_long_key_is_not_repeated_whole() -> None:
    key = "k" * 1_000_000
    with pytest.raises(Invalid) as caught:
        parse_chat(f'{{"{key}": 1, "{key}": 2}}'.encode())
    assert len(caught.value.message) < 300


def test_chunks_of_an_llm_without_a_wire_get_the_required_fields() -> None:
    encoder = Encoder(ChatRequest.of("Hi", model="mine", stream_options={"include_usage": True}))
    choice = ChunkChoice(delta=Delta(role="assistant", content="yes"), finish_reason="stop")
    said = encoder.event(Chunks(views=[Chunk(choices=[choice])])) + encoder.end(None, Usage(1, 2, 3))
    first, usage = (json.loads(line[6:]) for line in said.decode().split("\n\n")[:2])
    assert (first["object"], first["model"], usage["usage"]["total_tokens"]) == ("chat.completion.chunk", "mine", 3)
    assert first["id"] == usage["id"]
    assert first["created"] > 0


def test_a_server_that_stops_says_so_itself() -> None:
    told = answer_of(shutting_down("the server is shutting down"))
    assert (told.status, told.body["error"]["type"], told.body["error"]["code"]) == (
        503,
        "server_error",
        "shutting_down",
    )
    assert (b"retry-after", b"5") in told.headers(2)


def test_a_budget_that_no_wait_fills_tells_none() -> None:
    spent, later = (LimitReached("used up", limit="budget", retry_after=wait) for wait in (None, 60.0))
    assert (answer_of(spent).status, answer_of(spent).retry_after) == (429, None)
    assert answer_of(later).retry_after == 60
