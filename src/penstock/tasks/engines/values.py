"""What steps are given and give, kept as JSON, which takes a fraction of the room, and read when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from penstock.errors import UsageError
from penstock.store.log import decoded, encoded
from penstock.store.steps import Step
from penstock.tasks.engines import Json


def kept(value: Any, what: str) -> msgspec.Raw | None:
    """A value as JSON that is not read yet; None stays None. Raises `UsageError` for one that is none."""
    if isinstance(value, msgspec.Raw):
        return value
    try:
        text = encoded(value)
    except UsageError as error:
        raise UsageError(f"{what} is no JSON: {error}") from error
    return None if text is None else msgspec.Raw(text)


def read(value: Json) -> Json:
    """A value that was kept, or is there already."""
    return decoded(value) if isinstance(value, msgspec.Raw) else value


def plain(value: Any, what: str) -> Json:
    """A value as it is once it was written as JSON and read. Raises `UsageError` for one that is none."""
    return read(kept(value, what))


class Steps(Mapping[str, Step]):
    """How steps stood at one moment; what one gave is read each time it is looked at."""

    def __init__(self, steps: dict[str, Step]) -> None:
        self._steps = steps

    def __getitem__(self, step: str) -> Step:
        found = self._steps[step]
        return Step(found.state, decoded(found.value)) if isinstance(found.value, msgspec.Raw) else found

    def __contains__(self, step: object) -> bool:
        return step in self._steps

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)
