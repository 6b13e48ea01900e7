"""What an answer of the benchmark's upstream looks like: written in the model's name, so that it passes any gateway."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

NAME = re.compile(r"c(\d+)-d(\d+)-t(\d+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """So many chunks, `delay_s` apart (at once when 0), the first after `think_s`."""

    chunks: int
    delay_s: float
    think_s: float

    @property
    def lasts_s(self) -> float:
        """Seconds from the request to the last chunk, at the upstream."""
        return self.think_s + (self.chunks - 1) * self.delay_s


@lru_cache
def shape_of(model: str) -> Shape:
    """The shape a model's name asks for: `c50-d20-t0` is 50 chunks, 20 ms apart, without thinking."""
    found = NAME.fullmatch(model)
    if found is None:
        raise ValueError(f"{model!r} is no shape: write chunks, delay and think time in ms as in 'c50-d20-t0'")
    chunks, delay, think = map(int, found.groups())
    return Shape(chunks, delay / 1000, think / 1000)


def word(number: int) -> str:
    """The text of one chunk, which says where it belongs."""
    return f"w{number:05d} "


@lru_cache
def text(chunks: int) -> str:
    """The text of a whole answer."""
    return "".join(map(word, range(chunks)))
