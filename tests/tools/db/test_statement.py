"""Declared statements: what is a parameter, what is not, and what is refused."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tools.db.statement import Dialect, read_statement

LEFT_ALONE: list[tuple[Dialect, str]] = [
    ("sqlite", "SELECT ':a'"),
    ("sqlite", "SELECT 'it''s :a'"),
    ("sqlite", 'SELECT ":a""b"'),
    ("sqlite", "SELECT `:a`"),
    ("sqlite", "SELECT [:a]"),
    ("sqlite", "SELECT x'00'"),
    ("postgresql", "SELECT 1::int, '1' :: text"),
    ("postgresql", "SELECT E'it\\':a'"),
    ("postgresql", "SELECT $$ :a $$"),
    ("postgresql", "SELECT $tag$ $$ :a $tag$"),
    ("postgresql", "SELECT a[1:2]"),
    ("postgresql", 'SELECT U&":a"'),
    ("postgresql", "SELECT '{}'::jsonb ? 'a', 1 @> 2"),
    ("mysql", "SELECT 'it\\':a'"),
    ("mysql", 'SELECT ":a\\""'),
    ("mysql", "SELECT `:a`"),
    ("mysql", "SELECT @x := 1"),
    ("mysql", "SELECT /*+ MAX_EXECUTION_TIME(5) */ 1"),
]


@pytest.mark.parametrize(("dialect", "text"), LEFT_ALONE)
def test_what_is_no_parameter_is_left_alone(dialect: Dialect, text: str) -> None:
    statement = read_statement(text, dialect)
    assert statement.names == ()
    assert statement.numbered("$") == text


@pytest.mark.parametrize(
    ("dialect", "comment"),
    [
        ("sqlite", "-- :a ; ' \n"),
        ("sqlite", "/* :a ; ' */"),
        ("sqlite", "/* :a never closed"),
        ("postgresql", "-- :a\n"),
        ("postgresql", "/* a /* :b */ ; :c */"),
        ("mysql", "# :a ;\n"),
        ("mysql", "-- :a\n"),
        ("mysql", "/* :a */"),
    ],
)
def test_comments_are_dropped(dialect: Dialect, comment: str) -> None:
    assert read_statement(f"SELECT 1 {comment}", dialect).numbered("$") == "SELECT 1"


def test_names_become_the_drivers_own_parameters() -> None:
    text = "SELECT :a, :b_2, :a WHERE x=:a;"
    assert read_statement(text, "postgresql").numbered("$") == "SELECT $1, $2, $1 WHERE x=$1"
    assert read_statement(text, "sqlite").numbered("?") == "SELECT ?1, ?2, ?1 WHERE x=?1"
    assert read_statement(text, "mysql").marked() == ("SELECT ?, ?, ? WHERE x=?", ("a", "b_2", "a", "a"))
    assert read_statement("SELECT :a::int", "postgresql").numbered("$") == "SELECT $1::int"


@pytest.mark.parametrize(
    ("dialect", "text", "said"),
    [
        ("sqlite", "SELECT 1; SELECT 2", "one statement only"),
        ("postgresql", "SELECT 1; -- x\n ; DROP TABLE t", "one statement only"),
        ("sqlite", "SELECT ?", "write :name"),
        ("sqlite", "SELECT @a", "write :name"),
        ("sqlite", "SELECT $a", "write :name"),
        ("postgresql", "SELECT $1", "write :name"),
        ("mysql", "SELECT ?", "write :name"),
        ("mysql", "SELECT 1 /*!50000 , 2 */", "a comment that runs"),
        ("mysql", "SELECT 1 /*M! , 2 */", "a comment that runs"),
        ("mysql", "SELECT 1 /* never", "is not closed"),
        ("sqlite", "SELECT 'a", "is not closed"),
        ("postgresql", 'SELECT "a', "is not closed"),
        ("postgresql", "SELECT 1 /* /* */", "is not closed"),
        ("sqlite", "", "write a statement"),
        ("sqlite", " ; ", "write a statement"),
        ("postgresql", "BEGIN", "would outlive its call"),
        ("postgresql", "set role x", "would outlive its call"),
        ("mysql", "LOCK TABLES t READ", "would outlive its call"),
        ("sqlite", "ATTACH 'x' AS y", "would outlive its call"),
    ],
)
def test_what_cannot_be_bound_or_stand_alone_is_refused(dialect: Dialect, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_statement(text, dialect)


PIECES = st.sampled_from(
    [
        "'a:x'",
        "''",
        '"c:y"',
        "[d:z]",
        "`e:w`",
        "-- :c\n",
        "/* :k '*/",
        ":p",
        ":q",
        "1.5",
        "n",
        "+",
        "(",
        ")",
        ",",
        " ",
        "x'0f'",
    ]
)


@given(st.lists(PIECES, max_size=12))
def test_sqlite_finds_the_same_parameters(pieces: list[str]) -> None:
    """SQLite's own tokenizer is the oracle: it counts the parameters of whatever it can prepare."""
    text = "SELECT " + " ".join(pieces)
    statement = read_statement(text, "sqlite")
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TEMP TABLE t (n)")
    try:
        asked = connection.execute(text, {"p": 1, "q": 2}).fetchall()
    except sqlite3.OperationalError:
        return  # not SQL
    else:
        values = [1 if name == "p" else 2 for name in statement.names]
        assert connection.execute(statement.numbered("?"), values).fetchall() == asked
    finally:
        connection.close()
