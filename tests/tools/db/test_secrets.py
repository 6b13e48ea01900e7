"""Case 25 in database tools: what an executor holds does not show when somebody prints it."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.tools.db import (
    DynamoDBExecutor,
    DynamoDbToolSpec,
    MySqlExecutor,
    MySqlToolSpec,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
)

CANARY = "k-canary-0123456789"
ASKED = {"tool_name": "t", "statement": "SELECT 1", "dsn": "${WORD}"}
KEYS = {"access_key_id": "${WORD}", "secret_access_key": "${WORD}", "session_token": "${WORD}"}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (
            lambda env: PostgreSqlExecutor(PostgreSqlToolSpec.model_validate(ASKED), env=env),
            f"postgresql://u:{CANARY}@h/d",
        ),
        (lambda env: MySqlExecutor(MySqlToolSpec.model_validate(ASKED), env=env), f"mysql://u:{CANARY}@h/d"),
        (
            lambda env: DynamoDBExecutor(
                DynamoDbToolSpec.model_validate({"tool_name": "t", "table": "x", "operation": "scan", **KEYS}), env=env
            ),
            CANARY,
        ),
    ],
    ids=["postgresql", "mysql", "dynamodb"],
)
def test_case_25_an_executor_does_not_show_its_secrets(make: Any, word: str) -> None:
    tool = make({"WORD": word})
    seen = "".join([repr(tool), repr(vars(tool)), repr(tool.spec), tool.spec.model_dump_json()])
    assert not [CANARY[n : n + 8] for n in range(len(CANARY) - 7) if CANARY[n : n + 8] in seen]
