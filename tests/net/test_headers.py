"""What headers say of waiting and of a body."""

from __future__ import annotations

from email.utils import formatdate
from time import time

import pytest

from penstock.net.headers import media_type, retry_after


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), (" 0.5 ", 0.5), ("", None), (None, None), ("soon", None)])
def test_seconds_to_wait_are_read(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_a_date_to_wait_for_is_read() -> None:
    wait = retry_after(formatdate(time() + 60, usegmt=True))
    assert wait is not None
    assert 55 < wait < 61
    assert retry_after(formatdate(time() - 60, usegmt=True)) == 0


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Application/JSON", ("application/json", None)),
        ('text/plain; x=1; Charset="Latin-1"', ("text/plain", "Latin-1")),
        ("text/plain; charset=", ("text/plain", None)),
        (None, ("", None)),
    ],
)
def test_a_content_type_is_read(value: str | None, found: tuple[str, str | None]) -> None:
    assert media_type(value) == found
