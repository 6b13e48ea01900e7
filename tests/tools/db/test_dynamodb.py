"""DynamoDB, on two servers that speak its wire: every operation, pages, values, errors."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import date
from typing import Any
from uuid import uuid4

import pytest
from botocore import exceptions

from penstock.errors import UsageError
from penstock.tools.db import DynamoDBExecutor, DynamoDbToolSpec
from penstock.tools.db.dynamodb import CODES, translated
from penstock.tools.db.dynamodb_values import attributes, wired
from tests.rig.serving import free_port

KEY, WORD = "AKIACANARY0123456789", "canary-secret-word-8d1f"
ANYTHING: dict[str, Any] = {"type": "object", "properties": {name: {} for name in ("id", "n", "x")}}


boto: Any = exceptions


class Table:
    """A new table with the key (id, n), and tools on it."""

    def __init__(self, address: str) -> None:
        self.name = f"table-{uuid4().hex[:8]}"
        self.address = address
        self._tools: list[DynamoDBExecutor] = []

    def tool(self, operation: str, **spec: Any) -> DynamoDBExecutor:
        fields: dict[str, Any] = {"tool_name": "t", "parameters": ANYTHING, "table": self.name, "operation": operation}
        fields |= {"region": "eu-west-1", "endpoint_url": self.address, "access_key_id": KEY, "secret_access_key": WORD}
        fields |= {"read_only": operation in ("get", "query", "scan"), **spec}
        made = DynamoDBExecutor(DynamoDbToolSpec.model_validate(fields))
        self._tools.append(made)
        return made

    async def fill(self, count: int) -> None:
        put = self.tool("put", item={"id": "a", "n": ":n", "odd": ":x"})
        results = await asyncio.gather(*(put.execute({"n": number, "x": number % 2}) for number in range(count)))
        assert all(result.ok for result in results), results

    async def create(self) -> None:
        client = await self.tool("scan")._client.get()
        await client.create_table(
            TableName=self.name,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}, {"AttributeName": "n", "KeyType": "RANGE"}],
            AttributeDefinitions=[
                {"AttributeName": "id", "AttributeType": "S"},
                {"AttributeName": "n", "AttributeType": "N"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        while (await client.describe_table(TableName=self.name))["Table"]["TableStatus"] != "ACTIVE":
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        for tool in self._tools:
            await tool.aclose()


@pytest.fixture(params=["moto", "dynalite"])
async def table(request: pytest.FixtureRequest) -> AsyncIterator[Table]:
    """A new table on each server."""
    made = Table(request.getfixturevalue(request.param))
    await made.create()
    yield made
    await made.aclose()


BOTH = {"id": ":id", "n": ":n"}


async def test_row_b10_put_get_update_delete(table: Table) -> None:
    thing = {"deep": [1, 2.5, None, True, {"k": "v"}], "big": 2**70, "empty": ""}
    item = {"id": "a", "n": 1, "x": thing}
    put = table.tool("put", item={**BOTH, "x": ":x"})
    assert (await put.execute(item)).content == {"affected": 1}
    get = table.tool("get", key=BOTH, consistent=True)
    assert (await get.execute({"id": "a", "n": 1})).content == item
    update = table.tool(
        "update", key=BOTH, update="SET #x = :x ADD seen :one", names={"#x": "x"}, constants={"one": 1}, returns="new"
    )
    assert (await update.execute({"id": "a", "n": 1, "x": "new"})).content == {"id": "a", "n": 1, "x": "new", "seen": 1}
    delete = table.tool("delete", key=BOTH, returns="old")
    assert (await delete.execute({"id": "a", "n": 1})).content["x"] == "new"
    gone = await get.execute({"id": "a", "n": 1})
    assert gone.ok
    assert gone.content is None


async def test_row_b10_a_delete_tells_whether_there_was_an_item(table: Table) -> None:
    await table.fill(1)
    delete = table.tool("delete", key=BOTH)
    assert [(await delete.execute({"id": "a", "n": 0})).content for _ in range(2)] == [{"affected": 1}, {"affected": 0}]


async def test_row_b10_query_and_scan_read_every_page(table: Table) -> None:
    await table.fill(12)
    odd = {"filter": "odd = :x"}
    query = table.tool("query", key_condition="id = :id AND n >= :n", descending=True)
    assert [row["n"] for row in (await query.execute({"id": "a", "n": 3})).content] == [*range(11, 2, -1)]
    first = table.tool("query", key_condition="id = :id", first=3, projection="n")
    found = await first.execute({"id": "a"})
    assert found.content == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert found.warnings == ()
    scan = table.tool("scan", max_rows=4, **odd)
    cut = await scan.execute({"x": 1})
    assert len(cut.content) == 4
    assert cut.warnings == ("only the first 4 rows are given: narrow the question",)
    assert len((await table.tool("scan", **odd).execute({"x": 1})).content) == 6


async def test_row_b10_pages_of_a_megabyte_are_read_one_after_another(table: Table) -> None:
    put = table.tool("put", item={**BOTH, "x": ":x"})
    for number in range(8):
        assert (await put.execute({"id": "a", "n": number, "x": "x" * 300_000})).ok
    query = table.tool("query", key_condition="id = :id", projection="n")
    assert [row["n"] for row in (await query.execute({"id": "a"})).content] == [*range(8)]
    whole = table.tool("query", key_condition="id = :id", max_result_bytes=10_000_000)
    assert len((await whole.execute({"id": "a"})).content) == 8


async def test_case_24_values_in_expressions_are_bound(table: Table) -> None:
    await table.fill(3)
    query = table.tool("query", key_condition="id = :id", filter="odd <> :x")
    for evil in ("a OR 1 = 1", "a) OR (id = :id", ":id", "#x", "a' OR 'a' = 'a"):
        assert (await query.execute({"id": evil, "x": 7})).content == []
        assert len((await query.execute({"id": "a", "x": evil})).content) == 3
    update = table.tool("update", key=BOTH, update="SET odd = :x", returns="new")
    assert (await update.execute({"id": "a", "n": 0, "x": ":id, n = :n REMOVE odd"})).content[
        "odd"
    ] == ":id, n = :n REMOVE odd"


async def test_a_condition_that_fails_is_an_error_not_to_repeat(table: Table) -> None:
    await table.fill(1)
    put = table.tool("put", item=BOTH, condition="attribute_not_exists(id)")
    error = (await put.execute({"id": "a", "n": 0})).error
    assert error is not None
    assert (error.code, error.retryable) == ("conditional_check_failed", False)


async def test_what_an_operation_needs_and_was_not_given_is_named(table: Table) -> None:
    error = (await table.tool("get", key=BOTH).execute({"id": "a"})).error
    assert error is not None
    assert (error.code, error.details) == ("bad_arguments", [{"path": "n", "problem": "required by this operation"}])
    put = table.tool("put", item={**BOTH, "x": {"list": [":x", 1], "a": ":x"}}, returns="old")
    assert (await put.execute({"id": "a", "n": 1})).content is None
    assert (await table.tool("get", key=BOTH).execute({"id": "a", "n": 1})).content["x"] == {"list": [1]}


async def test_errors_of_the_service_are_typed(table: Table) -> None:
    cases = [
        (table.tool("scan", table="nowhere"), {}, "missing_table"),
        (table.tool("get", key={"id": ":id"}), {"id": "a"}, "bad_operation"),
        (table.tool("scan", filter="odd ="), {}, "bad_operation"),
        (table.tool("scan", endpoint_url=f"http://127.0.0.1:{free_port()}"), {}, "unavailable"),
    ]
    for tool, arguments, code in cases:
        error = (await tool.execute(arguments)).error
        assert error is not None
        assert (error.code, error.retryable) == (code, code == "unavailable")


async def test_case_25_no_error_and_no_repr_shows_the_keys(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = table.tool("scan", table="nowhere")
    seen = [repr(tool), repr(tool.spec), tool.spec.model_dump_json(), repr(await tool.execute({}))]
    seen.append(repr(await table.tool("scan", filter=f"odd = {WORD} {KEY}").execute({})))
    for word in (KEY, WORD):
        assert not [word[at : at + 8] for at in range(len(word) - 7) if word[at : at + 8] in "".join(seen)]
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UsageError, match="'NO_SUCH_KEY' is not set"):
        table.tool("scan", access_key_id="${NO_SUCH_KEY}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"operation": "put", "item": {"id": ":id"}, "read_only": True}, "put writes"),
        ({"operation": "get"}, "get needs key"),
        ({"operation": "update", "key": {"id": ":id"}}, "update needs update"),
        ({"operation": "get", "key": {"id": ":id"}, "filter": "a = :x"}, "get does not take filter"),
        ({"operation": "scan", "descending": True}, "scan does not take descending"),
        ({"operation": "put", "item": {"id": ":id"}, "returns": "new"}, "old attributes only"),
        ({"operation": "get", "key": {"id": ":who"}}, "no parameter is called 'who'"),
        ({"operation": "scan", "filter": "a = :who"}, "no parameter is called 'who'"),
        ({"operation": "put", "item": {"id": {"deep": [":who"]}}}, "no parameter is called 'who'"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(spec: dict[str, Any], said: str) -> None:
    fields = {"tool_name": "t", "parameters": ANYTHING, "table": "t", "read_only": False, **spec}
    with pytest.raises(ValueError, match=said):
        DynamoDbToolSpec.model_validate(fields)


def test_values_of_the_wire_come_back_as_json_carries_them() -> None:
    wire = {
        "int": {"N": "5"},
        "float": {"N": "0.1"},
        "exact": {"N": "0.12345678901234567890123456789"},
        "set": {"NS": ["3", "1.5"]},
        "words": {"SS": ["b", "a"]},
        "bytes": {"B": b"\x00\xff"},
        "blobs": {"BS": [b"b", b"a"]},
        "none": {"NULL": True},
        "no": {"BOOL": False},
    }
    found = attributes(wire)
    assert found.pop("exact") == attributes({"e": {"N": "0.12345678901234567890123456789"}})["e"]
    assert found == {
        "int": 5,
        "float": 0.1,
        "set": [1.5, 3],
        "words": ["a", "b"],
        "bytes": base64.b64encode(b"\x00\xff").decode(),
        "blobs": ["YQ==", "Yg=="],
        "none": None,
        "no": False,
    }
    assert wired(b"x") == {"B": b"x"}
    assert wired(date(2026, 1, 2)) == {"S": "2026-01-02"}
    with pytest.raises(ValueError, match="no number"):
        wired(float("nan"))


THROTTLED = {
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "LimitExceededException",
}


@pytest.mark.parametrize("name", CODES)
def test_an_answer_is_repeated_only_where_nothing_was_done(name: str) -> None:
    error = boto.ClientError({"Error": {"Code": name, "Message": "said"}}, "PutItem")
    found = translated(error, safe=False)
    assert found.code == CODES[name]
    assert found.retryable == (found.code in ("throttled", "conflict"))
    assert (found.code == "throttled") == (name in THROTTLED)


def test_every_error_of_the_client_is_translated() -> None:
    kinds: list[Any] = [
        kind
        for kind in vars(boto).values()
        if isinstance(kind, type)
        and issubclass(kind, boto.BotoCoreError)
        and "{" not in str(vars(kind).get("fmt", "{"))
    ]
    assert len(kinds) > 5
    for kind in kinds:
        assert translated(kind(), safe=False).message.startswith("DynamoDB")
    lost = boto.ReadTimeoutError(endpoint_url="http://x")
    assert [translated(lost, safe=safe).retryable for safe in (True, False)] == [True, False]
