"""LLM providers: each one class that turns its wire into the one set of messages and events."""

from penstock.llms.base import BaseLlm
from penstock.registry import Registry

LLMS: Registry[type[BaseLlm]] = Registry("LLM provider", group="penstock.llms")
LLMS.register("demo", "penstock.llms.demo:Demo")
LLMS.register("openai", "penstock.llms.openai:Gpt")
LLMS.register("anthropic", "penstock.llms.anthropic:Claude")
LLMS.register("gemini", "penstock.llms.gemini:Gemini")
LLMS.register("litellm", "penstock.llms.litellm:Litellm")
LLMS.register("replay", "penstock.llms.replay:Replay")
