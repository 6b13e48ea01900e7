"""`POST /v1/batch`: values for many items, few calls, each sent as it closes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from penstock.batch.batch import Batch
from penstock.batch.items import BatchRequest, Item, ItemId
from penstock.batch.outcomes import BatchResponse, FaultKind
from penstock.batch.plan import Plan
from penstock.batch.planner import Planner
from penstock.batch.schema import ItemSchema
from penstock.batch.stream import outcome_of
from penstock.config.batches import Asked, Models, cost_row, fault_row, outcome_row, refused
from penstock.errors import Invalid, PenstockError, UsageError
from penstock.events import Event
from penstock.run import Executor, Run
from penstock.server.endpoints import Endpoint, Work, refuse_key
from penstock.server.sse import DONE, usage_json
from penstock.server.wire import answer_of, mistyped, parse_json

if TYPE_CHECKING:
    from penstock.messages import Usage

MOST_ITEMS = 1000
"""The items of one request: so many are checked in some milliseconds, for which other requests wait."""
MOST_A_CALL = 100
CONCURRENT = 4
"""How many calls of one request run at once."""
_encode = msgspec.json.encode


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    id: int | str
    data: Any
    group: str = ""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(min_length=1)]
    items: Annotated[list[_Item], msgspec.Meta(min_length=1)]
    schema: dict[str, Any] | None = None
    acts: str | list[str] = ""
    instructions: str = ""
    params: dict[str, Any] = {}
    max_batch_size: Annotated[int, msgspec.Meta(ge=1, le=MOST_A_CALL)] = 10
    stream: bool = False


@dataclass(slots=True)
class _Count:
    """What is known of a batch while it runs: the facts of its line in the log."""

    facts: dict[str, Any]
    asked: Asked | None = None
    response: BatchResponse = field(default_factory=BatchResponse)

    def hear(self, event: Event) -> None:
        """Count an item that has its value."""
        outcome = outcome_of(event)
        if outcome is not None:
            self.facts["accepted"] += outcome.ok
            self.facts["calls"] = self.asked.calls if self.asked else 0


def batch_endpoint(catalog: Models) -> Endpoint:
    """The endpoint of batches."""

    def prepare(body: bytes, headers: Mapping[bytes, bytes]) -> Work:
        refuse_key(headers)
        asked = _read(body)
        schema, request = _schema(asked), _request(asked.items)
        facts: dict[str, Any] = {"model": asked.model, "stream": asked.stream}
        count = _Count(facts | {"items": len(request), "accepted": 0, "calls": 0})

        def find() -> Executor[BatchRequest, BatchResponse]:
            count.asked = Asked(catalog, asked.model)
            planner = Planner(asked.max_batch_size)
            batch = Batch(
                count.asked,
                schema,
                instructions=asked.instructions,
                planner=planner,
                concurrent=CONCURRENT,
                model=asked.model,
                params=asked.params,
            )
            return _counted(batch, count, whole=not asked.stream)

        if asked.stream:
            return Work(find, request, None, count.facts, encoder=lambda: OutcomeEvents(asked.model, count))
        return Work(find, request, None, count.facts, lambda response: _whole(asked.model, count, response))

    return Endpoint("/v1/batch", "chat", prepare)


def _read(body: bytes) -> _Body:
    fields = parse_json(body)
    try:
        found = msgspec.convert(fields, _Body)
    except msgspec.ValidationError as error:
        raise mistyped(str(error)) from error
    if len(found.items) > MOST_ITEMS:
        text = f"a batch over the API has at most {MOST_ITEMS} items, not {len(found.items)}: send several"
        raise Invalid(text, param="items", code="too_many_items")
    if name := refused(found.params):
        text = f"the field {name!r} is not a caller's to set here: leave it out"
        raise Invalid(text, param=f"params.{name}", code="unsupported_value")
    return found


def _request(items: list[_Item]) -> BatchRequest:
    """The items in order; raises `Invalid` with the place of an id that names none, or stands twice."""
    places: dict[ItemId, int] = {}
    for place, item in enumerate(items):
        if item.id in places:
            text = f"items[{places[item.id]}] has the id {item.id!r:.100} too: give each item one of its own"
            raise Invalid(text, param=f"items[{place}].id", code="duplicate_id")
        if item.id == "":
            raise Invalid("an id is an integer or some text", param=f"items[{place}].id", code="invalid_value")
        places[item.id] = place
    return BatchRequest.of(Item(item.id, item.data, item.group) for item in items)


def _schema(asked: _Body) -> ItemSchema:
    """The type of the values; raises `Invalid`."""
    param = "schema" if asked.schema is not None and not asked.acts else "acts"
    try:
        return ItemSchema(Plan if asked.schema is None else asked.schema, acts=asked.acts)
    except UsageError as error:
        raise Invalid(str(error), param=param, code="invalid_value") from error


def _counted(batch: Batch, count: _Count, *, whole: bool) -> Executor[BatchRequest, BatchResponse]:
    async def call(request: BatchRequest, run: Run, /) -> BatchResponse:
        count.response = await batch(request, run.listening(count.hear))
        count.facts["calls"] = count.asked.calls if count.asked else 0
        if whole and count.asked and (error := _failure(count.response, count.asked)):
            raise error
        return count.response

    return call


def _failure(response: BatchResponse, asked: Asked) -> PenstockError | None:
    """Why nothing has a value, where that is one kind of error, which every call ended with."""
    kinds = {fault.kind for outcome in response.outcomes for fault in outcome.faults}
    if any(outcome.ok for outcome in response.outcomes) or kinds != {FaultKind.CALL} or len(asked.failures) > 1:
        return None
    return next(iter(asked.failures.values()), None)


class OutcomeEvents:
    """The server-sent events of a batch: an `outcome` for each item, at last an `end` with all the rest."""

    def __init__(self, model: str, count: _Count) -> None:
        self._model, self._count = model, count

    def event(self, event: Event) -> bytes:
        """An outcome as bytes; empty for anything else."""
        outcome = outcome_of(event)
        return b"" if outcome is None else b"event: outcome\ndata: %b\n\n" % _encode(outcome_row(outcome))

    def end(self, result: Any, usage: Usage) -> bytes:
        """What closes a batch: the totals, what each item used, and the end mark."""
        shares = [
            {"id": one.id, "usage": usage_json(one.usage), "cost_usd": cost_row(one.cost)} for one in result.outcomes
        ]
        said = {**_totals(self._model, self._count, result, usage), "shares": shares}
        return b"event: end\ndata: %b\n\n%b" % (_encode(said), DONE)

    def error(self, error: BaseException) -> bytes:
        """What ends a broken batch: an error object, and no end mark."""
        return b"data: %b\n\n" % _encode(answer_of(error).body)


def _whole(model: str, count: _Count, response: BatchResponse) -> bytes:
    rows = [
        {**outcome_row(one), "usage": usage_json(one.usage), "cost_usd": cost_row(one.cost)}
        for one in response.outcomes
    ]
    totals = _totals(model, count, response, response.usage)
    return _encode({"object": totals.pop("object"), "model": model, "outcomes": rows, **totals})


def _totals(model: str, count: _Count, response: BatchResponse, usage: Usage) -> dict[str, Any]:
    accepted = sum(one.ok for one in response.outcomes)
    counts = {"items": len(response), "accepted": accepted, "failed": len(response) - accepted}
    counts["calls"] = count.facts["calls"]
    foreign = [fault_row(fault) for fault in response.foreign]
    used = {"usage": usage_json(usage), "cost_usd": cost_row(response.cost)}
    return {"object": "batch", "model": model, **counts, "foreign": foreign, **used}


_TEXT = {"type": "string"}
_ID = {"type": ["integer", "string"]}
DESCRIPTION: dict[str, Any] = {
    "tags": ["batch"],
    "summary": "Get a value for each of many items",
    "description": (
        f"At most {MOST_ITEMS} items, many in each call to the model; what a call does not give is asked for again. "
        "With `stream: true` each outcome is a server-sent event `outcome` as it closes, then an event `end` has the "
        "totals, and `data: [DONE]` is last; where it broke, an error event is last. Without it the answer is an error "
        "where every call failed with one kind of error."
    ),
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "items"],
                    "properties": {
                        "model": _TEXT,
                        "items": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MOST_ITEMS,
                            "items": {
                                "type": "object",
                                "required": ["id", "data"],
                                "properties": {"id": _ID, "data": {}, "group": _TEXT},
                                "additionalProperties": False,
                            },
                        },
                        "schema": {"type": "object", "description": "JSON Schema of a value; default: a plan"},
                        "acts": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}], "description": "MoveTo|Attack"},
                        "instructions": _TEXT,
                        "params": {"type": "object", "description": "further fields of each chat request: temperature"},
                        "max_batch_size": {"type": "integer", "minimum": 1, "maximum": MOST_A_CALL, "default": 10},
                        "stream": {"type": "boolean", "default": False},
                    },
                    "additionalProperties": False,
                    "example": {"model": "penstock-demo", "items": [{"id": 1, "data": {"hp": 3}}]},
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "The outcomes, or their stream",
            "content": {"application/json": {}, "text/event-stream": {}},
        },
    },
}
