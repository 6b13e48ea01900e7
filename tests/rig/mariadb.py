"""A real MariaDB from the system's packages, with its own data directory on a free port."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from tests.rig.serving import HOST, running

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"  # where distributions put servers
USER, PASSWORD, DATABASE = "shop", "maria-canary-90ab3e", "shop"
QUICK = ["--skip-log-bin", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"]


@dataclass(frozen=True, slots=True)
class MariaDb:
    """A running server; `dsn` holds a password that must never show."""

    dsn: str


def problem() -> str:
    """Why MariaDB cannot be run here, or an empty text."""
    absent = [name for name in ("mariadbd", "mariadb-install-db") if shutil.which(name, path=PATH) is None]
    return f"no {' and no '.join(absent)}: install the system's package mariadb-server" if absent else ""


@contextlib.contextmanager
def serve_mariadb() -> Generator[MariaDb]:
    """Runs a server on a new data directory, with one database and one user."""
    as_root = ["--user=root"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="mariadb-") as folder:
        data, socket, first = f"{folder}/data", f"{folder}/socket", Path(folder, "first.sql")
        install = [_found("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db", *as_root]
        subprocess.run(install, check=True, capture_output=True, env={**os.environ, "PATH": PATH})
        first.write_text(
            f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4;\n"
            f"CREATE USER '{USER}'@'{HOST}' IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON {DATABASE}.* TO '{USER}'@'{HOST}';\n"
        )
        command = [_found("mariadbd"), "--no-defaults", f"--datadir={data}", f"--socket={socket}", "--port={port}"]
        command += [f"--bind-address={HOST}", "--skip-name-resolve", f"--init-file={first}", *QUICK, *as_root]
        with running(command, ready="ready for connections") as process:
            yield MariaDb(f"mysql://{USER}:{PASSWORD}@{HOST}:{process.port}/{DATABASE}")


def _found(name: str) -> str:
    return shutil.which(name, path=PATH) or name
