"""`Catalog`: the executor behind a model's name; the one place where LLMs and policies are joined."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from penstock.chat.passthrough import PassthroughExecutor
from penstock.config.agents import lacking
from penstock.config.layers import Layers, deployed, fallback_layer, layers_of, token_layers
from penstock.config.listing import Listing, Model
from penstock.config.models import DEMO, REPLAY, ModelSettings
from penstock.config.providers import configured_llm, lacks_key, read_environment
from penstock.config.settings import Settings, TracingSettings
from penstock.config.spending import Candidate, candidates_of
from penstock.errors import NotFound
from penstock.llms import LLMS
from penstock.llms.remote import RemoteLlm
from penstock.llms.services import SERVICES, Service, split
from penstock.messages import ChatReply, ChatRequest
from penstock.policies import Policy, wrap
from penstock.run import Executor, Run

if TYPE_CHECKING:
    from penstock.llms.base import BaseLlm
    from penstock.llms.prices import ModelInfo
    from penstock.net import Secret

    Chat = Executor[ChatRequest, ChatReply]

DEMO_MODEL = "penstock-demo"
BOUND_NAMES = 1024
LONGEST_BOUND = 256
_QUOTED = 100


@dataclass(frozen=True, slots=True)
class Served:
    """A configured model or a provider as it is served: what wraps its LLM is named in `order`, the outermost first."""

    name: str
    llm: BaseLlm
    wrapped: Chat
    executor: Chat
    order: tuple[str, ...]
    listing: Listing | None = None
    candidates: tuple[Candidate, ...] = ()
    hides: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True)
class _Built:
    """An LLM, or a model's several deployments as one, and what will stand around it."""

    name: str
    llms: tuple[BaseLlm, ...]
    executor: Chat
    layers: Layers
    texts: tuple[str, ...] = ()
    model: ModelSettings | None = None
    candidates: tuple[Candidate, ...] = ()
    hides: tuple[Secret, ...] = ()

    @property
    def bare(self) -> Chat:
        """It as another model's fallback."""
        return self.layers.bare(self.executor)


class Renamed:
    """An LLM that is asked for a model by another name than the client's, and the keys it hides."""

    def __init__(self, llm: Chat, name: str, hides: tuple[Secret, ...] = ()) -> None:
        self._llm, self._name, self.hides = llm, name, hides

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Ask for the model by its other name."""
        if request.model != self._name:
            request = replace(request, model=self._name, data=None)
        return await self._llm(request, run)


class Catalog:
    """All models that are served: those the settings name, else those of every provider the environment names.

    `notices` are sentences to show at start. Raises `ConfigError` for an address in `env` that cannot be used.
    """

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        environment = read_environment(env)
        self.notices: list[str] = list(environment.notices)
        self._settings = settings
        self._since = int(time.time())
        replay, tracing = settings.recordings.replay, settings.tracing
        made = {} if replay else {model.name: _llms(model, env) for model in settings.models}
        models = [_built(model, tracing, made) for model in settings.models if made]
        if replay:
            others = [_alone(REPLAY, LLMS.get(REPLAY)(model=replay), tracing)]
        elif not models:
            others = [_alone(one.name, one.llm(), tracing) for one in environment.providers]
            others = others or [_alone(DEMO, LLMS.get(DEMO)(), tracing)]
        else:
            others = []
        self._recording = _recording(settings, [*models, *others])
        self._tokens = token_layers(settings.auth.tokens, self._candidates)
        wanted = {name for model in settings.models for name in model.fallback}
        spare = {built.name: built.bare for built in models if built.name in wanted}
        self._configured = {built.name: self._serve(built, spare) for built in models}
        self._providers = {built.name: self._serve(built) for built in others}
        self._by_llm: dict[tuple[str, str], Served] = {}
        self._others: dict[str, tuple[Candidate, ...]] = {}
        for model in settings.models if models else ():
            self._by_llm.setdefault(split(model.llm), self._configured[model.name])
            self.notices += _notices(model, env)
        self.notices += () if replay else lacking(settings.agents, env)
        self._bound = lru_cache(maxsize=BOUND_NAMES)(self._bind)

    @property
    def served(self) -> tuple[Served, ...]:
        """What is served: the configured models, else the providers."""
        return tuple((self._configured or self._providers).values())

    @property
    def configured(self) -> bool:
        """Whether the settings name the models; otherwise providers serve, each under all its models' names."""
        return bool(self._configured)

    def find(self, model: str) -> Chat:
        """The executor for a requested model: a configured name, `provider:model`, or the one provider's own name.

        Raises `NotFound` with the code `model_not_found`.
        """
        served, name = self._resolve(model)
        if self._configured or name == model:
            return served.executor
        return (self._bound if len(name) <= LONGEST_BOUND else self._bind)(served.name, name)

    def meant(self, model: str) -> str:
        """A name that somebody gives at a command line, who does not mean the demo model by any other one's.

        The demo model answers to every name as long as nothing is configured. Raises `NotFound`.
        """
        prefix, rest = split(model)
        if [*self._providers] == [DEMO] and DEMO not in {model, prefix} and model != DEMO_MODEL:
            known = SERVICES.get(prefix if rest else "") or _maker(model)
            service = known or SERVICES["openai"]
            variable = service.base_env if service.local else " or ".join(service.key_envs)
            more = "" if known else ", or the key of another provider"
            text = f"no model {_quoted(model)}: nothing is configured, so that only {DEMO_MODEL!r} answers"
            raise _not_found(f"{text}: set {variable}{more}")
        return model

    def provider(self, model: str) -> str:
        """Whose a requested model is; raises `NotFound`."""
        return self._resolve(model)[0].llm.provider

    def info(self, model: str) -> ModelInfo | None:
        """What is known of a requested model, without asking its provider; raises `NotFound`."""
        served, own = self._resolve(model)
        return served.llm.info if self._configured else served.llm.info_of(own)

    def hides(self, model: str) -> tuple[Secret, ...]:
        """The keys of all that may come to answer for a requested model; raises `NotFound`."""
        return self._resolve(model)[0].hides

    def made(self, model: ModelSettings, env: Mapping[str, str], *, pace_s: float = 0.0) -> Renamed:
        """The executor for a model that stands elsewhere, such as an agent's, inside what is configured for all.

        `pace_s` is that of the demo model, in seconds. Raises `ConfigError` for an address in `env`, or a provider,
        that cannot be used.
        """
        if self._settings.recordings.replay:
            return Renamed(self.find(model.llm), model.llm)
        demo: Any = LLMS.get(DEMO)
        llm: BaseLlm = demo(pace_s=pace_s) if split(model.llm)[0] == DEMO else configured_llm(model, env)
        self._others[model.llm] = candidates_of([llm])
        built = _alone(model.name, llm, self._settings.tracing)
        wrapped = wrap(llm, (layer.policy for layer in built.layers.whole()))
        outer = (*_recording(self._settings, [built]), *(layer.policy for layer in self._tokens))
        return Renamed(PassthroughExecutor(wrap(wrapped, outer)), model.llm, llm.hides)

    async def models(self) -> list[Model]:
        """The configured models, else those that each provider lists, by names that `find` takes."""
        if self._configured:
            return [
                Model(served.name, self._since, served.llm.provider, served.llm.info)
                for served in self._configured.values()
            ]
        listed = await asyncio.gather(*(self._list(served) for served in self._providers.values()))
        return [model for models in listed for model in models or ()]

    async def model(self, name: str) -> Model:
        """One model; where its provider does not list any, every name is taken for one. Raises `NotFound`."""
        served, own = self._resolve(name)
        if self._configured:
            return self._row(name, served)
        known = await self._list(served)
        if known is None:
            return Model(name, self._since, served.name, served.llm.info_of(own))
        wanted = {name, self._listed(served.name, own)}
        found = next((model for model in known if model.id in wanted), None)
        if found is None:
            raise _not_found(f"the provider {served.name!r} lists no model {_quoted(own)}")
        return replace(found, id=name)

    def _row(self, name: str, served: Served) -> Model:
        return Model(name, self._since, served.llm.provider, served.llm.info)

    def _resolve(self, model: str) -> tuple[Served, str]:
        """Who answers for a requested name, and the name to ask it for."""
        if self._configured:
            found = self._configured.get(model) or self._by_llm.get(split(model))
            if found is None:
                names = ", ".join(map(repr, self._configured))
                raise _not_found(f"no model {_quoted(model)}: the configuration serves {names}")
            return found, model
        prefix, rest = split(model)
        if prefix in self._providers and rest:
            return self._providers[prefix], rest
        if len(self._providers) == 1 and not (prefix in self._providers and prefix != model):
            return next(iter(self._providers.values())), model
        raise _not_found(self._unclear(model, prefix, rest))

    def _unclear(self, model: str, prefix: str, rest: str) -> str:
        names = ", ".join(self._providers)
        if prefix in self._providers and prefix != model:
            return f"no model is named after {prefix!r}: write {prefix}:MODEL"
        if rest and prefix in (*SERVICES, DEMO):
            return f"the provider {prefix!r} is not served here: its variables are not set; served are {names}"
        first = next(iter(self._providers))
        return f"several providers serve ({names}): write which one, as in '{first}:{model[:_QUOTED]}'"

    def _bind(self, provider: str, name: str) -> Chat:
        served = Renamed(self._providers[provider].wrapped, name)
        return PassthroughExecutor(wrap(served, (*self._recording, *(layer.policy for layer in self._tokens))))

    def _serve(self, built: _Built, spare: Mapping[str, Chat] | None = None) -> Served:
        """An LLM inside its policies, with its place in the catalog; `spare` are the models it may fall back to."""
        model, llm = built.model, built.llms[0]
        fallback = fallback_layer(model, spare) if model and spare else ()
        layers = built.layers.whole(fallback)
        wrapped = wrap(built.executor, (layer.policy for layer in layers))
        order = [*(layer.text for layer in (*self._tokens, *layers)), *built.texts]
        limits: Any = getattr(llm, "limits", None)
        if limits is not None:
            order.append(f"timeout {limits.total_s:g} s, idle {limits.idle_s:g} s, connect {limits.connect_s:g} s")
        order.append(" or ".join(dict.fromkeys(f"{one.provider}:{one.model}".rstrip(":") for one in built.llms)))
        outer = (*self._recording, *(layer.policy for layer in self._tokens))
        executor = PassthroughExecutor(wrap(wrapped, outer), allow=model.allow if model else ())
        listing = Listing(llm) if model is None and isinstance(llm, RemoteLlm) else None
        return Served(built.name, llm, wrapped, executor, tuple(order), listing, built.candidates, built.hides)

    def _candidates(self, request: ChatRequest) -> tuple[Candidate, ...]:
        """The models that may come to answer a request by a client's name for one."""
        if request.model in self._others:
            return self._others[request.model]
        served, name = self._resolve(request.model)
        return served.candidates or candidates_of([served.llm], name)

    async def _list(self, served: Served) -> list[Model] | None:
        if served.name == REPLAY:
            recorded: Any = served.llm
            return [Model(name, self._since, REPLAY) for name in recorded.models()]
        if served.listing is None:
            return [Model(DEMO_MODEL, self._since, "penstock", served.llm.info)]
        known = await served.listing.models()
        if known is None:
            return None
        return [replace(model, id=self._listed(served.name, model.id)) for model in known]

    def _listed(self, provider: str, model: str) -> str:
        """A provider's model by a name that `find` leads to it: its own where that is clear."""
        clear = len(self._providers) == 1 and split(model)[0] not in self._providers
        return model if clear else f"{provider}:{model}"


def _notices(model: ModelSettings, env: Mapping[str, str]) -> Iterator[str]:
    places = [model.deployed(deployment) for deployment in model.deployments] or [model]
    for key in dict.fromkeys(lacks_key(place, env) for place in places):
        if key:
            yield f"the model {model.name!r} has no api_key, and {key} is not set"
    if model.faults:
        yield f"the model {model.name!r} fails on purpose: {', '.join(model.faults)}"


def _llms(model: ModelSettings, env: Mapping[str, str]) -> tuple[BaseLlm, ...]:
    places = [model.deployed(deployment) for deployment in model.deployments] or [model]
    return tuple(configured_llm(place, env) for place in places)


def _built(model: ModelSettings, tracing: TracingSettings, made: Mapping[str, tuple[BaseLlm, ...]]) -> _Built:
    """A configured model; `made` are the LLMs of all, for it may come to be answered by those it falls back to."""
    llms = made[model.name]
    asked = [*llms, *(llm for name in model.fallback for llm in made[name])]
    candidates, hides = candidates_of(asked), tuple(secret for llm in asked for secret in llm.hides)
    executor, texts = deployed(model, llms)
    layers = layers_of(model, tracing, lambda _: candidates)
    return _Built(model.name, llms, executor, layers, texts, model, candidates, hides)


def _alone(name: str, llm: BaseLlm, tracing: TracingSettings) -> _Built:
    """An LLM that the configuration does not name."""
    return _Built(name, (llm,), llm, layers_of(None, tracing, lambda _: ()), hides=llm.hides)


def _recording(settings: Settings, built: Iterable[_Built]) -> tuple[Policy, ...]:
    """What writes each exchange into a folder, without the keys of any LLM or caller; nothing without a folder."""
    directory = settings.recordings.record
    if directory is None:
        return ()
    from penstock.llms.replay.recording import recording

    keys = [secret for one in built for llm in one.llms for secret in getattr(llm, "secrets", ())]
    tokens = [token.value.get_secret_value() for token in settings.auth.tokens if token.value]
    return (recording(directory, secrets=[*keys, *tokens]),)


def _maker(model: str) -> Service | None:
    """The service that the table of models knows a model of."""
    from penstock.llms.prices import model_info

    return next((row for row in SERVICES.values() if not row.local and model_info(row.name, model)), None)


def _not_found(message: str) -> NotFound:
    return NotFound(message, param="model", code="model_not_found")


def _quoted(model: str) -> str:
    return repr(model if len(model) <= _QUOTED else f"{model[:_QUOTED]}...")
