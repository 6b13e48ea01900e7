"""What a command's output is read as, whatever it is; and what of it is hidden."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.errors import TaskFailed
from penstock.tasks.modes.cli import Said, read
from penstock.tasks.modes.hidden import Hidden
from tests.tasks.modes.commands import done, printing, script

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.fixed_dictionaries(
    {"status": st.sampled_from(["success", "failed"])},
    optional={
        "output": JSON,
        "error": st.none() | st.text() | st.dictionaries(st.text(), JSON, max_size=2),
        "usage": st.fixed_dictionaries(
            {}, optional={"prompt_tokens": st.integers(0, 2**53), "cost_usd": st.decimals(0, 10**6).map(str)}
        ),
        "new": JSON,
    },
)
encode = msgspec.json.Encoder().encode
often = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@often
@given(ANSWERS, st.sampled_from([b"", b"\n ", b"\xef\xbb\xbf"]))
def test_row_c5_an_answer_is_read_as_it_was_meant(answer: dict[str, Any], before: bytes) -> None:
    said = read(before + encode(answer) + b"\n")
    assert isinstance(said, Said)
    assert (said.status, said.error) == (answer["status"], answer.get("error"))
    assert encode(said.output) == encode(answer.get("output"))


@often
@given(
    st.binary(max_size=60)
    | JSON.map(encode)
    | st.tuples(ANSWERS.map(encode), st.integers(0, 300)).map(lambda a: a[0][: a[1]])
)
@example(b'{"status": "success", "output": "\\ud800"}')
@example(b'{"status": "success", "output": 1e999}')
@example(b'{"status": "success", "output": "\xff"}')
@example(b'{"status": "success", "usage": {"cost_usd": "Infinity"}}')
@example(b'{"status": "success", "usage": {"completion_tokens": 9007199254740993}}')
def test_row_c5_whatever_a_command_prints_is_an_answer_or_a_problem(data: bytes) -> None:
    said = read(data)
    if isinstance(said, str):
        assert said
    else:
        assert msgspec.json.decode(encode(said), type=Said) == said


def windows(secret: str) -> set[str]:
    return {secret[start : start + 8] for start in range(len(secret) - 7)}


@often
@given(st.text("ab*\\[", min_size=8, max_size=12), st.text("ab*\\[", max_size=40), st.text("ab*", max_size=9))
@example("ab******", "ab*********", "")
def test_row_c10_no_eight_characters_of_a_value_are_left(secret: str, around: str, cut: str) -> None:
    shown = Hidden({"A": secret}).text(f"{around}{secret}{cut}{secret[2:]}").replace("[A]", "|").replace("***", "|")
    assert not [window for window in windows(secret) if window in shown]


def test_row_c10_hidden_values_leave_their_names() -> None:
    pem = "-----BEGIN KEY-----\nTWlzc2lzc2lwcGkgUml2ZXI\n-----END KEY-----\n"
    hidden = Hidden({"KEY": "tr0ub4dor&3", "PEM": pem, "FOREIGN": "пароль-пароль", "SHORT": "1234567"})
    assert hidden.text("the key tr0ub4dor&3 opens") == "the key [KEY] opens"
    assert hidden.text(f"<{pem}>") == "<[PEM]>"
    assert hidden.text("line TWlzc2lzc2lwcGkgUml2ZXI") == "line [PEM]"
    assert hidden.text("это пароль-пароль") == "это [FOREIGN]"
    assert hidden.text("*** 1234567 ***") == "*** 1234567 ***"
    assert Hidden({"STARRED": "**abcdefgh"}).text("***abcdefx") == "****x"
    value = {"tr0ub4dor&3": ["tr0ub4dor&3", 3, None, {"a": "xtr0ub4dor&3x"}]}
    assert hidden.json(value) == {"[KEY]": ["[KEY]", 3, None, {"a": "x[KEY]x"}]}
    assert hidden.json(5) == 5
    assert Hidden({}).json(value) is value


KEY = "sk-canary-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        """printf '{"status": "success", "output": {"%s": ["%s"]}}' $KEY "a $KEY" """,
        """printf '{"status": "failed", "error": "%s is refused"}' $KEY""",
        """printf '{"status": "failed", "error": {"message": "no", "key": "%s"}}' $KEY""",
        """printf '{"status": "%s"}' $KEY""",
        "echo with $KEY; echo $KEY >&2; exit 3",
        "echo $KEY >&2; exit 2",
        "yes $KEY | head -c 9001; yes $KEY | head -c 9001 >&2",
    ],
)
async def test_row_c10_the_value_of_a_named_variable_is_in_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", KEY)
    agent = script(text, env=("KEY", "PATH"))
    try:
        found = repr((await done(agent)).output)
    except TaskFailed as error:
        found = f"{error} {error.details!r}"
    assert "[KEY]" in found
    assert not [window for window in windows(KEY) if window in found]


async def test_row_c10_what_every_command_sees_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "C.UTF-8.long")
    assert (
        await done(script(printing('{"status": "success", "output": "C.UTF-8.long"}'), env=("LANG",)))
    ).output == "C.UTF-8.long"
