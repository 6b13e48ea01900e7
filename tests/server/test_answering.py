"""`respond` in other people's applications, with executors of every kind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import httpx
import openai
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from starlette.applications import Starlette
from starlette.routing import Route

from penstock.errors import Invalid, LimitReached, RateLimited, Unavailable
from penstock.events import Reasoning, Text, Used
from penstock.messages import ChatReply, ChatRequest, Choice, ToolCall, Usage
from penstock.outcome import Cancelled, Failed, Finished
from penstock.policies.timeout import timeout
from penstock.run import Run
from penstock.server.answering import respond
from penstock.server.client import Manner
from penstock.testing import ScriptedLlm
from tests.rig.serving import serve_asgi
from tests.server.gateway import MESSAGES, events_of

USAGE = Usage(3, 2, 5)


async def telling(request: ChatRequest, run: Run) -> str:
    await run.emit(Reasoning("hm"))
    await run.child("inner").emit(Text("not the answer"))
    for word in ("Hello", " you"):
        await run.emit(Text(word))
    await run.emit(Used(usage=USAGE))
    return "something else"


async def returning(request: ChatRequest, run: Run) -> str:
    await run.emit(Used(usage=USAGE))
    return "Hello you"


async def replying(request: ChatRequest, run: Run) -> ChatReply:
    return ChatReply(choices=(Choice(content="Hello you", finish_reason="stop"),), model="mine", usage=USAGE)


async def calling(request: ChatRequest, run: Run) -> ChatReply:
    call = ToolCall(id="c1", name="add", arguments='{"a": 1}')
    return ChatReply(choices=(Choice(tool_calls=(call,), finish_reason="tool_calls"),), usage=USAGE)


async def data(request: ChatRequest, run: Run) -> Any:
    return {"a": [1, 2]}


def in_fastapi(executor: Any) -> Any:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def ask(request: Request) -> Any:
        return respond(executor, asked_of(await request.json()))

    return app


def in_starlette(executor: Any) -> Any:
    async def ask(request: Request) -> Any:
        return respond(executor, asked_of(await request.json()))

    return Starlette(routes=[Route("/v1/chat/completions", ask, methods=["POST"])])


def in_asgi(executor: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).json()
        await respond(executor, asked_of(body))(scope, receive, send)

    return app


def asked_of(body: dict[str, Any]) -> ChatRequest:
    fields = {name: said for name, said in body.items() if name not in {"model", "messages", "stream"}}
    return ChatRequest(model=body["model"], messages=body["messages"], stream=bool(body.get("stream")), params=fields)


@pytest.mark.parametrize("within", [in_fastapi, in_starlette, in_asgi])
def test_row_a18_an_executor_is_served_in_any_application(within: Callable[[Any], Any]) -> None:
    llm = ScriptedLlm("Hello you")
    answered: list[tuple[str, str | None, Any]] = []
    for executor in (telling, returning, replying, llm):
        with (
            serve_asgi(within(executor), lifespan="off") as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        ):
            ask = client.chat.completions
            whole = ask.create(model="m", messages=MESSAGES)
            options: Any = {"include_usage": True}
            chunks = list(ask.create(model="m", messages=MESSAGES, stream=True, stream_options=options))
            assert chunks[0].choices[0].delta.role == "assistant"
            assert chunks[-1].choices == [] or executor is llm
            said = "".join(choice.delta.content or "" for piece in chunks for choice in piece.choices)
            ends = [choice.finish_reason for piece in chunks for choice in piece.choices if choice.finish_reason]
            answered.append((said, whole.choices[0].message.content, ends))
            assert executor is llm or chunks[-1].usage == whole.usage
            assert whole.usage is not None
            assert executor is llm or whole.usage.total_tokens == 5
    assert answered == [("Hello you", "Hello you", ["stop"])] * 4


async def heard(executor: Any, *, stream: bool = True, manner: Manner | None = None, **params: Any) -> tuple[Any, Any]:
    """The answer of an executor through a client without a socket, and what `respond` knows afterwards."""
    answer = respond(executor, ChatRequest.of("hi", stream=stream, **params), manner=manner)
    transport = httpx.ASGITransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/"), answer


async def test_row_a18_what_is_not_text_is_answered_as_json() -> None:
    got, _ = await heard(data, stream=False)
    assert got.json()["choices"][0]["message"]["content"] == '{"a":[1,2]}'
    streamed, _ = await heard(data)
    assert events_of(streamed.content)[0]["choices"][0]["delta"]["content"] == '{"a":[1,2]}'


async def test_row_a18_reasoning_and_tool_calls_are_kept_apart() -> None:
    got, _ = await heard(telling)
    deltas = [event["choices"][0]["delta"] for event in events_of(got.content)[:-1]]
    assert deltas[0] == {"role": "assistant", "reasoning_content": "hm", "reasoning": "hm"}
    assert "not the answer" not in got.text
    whole, _ = await heard(calling, stream=False)
    message = whole.json()["choices"][0]["message"]
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]
    assert message["content"] is None
    streamed, _ = await heard(calling)
    first = events_of(streamed.content)[0]["choices"][0]
    assert (first["delta"]["tool_calls"][0]["index"], first["finish_reason"]) == (0, "tool_calls")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Invalid("no", param="p"), 400, None),
        (RateLimited("slow", retry_after=2.2), 429, "3"),
        (LimitReached("over", limit="tokens"), 429, "1"),
        (Unavailable("down"), 503, "1"),
        (ValueError("secret detail"), 500, None),
    ],
)
async def test_row_a18_an_error_before_the_answer_is_an_error_status(
    error: Exception, status: int, retry_after: str | None, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(request: ChatRequest, run: Run) -> str:
        raise error

    got, answer = await heard(failing, stream=stream)
    assert (got.status_code, got.headers.get("retry-after")) == (status, retry_after)
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert "secret detail" not in got.text
    assert answer.outcome == Failed(error)
    assert bool(caplog.records) == (status == 500)


async def test_row_a18_an_error_after_the_start_ends_the_stream() -> None:
    async def breaking(request: ChatRequest, run: Run) -> str:
        await run.emit(Text("begun"))
        raise Unavailable("down")

    got, answer = await heard(breaking)
    assert (got.status_code, answer.status) == (200, 200)
    assert events_of(got.content)[-1]["error"]["message"] == "down"
    assert "[DONE]" not in got.text


async def test_row_a18_what_became_of_the_run_is_told_afterwards() -> None:
    got, answer = await heard(telling)
    assert got.headers["x-request-id"].startswith("req_")
    assert answer.outcome == Finished("something else")
    assert (answer.status, answer.usage.total) == (200, 5)


async def test_row_a18_a_cancelled_task_inside_is_an_error_of_the_executor() -> None:
    async def losing(request: ChatRequest, run: Run) -> str:
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task
        return "never"

    got, answer = await heard(losing)
    assert got.status_code == 500
    assert isinstance(answer.outcome, Cancelled)


async def test_row_a18_a_cancel_from_outside_goes_on() -> None:
    async def waiting(request: ChatRequest, run: Run) -> str:
        await asyncio.sleep(10)
        return "never"

    task = asyncio.create_task(heard(waiting))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Server:
    """The two callables of an ASGI server, as a test wants them."""

    def __init__(self, *, fails_at: int | None = None, takes_s: float = 0.0) -> None:
        self.sent: list[MutableMapping[str, Any]] = []
        self._fails_at, self._takes_s = fails_at, takes_s

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if len(self.sent) == self._fails_at:
            raise OSError("gone")
        self.sent.append(message)
        await asyncio.sleep(self._takes_s)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def patient(request: ChatRequest, run: Run) -> str:
    await asyncio.sleep(0.05)
    await run.emit(Text("one"))
    await asyncio.sleep(0.05)
    return "one"


async def test_a_receive_that_raises_is_a_client_that_left(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> Any:
        raise RuntimeError("no more")

    server, answer = Server(), respond(patient, ChatRequest.of("hi"))
    await answer({"type": "http"}, receive, server.send)
    assert answer.status == 499
    assert isinstance(answer.outcome, Cancelled)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_a_receive_that_never_waits_is_not_asked_forever() -> None:
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    server, answer = Server(), respond(patient, ChatRequest.of("hi"))
    await answer({"type": "http"}, receive, server.send)
    assert (answer.status, asked) == (200, 2)
    assert server.body.endswith(b"data: [DONE]\n\n")


async def nothing() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("fails_at", range(5))
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fails", [True, False])
async def test_a_send_that_fails_is_a_client_that_left(fails: bool, stream: bool, fails_at: int) -> None:
    async def talking(request: ChatRequest, run: Run) -> str:
        await run.emit(Text("one"))
        if fails:
            raise Unavailable("down")
        return "one"

    server, answer = Server(fails_at=fails_at), respond(talking, ChatRequest.of("hi", stream=stream))
    await answer({"type": "http"}, nothing, server.send)
    needed = 3 if stream else 2
    assert (answer.status == 499) == (fails_at < needed)


async def test_a_heartbeat_never_overtakes_the_end() -> None:
    async def pausing(request: ChatRequest, run: Run) -> str:
        for _ in range(8):
            await run.emit(Text("x"))
            await asyncio.sleep(0.012)
        return "x"

    for takes_s in (0.0, 0.003, 0.02):
        server = Server(takes_s=takes_s)
        answer = respond(pausing, ChatRequest.of("hi"), manner=Manner(heartbeat_s=0.005))
        await answer({"type": "http"}, nothing, server.send)
        await asyncio.sleep(0.03)
        assert [message["type"] for message in server.sent[:2]] == ["http.response.start", "http.response.body"]
        assert [message.get("more_body") for message in server.sent[1:]].count(False) == 1
        assert server.sent[-1]["more_body"] is False
        assert b": ping\n\n" in server.body
        assert sum(message["type"] == "http.response.start" for message in server.sent) == 1


async def test_time_that_the_client_takes_does_not_count() -> None:
    async def talking(request: ChatRequest, run: Run) -> str:
        for _ in range(5):
            await run.emit(Text("x"))
        return "x"

    server = Server(takes_s=0.05)
    answer = respond(timeout(0.1)(talking), ChatRequest.of("hi"))
    await answer({"type": "http"}, nothing, server.send)
    assert answer.outcome == Finished("x")


def test_background_tasks_of_an_endpoint_start_after_the_answer() -> None:
    done: list[str] = []
    app = FastAPI()

    @app.post("/")
    async def endpoint(tasks: BackgroundTasks) -> respond:
        tasks.add_task(done.append, "swept")
        return respond(ScriptedLlm("yes"), ChatRequest.of("Hi", stream=False))

    with serve_asgi(app) as url:
        assert httpx.post(url).json()["choices"][0]["message"]["content"] == "yes"
        for _ in range(100):
            if done:
                break
            time.sleep(0.01)
    assert done == ["swept"]
