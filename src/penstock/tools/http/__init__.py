"""Tools that are HTTP requests to one origin, under the egress policy."""

from penstock.tools.http.executor import BaseHttpExecutor, HttpToolExecutor
from penstock.tools.http.spec import HttpToolSpec

__all__ = ["BaseHttpExecutor", "HttpToolExecutor", "HttpToolSpec"]
