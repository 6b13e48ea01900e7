"""The log: one line for each request whatever its client sent, in order, and none lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from penstock.config import Catalog, load
from penstock.server.app import App
from tests.rig.serving import ROOT, serve_asgi
from tests.rig.upstream import Plain, Stream, Upstream, completion, text_stream, usage_of
from tests.server.gateway import NO_DRAIN, access_log, chat, gateway, gateway_process

BEGIN = """if True:
    import asyncio, logging, os, sys, threading, time
    from penstock.server.log import access, configure
    configure(sys.argv[1])
    log = logging.getLogger("penstock.server")
"""
FORGED = "small\n12:00:00 info    id=req_1 status=200"


def logged(code: str, form: str = "plain", code_is: int = 0) -> list[str]:
    """The lines that a process with this code leaves."""
    command = [sys.executable, "-c", BEGIN + code, form]
    variables = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, check=False, timeout=30)
    assert done.returncode == code_is, done.stderr.decode()
    return done.stderr.decode().splitlines()


def shown(values: Sequence[Any]) -> list[str]:
    """How the plain form shows values."""
    found = []
    for line in logged(f"    for value in {values!r}: access({{'model': value, 'end': 1}})\n"):
        said = re.fullmatch(r"\d\d:\d\d:\d\d info    model=(.*) end=1", line)
        assert said, line
        found.append(said[1])
    return found


def test_a_value_that_could_forge_a_line_is_quoted() -> None:
    values = [
        FORGED,
        "a b",
        "a=b",
        'a"b',
        "a'b",
        "a\tb",
        "a\rb",
        "a\u2028b",
        "a\x1b[31mb",
        "a\u202eb",
        "a\x00b",
        "a\xa0b",
    ]
    assert shown(values) == [repr(value) for value in values]


def test_other_values_stand_as_they_are() -> None:
    values = ["org/Small-7B_v1:free@x", "größe", 3, 4.5, True]
    assert shown(values) == [str(value) for value in values]


def test_long_values_are_cut() -> None:
    assert shown(["x" * 200, "x" * 201]) == ["x" * 200, "x" * 200 + "..."]
    (line,) = logged("    access({'model': 'x' * 9999, 'by': None, 'in': 5})\n", "json")
    said = json.loads(line)
    assert (said["model"], said["in"], "by" in said) == ("x" * 200 + "...", 5, False)


async def test_a_model_name_cannot_forge_a_line_of_the_server(upstream: Upstream) -> None:
    with gateway_process(upstream, server=NO_DRAIN) as served:
        assert served.post(chat(stream=False) | {"model": FORGED}).status_code == 404
        assert served.process is not None
        assert served.process.terminate() == 0
        lines = [line for line in served.process.stderr().splitlines() if " id=req_" in line]
    assert len(lines) == 1
    assert f"model={FORGED!r}" in lines[0]


async def test_what_went_wrong_on_the_way_is_logged(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text(
        "models:\n"
        f"  - {{name: fast, llm: openai:m, base_url: {upstream.base_url!r}, fallback: [spare], faults: 503 always,\n"
        "     retry: {attempts: 3, base_s: 0.001}}\n"
        "  - {name: spare, llm: demo}\n"
    )
    app = App(Catalog(load(str(tmp_path / "penstock.yaml"), {}), {}))
    with access_log() as log, serve_asgi(app) as base_url:
        body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}]}
        async with httpx.AsyncClient() as client:
            assert (await client.post(f"{base_url}/v1/chat/completions", json=body)).status_code == 200
        fields = await log.row()
    assert (fields["llm"], fields["retries"]) == ("demo:penstock-demo", 2)
    assert fields["switched"] == "to spare after Unavailable"


def words(lines: list[str]) -> list[str]:
    return [line.split(": ")[1] for line in lines if ": " in line]


def test_a_warning_does_not_overtake() -> None:
    code = """
    async def main():
        log.info("one"); log.info("two"); log.warning("three"); log.info("four"); log.error("five")
        os._exit(0)
    asyncio.run(main())
    """
    assert words(logged(code)) == ["one", "two", "three", "four", "five"]


def test_lines_are_written_soon() -> None:
    code = """
    async def main():
        log.info("one"); log.warning("two"); log.info("three")
        await asyncio.sleep(0.15)
        log.info("four")
        await asyncio.sleep(0.15)
        os._exit(0)
    asyncio.run(main())
    """
    assert words(logged(code)) == ["one", "two", "three", "four"]


def test_lines_of_a_loop_that_crashed_are_written() -> None:
    code = """
    async def main():
        log.info("one")
        raise SystemExit(3)
    asyncio.run(main())
    """
    assert words(logged(code, code_is=3)) == ["one"]


def test_lines_that_a_loop_left_do_not_hold_up_what_follows() -> None:
    code = """
    async def first():
        log.info("one")
    async def second():
        log.info("two")
        await asyncio.sleep(0.3)
        log.info("three")
    asyncio.run(first())
    asyncio.run(second())
    log.info("four")
    os._exit(0)
    """
    assert words(logged(code)) == ["one", "two", "three", "four"]


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    code = """
    kept = os.dup(2)
    there, here = os.pipe()
    os.dup2(here, 2); os.close(here); os.close(there)
    log.warning("into the void")
    access({"status": 200})
    os.write(kept, b": went on\\n")
    os._exit(0)
    """
    assert words(logged(code)) == ["went on"]


def test_no_line_of_a_thread_is_lost() -> None:
    code = """
    sys.setswitchinterval(1e-6)
    def write(name):
        for number in range(2000):
            log.info("%s-%d", name, number)
    async def main():
        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads: thread.start()
        while any(thread.is_alive() for thread in threads):
            log.info("loop")
            for handler in logging.getLogger().handlers: handler.flush()
            await asyncio.sleep(0)
    asyncio.run(main())
    """
    lines = [line for line in words(logged(code)) if line != "loop"]
    assert len(lines) == len(set(lines)) == 6000


def test_row_a16_money_is_exact_in_json_and_short_in_a_plain_line() -> None:
    facts = "{'usd': Decimal('0.000000123450'), 'no': None, 'free': Decimal('0E-6')}"
    line = f"    from decimal import Decimal\n    access({facts})\n"
    (told,) = (json.loads(row) for row in logged(line, "json"))
    assert (told["usd"], told["free"], "no" in told) == ("0.00000012345", "0", False)
    (plain,) = logged(line)
    assert plain.endswith("info    usd=0.000000123 free=0")


async def test_row_a16_a_request_s_line_says_what_it_cost(upstream: Upstream) -> None:
    usage = usage_of(40, 12)
    upstream.script(
        Stream(text_stream("Hello", usage=usage)), Plain(completion("Hello", usage=usage)), Plain(completion("Hi"))
    )
    with gateway(upstream, model={"llm": "openai:gpt-5-mini"}) as served, access_log() as log:
        for stream in (True, False):
            assert served.post(chat(stream=stream)).status_code == 200
    with gateway(upstream, model={"llm": "openai:unheard-of"}) as served, access_log() as unpriced:
        assert served.post(chat(stream=False)).status_code == 200
    assert [row["cost_usd"] for row in log.rows] == [Decimal("0.000034")] * 2
    assert [row["cost_usd"] for row in unpriced.rows] == [None]
