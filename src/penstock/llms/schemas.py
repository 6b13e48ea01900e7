"""Reads the schemas that an OpenAI chat request holds, and says them in the words of services that know fewer."""

from __future__ import annotations

from reprlib import repr as brief
from typing import Any

import msgspec

from penstock.llms.turns import invalid
from penstock.messages import is_array, is_object

_SCHEMAS = {"$defs", "allOf", "anyOf", "definitions", "items", "oneOf", "properties"}
_SCHEMA = {"$ref", "const", "default", "description", "enum", "required", "title", "type"}
_FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
_SCHEMA_VALUES = [("minItems", 0), ("minItems", 1), *(("format", name) for name in _FORMATS)]
_encode = msgspec.json.Encoder(enc_hook=str).encode


def wanted_schema(response_format: Any) -> dict[str, Any] | None:
    """The schema that a `response_format` of type json_schema holds, with its description; None for a text."""
    kind = response_format.get("type") if is_object(response_format) else None
    if kind == "text":
        return None
    said = response_format.get("json_schema") if kind == "json_schema" else None
    schema = said.get("schema") if is_object(said) else None
    if not is_object(said) or not is_object(schema):
        text = f"a format is text, json_object, or json_schema with a schema; not {brief(response_format)}"
        raise invalid(text, "response_format")
    return {"description": said["description"], **schema} if said.get("description") else schema


def closed_schema(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """A JSON schema in the words that Anthropic's structured output knows, where OpenAI's knows more.

    Its objects take no other properties; what the service would refuse, as limits, the description tells the model.
    https://platform.claude.com/docs/en/build-with-claude/structured-outputs
    """
    try:
        closed: dict[str, Any] = _closed(schema)
    except RecursionError as error:
        raise invalid("the schema is nested too deeply", param) from error
    return closed


def _closed(schema: Any) -> Any:
    if not is_object(schema):
        return schema
    if "$ref" in schema:
        schema = {key: schema[key] for key in ("$ref", "$defs", "definitions") if key in schema}
    made: dict[str, Any] = {}
    told: list[str] = []
    for key, value in schema.items():
        if key in _SCHEMAS:
            made["anyOf" if key == "oneOf" else key] = _closed(value) if key == "items" else _each_closed(value)
        elif key in _SCHEMA or (key, value) in _SCHEMA_VALUES:
            made[key] = value
        elif key not in ("$schema", "additionalProperties") or is_object(value):
            told.append(f"{key}: {_encode(value).decode()}")
    kind = schema.get("type")
    if kind == "object" or "properties" in made or (is_array(kind) and "object" in kind):
        made = {"type": "object", **made, "additionalProperties": False}
    if told:
        said = f"{made['description']}\n\n" if made.get("description") else ""
        made["description"] = f"{said}({', '.join(told)})"
    return made


def _each_closed(schemas: Any) -> Any:
    if is_object(schemas):
        return {name: _closed(one) for name, one in schemas.items()}
    return [_closed(one) for one in schemas] if is_array(schemas) else schemas
