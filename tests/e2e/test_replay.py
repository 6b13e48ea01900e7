"""An application's exchanges recorded through the server, then served again with no key and no network behind it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.gateway import environment
from tests.rig.serving import Process, running
from tests.rig.upstream import Plain, Stream, Upstream, completion, error_body, text_stream, usage_of

KEY = "sk-canary-zyxwvutsrqponmlk"
HELLO: Any = [{"role": "user", "content": "Say hello."}]


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **env: str) -> Generator[Process]:
    command = [sys.executable, "-m", "penstock", *arguments, "--port", "{port}"]
    with running(command, ready="http://127.0.0.1:{port}/health", env=environment(**env), cwd=folder) as process:
        yield process


def asked(process: Process) -> list[Any]:
    """What an application gets that asks for a stream, a whole answer, a tool and one time too often."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    requests = ({"stream": True, "stream_options": {"include_usage": True}}, {"temperature": 0.5}, {"tools": [tool]})
    with sdk(process) as client:
        return [said(client, request) for request in (*requests, {"seed": 1})]


def sdk(process: Process) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{process.base_url}/v1", api_key="none", max_retries=0)


def said(client: openai.OpenAI, request: dict[str, Any]) -> list[Any]:
    chat: Any = client.chat.completions.create
    try:
        answer = chat(model="m1", messages=HELLO, **request)
        return [part.model_dump() for part in answer] if "stream" in request else [answer.model_dump()]
    except openai.RateLimitError as error:
        return [error.status_code, error.body, error.response.headers["retry-after"]]


def test_what_was_recorded_is_served_again(upstream: Upstream, tmp_path: Path) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    upstream.script(
        Stream(text_stream("one two three", usage=usage_of(3, 4))),
        Plain(completion(f"your key is {KEY}", usage=usage_of(3, 4))),
        Plain(completion(None, tool_calls=[call])),
        Plain(error_body("slow down"), status=429, headers={"retry-after": "7"}),
    )
    with serving(tmp_path, "record", "calls", OPENAI_BASE_URL=upstream.base_url, OPENAI_API_KEY=KEY) as process:
        lived = asked(process)
        assert "records every exchange in calls: `penstock serve --replay calls`" in process.stderr()
    files = sorted((tmp_path / "calls").iterdir())
    assert len(files) == 4
    written = "".join(file.name + file.read_text() for file in files)
    assert [KEY[at : at + 8] for at in range(len(KEY) - 7) if KEY[at : at + 8] in written] == []
    with serving(tmp_path, "serve", "--replay", "calls") as process:
        lived[1][0]["choices"][0]["message"]["content"] = "your key is ***"
        assert asked(process) == lived
        with sdk(process) as client:
            assert [model.id for model in client.models.list()] == ["m1"]
            with pytest.raises(openai.NotFoundError, match=r"is 'Say hello\.', not 'Say goodbye\.'"):
                client.chat.completions.create(model="m1", messages=[{"role": "user", "content": "Say goodbye."}])
            with pytest.raises(openai.NotFoundError, match="nothing is recorded of the model 'm2'"):
                client.chat.completions.create(model="m2", messages=HELLO)
        assert "replays 4 exchanges recorded in calls, without a key or a network" in process.stderr()
