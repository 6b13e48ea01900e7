"""Names to objects, imported late: how a provider is found by name, by agent type, or in another package."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from penstock.errors import MissingExtra, UnknownName

Value = TypeVar("Value")


class Registry(Generic[Value]):
    """A table of names, case-insensitive.

    A value may be given as an entry point is written, "module:attribute [extra]": it is imported when it is asked for,
    and what it needs comes with that extra of Penstock. With `group`, the entry points that installed packages offer
    are found too; what is registered here wins.
    """

    def __init__(self, kind: str, *, group: str = "") -> None:
        self._kind, self._group = kind, group
        self._values: dict[str, Value] = {}
        self._late: dict[str, EntryPoint] = {}
        self._builtin: set[str] = set()

    def register(self, name: str, value: Value | str, *, replace: bool = False, builtin: bool = False) -> None:
        """Add a name; raises `ValueError` for an empty one, or one that is taken unless `replace` is true.

        One that is `builtin` can be neither replaced nor removed.
        """
        key = _key(name)
        if not key:
            raise ValueError(f"the name of a {self._kind} must not be empty")
        self._refuse_builtin(key)
        if not replace and (key in self._values or key in self._late):
            raise ValueError(f"the {self._kind} {name!r} is registered already: pass replace=True to replace it")
        self._values.pop(key, None)
        if isinstance(value, str):
            self._late[key] = EntryPoint(key, value, self._group)
        else:
            self._values[key] = value
        if builtin:
            self._builtin.add(key)

    def unregister(self, name: str) -> None:
        """Take a name out; raises `UnknownName`, which lists the known ones, or `ValueError` for a built-in one."""
        key = _key(name)
        self._refuse_builtin(key)
        if key not in self._values and key not in self._late:
            raise self._unknown(name)
        self._values.pop(key, None)
        self._late.pop(key, None)

    def get(self, name: str) -> Value:
        """The value of a name; raises `UnknownName`, which lists the known ones, or `MissingExtra`."""
        key = _key(name)
        if key not in self._values:
            point = self._late.get(key) or self._offered().get(key)
            if point is None:
                raise self._unknown(name)
            self._values[key] = _load(point)
        return self._values[key]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._values, *self._late, *self._offered()})

    def _unknown(self, name: str) -> UnknownName:
        return UnknownName(f"no {self._kind} {name!r}; known are {', '.join(self.names()) or 'none'}")

    def _refuse_builtin(self, key: str) -> None:
        if key in self._builtin:
            raise ValueError(f"the {self._kind} {key!r} is built in and stays: choose another name")

    def _offered(self) -> dict[str, EntryPoint]:
        return {_key(point.name): point for point in entry_points(group=self._group)} if self._group else {}


def _key(name: str) -> str:
    return name.strip().lower()


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "penstock":  # a slip in the reference, not something to install
            raise
        offers = point.dist.name if point.dist else "penstock"
        install = f"'{offers}[{','.join(point.extras)}]'" if point.extras else package
        raise MissingExtra(f"{point.name!r} needs the package {package!r}: pip install {install}") from error
