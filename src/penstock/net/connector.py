"""The connector of the shared sessions: judges each address right before it is connected to. Imports aiohttp."""

from __future__ import annotations

import socket
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from aiohttp import ClientConnectorError, InvalidUrlClientError, TCPConnector
from yarl import URL

from penstock.errors import Denied
from penstock.net.egress import check_address
from penstock.net.secrets import origin_of

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientTimeout
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_goal: ContextVar[tuple[URL, str | None] | None] = ContextVar("goal", default=None)
"""The address that is being connected to, and the origin that may be private."""


class EgressConnector(TCPConnector):
    """Connects to public addresses, and for the origin `own` to private ones too; raises `Denied` for others."""

    own: str | None = None

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109  # its base has it
    ) -> Connection:
        """A kept connection or a new one; redirects come here as requests of their own."""
        goal = _goal.set((req.url, self.own))
        try:
            return await super().connect(req, traces, timeout)
        except ClientConnectorError as error:
            if isinstance(error.os_error, _Blocked):
                raise error.os_error.denied from None
            raise
        except InvalidUrlClientError as error:  # digits and dots, but no address as it is written today: 127.1
            text = (
                f"{req.url.raw_host!r} is a short or old form of an address, which is not used: write all four numbers"
            )
            raise Denied(text, code="address_denied") from error
        finally:
            _goal.reset(goal)


def checked_socket(found: tuple[Any, ...]) -> socket.socket:
    """A socket for an address as `getaddrinfo` gives it; raises an `OSError` where it may not be connected to."""
    family, kind, protocol, _, address = found
    goal = _goal.get()
    url, own = goal or (URL(), None)
    allow_private = own is not None and origin_of(str(url.origin())) == own
    try:
        check_address(str(address[0]), host=url.raw_host or "", allow_private=allow_private)
    except Denied as error:
        raise _Blocked(error) from None
    return socket.socket(family, kind, protocol)


class _Blocked(OSError):
    """A refusal in the one form that a race between several addresses of a name tells apart from a defect."""

    def __init__(self, denied: Denied) -> None:
        super().__init__("an address that is not public")  # equal for all addresses: then the first stays as it is
        self.denied = denied
