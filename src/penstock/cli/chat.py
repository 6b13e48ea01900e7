"""`penstock chat`: one question, or a conversation in the terminal; the model runs in this process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TextIO

import msgspec

from penstock.cli.ends import INTERRUPTED, complain
from penstock.config import Catalog, load
from penstock.errors import PenstockError, UsageError
from penstock.events import Chunks, Event, Fold, Reasoning, Text
from penstock.messages import ChatReply, ChatRequest, Message
from penstock.run import execute

DIM, BRIGHT = "\x1b[2m", "\x1b[22m"
# A model's text must not steer the terminal.
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(13, 32), *range(127, 160)))
_MOST_NAMED = 12


def converse(prompt: str | None, *, model: str | None, system: str | None, as_json: bool, config: str | None) -> int:
    """Answer the prompt, else what stdin holds, else talk with whoever sits at the terminal; returns the exit code."""
    interactive = prompt is None and sys.stdin.isatty()
    if interactive and as_json:
        raise UsageError("--json answers one prompt: give it as an argument or on stdin")
    text = prompt if prompt is not None else "" if interactive else sys.stdin.read().strip()
    if not (text or interactive):
        raise UsageError("no prompt: give one as an argument or on stdin")
    _check(text)
    catalog = Catalog(load(config, os.environ), os.environ)
    with asyncio.Runner() as runner:
        name = catalog.meant(model) if model else runner.run(usual_model(catalog))
        talk = Talk(catalog, name, system=system)
        if interactive:
            return _loop(runner, talk)
        if as_json:
            print(json.dumps(runner.run(talk.report(text)), ensure_ascii=False))
        else:
            runner.run(talk.say(text, sys.stdout))
    return 0


class Talk:
    """A conversation with one model; a turn that failed or was cancelled leaves no trace in it."""

    def __init__(self, catalog: Catalog, model: str, *, system: str | None = None) -> None:
        self._executor, self._model = catalog.find(model), model
        self._messages: list[Message] = [{"role": "system", "content": system}] if system else []

    async def say(self, text: str, out: TextIO) -> ChatReply:
        """Answer on `out` as it comes."""
        screen = Screen(out)
        try:
            reply = await execute(self._executor, self._request(text, stream=True), screen.tell)
        finally:
            screen.end()
        self._messages.append(_user(text))
        self._messages.append(reply.message)
        return reply

    async def report(self, text: str) -> dict[str, object]:
        """The answer at once, as JSON types."""
        fold = Fold()
        reply = await execute(self._executor, self._request(text, stream=False), fold.add)
        return {
            "model": reply.model or self._model,
            "content": reply.content,
            "finish_reason": reply.finish_reason,
            "usage": msgspec.to_builtins(reply.usage or fold.usage),
        }

    def _request(self, text: str, *, stream: bool) -> ChatRequest:
        return ChatRequest(model=self._model, messages=[*self._messages, _user(text)], stream=stream)


def _check(text: str) -> None:
    """Raise `UsageError` for text that came as bytes which are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8 text (character {error.start + 1})") from None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


class Screen:
    """Writes an answer as it comes; on a terminal with the reasoning before it, dimmed."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._terminal = out, out.isatty()
        self._dimmed = self._open = False

    def tell(self, event: Event) -> None:
        """Write what an event says."""
        if isinstance(event, Chunks) and not event.path:
            for view in event.views:
                for choice in view.choices:
                    if not choice.index:
                        self._write(choice.delta.reasoning_content or choice.delta.reasoning or "", thought=True)
                        self._write(choice.delta.content or choice.delta.refusal or "")
        elif isinstance(event, Text | Reasoning) and not event.path:
            self._write(event.text, thought=isinstance(event, Reasoning))

    def end(self) -> None:
        """End the line, if one was begun."""
        if self._dimmed:
            self._out.write(BRIGHT)
        if self._open:
            self._out.write("\n")
        self._out.flush()

    def _write(self, text: str, *, thought: bool = False) -> None:
        if not text or (thought and not self._terminal):
            return
        if thought != self._dimmed:
            self._out.write(DIM if thought else f"{BRIGHT}\n\n")
            self._dimmed = thought
        self._out.write(text.translate(_CONTROLS) if self._terminal else text)
        self._out.flush()
        self._open = True


def _loop(runner: asyncio.Runner, talk: Talk) -> int:
    """Ask and answer until the end of input; Ctrl-C stops an answer, or the loop between answers."""
    with suppress(ImportError):  # gives `input` a history and line editing, where it is there
        import_module("readline")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            return INTERRUPTED
        if not text:
            continue
        try:
            _check(text)
            runner.run(talk.say(text, sys.stdout))
        except KeyboardInterrupt:
            complain("stopped")
        except PenstockError as error:
            complain(f"{type(error).__name__}: {error.message}")


async def usual_model(catalog: Catalog) -> str:
    """The first configured model, or the only one there is; raises `UsageError` when it is not clear which."""
    if catalog.configured:
        return catalog.served[0].name
    names = [model.id for model in await catalog.models()]
    if len(names) == 1:
        return names[0]
    listed = (
        f": there are {', '.join(names[:_MOST_NAMED])}{', ...' if len(names) > _MOST_NAMED else ''}" if names else ""
    )
    raise UsageError(f"say which model with --model{listed}")
