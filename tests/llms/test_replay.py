"""`Replay`: what was recorded comes again, equal in every way; what was not is refused aloud; half a file is none."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from penstock.errors import (
    BadAnswer,
    BadRequest,
    ConfigError,
    LlmError,
    PenstockError,
    RateLimited,
    TimedOut,
    UsageError,
)
from penstock.events import Chunks, Used
from penstock.llms import LLMS
from penstock.llms.openai import Gpt
from penstock.llms.replay import Replay, recording
from penstock.llms.transport import Limits
from penstock.messages import ChatReply, ChatRequest, ToolCall
from penstock.outcome import Cancelled
from penstock.policies.faults import faults
from penstock.policies.record import Record
from penstock.policies.record import record as keep
from penstock.run import execute, execute_stream
from penstock.server.sse import chunk_json, reply_bytes
from penstock.testing import Answer, Heard, ScriptedLlm, no_network
from tests.rig.native import SCENARIOS, native_answer
from tests.rig.upstream import Plain, Stream, Upstream, completion, text_stream, usage_of

ASK = ChatRequest.of("Say hello.", model="fast", temperature=0)
CALL = ToolCall("call_1", "add", '{"a": 1}')


async def record(folder: Path, *answers: Answer, request: ChatRequest = ASK) -> None:
    """Record the answers of a scripted LLM, one after the other."""
    llm = ScriptedLlm(*answers, policies=[recording(folder)])
    for answer in answers:
        if isinstance(answer, Exception):
            with pytest.raises(type(answer)):
                await execute(llm, request)
        else:
            await execute(llm, request)


def gpt(upstream: Upstream, folder: Path, **options: Any) -> Gpt:
    return Gpt(api_key="sk-test-key", base_url=upstream.base_url, policies=[recording(folder)], **options)


async def ends(llm: Any, request: ChatRequest) -> tuple[Any, ...]:
    """All that a client can tell of a call's end."""
    heard = Heard()
    try:
        reply = await execute(llm, request, heard)
    except LlmError as error:
        partial = getattr(error, "partial", None)
        said = (type(error), error.message, error.status, error.code, error.param, error.retry_after, error.provider)
        return (*said, partial and partial.choices, partial and partial.usage, heard.text)
    used = [(event.usage, event.model) for event in heard.events if isinstance(event, Used)]
    return reply.choices, reply.id, reply.model, reply.created, reply.usage, used, heard.text


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_case_07_every_exchange_is_replayed_as_it_was(
    name: str, streamed: bool, upstream: Upstream, tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]
    upstream.default = native_answer
    request = ChatRequest(model=name, messages=scenario.messages, params=scenario.params, stream=streamed)
    lived = await ends(gpt(upstream, tmp_path, limits=Limits(idle_s=0.1, total_s=0.2)), request)
    with no_network():
        assert await ends(Replay(tmp_path), request) == lived


@pytest.mark.parametrize("name", ["text", "image", "two tools", "json schema", "reasoning", "length", "refusal"])
async def test_case_07_streamed_and_whole_requests_share_a_recording(
    name: str, upstream: Upstream, tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]
    upstream.default = native_answer
    request = ChatRequest(model=name, messages=scenario.messages, params=scenario.params)
    streamed = await execute(gpt(upstream, tmp_path / "streamed"), request)
    whole = ChatRequest(model=name, messages=scenario.messages, params=scenario.params, stream=False)
    await execute(gpt(upstream, tmp_path / "whole"), whole)
    for folder in ("streamed", "whole"):
        for asked in (request, whole):
            reply = await execute(Replay(tmp_path / folder), asked, heard := Heard())
            assert (reply.choices, reply.usage) == (streamed.choices, streamed.usage)
            assert heard.text == streamed.content


async def test_what_a_service_says_beside_the_answer_is_kept(upstream: Upstream, tmp_path: Path) -> None:
    logs = [{"content": [{"token": word, "logprob": -0.5}]} for word in ("one", " two")]
    stream = text_stream("one two", usage=usage_of(3, 4))
    for piece, log in zip(stream[1:3], logs, strict=True):
        piece["choices"][0]["logprobs"] = log
    for piece in stream:
        piece["system_fingerprint"] = "fp_1"
    whole: Any = completion("one two", usage=usage_of(3, 4))
    whole["system_fingerprint"], whole["choices"][0]["logprobs"] = "fp_1", {"content": [*logs[0]["content"]]}
    whole["choices"][0]["message"]["annotations"] = [{"type": "url"}]
    upstream.script(Stream(stream), Plain(whole))
    await execute(gpt(upstream, tmp_path / "streamed"), ASK)
    await execute(gpt(upstream, tmp_path / "whole"), ChatRequest.of("Say hello.", stream=False))
    heard = Heard()
    await execute(Replay(tmp_path / "streamed"), ASK, heard)
    told = [chunk_json(view) for event in heard.events if isinstance(event, Chunks) for view in event.views]
    assert [piece["choices"][0].get("logprobs") for piece in told[1:3]] == logs
    assert all(piece["system_fingerprint"] == "fp_1" for piece in told)

    def body(reply: ChatReply) -> Any:
        return json.loads(reply_bytes(reply, model="m", usage=usage)) if (usage := reply.usage) else None

    said = body(await execute(Replay(tmp_path / "streamed"), ChatRequest.of("Say hello.", stream=False, temperature=0)))
    assert said["choices"][0]["logprobs"] == {"content": [log["content"][0] for log in logs]}
    said = body(await execute(Replay(tmp_path / "whole"), ChatRequest.of("Say hello.", stream=False)))
    assert said["system_fingerprint"] == "fp_1"
    assert said["choices"][0]["logprobs"] == logs[0]
    assert said["choices"][0]["message"]["annotations"] == [{"type": "url"}]


async def test_exchanges_of_one_request_come_in_turn_and_the_last_repeats(tmp_path: Path) -> None:
    await record(tmp_path, *map(str, range(12)))
    llm = Replay(tmp_path)
    assert [(await execute(llm, ASK)).content for _ in range(14)] == [*map(str, range(12)), "11", "11"]
    again = Replay(tmp_path, model="fast")
    assert (await execute(again, ASK)).content == "0"


async def test_errors_have_their_turn_too(tmp_path: Path) -> None:
    await record(tmp_path, RateLimited("slow down", provider="x", status=429, retry_after=2), "hello")
    with pytest.raises(RateLimited, match="slow down") as raised:
        await execute(llm := Replay(tmp_path), ASK)
    assert (raised.value.retry_after, raised.value.status, raised.value.retryable) == (2, 429, True)
    assert (await execute(llm, ASK)).content == "hello"


async def test_an_error_that_no_service_raises_is_named(tmp_path: Path) -> None:
    odd: Any = ZeroDivisionError("by zero")
    odd.status, odd.code = "none", 5
    await record(tmp_path, odd)
    with pytest.raises(LlmError, match="ZeroDivisionError: by zero"):
        await execute(Replay(tmp_path), ASK)


@pytest.mark.parametrize(
    "same",
    [
        ChatRequest.of("Say hello.", model="fast", temperature=0.0, stream=False),
        ChatRequest.of("Say hello.", model="fast", temperature=0, top_p=None, user="bob", metadata={"a": "b"}),
        ChatRequest.of("Say hello.", model="fast", temperature=0, stream_options={"include_usage": True}),
        ChatRequest.of([{"role": "user", "content": "Say hello.", "name": None}], model="fast", temperature=0),  # type: ignore[typeddict-item]
        ChatRequest.of("Say hello.", temperature=0),
    ],
)
async def test_a_request_is_the_same_whatever_surrounds_it(same: ChatRequest, tmp_path: Path) -> None:
    await record(tmp_path, "hello")
    assert (await execute(Replay(tmp_path), same)).content == "hello"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            ChatRequest.of("Say hallo.", model="fast", temperature=0),
            "messages[0].content is 'Say hello.', not 'Say hallo.'",
        ),
        (ChatRequest.of("Say hello.", model="fast", temperature=1), "params.temperature is 0, not 1"),
        (ChatRequest.of("Say hello.", model="fast", temperature=0, seed=7), "there is no params.seed (asked: 7)"),
        (ChatRequest.of("Say hello.", model="fast"), "params.temperature is 0, not asked for"),
        (ChatRequest.of([], model="fast", temperature=0), "messages[0].role is 'user', not asked for"),
        (
            ChatRequest.of("x" * 90 + "y", model="fast", temperature=9, seed=1, n=2, top_p=1),
            "; and 1 more: `penstock record`",
        ),
        (ChatRequest.of("Say hello.", model="slow"), "nothing is recorded of the model 'slow' in "),
    ],
)
async def test_a_miss_says_what_differs_from_the_nearest(other: ChatRequest, words: str, tmp_path: Path) -> None:
    await record(tmp_path, "far", request=ChatRequest.of("Something else.", model="fast", temperature=5, seed=1))
    await record(tmp_path, "hello")
    heard = Heard()
    with pytest.raises(BadRequest) as raised:
        await execute(Replay(tmp_path), other, heard)
    assert words in raised.value.message
    assert "`penstock record`" in raised.value.message
    assert (raised.value.status, raised.value.retryable, len(heard.events)) == (404, False, 1)


async def test_a_long_text_is_shown_where_it_differs(tmp_path: Path) -> None:
    await record(tmp_path, "hello", request=ChatRequest.of("a" * 500 + "b" + "c" * 500))
    with pytest.raises(BadRequest) as raised:
        await execute(Replay(tmp_path), ChatRequest.of("a" * 500 + "d" + "c" * 500))
    assert "aab" + "c" * 30 in raised.value.message
    assert len(raised.value.message) < 500


async def test_models_are_kept_apart_unless_one_is_chosen(tmp_path: Path) -> None:
    for model in ("fast", "slow"):
        await record(tmp_path, f"I am {model}.", request=ChatRequest.of("Who?", model=model))
    llm = Replay(tmp_path)
    assert (llm.models(), len(llm), len(llm.exchanges)) == (["fast", "slow"], 2, 2)
    assert (await execute(llm, ChatRequest.of("Who?", model="slow"))).content == "I am slow."
    with pytest.raises(BadRequest, match=r"of the model '' in .*, only of 'fast', 'slow'"):
        await execute(llm, ChatRequest.of("Who?"))
    for chosen in (Replay(tmp_path, model="slow"), LLMS.get("replay")(model=f"{tmp_path}#slow")):
        assert (await execute(chosen, ChatRequest.of("Who?", model="any"))).content == "I am slow."


async def test_what_was_asked_of_no_model_by_name_answers_to_any(tmp_path: Path) -> None:
    await record(tmp_path, "I am fast.", request=ChatRequest.of("Who?", model="fast"))
    await record(tmp_path, "I am somebody.", request=ChatRequest.of("Who?"))
    llm = Replay(tmp_path)
    said = [(await execute(llm, ChatRequest.of("Who?", model=model))).content for model in ("fast", "any", "")]
    assert said == ["I am fast.", "I am somebody.", "I am somebody."]
    assert llm.models() == ["fast"]


async def test_the_recorded_pace_is_taken_or_not(tmp_path: Path) -> None:
    llm = ScriptedLlm("one two", policies=[recording(tmp_path), faults("stall 50ms after 1 chunk")])
    await execute(llm, ASK)
    times = []
    for pace, request in (
        (0.0, ASK),
        (1.0, ASK),
        (2.0, ASK),
        (1.0, ChatRequest.of("Say hello.", temperature=0, stream=False)),
    ):
        began = monotonic()
        await execute(Replay(tmp_path, pace=pace), request)
        times.append(monotonic() - began)
    assert times[0] < 0.04 <= times[1] < times[2]
    assert times[2] >= 0.1
    assert times[3] >= 0.05


async def test_the_limits_hold_for_what_is_replayed_slowly(tmp_path: Path) -> None:
    await execute(ScriptedLlm("one two", policies=[recording(tmp_path), faults("stall 40ms after 1 chunk")]), ASK)
    with pytest.raises(BadAnswer, match=r"nothing more came within 0\.05 s") as raised:
        await execute(Replay(tmp_path, pace=99, limits=Limits(idle_s=0.05)), ASK, heard := Heard())
    assert raised.value.partial.content == heard.text == "one"
    (used,) = [event.usage for event in heard.events if isinstance(event, Used)]
    assert (used.completion, used.partial) == (1, True)
    with pytest.raises(TimedOut, match=r"within 0\.05 s in all"):
        await execute(
            Replay(tmp_path, pace=99, limits=Limits(total_s=0.05)),
            ChatRequest.of("Say hello.", temperature=0, stream=False),
        )


async def test_case_14_the_usage_of_a_replay_that_is_left_is_partial(tmp_path: Path) -> None:
    await record(tmp_path, "one two three")
    kept: list[Record] = []
    async with execute_stream(Replay(tmp_path, policies=[keep(kept.append)]), ASK) as execution:
        async for _ in execution:
            break
    (left,) = kept
    assert isinstance(left.outcome, Cancelled)
    assert left.usage.partial
    assert 1 <= left.usage.completion <= 3


async def test_what_a_client_does_to_a_chunk_stays_with_it(tmp_path: Path) -> None:
    await record(tmp_path, "one two")

    def spoil(event: Any) -> None:
        for view in getattr(event, "views", ()):
            view.choices.clear()

    llm = Replay(tmp_path)
    await execute(llm, ASK, spoil)
    assert (await execute(llm, ASK, heard := Heard())).content == heard.text == "one two"


async def test_case_04_a_recording_cut_at_any_byte_is_never_an_answer(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Stream(text_stream("w\u00f6rd", usage=usage_of(3, 4))))
    await execute(gpt(upstream, tmp_path), ASK)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_bytes()
    for size in range(len(whole.rstrip()) - 1, 0, -1):
        os.truncate(file, size)
        with pytest.raises(ConfigError) as raised:
            Replay(tmp_path)
        assert raised.value.file == str(file)
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="holds no recording"):
        Replay(tmp_path)
    file.write_bytes(whole)
    assert len(Replay(tmp_path)) == 1


async def test_case_04_lines_taken_out_of_a_recording_are_missed_or_make_no_answer(tmp_path: Path) -> None:
    await record(tmp_path, "one two")
    (file,) = tmp_path.glob("*.json")
    lines = file.read_text().splitlines(keepends=True)
    for size in range(1, len(lines) - 1):
        file.write_text("".join(lines[:size]) + "}\n")
        with pytest.raises(PenstockError):
            await execute(Replay(tmp_path), ASK)


TWO = '{"choices": [{"index": 0, "delta": {"content": " two"}'


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"penstock": 1', '"penstock": 2', 2, "penstock: Invalid enum value 2"),
        ('"penstock": 1', '"penstock": 1, "pace": 1', 1, "unknown field `pace`"),
        ('"messages": [', '"messages": 5, "x": [', 5, "request.messages: Expected `array`, got `int`"),
        ('" two"', "2", 20, "chunks[1].choices[0].delta.content: Expected `str | null`"),
        (TWO, '{"after_s": -1, ' + TWO[1:], 20, "chunks[1].after_s: Expected `float` >= 0"),
        (TWO, '{"choices": "none", "x": [{"delta": {}', 20, "chunks[1].choices: Expected `array`, got `str`"),
        ('"end": "finished"', '"end": "failed"', 24, "end: `error` belongs to the end 'failed'"),
        ('"end": "finished"', '"end": "done"', 24, "end: Invalid enum value 'done'"),
        ('"chunks": [', '"chunks": [,', 18, "not a whole JSON document: "),
    ],
)
async def test_a_file_that_is_wrong_is_named_with_its_line(
    old: str, new: str, line: int, words: str, tmp_path: Path
) -> None:
    await record(tmp_path, "one two")
    (file,) = tmp_path.glob("*.json")
    text = re.sub(r'"after_s": [\d.]+, ', "", file.read_text())
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        Replay(tmp_path)
    assert words in raised.value.args[0]
    assert (raised.value.file, raised.value.line) == (str(file), line)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"{}"])
def test_a_file_that_is_no_recording_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"notes\.json"):
        Replay(tmp_path)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("other files may lie beside")
    with pytest.raises(ConfigError, match="holds no recording: `penstock record`"):
        Replay(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        Replay(tmp_path / "none")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Replay(tmp_path)


@pytest.mark.parametrize("options", [{}, {"directory": "x", "pace": -1}, {"directory": "x", "pace": float("nan")}])
def test_a_replay_needs_a_folder_and_a_pace(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a folder with recordings and a pace"):
        Replay(**options)


async def test_a_recording_may_be_edited_and_moved(tmp_path: Path) -> None:
    await record(tmp_path / "one", CALL)
    shutil.move(next((tmp_path / "one").iterdir()), tmp_path / "renamed.json")
    file = tmp_path / "renamed.json"
    said = json.loads(file.read_text())
    said["chunks"] = [{"choices": [{"delta": {"content": "edited"}, "finish_reason": "stop"}]}]
    del said["usage"], said["recorded"], said["answer"]
    file.write_text(json.dumps(said, indent=4))
    heard = Heard()
    reply = await execute(Replay(tmp_path), ASK, heard)
    assert (reply.content, reply.finish_reason, reply.usage) == ("edited", "stop", None)
    assert not any(isinstance(event, Used) for event in heard.events)


async def test_many_at_once_do_not_mix(tmp_path: Path) -> None:
    for number in range(10):
        await record(tmp_path, f"answer {number}", request=ChatRequest.of(f"ask {number}"))
    llm = Replay(tmp_path, pace=0.5)
    replies = await asyncio.gather(*(execute(llm, ChatRequest.of(f"ask {n}")) for n in range(10)))
    assert [reply.content for reply in replies] == [f"answer {n}" for n in range(10)]
