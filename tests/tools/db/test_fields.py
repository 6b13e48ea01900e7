"""Fields of the specs of database tools that show only on the wire, in an index, or with several calls at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from penstock.tools.db import DynamoDBExecutor, DynamoDbToolSpec
from penstock.tools.factory import DbExecutorFactory
from tests.rig.hostile import Seen, hostile, said, silence
from tests.tools.db.shops import Shop
from tests.tools.db.test_dynamodb import ANYTHING, KEY, WORD, Table

EMPTY = said(200, b"{}", "application/x-amz-json-1.0")
WHERE: dict[str, Any] = {"region": "eu-west-1", "access_key_id": KEY, "secret_access_key": WORD}


def dynamo(**fields: Any) -> DynamoDBExecutor:
    """A tool that gets an item, unless the fields say otherwise."""
    about = {"tool_name": "t", "parameters": ANYTHING, "table": "things", "operation": "get", "key": {"id": ":id"}}
    return DynamoDBExecutor(DynamoDbToolSpec.model_validate({**about, **WHERE, **fields}))


async def test_row_b10_driver_says_which_executor_takes_a_spec(shop: Shop) -> None:
    tool = shop.tool("SELECT 1 AS one")
    assert type(DbExecutorFactory.get_executor(tool.spec)) is type(tool)


async def test_row_b10_driver_says_which_executor_takes_an_operation() -> None:
    assert type(DbExecutorFactory.get_executor(dynamo().spec)) is DynamoDBExecutor


async def test_case_24_read_only_is_kept_by_the_database_until_the_spec_says_otherwise(shop: Shop) -> None:
    statement = {
        "sqlite": "WITH x AS (SELECT 1) DELETE FROM item WHERE id = 50001",
        "postgresql": "SELECT nextval('counter') AS n",
        "mysql": "SELECT nextval(counter) AS n",
    }[shop.name]
    if shop.name != "sqlite":
        await shop.ask("CREATE SEQUENCE IF NOT EXISTS counter")
    for read_only in (True, False):
        tool = shop.tool(statement, read_only=read_only, fetch="all")
        assert (await tool.execute({})).ok is not read_only
        await tool.aclose()


async def test_row_b10_fetch_says_what_comes_back(shop: Shop) -> None:
    found = []
    for fetch in ("all", "one", "affected"):
        tool = shop.tool("SELECT id FROM item WHERE id <= 2 ORDER BY id", fetch=fetch)
        found.append((await tool.execute({})).content)
        await tool.aclose()
    assert found[:2] == [[{"id": 1}, {"id": 2}], {"id": 1}]
    assert list(found[2]) == ["affected"]


async def test_row_b10_pool_size_is_how_many_are_asked_at_once(shop: Shop) -> None:
    statement = f"SELECT CASE WHEN :slow = 1 THEN ({shop.endless}) ELSE 0 END AS n"
    for size in (1, 2):
        tool = shop.tool(statement, {"slow": "integer"}, pool_size=size)
        slow = asyncio.create_task(tool.execute({"slow": 1}))
        await asyncio.sleep(0.05)
        quick = asyncio.create_task(tool.execute({"slow": 0}))
        await asyncio.wait([quick], timeout=0.2 if size == 1 else 5)
        assert quick.done() is (size == 2)
        slow.cancel()
        assert (await quick).ok
        with suppress(asyncio.CancelledError):
            await slow
        await tool.aclose()


async def test_row_b10_pool_size_of_dynamodb_is_how_many_connections_it_opens() -> None:
    async with hostile({"*": silence}) as served:
        tool = dynamo(endpoint_url=served.url, pool_size=2)
        calls = [asyncio.create_task(tool.execute({"id": "a"})) for _ in range(4)]
        async with asyncio.timeout(5):
            while len(served.seen) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert served.connections == 2
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await tool.aclose()


async def asked(**fields: Any) -> Seen:
    """The request that a tool with these fields makes."""
    async with hostile({"*": EMPTY}) as served:
        tool = dynamo(endpoint_url=served.url, **fields)
        assert (await tool.execute({"id": "a"})).ok
        await tool.aclose()
        (request,) = served.seen
    return request


def signature(request: Seen, secret: str, region: str) -> str:
    """What a request is signed with (AWS Signature Version 4), worked out anew from its own signed headers."""
    names = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    url = f"http://{request.headers['host']}{request.target}"
    again: Any = AWSRequest("POST", url, {name: request.headers[name] for name in names}, request.body)
    again.context["timestamp"] = request.headers["x-amz-date"]
    auth: Any = SigV4Auth(Credentials(KEY, secret), "dynamodb", region)
    found: str = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
    return found


@pytest.mark.parametrize("region", ["eu-west-1", "ap-south-1"])
async def test_row_b10_region_and_keys_sign_what_is_sent_to_the_endpoint(region: str) -> None:
    request = await asked(region=region, session_token="a-token")
    authorization = request.headers["authorization"]
    assert f"Credential={KEY}/" in authorization
    assert f"/{region}/dynamodb/" in authorization
    assert authorization.endswith(f"Signature={signature(request, WORD, region)}")
    assert request.headers["x-amz-security-token"] == "a-token"


async def test_row_b10_consistent_asks_for_what_was_written_last() -> None:
    assert b'"ConsistentRead":true' in (await asked(consistent=True)).body.replace(b" ", b"")
    assert b"ConsistentRead" not in (await asked()).body


async def test_row_b10_index_is_what_a_query_and_a_scan_read(moto: str) -> None:
    table = Table(moto)
    client = await table.tool("scan")._client.get()
    await client.create_table(
        TableName=table.name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("id", "x")],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "by_x",
                "KeySchema": [{"AttributeName": "x", "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    put = table.tool("put", item={"id": ":id", "x": ":x", "more": 1})
    assert (await put.execute({"id": "a", "x": "red"})).ok
    assert (await put.execute({"id": "b"})).ok
    query = table.tool("query", key_condition="x = :x", index="by_x")
    assert (await query.execute({"x": "red"})).content == [{"id": "a", "x": "red"}]
    assert (await table.tool("scan", index="by_x").execute({})).content == [{"id": "a", "x": "red"}]
    assert len((await table.tool("scan").execute({})).content) == 2
    await table.aclose()
