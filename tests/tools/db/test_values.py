"""What databases give, as JSON carries it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tools.db.values import bound, distinct, number, plain, rows_of


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (Decimal("5.50"), 5.5),
        (Decimal(5), 5),
        (Decimal("1E+3"), 1000),
        (Decimal("1E+4000"), Decimal("1E+4000")),
        (Decimal("0.1234567890123456789"), Decimal("0.1234567890123456789")),
        (Decimal("-Infinity"), "-infinity"),
        (Decimal("NaN"), "nan"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1, microseconds=500_000), "PT86400.5S"),
        (timedelta(seconds=-90), "PT-90S"),
        (b"\x00\xff", "AP8="),
        (bytearray(b"a"), "YQ=="),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"a": (1, {2})}, {"a": [1, [2]]}),
        (range(2), "range(0, 2)"),
    ],
)
def test_values_are_what_json_carries(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert msgspec.json.encode(found)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12))
def test_a_number_never_loses_a_digit(value: Decimal) -> None:
    found = number(value)
    assert Decimal(repr(found) if isinstance(found, float) else found) == value


def test_columns_of_one_name_are_told_apart() -> None:
    assert distinct(["a", "a", "b", "a", "a_2"]) == ["a", "a_2", "b", "a_3", "a_2_2"]
    assert rows_of(["a", "a"], [(1, b"x")]) == [{"a": 1, "a_2": "eA=="}]


def test_arguments_are_bound_as_sql_has_them() -> None:
    assert [bound(one) for one in (1, "x", None, 1.5, b"x", True)] == [1, "x", None, 1.5, b"x", True]
    assert bound([1, {"a": "é"}]) == '[1,{"a":"é"}]'
    assert bound({"a": date(2026, 1, 2)}) == '{"a":"2026-01-02"}'
    assert bound(date(2026, 1, 2)) == "2026-01-02"
