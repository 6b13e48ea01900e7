"""The files of recorded exchanges: one JSON document each, for people to read, compare and edit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from penstock import errors
from penstock.errors import BadAnswer, ConfigError, LlmError, StoreFailed
from penstock.messages import (
    ChatReply,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCallDelta,
    Usage,
    is_array,
    is_object,
    merged,
)

SLUG = 40
OBJECT = "chat.completion.chunk"
Seconds = Annotated[float, msgspec.Meta(ge=0)]
DELTA = frozenset(Delta.__struct_fields__)
CHOICE = frozenset(("index", "delta", "finish_reason"))
_AT = re.compile(r" - at `\$(.*)`$")


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of an exchange; `model` is the name it was asked by."""

    messages: list[dict[str, Any]]
    model: str = ""
    params: dict[str, Any] = {}
    stream: bool = True


class Trouble(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The error that an exchange ended with, `after_s` seconds after its last chunk; `name` is its class."""

    name: str = msgspec.field(name="class")
    message: str
    provider: str = ""
    status: int | None = None
    code: str | None = None
    param: str | None = None
    type: str | None = None
    retry_after: Seconds | None = None
    after_s: Seconds = 0.0

    @classmethod
    def of(cls, error: BaseException, after_s: float) -> Trouble:
        """What is kept of an error."""
        name = type(error).__name__
        if not isinstance(error, LlmError):
            return cls(name=name, message=str(error) or name, after_s=after_s)
        return cls(
            name=name,
            message=error.message,
            provider=error.provider,
            status=error.status,
            code=error.code,
            param=error.param,
            type=error.type,
            retry_after=error.retry_after,
            after_s=after_s,
        )

    def error(self, *, told: bool) -> LlmError:
        """The error again; one that is no `LlmError` as a `BadAnswer` or an `LlmError` that names it."""
        kind = getattr(errors, self.name, None)
        message = self.message
        if not (isinstance(kind, type) and issubclass(kind, LlmError)):
            kind, message = (BadAnswer if told else LlmError), f"{self.name}: {message}"
        error = kind(message, provider=self.provider, status=self.status, code=self.code, retry_after=self.retry_after)
        error.param, error.type = self.param, self.type
        if self.code == "insufficient_quota":
            error.retryable = False
        return error


class _Paced(msgspec.Struct):
    after_s: Seconds = 0.0


class Recorded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One exchange. `answer` holds the id, model and creation time that all chunks share.

    A chunk is that of the OpenAI wire, with `after_s`, the seconds since what came before it. `end` says how it went:
    finished, failed with `error`, or cancelled by the client.
    """

    penstock: Literal[1] = 1
    request: Asked
    end: Literal["finished", "failed", "cancelled"]
    recorded: str = ""
    answer: dict[str, Any] = {}
    chunks: list[dict[str, Any]] = []
    usage: Usage | None = None
    error: Trouble | None = None

    def views(self) -> Iterator[tuple[float, Chunk]]:
        """Each chunk with its pause, made anew: who hears one may change it."""
        for chunk in self.chunks:
            fields = {**self.answer, "object": OBJECT, **chunk}
            after_s = float(fields.pop("after_s", 0.0))
            view = msgspec.convert(fields, Chunk)
            view.raw = msgspec.json.encode(fields)
            yield after_s, view

    @property
    def seconds(self) -> float:
        """How long it took."""
        return sum(float(chunk.get("after_s", 0.0)) for chunk in self.chunks) + (
            self.error.after_s if self.error else 0
        )

    def body(self) -> bytes:
        """All that the service said beside what a reply holds, as the JSON of an unstreamed answer."""
        said: dict[str, Any] = dict(self.answer)
        choices: dict[int, dict[str, Any]] = {}
        for chunk in self.chunks:
            said |= {key: value for key, value in chunk.items() if key not in {"choices", "after_s"}}
            if "partial" in part(said, "usage"):  # Penstock's own count, which is written out with the reply
                del said["usage"]
            for choice in parts(chunk, "choices"):
                known = choices.get(index := choice.get("index", 0), {"message": {}})
                delta = part(choice, "delta")
                more = {key: value for key, value in choice.items() if key not in CHOICE}
                more["message"] = {key: value for key, value in delta.items() if key not in DELTA}
                choices[index] = merged(known, more)
        return msgspec.json.encode({**said, "choices": [choices[index] for index in sorted(choices)]})


def part(value: dict[str, Any], key: str) -> dict[str, Any]:
    """An object inside a JSON object; an empty one where there is none."""
    found = value.get(key)
    return found if is_object(found) else {}


def parts(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of an array inside a JSON object."""
    found = value.get(key)
    return [one for one in found if is_object(one)] if is_array(found) else []


def chunk_of(reply: ChatReply) -> Chunk:
    """A whole answer as the only chunk of a stream."""
    return Chunk(
        choices=[
            ChunkChoice(delta=_delta_of(choice), index=choice.index, finish_reason=choice.finish_reason)
            for choice in reply.choices
        ],
        id=reply.id or None,
        object=OBJECT,
        created=reply.created or None,
        model=reply.model or None,
        usage=reply.usage,
    )


def _delta_of(choice: Choice) -> Delta:
    calls = [
        ToolCallDelta(n, call.id, "function", FunctionDelta(call.name, call.arguments), call.extra_content)
        for n, call in enumerate(choice.tool_calls)
    ]
    return Delta(
        role="assistant",
        content=choice.content,
        reasoning_content=choice.reasoning,
        reasoning=choice.reasoning,
        refusal=choice.refusal,
        tool_calls=calls or None,
        extra_content=choice.extra_content,
    )


def text_of(recorded: Recorded) -> str:
    """The file of an exchange: the request on lines of its own, then a line for each chunk."""
    said = _without_null(msgspec.to_builtins(recorded))
    if recorded.usage is not None and not recorded.usage.partial:
        del said["usage"]["partial"]
    rows = ",\n".join(f"    {_json(chunk)}" for chunk in said["chunks"])
    written = {key: _json(value) for key, value in said.items() if value != {}}
    written["request"] = json.dumps(said["request"], ensure_ascii=False, indent=2).replace("\n", "\n  ")
    written["chunks"] = f"[\n{rows}\n  ]" if rows else "[]"
    order = ("penstock", "recorded", "request", "answer", "chunks", "usage", "error", "end")
    return "{\n" + ",\n".join(f'  "{key}": {written[key]}' for key in order if key in written) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without_null(value: Any) -> Any:
    if is_object(value):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if is_array(value) else value


def read(file: Path) -> Recorded:
    """The exchange in a file; raises `ConfigError` with file, line and key for one that is not whole."""
    try:
        text = file.read_bytes().decode()
        said = json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(file)) from error
    except json.JSONDecodeError as error:
        problem = f"not a whole JSON document: {error.msg}; record it again, or remove the file"
        raise ConfigError(problem, file=str(file), line=error.lineno) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"no recording: {error}", file=str(file)) from error
    try:
        return _checked(said)
    except msgspec.ValidationError as error:
        found = _AT.search(str(error))
        key = found[1].lstrip(".") if found else ""
        raise ConfigError(_AT.sub("", str(error)), file=str(file), line=_line(text, key), key=key) from error


def _checked(said: Any) -> Recorded:
    recorded = msgspec.convert(said, Recorded)
    for number, chunk in enumerate(recorded.chunks):
        try:
            msgspec.convert({"choices": None, **recorded.answer, **chunk}, Chunk)
            msgspec.convert(chunk, _Paced)
        except msgspec.ValidationError as error:
            found = _AT.search(str(error))
            raise _wrong(_AT.sub("", str(error)), f"chunks[{number}]{found[1] if found else ''}") from error
    if (recorded.end == "failed") != (recorded.error is not None):
        raise _wrong("`error` belongs to the end 'failed', and to no other", "end")
    if recorded.end == "finished" and not recorded.chunks:
        raise _wrong("an answer that is finished has chunks", "chunks")
    return recorded


def _wrong(problem: str, key: str) -> msgspec.ValidationError:
    return msgspec.ValidationError(f"{problem} - at `$.{key}`")


def _line(text: str, path: str) -> int:
    """The line of what a path such as `chunks[2].choices` leads to, as near as its names lead."""
    at = 0
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        if name:
            at = max(at, text.find(f'"{name}"', at))
            continue
        at = text.find("[", at) + 1
        for _ in range(int(index)):
            start = at + len(text[at:]) - len(text[at:].lstrip(" \r\n\t,"))
            at = json.JSONDecoder().raw_decode(text, start)[1]
        at += len(text[at:]) - len(text[at:].lstrip(" \r\n\t,"))
    return text.count("\n", 0, at) + 1


def prepare(folder: Path) -> None:
    """Make the folder where it is missing, and see that files can be written into it; raises `StoreFailed`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def write(folder: Path, stem: str, text: str) -> Path:
    """Write a file named after `stem` and the next free number, whole or not at all; raises `StoreFailed`."""
    data = text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes its JSON escape
    scrap = folder / f".{stem}-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scrap.write_bytes(data)
        target = _reserved(folder, stem)
        scrap.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            scrap.unlink()
        raise _unwritable(folder, error) from error
    return target


def _reserved(folder: Path, stem: str) -> Path:
    """The first name that nobody has, taken by an empty file: of two processes each gets one of its own."""
    for number in count(1):
        target = folder / f"{stem}-{number:03}.json"
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            continue
        return target
    raise AssertionError


def _unwritable(folder: Path, error: OSError) -> StoreFailed:
    return StoreFailed(f"nothing can be recorded in {str(folder)!r}: {error.strerror or error}")


def slug(text: str) -> str:
    """A text as part of a file's name."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:SLUG].strip("-") or "exchange"
