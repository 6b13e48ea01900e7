"""Projects outlive their process: killed, told to stop, or one of several on the same folder."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.rig.otlp import Receiver
from tests.rig.upstream import Upstream
from tests.server.gateway import error_of
from tests.server.projects import Desk, asked, desk, desk_process, project, states, task, token

DRAIN = {"drain_s": 5}


def end(served: Desk, number: signal.Signals) -> int:
    """Send a server a signal, and wait until it has ended."""
    assert served.process is not None
    os.kill(served.process.pid, number)
    return served.process.popen.wait(10)


def opened(served: Desk) -> bool:
    """Whether a server has loaded what opens a journal; where coverage is measured that has it loaded anyway."""
    assert served.process is not None
    maps = Path(f"/proc/{served.process.pid}/maps")
    loaded = maps.read_text() if maps.exists() else ""
    return "_sqlite3" in loaded and "/coverage/" not in loaded


def test_case_18_a_killed_servers_projects_are_taken_up_by_exactly_one_of_those_that_come(
    upstream: Upstream, tmp_path: Path
) -> None:
    plan = project(task("a"), task("b", "a", does="slow 0.4"), task("c", "b"), task("d", "a", does="fail"))
    tokens = [token("anna", "acme"), token("carl", "other")]
    with desk_process(upstream, tmp_path, tokens=tokens) as first:
        assert not (tmp_path / "kept").exists()
        assert not opened(first)
        anna = first.of("pk-anna-secret")
        name = anna.begin(plan, idempotency_key="k")
        anna.until(name, lambda row: states(row)["b"] == "in_progress" and states(row)["d"] == "failed")
        before = anna.ask("GET", f"/{name}/events").json()["data"]
        assert end(first, signal.SIGKILL) == -signal.SIGKILL
    starting = [desk_process(upstream, tmp_path, tokens=tokens), desk(upstream, tmp_path / "kept", tokens=tokens)]
    with contextlib.ExitStack() as open_ones, ThreadPoolExecutor() as pool:
        second, third = pool.map(open_ones.enter_context, starting)
        anna, also = second.of("pk-anna-secret"), third.of("pk-anna-secret")
        upstream.wait_requests(4)  # asked for by nobody
        row = anna.ended(name)
        assert states(row) == {"a": "success", "b": "success", "c": "success", "d": "failed"}
        assert sorted(asked(upstream)) == ["a", "b", "b", "c", "d"]
        assert also.get(name) == row
        assert also.begin(plan, idempotency_key="k") == name
        assert anna.stream(name)[: len(before)] == [(str(one["offset"]), one) for one in before]
        assert anna.stream(name, last_event_id=str(len(before))) == also.stream(name)[len(before) :]
        assert anna.of("pk-carl-secret").ask("GET", f"/{name}").status_code == 404

        name = anna.begin(project(task("long", does="slow 9"), task("next", "long")))
        anna.until(name, lambda row: states(row)["long"] == "in_progress")
        with ThreadPoolExecutor() as reading:
            told = reading.submit(also.stream, name)
            assert also.ask("POST", f"/{name}/cancel").status_code == 200
            assert told.result()[-1] == ("end", {"status": "cancelled"})
        assert anna.get(name)["status"] == "cancelled"
        assert len(upstream.wait_closed(2)) == 2  # that of the killed server, and this one


def test_case_12_a_server_told_to_stop_lets_tasks_end_and_leaves_the_rest(
    upstream: Upstream, tmp_path: Path, otlp: Receiver
) -> None:
    with (
        desk_process(upstream, tmp_path, server=DRAIN, tracing={"otlp": otlp.endpoint}) as first,
        desk(upstream, tmp_path / "kept") as second,
    ):
        name = first.begin(project(task("a", does="slow 0.8"), task("b", "a"), task("c", "b")))
        first.until(name, lambda row: states(row)["a"] == "in_progress")
        with ThreadPoolExecutor() as pool:
            told, began = pool.submit(first.stream, name), time.monotonic()
            code = pool.submit(end, first, signal.SIGTERM)
            first.until(name, lambda row: row["status"] == "paused")
            refused = first.ask("POST", "", project(task("x")))
            assert (refused.status_code, error_of(refused)["code"]) == (503, "shutting_down")
            assert code.result() == 0
        assert time.monotonic() - began < DRAIN["drain_s"]
        assert all(one != "end" for one, _ in told.result())
        assert first.process is not None
        assert "Traceback" not in first.process.stderr()
        assert asked(upstream) == ["a"]
        spans = {span.name: span for span in otlp.wait_spans(2)}
        assert spans["chat"].trace_id == spans["project"].trace_id
        assert spans["project"].attributes["penstock.project"] == name
        assert states(second.ended(name)) == {"a": "success", "b": "success", "c": "success"}
    assert asked(upstream) == ["a", "b", "c"]
