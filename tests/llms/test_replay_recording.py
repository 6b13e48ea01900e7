"""`recording`: one readable file for each exchange, however it ended, and no secret in any."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from penstock.errors import BadAnswer, Invalid, LimitReached, StoreFailed, UsageError
from penstock.events import Chunks, Event, Reasoning, Text
from penstock.llms.openai import Gpt
from penstock.llms.replay import Replay, recording
from penstock.llms.replay.files import prepare
from penstock.messages import ChatReply, ChatRequest, Choice, Chunk, ChunkChoice, Delta, ToolCall
from penstock.net import Secret
from penstock.policies import wrap
from penstock.policies.faults import faults
from penstock.policies.retry import retry
from penstock.run import Run, execute, from_stream
from penstock.testing import Heard, ScriptedLlm
from tests.rig.upstream import Plain, Stream, Upstream, completion, error_body, text_stream, usage_of

ASK = ChatRequest.of("Say h\u00e9llo, please!", model="fast", temperature=0)
CANARY = "sk-canary-zyxwvutsrqponmlk"
PIECES = {CANARY[at : at + 8] for at in range(len(CANARY) - 7)}


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def only(folder: Path) -> dict[str, Any]:
    (file,) = files(folder)
    said: dict[str, Any] = json.loads(file.read_text())
    return said


async def test_a_file_is_readable_and_named_after_the_request(tmp_path: Path) -> None:
    llm = ScriptedLlm("one two", policies=[recording(tmp_path / "new" / "folder")])
    await execute(llm, ASK)
    await execute(llm, ASK)
    await execute(llm, ChatRequest.of([{"role": "system", "content": "x"}]))
    names = [file.name for file in files(tmp_path / "new" / "folder")]
    assert [name.partition("-")[0] for name in names] == ["exchange", "say", "say"]
    assert names[1].startswith("say-hello-please-")
    assert (names[1][:-8], names[1][-8:], names[2][-8:]) == (names[2][:-8], "001.json", "002.json")
    text = (tmp_path / "new" / "folder" / names[1]).read_text()
    assert '        "content": "Say h\u00e9llo, please!"' in text
    assert sum(line.strip().startswith('{"after_s": ') for line in text.splitlines()) == 3
    said = json.loads(text)
    assert said["request"]["params"] == {"temperature": 0}
    assert (said["end"], said["usage"]["total_tokens"]) == ("finished", 4)
    assert said["chunks"][1]["choices"] == [{"delta": {"content": " two"}, "index": 0}]


async def test_no_header_is_written(upstream: Upstream, tmp_path: Path) -> None:
    upstream.script(Plain(completion("hi"), headers={"x-secret-header": "its-value"}))
    llm = Gpt(
        model="m",
        api_key=CANARY,
        base_url=upstream.base_url,
        headers={"x-own": "own-value"},
        policies=[recording(tmp_path)],
    )
    await execute(llm, ChatRequest.of("hi", stream=False))
    text = files(tmp_path)[0].read_text()
    assert not any(
        word in text for word in ("x-secret-header", "its-value", "x-own", "own-value", CANARY, "request_id")
    )


@pytest.mark.parametrize("script", ["cut after 2 chunks", "stall forever after 2 chunks", "malformed after 2 chunks"])
async def test_what_failed_is_written_with_what_had_come(script: str, tmp_path: Path) -> None:
    with pytest.raises(BadAnswer):
        await execute(ScriptedLlm("one two", policies=[recording(tmp_path), faults(script, idle_s=0.02)]), ASK)
    said = only(tmp_path)
    assert (said["end"], said["error"]["class"], len(said["chunks"])) == ("failed", "BadAnswer", 2)
    if "stall" in script:
        assert 0.02 <= said["error"]["after_s"] < 1


async def test_what_was_cancelled_is_written_and_stands_aside(tmp_path: Path) -> None:
    begun = asyncio.Event()
    llm = ScriptedLlm("one two", policies=[recording(tmp_path), faults("stall forever after 1 chunk once")])
    task = asyncio.create_task(execute(llm, ASK, lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    said = only(tmp_path)
    assert (said["end"], len(said["chunks"]), "error" in said) == ("cancelled", 1, False)
    with pytest.raises(BadAnswer, match="its client had left") as raised:
        await execute(Replay(tmp_path), ASK)
    assert raised.value.partial.content == "one"
    await execute(llm, ASK)
    assert (await execute(Replay(tmp_path), ASK)).content == "one two"


async def test_what_a_failed_listener_stopped_is_cancelled(tmp_path: Path) -> None:
    def gone(_: Event) -> None:
        raise BrokenPipeError("the client left")

    with pytest.raises(BrokenPipeError):
        await execute(ScriptedLlm("one two", policies=[recording(tmp_path)]), ASK, gone)
    assert only(tmp_path)["end"] == "cancelled"


async def test_a_coroutine_that_is_closed_is_written(tmp_path: Path) -> None:
    def told(event: Event) -> Awaitable[None] | None:
        return asyncio.sleep(30) if isinstance(event, Chunks) else None

    work = execute(ScriptedLlm("one two", policies=[recording(tmp_path)]), ASK, told)
    work.send(None)
    work.close()
    assert only(tmp_path)["end"] == "cancelled"


@pytest.mark.parametrize("error", [LimitReached("no", limit="rate"), Invalid("no"), UsageError("no")])
async def test_what_was_refused_before_the_call_is_no_exchange(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        await execute(ScriptedLlm(error, policies=[recording(tmp_path)]), ASK)
    assert files(tmp_path) == []


async def test_the_time_that_a_client_takes_is_not_recorded(tmp_path: Path) -> None:
    async def slowly(_: Event) -> None:
        await asyncio.sleep(0.05)

    await execute(ScriptedLlm("one two", policies=[recording(tmp_path)]), ASK, slowly)
    assert sum(chunk["after_s"] for chunk in only(tmp_path)["chunks"]) < 0.05


async def test_retries_are_one_exchange_or_each_one(tmp_path: Path) -> None:
    llm = ScriptedLlm("hi")
    around = wrap(
        llm, [recording(tmp_path / "outside"), retry(base_s=0), recording(tmp_path / "inside"), faults("503 once")]
    )
    await execute(around, ASK)
    assert len(files(tmp_path / "outside")) == 1
    assert [json.loads(file.read_text())["end"] for file in files(tmp_path / "inside")] == ["failed", "finished"]


async def test_any_executor_is_recorded(tmp_path: Path) -> None:
    async def speaks(request: ChatRequest, run: Run) -> ChatReply:
        await run.child("tool").emit(Text("not the answer"))
        await run.emit(Reasoning("because"))
        await run.emit(Text("it is"))
        return ChatReply(choices=(Choice(content="it is", reasoning="because"),))

    async def silent(request: ChatRequest, run: Run) -> ChatReply:
        call = ToolCall("c", "add", "{}", {"google": 1})
        return ChatReply(
            choices=(Choice(content=None, tool_calls=(call,), finish_reason="tool_calls"),), id="i", model="m"
        )

    async def generated(request: ChatRequest) -> Any:
        yield "it "
        yield "is"

    async def grouped(request: ChatRequest, run: Run) -> ChatReply:
        views = [
            Chunk(choices=[ChunkChoice(delta=Delta(content=word))], raw=b'{"x": [1], "choices": [{}]}') for word in "ab"
        ]
        await run.emit(Chunks(views=views))
        return ChatReply(choices=(Choice(content="ab"),))

    for executor in (speaks, silent, from_stream(generated), grouped):
        folder = tmp_path / str(id(executor))
        reply: ChatReply = await execute(wrap(executor, [recording(folder)]), ASK)
        assert (await execute(Replay(folder), ASK)).choices == reply.choices


async def test_only_chat_requests_are_recorded(tmp_path: Path) -> None:
    async def other(request: str, run: Run) -> str:
        return request

    with pytest.raises(UsageError, match="takes chat requests, not str"):
        await execute(wrap(other, [recording(tmp_path)]), "x")


async def test_values_of_python_and_half_characters_are_written(tmp_path: Path) -> None:
    request = ChatRequest.of("half \ud83d", model="m", stop=("a", "b"), at=Path("x"))
    await execute(ScriptedLlm("hi", policies=[recording(tmp_path)]), request)
    assert (await execute(Replay(tmp_path), request)).content == "hi"


async def test_many_at_once_get_a_file_each(tmp_path: Path) -> None:
    policies = [recording(tmp_path), recording(tmp_path)]  # as two processes have
    await asyncio.gather(*(execute(ScriptedLlm("hi", policies=[policies[n % 2]]), ASK) for n in range(40)))
    assert [file.name[-8:] for file in files(tmp_path)] == [f"{n:03}.json" for n in range(1, 41)]


async def test_writing_does_not_block_the_loop(tmp_path: Path) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, monotonic() - began)

    watching = asyncio.create_task(watch())
    llm = ScriptedLlm(" ".join(["word"] * 5_000), policies=[recording(tmp_path)])
    await execute(llm, ASK, lambda _: asyncio.sleep(0))
    watching.cancel()
    assert len(only(tmp_path)["chunks"]) == 5_001
    assert longest < 0.25


def _blocked(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("")
    return file / "folder"


async def test_case_19_what_cannot_be_written_is_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _blocked(tmp_path)
    heard = Heard()
    with pytest.raises(StoreFailed, match=r"nothing can be recorded in .*: Not a directory"):
        await execute(ScriptedLlm("hi", policies=[recording(folder)]), ASK, heard)
    assert heard.text == "hi"
    with pytest.raises(BadAnswer), caplog.at_level(logging.ERROR, "penstock.recording"):
        await execute(ScriptedLlm("hi", policies=[recording(folder), faults("cut")]), ASK)
    assert "ended with BadAnswer is not recorded: nothing can be recorded in" in caplog.text
    with pytest.raises(StoreFailed, match="nothing can be recorded in"):
        prepare(folder)


async def test_case_19_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    llm = ScriptedLlm("hi " * 200, policies=[recording(tmp_path)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # what is written past it fails, as on a full disk
    try:
        with pytest.raises(StoreFailed, match="File too large"):
            await execute(llm, ASK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []
    await execute(llm, ASK)
    assert len(files(tmp_path)) == 1


async def test_a_request_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(StoreFailed, match="cannot be recorded as JSON"):
        await execute(ScriptedLlm("hi", policies=[recording(tmp_path)]), ChatRequest.of("x", deep=deep))
    assert files(tmp_path) == []


def leaked(folder: Path) -> list[str]:
    text = "".join(file.name + file.read_text() for file in files(folder))
    return [piece for piece in PIECES if piece in text]


LEAKS: dict[str, Callable[[], Any]] = {
    "streamed": lambda: Stream([*text_stream(f"key: {CANARY}.", usage=usage_of(1, 2))]),
    "in pieces": lambda: Stream([*_spelled(CANARY)]),
    "whole": lambda: Plain(completion(f"key: {CANARY}")),
    "error": lambda: Plain(error_body(f"bad key {CANARY}, seen as {CANARY[3:15]}", code=CANARY), status=400),
    "beside": lambda: Plain({**completion("hi"), "system_fingerprint": CANARY, CANARY: {"x": [CANARY]}}),
}


def _spelled(text: str) -> list[Any]:
    chunks: list[Any] = text_stream(" ".join(text))
    for n, letter in enumerate(text):
        choice = chunks[n]["choices"][0] if chunks[n]["choices"] else {}
        choice.setdefault("delta", {})["content"] = letter
        choice["logprobs"] = {"content": [{"token": letter}]}
        choice["delta"]["reasoning_details"] = [{"text": letter}]
    return chunks


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("kind", ["Secret", "text"])
async def test_row_c10_case_25_no_secret_is_recorded(leak: str, kind: str, upstream: Upstream, tmp_path: Path) -> None:
    upstream.default = lambda _: LEAKS[leak]()
    secret: Any = Secret(CANARY, origin=upstream.base_url) if kind == "Secret" else CANARY
    policies = [recording(tmp_path, secrets=[secret])]
    llm = Gpt(model="m", api_key="sk-another-key", base_url=upstream.base_url, policies=policies)
    asked = ChatRequest.of(
        f"my key is {CANARY}", stream=leak in {"streamed", "in pieces"}, metadata={CANARY: CANARY[2:12]}, user=CANARY
    )
    with contextlib.suppress(Exception):
        await execute(llm, asked)
    assert len(files(tmp_path)) == 1
    assert leaked(tmp_path) == []
    text = files(tmp_path)[0].read_text()
    assert "my key is ***" in text
    assert "logprobs" not in text, "they spell the answer again, token by token"
    assert "reasoning_details" not in text
    Replay(tmp_path)


async def test_case_25_a_secret_in_pieces_of_a_tool_call_is_not_recorded(upstream: Upstream, tmp_path: Path) -> None:
    chunks: list[Any] = text_stream("x")
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"k": "'}}
    pieces = [call, *({"index": 0, "function": {"arguments": CANARY[at : at + 4]}} for at in range(0, 28, 4))]
    chunks[1:1] = [
        {**chunks[0], "choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]}
        for piece in pieces
    ]
    upstream.script(Stream(chunks))
    llm = Gpt(model="m", api_key="x", base_url=upstream.base_url, policies=[recording(tmp_path, secrets=[CANARY])])
    reply = await execute(llm, ASK)
    assert CANARY in reply.tool_calls[0].arguments
    text = "".join((await execute(Replay(tmp_path), ASK)).tool_calls[0].arguments)
    assert text.startswith('{"k": "***')
    assert not any(piece in text for piece in PIECES)
