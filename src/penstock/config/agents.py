"""The section `agents`, of `penstock.yaml` and of project files: who can do tasks, and what they are checked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationError, model_validator

from penstock.config.models import DEMO, ModelSettings, Params, RetrySettings
from penstock.config.providers import lacks_key, offered_llm
from penstock.config.section import FromEnvironment, Name, Section, number
from penstock.config.values import Address, Count, Flag, Money, Seconds, Text
from penstock.errors import ConfigError, CyclicPlan, NotFound, UsageError
from penstock.llms import LLMS
from penstock.llms.lookup import PROVIDERS
from penstock.llms.services import SERVICES
from penstock.messages import AgentType
from penstock.tasks.agents import AgentConfig
from penstock.tasks.graph import graph_of, near, path_of

if TYPE_CHECKING:
    from penstock.config.document import Path as Place
    from penstock.config.problems import Source
    from penstock.config.settings import Settings

PACE = "pace_s"
"""The one of `params` that the demo model takes: its pause between two words, in seconds."""
_SLOWEST_S = 10.0
_KINDS = {name: service for kind, service in PROVIDERS.items() for name in (kind.value, kind.name)}


def _provider(value: Any) -> Any:
    known = {*(kind.value for kind in AgentType), *SERVICES, *LLMS.names()}
    if not isinstance(value, str) or value in known or value in _KINDS:
        return value
    hidden = isinstance(value, FromEnvironment)
    raise ValueError(
        f"no such provider: {near('', known)}" if hidden else f"no provider {value!r}: {near(value, known)}"
    )


class SpendSettings(Section):
    """What a task may spend in all: tokens, USD, or both."""

    tokens: Count | None = None
    usd: Annotated[Money, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _some(self) -> SpendSettings:
        if self.tokens is None and self.usd is None:
            raise ValueError("write tokens, usd, or both")
        return self


class AgentSettings(Section):
    """An agent under a name: the fields of `AgentConfig`."""

    name: Name
    mode: Literal["api", "interactive", "cli", "hybrid"] = "api"
    description: str | None = None
    capabilities: Annotated[tuple[Name, ...], Strict(strict=False)] = ()
    enabled: Flag = True
    concurrent: Count | None = None
    effects: Flag | None = None
    timeout_s: Seconds | None = None
    retry: RetrySettings | None = None
    budget: SpendSettings | None = None
    provider: Annotated[str, BeforeValidator(_provider)] | None = None
    model: Name | None = None
    instructions: str | None = None
    api_key: Text | None = None
    base_url: Address | None = None
    temperature: Annotated[float, Field(ge=0, le=2), BeforeValidator(number)] | None = None
    max_tokens: Count | None = None
    params: Params = Field(default_factory=dict)
    batch: Annotated[int, Field(ge=2, le=100), BeforeValidator(number)] | None = None
    command: Annotated[tuple[Name, ...], Strict(strict=False)] = ()
    env: Annotated[tuple[Name, ...], Strict(strict=False)] = ()
    cwd: Annotated[str, Field(min_length=1)] | None = None
    max_output_kb: Annotated[int, Field(ge=1, le=1 << 20), BeforeValidator(number)] = 1024
    strategy: Literal["race", "fallback", "review"] = "fallback"
    agents: Annotated[tuple[Name, ...], Strict(strict=False)] = ()
    rounds: Annotated[int, Field(ge=0, le=10), BeforeValidator(number)] = 1

    def placed(self, folder: Path) -> AgentSettings:
        """The same agent with its command run in the folder of the file, or in one that is found from there."""
        if self.mode != "cli" or (folder == Path() and self.cwd is None):
            return self
        return self.model_copy(update={"cwd": str(folder / (self.cwd or ""))})

    @property
    def written(self) -> dict[str, Any]:
        """The fields that say something, as `AgentConfig` takes them."""
        said = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        plain = {name: value.model_dump() if isinstance(value, Section) else value for name, value in said.items()}
        return {name: value for name, value in plain.items() if value is not None}

    @property
    def config(self) -> AgentConfig:
        """The agent as the registry takes it; raises pydantic's `ValidationError`."""
        return AgentConfig(**self.written)


def service_of(agent: AgentSettings | AgentConfig) -> str:
    """The service, or the name in `LLMS`, of an agent's provider; empty where the configuration names its model."""
    provider = agent.provider or ""
    return _KINDS.get(provider, provider)


def modelled(agent: AgentSettings | AgentConfig) -> ModelSettings:
    """The model of an agent that names its provider, as the section `models` would have it.

    Its `params` go with each request instead. Raises pydantic's `ValidationError`.
    """
    service = service_of(agent)
    llm = f"{service}:{agent.model}" if agent.model else service
    written = {"name": agent.name, "llm": llm, "api_key": agent.api_key, "base_url": agent.base_url}
    return ModelSettings.model_validate({key: value for key, value in written.items() if value})


def pace_of(params: Mapping[str, Any]) -> float:
    """The pause between two words of the demo model, in seconds; raises `UsageError` for what it does not take."""
    for name, value in params.items():
        if name != PACE:
            raise UsageError(f"the demo model does not take {name!r}: of params it knows {PACE} only")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _SLOWEST_S:
            raise UsageError(f"write {PACE} as seconds from 0 to {_SLOWEST_S:g}")
    return float(params.get(PACE, 0))


def lacking(agents: Iterable[AgentSettings | AgentConfig], env: Mapping[str, str]) -> Iterator[str]:
    """What to say at start of agents whose service needs a key, where there is none."""
    for agent in agents:
        if service_of(agent) in SERVICES and (key := lacks_key(modelled(agent), env)):
            yield f"the agent {agent.name!r} has no api_key, and {key} is not set"


def checked_agents(
    agents: Sequence[AgentSettings],
    source: Source,
    settings: Settings,
    env: Mapping[str, str],
    *,
    others: Iterable[AgentConfig] = (),
) -> tuple[AgentConfig, ...]:
    """The agents of a file's section `agents`, each one fit to work; raises `ConfigError` at the first that is not.

    `others` are those that members of a hybrid agent may be besides.
    """
    source.refuse_doubles("agents", [agent.name for agent in agents])
    made: list[AgentConfig] = []
    for place, agent in enumerate(agents):
        made.append(_fitting(agent, ("agents", place), source))
        _check_provider(agent, ("agents", place), source, env)
    _check_models(agents, source, settings, env)
    members = {agent.name: agent.agents for agent in (*others, *made)}
    for place, agent in enumerate(agents):
        for at, member in enumerate(agent.agents):
            if member not in members:
                problem = f"no agent {member!r}: {near(member, {*members} - {agent.name})}"
                raise source.wrong(problem, ("agents", place, "agents", at))
    try:
        graph_of({agent: [name for name in asked if name in members] for agent, asked in members.items()})
    except CyclicPlan as error:
        place = next(place for place, agent in enumerate(agents) if agent.name in error.path)
        problem = f"agents ask each other in a circle: {path_of(error.path)}; take one out"
        raise source.wrong(problem, ("agents", place, "agents")) from error
    return tuple(made)


def _fitting(agent: AgentSettings, place: Place, source: Source) -> AgentConfig:
    """The agent where its fields fit its mode."""
    problem, written = _problem(agent.written), agent.written
    if not problem:
        return agent.config
    spare = [key for key in written if key not in ("name", "mode")]
    for key in (*spare, "mode"):  # the first without which this problem is gone is where it stands
        if key in written and _problem({name: value for name, value in written.items() if name != key}) != problem:
            raise source.wrong(problem, (*place, key))
    raise source.wrong(problem, place)


def _problem(written: Mapping[str, Any]) -> str:
    try:
        AgentConfig(**written)
    except ValidationError as error:
        first = error.errors()[0]
        return str(first.get("ctx", {}).get("error", first["msg"]))
    return ""


def _check_provider(agent: AgentSettings, place: Place, source: Source, env: Mapping[str, str]) -> None:
    """Raise where no LLM can be made of an agent's provider."""
    service = service_of(agent)
    row = SERVICES.get(service)
    if not service:
        idle = next((key for key in ("api_key", "base_url") if getattr(agent, key)), "")
        if idle:
            raise source.wrong("only an agent with a provider has one: models have their own", (*place, idle))
        return
    if service == DEMO:
        _check_demo(agent, place, source)
    elif not agent.model:
        raise source.wrong(f"required for the provider {agent.provider!r}: write one of its models", (*place, "model"))
    elif row is None:
        try:
            offered_llm(modelled(agent))
        except ConfigError as error:
            key = "provider" if error.key == "llm" else error.key
            raise source.wrong(error.problem, (*place, key)) from error
    elif not (agent.base_url or row.base_url or env.get(row.base_env)):
        problem = f"required for {service}: write the address of your resource, or set {row.base_env}"
        raise source.wrong(problem, (*place, "base_url"))


def _check_demo(agent: AgentSettings, place: Place, source: Source) -> None:
    for key in ("model", "api_key", "base_url"):
        if getattr(agent, key):
            raise source.wrong(f"the demo model does not take {key!r}: remove it", (*place, key))
    try:
        pace_of(agent.params)
    except UsageError as error:
        raise source.wrong(error.message, (*place, "params")) from None


def _check_models(agents: Sequence[AgentSettings], source: Source, settings: Settings, env: Mapping[str, str]) -> None:
    """Raise for an agent whose model the configuration does not serve, or that only the demo model would answer to."""
    bare = [(place, agent.model) for place, agent in enumerate(agents) if agent.model and not agent.provider]
    if not bare:
        return
    from penstock.config.catalog import Catalog

    catalog, names = Catalog(settings, env), [model.name for model in settings.models]
    for place, model in bare:
        try:
            catalog.find(catalog.meant(model))
        except NotFound as error:
            hint = f": {near(model, names)}" if catalog.configured and get_close_matches(model, names, 1, 0.6) else ""
            raise source.wrong(f"{error.message}{hint}", ("agents", place, "model")) from None
