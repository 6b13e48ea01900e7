"""How long a task may take, how often it is tried and what it may spend: said by a task, its agent or its project."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1, max_length=256)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Spec(BaseModel):
    """What a user writes: frozen, known keys only, no value in any message."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Retry(Spec):
    """How often a task is tried, the first time included, and how long is waited in between, in seconds."""

    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    base_s: Seconds = 0.5
    max_s: Seconds = 30.0


class Budget(Spec):
    """What may be spent in all: tokens, USD, or both."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    usd: Annotated[Decimal, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _some(self) -> Budget:
        if self.tokens is None and self.usd is None:
            raise ValueError("write tokens, usd, or both")
        return self


class Bounds(Spec):
    """The bounds of a task; what a task does not say its agent may, and then its project."""

    timeout_s: Seconds | None = None
    retry: Retry | None = None
    budget: Budget | None = None

    def over(self, other: Bounds) -> Bounds:
        """These bounds, and those of another where these say nothing."""
        return Bounds(
            timeout_s=self.timeout_s if self.timeout_s is not None else other.timeout_s,
            retry=self.retry or other.retry,
            budget=self.budget or other.budget,
        )
