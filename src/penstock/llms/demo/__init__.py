"""The demo model: an honest, rule-based stand-in for an LLM that works offline."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

import msgspec

from penstock.errors import BadRequest
from penstock.events import Chunks, Fold, Used
from penstock.llms.base import BaseLlm
from penstock.llms.demo import rules
from penstock.llms.demo.instance import Instances
from penstock.llms.demo.request import Params, ToolChoice, Turn, read
from penstock.llms.demo.tools import Arguments, Function, best, fitting
from penstock.messages import (
    ChatReply,
    ChatRequest,
    Chunk,
    ChunkChoice,
    CompletionTokens,
    Delta,
    FunctionDelta,
    PromptTokens,
    ToolCallDelta,
    Usage,
)
from penstock.policies import Policy
from penstock.run import Run

MODEL = "penstock-demo"
CREATED = 1_700_000_000
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PIECE = re.compile(r"\s*[^\s,]+,?|\s*,|\s+")
MOST_READ = 8_000


class _Answer(msgspec.Struct, frozen=True):
    """What is said in every choice: text, or calls as name and arguments, and why it ends."""

    finish_reason: str
    text: str | None = None
    calls: Sequence[tuple[str, str]] = ()


class Demo(BaseLlm):
    """Answers by rules, the same way each time, and says in the first answer of a conversation that it does.

    `pace_s` is the pause between two streamed words, in seconds. Tokens are counted one per word, number and
    punctuation mark. The rules read the first 8,000 letters of a prompt. Raises `BadRequest` for a request it cannot
    read and a JSON schema it cannot satisfy.
    """

    provider = "demo"

    def __init__(self, *, pace_s: float = 0.0, policies: Iterable[Policy] = ()) -> None:
        super().__init__(model=MODEL, policies=policies)
        self.pace_s = pace_s

    async def __call__(self, request: ChatRequest, run: Run, /) -> ChatReply:
        """Answer a request word by word, or at once when it does not stream."""
        turns = read(request.messages, list[Turn], "messages")
        params = read(dict(request.params), Params, "request")
        answer = _answer(turns, params)
        chunks = _streamed(answer, params.n or 1) if request.stream else _whole(answer, params.n or 1)
        name = _identity(request)
        prompt = sum(_tokens(turn.text) + _tokens_of_calls(turn) for turn in turns)
        fold, partial, abandoned = Fold(), True, False
        try:
            for number, choices in enumerate(chunks):
                if number and self.pace_s:
                    await asyncio.sleep(self.pace_s)
                view = Chunk(choices=choices, id=name, object="chat.completion.chunk", created=CREATED, model=MODEL)
                event = Chunks(views=[view])
                await run.emit(event)
                fold.add(event)
            partial = False
        except GeneratorExit:
            abandoned = True
            raise
        finally:
            usage = _usage(prompt, fold, partial=partial)
            if not abandoned:  # a closing coroutine cannot wait for a listener
                await run.emit(Used(usage=usage, model=MODEL, provider=self.provider, cost=Decimal(0)))
        return fold.reply(usage)


def _identity(request: ChatRequest) -> str:
    """A name for the answer that only the conversation and its parameters decide, not how it is sent."""
    params = {key: value for key, value in request.params.items() if key != "stream_options"}
    said = [request.messages, params]
    body = msgspec.json.encode(said, order="deterministic", enc_hook=lambda value: type(value).__name__)
    return f"chatcmpl-demo-{hashlib.sha256(body).hexdigest()[:12]}"


def _tokens(text: str) -> int:
    return sum(1 for _ in _TOKEN.finditer(text))


def _tokens_of_calls(turn: Turn) -> int:
    return sum(_tokens(call.function.name) + _tokens(call.function.arguments) for call in turn.tool_calls or ())


def _usage(prompt: int, fold: Fold, *, partial: bool) -> Usage:
    choices = fold.reply().choices
    said = sum(_tokens(choice.content or "") for choice in choices)
    called = sum(_tokens(call.name) + _tokens(call.arguments) for choice in choices for call in choice.tool_calls)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=said + called,
        total_tokens=prompt + said + called,
        prompt_tokens_details=PromptTokens(0),
        completion_tokens_details=CompletionTokens(0),
        partial=partial,
    )


def _answer(turns: Sequence[Turn], params: Params) -> _Answer:
    limit = params.max_completion_tokens or params.max_tokens
    prompt = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    if chosen := _chosen(turns, params, prompt[:MOST_READ]):
        arguments = Arguments(prompt[:MOST_READ])
        return _cut_calls([(tool.name, rules.as_json(arguments.of(tool))) for tool in chosen], limit)
    stops = [params.stop] if isinstance(params.stop, str) else params.stop or []
    return _cut_text(_text(turns, params, prompt), stops, limit)


def _chosen(turns: Sequence[Turn], params: Params, prompt: str) -> list[Function]:
    """The functions to call: those a client forces, else those the words ask for, none right after a tool's result."""
    offered = [tool.function for tool in params.tools or () if tool.function is not None]
    choice = params.tool_choice
    if isinstance(choice, ToolChoice) and choice.function is not None:
        named = [function for function in offered if function.name == choice.function.name]
        if not named:
            known = [function.name for function in offered]
            problem = f"tool_choice names {choice.function.name!r}, which is not among the offered tools {known!r}"
            raise BadRequest(problem, provider=Demo.provider, status=400)
        return named[:1]
    if not offered or choice == "none":
        return []
    chosen = [] if turns and turns[-1].role == "tool" else fitting(prompt, offered)
    if choice == "required" and not chosen:
        chosen = [best(prompt, offered)]
    return chosen[:1] if params.parallel_tool_calls is False else chosen


def _text(turns: Sequence[Turn], params: Params, prompt: str) -> str:
    system = "\n".join(turn.text for turn in turns if turn.role in ("system", "developer"))
    planned = rules.batch(f"{system}\n{prompt}") or rules.plan(system, prompt)
    form = params.response_format
    if form is not None and form.type == "json_schema" and form.json_schema and form.json_schema.schema is not None:
        instances = Instances(form.json_schema.schema)
        known = [planned, {"plans": planned}] if planned else []
        fit = next((value for value in known if instances.fits(value)), None)
        return rules.as_json(instances.smallest() if fit is None else fit)
    results = _results(turns)
    said = rules.from_results(results) if results else rules.answer(prompt[:MOST_READ])
    if form is not None and form.type != "text":
        return rules.as_json(({"plans": planned} if isinstance(planned, list) else planned) or {"answer": said})
    if planned and not results:
        return rules.as_json(planned)
    first = not any(turn.role == "assistant" for turn in turns)
    return f"{rules.INTRODUCTION} {said}" if first else said


def _results(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """The tool results that end the conversation, each with its function's name."""
    names = {call.id: call.function.name for turn in turns for call in turn.tool_calls or ()}
    results: list[tuple[str, str]] = []
    for turn in reversed(turns):
        if turn.role != "tool":
            break
        results.insert(0, (turn.name or names.get(turn.tool_call_id or "", ""), turn.text))
    return results


def _cut_text(text: str, stops: Iterable[str], limit: int | None) -> _Answer:
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    text = text[: min(ends)] if ends else text
    tokens = [token.end() for token in _TOKEN.finditer(text)]
    if limit is not None and len(tokens) > limit:
        return _Answer("length", text[: tokens[limit - 1]])
    return _Answer("stop", text)


def _cut_calls(calls: Sequence[tuple[str, str]], limit: int | None) -> _Answer:
    """The calls as far as a limit of tokens lets them be written."""
    left, kept = limit, list[tuple[str, str]]()
    for name, arguments in calls:
        if left is not None:
            left -= _tokens(name)
            tokens = [token.end() for token in _TOKEN.finditer(arguments)]
            if len(tokens) > left:
                kept += [(name, arguments[: tokens[left - 1]] if left > 0 else "")] if left >= 0 else []
                return _Answer("length", None if kept else "", kept)
            left -= len(tokens)
        kept.append((name, arguments))
    return _Answer("tool_calls", None, kept)


def _deltas(answer: _Answer) -> Iterator[Delta]:
    for piece in _PIECE.findall(answer.text or ""):
        yield Delta(content=piece)
    for index, (name, arguments) in enumerate(answer.calls):
        function = FunctionDelta(name=name, arguments="")
        yield Delta(
            tool_calls=[ToolCallDelta(index=index, id=f"call_demo_{index + 1}", type="function", function=function)]
        )
        yield Delta(tool_calls=[ToolCallDelta(index=index, function=FunctionDelta(arguments=arguments))])


def _streamed(answer: _Answer, count: int) -> Iterator[list[ChunkChoice]]:
    """One choice after another: who speaks, what is said, why it ends."""
    for index in range(count):
        first = Delta(role="assistant", content="" if answer.text is not None else None)
        yield [ChunkChoice(delta=first, index=index)]
        for delta in _deltas(answer):
            yield [ChunkChoice(delta=delta, index=index)]
        yield [ChunkChoice(delta=Delta(), index=index, finish_reason=answer.finish_reason)]


def _whole(answer: _Answer, count: int) -> Iterator[list[ChunkChoice]]:
    calls = [
        ToolCallDelta(
            index=n, id=f"call_demo_{n + 1}", type="function", function=FunctionDelta(name=name, arguments=arguments)
        )
        for n, (name, arguments) in enumerate(answer.calls)
    ]
    delta = Delta(role="assistant", content=answer.text, tool_calls=calls or None)
    yield [ChunkChoice(delta=delta, index=index, finish_reason=answer.finish_reason) for index in range(count)]
