"""Database tools: declared statements and operations on SQLite, PostgreSQL, MySQL and DynamoDB."""

from penstock.net.loops import PerLoop
from penstock.tools.db.base import BaseDbExecutor
from penstock.tools.db.dynamodb import DynamoDBExecutor
from penstock.tools.db.mysql import MySqlExecutor
from penstock.tools.db.postgresql import PostgreSqlExecutor
from penstock.tools.db.spec import (
    DbToolSpec,
    DynamoDbToolSpec,
    MySqlToolSpec,
    PostgreSqlToolSpec,
    SqliteToolSpec,
    SqlToolSpec,
)
from penstock.tools.db.sqlite import SqliteExecutor

__all__ = [
    "BaseDbExecutor",
    "DbToolSpec",
    "DynamoDBExecutor",
    "DynamoDbToolSpec",
    "MySqlExecutor",
    "MySqlToolSpec",
    "PerLoop",
    "PostgreSqlExecutor",
    "PostgreSqlToolSpec",
    "SqlToolSpec",
    "SqliteExecutor",
    "SqliteToolSpec",
]
