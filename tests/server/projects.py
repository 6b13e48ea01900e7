"""A server with agents, whose model is the scripted upstream, and a client that begins projects there."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from penstock.config import Settings
from penstock.server.protocol import Protocol
from penstock.server.serve import application
from tests.rig.answers import Answer, Plain, Received, Stream
from tests.rig.serving import Process, running, serve_asgi
from tests.rig.upstream import Upstream, completion, text_stream
from tests.server.gateway import settings_of

AGENTS: list[dict[str, Any]] = [
    {"name": "person", "mode": "interactive", "capabilities": ["writing", "judging"]},
    {"name": "pair", "mode": "hybrid", "agents": ["writer", "person"]},
    {"name": "trio", "mode": "hybrid", "agents": ["pair", "writer"]},
    {"name": "writer", "model": "rig", "capabilities": ["writing"], "retry": {"attempts": 1}},
    {"name": "off", "model": "rig", "enabled": False, "capabilities": ["flying"]},
]
OVER = ("succeeded", "failed", "cancelled")


def configured(
    base_url: str,
    folder: Path,
    agents: Sequence[Mapping[str, Any]] = AGENTS,
    tracing: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What `penstock.yaml` says for agents whose projects are kept in a folder."""
    rows = [dict(agent) for agent in agents]
    kept = {"agents": rows, "store": {"dir": str(folder)}, "tracing": dict(tracing or {})}
    return {**settings_of(base_url, **more), **kept}


def task(name: str, *needs: str, does: str = "", **more: Any) -> dict[str, Any]:
    """A task of the writer; `does` is a word to the model: `slow 0.3`, `fail`, `huge`."""
    said = {"id": name, "description": f"{does or 'say'} {name}", "depends_on": list(needs), "agent": "writer"}
    return {**said, **more}


def project(*tasks: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A project's body."""
    return {"name": "notes", "tasks": [dict(one) for one in tasks], **more}


def worker(request: Received) -> Answer:
    """A model that does what the first word of a task says, and gives the task's last word back."""
    said = str(request.json["messages"][-1]["content"]).split("\n", 1)[0].split()
    wait = float(said[1]) if said[0] == "slow" else 0.0
    if said[0] == "fail":
        return Plain({"error": {"message": "no", "type": "bad", "param": None, "code": "no"}}, status=400)
    text = "x" * 1_000_000 if said[0] == "huge" else f"did {said[-1]}"
    if request.json.get("stream"):
        return Stream(text_stream(text), think_s=wait)
    return Plain(completion(text), think_s=wait)


def asked(upstream: Upstream) -> list[str]:
    """The tasks that the model was asked to do, in order."""
    return [str(one.json["messages"][-1]["content"]).split("\n", 1)[0].split()[-1] for one in upstream.chats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A running server, and a client with a token."""

    url: str
    http: httpx.Client
    token: str | None = None
    process: Process | None = None
    folder: Path = field(default_factory=Path)

    def of(self, token: str | None) -> Desk:
        """The same server for another caller."""
        return Desk(url=self.url, http=self.http, token=token, process=self.process, folder=self.folder)

    def ask(self, method: str, path: str = "", body: Any = None, **headers: str) -> httpx.Response:
        """One request below `/v1/projects`."""
        sent = {name.replace("_", "-"): said for name, said in headers.items()}
        if self.token is not None:
            sent["authorization"] = f"Bearer {self.token}"
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.request(method, f"{self.url}/v1/projects{path}", content=content, headers=sent)

    def begin(self, body: Any, **headers: str) -> str:
        """Begin a project: its id."""
        answer = self.ask("POST", "", body, **headers)
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/projects/{answer.json()['id']}"
        return str(answer.json()["id"])

    def get(self, name: str) -> dict[str, Any]:
        """How a project stands."""
        answer = self.ask("GET", f"/{name}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, name: str) -> dict[str, Any]:
        """How a project ended."""
        return self.until(name, lambda row: row["status"] in OVER)

    def until(self, name: str, condition: Callable[[dict[str, Any]], bool], within_s: float = 10) -> dict[str, Any]:
        """The project once it stands as asked."""
        deadline = time.monotonic() + within_s
        while not condition(row := self.get(name)):
            assert time.monotonic() < deadline, row
            time.sleep(0.01)
        return row

    def stream(self, name: str, **headers: str) -> list[tuple[str, Any]]:
        """The events of a whole stream: the id, or the name of one without, and what it says."""
        answer = self.ask("GET", f"/{name}/events", accept="text/event-stream", **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return read_events(answer.text)


def read_events(text: str) -> list[tuple[str, Any]]:
    """The events of a stream; comments are left out."""
    found: list[tuple[str, Any]] = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            found.append((lines.get("id") or lines.get("event", ""), json.loads(lines["data"])))
    return found


def states(row: Mapping[str, Any]) -> dict[str, str]:
    """How the tasks of a project stand."""
    return {one["id"]: one["status"] for one in row["tasks"]}


def token(name: str, tenant: str, *scopes: str) -> dict[str, Any]:
    """A configured token whose value is its name."""
    return {"name": name, "tenant": tenant, "value": f"pk-{name}-secret", "scopes": list(scopes or ("projects",))}


@contextlib.contextmanager
def desk(upstream: Upstream, folder: Path, **settings: Any) -> Generator[Desk]:
    """The server in a thread."""
    upstream.default = worker
    app = application(Settings.model_validate(configured(upstream.base_url, folder, **settings)))
    with serve_asgi(app, http=Protocol, log_config=None) as url, _http() as http:
        yield Desk(url=url, http=http, folder=folder)


@contextlib.contextmanager
def desk_process(upstream: Upstream, folder: Path, *arguments: str, **settings: Any) -> Generator[Desk]:
    """The server as its own process, which keeps its projects in a folder."""
    upstream.default = worker
    file = folder / "penstock.yaml"
    file.write_text(yaml.safe_dump(configured(upstream.base_url, folder / "kept", **settings)))
    serve = [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--port", "{port}", *arguments]
    ready = "http://127.0.0.1:{port}/health"
    with running(serve, ready=ready, env={"PYTHONPATH": "src"}) as process, _http() as http:
        yield Desk(url=process.base_url, http=http, process=process, folder=folder)


def _http() -> httpx.Client:
    return httpx.Client(timeout=20, trust_env=False, verify=False)
