"""`DynamoDBExecutor`: a declared operation on a DynamoDB table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from socket import gaierror
from typing import Any

from pydantic import SecretStr

from penstock.errors import BadArguments, ToolError
from penstock.net.loops import PerLoop
from penstock.tools.db.base import BaseDbExecutor, Failures, bounded, driver_module, failed, revealed
from penstock.tools.db.dynamodb_values import ABSENT, attributes, filled, wired
from penstock.tools.db.spec import ARGUMENT, DynamoDbToolSpec
from penstock.tools.result import ToolContext

CONNECT_S = 10
RETURNED = {"none": "NONE", "old": "ALL_OLD", "new": "ALL_NEW"}
RETRYABLE = frozenset({"conflict", "throttled", "unavailable"})
"""Nothing was done."""

# By the code in DynamoDB's answer (API reference, "Common errors" and those of each operation).
CODES: Mapping[str, str] = {
    "AccessDeniedException": "permission_denied",
    "ConditionalCheckFailedException": "conditional_check_failed",
    "ExpiredTokenException": "login_refused",
    "IncompleteSignatureException": "login_refused",
    "InternalServerError": "server_fault",
    "InvalidSignatureException": "login_refused",
    "ItemCollectionSizeLimitExceededException": "invalid_value",
    "LimitExceededException": "throttled",
    "MissingAuthenticationTokenException": "login_refused",
    "ProvisionedThroughputExceededException": "throttled",
    "ReplicatedWriteConflictException": "conflict",
    "RequestLimitExceeded": "throttled",
    "ResourceInUseException": "conflict",
    "ResourceNotFoundException": "missing_table",
    "SerializationException": "invalid_value",
    "ServiceUnavailable": "server_fault",
    "ThrottlingException": "throttled",
    "TransactionConflictException": "conflict",
    "UnrecognizedClientException": "login_refused",
    "ValidationException": "bad_operation",
}


class DynamoDBExecutor(BaseDbExecutor[DynamoDbToolSpec]):
    """Does the operation of its spec; arguments are values in it, never a part of an expression.

    Pages of an answer are read until there are as many items as are wanted. It does not repeat calls by itself: that is
    what `retry` in the spec is for.
    """

    speaks = False

    def __init__(self, spec: DynamoDbToolSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        boto = driver_module("botocore.exceptions", extra="dynamodb")
        self._raised = (boto.BotoCoreError, boto.ClientError, OSError, ValueError)
        given = {"aws_access_key_id": spec.access_key_id, "aws_secret_access_key": spec.secret_access_key}
        given["aws_session_token"] = spec.session_token
        keys = {name: revealed(secret, self.variable) for name, secret in given.items() if secret is not None}
        self._keys = {name: SecretStr(key) for name, key in keys.items()}
        self._client = PerLoop(self._open, _close)
        self._failures = Failures(partial(translated, safe=self.safe), keys.values())
        self._request, self._bound = _fixed(spec), _bound(spec)

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        request = self._filled(args)
        return await self._ask(await self._client.get(), request)

    async def aclose(self) -> None:
        """Close this loop's client; the next call opens a new one."""
        await self._client.aclose()

    def _filled(self, args: Mapping[str, Any]) -> dict[str, Any]:
        spec, request = self.spec, dict(self._request)
        absent = [name for name in self._bound if args.get(name) is None and name not in spec.constants]
        if absent:
            problems = [{"path": name, "problem": "required by this operation"} for name in absent]
            raise BadArguments(f"this operation needs {', '.join(map(repr, absent))}", details=problems)
        for name, template in (("Key", spec.key), ("Item", spec.item)):
            if template:
                request[name] = {key: wired(one) for key, one in filled(template, args).items() if one is not ABSENT}
        values = {name: args[name] if name in args else spec.constants[name] for name in _used(spec)}
        if values:
            request["ExpressionAttributeValues"] = {f":{name}": wired(value) for name, value in values.items()}
        return request

    async def _ask(self, client: Any, request: dict[str, Any]) -> Any:
        match self.spec.operation:
            case "get":
                found = (await client.get_item(**request)).get("Item")
                return None if found is None else attributes(found)
            case "put":
                return self._written(await client.put_item(**request))
            case "update":
                return self._written(await client.update_item(**request))
            case "delete":
                return self._written(await client.delete_item(**request))
            case "query":
                return await self._pages(client.query, request)
            case "scan":
                return await self._pages(client.scan, request)

    def _written(self, answer: Mapping[str, Any]) -> Any:
        found = answer.get("Attributes")
        if self.spec.returns == "none":
            return {"affected": 0 if self.spec.operation == "delete" and found is None else 1}
        return None if found is None else attributes(found)

    async def _pages(self, read: Any, request: dict[str, Any]) -> Any:
        spec = self.spec
        wanted = min(spec.first or spec.max_rows + 1, spec.max_rows + 1)
        items: list[Any] = []
        while len(items) < wanted:
            if not spec.filter:  # with one, DynamoDB would count what the filter drops
                request["Limit"] = wanted - len(items)
            answer = await read(**request)
            items += map(attributes, answer["Items"])
            if not answer.get("LastEvaluatedKey"):
                break
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        return bounded(items[:wanted], spec.max_rows)

    async def _open(self) -> Any:
        session = driver_module("aiobotocore.session", extra="dynamodb").get_session()
        session.register_component("data_loader", _loader())
        config = driver_module("aiobotocore.config", extra="dynamodb").AioConfig(
            connect_timeout=CONNECT_S,
            read_timeout=self.spec.timeout_s,
            max_pool_connections=self.spec.pool_size,
            parameter_validation=False,  # DynamoDB does, and says it better
            retries={"total_max_attempts": 1},
        )
        place = {"region_name": self.spec.region, "endpoint_url": self.spec.endpoint_url}
        keys = {name: key.get_secret_value() for name, key in self._keys.items()}
        return await session.create_client("dynamodb", config=config, **place, **keys).__aenter__()


@cache
def _loader() -> Any:
    """What reads botocore's descriptions of services; each session with its own would take a tenth of a second."""
    return driver_module("aiobotocore.session", extra="dynamodb").get_session().get_component("data_loader")


async def _close(client: Any) -> None:
    await client.close()


def _fixed(spec: DynamoDbToolSpec) -> dict[str, Any]:
    """The part of the request that no argument changes."""
    found = {
        "TableName": spec.table,
        "KeyConditionExpression": spec.key_condition,
        "FilterExpression": spec.filter,
        "ConditionExpression": spec.condition,
        "UpdateExpression": spec.update,
        "ProjectionExpression": spec.projection,
        "ExpressionAttributeNames": spec.names,
        "IndexName": spec.index,
        "ConsistentRead": spec.consistent,
    }
    request = {name: value for name, value in found.items() if value}
    if spec.descending:
        request["ScanIndexForward"] = False
    if spec.operation == "delete":
        request["ReturnValues"] = RETURNED["old"]  # else nothing tells whether there was such an item
    elif spec.returns != "none":
        request["ReturnValues"] = RETURNED[spec.returns]
    return request


def _used(spec: DynamoDbToolSpec) -> tuple[str, ...]:
    """The `:name`s of the expressions."""
    return tuple(dict.fromkeys(ARGUMENT.findall(" ".join(spec.expressions))))


def _bound(spec: DynamoDbToolSpec) -> tuple[str, ...]:
    """The arguments that a request cannot do without."""
    keys = [found[1] for one in spec.key.values() if isinstance(one, str) and (found := ARGUMENT.fullmatch(one))]
    return tuple(dict.fromkeys([*keys, *_used(spec)]))


def _not_connected(error: Any) -> bool:
    """Whether nothing was sent: botocore's `EndpointConnectionError` is also what a reset after the request becomes."""
    if not isinstance(error, driver_module("botocore.exceptions", extra="dynamodb").EndpointConnectionError):
        return False
    connector = driver_module("aiohttp", extra="dynamodb").ClientConnectorError
    return isinstance(error.kwargs.get("error"), connector | gaierror)


def translated(error: Any, *, safe: bool) -> ToolError:
    """The tool error that an error of botocore or of the network means."""
    boto = driver_module("botocore.exceptions", extra="dynamodb")
    if isinstance(error, boto.ClientError):
        said: Mapping[str, Any] = error.response.get("Error", {})
        name = str(said.get("Code", ""))
        code = CODES.get(name, "database_error")
        retryable = code in RETRYABLE or (code == "server_fault" and safe)
        return failed(f"DynamoDB: {said.get('Message') or name}", code, retryable=retryable, reason=name)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.NoRegionError):
        return failed(f"DynamoDB cannot be asked: {error}", "not_configured")
    if isinstance(error, boto.ConnectTimeoutError) or _not_connected(error):
        return failed(f"DynamoDB cannot be reached: {error}", "unavailable", retryable=True)
    if isinstance(error, boto.HTTPClientError | boto.EndpointConnectionError | OSError):
        return failed(f"DynamoDB did not answer: {error}", "connection_lost", retryable=safe)
    if isinstance(error, ValueError):
        return failed(f"DynamoDB cannot take this value: {error}", "invalid_value")
    return failed(f"DynamoDB: {error}", "database_error")
