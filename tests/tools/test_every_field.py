"""No field is for show: each field of each spec is listed with the test that fails when it is ignored."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from penstock.tools import (
    BreakerSpec,
    CacheSpec,
    DynamoDbToolSpec,
    FunctionToolSpec,
    HttpToolSpec,
    IdempotencySpec,
    LimitSpec,
    MySqlToolSpec,
    PostgreSqlToolSpec,
    RetrySpec,
    SqliteToolSpec,
    ToolExample,
)
from penstock.tools.arguments.parameters import (
    ArrayParameter,
    BooleanParameter,
    IntegerParameter,
    NumberParameter,
    ObjectParameter,
    OneOfParameter,
    StringParameter,
)
from penstock.tools.function import BatchSpec
from penstock.tools.spec import ToolSpec

HERE = Path(__file__).parent
Fields = Mapping[str, str]
EVERY = {"name description required default type": "what_every_kind_of_parameter_has_takes_effect"}
OWN = "every_field_of_a_parameter_takes_effect"
MOST = "enum minimum maximum exclusive_minimum exclusive_maximum multiple_of"
SQL = {
    "statement": "a_declared_statement_gives_rows_as_objects",
    "max_rows": "rows_beyond_max_rows_are_cut_with_a_warning",
}
SHARED = {
    "driver": "driver_says_which_executor_takes_a_spec",
    "read_only": "read_only_is_kept_by_the_database_until_the_spec_says_otherwise",
    "fetch": "fetch_says_what_comes_back",
    "pool_size": "pool_size_is_how_many_are_asked_at_once",
}
DSN = {"dsn": "a_declared_statement_gives_rows_as_objects"}

# By file and class: fields, and the words that the name of their test ends with.
PROOFS: Mapping[str, Mapping[type[BaseModel], Fields]] = {
    "test_spec_fields.py": {
        ToolSpec: {
            "tool_name": "tool_name_is_what_a_model_calls_and_must_be_one_it_can_write",
            "id": "id_is_what_a_ledger_knows_a_tool_by_whatever_its_name",
            "owner version metrics_tags": "owner_version_and_metrics_tags_label_the_span",
            "description examples": "description_and_examples_are_what_a_model_reads",
            "parameters": "parameters_are_what_is_taken",
            "coerce": "coerce_takes_numbers_written_as_text",
            "return_type": "return_type_checks_the_value",
            "return_target": "return_target_says_who_may_see_the_value",
            "permissions": "permissions_must_be_held",
            "timeout_s": "timeout_s_ends_a_call_with_its_retries",
            "max_result_bytes": "max_result_bytes_cuts_what_is_longer_with_a_marker",
            "retry": "retry_attempts_and_pauses",
            "circuit_breaker": "circuit_breaker_failures_and_reset_s",
            "limit": "limit_requests_per_minute_and_concurrent",
            "cache": "cache_ttl_s_and_max_entries",
            "idempotency": "idempotency_ledger_runs_a_key_once",
        },
        ToolExample: {"arguments result": "description_and_examples_are_what_a_model_reads"},
        RetrySpec: {
            "attempts max_s": "retry_attempts_and_pauses",
            "base_s": "retry_base_s_is_the_first_pause_at_most",
            "attempt_timeout_s": "retry_attempt_timeout_s_ends_one_attempt",
        },
        BreakerSpec: {"failures reset_s": "circuit_breaker_failures_and_reset_s"},
        LimitSpec: {"requests_per_minute concurrent": "limit_requests_per_minute_and_concurrent"},
        CacheSpec: {"ttl_s max_entries": "cache_ttl_s_and_max_entries"},
        IdempotencySpec: {
            "safe": "retry_attempt_timeout_s_ends_one_attempt",
            "ledger": "idempotency_ledger_runs_a_key_once",
            "key_from": "idempotency_key_from_makes_the_key_of_arguments",
            "ttl_s": "idempotency_ttl_s_is_how_long_a_result_is_kept",
        },
        FunctionToolSpec: {"run_in": "run_in_says_where_a_synchronous_function_runs"},
    },
    "test_batching.py": {
        FunctionToolSpec: {"batch": "a_full_batch_goes_at_once_and_the_next_one_begins"},
        BatchSpec: {
            "linger_s": "a_call_that_comes_within_the_linger_is_in_the_batch",
            "max_items": "a_full_batch_goes_at_once_and_the_next_one_begins",
        },
    },
    "test_http_fields.py": {
        HttpToolSpec: {
            "base_url method path": "base_url_method_and_path_say_where_a_request_goes",
            "query headers": "query_and_headers_are_sent_with_arguments_in_them",
            "body body_type": "body_and_body_type_say_what_is_sent_and_how",
            "expect": "expect_says_what_is_asked_for_and_how_it_is_read",
            "allow_private": "allow_private_opens_the_origin_of_the_tool",
            "max_response_bytes": "max_response_bytes_is_where_reading_stops",
        }
    },
    "test_http.py": {
        HttpToolSpec: {
            "max_redirects": "no_more_redirects_are_followed_than_allowed",
            "redirects": "another_origin_gets_neither_headers_nor_body",
        }
    },
    "db/test_sql_laws.py": {
        SqliteToolSpec: {**SQL, "path": "a_declared_statement_gives_rows_as_objects"},
        PostgreSqlToolSpec: {**SQL, **DSN},
        MySqlToolSpec: {**SQL, **DSN},
    },
    "db/test_sqlite.py": {SqliteToolSpec: {"lock_wait_s": "a_locked_database_is_an_error_to_try_again"}},
    "db/test_fields.py": {
        SqliteToolSpec: SHARED,
        PostgreSqlToolSpec: SHARED,
        MySqlToolSpec: SHARED,
        DynamoDbToolSpec: {
            "driver": "driver_says_which_executor_takes_an_operation",
            "index": "index_is_what_a_query_and_a_scan_read",
            "consistent": "consistent_asks_for_what_was_written_last",
            "region endpoint_url access_key_id secret_access_key session_token": (
                "region_and_keys_sign_what_is_sent_to_the_endpoint"
            ),
            "pool_size": "pool_size_of_dynamodb_is_how_many_connections_it_opens",
        },
    },
    "db/test_dynamodb.py": {
        DynamoDbToolSpec: {
            "table operation key item update names constants returns": "put_get_update_delete",
            "key_condition filter projection descending first max_rows": "query_and_scan_read_every_page",
            "condition": "a_condition_that_fails_is_an_error_not_to_repeat",
            "read_only": "a_spec_that_cannot_work_is_refused",
        }
    },
    "test_parameters.py": {
        StringParameter: {**EVERY, "enum format min_length max_length pattern": OWN},
        NumberParameter: {**EVERY, MOST: OWN},
        IntegerParameter: {**EVERY, MOST: OWN},
        BooleanParameter: EVERY,
        ArrayParameter: {**EVERY, "items min_items max_items unique_items": OWN},
        ObjectParameter: {**EVERY, "properties": OWN},
        OneOfParameter: {**EVERY, "options": OWN},
    },
}
WAITING = {("ToolSpec", "required")}  # for an agent that has to call it


def proofs() -> Iterator[tuple[str, str, str, str]]:
    """The table's rows: a class, a field, the file and the last words of the test's name."""
    for file, classes in PROOFS.items():
        for kind, fields in classes.items():
            for names, words in fields.items():
                yield from ((kind.__name__, name, file, words) for name in names.split())


def declared() -> Iterator[tuple[str, str]]:
    """Each field of each class, those that every tool has once."""
    for kind in {kind for classes in PROOFS.values() for kind in classes}:
        shared = ToolSpec.model_fields if issubclass(kind, ToolSpec) and kind is not ToolSpec else {}
        yield from ((kind.__name__, name) for name in kind.model_fields if name not in shared)


def test_row_b1_every_field_of_every_spec_has_a_test() -> None:
    listed = [(kind, name) for kind, name, _, _ in proofs()]
    assert {*declared()} - {*listed} == WAITING, "a field without a test"
    assert {*listed} <= {*declared()}, "a test of no field"
    assert len({*listed}) == len(listed), "a field listed twice"


def test_row_b1_every_class_of_a_spec_is_in_the_table() -> None:
    known = {kind for classes in PROOFS.values() for kind in classes}
    parts = {part for kind in known for field in kind.model_fields.values() for part in _models(field.annotation)}
    assert parts <= known
    open_ends = {"DbToolSpec", "SqlToolSpec"}  # their fields are proven for each kind that has them
    ours = [kind for kind in _below(ToolSpec) if kind.__module__.startswith("penstock.")]
    assert {kind.__name__ for kind in ours} - open_ends <= {kind.__name__ for kind in known}


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)


def _below(kind: type[ToolSpec]) -> Iterator[type[ToolSpec]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


@pytest.mark.parametrize("file", PROOFS)
def test_row_b1_the_tests_of_the_table_are_there(file: str) -> None:
    tree = ast.parse((HERE / file).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for kind, field, where, words in proofs():
        if where == file:
            found = [name for name in names if name.startswith("test_") and name.endswith(f"_{words}")]
            assert len(found) == 1, f"{kind}.{field}: {file} has {len(found)} tests called ..._{words}"
