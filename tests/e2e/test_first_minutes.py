"""What a newcomer does in the first minutes: the lines of the README, copied from it, on a machine without any key."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.conftest import require
from tests.e2e.gateway import children, environment, no_proc, penstock
from tests.rig.serving import ROOT, Process, answers

TRY_IT = (ROOT / "README.md").read_text().partition("## Try it")[2].partition("\n## ")[0]


def block(language: str, *, port: int) -> str:
    """The first code block of a language under the README's heading, for the server at `port`."""
    found = re.search(rf"```{language}\n(.*?)```", TRY_IT, re.DOTALL)
    assert found is not None
    assert "127.0.0.1:8000" in found[1]
    return found[1].replace("127.0.0.1:8000", f"127.0.0.1:{port}")


def run(command: list[str], *, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment()}
    return subprocess.run(
        command, cwd=folder, env=variables, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def cli(*arguments: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "penstock", *arguments], folder=folder, stdin=stdin)


def test_the_curl_line_of_the_readme_streams_an_answer(demo: Process, tmp_path: Path) -> None:
    require("curl")
    done = run(["sh", "-c", block("sh", port=demo.port).replace("curl ", "curl -sS ")], folder=tmp_path)
    events = [line.removeprefix("data: ") for line in done.stdout.split("\n") if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["model"] for chunk in chunks} == {"penstock-demo"}
    assert len(chunks) > 5
    assert "demo" in "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_five_lines_of_the_readme_stream_an_answer(demo: Process, tmp_path: Path) -> None:
    lines = block("python", port=demo.port)
    assert sum(bool(line.strip()) for line in lines.split("\n")) == 5
    done = run([sys.executable, "-W", "error", "-c", lines], folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_chat_answers_an_argument_a_pipe_and_in_json_alike(tmp_path: Path) -> None:
    said = cli("chat", "Hello!", folder=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert "demo" in said.stdout
    assert cli("chat", folder=tmp_path, stdin="Hello!\n").stdout == said.stdout
    report = json.loads(cli("chat", "Hello!", "--json", folder=tmp_path).stdout)
    assert (report["content"].strip(), report["model"]) == (said.stdout.strip(), "penstock-demo")


def test_check_finds_nothing_wrong(tmp_path: Path) -> None:
    done = cli("check", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_the_line_that_serve_says_to_try_works(demo: Process, tmp_path: Path) -> None:
    require("curl")
    line = next(line.strip() for line in demo.stderr().split("\n") if line.strip().startswith("try "))
    done = run(["sh", "-c", line.removeprefix("try").strip().replace("curl ", "curl -sS ")], folder=tmp_path)
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_the_pages_beside_the_chat_answer(demo: Process) -> None:
    with httpx.Client(base_url=demo.base_url) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "penstock-demo"
        assert client.get("/v1/models/penstock-demo").json()["object"] == "model"
        assert client.get("/ready").json() == {"status": "ready"}
        assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
        assert client.get("/docs").headers["content-type"].startswith("text/html")


def test_two_workers_both_answer_and_stop_together() -> None:
    require("proc", problem=no_proc())
    with penstock("--workers", "2") as process:
        deadline = time.monotonic() + 10.0
        while len(workers := children(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(workers) == 2
        for frozen in workers:  # while one of them stands still, only the other can answer
            os.kill(frozen, signal.SIGSTOP)
            try:
                assert answered(f"{process.base_url}/health")
            finally:
                os.kill(frozen, signal.SIGCONT)
        assert process.terminate(10.0) == 0
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        assert "Traceback" not in process.stderr()


def answered(url: str) -> bool:
    """Whether it answers within 10 s: a worker may still be starting."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        if answers(url):
            return True
    return False
