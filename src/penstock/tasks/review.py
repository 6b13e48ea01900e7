"""The review of a task: another agent says which success criteria are not met, and the work is done again."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from penstock.errors import TaskFailed
from penstock.events import Retrying
from penstock.run import Executor, Run
from penstock.tasks.agents import AgentConfig
from penstock.tasks.modes import Answer, Work
from penstock.tasks.prompt import RESULT, titled
from penstock.tasks.results import Review
from penstock.tasks.task import AgentTask

MOST_SAID = 1000
"""Characters of a verdict that the message of the failure holds; its details hold all of them."""
_ASK = """You check a piece of work; you do not do it. The work was asked for with these words:

{description}

What was given is the {result}. Judge for each line below whether it is met; where it is \
cut, judge what is there. {form}"""
_AS_JSON = """Answer with one JSON object and nothing else: {"unmet": [{"criterion": "the line that is not met", \
"reason": "what is wrong, and what would make it right"}]}. When all of them are met, answer {"unmet": []}."""
_AS_WORDS = "Answer ok when all of them are met; otherwise say what is wrong, and what would make it right."
_SCHEMA = {
    "type": "object",
    "properties": {
        "unmet": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"criterion": {"type": "string"}, "reason": {"type": "string"}},
                "required": ["criterion", "reason"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["unmet"],
    "additionalProperties": False,
}


class Unmet(msgspec.Struct, frozen=True):
    """A success criterion that is not met, and why."""

    criterion: str
    reason: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What a reviewer says; work with nothing `unmet` is accepted."""

    unmet: tuple[Unmet, ...]

    @property
    def feedback(self) -> tuple[str, ...]:
        """What is wrong, a line for each."""
        return tuple(f"{each.criterion}: {each.reason}" if each.reason else each.criterion for each in self.unmet)


_reads = msgspec.json.Decoder(Verdict)


async def reviewed(  # what is done, by whom, and who checks it
    work: Work,
    run: Run,
    *,
    do: Executor[Work, Answer],
    check: Executor[Work, Answer],
    reviewer: AgentConfig,
    rounds: int,
) -> Answer:
    """The answer of `do` that the reviewer, whose executor is `check`, accepts.

    The work's `judged` is told of each verdict. What is not accepted is done again, at most `rounds` times: told as
    `Retrying`, numbered as the answers are. Raises `TaskFailed` with the code `not_accepted`, whose details are the
    last `output` and what is `unmet`; with `bad_output` where the verdict cannot be read, twice in a row.
    """
    again = 0
    while True:
        answer = await do(work, run)
        verdict = await _verdict(work, answer, run, check=check, reviewer=reviewer)
        work.judged(Review(reviewer.name, again + 1, verdict.feedback))
        if not verdict.unmet:
            return answer
        refused = TaskFailed(
            f"{reviewer.name!r} does not accept the result: {'; '.join(verdict.feedback)[:MOST_SAID]}",
            code="not_accepted",
            details={"output": answer.output, "unmet": [msgspec.to_builtins(each) for each in verdict.unmet]},
        )
        if again == rounds:
            raise refused
        again += 1
        await run.emit(Retrying(attempt=again + 1, wait_s=0.0, error=refused))
        work = replace(work, feedback=verdict.feedback, last=answer.output)


async def _verdict(
    work: Work, answer: Answer, run: Run, *, check: Executor[Work, Answer], reviewer: AgentConfig
) -> Verdict:
    asked = _asked(work, answer, reviewer)
    while True:
        said = (await check(asked, run)).output
        try:
            return _read(said, reviewer)
        except msgspec.DecodeError as error:
            if asked.feedback:
                raise TaskFailed(
                    f"the verdict of {reviewer.name!r} cannot be read: {error}",
                    code="bad_output",
                    details={"output": answer.output, "verdict": said},
                ) from error
            asked = replace(asked, feedback=(f"It is not the JSON object that was asked for: {error}",), last=said)


def _asked(work: Work, answer: Answer, reviewer: AgentConfig) -> Work:
    """The review as a task of its own: what is judged is a result like any other, and so it is data."""
    task, name = work.task, f"{work.task.id}, which is to be checked"
    words = _ASK.format(
        description=task.description.strip(),
        result=titled(RESULT, name),
        form=_AS_WORDS if reviewer.mode == "interactive" else _AS_JSON,
    )
    judged = AgentTask(
        id=task.id,
        description=words,
        deliverables=task.deliverables,
        success_criteria=task.success_criteria or ("The work is what was asked for.",),
        inputs=task.inputs,
    )
    results = {**work.results, name: answer.output}
    return Work(judged, reviewer, results, schema=_SCHEMA, timeout_s=work.timeout_s)


def _read(said: Any, reviewer: AgentConfig) -> Verdict:
    """A verdict as an object, or as text that holds one, or as a person says it; raises `msgspec.DecodeError`."""
    if not isinstance(said, str):
        return msgspec.convert(said, Verdict)
    start, end = said.find("{"), said.rfind("}")
    if reviewer.mode == "interactive" and start < 0:
        words = said.strip()
        return Verdict(() if words.lower().rstrip(".!") == "ok" else (Unmet(words or "nothing was said about it"),))
    return _reads.decode(said[start : end + 1] if 0 <= start < end else said)
