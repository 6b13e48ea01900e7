"""`AgentConfig`: who can do tasks, and how: a model, a person, a command, or several agents together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, model_validator

from penstock.messages import AgentType
from penstock.tasks.bounds import Bounds, Name

Mode = Literal["api", "interactive", "cli", "hybrid"]
_ONLY: Mapping[str, tuple[str, ...]] = {
    "api": ("provider", "model", "instructions", "api_key", "base_url", "temperature", "max_tokens", "params", "batch"),
    "cli": ("command", "env", "cwd", "max_output_kb"),
    "hybrid": ("strategy", "agents", "rounds"),
    "interactive": (),
}


class AgentConfig(Bounds):
    """An agent by name.

    `api`: a model is asked. `provider` is a service or an `AgentType` and `model` one of its models; without a
    provider, `model` is a model that the configuration names. `instructions` are its system message. `api_key`,
    `base_url` and `params` (fields of the request that only this service knows) are as for a configured model. At most
    `batch` of its tasks that are ready together are asked in one call, where what runs them can share calls.

    `interactive`: a person is told what to do, and asked for the result.

    `cli`: `command` is run without a shell, the task as JSON on its stdin; it prints one JSON object `{"status",
    "output", "error", "usage"}` and exits with 0 (done), 1 (failed) or 2 (wrong configuration). Of the environment it
    sees PATH, HOME, LANG and the variables that `env` names; more than `max_output_kb` kilobytes of output fail it.

    `hybrid`: several `agents` do it: all at once, and the first result counts (`race`); each where the ones before
    failed (`fallback`); or the first does it and the second checks it (`review`), with at most `rounds` reworks.

    `effects` says that a task changes something outside, so that one that was interrupted is not simply done again:
    unless it is written, true of `cli` and `interactive` agents, and of a hybrid where it is true of one of its own.
    `concurrent` limits how many tasks it works on at once: its own, those it reviews, and those of hybrids it is in.
    """

    name: Name
    mode: Mode = "api"
    description: str = ""
    capabilities: tuple[Name, ...] = ()
    enabled: bool = True
    concurrent: Annotated[int, Field(ge=1)] | None = None
    effects: bool | None = None
    provider: AgentType | str = ""
    model: str = ""
    instructions: str = ""
    api_key: SecretStr | None = None
    base_url: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    batch: Annotated[int, Field(ge=2, le=100)] | None = None
    command: tuple[str, ...] = ()
    env: tuple[Name, ...] = ()
    cwd: str | None = None
    max_output_kb: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    strategy: Literal["race", "fallback", "review"] = "fallback"
    agents: tuple[Name, ...] = ()
    rounds: Annotated[int, Field(ge=0, le=10)] = 1

    @model_validator(mode="after")
    def _fits(self) -> AgentConfig:
        for mode, fields in _ONLY.items():
            foreign = sorted({*fields} & self.model_fields_set)
            if mode != self.mode and foreign:
                raise ValueError(f"{foreign[0]!r} is for agents of mode {mode!r}, and this one is {self.mode!r}")
        if self.mode == "api" and not (self.provider or self.model):
            raise ValueError("write model (one that is configured), or provider and model")
        if self.mode == "cli" and not self.command:
            raise ValueError("write command, a list such as [python, agent.py]")
        if self.mode == "hybrid" and len(self.agents) < 2:
            raise ValueError("write agents, a list of at least two")
        if self.mode == "hybrid" and self.strategy == "review" and not len(self.agents) == len({*self.agents}) == 2:
            raise ValueError("for review write two agents: the one who does it, and another who checks it")
        return self
