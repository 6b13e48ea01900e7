"""What a spec of an HTTP tool may say, and the requests that its plan makes of arguments."""

from __future__ import annotations

import json
from datetime import date
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from yarl import URL

from penstock.errors import BadArguments
from penstock.tools.http.mapping import Plan
from penstock.tools.http.spec import HttpToolSpec

WORDS = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}}


def spec(**fields: Any) -> HttpToolSpec:
    said = {"tool_name": "t", "base_url": "https://api.example", "parameters": WORDS, **fields}
    return HttpToolSpec.model_validate(said)


SECRETS = ["Authorization", "x-goog-api-key", "Private-Token", "apikey", "X-Vault-Token", "Ocp-Apim-Subscription-Key"]
SECRETS += ["x-client-secret", "X-Auth-Email", "Set-Cookie2", "x-password", "X-Amz-Credential"]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another scheme": ({"base_url": "ftp://api.example"}, "http://host"),
    "no host": ({"base_url": "https:///x"}, "http://host"),
    "a user in the address": ({"base_url": "https://me:hush@api.example"}, "holds a user or a key"),
    "a query in the address": ({"base_url": "https://api.example?key=hush"}, "put a query into query"),
    "a template in the address": ({"base_url": "https://{a}.example"}, "arguments into path"),
    "a secret in the address": ({"base_url": "https://api.example/${KEY}"}, "arguments into path"),
    "dots in the address": ({"base_url": "https://api.example/x/../y"}, "no . or .. segments"),
    "a path without a slash": ({"path": "x"}, "begins with a slash"),
    "a query in the path": ({"path": "/x?a={a}"}, "put a query into query"),
    "a fragment in the path": ({"path": "/x#a"}, "put a query into query"),
    "encoded dots in the path": ({"path": "/x/%2e%2E/y"}, "no . or .. segments"),
    "a secret in the path": ({"path": "/x/${KEY}"}, "path holds a secret"),
    "a secret in the query": ({"query": {"key": "${KEY}"}}, "query holds a secret"),
    "a secret in the body": ({"method": "POST", "body": {"x": [{"key": "${KEY}"}]}}, "body holds a secret"),
    **{f"an open secret in {name}": ({"headers": {name: "hush"}}, "write ${NAME}") for name in SECRETS},
    "a secret beside an argument": ({"headers": {"x-both": "${KEY} {a}"}}, "mixes a secret with arguments"),
    "a header that is no name": ({"headers": {"x y": "1"}}, "not a header's name"),
    "a header with a line break": ({"headers": {"x-y": "1\r\nz: 2"}}, "line break"),
    "the host header": ({"headers": {"Host": "{a}"}}, "belongs to the connection"),
    "a framing header": ({"headers": {"Transfer-Encoding": "chunked"}}, "belongs to the connection"),
    "an unknown name": ({"path": "/{nobody}"}, "no parameter is called 'nobody'"),
    "an unknown name in a body": ({"method": "PUT", "body": {"x": ["{nobody}"]}}, "no parameter is called 'nobody'"),
    "an unused name": ({"method": "POST", "body": {"x": "{a}"}, "path": "/{b}"}, "'c' is used in no path"),
    "a broken template": ({"path": "/{a"}, "expected '}'"),
    "a template with a format": ({"path": "/{a:>10}"}, "is not a template"),
    "a template without a name": ({"path": "/{}"}, "is not a template"),
    "a body where there is none": ({"body": {"a": "{a}", "b": "{b}", "c": "{c}"}}, "GET has no body"),
    "too many redirects": ({"max_redirects": 6}, "less than or equal to 5"),
    "no bytes": ({"max_response_bytes": 0}, "greater than or equal to 1"),
    "an unknown method": ({"method": "TRACE"}, "Input should be"),
    "an unknown field": ({"pathh": "/x"}, "Extra inputs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_spec_that_cannot_be_right_is_refused(case: str) -> None:
    fields, reason = WRONG[case]
    with pytest.raises(ValidationError) as wrong:
        spec(**fields)
    assert reason in str(wrong.value)
    assert "hush" not in str(wrong.value)


def test_row_b9_arguments_go_where_the_spec_puts_them() -> None:
    plan = Plan(
        spec(
            base_url="https://api.example/base/",
            method="POST",
            path="/v1/{a}/it:{a}",
            query={"q": "{b}", "both": "{a}-{b}", "fixed": "a b", "flag": True},
            headers={"X-Who": "me {a}"},
            body={"deep": [{"typed": "{c}", "text": "c={c}", "plain": "{{c}}", "one": 1}]},
        )
    )
    args = {"a": "x", "b": [1, 2], "c": 2.5}
    assert plan.url(args) == "https://api.example/base/v1/x/it:x?q=1&q=2&both=x-%5B1%2C2%5D&fixed=a%20b&flag=true"
    assert plan.headers(args) == {"x-who": "me x"}
    body = plan.body(args)
    assert body is not None
    assert json.loads(body) == {"deep": [{"typed": 2.5, "text": "c=2.5", "plain": "{c}", "one": 1}]}


def test_row_b9_what_is_used_nowhere_else_is_the_body_or_the_query() -> None:
    args = {"a": "x", "b": None, "c": {"d": [1]}}
    post = Plan(spec(method="POST", path="/{a}"))
    assert (post.url(args), post.body(args)) == ("https://api.example/x", b'{"b":null,"c":{"d":[1]}}')
    form = Plan(spec(method="PUT", path="/{a}", body_type="form"))
    assert form.body({**args, "c": "d e&f"}) == b"c=d%20e%26f"
    assert (form.content_type, post.content_type) == ("application/x-www-form-urlencoded", "application/json")
    get = Plan(spec(path="/{a}"))
    assert (get.url(args), get.body(args)) == ("https://api.example/x?c=%7B%22d%22%3A%5B1%5D%7D", None)


def test_absent_arguments_leave_their_entries_out() -> None:
    fields = {"query": {"q": "{a}", "r": "x{a}"}, "headers": {"x-a": "{a}"}}
    plan = Plan(spec(method="PATCH", body={"a": "{a}", "list": ["{a}", "{b}"], "text": "-{c}"}, **fields))
    assert plan.url({"b": 1}) == "https://api.example"
    assert plan.headers({"a": None}) == {}
    assert plan.body({"a": None, "b": 1}) == b'{"list":[1]}'


def test_typed_values_are_written_as_in_json() -> None:
    plan = Plan(spec(path="/{a}", query={"b": "{b}"}))
    assert plan.url({"a": date(2030, 1, 2), "b": False}) == "https://api.example/2030-01-02?b=false"


HOSTILE = [
    "../admin",
    "..%2fadmin",
    "a/b",
    "a\\b",
    "?key=1",
    "#frag",
    "%2f",
    "%252e%252e",
    "//evil.example/",
    "http://evil.example",
    "@evil.example",
    ":80",
    "a b",
    "\r\nx: y",
    "\0",
    "é\u202e",
    ";jsession=1",
    "&x=1",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_case_24_an_argument_stays_one_segment_and_one_value(value: str) -> None:
    _stays(value)


@given(st.text())
def test_case_24_any_text_stays_in_its_place(value: str) -> None:
    _stays(value)


def _stays(value: str) -> None:
    plan = Plan(spec(path="/v1/{a}/end", query={"b": "{b}"}))
    url = plan.url({"a": f"x{value}", "b": value, "c": value})
    assert str(URL(url, encoded=True)) == url
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "api.example", "")
    assert [unquote(segment) for segment in parts.path.split("/")] == ["", "v1", f"x{value}", "end"]
    assert parse_qsl(parts.query, keep_blank_values=True) == [("b", value), ("c", value)]


@pytest.mark.parametrize("value", ["..", ".", "", "\ud800"])
def test_case_24_what_makes_no_segment_is_refused(value: str) -> None:
    with pytest.raises(BadArguments) as wrong:
        Plan(spec(path="/v1/{a}")).url({"a": value})
    assert wrong.value.details[0]["path"] == "a"


def test_case_24_dots_in_two_arguments_are_seen_together() -> None:
    with pytest.raises(BadArguments):
        Plan(spec(path="/v1/{a}{b}/x")).url({"a": ".", "b": "."})
    with pytest.raises(BadArguments):
        Plan(spec(path="/v1/{a}")).url({})


def test_case_24_half_a_character_is_refused_in_a_query() -> None:
    with pytest.raises(BadArguments, match="'a' holds half"):
        Plan(spec()).url({"a": "\ud800"})


@pytest.mark.parametrize("value", ["1\r\nset-cookie: x", "1\n2", "\0", "\x7f", "\r"])
def test_case_24_a_header_cannot_be_split(value: str) -> None:
    plan = Plan(spec(headers={"x-a": "{a}"}))
    with pytest.raises(BadArguments, match="control character"):
        plan.headers({"a": value})


def test_case_25_a_secret_is_a_reference_in_the_spec() -> None:
    made = spec(headers={"Authorization": "Bearer ${PENSTOCK_TEST_KEY}"})
    assert HttpToolSpec.model_validate_json(made.model_dump_json()) == made
    assert made.headers == {"Authorization": "Bearer ${PENSTOCK_TEST_KEY}"}
