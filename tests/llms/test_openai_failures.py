"""What services say when a call fails: the error each answer means, when it is repeated, and what never shows in it."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import errors
from penstock.errors import (
    BadAnswer,
    BadRequest,
    LlmError,
    RateLimited,
    Refused,
    TimedOut,
    TooLong,
    Unauthorized,
    Unavailable,
)
from penstock.events import Chunks, Retrying
from penstock.llms.failures import BY_CODE, BY_STATUS, NO_MODEL, Who, from_status
from penstock.llms.openai import Gpt
from penstock.llms.transport import Limits
from penstock.messages import ChatRequest
from penstock.policies.retry import retry
from penstock.run import execute
from penstock.testing import Heard
from tests.rig.upstream import (
    Answer,
    Plain,
    Refuse,
    Silence,
    Stream,
    Upstream,
    chunk,
    completion,
    error_body,
    text_stream,
)

ASK = ChatRequest.of("Hello")
KEY = "sk-canary-4f9a7c1e2b"

STATUSES: dict[int, type[LlmError]] = {
    **dict.fromkeys((400, 404, 405, 406, 411, 415, 422, 431, 451, 499), BadRequest),
    **dict.fromkeys((401, 402, 403), Unauthorized),
    **dict.fromkeys((408, 504), TimedOut),
    **dict.fromkeys((409, 425, 500, 501, 502, 503, 507, 520, 522, 524, 529, 599), Unavailable),
    413: TooLong,
    429: RateLimited,
}
CODES: dict[str, type[LlmError]] = {
    "context_length_exceeded": TooLong,
    "exceed_context_size_error": TooLong,
    "string_above_max_length": TooLong,
    "content_filter": Refused,
    "content_policy_violation": Refused,
    "rate_limit_exceeded": RateLimited,
    "insufficient_quota": RateLimited,
    "server_error": Unavailable,
    "overloaded_error": Unavailable,
    "billing_error": Unauthorized,
    "billing_hard_limit_reached": Unauthorized,
    "billing_not_active": Unauthorized,
    **dict.fromkeys(("model_not_found", "not_found_error", "model_decommissioned", "invalid_model"), BadRequest),
    "of_a_kind_nobody_knows": BadRequest,
}


def gpt(upstream: Upstream, **options: Any) -> Gpt:
    """An LLM whose model each request names."""
    settings: dict[str, Any] = {"api_key": KEY, "base_url": upstream.base_url, **options}
    return Gpt(**settings)


async def error_of(upstream: Upstream, *answers: Answer, request: ChatRequest = ASK, **options: Any) -> LlmError:
    upstream.script(*answers)
    with pytest.raises(LlmError) as raised:
        await execute(gpt(upstream, **options), request)
    return raised.value


def leaves(kind: type[LlmError]) -> Iterator[type[LlmError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for each in below:
        yield from leaves(each)


def told(kind: type[LlmError]) -> str:
    """What is said of a "Because.": whose key it is where that is not accepted."""
    operators = "openai does not accept the configured key, account or model: " if kind is Unauthorized else ""
    return f"{operators}Because."


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", [error_body("Because."), b"Because.", b"<html>", b"", b"[" * 100_000, b"\xff"])
async def test_every_status_has_its_error(upstream: Upstream, status: int, body: Any) -> None:
    headers = {"x-request-id": "req-1"}
    error = await error_of(upstream, Plain(body, status=status, headers=headers))
    assert type(error) is STATUSES[status]
    assert (error.provider, error.status, error.request_id) == ("openai", status, "req-1")
    assert error.retryable is issubclass(STATUSES[status], errors.Transient)
    assert error.message
    assert len(error.message) <= 2000
    if isinstance(body, dict) or body == b"Because.":
        assert str(error) == told(type(error))


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize("code", CODES)
async def test_every_code_has_its_error(upstream: Upstream, code: str, field: str) -> None:
    said: dict[str, Any] = {"message": "Because.", "type": None, "param": "messages", "code": None, field: code}
    error = await error_of(upstream, Plain({"error": said}, status=400))
    assert type(error) is CODES[code]
    assert error.param == "messages"
    assert getattr(error, field) == ("model_not_found" if field == "code" and code in NO_MODEL else code)
    assert error.retryable is (
        issubclass(CODES[code], errors.Transient) and (field, code) != ("code", "insufficient_quota")
    )


def test_the_tables_of_this_test_are_complete() -> None:
    assert BY_CODE.keys() <= CODES.keys()
    assert BY_STATUS.keys() <= STATUSES.keys()


async def test_every_kind_of_llm_error_can_be_reached(upstream: Upstream) -> None:
    told = [Plain(error_body("x", code=code), status=400) for code in CODES]
    told += [Plain(error_body("x"), status=status) for status in STATUSES]
    reached = {type(await error_of(upstream, answer)) for answer in told}
    reached.add(type(await error_of(upstream, Stream([chunk("x")], cut_after=1))))
    assert reached == {*leaves(LlmError), BadRequest}


async def test_what_the_network_does_has_its_error(upstream: Upstream) -> None:
    assert type(await error_of(upstream, Refuse(reset=True))) is Unavailable
    assert type(await error_of(upstream, b"NOT HTTP\r\n\r\n")) is Unavailable
    assert type(await error_of(upstream, Silence(), limits=Limits(total_s=0.1))) is TimedOut
    refused = await error_of(upstream, base_url="http://127.0.0.1:1/v1")
    assert type(refused) is Unavailable
    assert "openai cannot be reached" in str(refused)
    assert type(await error_of(upstream, base_url="http://no-such-host.invalid/v1")) is Unavailable


async def test_other_errors_pass_unchanged(upstream: Upstream) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await execute(gpt(upstream), ASK, broken)


@pytest.mark.parametrize("request_", [ASK, ChatRequest.of("Hello", stream=False)], ids=["streamed", "whole"])
async def test_an_error_object_with_status_200_has_the_error_it_names(
    upstream: Upstream, request_: ChatRequest
) -> None:
    answers: dict[int | str, type[LlmError]] = {429: RateLimited, 401: Unauthorized, 422: BadRequest, 502: Unavailable}
    for code, kind in answers.items():
        said = {"error": {"message": "Because.", "code": code}}
        for body in (said, (chunk("Hi") if request_.stream else completion("Hi")) | said):
            answer: Answer = Stream([body]) if request_.stream else Plain(body)
            error = await error_of(upstream, answer, request=request_)
            assert (type(error), str(error), error.code) == (kind, told(kind), str(code))


async def test_other_shapes_of_error_are_read(upstream: Upstream) -> None:
    shapes: list[Any] = [
        {"detail": "Because."},
        {"message": "Because.", "object": "error", "code": 404},
        {"error": "Because."},
        "Because.",
    ]
    for shape in shapes:
        assert str(await error_of(upstream, Plain(json.dumps(shape).encode(), status=404))) == "Because."


NOT_THERE: list[tuple[int, dict[str, Any]]] = [
    (404, {"message": "No.", "type": "invalid_request_error", "param": None, "code": "model_not_found"}),
    (404, {"message": "model 'm' not found", "type": "api_error", "param": None, "code": None}),
    (404, {"message": "The model `m` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}),
    (404, {"message": "model: m", "type": "not_found_error"}),
    (400, {"message": "It is retired.", "type": "invalid_request_error", "code": "model_decommissioned"}),
    (400, {"message": "Model Not Exist", "type": "invalid_request_error", "code": "invalid_request_error"}),
    (400, {"message": "m is not a valid model ID", "code": 400}),
]


@pytest.mark.parametrize(("status", "said"), NOT_THERE)
def test_a_model_that_is_not_there_is_the_mistake_of_who_names_it(status: int, said: dict[str, Any]) -> None:
    body = json.dumps({"error": said}).encode()
    callers, ours = (from_status(status, {}, body, who=Who("x", model=model)) for model in ("", "m"))
    assert (type(callers), callers.status, callers.code) == (BadRequest, status, "model_not_found")
    assert (type(ours), ours.status, ours.retryable) == (Unauthorized, status, False)


@pytest.mark.parametrize("said", [{"param": "file_id"}, {"code": "file_not_found"}])
def test_another_thing_that_is_not_there_is_the_callers_mistake(said: dict[str, Any]) -> None:
    body = json.dumps({"error": {"message": "No such File", **said}}).encode()
    error = from_status(404, {}, body, who=Who("x", model="m"))
    assert (type(error), error.code) == (BadRequest, said.get("code"))


def test_an_account_that_cannot_pay_is_not_the_callers_mistake() -> None:
    said = {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}
    for status, body in (
        (400, {"type": "error", "error": said}),
        (402, {"error": {"message": "Insufficient Balance"}}),
    ):
        assert type(from_status(status, {}, json.dumps(body).encode(), who=Who("x"))) is Unauthorized


def retry_after(**headers: str) -> float | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_status(429, named, b"", who=Who("x")).retry_after


def test_retry_after_is_read_in_every_form() -> None:
    assert retry_after(retry_after="2") == 2
    assert retry_after(retry_after="0.25") == 0.25
    assert retry_after(retry_after_ms="1500", retry_after="9") == 1.5
    date = retry_after(retry_after=email.utils.formatdate(time.time() + 60, usegmt=True))
    assert date is not None
    assert 50 < date <= 60
    assert retry_after(retry_after="Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after() is None


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf", "9" * 400, "²", "Wed, 99 Oct 2015", "1e999"])
def test_a_retry_after_that_says_nothing_is_passed_over(value: str) -> None:
    assert retry_after(retry_after=value) is None
    assert retry_after(retry_after_ms=value) in {None, 0.0}


async def attempts(upstream: Upstream, *answers: Answer, **options: Any) -> tuple[Heard, LlmError | None]:
    upstream.script(*answers)
    heard = Heard()
    try:
        await execute(gpt(upstream, policies=[retry(**options)]), ASK, heard)
    except LlmError as error:
        return heard, error
    return heard, None


def limited(**headers: str) -> Plain:
    return Plain(error_body("Slow down."), status=429, headers=headers)


async def test_case_09_retry_after_is_waited_for(upstream: Upstream) -> None:
    heard, error = await attempts(upstream, limited(**{"retry-after": "0.3"}), base_s=0.001)
    assert error is None
    first, second = upstream.chats
    assert second.at - first.at >= 0.27
    retrying, *answer = heard.events
    assert isinstance(retrying, Retrying)
    assert (retrying.attempt, retrying.wait_s, type(retrying.error)) == (2, 0.3, RateLimited)
    assert heard.text == "Hello"
    assert not any(isinstance(event, Retrying) for event in answer)


async def test_case_09_without_it_the_wait_is_drawn_from_the_whole_range(upstream: Upstream) -> None:
    heard, error = await attempts(upstream, *[limited()] * 24, attempts=24, base_s=0.0005, max_s=0.008)
    assert type(error) is RateLimited
    waits = [event.wait_s for event in heard.events if isinstance(event, Retrying)]
    bounds = [min(0.008, 0.0005 * 2**n) for n in range(len(waits))]
    assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    shares = [wait / bound for wait, bound in zip(waits, bounds, strict=True)]
    assert min(shares) < 0.5 < max(shares)


@pytest.mark.parametrize("most", [1, 2, 4])
async def test_case_09_there_are_at_most_the_configured_attempts(upstream: Upstream, most: int) -> None:
    heard, error = await attempts(upstream, *[Plain(b"", status=503)] * 9, attempts=most, base_s=0.001)
    assert type(error) is Unavailable
    assert len(upstream.chats) == most
    assert [event.attempt for event in heard.events if isinstance(event, Retrying)] == [*range(2, most + 1)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_case_09_what_cannot_succeed_is_tried_once(upstream: Upstream, status: int) -> None:
    _, error = await attempts(upstream, *[Plain(b"", status=status)] * 3, base_s=0.001)
    assert error is not None
    assert len(upstream.chats) == 1


async def test_case_09_a_quota_that_is_used_up_is_tried_once(upstream: Upstream) -> None:
    _, error = await attempts(upstream, Plain(error_body("No money.", code="insufficient_quota"), status=429))
    assert type(error) is RateLimited
    assert len(upstream.chats) == 1


async def test_case_09_a_wait_that_is_too_long_is_not_begun(upstream: Upstream) -> None:
    _, error = await attempts(upstream, limited(**{"retry-after": "60"}), max_s=30)
    assert error is not None
    assert (error.retry_after, len(upstream.chats)) == (60, 1)


@pytest.mark.parametrize("reset", [True, False])
async def test_case_09_nothing_is_started_twice_after_the_first_byte(upstream: Upstream, reset: bool) -> None:
    upstream.script(Stream(text_stream("one two"), cut_after=2, reset=reset, delay_s=0.01))
    heard = Heard()
    with pytest.raises(BadAnswer):
        await execute(gpt(upstream, policies=[retry(base_s=0.001)]), ASK, heard)
    assert len(upstream.chats) == 1


async def test_case_09_a_retry_before_the_first_byte_is_not_seen(upstream: Upstream) -> None:
    answer = Stream(text_stream("one two"))
    plain, error = await attempts(upstream, answer)
    assert error is None
    repeated, error = await attempts(upstream, Refuse(), Refuse(reset=True), answer, base_s=0.001)
    assert error is None
    assert plain.text == repeated.text == "one two"
    for heard in (plain, repeated):
        views = [view for event in heard.events if isinstance(event, Chunks) for view in event.views]
        assert [choice.delta.role for view in views for choice in view.choices] == ["assistant", None, None, None]


def shown(error: BaseException, llm: Gpt) -> str:
    """Everything that a log, a span or a debugger could print."""
    fields = [str(error), repr(error), repr(error.args), repr(vars(error)), repr(llm), repr(vars(llm)), str(llm.secret)]
    return "\n".join([*fields, *traceback.format_exception(error)])


ECHOED = {
    "message": f"Incorrect API key provided: {KEY}. And {KEY[3:]}, {KEY[:-3]}",
    "code": f"bad_{KEY}",
    "param": KEY,
    "type": KEY[1:],
}
LEAKS: dict[str, Answer] = {
    "error object": Plain({"error": ECHOED}, status=401, headers={"x-request-id": KEY}),
    "text": Plain(f"who is {KEY}?".encode(), status=500),
    "long text": Plain(("x" * 1990 + KEY).encode(), status=500),
    "status 200": Plain({"error": ECHOED}),
    "in the stream": Stream([{"error": ECHOED}]),
    "in mid-stream": Stream([chunk("Hi"), {"error": ECHOED}]),
    "not HTTP": f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(),
    "malformed": Plain(f'{{"choices": "{KEY}"}}'.encode()),
}


@pytest.mark.parametrize("case", LEAKS)
async def test_case_25_no_part_of_the_key_is_in_an_error(upstream: Upstream, case: str) -> None:
    upstream.script(LEAKS[case])
    llm = gpt(upstream)
    with pytest.raises(LlmError) as raised:
        await execute(llm, ASK)
    text = shown(raised.value, llm)
    found = [KEY[at : at + 8] for at in range(len(KEY) - 7) if KEY[at : at + 8] in text]
    assert not found, text
    assert upstream.chats[0].headers["authorization"] == f"Bearer {KEY}", "the service itself is sent it"


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=60), status=st.integers(201, 599), value=st.text(max_size=10))
def test_any_failed_answer_is_an_llm_error(body: bytes, status: int, value: str) -> None:
    error = from_status(status, {"retry-after": value, "x-request-id": value}, body, who=Who("x"))
    assert isinstance(error, LlmError)
    assert error.status == status


async def test_a_cancel_while_waiting_to_retry_ends_at_once(upstream: Upstream) -> None:
    upstream.script(limited(**{"retry-after": "20"}))
    task = asyncio.create_task(execute(gpt(upstream, policies=[retry()]), ASK))
    await asyncio.to_thread(upstream.wait_requests)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 2)
    assert len(upstream.chats) == 1


async def test_case_25_a_configured_header_that_the_service_repeats_is_hidden(upstream: Upstream) -> None:
    secret = "supersecretheadervalue123"
    upstream.script(Plain(error_body(f"bad key {secret} / {secret[4:16]}"), status=401))
    llm = Gpt(model="m", base_url=upstream.base_url, headers={"x-api-key": secret})
    with pytest.raises(errors.Unauthorized) as caught:
        await execute(llm, ChatRequest.of("Hi"))
    assert not any(secret[at : at + 8] in str(caught.value) for at in range(len(secret) - 7))


@pytest.mark.parametrize(
    ("headers", "text"),
    [({"location": "https://there/v1"}, "to 'https://there/v1': set base_url"), ({}, "answered 307 without a reason")],
)
def test_an_answer_without_words_is_told_by_its_status(headers: dict[str, str], text: str) -> None:
    assert text in str(from_status(307, headers, b"", who=Who("openai")))
