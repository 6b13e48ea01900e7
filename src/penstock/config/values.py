"""The kinds of value that sections of `penstock.yaml` hold."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from penstock.config.problems import SCOPE
from penstock.config.section import FromEnvironment, flag, number


def check_address(value: str) -> str:
    """An http address without credentials, query or fragment; what is wrong is said without quoting it."""
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").encode("idna")
        usable = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
        usable = usable and value.isascii() and value.isprintable() and " " not in value
    except ValueError:
        usable, parts = False, urlsplit("")
    if "@" in value:
        raise ValueError("an address holds no user name or password: put the key into api_key")
    if not usable:
        raise ValueError("expected an address such as http://127.0.0.1:8080/v1")
    if parts.query or parts.fragment:
        raise ValueError("an address ends with its path: remove what follows '?' or '#'")
    return value


def one_line(value: SecretStr) -> SecretStr:
    """A secret that can stand in a header; raises `ValueError` for any other."""
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("expected one line of printable ASCII characters")
    return value


def decimal(value: Any) -> Any:
    """An amount of money as it is written, without the errors of binary fractions."""
    if isinstance(value, FromEnvironment) or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            return Decimal(str(value))
        except InvalidOperation:
            raise ValueError("expected a number") from None
    raise ValueError("expected a number")


Count = Annotated[int, Field(ge=1), BeforeValidator(number)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(flag)]
Address = Annotated[str, AfterValidator(check_address)]
Scope = Annotated[str, Field(pattern=SCOPE)]
Text = Annotated[SecretStr, Field(min_length=1), AfterValidator(one_line)]
Money = Annotated[Decimal, Field(ge=0, allow_inf_nan=False), BeforeValidator(decimal)]
