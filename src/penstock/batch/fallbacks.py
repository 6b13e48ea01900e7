"""`Fallback`: what gives the value of an item that no call gave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeAlias

import msgspec

from penstock.batch.items import Item
from penstock.errors import UsageError
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Executor

Rule: TypeAlias = Callable[[Item], Any | Awaitable[Any]]
TIERS = ("batch", "single")
"""What the tiers before all fallbacks are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """One of three: another model with a simpler prompt, a rule, or a safe value; `name` is the tier of its outcomes.

    `Fallback(name="small", llm=llm, instructions="One step each.")` asks for one item a call; `Fallback(name="nearest",
    rule=nearest)` calls `nearest(item)`, which returns the value or an awaitable of it; `Fallback(name="wait",
    default={"steps": []})` is that value. Raises `UsageError` for none or several of them.
    """

    name: str
    llm: Executor[ChatRequest, ChatReply] | None = None
    instructions: str = ""
    rule: Rule | None = None
    default: Any = msgspec.UNSET

    def __post_init__(self) -> None:
        if (self.llm is not None) + (self.rule is not None) + (self.default is not msgspec.UNSET) != 1:
            raise UsageError(f"the fallback {self.name!r} is one thing: give it an llm, a rule or a default")
        if not self.name or self.name in TIERS:
            raise UsageError(f"a fallback is not called {self.name!r}: give it a name of its own")

    async def value(self, item: Item) -> Any:
        """What its rule says, or its default. Raises whatever the rule raises."""
        if self.rule is None:
            return self.default
        value = self.rule(item)
        return await value if isawaitable(value) else value


def distinct(fallbacks: Sequence[Fallback]) -> tuple[Fallback, ...]:
    """The fallbacks in their order. Raises `UsageError` for two of one name."""
    names = [fallback.name for fallback in fallbacks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two fallbacks are called {min(twice)!r}: give each a name of its own")
    return tuple(fallbacks)
