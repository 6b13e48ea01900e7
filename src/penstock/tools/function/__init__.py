"""Tools that are Python functions: in the event loop, in threads, or in processes that can be stopped."""

from penstock.tools.function.executor import (
    BaseFunctionExecutor,
    BatchSpec,
    Function,
    FunctionToolExecutor,
    FunctionToolSpec,
    tool,
)

__all__ = [
    "BaseFunctionExecutor",
    "BatchSpec",
    "Function",
    "FunctionToolExecutor",
    "FunctionToolSpec",
    "tool",
]
