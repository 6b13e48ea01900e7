"""`BaseDbExecutor`: what every database tool is, and what the built-in drivers share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import iscoroutine
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from penstock.errors import MissingExtra, ToolError, ToolFailed, UsageError
from penstock.messages import is_object
from penstock.net import Secret
from penstock.net.secrets import REFERENCE, variables
from penstock.tools.base import BaseToolExecutor, Hook
from penstock.tools.db.spec import DbToolSpec, SqlToolSpec
from penstock.tools.result import ToolContext, ToolResult

Spec = TypeVar("Spec", bound=DbToolSpec)
MAX_TEXT = 1000


class BaseDbExecutor(BaseToolExecutor[Spec]):
    """A tool that asks a database: extend `_execute_db_operation`, the rest of the pipeline is there.

    Hold connections in `PerLoop`, and free them in `aclose()`. A call of a spec that is `read_only` may be repeated.
    `self.variable(name)` is one of the environment.
    """

    _raised: tuple[type[BaseException], ...] = ()
    """What the driver raises: told as `_failures` translates it."""
    _failures: Failures

    def __init__(self, spec: Spec, *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        self.variable = variables(env)
        super().__init__(spec, **options)

    @property
    def safe(self) -> bool:
        """Whether repeating a call does no harm: it only reads, or the spec says so."""
        return self.spec.read_only or self.spec.idempotency.safe

    def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:
        """Ask the database: an `async def` that returns a value, or an async generator of items."""
        raise UsageError(f"{type(self).__name__} asks nothing: define _execute_db_operation")

    def _operate(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Hook:
        answer = self._execute_db_operation(args, ctx, timeout)
        return self._told(answer) if self._raised and iscoroutine(answer) else answer

    async def _told(self, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except self._raised as error:
            failure = self._failures.of(error)
        raise failure  # from here, so that the driver's own words, with secrets in them, are not its context


@contextmanager
def sent() -> Generator[None, None, None]:
    """Within it a network that breaks is an `EOFError`: what was sent may have been done."""
    try:
        yield
    except OSError as error:
        raise EOFError(str(error) or type(error).__name__) from error


def bounded(rows: list[Any], limit: int) -> ToolResult | list[Any]:
    """Rows up to the limit, with a warning where there were more."""
    if len(rows) <= limit:
        return rows
    return ToolResult(rows[:limit], warnings=(f"only the first {limit} rows are given: narrow the question",))


def shaped(rows: list[dict[str, Any]], spec: SqlToolSpec) -> Any:
    """What a statement's rows become: the first of them, or all that may be given."""
    if spec.fetches == "one":
        return rows[0] if rows else None
    return bounded(rows, spec.max_rows)


def revealed(secret: SecretStr | str, variable: Callable[[str], str]) -> str:
    """A secret with every `${NAME}` replaced by that variable; raises `UsageError` for one that is not set."""

    def look_up(found: Any) -> str:
        value = variable(found[1])
        if not value:
            raise UsageError(f"the environment variable {found[1]!r} is not set, and a database tool refers to it")
        return value

    return REFERENCE.sub(look_up, secret if isinstance(secret, str) else secret.get_secret_value())


def driver_module(name: str, *, extra: str) -> Any:
    """A driver's module, imported late; raises `MissingExtra`, which says the install command."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtra(f"this database needs the package {package!r}: pip install 'penstock[{extra}]'") from error


def password_of(dsn: str) -> tuple[str, ...]:
    """The secret part of an address, as written and as meant; raises `UsageError` for what is no address."""
    try:
        written = urlsplit(dsn).password or ""
    except ValueError:
        raise UsageError("the dsn is no address: write driver://user:password@host:port/database") from None
    return (written, unquote(written))


class Failures:
    """Makes tool errors of a driver's own, without secrets; `translate` is the driver's table."""

    def __init__(self, translate: Callable[[BaseException], ToolError], secrets: Iterable[str] = ()) -> None:
        self._translate = translate
        plain = {one for one in secrets if one}
        self._secrets = [Secret(one, origin="db://") for one in plain if one.isascii() and one.isprintable()]
        self._others = [one for one in plain if not (one.isascii() and one.isprintable())]

    def of(self, error: BaseException) -> ToolError:
        """The tool error that an error of the driver means."""
        found = self._translate(error)
        found.message = self._hidden(found.message)
        found.args = (found.message,)
        if is_object(found.details):
            found.details = {
                key: self._hidden(one) if isinstance(one, str) else one for key, one in found.details.items()
            }
        return found

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = secret.scrub(text)
        for other in self._others:
            text = text.replace(other, "***")
        return text[:MAX_TEXT]


def failed(text: str, code: str, *, retryable: bool = False, **details: Any) -> ToolFailed:
    """A `ToolFailed` with a code, and those details that are known."""
    known = {key: value for key, value in details.items() if value not in (None, "")}
    return ToolFailed(text, code=code, retryable=retryable, details=known or None)
