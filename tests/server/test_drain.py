"""The real process on SIGTERM: new requests are refused, running ones finish or are told, and it exits with 0."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.rig.upstream import Plain, Stream, Upstream, chunk, completion, text_stream
from tests.server.gateway import Gateway, chat, dechunked, events_of, gateway_process, sse_bytes

SLOW = Stream(text_stream("a b c d e f g h i j"), delay_s=0.07)
ENDLESS = Stream([chunk("", role="assistant"), *(chunk(f" {n}") for n in range(2000))], delay_s=0.02)


def terminate(served: Gateway) -> None:
    assert served.process is not None
    served.process.popen.send_signal(signal.SIGTERM)


def exit_code(served: Gateway, timeout_s: float = 10) -> int:
    assert served.process is not None
    return served.process.popen.wait(timeout_s)


def asked(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection.request(method, path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


async def test_case_12_running_requests_finish_and_new_ones_get_503(upstream: Upstream) -> None:
    upstream.script(SLOW, Plain(completion("late"), think_s=0.7))
    with gateway_process(upstream) as served:
        kept = http.client.HTTPConnection("127.0.0.1", int(served.url.rsplit(":", 1)[1]), timeout=5)
        assert await asyncio.to_thread(asked, kept, "GET", "/ready") == (200, b'{"status":"ready"}')
        streaming, writer = await served.open()
        whole = asyncio.create_task(asyncio.to_thread(served.post, chat(stream=False)))
        await asyncio.to_thread(upstream.wait_requests, 2)
        terminate(served)
        await asyncio.sleep(0.15)
        status, body = await asyncio.to_thread(asked, kept, "POST", "/v1/chat/completions", json.dumps(chat()))
        assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
        assert await asyncio.to_thread(asked, kept, "GET", "/ready") == (503, b'{"status":"draining"}')
        kept.close()
        await streaming.readuntil(b"\r\n\r\n")
        assert dechunked(await streaming.readuntil(b"0\r\n\r\n")) == sse_bytes(SLOW)
        writer.close()
        assert (await whole).json()["choices"][0]["message"]["content"] == "late"
        assert await asyncio.to_thread(exit_code, served) == 0
        assert served.process is not None
        assert "Traceback" not in served.process.stderr()
    assert len(upstream.chats) == 2


async def test_case_12_past_the_grace_time_a_stream_ends_with_an_error(upstream: Upstream) -> None:
    upstream.default = lambda _: ENDLESS
    with gateway_process(upstream, server={"drain_s": 0.6}) as served:
        reader, writer = await served.open()
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nserver:" not in head.lower()
        waiting = asyncio.create_task(asyncio.to_thread(served.post, chat(stream=False)))
        await asyncio.to_thread(upstream.wait_requests, 2)
        began = time.monotonic()
        terminate(served)
        *told, last = events_of(dechunked(await reader.readuntil(b"0\r\n\r\n")))
        assert last["error"]["message"] == "the server is shutting down"
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert "[DONE]" not in told
        assert (await waiting).status_code == 503
        writer.close()
        assert await asyncio.to_thread(exit_code, served) == 0
        assert 0.5 < time.monotonic() - began < 5
        assert len(await asyncio.to_thread(upstream.wait_closed, 2)) == 2
        assert served.process is not None
        assert "Traceback" not in served.process.stderr()


async def test_case_12_a_second_signal_stops_at_once(upstream: Upstream) -> None:
    upstream.default = lambda _: ENDLESS
    with gateway_process(upstream) as served:
        reader, writer = await served.open()
        await reader.readuntil(b"\r\n\r\n")
        terminate(served)
        await asyncio.sleep(0.2)
        terminate(served)  # heard as the same
        await asyncio.sleep(1.0)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 0.2)
        terminate(served)
        body = dechunked(await reader.readuntil(b"0\r\n\r\n"))
        writer.close()
        assert "error" in events_of(body)[-1]
        assert await asyncio.to_thread(exit_code, served) == 0
        assert time.monotonic() - began < 5


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes in /proc")
async def test_case_12_two_workers_restart_drain_and_exit(upstream: Upstream) -> None:
    upstream.default = lambda asked: SLOW if asked.json["stream"] else Plain(completion("here"))
    with gateway_process(upstream, "--workers", "2") as served:
        assert served.process is not None
        async with asyncio.timeout(10):
            while len(workers := children(served.process.pid)) < 2:
                await asyncio.sleep(0.05)
        victim = max(workers)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(10):
            while victim in (now := children(served.process.pid)) or len(now) < 2:
                await asyncio.sleep(0.05)
        for _ in range(5):
            assert (await asyncio.to_thread(served.post, chat(stream=False))).status_code == 200
        reader, writer = await served.open()
        await reader.readuntil(b"\r\n\r\n")
        terminate(served)
        assert dechunked(await reader.readuntil(b"0\r\n\r\n")) == sse_bytes(SLOW)
        writer.close()
        assert await asyncio.to_thread(exit_code, served) == 0
        assert not any(Path(f"/proc/{worker}").exists() for worker in now)


def test_case_12_a_taken_port_is_told_and_ends_with_1(upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(RuntimeError) as ended, gateway_process(upstream, "--port", port):
            pass
        assert f"cannot listen on 127.0.0.1 port {port}" in "".join(ended.value.__notes__)
