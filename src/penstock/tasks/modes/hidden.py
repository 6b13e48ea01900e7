"""Takes the values of variables out of what a command says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from penstock.messages import is_array, is_object
from penstock.net.secrets import LEAK, Secret

_PRINTABLE = re.compile(f"[ -~]{{{LEAK},}}")
_MARK = "***"


class Hidden:
    """Hides the values of variables, those of eight characters or more, and any eight characters of them.

    So it does with secrets, which have no names.
    """

    def __init__(self, values: Mapping[str, str], secrets: Iterable[Secret] = ()) -> None:
        self._values = [(f"[{name}]", value) for name, value in values.items() if len(value) >= LEAK]
        self._secrets = [
            (shown, Secret(part, origin="env://"), "*" in part)
            for shown, value in self._values
            for part in _PRINTABLE.findall(value)
        ]
        self._nameless = tuple(secrets)

    def text(self, text: str) -> str:
        """The text with the names of variables in brackets where their values stood."""
        for shown, value in self._values:
            text = text.replace(value, shown)  # one with line breaks or foreign letters is hidden as a whole too
        for shown, secret, starred in self._secrets:
            if starred:  # what stands in the text as stars may be part of it
                text = secret.scrub(text)
            else:
                text = _MARK.join(secret.scrub(part).replace(_MARK, shown) for part in text.split(_MARK))
        for secret in self._nameless:
            text = secret.scrub(text)
        return text

    def json(self, value: Any) -> Any:
        """A JSON value with all its texts as `text` gives them, names of fields too."""
        if not (self._values or self._nameless):
            return value
        if isinstance(value, str):
            return self.text(value)
        if is_object(value):
            return {self.text(key): self.json(inner) for key, inner in value.items()}
        return [self.json(inner) for inner in value] if is_array(value) else value
