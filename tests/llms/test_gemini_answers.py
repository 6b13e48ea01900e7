"""What Google's wire answers, read: ends, usage, ids, several candidates, and the errors in an answer's place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

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
from penstock.events import Chunks, Used
from penstock.llms.failures import BY_WORD, Who, from_status
from penstock.llms.gemini import Gemini
from penstock.llms.gemini_wire import FINISHES
from penstock.messages import ChatReply, ChatRequest, Chunk, Usage
from penstock.run import execute
from penstock.server.sse import chunk_json, reply_bytes
from penstock.testing import Heard
from tests.rig.upstream import Plain, Stream, Upstream
from tests.rig.upstream import upstream as run_upstream

Part = dict[str, Any]
TYPE = "type.googleapis.com/google.rpc."


@pytest.fixture(scope="module")
def served() -> Iterator[Upstream]:
    with run_upstream() as up:
        yield up


@pytest.fixture
def upstream(served: Upstream) -> Upstream:
    """One service for all tests of the module; each finds it without requests."""
    served.requests.clear()
    return served


def candidate(*parts: Part, finish: str | None = None, index: int | None = None, **more: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, **more}
    if finish is not None:
        said["finishReason"] = finish
    return said if index is None else {**said, "index": index}


def answer(*candidates: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": list(candidates), "responseId": "r1", "modelVersion": "gemini-x", **more}


async def asked(
    upstream: Upstream, *events: dict[str, Any], whole: bool = False, heard: Heard | None = None
) -> ChatReply:
    """The reply that these events are read as, or the first of them as an unstreamed answer."""
    upstream.script(Plain(events[0]) if whole else Stream([*events], done=False, newline="\r\n"))
    llm = Gemini(model="m", api_key="key-of-google-4f9a", base_url=f"http://127.0.0.1:{upstream.port}")
    return await execute(llm, ChatRequest.of("Hello", stream=not whole), heard)


def views(heard: Heard) -> list[Chunk]:
    return [view for event in heard.events if isinstance(event, Chunks) for view in event.views]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
@pytest.mark.parametrize("reason", FINISHES)
async def test_every_reason_to_end_has_openais_word(upstream: Upstream, reason: str, whole: bool) -> None:
    plain = await asked(upstream, answer(candidate({"text": "x"}, finish=reason)), whole=whole)
    assert plain.finish_reason == FINISHES[reason]
    call = {"functionCall": {"name": "f", "args": {}}}
    called = await asked(upstream, answer(candidate(call, finish=reason)), whole=whole)
    assert called.finish_reason == {"stop": "tool_calls"}.get(FINISHES[reason], FINISHES[reason])


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "OTHER", "TOO_MANY_TOOL_CALLS", "OF_NEXT_YEAR"])
async def test_case_4_a_reason_that_is_no_end_is_an_error(upstream: Upstream, reason: str, whole: bool) -> None:
    broken = answer(candidate({"text": "two"}, finish=reason, finishMessage="print(key-of-google-4f9a)"))
    before = [] if whole else [answer(candidate({"text": "one "}))]
    with pytest.raises(BadAnswer, match="broke off its answer with") as raised:
        await asked(upstream, *before, broken, whole=whole)
    assert raised.value.code == reason
    assert "print(***" in raised.value.message
    assert "4f9a" not in raised.value.message
    assert raised.value.partial.content == ("two" if whole else "one two")


async def test_an_unstreamed_answer_without_an_end_is_an_error(upstream: Upstream) -> None:
    with pytest.raises(BadAnswer, match="has not ended"):
        await asked(upstream, answer(candidate({"text": "x"})), whole=True)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
async def test_a_prompt_that_is_blocked_is_refused(upstream: Upstream, whole: bool) -> None:
    blocked = {"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "No."}, "usageMetadata": {}}
    with pytest.raises(Refused, match=r"refused the prompt with 'SAFETY': No\.") as raised:
        await asked(upstream, blocked, whole=whole)
    assert (raised.value.code, raised.value.retryable) == ("SAFETY", False)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
async def test_a_prompt_that_is_only_rated_is_answered(upstream: Upstream, whole: bool) -> None:
    rated = answer(candidate({"text": "x"}, finish="STOP"), promptFeedback={"safetyRatings": []})
    assert (await asked(upstream, rated, whole=whole)).content == "x"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
async def test_an_answer_of_nothing_is_an_error(upstream: Upstream, whole: bool) -> None:
    with pytest.raises(BadAnswer, match="ended without an answer"):
        await asked(upstream, {"usageMetadata": {"promptTokenCount": 3}}, whole=whole)
    with pytest.raises(BadAnswer, match="ended without an answer"):
        await asked(upstream, {}, whole=whole)


def error(code: int, status: str, message: str = "Because.", *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


INFO = {"@type": f"{TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
SAID: list[tuple[dict[str, Any], type[LlmError], str]] = [
    (error(400, "INVALID_ARGUMENT"), BadRequest, "INVALID_ARGUMENT"),
    (error(400, "INVALID_ARGUMENT", "API key not valid.", INFO), Unauthorized, "API_KEY_INVALID"),
    (
        error(400, "INVALID_ARGUMENT", "The input token count exceeds the maximum number of tokens allowed 9."),
        TooLong,
        "INVALID_ARGUMENT",
    ),
    (error(401, "UNAUTHENTICATED"), Unauthorized, "UNAUTHENTICATED"),
    (error(403, "PERMISSION_DENIED"), Unauthorized, "PERMISSION_DENIED"),
    (error(404, "NOT_FOUND"), BadRequest, "NOT_FOUND"),
    (error(409, "ABORTED"), Unavailable, "ABORTED"),
    (error(429, "RESOURCE_EXHAUSTED"), RateLimited, "RESOURCE_EXHAUSTED"),
    (error(500, "INTERNAL"), Unavailable, "INTERNAL"),
    (error(503, "UNAVAILABLE"), Unavailable, "UNAVAILABLE"),
    (error(504, "DEADLINE_EXCEEDED"), TimedOut, "DEADLINE_EXCEEDED"),
]


@pytest.mark.parametrize(("said", "kind", "code"), SAID, ids=lambda case: case if isinstance(case, str) else "")
def test_every_error_of_google_has_its_kind(said: dict[str, Any], kind: type[LlmError], code: str) -> None:
    for body in (said, [said]):
        found = from_status(said["error"]["code"], {}, json.dumps(body).encode(), who=Who("gemini"))
        assert (type(found), found.code) == (kind, code)
        assert found.message.endswith(said["error"]["message"])
    assert code not in BY_WORD or BY_WORD[code] is kind


def test_the_errors_of_this_test_are_all_that_are_known() -> None:
    assert BY_WORD.keys() <= {code for _, _, code in SAID}


@pytest.mark.parametrize(
    ("delay", "seconds"), [("7s", 7.0), ("0.25s", 0.25), ("-1s", 0.0), ("soon", None), ("infs", None), (None, None)]
)
def test_case_9_the_delay_google_asks_for_is_kept(delay: str | None, seconds: float | None) -> None:
    info = {"@type": f"{TYPE}RetryInfo", "retryDelay": delay}
    body = json.dumps(error(429, "RESOURCE_EXHAUSTED", "slow", {"@type": "other"}, info)).encode()
    assert from_status(429, {}, body, who=Who("gemini")).retry_after == seconds
    assert from_status(429, {"retry-after": "3"}, body, who=Who("gemini")).retry_after == 3.0


@pytest.mark.parametrize("details", [None, 1, {"a": 1}, "text", [1, None]])
def test_odd_details_of_an_error_harm_nothing(details: Any) -> None:
    body = json.dumps({"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": details}}).encode()
    assert type(from_status(400, {}, body, who=Who("gemini"))) is BadRequest


async def test_case_4_an_error_in_the_middle_comes_after_what_was_told(upstream: Upstream) -> None:
    with pytest.raises(BadAnswer, match=r"Because\.") as raised:
        await asked(upstream, answer(candidate({"text": "one"})), error(503, "UNAVAILABLE"))
    assert (raised.value.partial.content, raised.value.code) == ("one", "UNAVAILABLE")
    with pytest.raises(Unavailable):
        await asked(upstream, error(503, "UNAVAILABLE"))
    with pytest.raises(BadRequest):
        await asked(upstream, error(400, "INVALID_ARGUMENT"))


COUNTS = {
    "promptTokenCount": 10,
    "toolUsePromptTokenCount": 4,
    "cachedContentTokenCount": 6,
    "candidatesTokenCount": 3,
    "thoughtsTokenCount": 5,
    "totalTokenCount": 22,
}


async def test_case_14_usage_is_partial_until_every_candidate_has_ended(upstream: Upstream) -> None:
    heard = Heard()
    early = {"promptTokenCount": 10, "cachedContentTokenCount": 6}
    reply = await asked(
        upstream,
        {"usageMetadata": early},
        answer(candidate({"text": "a"}, index=0), candidate({"text": "b"}, index=1), usageMetadata=early),
        answer(candidate({"text": "a"}, index=0, finish="STOP"), usageMetadata=early),
        answer(candidate({"text": "b"}, index=1, finish="MAX_TOKENS"), usageMetadata=COUNTS),
        heard=heard,
    )
    assert [view.usage.partial for view in views(heard) if view.usage] == [True, True, True, False]
    usage = reply.usage
    assert usage is not None
    assert (usage.prompt, usage.cached, usage.completion, usage.reasoning, usage.total) == (14, 6, 8, 5, 22)
    assert [event.usage for event in heard.events if isinstance(event, Used)] == [usage]
    assert [(choice.content, choice.finish_reason) for choice in reply.choices] == [("aa", "stop"), ("bb", "length")]


async def test_case_14_an_answer_that_breaks_off_is_billed_by_what_was_counted(upstream: Upstream) -> None:
    heard = Heard()
    counts = {"promptTokenCount": 100, "candidatesTokenCount": 9}
    with pytest.raises(BadAnswer):
        await asked(upstream, answer(candidate({"text": "a"}), usageMetadata=counts), heard=heard)
    assert [event.usage for event in heard.events if isinstance(event, Used)] == [Usage(100, 9, 109, partial=True)]


def ended(*steps: tuple[str | None, str | None, int]) -> list[dict[str, Any]]:
    """One event for each step: its text, its reason to end, its candidate; the text `f()` is a call."""
    parts: dict[str | None, list[Part]] = {"f()": [{"functionCall": {"name": "f"}}], None: []}
    return [
        answer(candidate(*parts.get(text, [{"text": text}]), finish=finish, index=index), usageMetadata=COUNTS)
        for text, finish, index in steps
    ]


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ([("a", "STOP", 0), ("b", "STOP", 0), ("c", "STOP", 0)], {0: "stop"}),
        ([(None, "STOP", 0), ("a", None, 0), (None, "STOP", 0)], {0: "stop"}),
        ([("a", "STOP", 0), ("f()", "STOP", 0)], {0: "tool_calls"}),
        ([("a", "STOP", 0), ("b", "MAX_TOKENS", 0)], {0: "length"}),
        ([("a", "STOP", 0), (None, None, 0)], {0: "stop"}),
        ([("a", "STOP", 0), ("x", "SAFETY", 1), ("b", "STOP", 0)], {0: "stop", 1: "content_filter"}),
    ],
)
async def test_row_c2_each_candidate_ends_once_and_last(
    upstream: Upstream, steps: list[tuple[str | None, str | None, int]], ends: dict[int, str]
) -> None:
    heard = Heard()
    reply = await asked(upstream, *ended(*steps), heard=heard)
    told = views(heard)
    found = [(one.index, one.finish_reason) for view in told for one in view.choices if one.finish_reason]
    assert found == [(one.index, one.finish_reason) for one in told[-1].choices] == [*ends.items()]
    assert {one.index: one.finish_reason for one in reply.choices} == ends
    assert reply.usage is not None
    assert not reply.usage.partial


@pytest.mark.parametrize("last", ["b", "f()"])
async def test_case_4_a_stream_that_goes_on_after_its_end_and_stops_is_cut(upstream: Upstream, last: str) -> None:
    with pytest.raises(BadAnswer, match="cut off"):
        await asked(upstream, *ended(("a", "STOP", 0), (last, None, 0)))
    with pytest.raises(BadAnswer, match="cut off"):
        await asked(upstream, *ended(("a", "STOP", 0), (last, None, 1)))


PAID = {"promptTokenCount": 50_000, "candidatesTokenCount": 5}
MALFORMED = answer(candidate(finish="MALFORMED_FUNCTION_CALL"), usageMetadata=PAID)
BROKEN = answer(candidate({"text": "all of it"}, finish="OTHER"), usageMetadata=PAID)
BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": PAID}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [(MALFORMED, BadAnswer, ""), (BROKEN, BadAnswer, "all of it"), (BLOCKED, Refused, "")],
    ids=["malformed call", "broken off", "blocked"],
)
async def test_case_14_what_a_failure_cost_is_told(
    upstream: Upstream, said: dict[str, Any], kind: type[LlmError], text: str, whole: bool
) -> None:
    heard = Heard()
    with pytest.raises(kind) as raised:
        await asked(upstream, said, whole=whole, heard=heard)
    assert type(raised.value) is kind
    assert [event.usage for event in heard.events if isinstance(event, Used)] == [Usage(50_000, 5, 50_005)]
    partial = getattr(raised.value, "partial", None)
    assert (partial.content if partial else "") == text
    assert heard.text == ("" if whole else text)


@pytest.mark.parametrize("counts", [{}, {"trafficType": "ON_DEMAND"}, {"totalTokenCount": 9}])
async def test_case_14_a_usage_without_counts_is_estimated(upstream: Upstream, counts: dict[str, Any]) -> None:
    reply = await asked(upstream, answer(candidate({"text": "x"}, finish="STOP"), usageMetadata=counts))
    assert reply.usage is not None
    assert reply.usage.partial
    assert reply.usage.prompt > 5
    assert reply.usage.completion > 0


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
async def test_row_c1_candidates_without_an_index_are_counted(upstream: Upstream, whole: bool) -> None:
    two = answer(candidate({"text": "a"}, finish="STOP"), candidate({"text": "b"}, finish="STOP"))
    reply = await asked(upstream, two, whole=whole)
    assert [(choice.index, choice.content) for choice in reply.choices] == [(0, "a"), (1, "b")]


async def test_case_8_calls_come_whole_one_after_another_with_ids_of_their_own(upstream: Upstream) -> None:
    def call(name: str, **more: Any) -> Part:
        return {"functionCall": {"name": name, **more}}

    heard = Heard()
    events = [
        answer(candidate(call("f", args={"b": 1.5, "a": [None, "\u00eb"]}), call("f"))),
        answer(candidate(call("g", id="own", args=None), finish="STOP")),
    ]
    reply = await asked(upstream, *events, heard=heard)
    assert [(one.id, one.name, one.arguments) for one in reply.tool_calls] == [
        ("call_r1_0_0", "f", '{"b": 1.5, "a": [null, "\u00eb"]}'),
        ("call_r1_0_1", "f", "{}"),
        ("own", "g", "{}"),
    ]
    pieces = [piece for view in views(heard) for piece in view.choices[0].delta.tool_calls or ()]
    assert [piece.index for piece in pieces] == [0, 1, 2]
    assert [view.choices[0].delta.role for view in views(heard)] == ["assistant", None, None]
    assert (await asked(upstream, *events)).tool_calls == reply.tool_calls
    nameless = {"candidates": [candidate(call("f"), call("f"), finish="STOP")]}
    ids = {
        one.id for one in [*(await asked(upstream, nameless)).tool_calls, *(await asked(upstream, nameless)).tool_calls]
    }
    assert len(ids) == 4


async def test_nulls_for_nothing_and_counts_as_texts_are_read(upstream: Upstream) -> None:
    call = {"functionCall": {"name": "f", "args": {"a": None}, "id": None}, "text": None, "thought": None}
    said = {"candidates": [{"content": None, "finishReason": None, "index": None}], "error": None}
    counts = {"promptTokenCount": "10", "candidatesTokenCount": 2.0, "thoughtsTokenCount": None}
    reply = await asked(upstream, said, answer(candidate(call, finish="STOP"), usageMetadata=counts))
    assert [(one.id, one.arguments) for one in reply.tool_calls] == [("call_r1_0_0", '{"a": null}')]
    assert reply.usage == Usage(10, 2, 12)


async def test_row_c2_thoughts_are_reasoning(upstream: Upstream) -> None:
    heard = Heard()
    parts: list[Part] = [
        {"text": "Hm", "thought": True},
        {"text": "m.", "thought": True, "thoughtSignature": "c2ln"},
        {"text": "Yes"},
    ]
    reply = await asked(upstream, answer(candidate(*parts, finish="STOP")), heard=heard)
    assert (reply.reasoning, reply.content) == ("Hmm.", "Yes")
    assert reply.first.extra_content == {"google": {"thought_signature": "c2ln"}}
    delta = views(heard)[0].choices[0].delta
    assert delta.reasoning == delta.reasoning_content == "Hmm."


async def test_row_c2_what_openai_has_no_place_for_is_kept(upstream: Upstream) -> None:
    code, result = {"executableCode": {"code": "1"}}, {"codeExecutionResult": {"output": "1"}}
    ground = {"webSearchQueries": ["q"]}
    reply = await asked(
        upstream,
        answer(candidate(code, {"text": "It is"})),
        answer(candidate({}, result, {"text": " 1."}, finish="STOP", groundingMetadata=ground)),
    )
    assert reply.content == "It is 1."
    parts = [{"index": 0, **code}, {"index": 1, **result}]
    assert reply.first.extra_content == {"google": {"parts": parts, "grounding_metadata": ground}}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "streamed"])
async def test_row_a8_logprobs_reach_a_client_of_the_openai_wire(upstream: Upstream, whole: bool) -> None:
    heard = Heard()
    token = {"token": "\u00eb", "logProbability": -0.5, "tokenId": 7}
    scores = {"chosenCandidates": [token, {"token": "b"}], "topCandidates": [{"candidates": [token]}]}
    reply = await asked(
        upstream, answer(candidate({"text": "\u00ebb"}, finish="STOP", logprobsResult=scores)), whole=whole, heard=heard
    )
    said = msgspec.json.decode(reply_bytes(reply, model="m", usage=Usage())) if whole else chunk_json(views(heard)[0])
    row = {"token": "\u00eb", "logprob": -0.5, "bytes": [0xC3, 0xAB]}
    rest = {"token": "b", "logprob": 0.0, "bytes": [98], "top_logprobs": []}
    assert said["choices"][0]["logprobs"] == {"content": [{**row, "top_logprobs": [row]}, rest], "refusal": None}
    assert reply.finish_reason == "stop"
    assert said["choices"][0]["message" if whole else "delta"]["content"] == "\u00ebb"
