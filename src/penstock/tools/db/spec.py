"""`DbToolSpec` and its kinds: statements and operations that are declared, into which a call only binds values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, model_validator

from penstock.messages import is_array, is_object
from penstock.net.secrets import REFERENCE
from penstock.tools.db.statement import Dialect, read_statement
from penstock.tools.spec import Count, Seconds, ToolSpec

ARGUMENT = re.compile(r":([A-Za-z_]\w*)")
Fetch: TypeAlias = Literal["all", "one", "affected"]
Operation: TypeAlias = Literal["get", "put", "update", "delete", "query", "scan"]
READS = frozenset({"get", "query", "scan"})


def _hidden(text: SecretStr | str) -> SecretStr:
    return SecretStr(text) if isinstance(text, str) else text


def _shown(text: SecretStr | str) -> str:
    secret = _hidden(text)
    return secret.get_secret_value() if REFERENCE.fullmatch(secret.get_secret_value()) else str(secret)


Reference: TypeAlias = Annotated[SecretStr | str, AfterValidator(_hidden), PlainSerializer(_shown)]
"""A secret, or "${NAME}" for one in the environment; shown, also as JSON, only where it is nothing but a reference."""


class DbToolSpec(ToolSpec):
    """A tool that asks a database. `driver` names who speaks to it; a custom driver extends this spec where it has to.

    `read_only`: the database itself refuses to write. Of longer answers `max_rows` rows are given, with a warning.
    """

    driver: str
    read_only: bool = True
    max_rows: Count = 1000


class SqlToolSpec(DbToolSpec):
    """One SQL statement with `:name` for its parameters; an optional one that a call leaves out is NULL.

    `fetch` says what comes back: all rows as objects, the first row or None, or {"affected": n}; by default the rows of
    what reads or says RETURNING, and the count of what writes.
    """

    dialect: ClassVar[Dialect]
    statement: str
    fetch: Fetch | None = None

    @cached_property
    def fetches(self) -> Fetch:
        """What comes back."""
        if self.fetch is not None:
            return self.fetch
        gives = self.read_only or "RETURNING" in read_statement(self.statement, self.dialect).words
        return "all" if gives else "affected"

    @model_validator(mode="after")
    def _bindable(self) -> Self:
        statement = read_statement(self.statement, self.dialect)
        self.require_declared(statement.names)
        if self.read_only and not statement.reads:
            raise ValueError(f"{statement.kind} does not only read: write read_only: false where it is meant to write")
        if self.read_only and statement.words & {"OUTFILE", "DUMPFILE"}:
            raise ValueError("a statement that writes a file does not only read")
        return self


class SqliteToolSpec(SqlToolSpec):
    """A statement on the SQLite file at `path`, which must exist.

    `lock_wait_s` is how long, in seconds, another's lock is waited for. What reads is spread over up to `pool_size`
    connections.
    """

    dialect: ClassVar[Dialect] = "sqlite"
    driver: Annotated[str, Field(pattern="^sqlite$")] = "sqlite"
    path: Annotated[str, Field(min_length=1)]
    lock_wait_s: Seconds = 1.0
    pool_size: Count = 4


class PostgreSqlToolSpec(SqlToolSpec):
    """A statement on PostgreSQL (14 or newer), through up to `pool_size` connections.

    `dsn` is "${NAME}", or postgresql://user:password@host:port/database with `${NAME}` for a part of it.
    """

    dialect: ClassVar[Dialect] = "postgresql"
    driver: Annotated[str, Field(pattern="^postgresql$")] = "postgresql"
    dsn: Reference
    pool_size: Count = 10


class MySqlToolSpec(SqlToolSpec):
    """A statement on MySQL or MariaDB, through up to `pool_size` connections.

    `dsn` is "${NAME}", or mysql://user:password@host:port/database with `${NAME}` for a part of it; a socket is
    written as mysql://user@/database?unix_socket=/path.
    """

    dialect: ClassVar[Dialect] = "mysql"
    driver: Annotated[str, Field(pattern="^mysql$")] = "mysql"
    dsn: Reference
    pool_size: Count = 10


class DynamoDbToolSpec(DbToolSpec):
    """One operation on a DynamoDB table, with ":name" for an argument.

    It stands for a value in `key` and `item`, and in the expressions, which are DynamoDB's own: `condition`, `update`,
    `key_condition`, `filter`, `projection`. `names` are the `#name`s of expressions, `constants` the `:name`s that are
    no arguments. `first` is the number of items wanted; `returns` says whether a write gives the attributes from before
    or after it. Without the two keys the usual AWS chain finds credentials.
    """

    driver: Annotated[str, Field(pattern="^dynamodb$")] = "dynamodb"
    table: Annotated[str, Field(min_length=1)]
    operation: Operation
    key: dict[str, Any] = Field(default_factory=dict)
    item: dict[str, Any] = Field(default_factory=dict)
    key_condition: str = ""
    filter: str = ""
    condition: str = ""
    update: str = ""
    projection: str = ""
    names: dict[str, str] = Field(default_factory=dict)
    constants: dict[str, Any] = Field(default_factory=dict)
    index: str = ""
    consistent: bool = False
    descending: bool = False
    first: Count | None = None
    returns: Literal["none", "old", "new"] = "none"
    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: Reference | None = None
    secret_access_key: Reference | None = None
    session_token: Reference | None = None
    pool_size: Count = 10

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.read_only and self.operation not in READS:
            raise ValueError(f"{self.operation} writes: write read_only: false where it is meant to")
        taken = {field: getattr(self, field) for field in _PARTS}
        wanted, possible = _NEEDS[self.operation], _TAKES[self.operation]
        if missing := [field for field in wanted if not taken[field]]:
            raise ValueError(f"{self.operation} needs {' and '.join(missing)}")
        if idle := [
            field for field, value in taken.items() if value not in ("", {}, False, "none") and field not in possible
        ]:
            raise ValueError(f"{self.operation} does not take {' and '.join(idle)}")
        if self.operation in ("put", "delete") and self.returns == "new":
            raise ValueError(f"{self.operation} returns old attributes only")
        used = {*arguments_in([self.key, self.item]), *ARGUMENT.findall(" ".join(self.expressions))}
        self.require_declared(used - set(self.constants))
        return self

    @property
    def expressions(self) -> tuple[str, ...]:
        """Every expression, also those that are empty."""
        return (self.key_condition, self.filter, self.condition, self.update, self.projection)


_NEEDS: Mapping[str, tuple[str, ...]] = {
    "get": ("key",),
    "put": ("item",),
    "update": ("key", "update"),
    "delete": ("key",),
    "query": ("key_condition",),
    "scan": (),
}
_TAKES: Mapping[str, tuple[str, ...]] = {
    "get": ("key", "projection", "consistent"),
    "put": ("item", "condition", "returns"),
    "update": ("key", "update", "condition", "returns"),
    "delete": ("key", "condition", "returns"),
    "query": ("key_condition", "filter", "projection", "index", "consistent", "descending"),
    "scan": ("filter", "projection", "index", "consistent"),
}
_PARTS = tuple(dict.fromkeys(field for fields in _TAKES.values() for field in fields))


def arguments_in(value: Any) -> Iterator[str]:
    """The names of the arguments that stand in a key or an item."""
    if isinstance(value, str):
        if found := ARGUMENT.fullmatch(value):
            yield found[1]
    elif is_object(value):
        for one in value.values():
            yield from arguments_in(one)
    elif is_array(value):
        for one in value:
            yield from arguments_in(one)
