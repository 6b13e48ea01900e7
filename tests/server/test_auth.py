"""Who may call: tokens, scopes and origins."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from penstock.errors import Forbidden, Unauthenticated
from penstock.run import LOCAL, Principal
from penstock.server.auth import Auth, Token, demand, hash_of, new_token
from tests.rig.upstream import Upstream
from tests.server.gateway import MESSAGES, Gateway, access_log, chat, error_of, gateway

ALICE, BOB, ROOT = "pk-alice-secret-token", "pk-bob-secret-token", "pk-root-secret-token"
TOKENS: list[dict[str, Any]] = [
    {"name": "alice", "hash": hash_of(ALICE), "scopes": ["chat"]},
    {"name": "bob", "value": BOB, "scopes": ["tools"]},
    {"name": "root", "value": ROOT, "scopes": ["admin"]},
]
GUARDED = [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/models"), ("GET", "/v1/models/rig")]


@pytest.fixture
def served(upstream: Upstream) -> Iterator[Gateway]:
    with gateway(upstream, tokens=TOKENS) as found:
        yield found


def call(served: Gateway, method: str, path: str, **headers: str) -> Any:
    return served.post(chat(stream=False), path=path, **headers) if method == "POST" else served.get(path, **headers)


def test_row_a17_without_a_known_token_nothing_is_served(served: Gateway, upstream: Upstream) -> None:
    given = ["", "Bearer", "Bearer pk-wrong", f"Basic {ALICE}", ALICE, f"Bearer {ALICE}x", f"Bearer {ALICE[:-1]}"]
    given += [f"Bearer {hash_of(ALICE)}", f"Bearer {ALICE} {ALICE}"]
    for method, path in GUARDED:
        for header in [None, *given]:
            answer = call(served, method, path, **({} if header is None else {"authorization": header}))
            assert answer.status_code == 401, (path, header)
            assert answer.headers["www-authenticate"] == "Bearer"
            error = error_of(answer)
            assert error["type"] == "authentication_error"
            assert error["code"] in {"missing_token", "invalid_api_key"}
            assert ALICE not in answer.text
    assert upstream.chats == []


def test_row_a17_a_token_without_the_scope_is_403(served: Gateway, upstream: Upstream) -> None:
    for method, path in GUARDED:
        answer = call(served, method, path, authorization=f"Bearer {BOB}")
        assert answer.status_code == 403, path
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
        assert "'chat'" in error["message"]
    assert upstream.chats == []


@pytest.mark.parametrize("token", [ALICE, ROOT])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_row_a17_a_token_with_the_scope_is_served_and_admin_implies_all(
    token: str, scheme: str, served: Gateway, upstream: Upstream
) -> None:
    for method, path in GUARDED:
        assert call(served, method, path, authorization=f"{scheme} {token}").status_code == 200, path
    assert token not in str(upstream.chats[0].headers)


def test_row_a17_the_sdk_reads_the_refusals(served: Gateway) -> None:
    for token, kind in ((BOB, openai.PermissionDeniedError), ("x", openai.AuthenticationError)):
        with (
            pytest.raises(kind),
            openai.OpenAI(base_url=f"{served.url}/v1", api_key=token, max_retries=0) as client,
        ):
            client.chat.completions.create(model="rig", messages=MESSAGES)


def test_row_a17_health_and_the_pages_need_no_token(served: Gateway) -> None:
    for path in ("/health", "/ready", "/docs", "/openapi.json", "/"):
        assert served.get(path).status_code == 200, path


def test_row_a17_a_refusal_comes_before_the_body_is_looked_at(served: Gateway) -> None:
    assert served.post(b"{broken").status_code == 401


def test_row_a17_the_log_names_who_asked(served: Gateway) -> None:
    with access_log() as log:
        served.post(chat(), authorization=f"Bearer {ALICE}")
        served.post(chat(), authorization=f"Bearer {BOB}")
        served.post(chat())
    assert [row["by"] for row in log.rows] == ["alice", "bob", None]


def test_row_a17_without_tokens_everybody_is_local(upstream: Upstream) -> None:
    with access_log() as log, gateway(upstream) as served:
        served.post(chat())
        served.post(chat(), authorization="Bearer whatever")
    assert [row["by"] for row in log.rows] == ["local", "local"]
    assert Auth().principal(None) is LOCAL


def test_row_a17_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare: Callable[[bytes, bytes], bool] = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    auth = Auth([Token(hash_of(f"pk-{n}"), Principal(f"p{n}")) for n in range(5)])
    assert auth.principal(b"Bearer pk-0").name == "p0"
    assert len(compared) == 5
    with pytest.raises(Unauthenticated):
        auth.principal(b"Bearer pk-9")
    assert len(compared) == 10
    assert not any(b"pk-" in part for pair in compared for part in pair)


def test_row_a17_a_new_token_is_long_and_only_its_hash_is_known() -> None:
    made = [new_token() for _ in range(50)]
    assert len({token for token, _ in made}) == 50
    for token, hashed in made:
        assert len(token) >= 40
        assert Auth([Token(hashed, Principal("p"))]).principal(f"Bearer {token}".encode()).name == "p"
        assert token not in repr(Token(hashed, Principal("p")))


def test_row_a17_a_scope_is_demanded() -> None:
    demand(Principal("p", scopes=frozenset({"admin"})), "tools")
    demand(Principal("p", scopes=frozenset({"tools"})), "tools")
    with pytest.raises(Forbidden, match="'tools'"):
        demand(Principal("p", scopes=frozenset({"chat"})), "tools")


@pytest.mark.parametrize("listed", [["https://app.example.com"], ["*"]])
def test_an_allowed_origin_may_ask(listed: list[str], upstream: Upstream) -> None:
    origin = "https://app.example.com"
    expected = "*" if listed == ["*"] else origin
    with gateway(upstream, server={"cors_origins": listed}, tokens=TOKENS) as served:
        for path in ("/v1/chat/completions", "/v1/models"):
            asked = {"origin": origin, "access_control_request_method": "POST"}
            before = served.get(path, "OPTIONS", **asked, access_control_request_headers="authorization,x-a")
            assert before.status_code == 204
            assert before.headers["access-control-allow-origin"] == expected
            assert "POST" in before.headers["access-control-allow-methods"]
            assert before.headers["access-control-allow-headers"] == "authorization,x-a"
        authorized = {"origin": origin, "authorization": f"Bearer {ALICE}"}
        answers = [
            served.post(chat(), **authorized),
            served.post(chat(stream=False), **authorized),
            served.post(b"{", **authorized),
            served.post(chat(), origin=origin),
            served.get("/v1/models", **authorized),
            served.get("/nothing", origin=origin),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400, 401, 200, 404]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == expected
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert answer.headers["vary"] == "Origin"


def test_another_origin_may_not(upstream: Upstream) -> None:
    with gateway(upstream, server={"cors_origins": ["https://app.example.com"]}) as served:
        evil = {"origin": "https://evil.example.com"}
        answer = served.get("/v1/chat/completions", "OPTIONS", **evil, access_control_request_method="POST")
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-methods" not in answer.headers
        assert "access-control-allow-origin" not in served.post(chat(), **evil).headers
