"""An LLM by `provider:model`, by its agent type, and as another package offers it."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from penstock import AgentType, BaseLlm, Claude, Demo, Gemini, Gpt, llm
from penstock.errors import MissingExtra, UnknownName
from penstock.llms import LLMS

KEY = "sk-test-key-0"


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (AgentType.GOOGLE_GEMINI, Gemini),
        (AgentType.ANTHROPIC_CLAUDE, Claude),
        (AgentType.OPENAI_GPT, Gpt),
        (AgentType.LOCAL, Gpt),
        ("anthropic_claude", Claude),
        ("ANTHROPIC_CLAUDE", Claude),
    ],
)
def test_row_c3_an_agent_type_leads_to_its_llm(kind: str, made: type[BaseLlm]) -> None:
    found = llm(kind, model="some-model", api_key=KEY)
    assert type(found) is made
    assert found.model == "some-model"


def test_row_c3_an_unknown_type_is_said() -> None:
    with pytest.raises(UnknownName, match=r"^No LLM implementation found for agent type: bard"):
        llm("bard")
    with pytest.raises(ValueError, match=r"^No LLM implementation found for agent type: custom"):
        llm(AgentType.CUSTOM)


@pytest.mark.parametrize(
    ("name", "made", "provider", "model"),
    [
        ("anthropic:claude-x", Claude, "anthropic", "claude-x"),
        ("gemini/gemini-x", Gemini, "gemini", "gemini-x"),
        ("openai:gpt-x", Gpt, "openai", "gpt-x"),
        ("groq:vendor/llama:8b", Gpt, "groq", "vendor/llama:8b"),
        ("demo", Demo, "demo", "penstock-demo"),
    ],
)
def test_row_c3_a_name_leads_to_its_llm(name: str, made: type[BaseLlm], provider: str, model: str) -> None:
    found = llm(name)
    assert (type(found), found.provider, found.model) == (made, provider, model)


class Parrot(BaseLlm):
    """Repeats its prompt."""

    provider = "parrot"

    async def generate_content_async(self, messages: object, **params: object) -> str:
        return str(messages)


@pytest.fixture
def custom() -> Generator[None]:
    LLMS.register("custom", Parrot)
    yield
    LLMS.unregister("custom")


def test_row_c3_a_registered_class_is_found_by_its_type(custom: None) -> None:
    found = llm(AgentType.CUSTOM, model="grey")
    assert (type(found), found.model) == (Parrot, "grey")


def test_row_c3_a_package_offers_a_provider_with_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_llm.py").write_text(
        "from penstock import BaseLlm\n\n"
        "class Acme(BaseLlm):\n"
        "    provider = 'acme'\n"
        "    async def generate_content_async(self, messages, **params):\n"
        "        return 'acme'\n"
    )
    offer = tmp_path / "acme-1.0.dist-info"
    offer.mkdir()
    (offer / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (offer / "entry_points.txt").write_text("[penstock.llms]\nacme = acme_llm:Acme\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        found = llm("acme:one")
    finally:
        sys.modules.pop("acme_llm", None)
        LLMS.unregister("acme")
    assert (type(found).__name__, found.provider, found.model) == ("Acme", "acme", "one")


def test_the_bridge_says_how_to_install_what_it_needs() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'penstock\[litellm\]'"):
        llm("litellm:cohere/command-r")
