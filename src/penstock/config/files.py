"""`load`: the settings from a file, or one `ConfigError` with file, line, key and what to write instead."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError

from penstock.config.document import Document, Path, read, text_of
from penstock.config.models import DEMO, ModelSettings
from penstock.config.problems import Source, keys_of, said
from penstock.config.providers import known_price, offered_llm
from penstock.config.section import unknown_key
from penstock.config.settings import SCOPES, RecordingSettings, ServerSettings, Settings
from penstock.config.tools import WrongTool, make_tools, tool_schemas
from penstock.errors import ConfigError
from penstock.llms.services import SERVICES, split

DEFAULT = "penstock.yaml"
COMMAND_LINE = "command line"
_WHERE = (
    "api",
    "api_key",
    "base_url",
    "headers",
    "params",
    "price",
    "timeout_s",
    "idle_timeout_s",
    "connect_timeout_s",
)
_UNBUILT: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("mcpServers",),
    ("store",): ("url",),
}


def load(path: str | None, env: Mapping[str, str], *, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of the file at `path`, by default of `penstock.yaml` where that exists, else the defaults.

    Files that it names are found from its own folder, wherever the process runs. `overrides` replace keys of the
    section `server`, and under "recordings" those of that section, as the command line does. Raises `ConfigError`.
    """
    file = path if path is not None else DEFAULT if FilePath(DEFAULT).is_file() else None
    written = dict(overrides or {})
    recordings = written.pop("recordings", {})
    unused = ("models",) if recordings.get("replay") else ()
    document = Document({}, {}) if file is None else read(text_of(file), file=file, env=env, without=unused)
    source = _Source(document, file or DEFAULT)
    settings = _placed(source.validated(), FilePath(file or DEFAULT).parent)
    source.refuse_doubles("models", [model.name for model in settings.models])
    source.refuse_doubles("auth.tokens", [token.name for token in settings.auth.tokens])
    source.check_addresses(settings, env)
    source.check_offered(settings)
    source.check_fallbacks(settings)
    source.check_prices(settings)
    source.refuse_doubles("tools", [tool.name for tool in settings.tools])
    source.check_agents(settings, env)
    permissions = source.check_tools(settings, env)
    source.check_scopes(settings, {*SCOPES, *permissions})
    settings = settings.model_copy(update={"recordings": _recordings(settings, recordings)})
    server = _overridden(settings.server, written)
    if not server.loopback and not settings.auth.tokens:
        problem = (
            f"the host {server.host!r} can be reached from other machines, but no token is configured: "
            "add auth.tokens (`penstock token new NAME` makes one), or use 127.0.0.1"
        )
        if "host" in (overrides or {}):
            raise ConfigError(problem, file=COMMAND_LINE, key="--host")
        raise source.wrong(problem, ("server", "host"))
    return settings.model_copy(update={"server": server})


def _placed(settings: Settings, folder: FilePath) -> Settings:
    """The settings with every file they name found from their own folder."""
    if folder == FilePath():
        return settings
    recorded = {name: str(folder / path) for name, path in settings.recordings if path is not None}
    return settings.model_copy(
        update={
            "store": settings.store.model_copy(update={"dir": str(folder / settings.store.dir)}),
            "recordings": settings.recordings.model_copy(update=recorded),
            "models": tuple(model.placed(folder) for model in settings.models),
            "tools": tuple(tool.placed(folder) for tool in settings.tools),
            "agents": tuple(agent.placed(folder) for agent in settings.agents),
        }
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of `penstock.yaml`, for editors."""
    made = Settings.model_json_schema()
    made["$defs"] |= tool_schemas()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _recordings(settings: Settings, overrides: Mapping[str, str]) -> RecordingSettings:
    """The section `recordings` with what the command line says in place of the file's."""
    return settings.recordings.model_copy(update=dict(overrides)) if overrides else settings.recordings


def _overridden(server: ServerSettings, overrides: Mapping[str, Any]) -> ServerSettings:
    try:
        return ServerSettings.model_validate({**server.model_dump(), **overrides})
    except ValidationError as error:
        first = error.errors()[0]
    problem = said(first, first["loc"], first["input"], unknown=lambda path: _unknown(path, ServerSettings))
    raise ConfigError(problem, file=COMMAND_LINE, key=f"--{first['loc'][0]}")


class _Source(Source):
    """The document that holds the settings."""

    def validated(self) -> Settings:
        """The document as settings; raises for the first problem in the file."""
        try:
            return Settings.model_validate(self._document.value)
        except ValidationError as error:
            found = error.errors()
        raise self.first(found, lambda path: _unknown(path, Settings))

    def check_addresses(self, settings: Settings, env: Mapping[str, str]) -> None:
        """Raise for a model whose service has no usual address and is given none."""
        for place, model in _places(settings):
            service = split(model.llm)[0]
            row = SERVICES.get(service)
            if row is None or model.base_url or row.base_url or env.get(row.base_env):
                continue
            problem = f"required for {service}: write the address of your resource, or set {row.base_env}"
            raise self.wrong(problem, (*place, "base_url"))

    def check_offered(self, settings: Settings) -> None:
        """Raise for a model whose provider is no service and cannot be made from what is written."""
        for place, model in _places(settings):
            service = split(model.llm)[0]
            if model.api and service in SERVICES and SERVICES[service].wire != "openai":
                raise self.wrong(f"{service} has one wire of its own: remove this key", ("models", place[1], "api"))
            if service == DEMO and (idle := [key for key in _WHERE if getattr(model, key)]):
                raise self.wrong(f"the demo model does not take {idle[0]!r}: remove it", (*place, idle[0]))
            if not model.deployments and "cooldown_s" in model.model_fields_set:
                raise self.wrong("only deployments cool down, and none is written: remove it", (*place, "cooldown_s"))
            if service in (*SERVICES, DEMO):
                continue
            try:
                offered_llm(model)
            except ConfigError as error:
                raise self.wrong(error.problem, (*place, error.key)) from error

    def check_fallbacks(self, settings: Settings) -> None:
        """Raise for a fallback that is no other model."""
        names = [model.name for model in settings.models]
        for number, model in enumerate(settings.models):
            for place, name in enumerate(model.fallback):
                if name == model.name or name not in names:
                    others = ", ".join(repr(other) for other in names if other != model.name) or "none"
                    problem = f"{name!r} is no other model: those that are configured are {others}"
                    raise self.wrong(problem, ("models", number, "fallback", place))

    def check_prices(self, settings: Settings) -> None:
        """Raise for a model whose price is unknown where money is counted."""
        fallbacks = {model.name: model.fallback for model in settings.models}
        counted = next((token.name for token in settings.auth.tokens if token.budget and token.budget.usd), None)
        for number, model in enumerate(settings.models):
            payers = [one.name for one in settings.models if one.budget and one.budget.usd is not None]
            payers = [name for name in payers if name == model.name or model.name in fallbacks[name]]
            if (payers or counted) and not all(known_price(place) for _, place in _places(settings, only=number)):
                who = f"the budget of the {f'model {payers[0]!r}' if payers else f'token {counted!r}'}"
                problem = f"required for {who}: the price of {model.llm!r} is not known here, so write input and output"
                raise self.wrong(problem, ("models", number, "price"))

    def check_scopes(self, settings: Settings, known: Collection[str]) -> None:
        """Raise for a scope that neither the server nor a tool asks for."""
        for number, token in enumerate(settings.auth.tokens):
            for place, scope in enumerate(token.scopes):
                if scope not in known:
                    listed = ", ".join(map(repr, sorted(known)))
                    problem = f"nothing asks for this scope: write one of {listed}"
                    raise self.wrong(problem, ("auth", "tokens", number, "scopes", place))

    def check_agents(self, settings: Settings, env: Mapping[str, str]) -> None:
        """Raise for an agent that cannot work as it is written."""
        if settings.agents:
            from penstock.config.agents import checked_agents

            checked_agents(settings.agents, self, settings, env)

    def check_tools(self, settings: Settings, env: Mapping[str, str]) -> set[str]:
        """The permissions that tools ask for; raises for a tool that cannot be made from what is written."""
        permissions: set[str] = set()
        for number, tool in enumerate(settings.tools):
            try:
                made = make_tools([tool], env, directory=settings.store.dir)
                permissions.update(made[tool.name].spec.permissions)
            except WrongTool as error:
                raise self.wrong(error.problem, ("tools", number, *error.path)) from error
        return permissions


def _places(settings: Settings, *, only: int | None = None) -> Iterator[tuple[Path, ModelSettings]]:
    """Each model at each of its deployments, with where it is written; of `only` one model where that is given."""
    for number, model in enumerate(settings.models):
        if only in (None, number):
            for place, deployment in enumerate(model.deployments):
                yield ("models", number, "deployments", place), model.deployed(deployment)
            if not model.deployments:
                yield ("models", number), model


def _unknown(path: Path, model: type[BaseModel]) -> str:
    *around, key = path
    section = tuple(part for part in around if isinstance(part, str))
    if key in _UNBUILT.get(section, ()):
        return f"{key!r} is not supported by this version: remove it"
    return unknown_key(key, keys_of(model, section))
