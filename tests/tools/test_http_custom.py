"""HTTP tools that make their own requests: the worked examples, and what the base class does for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from penstock.errors import ToolFailed
from penstock.events import Text
from penstock.run import execute
from penstock.tools.http import BaseHttpExecutor, HttpToolSpec
from penstock.tools.http.answer import from_network
from penstock.tools.result import ToolContext, ToolRequest
from tests.rig.hostile import Seen, endless, hostile, said, to
from tests.tools.test_http import fault, spec


class GraphQl(BaseHttpExecutor):
    """Sends its arguments as the variables of one query."""

    async def _execute_http_request(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        client = await self._get_session()
        asked = {"query": "query($n: Int) { thing(n: $n) }", "variables": args}
        async with client.post(self.spec.base_url, json=asked) as answer:
            said = await answer.json()
        if said.get("errors"):
            raise ToolFailed("the query failed", code="graphql", details=said["errors"])
        return said["data"]


class Lines(BaseHttpExecutor):
    """Tells each line of an answer as it comes."""

    async def _execute_http_request(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> AsyncIterator[str]:
        client = await self._get_session()
        async with client.get(self.spec.base_url) as answer:
            async for line in answer.content:
                yield line.decode()


async def test_row_b5_a_custom_executor_makes_its_own_requests() -> None:
    async with hostile({"*": said(200, b'{"data": {"thing": 1}}', "application/json")}) as served:
        assert (await GraphQl(spec(served, names="n")).execute('{"n": 3}')).content == {"thing": 1}
        assert b'"variables": {"n": 3}' in served.seen[0].body
    async with hostile({"*": said(200, b'{"errors": ["no"]}', "application/json")}) as served:
        found = await fault(GraphQl(spec(served, names="n")), {"n": 3})
        assert (found.code, found.details) == ("graphql", ["no"])


async def test_row_b5_a_custom_executor_may_tell_pieces() -> None:
    told: list[str] = []
    async with hostile({"*": said(200, b"one\ntwo\n")}) as served:
        result = await execute(
            Lines(spec(served)),
            ToolRequest({}),
            lambda event: told.append(event.text) if isinstance(event, Text) else None,
        )
    assert (told, result.content) == (["one\n", "two\n"], "one\ntwo\n")


@pytest.mark.parametrize("kind", [GraphQl, Lines])
async def test_errors_of_the_client_become_errors_of_the_tool(kind: type[BaseHttpExecutor]) -> None:
    async def half(_: Seen) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\nhalf\n"

    async with hostile({"*": half}) as served:
        assert (await fault(kind(spec(served)))).code == "connection_lost"
        repeatable = await fault(kind(spec(served, idempotency={"safe": True})))
        assert repeatable.retryable
        assert not (await fault(kind(spec(served)))).retryable
    assert (await fault(kind(spec(served.url)))).code == "unreachable"


async def test_case_22_a_custom_executor_is_under_the_same_policy() -> None:
    async with hostile({"*": said(200)}) as inner, hostile({"*": to(inner.url)}) as outer:
        assert (await fault(Lines(spec(outer)))).code == "address_denied"
        assert (await fault(Lines(spec(outer, allow_private=False)))).code == "address_denied"
        assert (inner.connections, outer.connections) == (0, 1)


async def test_case_21_a_stream_without_end_stops_at_the_limit() -> None:
    class Blocks(BaseHttpExecutor):
        async def _execute_http_request(
            self, args: dict[str, Any], ctx: ToolContext, timeout: float
        ) -> AsyncIterator[str]:
            client = await self._get_session()
            async with client.get(self.spec.base_url) as answer:
                async for block in answer.content.iter_any():
                    yield block.decode()

    async with hostile({"*": endless()}) as served:
        result = await Blocks(spec(served, max_result_bytes=20_000)).execute({})
        await served.left.wait()
    assert len(result.content) < 20_100
    assert result.warnings


async def test_case_25_an_executor_of_ones_own_sends_the_headers_of_its_spec() -> None:
    class Asking(BaseHttpExecutor):
        async def _execute_http_request(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
            session = await self._get_session()
            async with session.get(self.spec.base_url, headers=self._get_headers(args, ctx)) as answer:
                return answer.status

    async with hostile({"*": said(200)}) as served:
        about = HttpToolSpec(
            tool_name="it",
            parameters={},
            base_url=served.url,
            allow_private=True,
            headers={"x-key": "Bearer ${OWN_KEY}"},
        )
        tool = Asking(about, env={"OWN_KEY": "k-canary-0123456789"})
        assert (await tool.execute({})).content == 200
        assert served.seen[0].headers["x-key"] == "Bearer k-canary-0123456789"
    assert "canary" not in repr(vars(tool))


async def test_an_executor_without_a_request_says_what_to_define() -> None:
    assert "_execute_http_request" in (await fault(BaseHttpExecutor(spec("https://api.example")))).message


def test_every_error_of_the_client_has_a_row() -> None:
    kinds = {kind for name in aiohttp.__all__ if _is_kind(kind := getattr(aiohttp, name), aiohttp.ClientError)}
    rowless = {kind.__name__ for kind in kinds if from_network(_made(kind), safe=True).code == "bad_answer"}
    assert rowless == {
        "ClientError",
        "ClientHttpProxyError",
        "ClientResponseError",
        "ContentTypeError",
        "RedirectClientError",
        "TooManyRedirects",
        "UploadAbortedError",
        "WSServerHandshakeError",
    }


def _is_kind(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _made(kind: type[aiohttp.ClientError]) -> aiohttp.ClientError:
    key = aiohttp.client_reqrep.ConnectionKey("x", 1, False, True, None, None, None)
    if issubclass(kind, aiohttp.ClientConnectorCertificateError):
        return kind(key, OSError("certificate"))
    if issubclass(kind, aiohttp.ClientConnectorError):
        return kind(key, OSError(1, "refused"))
    return kind.__new__(kind)
