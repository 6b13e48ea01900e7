"""The way out: one HTTP client for model services, and secrets bound to their hosts."""

from penstock.net.http import Connection, HttpError, Pool, pool
from penstock.net.secrets import Secret, origin_of

__all__ = ["Connection", "HttpError", "Pool", "Secret", "origin_of", "pool"]
