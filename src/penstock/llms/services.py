"""The services that are reached over HTTP: one row each, most of them on the OpenAI chat wire."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Service:
    """Where a service is, which environment variables name its key and address, and what is special about it."""

    name: str
    base_url: str
    key_env: str = ""
    base_env: str = ""
    local: bool = False
    key_header: str = "authorization"
    base_suffix: str = ""
    wire: str = "openai"
    """The name in `LLMS` of the class that speaks with it."""
    other_key_env: str = ""
    """A variable that wins over `key_env` where both are set."""
    headers: tuple[tuple[str, str], ...] = ()
    usage_on_request: bool = True
    """Whether a stream carries usage only when `stream_options.include_usage` asks for it."""
    takes_reasoning: bool = True
    """Whether messages may bring reasoning and `extra_content` back; a service that refuses them is not sent them."""

    @property
    def key_envs(self) -> tuple[str, ...]:
        """The variables that may hold its key, the first one wins."""
        return tuple(name for name in (self.other_key_env, self.key_env) if name)


SERVICES: dict[str, Service] = {
    row.name: row
    for row in (
        Service("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL", takes_reasoning=False),
        Service(
            "anthropic",
            "https://api.anthropic.com/v1",
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_BASE_URL",
            key_header="x-api-key",
            base_suffix="/v1",
            wire="anthropic",
            headers=(("anthropic-version", "2023-06-01"),),
        ),
        Service(
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            "GEMINI_API_KEY",
            "GEMINI_BASE_URL",
            key_header="x-goog-api-key",
            base_suffix="/v1beta",
            wire="gemini",
            other_key_env="GOOGLE_API_KEY",
        ),
        Service(
            "azure",
            "",
            "AZURE_OPENAI_API_KEY",
            "AZURE_OPENAI_ENDPOINT",
            key_header="api-key",
            base_suffix="/openai/v1",
            takes_reasoning=False,
        ),
        Service("ollama", "http://127.0.0.1:11434/v1", base_env="OLLAMA_BASE_URL", local=True),
        Service("vllm", "http://127.0.0.1:8000/v1", "VLLM_API_KEY", "VLLM_BASE_URL", local=True),
        Service("llamacpp", "http://127.0.0.1:8080/v1", "LLAMA_API_KEY", "LLAMACPP_BASE_URL", local=True),
        Service("lmstudio", "http://127.0.0.1:1234/v1", base_env="LMSTUDIO_BASE_URL", local=True),
        Service("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", "OPENROUTER_BASE_URL"),
        Service("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", "GROQ_BASE_URL", takes_reasoning=False),
        Service(
            "mistral",
            "https://api.mistral.ai/v1",
            "MISTRAL_API_KEY",
            "MISTRAL_BASE_URL",
            usage_on_request=False,
            takes_reasoning=False,
        ),
        Service("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", "DEEPSEEK_BASE_URL"),
        Service("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", "TOGETHER_BASE_URL"),
        Service("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", "FIREWORKS_BASE_URL"),
        Service("xai", "https://api.x.ai/v1", "XAI_API_KEY", "XAI_BASE_URL"),
    )
}


def split(llm: str) -> tuple[str, str]:
    """Service and model of `service:model` or `service/model`, split at the first of either."""
    found = re.search(r"[:/]", llm)
    return (llm[: found.start()], llm[found.end() :]) if found else (llm, "")
