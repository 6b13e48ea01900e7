"""Recording and replaying as `penstock record` and `penstock serve --replay` do: into which folder, from which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.config import Catalog, Settings
from penstock.config.models import REPLAY

if TYPE_CHECKING:
    from penstock.llms.replay import Replay

LONGEST_EXAMPLE = 1000


def folders(record: str | None, replay: str | None) -> dict[str, str | None] | None:
    """What the command line says in place of the section `recordings`; what is replayed is not recorded again."""
    if record is not None:
        return {"record": record, "replay": None}
    return None if replay is None else {"record": None, "replay": replay}


def prepare(settings: Settings) -> None:
    """See that exchanges can be written where they are to be; raises `StoreFailed`."""
    if settings.recordings.record is not None:
        from penstock.llms.replay.files import prepare as make

        make(Path(settings.recordings.record))


def replayed(catalog: Catalog) -> Replay | None:
    """What is served in place of all models, where that is recordings."""
    first = catalog.served[0]
    found: Any = first.llm
    return found if not catalog.configured and first.name == REPLAY else None


def said(settings: Settings, catalog: Catalog) -> dict[str, str]:
    """What to say at start."""
    lines: dict[str, str] = {}
    if settings.recordings.record is not None:
        folder = settings.recordings.record
        lines["records"] = f"every exchange in {folder}: `penstock serve --replay {folder}` answers from it"
    if (replay := replayed(catalog)) is not None:
        count = f"{len(replay)} exchange{'s' * (len(replay) != 1)}"
        lines["replays"] = f"{count} recorded in {settings.recordings.replay}, without a key or a network; nothing else"
    return lines


def example(replay: Replay) -> dict[str, Any]:
    """A request that was recorded, to try; empty where all are long."""
    fields = min((one.request for one in replay.exchanges), key=lambda asked: len(json.dumps(asked.messages)))
    body = {"model": fields.model, "stream": True, "messages": fields.messages, **fields.params}
    return body if fields.model and len(json.dumps(body)) <= LONGEST_EXAMPLE else {}
