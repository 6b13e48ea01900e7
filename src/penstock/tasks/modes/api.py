"""How an agent of mode `api` works: its model is asked once, with the task as the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from penstock.errors import BadAnswer, Refused, UnknownName, UsageError
from penstock.messages import ChatReply, ChatRequest
from penstock.run import Executor, Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes import Answer, Work
from penstock.tasks.prompt import messages_of
from penstock.tasks.registry import provider_of

Chat: TypeAlias = Executor[ChatRequest, ChatReply]
Llms: TypeAlias = Callable[[AgentConfig], Chat]
Asking: TypeAlias = Callable[[AgentConfig, Chat], Executor[Work, Answer]]
"""Makes the executor of an agent's work from its LLM."""

CUT = "\n[cut: the model reached its limit of tokens]"
"""What ends an answer that a limit of tokens cut, so that nobody takes it for a whole one."""


def api(agent: AgentConfig, llm: Chat) -> Executor[Work, Answer]:  # noqa: ARG001  # each work names its agent
    """The executor of agents that this LLM works for: the answer is its text.

    Raises `Refused` where a content rule stopped the model, and `BadAnswer` where it gave no text.
    """

    async def call(work: Work, run: Run, /) -> Answer:
        agent = work.agent
        request = ChatRequest(model=agent.model, messages=messages_of(work), params=fields_of(work.agent, work.schema))
        return Answer(_text(await llm(request, run), agent, getattr(llm, "provider", "")), agent.name)

    return call


def fields_of(agent: AgentConfig, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of the request: the schema to fit, the agent's `params`, its temperature and limit of tokens.

    A `response_format` among the params wins, for services that know no schemas.
    """
    fields = dict[str, Any]()
    if schema is not None:
        form = {"name": "answer", "strict": True, "schema": schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    said = {"temperature": agent.temperature, "max_tokens": agent.max_tokens}
    return {**fields, **agent.params, **{name: value for name, value in said.items() if value is not None}}


def llm_of(agent: AgentConfig) -> Chat:
    """The LLM of an agent, by its provider, or by its model where that says both, such as "openai:gpt-5-mini".

    Raises `UnknownName` where there is none, `MissingExtra`, and `UsageError` where it cannot be made.
    """
    from penstock.llms.lookup import llm

    demo = provider_of(agent.provider or agent.model) == "demo"  # there is one demo model, whatever it is called
    options = {
        "model": agent.model if agent.provider and not demo else "",
        "api_key": agent.api_key.get_secret_value() if agent.api_key else "",
        "base_url": agent.base_url or "",
    }
    try:
        return llm(agent.provider or agent.model, **{name: value for name, value in options.items() if value})
    except UnknownName as error:
        raise UnknownName(f"the agent {agent.name!r}: {error.message}") from error
    except TypeError as error:
        raise UsageError(
            f"the agent {agent.name!r}: its provider {agent.provider!r} cannot be made: {error}"
        ) from error


def _text(reply: ChatReply, agent: AgentConfig, provider: str) -> str:
    choice = reply.first
    if choice.finish_reason == "content_filter" or choice.refusal:
        raise Refused(f"the model of {agent.name!r} refused: {choice.refusal or 'a content rule'}", provider=provider)
    if not reply.content.strip():
        why = f"finish_reason {choice.finish_reason!r}"
        raise BadAnswer(f"the model of {agent.name!r} gave no text ({why})", provider=provider)
    return reply.content + (CUT if choice.finish_reason == "length" else "")
