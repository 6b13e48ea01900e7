"""`llm`: the LLM of a name such as "anthropic:claude-sonnet-4-5", or of an `AgentType`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.errors import UnknownName
from penstock.llms import LLMS
from penstock.llms.services import SERVICES, split
from penstock.messages import AgentType

if TYPE_CHECKING:
    from penstock.llms.base import BaseLlm

PROVIDERS = {
    AgentType.GOOGLE_GEMINI: "gemini",
    AgentType.ANTHROPIC_CLAUDE: "anthropic",
    AgentType.OPENAI_GPT: "openai",
    AgentType.LOCAL: "ollama",
    AgentType.CUSTOM: "custom",
}
"""The provider of each agent type; `custom` is there once it is registered in `LLMS`."""


def llm(name: str | AgentType, *, model: str = "", **options: Any) -> BaseLlm:
    """An LLM by `provider:model` (or `provider/model`), by its provider alone, or by its agent type.

    A provider is a row of `SERVICES`, a name registered in `LLMS`, or an entry point of the group `penstock.llms`.
    `options` go to its class: `llm("groq:llama-3.3-70b-versatile", api_key="...")`. Raises `UnknownName`, and
    `MissingExtra` where a package is not installed.
    """
    kind = next((kind for kind in AgentType if name in (kind.value, kind.name)), None)
    provider, written = (PROVIDERS[kind], "") if kind else split(name)
    if provider in SERVICES:
        row = SERVICES[provider]
        made: Any = LLMS.get(row.wire)
        options["service"] = row
    elif provider.lower() in LLMS.names():
        made = LLMS.get(provider)
    else:
        known = ", ".join(sorted({*SERVICES, *LLMS.names()}))
        raise UnknownName(f"No LLM implementation found for agent type: {name}. Known providers are {known}")
    if chosen := written or model:
        options["model"] = chosen
    return made(**options)  # type: ignore[no-any-return]
