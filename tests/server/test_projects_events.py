"""The log of a project, page by page and as a stream: whoever leaves takes it up where it was, and loses nothing."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from penstock.store.log import SPAN
from tests.rig.upstream import Upstream
from tests.rig.upstream import upstream as run_upstream
from tests.server.gateway import AccessLog, access_log, error_of
from tests.server.projects import Desk, desk, project, read_events, task


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """One upstream for the tests of this module."""
    with run_upstream() as served:
        yield served


@pytest.fixture(scope="module")
def served(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One server, which beats fast."""
    with desk(upstream, tmp_path_factory.mktemp("kept"), server={"heartbeat_s": 0.05}) as found:
        yield found


def test_the_log_is_read_in_pages_of_any_size(served: Desk) -> None:
    name = served.begin(project(task("a"), task("b", "a")))
    last = served.ended(name)["offset"]
    whole = served.ask("GET", f"/{name}/events").json()["data"]
    assert [one["offset"] for one in whole] == [*range(1, last + 1)]
    ends = [(one["task"], one["state"]) for one in whole if one.get("state") == "succeeded"]
    assert ends == [("a", "succeeded"), ("b", "succeeded")]
    for limit in (1, 2, 1000):
        read, after = [], 0
        while (page := served.ask("GET", f"/{name}/events?after={after}&limit={limit}").json())["data"]:
            read += page["data"]
            assert len(page["data"]) <= limit
            after = page["next"]
        assert (read, page["next"]) == (whole, last)
    for query, param in (
        *((f"after={SPAN << more}", "after") for more in (0, 31, 64)),
        ("after=-1", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("after=x", "after"),
    ):
        answer = served.ask("GET", f"/{name}/events?{query}")
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_a_stream_from_every_offset_gives_the_same_rest(served: Desk) -> None:
    name = served.begin(project(task("a"), task("b", "a"), task("c", "a", does="fail")))
    live = served.stream(name)
    pages = served.ask("GET", f"/{name}/events").json()["data"]
    assert live == [*((str(one["offset"]), one) for one in pages), ("end", {"status": "failed"})]
    for offset in range(len(live)):
        assert served.stream(name, last_event_id=str(offset)) == live[offset:]
    assert served.stream(f"{name}", last_event_id="9999") == live[-1:]
    answer = served.ask("GET", f"/{name}/events?after=2", accept="text/event-stream")
    assert read_events(answer.text) == live[2:]
    assert served.stream(name, last_event_id=str(SPAN - 1)) == live[-1:]
    for unfit in ("x", "9" * 23, "-1", str(SPAN)):
        refused = served.ask("GET", f"/{name}/events", accept="text/event-stream", last_event_id=unfit)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "last-event-id")


def test_a_stream_tells_what_happens_as_it_does_and_beats_in_between(served: Desk) -> None:
    name = served.begin(project(task("a", does="slow 0.3")))
    with served.http.stream("GET", f"{served.url}/v1/projects/{name}/events", headers=SSE) as answer:
        lines = list(answer.iter_lines())
    assert lines.count(": ping") >= 3
    beat, ended = lines.index(": ping"), next(n for n, line in enumerate(lines) if "succeeded" in line)
    begun = next(n for n, line in enumerate(lines) if '"running"' in line)
    assert begun < beat < ended
    assert lines[-3:-1] == ["event: end", 'data: {"status":"succeeded"}']


SSE = {"accept": "text/event-stream"}


def test_a_reader_who_leaves_changes_nothing_and_reads_on_later(served: Desk) -> None:
    with access_log() as log:
        name = served.begin(project(task("a", does="slow 0.3"), task("b", "a")))
        read = first_events(served, name, 2)
        row = served.until(name, lambda row: row["status"] != "running" or name in read_of(log))
        assert row["status"] == "running"  # when it was seen to leave
        assert served.ended(name)["status"] == "succeeded"
    rest = served.stream(name, last_event_id=read[-1][0])
    assert [*read, *rest] == served.stream(name)


def read_of(log: AccessLog) -> list[str]:
    """The projects of the requests for events that have ended."""
    return [row["project"] for row in log.rows if row["path"] == "/v1/projects/{project}/events"]


def first_events(served: Desk, name: str, count: int) -> list[tuple[str, object]]:
    """The first events of a stream whose reader then leaves without a word."""
    text = b""
    with socket.socket() as raw:
        ask(raw, served, name)
        while text.count(b"\n\n") < count:
            text += raw.recv(4096)
    found = re.findall(r"id: (\d+)\ndata: (.*)\n\n", text.decode())
    return [(offset, json.loads(said)) for offset, said in found][:count]


def test_many_readers_of_one_project_read_the_same(served: Desk) -> None:
    name = served.begin(project(task("a", does="slow 0.1"), task("b", "a")))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(json.dumps(served.stream(name)))) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 6
    assert len({*found}) == 1


def test_case_11_a_reader_who_takes_nothing_is_given_up(upstream: Upstream, tmp_path: Path) -> None:
    with desk(upstream, tmp_path, server={"write_stall_s": 0.2}) as served, access_log() as log:
        name = served.begin(project(*(task(f"t{number}", does="huge") for number in range(3))))
        served.ended(name)
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            ask(raw, served, name)
            served.until(name, lambda _: name in read_of(log))
        assert len(served.stream(name)) == served.get(name)["offset"] + 1


def ask(raw: socket.socket, served: Desk, name: str) -> None:
    """Ask for the stream of a project."""
    parts = urlsplit(served.url)
    raw.connect((parts.hostname, parts.port))
    raw.sendall(f"GET /v1/projects/{name}/events HTTP/1.0\r\naccept: text/event-stream\r\n\r\n".encode())
