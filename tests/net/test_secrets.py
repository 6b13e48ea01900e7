"""Secrets: shown to their own host, and to nothing and nobody else."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.net import Secret, origin_of
from penstock.net.secrets import variables

KEY = "sk-canary-4f9a7c1e2b"
SECRET = Secret(KEY, origin="https://api.example.com/v1")


@pytest.mark.parametrize(
    "url", ["https://api.example.com/v1/x", "https://api.example.com:443", "HTTPS://API.example.com/"]
)
def test_case_23_the_key_is_shown_to_its_own_host(url: str) -> None:
    assert SECRET.reveal(url) == KEY


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
        "https://api.example.com.evil.test/v1",
        "https://example.com/v1",
        "https://api.example.com@evil.test/v1",
        "https://evil.test/?https://api.example.com",
        "",
    ],
)
def test_case_23_the_key_is_not_shown_to_another_scheme_host_or_port(url: str) -> None:
    with pytest.raises(UsageError, match=r"belongs to 'https://api\.example\.com:443'") as raised:
        SECRET.reveal(url)
    assert KEY[:8] not in repr(raised.value)


def test_case_25_printing_and_formatting_show_nothing() -> None:
    text = f"{SECRET} {SECRET!r} {[SECRET]} {SECRET!s:>20}" + "%s %r" % (SECRET, {"key": SECRET})  # noqa: UP031
    assert "Secret('***')" in text
    assert not any(KEY[at : at + 4] in text for at in range(len(KEY) - 3))


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy])
def test_case_25_it_is_not_pickled(copying: type) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        copying(SECRET)


@given(before=st.text(max_size=30), after=st.text(max_size=30), start=st.integers(0, 12), end=st.integers(0, 20))
def test_case_25_any_eight_characters_are_removed(before: str, after: str, start: int, end: int) -> None:
    said = before + KEY[start:end] + after + KEY
    clean = SECRET.scrub(said)
    assert not any(KEY[at : at + 8] in clean for at in range(len(KEY) - 7))
    assert "***" in clean


@given(text=st.text(max_size=60))
def test_what_holds_no_key_is_not_changed(text: str) -> None:
    assert SECRET.scrub(text) == text


def test_what_stands_beside_the_key_stays() -> None:
    assert SECRET.scrub(f"key {KEY}, twice {KEY}{KEY}!") == "key ***, twice ***!"


def test_an_empty_key_removes_nothing() -> None:
    assert Secret("", origin="http://x").scrub("abc") == "abc"


def test_a_short_key_is_removed_whole() -> None:
    assert Secret("abc", origin="http://x").scrub("abc ab abcabc") == "*** ab ******"


@pytest.mark.parametrize("value", ["sk-1234567890\n", "sk-12345678\r\nx-evil: 1", "sk-12345678…", "sk-\x7f12345678"])
def test_case_24_a_key_that_no_header_can_carry_is_refused_unseen(value: str) -> None:
    with pytest.raises(UsageError, match="copy it again") as raised:
        Secret(value, origin="http://x")
    assert "12345678" not in repr(raised.value)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://a.test/v1?x#y", "https://a.test:443"),
        ("http://A.test", "http://a.test:80"),
        ("http://a.test:8080/", "http://a.test:8080"),
        ("http://[::1]:80/", "http://::1:80"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_a_look_up_of_variables_shows_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "k-canary-1234\n")
    for look_up in (variables(), variables({"SOME_KEY": "k-canary-1234"})):
        assert (look_up("SOME_KEY"), look_up("NO_KEY")) == ("k-canary-1234", "")
        assert "canary" not in f"{look_up!r} {vars(look_up)}"
