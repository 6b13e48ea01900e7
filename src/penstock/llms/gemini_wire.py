"""Reads what Google's generateContent answers, streamed or whole (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from penstock.errors import BadAnswer, LlmError, Refused
from penstock.llms.answer import Broke, NativeReading, Whole
from penstock.llms.failures import Who, from_said
from penstock.messages import (
    Chunk,
    ChunkChoice,
    CompletionTokens,
    Delta,
    FunctionDelta,
    PromptTokens,
    ToolCallDelta,
    Usage,
    is_array,
    is_object,
    merged,
)

FINISHES = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        (
            "SAFETY",
            "RECITATION",
            "LANGUAGE",
            "BLOCKLIST",
            "PROHIBITED_CONTENT",
            "SPII",
            "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
            "ESCALATION",
            "MODEL_ARMOR",
        ),
        "content_filter",
    ),
}
"""OpenAI's word for each reason to end; one that is not here is no end of an answer, but the failure of one."""


class _Call(msgspec.Struct, gc=False):
    name: str = ""
    args: dict[str, Any] | None = None
    id: str | None = None


class _Part(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    thought: bool = False
    thought_signature: str | None = None
    function_call: _Call | None = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] = []


class _Token(msgspec.Struct, gc=False, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class _Tops(msgspec.Struct, gc=False):
    candidates: list[_Token] = []


class _Logprobs(msgspec.Struct, gc=False, rename="camel"):
    chosen_candidates: list[_Token] = []
    top_candidates: list[_Tops] = []


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    index: int | None = None
    logprobs_result: _Logprobs | None = None
    grounding_metadata: Any = None


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None
    block_reason_message: str | None = None


class _Counts(msgspec.Struct, gc=False, rename="camel"):
    prompt_token_count: int = 0
    tool_use_prompt_token_count: int = 0
    cached_content_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] = []
    usage_metadata: _Counts | None = None
    response_id: str | None = None
    model_version: str | None = None
    prompt_feedback: _Feedback | None = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer).decode
_any = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Choice:
    """What must be remembered of one candidate between its chunks; `end` is its last word so far."""

    __slots__ = ("calls", "end", "others")

    def __init__(self) -> None:
        self.calls = self.others = 0
        self.end: str | None = None


_NOTHING = Delta()


class GeminiReading(NativeReading):
    """Every event is a whole answer of its own, which holds the next parts of each candidate.

    As some services write a reason to end into every event, the one that counts is told when the stream is at its end.
    """

    __slots__ = ("_choices", "_id", "_who")

    def __init__(self, who: Who) -> None:
        self._who = who
        self._choices: dict[int, _Choice] = {}
        self._id = ""

    def view(self, payload: bytes) -> Chunk | None:
        """The chunk that one event means; its usage is partial as long as a candidate goes on."""
        try:
            answer = _decoded(payload)
            if answer.error:
                raise from_said(_any(payload), who=self._who)
            failure = self._failure(answer)
            view = self._view(answer, payload, final=failure is not None)
        except _UNREADABLE as error:
            raise self._bad(f"sent a malformed answer: {error}") from error
        if failure is None:
            return view
        raise failure if view is None else Broke(failure, view)

    def whole(self, body: bytes) -> Whole:
        """An unstreamed answer as one chunk."""
        view = self.view(body) or Chunk(choices=[])
        if view.choices and not self.complete:
            raise self._bad("sent an answer that has not ended")
        self.close(view)
        raw, view.raw = view.raw, None
        return view, None, raw

    def close(self, closing: Chunk) -> None:
        """Give the choices of a last chunk the reasons they ended for."""
        for choice in closing.choices:
            known = self._choices[choice.index]
            end = known.end or choice.finish_reason
            choice.finish_reason = "tool_calls" if known.calls and end == "stop" else end

    def _failure(self, answer: _Answer) -> LlmError | None:
        """What the service said in place of an answer, or of the rest of one."""
        name, feedback = self._who.provider, answer.prompt_feedback
        if feedback is not None and feedback.block_reason and not answer.candidates:
            text = f"{name} refused the prompt with {feedback.block_reason!r}{_why(feedback.block_reason_message)}"
            return from_said({"message": text, "code": feedback.block_reason}, Refused, who=self._who)
        for one in answer.candidates:
            if one.finish_reason and one.finish_reason not in FINISHES:
                text = f"{name} broke off its answer with {one.finish_reason!r}{_why(one.finish_message)}"
                return from_said({"message": text, "code": one.finish_reason}, BadAnswer, who=self._who)
        return None

    def _view(self, answer: _Answer, payload: bytes, *, final: bool) -> Chunk | None:
        self._id = answer.response_id or self._id
        choices: list[ChunkChoice] = []
        kept: list[_Candidate] = []
        scored = False
        for place, one in enumerate(answer.candidates):
            choice = self._choice(place, one, payload)
            if one.logprobs_result is not None:
                scored = True
            elif choice.delta == _NOTHING:
                continue
            choices.append(choice)
            kept.append(one)
        self.complete = self._ended()
        counts = answer.usage_metadata
        usage = None if counts is None else _usage(counts, partial=not (final or self.complete))
        if not choices and usage is None:
            return None
        view = Chunk(choices, answer.response_id, None, None, answer.model_version, usage)
        if scored:
            view.raw = _with_logprobs(kept)
        return view

    def _ended(self) -> bool:
        for choice in self._choices.values():  # a loop costs less than a generator, for each chunk
            if not choice.end:
                return False
        return bool(self._choices)

    def _choice(self, place: int, said: _Candidate, payload: bytes) -> ChunkChoice:
        index = place if said.index is None else said.index
        delta = Delta()
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
            delta.role = "assistant"
        if said.content is not None:
            for number, part in enumerate(said.content.parts):
                if part.function_call is not None:
                    delta.tool_calls = [*(delta.tool_calls or ()), self._call(choice, part, part.function_call, index)]
                elif part.text is None and not part.thought_signature:
                    _add_other(choice, delta, _any(payload)["candidates"][place]["content"]["parts"][number])
                else:
                    _add_text(delta, part)
        if said.finish_reason:
            choice.end = FINISHES.get(said.finish_reason)
        elif delta.content or delta.reasoning or delta.tool_calls:
            choice.end = None
        if said.grounding_metadata is not None:
            _add_extra(delta, {"grounding_metadata": said.grounding_metadata})
        return ChunkChoice(index=index, delta=delta)

    def _call(self, choice: _Choice, part: _Part, call: _Call, index: int) -> ToolCallDelta:
        """A whole call. An id is derived where the service gives none: the same recorded answer has the same ids."""
        number, choice.calls = choice.calls, choice.calls + 1
        stem = f"{self._id}_{index}" if self._id else uuid.uuid4().hex
        arguments = msgspec.json.format(msgspec.json.encode(call.args or {}), indent=0).decode()
        signature = part.thought_signature
        return ToolCallDelta(
            index=number,
            id=call.id or f"call_{stem}_{number}",
            type="function",
            function=FunctionDelta(call.name, arguments),
            extra_content={"google": {"thought_signature": signature}} if signature else None,
        )

    def _bad(self, what: str) -> BadAnswer:
        return BadAnswer(f"{self._who.provider} {what}", provider=self._who.provider)


def _why(said: str | None) -> str:
    return f": {said}" if said else ""


def _decoded(payload: bytes) -> _Answer:
    try:
        return _answer(payload)
    except msgspec.ValidationError:  # a proxy may write null for what is not there, and counts as texts
        return msgspec.convert(_without_nulls(_any(payload)), _Answer, strict=False)


def _without_nulls(said: Any) -> Any:
    """JSON without the fields that are null, but for what a model wrote."""
    if is_array(said):
        return [_without_nulls(item) for item in said]
    if not is_object(said):
        return said
    kept = {key: value for key, value in said.items() if value is not None}
    return {key: value if key == "args" else _without_nulls(value) for key, value in kept.items()}


def _add_text(delta: Delta, part: _Part) -> None:
    text = part.text
    if text and part.thought:
        delta.reasoning_content = delta.reasoning = (delta.reasoning or "") + text
    elif text:
        delta.content = text if delta.content is None else delta.content + text
    if part.thought_signature:
        _add_extra(delta, {"thought_signature": part.thought_signature})


def _add_other(choice: _Choice, delta: Delta, part: Any) -> None:
    """Keep a part that OpenAI's wire has no place for, such as code that was run: its service wants it back."""
    if is_object(part) and part:
        _add_extra(delta, {"parts": [{"index": choice.others, **part}]})
        choice.others += 1


def _add_extra(delta: Delta, said: dict[str, Any]) -> None:
    delta.extra_content = merged(delta.extra_content, {"google": said})


def _usage(said: _Counts, *, partial: bool) -> Usage | None:
    """The usage so far; None where nothing was counted, as beside what Google says of the traffic."""
    prompt = said.prompt_token_count + said.tool_use_prompt_token_count
    cached, thoughts = said.cached_content_token_count, said.thoughts_token_count
    completion = said.candidates_token_count + thoughts
    if not prompt and not completion:
        return None
    return Usage(
        prompt,
        completion,
        prompt + completion,
        PromptTokens(cached) if cached else None,
        CompletionTokens(thoughts) if thoughts else None,
        partial,
    )


def _with_logprobs(candidates: list[_Candidate]) -> bytes:
    """The part of OpenAI's JSON that the view of a chunk has no field for."""
    return msgspec.json.encode({"choices": [{"logprobs": _logprobs(one.logprobs_result)} for one in candidates]})


def _logprobs(said: _Logprobs | None) -> dict[str, Any] | None:
    if said is None:
        return None
    tops = [top.candidates for top in said.top_candidates]
    rows = [
        {**_logprob(chosen), "top_logprobs": [_logprob(one) for one in (tops[n] if n < len(tops) else ())]}
        for n, chosen in enumerate(said.chosen_candidates)
    ]
    return {"content": rows, "refusal": None}


def _logprob(said: _Token) -> dict[str, Any]:
    return {"token": said.token, "logprob": said.log_probability, "bytes": list(said.token.encode())}
