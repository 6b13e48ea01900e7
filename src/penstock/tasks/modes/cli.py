"""How an agent of mode `cli` works: a command is run with the task on its stdin, and prints what it did.

On stdin it finds one JSON object: `task` (its id, title, description, deliverables, success_criteria and inputs), the
`results` of the tasks before it by their names, and `feedback`, which is what a review found missing in `last`, the
output it gave before. On stdout it prints one JSON object: `status` ("success" or "failed"), `output` (any JSON
value), `error` (a text, or an object with a `message`) and `usage` (`prompt_tokens`, `completion_tokens`, `cost_usd`).
"""

from __future__ import annotations

import codecs
import errno
import os
import signal
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from penstock.errors import TaskFailed
from penstock.events import Used
from penstock.messages import is_array, is_object
from penstock.run import Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes import Answer, Spent, Work
from penstock.tasks.modes.child import Printed, run_child
from penstock.tasks.modes.hidden import Hidden

PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
"""The variables that every command sees."""
MISCONFIGURED = 2
"""The exit code by which a command says that its configuration is wrong."""
MAX_DEPTH = 100
MAX_TOKENS = 2**53
MAX_ERRORS = 4000
SHOWN = 500
_TASK_FIELDS = {"id", "title", "description", "deliverables", "success_criteria", "inputs"}
_DEEP = f"it is nested more than {MAX_DEPTH} deep"
_PASSING = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""The errors of a start that may succeed later: the system has no room just now."""


class Said(msgspec.Struct, frozen=True):
    """What a command prints."""

    status: Literal["success", "failed"]
    output: Any = None
    error: str | dict[str, Any] | None = None
    usage: Spent | None = None

    @property
    def reason(self) -> str:
        """Why it failed, in words."""
        if not is_object(self.error):
            return str(self.error or "")
        message = self.error.get("message")
        return message if isinstance(message, str) else msgspec.json.encode(self.error).decode()


async def cli(work: Work, run: Run, /) -> Answer:
    """Run the agent's command once; the tokens it says it used are told on the run.

    Raises `TaskFailed` with the code `agent_misconfigured` (a variable that is not set, a command that cannot be
    started, exit code 2), `output_too_large`, `bad_output` (exit code 0, and no such object), or `agent_failed` (any
    other exit code, a signal, or a status that says so). Its details are the `exit_code`, the end of `stderr`, and
    what else is known. The values of the variables that `env` names are in none of all this.
    """
    agent = work.agent
    env, hidden = _environment(agent)
    printed = await _run(agent, _stdin(work), env)
    said = read(printed.output) if printed.whole else "there is too much of it"
    if isinstance(said, Said) and said.usage is not None:
        spent = said.usage
        await run.emit(Used(usage=spent.usage, model=agent.name, provider="cli", cost=spent.cost_usd))
    if printed.code == 0 and isinstance(said, Said) and said.status == "success":
        return Answer(hidden.json(said.output), agent.name)
    raise _failure(agent, printed, said, hidden)


def read(data: bytes) -> Said | str:
    """What a command printed; where that is no such object, what is wrong with it."""
    try:
        said = msgspec.json.decode(data.removeprefix(codecs.BOM_UTF8), type=Said)
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except RecursionError:
        return _DEEP
    except msgspec.DecodeError as error:
        return str(error) if data.strip() else "nothing was printed"
    if _deeper(said.output, MAX_DEPTH) or _deeper(said.error, MAX_DEPTH):
        return _DEEP
    if said.usage is not None and not _countable(said.usage):
        return "usage holds a number that no usage can be"
    return said


def _deeper(value: Any, most: int) -> bool:
    inner = [*value.values()] if is_object(value) else value if is_array(value) else ()
    return bool(inner) and (most == 0 or any(_deeper(each, most - 1) for each in inner))


def _countable(spent: Spent) -> bool:
    cost = spent.cost_usd
    tokens = 0 <= spent.prompt_tokens <= MAX_TOKENS and 0 <= spent.completion_tokens <= MAX_TOKENS
    return tokens and (cost is None or (cost.is_finite() and 0 <= cost <= MAX_TOKENS))


def _environment(agent: AgentConfig) -> tuple[dict[str, str], Hidden]:
    """What the command finds in its environment, and what hides the part that may be secret."""
    named = {name: os.environ.get(name) for name in agent.env}
    found = {name: value for name, value in named.items() if value is not None}
    if missing := [name for name in named if name not in found]:
        raise TaskFailed(
            f"the agent {agent.name!r} is given the variable {missing[0]!r}, which is not set: set it",
            code="agent_misconfigured",
            details={"missing": missing},
        )
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**passed, **found}, Hidden({name: value for name, value in found.items() if name not in PASSED})


def _stdin(work: Work) -> bytes:
    task: dict[str, Any] = {
        "task": work.task.model_dump(mode="json", include=_TASK_FIELDS),
        "results": work.results,
        "feedback": work.feedback,
    }
    return msgspec.json.encode(task if work.last is None else {**task, "last": work.last})


async def _run(agent: AgentConfig, stdin: bytes, env: Mapping[str, str]) -> Printed:
    try:
        return await run_child(agent.command, stdin=stdin, env=env, cwd=agent.cwd, most=agent.max_output_kb * 1024)
    except (OSError, ValueError) as error:
        wrong = getattr(error, "errno", None) not in _PASSING
        where = "" if agent.cwd is None else f" in {agent.cwd!r}"
        raise TaskFailed(
            f"the command {agent.command[0]!r} of agent {agent.name!r} cannot be started{where}:"
            f" {getattr(error, 'strerror', None) or error}",
            code="agent_misconfigured" if wrong else "agent_failed",
            retryable=not wrong,
        ) from error


def _failure(agent: AgentConfig, printed: Printed, said: Said | str, hidden: Hidden) -> TaskFailed:
    """The error that an end means which was no success."""
    errors = hidden.text(printed.errors.decode("utf-8", "replace")).strip()[-MAX_ERRORS:]
    start = hidden.text(printed.output[: 10 * SHOWN].decode("utf-8", "replace"))[:SHOWN]  # hidden first, then cut
    reason = hidden.text(said.reason)[:SHOWN] if isinstance(said, Said) else ""
    why = reason or errors.rpartition("\n")[2][:SHOWN] or "it gave no reason"
    retryable = True
    if not printed.whole:
        code, text, retryable = "output_too_large", f"printed more than {agent.max_output_kb} kB", False
    elif printed.code == MISCONFIGURED:
        code, text, retryable = "agent_misconfigured", f"says that its configuration is wrong: {why}", False
    elif printed.code:
        code, text = "agent_failed", f"{_how(printed.code)}: {why}"
    elif isinstance(said, str):
        problem = hidden.text(said)[:SHOWN]  # it may quote the output
        code, text = "bad_output", f"did not print the JSON object it should ({problem}); its output begins {start!r}"
    else:
        code, text = "agent_failed", f"failed: {why}"
    known: dict[str, Any] = {"exit_code": printed.code, "stderr": errors}
    if isinstance(said, str):
        known["stdout"] = start
    elif is_object(said.error):
        known["error"] = hidden.json(said.error)
    return TaskFailed(
        f"the command of agent {agent.name!r} {text}",
        code=code,
        details={key: value for key, value in known.items() if value != ""},
        retryable=retryable,
    )


def _how(code: int) -> str:
    if code > 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
