"""The shared session on real sockets: where it connects, what it keeps, and that it ends with its loop."""

from __future__ import annotations

import asyncio
import gc
import resource
import subprocess
import sys

import aiohttp
import pytest

from penstock.errors import Denied
from penstock.net import open_session, session
from penstock.net.session import _sessions
from tests.rig.hostile import Names, bomb, hostile, said, to

FORMS = [
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "0.0.0.0",
    "localhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "127.0.0.1.",
    "１２７.0.0.1",  # noqa: RUF001  # full-width digits: what a name becomes is judged too
]


@pytest.mark.parametrize("host", FORMS)
async def test_case_22_no_connection_is_opened_to_a_private_address_in_any_form(host: str) -> None:
    async with hostile({"*": said(200)}) as served:
        shared = await session()
        with pytest.raises(Denied):
            await shared.get(f"http://{host}:{served.port}/")
        assert served.connections == 0


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "::1"], ["10.0.0.1", "127.0.0.1", "fe80::1"]])
async def test_case_22_a_name_of_private_addresses_is_refused(addresses: list[str]) -> None:
    async with hostile({"*": said(200)}) as served:
        async with open_session(resolver=Names({"tool.example": [addresses]})) as own:
            with pytest.raises(Denied, match=r"'tool\.example' leads to"):
                await own.get(f"http://tool.example:{served.port}/")
        assert served.connections == 0


@pytest.mark.parametrize("host", [*FORMS, "localhost.", "printer.example"])
async def test_case_22_a_redirect_to_a_private_address_is_refused(host: str) -> None:
    async with hostile({"*": said(200)}) as inner, hostile({"/": to(f"http://{host}:{inner.port}/")}) as outer:
        async with open_session(f"http://tool.example:{outer.port}", resolver=_names(host)) as own:
            with pytest.raises(Denied):
                await own.get(f"http://tool.example:{outer.port}/")
        assert (outer.connections, inner.connections) == (1, 0)


def _names(host: str) -> Names:
    """The tool's own name, and what the system would make of the other one."""
    return Names({"tool.example": [["127.0.0.1"]], host: [["127.0.0.1"]], host.rstrip("."): [["127.0.0.1"]]})


async def test_case_22_an_origin_that_was_opened_is_reached_and_no_other() -> None:
    async with hostile({"*": said(200, b"in")}) as served, hostile({"*": said(200)}) as other:
        async with (await session(served.url)).get(f"{served.url}/x") as answer:
            assert await answer.read() == b"in"
        opened = await session(served.url)
        for url in (other.url, f"http://localhost:{served.port}", f"https://127.0.0.1:{served.port}"):
            with pytest.raises(Denied):
                await opened.get(url)
        with pytest.raises(Denied):
            await (await session(other.url)).get(served.url)
        assert (served.connections, other.connections) == (1, 0)


async def test_case_22_a_kept_connection_is_not_lent_to_who_may_not_open_it() -> None:
    async with hostile({"*": said(200, b"in")}) as served:
        async with (await session(served.url)).get(served.url) as answer:
            await answer.read()
        with pytest.raises(Denied):
            await (await session()).get(served.url)
        async with (await session(served.url)).get(served.url) as answer:
            await answer.read()
        assert served.connections == 1


async def test_case_22_a_name_that_changes_its_address_is_judged_again() -> None:
    names = Names({"tool.example": [["127.0.0.1"], ["169.254.169.254"]]})
    async with hostile({"*": said(200, b"in", connection="close")}) as served:
        url = f"http://tool.example:{served.port}/"
        async with open_session(url, resolver=names) as own:
            async with own.get(url) as answer:
                assert await answer.read() == b"in"
            assert isinstance(own.connector, aiohttp.TCPConnector)
            own.connector.clear_dns_cache()
            with pytest.raises(Denied, match="cloud metadata"):
                await own.get(url)
        assert names.asked == ["tool.example", "tool.example"]
        assert served.connections == 1


async def test_case_22_the_address_that_was_judged_is_the_one_that_is_connected_to() -> None:
    names = Names({"tool.example": [["127.0.0.1"], ["127.0.0.2"]]})
    async with hostile({"*": said(200, b"in")}) as served:
        url = f"http://tool.example:{served.port}/"
        async with open_session(url, resolver=names) as own, own.get(url) as answer:
            assert await answer.read() == b"in"
        assert names.asked == ["tool.example"]


async def test_a_public_address_beside_a_private_one_is_still_tried() -> None:
    names = Names({"tool.example": [["127.0.0.1", "::ffff:0:1"]]})
    async with open_session("http://tool.example:1", resolver=names) as own:
        with pytest.raises(aiohttp.ClientConnectorError) as failed:  # port 1 is closed, the other address refused
            await own.get("http://tool.example:1/")
    assert "not public" in str(failed.value.os_error)
    assert "127.0.0.1" in str(failed.value.os_error)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hostile({"*": said(200, b"proxied")}) as proxy, hostile({"*": said(200, b"direct")}) as served:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with (await session(served.url)).get(served.url) as answer:
            assert await answer.read() == b"direct"
        assert proxy.connections == 0


async def test_cookies_are_not_kept() -> None:
    async with hostile({"*": said(200, set_cookie="who=me; Path=/")}) as served:
        for _ in range(2):
            async with (await session(served.url)).get(served.url) as answer:
                await answer.read()
        assert [request.headers.get("cookie") for request in served.seen] == [None, None]


async def test_case_21_a_compressed_bomb_does_not_fill_memory() -> None:
    async with hostile({"*": bomb(200_000_000)}) as served:
        shared = await session(served.url)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with shared.get(served.url) as answer:
            await answer.content.read(1000)
            await asyncio.sleep(0.1)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000  # KiB


async def test_one_loop_has_one_session_for_each_origin() -> None:
    assert await session() is await session()
    assert await session("http://127.0.0.1:8000/a") is await session("http://127.0.0.1:8000/b")
    assert await session() is not await session("http://127.0.0.1:8000")
    first = await session()
    await first.close()
    assert await session() is not first


def test_sessions_end_with_their_loop() -> None:
    async def use() -> aiohttp.ClientSession:
        async with hostile({"*": said(200, b"in")}) as served:
            shared = await session(served.url)
            async with shared.get(served.url) as answer:
                await answer.read()
            return shared

    known = len(_sessions._held)
    assert asyncio.run(use()).closed
    gc.collect()
    assert len(_sessions._held) == known


def test_importing_the_way_out_does_not_import_the_client() -> None:
    script = "import sys, penstock.net; sys.exit('aiohttp' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
