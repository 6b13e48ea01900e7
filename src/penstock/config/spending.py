"""What a request may use and cost at most, by the models that may come to answer it: what budgets reserve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, TypeAlias

from penstock.errors import Invalid
from penstock.llms.prices import Price, reserve, reserve_tokens

if TYPE_CHECKING:
    from penstock.llms.base import BaseLlm
    from penstock.messages import ChatRequest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer: its price, None where it is not known, and how long its answers may be, in tokens."""

    name: str
    price: Price | None
    longest: int | None


Candidates: TypeAlias = "Callable[[ChatRequest], Sequence[Candidate]]"


def candidates_of(llms: Iterable[BaseLlm], model: str = "") -> tuple[Candidate, ...]:
    """What is known of LLMs, asked for a model where they have none of their own; a written `max_tokens` counts."""
    found: list[Candidate] = []
    for llm in llms:
        name = llm.model or model
        info = llm.info_of(name)
        written = llm.params.get("max_completion_tokens", llm.params.get("max_tokens"))
        longest = written if isinstance(written, int) else info.max_output_tokens if info else None
        found.append(Candidate(name, info.price if info else None, longest))
    return tuple(found)


def most_tokens(candidates: Candidates) -> Callable[[ChatRequest], int]:
    """The tokens that a request may use, of the model that may use the most."""

    def most(request: ChatRequest) -> int:
        return max(reserve_tokens(request, max_output=one.longest) for one in candidates(request))

    return most


def most_money(candidates: Candidates) -> Callable[[ChatRequest], Decimal]:
    """What a request may cost in USD, of the dearest model; raises `Invalid` where the price of one is not known."""

    def most(request: ChatRequest) -> Decimal:
        costs: list[Decimal] = []
        for one in candidates(request):
            if one.price is None:
                raise Invalid(
                    f"the price of {one.name!r} is not known, and this call is paid from a budget in USD",
                    param="model",
                    code="unknown_price",
                )
            costs.append(reserve(one.price, max_output=one.longest)(request))
        return max(costs)

    return most
