"""Tools: functions, HTTP requests and database statements as executors with a description."""

from penstock.tools.base import BaseToolExecutor
from penstock.tools.calls import ToolAnswer, run_calls
from penstock.tools.db import (
    BaseDbExecutor,
    DbToolSpec,
    DynamoDBExecutor,
    DynamoDbToolSpec,
    MySqlExecutor,
    MySqlToolSpec,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
    SqliteExecutor,
    SqliteToolSpec,
)
from penstock.tools.factory import DbExecutorFactory, FunctionExecutorFactory, HttpExecutorFactory
from penstock.tools.function import BaseFunctionExecutor, BatchSpec, FunctionToolExecutor, FunctionToolSpec, tool
from penstock.tools.http import BaseHttpExecutor, HttpToolExecutor, HttpToolSpec
from penstock.tools.result import ToolContext, ToolFault, ToolRequest, ToolResult
from penstock.tools.spec import (
    BreakerSpec,
    CacheSpec,
    IdempotencySpec,
    LimitSpec,
    RetrySpec,
    ToolExample,
    ToolSpec,
)

__all__ = [
    "BaseDbExecutor",
    "BaseFunctionExecutor",
    "BaseHttpExecutor",
    "BaseToolExecutor",
    "BatchSpec",
    "BreakerSpec",
    "CacheSpec",
    "DbExecutorFactory",
    "DbToolSpec",
    "DynamoDBExecutor",
    "DynamoDbToolSpec",
    "FunctionExecutorFactory",
    "FunctionToolExecutor",
    "FunctionToolSpec",
    "HttpExecutorFactory",
    "HttpToolExecutor",
    "HttpToolSpec",
    "IdempotencySpec",
    "LimitSpec",
    "MySqlExecutor",
    "MySqlToolSpec",
    "PostgreSqlExecutor",
    "PostgreSqlToolSpec",
    "RetrySpec",
    "SqliteExecutor",
    "SqliteToolSpec",
    "ToolAnswer",
    "ToolContext",
    "ToolExample",
    "ToolFault",
    "ToolRequest",
    "ToolResult",
    "ToolSpec",
    "run_calls",
    "tool",
]
