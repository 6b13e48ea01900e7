"""The way out: HTTP for model services and for tools, the policy of where it may go, secrets bound to their hosts."""

from penstock.net.egress import check_address, kind_of
from penstock.net.http import Connection, HttpError, Pool, pool
from penstock.net.secrets import Secret, origin_of
from penstock.net.session import open_session, session

__all__ = [
    "Connection",
    "HttpError",
    "Pool",
    "Secret",
    "check_address",
    "kind_of",
    "open_session",
    "origin_of",
    "pool",
    "session",
]
