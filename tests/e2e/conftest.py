"""Fixtures: Penstock in front of llama.cpp, Penstock with nothing configured, and clients for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.e2e.gateway import penstock
from tests.rig.serving import Process
from tests.rig.tiny_llm import TinyLlm


@pytest.fixture(scope="session")
def gateway(tiny_llm: TinyLlm) -> Iterator[Process]:
    """Penstock in front of llama.cpp, told of it as a user would."""
    with penstock(env={"OPENAI_BASE_URL": tiny_llm.base_url}) as process:
        yield process


@pytest.fixture(scope="session")
def demo() -> Iterator[Process]:
    """Penstock with nothing configured."""
    with penstock() as process:
        yield process


def client(base_url: str) -> openai.OpenAI:
    """The official SDK, which repeats nothing here."""
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=20.0)


@pytest.fixture(scope="session")
def direct(tiny_llm: TinyLlm) -> Iterator[openai.OpenAI]:
    """The SDK on llama.cpp itself."""
    with client(tiny_llm.base_url) as sdk:
        yield sdk


@pytest.fixture(scope="session")
def through(gateway: Process) -> Iterator[openai.OpenAI]:
    """The SDK on Penstock in front of it."""
    with client(f"{gateway.base_url}/v1") as sdk:
        yield sdk
