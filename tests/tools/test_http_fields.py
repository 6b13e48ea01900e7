"""Fields of `HttpToolSpec` as they show on the wire; what redirects, limits and addresses do is in `test_http.py`."""

from __future__ import annotations

from typing import Any

from tests.rig.hostile import Seen, hostile, said
from tests.tools.test_http import fault, tool


async def sent(args: dict[str, Any], **fields: Any) -> Seen:
    """The one request that a tool with these fields makes of these arguments."""
    async with hostile({"*": said(204)}) as served:
        about = {"base_url": f"{served.url}/base", "names": "abc", **fields}
        result = await tool(served, **about).execute(args)
        assert result.ok, result
        (request,) = served.seen
    return request


async def test_row_b9_base_url_method_and_path_say_where_a_request_goes() -> None:
    request = await sent({"a": "x/y"}, method="PUT", path="/items/{a}")
    assert (request.method, request.target) == ("PUT", "/base/items/x%2Fy")


async def test_row_b9_query_and_headers_are_sent_with_arguments_in_them() -> None:
    request = await sent({"a": 1, "b": "two"}, query={"page": "{a}", "fixed": True}, headers={"X-B": "b={b}"})
    assert request.target == "/base?page=1&fixed=true"
    assert request.headers["x-b"] == "b=two"


async def test_row_b9_body_and_body_type_say_what_is_sent_and_how() -> None:
    nested = await sent({"a": [1]}, names="a", method="POST", body={"deep": {"a": "{a}"}})
    assert (nested.headers["content-type"], nested.body) == ("application/json", b'{"deep":{"a":[1]}}')
    form = await sent({"a": "x y"}, names="a", method="POST", body={"to": "{a}"}, body_type="form")
    assert (form.headers["content-type"], form.body) == ("application/x-www-form-urlencoded", b"to=x%20y")


async def test_row_b9_expect_says_what_is_asked_for_and_how_it_is_read() -> None:
    async with hostile({"*": said(200, b"[1]", "application/json")}) as served:
        read = [(await tool(served, expect=expect).execute({})).content for expect in ("auto", "json", "text")]
        assert read == [[1], [1], "[1]"]
        assert [request.headers["accept"] for request in served.seen] == ["*/*", "application/json", "*/*"]


async def test_case_22_allow_private_opens_the_origin_of_the_tool() -> None:
    async with hostile({"*": said(200, b"[1]", "application/json")}) as served:
        assert (await tool(served, allow_private=True).execute({})).content == [1]
        assert (await fault(tool(served, allow_private=False))).code == "address_denied"
        assert len(served.seen) == 1


async def test_case_21_max_response_bytes_is_where_reading_stops() -> None:
    async with hostile({"*": said(200, b"x" * 500)}) as served:
        assert len((await tool(served, max_response_bytes=100).execute({})).content) == 100
        assert len((await tool(served, max_response_bytes=500).execute({})).content) == 500
