"""The shop on SQLite, PostgreSQL and MariaDB, made once each."""

from __future__ import annotations

import pytest

from tests.rig.mariadb import MariaDb
from tests.rig.postgres import Postgres
from tests.tools.db.shops import Shop, mysql_shop, postgresql_shop, sqlite_shop


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop in a file."""
    return sqlite_shop(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(scope="session")
def postgresql(postgres: Postgres) -> Shop:
    """The shop in PostgreSQL."""
    return postgresql_shop(postgres.dsn)


@pytest.fixture(scope="session")
def mysql(mariadb_server: MariaDb) -> Shop:
    """The shop in MariaDB."""
    return mysql_shop(mariadb_server.dsn)


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def shop(request: pytest.FixtureRequest) -> Shop:
    """Each of them in turn."""
    found: Shop = request.getfixturevalue(request.param)
    return found
