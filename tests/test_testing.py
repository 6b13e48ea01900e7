"""The doubles: a scripted LLM, a listener that remembers, and no way out to the network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from penstock.errors import RateLimited
from penstock.events import Chunks, Event, Text, Used
from penstock.llms.openai import Gpt
from penstock.messages import ChatReply, ChatRequest, ToolCall
from penstock.net.http import Pool
from penstock.outcome import Failed, Finished
from penstock.policies.retry import retry
from penstock.run import execute, execute_stream
from penstock.testing import Heard, NetworkUsed, ScriptedLlm, no_network

ASKED = ChatRequest.of("hi")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


async def test_a_text_is_told_word_by_word_and_folds_to_the_reply() -> None:
    llm, heard = ScriptedLlm("one two three", model="m"), Heard()
    reply = await execute(llm, ASKED, heard)
    texts = [event.text for event in heard.events if isinstance(event, Chunks)]
    assert texts == ["one", " two", " three", ""]
    assert reply.content == heard.text == "one two three"
    assert (reply.finish_reason, reply.model) == ("stop", "m")
    assert [event.usage for event in heard.events if isinstance(event, Used)] == [reply.usage]
    assert heard.end == Finished(reply)


async def test_streamed_and_whole_are_equal() -> None:
    llm = ScriptedLlm("one two")
    async with execute_stream(llm, ASKED) as execution:
        async for _ in execution:
            pass
    whole = await execute(llm, ChatRequest.of("hi", stream=False))
    assert execution.result == whole
    assert execution.content == whole.content


async def test_tool_calls_are_told_and_folded() -> None:
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "now", "{}"))
    llm, heard = ScriptedLlm(calls[0], calls), Heard()
    assert (await execute(llm, ASKED, heard)).tool_calls == calls[:1]
    reply = await execute(llm, ASKED)
    assert (reply.tool_calls, reply.finish_reason) == (calls, "tool_calls")
    assert reply.first.content is None
    assert heard.text == ""


async def test_answers_are_given_one_a_call_and_the_last_again() -> None:
    llm = ScriptedLlm("a", "b")
    assert [(await execute(llm, ASKED)).content for _ in range(4)] == ["a", "b", "b", "b"]
    assert llm.requests == [ASKED] * 4
    assert (await execute(ScriptedLlm(), ASKED)).content == ""


async def test_an_error_is_raised_before_anything_is_told() -> None:
    error, heard = RateLimited("slow down"), Heard()
    llm = ScriptedLlm(error, "fine")
    with pytest.raises(RateLimited) as caught:
        await execute(llm, ASKED, heard)
    assert caught.value is error
    assert heard.events == [Failed(error)]
    assert (await execute(llm, ASKED)).content == "fine"


async def test_a_function_answers_by_the_request() -> None:
    def answer(request: ChatRequest) -> str | Exception:
        return request.model or ValueError("which model?")

    llm = ScriptedLlm(answer)
    assert (await execute(llm, ChatRequest.of("hi", model="big"))).content == "big"
    with pytest.raises(ValueError, match=r"which model\?"):
        await execute(llm, ASKED)


async def test_a_double_takes_policies_and_the_shortcut_like_every_llm() -> None:
    llm = ScriptedLlm(RateLimited("slow", retry_after=0.0), "fine", policies=[retry(base_s=0)])
    assert await llm.generate_content_async("hi", temperature=0) == "fine"
    assert [request.params for request in llm.requests] == [{"temperature": 0}] * 2
    assert repr(llm) == "ScriptedLlm(model='scripted')"


async def test_heard_remembers_the_events_the_own_text_and_the_end() -> None:
    async def works(request: str, run: Any) -> str:
        await run.emit(Text("a"))
        await run.child("tool").emit(Text("b"))
        return request

    heard = Heard()
    await execute(works, "x", heard)
    expected: list[Event] = [Text("a"), Text("b", path="tool"), Finished("x")]
    assert (heard.events, heard.text, heard.end) == (expected, "a", Finished("x"))


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the loopback where somebody listens: without the switch every way out succeeds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)):
        pass


def connect_ex(port: int) -> None:
    with socket.socket() as plain:
        assert plain.connect_ex(("127.0.0.1", port)) == 0


def send_to(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as plain:
        plain.sendto(b"x", ("127.0.0.1", port))


def look_up(port: int) -> None:
    assert socket.getaddrinfo("localhost", port)


@pytest.mark.parametrize("way", [connect, connect_ex, send_to, look_up], ids=lambda way: way.__name__)
def test_no_network_stops_plain_sockets_and_gives_them_back(way: Callable[[int], None], port: int) -> None:
    way(port)
    with no_network(), pytest.raises(NetworkUsed, match=f"no_network: a connection to .*{port}.* was tried"):
        way(port)
    way(port)


async def streams(port: int, host: str) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def own_client(port: int, host: str) -> None:
    (await Pool().take(("http", host, port), 5.0)).abort()


async def datagrams(port: int, host: str) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(host, port))
    transport.close()


async def names(port: int, host: str) -> None:
    assert await asyncio.get_running_loop().getaddrinfo(host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("way", [streams, own_client, datagrams, names], ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", LOOPS)
def test_no_network_stops_both_event_loops_and_gives_them_back(
    kind: str, way: Callable[[int, str], Coroutine[Any, Any, None]], host: str, port: int
) -> None:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(way(port, host))
        with no_network(), pytest.raises(NetworkUsed, match=f"{host}.*{port}"):
            runner.run(way(port, host))
        runner.run(way(port, host))
    with no_network(), asyncio.Runner(loop_factory=LOOPS[kind]) as runner, pytest.raises(NetworkUsed):
        runner.run(way(port, host))


@pytest.mark.parametrize("kind", LOOPS)
def test_no_network_stops_an_llm_once_whatever_its_policies(kind: str) -> None:
    llm = Gpt(base_url="http://127.0.0.1:9/v1", api_key="k", policies=[retry(attempts=5, base_s=60)])
    heard = Heard()
    with no_network(), asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        call: Coroutine[Any, Any, ChatReply] = execute(llm, ASKED, heard)
        with pytest.raises(NetworkUsed, match=r"127\.0\.0\.1"):
            runner.run(call)
    assert [type(event) for event in heard.events] == [Failed]


def test_no_network_nests_and_ends_with_an_error_inside(port: int) -> None:
    with pytest.raises(ValueError, match="mine"), no_network():
        with no_network():
            pass
        with pytest.raises(NetworkUsed):
            connect(port)
        raise ValueError("mine")
    connect(port)


@pytest.mark.parametrize("kind", LOOPS)
def test_what_needs_no_network_works_without_it(kind: str) -> None:
    with no_network(), asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        reply = runner.run(execute(ScriptedLlm("fine"), ASKED))
    assert reply.content == "fine"
