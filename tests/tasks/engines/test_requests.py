"""What is asked across processes where that does not go well: other versions, answers that are lost, errors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import Conflict, PenstockError, StoreFailed, TaskFailed, UnknownName, UsageError
from penstock.store.journal import Journal
from penstock.store.steps import CANCELLED, FAILED, PENDING, RUNNING, Change, Note
from penstock.tasks.engines.local import LocalEngine
from penstock.tasks.engines.past import ENDED, LEGAL
from penstock.tasks.engines.requests import Asked, Post

SPEC = {"flow": "f", "payload": None}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.tasks.engines.requests.ATTEND_S", 0.005)
    monkeypatch.setattr("penstock.tasks.engines.requests.POLL_S", 0.005)


@pytest.fixture
async def holder(tmp_path: Path) -> AsyncIterator[Journal]:
    """The journal of a process that holds the run `r`."""
    async with Journal(tmp_path / "j") as journal:
        await journal.begin("r", SPEC, (), transitions=LEGAL)
        yield journal


async def refusing(_: str, __: Asked) -> bool | None:
    raise AssertionError("this is nothing to obey")


@pytest.mark.parametrize("body", [{"what": "explode"}, {"why": 1}, [1], None])
async def test_row_c8_what_only_another_version_knows_is_refused_with_an_answer(
    holder: Journal, tmp_path: Path, body: Any
) -> None:
    post = Post(holder, refusing)
    post.attend()
    number = await holder.request("r", body)
    async with asyncio.timeout(5), Journal(tmp_path / "j") as other:
        while (answer := (await other.answered(number))[1]) is None:
            await asyncio.sleep(0.005)
    assert answer["fault"]["type"] == "UsageError"
    assert "of another version" in answer["fault"]["message"]
    await post.aclose()


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (Conflict("busy", code="in_progress"), ("code", "param")),
        (TaskFailed("no", code="timeout", details={"a": [1]}, retryable=True), ("code", "details", "retryable")),
        (StoreFailed("full"), ()),
        (UnknownName("nobody"), ()),
        (UsageError("not so"), ()),
    ],
)
async def test_row_c8_what_it_raised_there_is_raised_here(
    holder: Journal, tmp_path: Path, error: PenstockError, kept: tuple[str, ...]
) -> None:
    async def obey(_: str, __: Asked) -> bool:
        raise error

    post = Post(holder, obey)
    post.attend()
    async with asyncio.timeout(5), LocalEngine(Journal(tmp_path / "j")) as there:
        with pytest.raises(type(error), match=f"^{error}$") as caught:
            await there.retry("r", "a")
    assert type(caught.value) is type(error)
    assert [getattr(caught.value, name) for name in kept] == [getattr(error, name) for name in kept]
    await post.aclose()


@pytest.mark.parametrize(
    ("what", "done"),
    [
        (("cancel", None), Note(ENDED, {"state": "cancelled", "value": None})),
        (("cancel", "a"), Change("a", CANCELLED)),
        (("retry", "b"), Change("b", PENDING)),
    ],
)
async def test_row_c8_what_was_done_counts_although_the_answer_is_lost(
    holder: Journal, tmp_path: Path, what: tuple[str, str | None], done: Note | Change
) -> None:
    await holder.write("r", Change("a", RUNNING), Change("b", RUNNING), Change("b", FAILED, {"type": "E"}))
    name, step = what
    async with asyncio.timeout(5), LocalEngine(Journal(tmp_path / "j")) as there:
        asking = asyncio.create_task(getattr(there, name)("r", step))
        while not await holder.requested():
            await asyncio.sleep(0.002)
        await holder.write("r", done)
        await holder.release("r")
        assert await asking in (True, None)


async def test_row_c8_a_run_that_ended_by_itself_meanwhile_was_not_cancelled(holder: Journal, tmp_path: Path) -> None:
    async with asyncio.timeout(5), LocalEngine(Journal(tmp_path / "j")) as there:
        asking = asyncio.create_task(there.cancel("r"))
        while not await holder.requested():
            await asyncio.sleep(0.002)
        await holder.write("r", Note(ENDED, {"state": "succeeded", "value": None}))
        await holder.release("r")
        assert not await asking


async def test_row_c8_a_process_that_lives_but_does_not_answer_is_named(
    holder: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.tasks.engines.requests.PATIENCE_S", 0.05)
    async with asyncio.timeout(5), LocalEngine(Journal(tmp_path / "j")) as there:
        with pytest.raises(Conflict, match=f"the process {os.getpid()}, which runs 'r', does not answer"):
            await there.pause("r")
    assert await holder.requested() == []
