"""What the server runs: a chat completion and a tool's call, each as an executor with its request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from penstock.config.batches import Models
from penstock.config.listing import Model
from penstock.errors import Invalid, NotFound
from penstock.llms.prices import Price, usd
from penstock.policies.trace import Describe, describe_chat
from penstock.run import Executor, Principal
from penstock.server.sse import Encoding, fresh_id, usage_json
from penstock.server.wire import parse_chat

if TYPE_CHECKING:
    from penstock.tools.base import BaseToolExecutor
    from penstock.tools.result import ToolResult

    Tools = Mapping[str, BaseToolExecutor[Any]]

CHAT = frozenset(("/v1/chat/completions", "/chat/completions"))
BATCH = frozenset(("/v1/batch", "/batch"))
TOOL = re.compile(r"(?:/v1)?/tools/(.+)", re.DOTALL)
LONGEST_KEY = 255
MOST_SHOWN = 100


class Catalog(Models, Protocol):
    """Where the application finds its models; `penstock.config.Catalog` is one."""

    async def models(self) -> list[Model]:
        """All models that can be named."""
        ...

    async def model(self, name: str) -> Model:
        """One model; raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """One request as it is run: `find` gives its executor, or raises `NotFound`.

    `facts` go into the log, `render` makes the answer where that is not a completion, `encoder()` that of a stream.
    """

    find: Callable[[], Executor[Any, Any]]
    request: Any
    describe: Describe | None
    facts: dict[str, Any] = field(default_factory=dict)
    render: Callable[[Any], bytes] | None = None
    encoder: Callable[[], Encoding] | None = None
    effects: bool = False
    """Whether it goes on when its client leaves, unless the client says otherwise: how it ended is kept."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path that runs something: how logs and traces name it, the scope it asks for, and how a body becomes work."""

    path: str
    scope: str
    prepare: Callable[[bytes, Mapping[bytes, bytes]], Work]


def chat_endpoint(catalog: Catalog) -> Endpoint:
    """The endpoint of chat completions."""

    def prepare(body: bytes, headers: Mapping[bytes, bytes]) -> Work:
        refuse_key(headers)
        request = parse_chat(body)
        facts = {"model": request.model, "stream": request.stream}
        return Work(partial(catalog.find, request.model), request, describe_chat, facts)

    return Endpoint("/v1/chat/completions", "chat", prepare)


def refuse_key(headers: Mapping[bytes, bytes]) -> None:
    """Raise `Invalid` for an idempotency key, where it would not keep anything from running twice."""
    if b"idempotency-key" in headers:
        text = "idempotency keys are not supported for this path by this version"
        raise Invalid(text, param="idempotency-key", code="unsupported_value")


def tool_endpoint(tools: Tools, name: str) -> Endpoint:
    """The endpoint of one tool: its body is the tool's arguments."""

    def prepare(body: bytes, headers: Mapping[bytes, bytes]) -> Work:
        from penstock.tools.meter import describer
        from penstock.tools.result import ToolRequest

        tool = tools.get(name)
        if tool is None:
            text = f"no tool {name[:MOST_SHOWN]!r}: GET /v1/tools lists those you may call"
            raise NotFound(text, param="name", code="tool_not_found")
        request = ToolRequest(body, _key(headers, tool))
        return Work(
            lambda: tool,
            request,
            describer(tool.spec),
            {"tool": name},
            partial(_rendered, name),
            effects=tool.spec.idempotency.ledger,
        )

    return Endpoint("/v1/tools/{name}", "tools", prepare)


def _key(headers: Mapping[bytes, bytes], tool: BaseToolExecutor[Any]) -> str | None:
    """The idempotency key of a call; refused where it would not keep the call from running twice."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST_KEY:
        raise Invalid(f"an idempotency key has 1 to {LONGEST_KEY} characters", param="idempotency-key")
    if not (tool.spec.idempotency.ledger or tool.safe):
        text = f"the tool {tool.name!r} keeps no ledger, so a key would not keep it from running twice"
        raise Invalid(text, param="idempotency-key", code="unsupported_value")
    return key.decode("latin-1")


def listed(tools: Tools, principal: Principal) -> list[dict[str, Any]]:
    """The tools that a caller may use."""
    return [row(tool) for tool in tools.values() if all(map(principal.holds, tool.spec.permissions))]


def row(tool: BaseToolExecutor[Any]) -> dict[str, Any]:
    """A tool as it is listed: `function` is what a chat request takes in `tools`."""
    spec = tool.spec
    about = {"id": spec.id or tool.name, "object": "tool", "version": spec.version, "owner": spec.owner}
    return {**about, "permissions": list(spec.permissions), "return_target": spec.return_target, **tool.definition}


def model_row(model: Model) -> dict[str, Any]:
    """A model as it is listed, with what is known of it: limits in tokens, prices in USD for a million of them."""
    found: dict[str, Any] = {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by}
    if (info := model.info) is not None:
        price = None if info.price is None else _pricing(info.price)
        limits = {"context_window": info.context_window, "max_output_tokens": info.max_output_tokens}
        more = {**limits, "pricing": price, "capabilities": info.capabilities or None}
        found |= {name: value for name, value in more.items() if value is not None}
    return found


def _pricing(price: Price) -> dict[str, Any]:
    amounts = {name: getattr(price, name) for name in ("input", "output", "cached_input", "cache_write")}
    row: dict[str, Any] = {name: usd(amount) for name, amount in amounts.items() if amount is not None}
    return row if price.long is None else {**row, "over": price.over, "long": _pricing(price.long)}


def _rendered(name: str, result: ToolResult) -> bytes:
    from penstock.tools.value import encoded

    about = {"id": f"toolres_{fresh_id()}", "object": "tool.result", "tool": name}
    said = {"latency_s": round(result.latency_s, 6), "warnings": result.warnings}
    used = {} if result.usage is None else {"usage": usage_json(result.usage)}
    return msgspec.json.encode({**about, "content": msgspec.Raw(encoded(result.content)), **said, **used})
