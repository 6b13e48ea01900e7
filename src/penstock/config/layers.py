"""What stands around each LLM, in the one order that `penstock check` prints, the outermost first.

A token's limits come before the model's, whose refusals are traced; another model is tried where this one is given up,
after its retries; each retry may go to another deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.config.models import BudgetSettings, LimitSettings, ModelSettings
from penstock.config.settings import TokenSettings, TracingSettings
from penstock.policies import Policy, wrap

if TYPE_CHECKING:
    from penstock.config.spending import Candidates
    from penstock.llms.base import BaseLlm
    from penstock.messages import ChatReply, ChatRequest
    from penstock.run import Executor

    Chat = Executor[ChatRequest, ChatReply]


class Layer(NamedTuple):
    """A policy and the words for it."""

    text: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Layers:
    """The policies around one LLM, of which only `inner` also stand around it where it is another's fallback."""

    trace: tuple[Layer, ...]
    bounds: tuple[Layer, ...]
    inner: tuple[Layer, ...]

    def bare(self, llm: Chat) -> Chat:
        """The LLM as a fallback of another: without fallbacks of its own, and without what its callers may ask for."""
        return wrap(llm, (layer.policy for layer in (*self.trace, *self.bounds, *self.inner)))

    def whole(self, fallback: Iterable[Layer] = ()) -> tuple[Layer, ...]:
        """All layers, with the fallback at its place."""
        return (*self.trace, *self.bounds, *fallback, *self.inner)


def layers_of(model: ModelSettings | None, tracing: TracingSettings, candidates: Candidates) -> Layers:
    """The layers that the configuration writes around a model; a provider that is named nowhere is only traced."""
    trace = tuple(_trace(tracing))
    if model is None:
        return Layers(trace, (), ())
    bounds = (*_limit(model.limit), *_budget(model.budget, candidates, f"the model {model.name!r}"))
    return Layers(trace, bounds, (*_breaker(model), *_retry(model)))


def token_layers(tokens: Iterable[TokenSettings], candidates: Candidates) -> tuple[Layer, ...]:
    """What callers may ask for and spend, over all models together: one layer, none where no token is bounded."""
    from penstock.policies.principals import per_principal

    bounded = {
        token.name: (*_limit(token.limit), *_budget(token.budget, candidates, f"the token {token.name!r}"))
        for token in tokens
    }
    bounded = {name: layers for name, layers in bounded.items() if layers}
    if not bounded:
        return ()
    text = "; ".join(f"{name}: {', '.join(layer.text for layer in layers)}" for name, layers in bounded.items())
    policy = per_principal({name: [layer.policy for layer in layers] for name, layers in bounded.items()})
    return (Layer(f"by token ({text})", policy),)


def fallback_layer(model: ModelSettings, executors: Mapping[str, Chat]) -> tuple[Layer, ...]:
    """The models that are asked where this one fails; none where none is written."""
    if not model.fallback:
        return ()
    from penstock.policies.fallback import fallback

    policy = fallback(*((name, executors[name]) for name in model.fallback))
    return (Layer(f"fallback to {', then '.join(model.fallback)}", policy),)


def deployed(model: ModelSettings, llms: Sequence[BaseLlm]) -> tuple[Chat, tuple[str, ...]]:
    """What a model's calls end in: its LLM or one of its deployments, with scripted faults, and the words for it."""
    from penstock.policies.faults import faults

    texts: list[str] = []
    placed: list[Chat] = list(llms)
    if model.faults:
        texts.append(f"faults {', '.join(model.faults)}")
        policy = faults(model.faults, **_patience(llms[0]))
        placed = [policy(llm) for llm in llms]
    if not model.deployments:
        return placed[0], tuple(texts)
    from penstock.policies.balance import Deployment, balance

    names = [f"{number + 1} ({_where(llm)})" for number, llm in enumerate(llms)]
    weights = [deployment.weight for deployment in model.deployments]
    rows = [Deployment(*row) for row in zip(names, placed, weights, strict=True)]
    shown = ", ".join(f"{name} weight {weight:g}" for name, weight in zip(names, weights, strict=True))
    texts.insert(0, f"balance {shown}, cool-down {model.cooldown_s:g} s")
    return balance(rows, cooldown_s=model.cooldown_s), tuple(texts)


def _where(llm: BaseLlm) -> str:
    address: str = getattr(llm, "base_url", "")
    return f"{llm.provider} {address}".strip()


def _patience(llm: BaseLlm) -> dict[str, float]:
    limits: Any = getattr(llm, "limits", None)
    return {} if limits is None else {"idle_s": limits.idle_s, "total_s": limits.total_s}


def _trace(tracing: TracingSettings) -> list[Layer]:
    if tracing.otlp is None:
        return []
    from penstock.policies.trace import describe_chat, trace

    text = "trace with content" if tracing.content else "trace"
    return [Layer(text, trace("llm", name="chat", describe=describe_chat, content=tracing.content))]


def _limit(settings: LimitSettings | None) -> list[Layer]:
    from penstock.policies.limit import limit

    bounds = settings.model_dump(exclude_none=True) if settings else {}
    words = [f"{bound} {field.replace('_per_', '/').replace('_', ' ')}" for field, bound in bounds.items()]
    return [Layer(f"limit {', '.join(words)}", limit(**bounds))] if bounds else []


def _budget(settings: BudgetSettings | None, candidates: Candidates, whose: str) -> list[Layer]:
    if settings is None:
        return []
    from penstock.config.spending import most_money, most_tokens
    from penstock.llms.prices import cost_of
    from penstock.policies.budget import budget

    span = f" in {settings.window_s:g} s" if settings.window_s else ""
    layers: list[Layer] = []
    if settings.tokens is not None:
        policy = budget(
            settings.tokens, estimate=most_tokens(candidates), window_s=settings.window_s, name=f"tokens of {whose}"
        )
        layers.append(Layer(f"budget {settings.tokens} tokens{span}", policy))
    if settings.usd is not None:
        estimate = most_money(candidates)
        policy = budget(
            settings.usd, cost=cost_of, estimate=estimate, window_s=settings.window_s, name=f"USD of {whose}"
        )
        layers.append(Layer(f"budget {settings.usd} USD{span}", policy))
    return layers


def _breaker(model: ModelSettings) -> list[Layer]:
    if model.breaker is None:
        return []
    from penstock.policies.breaker import breaker

    failures, reset_s = model.breaker.failures, model.breaker.reset_s
    text = f"breaker after {failures} failures for {reset_s:g} s"
    return [Layer(text, breaker(failures=failures, reset_s=reset_s))]


def _retry(model: ModelSettings) -> list[Layer]:
    if model.retry is None:
        return []
    from penstock.policies.retry import retry

    attempts = model.retry.attempts
    policy = retry(attempts=attempts, base_s=model.retry.base_s, max_s=model.retry.max_s)
    return [Layer(f"retry up to {attempts} attempts", policy)]
