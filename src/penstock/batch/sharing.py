"""Divides what a call used among the items it asked for, so that the shares add up to exactly what it used."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from penstock.messages import CompletionTokens, PromptTokens, Usage

_FINEST = -12  # the decimal places of a USD that a cost is divided to, where it has no more of its own


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number divided by weights: the parts are whole, too, and add up to it; equal weights where all are 0."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts = [total * weight // whole for weight in weights]
    rests = sorted(range(len(parts)), key=lambda place: (-(total * weights[place] % whole), place))
    for place in rests[: total - sum(parts)]:
        parts[place] += 1
    return parts


def with_rest(sizes: Sequence[int], rest: int) -> list[int]:
    """The weights of what each item has for itself, and of an equal share of what belongs to all."""
    return [size * len(sizes) + rest for size in sizes]


def divided(usage: Usage, prompts: Sequence[int], answers: Sequence[int]) -> list[Usage]:
    """The tokens of a call by item: its prompt by the weights of what was asked, its answer by those of what came."""
    asked, came = shares(usage.prompt, prompts), shares(usage.completion, answers)
    more = shares(max(0, usage.total - usage.prompt - usage.completion), [0] * len(prompts))
    cached, written = shares(usage.cached, asked), shares(usage.cache_written, asked)
    thought = shares(usage.reasoning, came)
    return [
        Usage(
            asked[place],
            came[place],
            asked[place] + came[place] + more[place],
            PromptTokens(cached[place], written[place] or None),
            CompletionTokens(thought[place]),
            partial=usage.partial,
        )
        for place in range(len(prompts))
    ]


def divided_cost(cost: Decimal | None, usages: Sequence[Usage]) -> list[Decimal | None]:
    """A cost in USD by the tokens of each; None for all where it is not known."""
    if cost is None:
        return [None] * len(usages)
    own = cost.as_tuple().exponent
    places = min(own, _FINEST) if isinstance(own, int) else _FINEST
    units = int(cost.scaleb(-places))
    return [_amount(part, places) for part in shares(units, [usage.total for usage in usages])]


def _amount(units: int, places: int) -> Decimal:
    """So many units of that decimal place, without zeros at its end."""
    amount = Decimal(units).scaleb(places).normalize()
    return amount.quantize(Decimal(1)) if amount == amount.to_integral_value() else amount
