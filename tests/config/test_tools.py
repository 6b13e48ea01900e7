"""Tools in the configuration: every kind works as it is written, and every mistake is placed and explained."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from penstock.config import load, schema
from penstock.config.tools import close_tools, common_keys, make_tools, own_keys, spec_classes
from penstock.errors import ConfigError
from penstock.tools import FunctionToolExecutor, ToolContext
from penstock.tools.base import BaseToolExecutor
from tests.config import shop
from tests.rig.hostile import Seen, hostile, said

CANARY = "k-canary-0123456789"
ENV = {"KEY": CANARY, "SECONDS": "5", "ON": "true", "VERSION": "2", "DSN": f"postgresql://u:{CANARY}@127.0.0.1:1/d"}
ADD = '{name: a, function: "tests.config.shop:add"'
SQL = '{name: a, sqlite: {path: x.db, statement: "SELECT 1"}'
# The example of the conventions that this configuration follows.
EXAMPLE = """
tools:
  - name: weather
    http: {base_url: https://api.example.com, method: GET, path: "/v1/{city}", query: {unit: "{unit}"}}
    parameters: {city: string, unit: {enum: [c, f], default: c}}
  - {name: order, sqlite: {path: shop.db, statement: "SELECT * FROM orders WHERE id = :id"}, parameters: {id: integer}}
  - {name: add, function: "tests.config.shop:add", type: cached}
store: {dir: .penstock}
"""
EVERY_FIELD = """
tools:
  - name: add
    function: tests.config.shop:add
    type: standard
    id: shop-add
    version: "3"
    description: Adds.
    parameters: {a: integer, b: {type: integer, default: 2}}
    coerce: true
    return_type: integer
    return_target: agent
    required: true
    owner: shop
    permissions: [orders]
    timeout_s: 5
    max_result_bytes: 100
    examples: [{arguments: {a: 1}, result: 3}]
    retry: {attempts: 2, base_s: 0.1, max_s: 1, attempt_timeout_s: 1}
    circuit_breaker: {failures: 3, reset_s: 9}
    limit: {requests_per_minute: 60, concurrent: 4}
    cache: {ttl_s: 60, max_entries: 10}
    idempotency: {safe: true, ledger: false, key_from: [a], ttl_s: 60}
    metrics_tags: {team: shop}
    run_in: inline
    batch: {linger_s: 0.1, max_items: 3}
  - name: send
    parameters: {city: string, note: string}
    http:
      base_url: https://api.example.com
      method: POST
      path: /v1/{city}
      query: {deep: true}
      headers: {authorization: "Bearer ${KEY}"}
      body: {note: "{note}"}
      body_type: form
      expect: json
      allow_private: true
      max_redirects: 1
      redirects: public
      max_response_bytes: 1000
  - name: order
    parameters: {id: integer}
    sqlite: {path: x.db, statement: "SELECT :id", fetch: one, read_only: true, max_rows: 5, lock_wait_s: 2,
             pool_size: 1}
  - name: stock
    postgresql: {dsn: "${DSN}", statement: SELECT 1, fetch: all, read_only: false, max_rows: 5, pool_size: 3}
  - name: price
    mysql: {dsn: "mysql://u:${KEY}@h/d", statement: SELECT 1, fetch: all, read_only: true, max_rows: 5, pool_size: 3}
  - name: item
    parameters: {id: string}
    dynamodb:
      table: items
      operation: query
      key_condition: "#id = :id"
      filter: "kind = :kind"
      projection: kind
      names: {"#id": id}
      constants: {kind: a}
      index: by_id
      consistent: false
      descending: true
      first: 3
      returns: none
      region: eu-central-1
      endpoint_url: http://127.0.0.1:1
      access_key_id: ${KEY}
      secret_access_key: ${KEY}
      session_token: ${KEY}
      pool_size: 2
      read_only: true
      max_rows: 5
      key: {}
      item: {}
      condition: ""
      update: ""
"""


def built(folder: Path, text: str, env: Mapping[str, str] = ENV) -> dict[str, BaseToolExecutor[Any]]:
    file = folder / "penstock.yaml"
    file.write_text(text)
    settings = load(str(file), env)
    return make_tools(settings.tools, env, directory=str(folder / settings.store.dir))


def refused(folder: Path, text: str, env: Mapping[str, str] = ENV) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        built(folder, text, env)
    assert caught.value.file.endswith("penstock.yaml")
    return caught.value


async def test_the_example_of_the_conventions_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shop_db = sqlite3.connect("shop.db")
    shop_db.execute("CREATE TABLE orders (id INTEGER, what TEXT)")
    shop_db.execute("INSERT INTO orders VALUES (7, 'tea')")
    shop_db.commit()
    shop_db.close()
    tools = built(tmp_path, EXAMPLE)
    shop.SEEN.clear()
    assert (await tools["order"].execute({"id": 7})).content == [{"id": 7, "what": "tea"}]
    assert [(await tools["add"].execute('{"a": 1, "b": 2}')).content for _ in range(2)] == [3, 3]
    assert shop.SEEN == ["add"]
    assert tools["weather"].arguments.parse('{"city": "Oslo"}') == {"city": "Oslo", "unit": "c"}
    assert tools["add"].definition["function"] == {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "description": "the first of them"},
                "b": {"type": "integer", "description": "the second of them", "default": 1},
            },
            "required": ["a"],
            "additionalProperties": False,
        },
    }
    await close_tools(tools.values())


def test_every_field_of_every_spec_can_be_written(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in yaml.safe_load(EVERY_FIELD)["tools"]}
    tools = built(tmp_path, EVERY_FIELD)
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(EVERY_FIELD))
    for kind, row in zip(spec_classes(), rows.values(), strict=True):
        inside = row[kind] if isinstance(row[kind], dict) else row
        assert own_keys(kind) <= {*inside}
        assert tools[row["name"]].spec.tool_name == row["name"]
        for key in own_keys(kind) - {"dsn", "access_key_id", "secret_access_key", "session_token", "batch"}:
            placed = str(tmp_path / inside[key]) if kind == "sqlite" and key == "path" else inside[key]
            assert getattr(tools[row["name"]].spec, key) == placed, key
    assert common_keys("function") <= {*rows["add"]}
    written = json.loads(tools["add"].spec.model_dump_json())
    left_to_spec = {"name", "function", "type", "parameters", "return_type"}
    assert {key: written[key] for key in rows["add"] if key not in left_to_spec} == {
        key: value for key, value in rows["add"].items() if key not in left_to_spec
    }
    assert tools["add"].arguments.schema["properties"]["b"] == {"type": "integer", "default": 2}


async def test_secrets_come_from_the_given_environment_and_stay_references(tmp_path: Path) -> None:
    def echo(seen: Seen) -> bytes:
        return said(200, json.dumps({"auth": seen.headers["authorization"]}).encode(), "application/json")

    async with hostile({"/": echo}) as server:
        tools = built(
            tmp_path,
            f'tools: [{{name: a, http: {{base_url: "{server.url}", path: /, allow_private: true,'
            ' headers: {authorization: "Bearer ${KEY}"}}}]',
            {"KEY": CANARY + "\n"},
        )
        result = await tools["a"].execute({})
    assert server.seen[0].headers["authorization"] == f"Bearer {CANARY}"
    assert result.content == {"auth": "Bearer ***"}
    shown = f"{tools} {vars(tools['a'])} {tools['a'].spec} {tools['a'].spec.model_dump_json()}"
    assert "${KEY}" in shown
    assert "canary" not in shown


def test_a_number_a_flag_and_a_text_may_come_from_variables(tmp_path: Path) -> None:
    spec = built(tmp_path, f'tools: [{ADD}, timeout_s: "${{SECONDS}}", coerce: "${{ON}}", version: "${{VERSION}}"}}]')[
        "a"
    ].spec
    assert (spec.timeout_s, spec.coerce, spec.version) == (5.0, True, "2")


async def test_a_decorated_function_keeps_what_the_file_does_not_say(tmp_path: Path) -> None:
    tools = built(
        tmp_path,
        'tools: [{name: stop, function: "tests.config.shop:cancel", timeout_s: 9},'
        ' {name: pay, function: "tests.config.shop:pay"}]',
    )
    spec = tools["stop"].spec
    assert (spec.tool_name, spec.timeout_s, spec.permissions) == ("stop", 9.0, ("orders",))
    assert spec.description == "Cancel an order."
    shop.SEEN.clear()
    assert (await tools["stop"].execute({"order": 1})).content == "cancelled 1"
    assert shop.SEEN == ["noted"]
    for _ in range(2):
        assert (await tools["pay"].execute({"order": 1}, ToolContext(idempotency_key="k"))).content == "paid 1"
    assert shop.SEEN == ["noted", "pay"]
    assert len(await shop.LEDGER.entries("done")) == 1


def test_a_tool_of_a_class_of_its_own_stays_one(tmp_path: Path) -> None:
    text = 'tools: [{name: a, function: "tests.config.shop:twice"}, {name: b, function: "tests.config.shop:cancel"}]'
    assert [type(tool) for tool in built(tmp_path, text).values()] == [shop.Twice, FunctionToolExecutor]


async def test_a_type_may_be_a_class_of_ones_own(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "x.db").close()
    tools = built(
        tmp_path,
        f"tools: [{ADD}, type: 'tests.config.shop:Loud'}},\n"
        f"{SQL.replace('name: a', 'name: b').replace('x.db', str(tmp_path / 'x.db'))},"
        " type: 'tests.config.shop:Wrapped'}]",
    )
    assert (await tools["a"].execute({"a": 1})).content == "2!"
    assert (await tools["b"].execute({})).content == [[{"1": 1}]]
    await close_tools(tools.values())


async def test_tools_share_the_ledger_in_the_stores_folder(tmp_path: Path) -> None:
    text = f"""
store: {{dir: kept}}
tools:
  - {ADD}, idempotency: {{ledger: true}}}}
  - {ADD.replace("name: a", "name: b")}, idempotency: {{ledger: true}}}}
  - {ADD.replace("name: a", "name: c")}}}
"""
    tools = built(tmp_path, text)
    assert tools["a"].ledger is tools["b"].ledger
    assert tools["c"].ledger is None
    shop.SEEN.clear()
    for name in ("a", "b", "a", "b"):
        assert (await tools[name].execute({"a": 1}, ToolContext(idempotency_key="k"))).content == 2
    assert shop.SEEN == ["add", "add"]
    assert (tmp_path / "kept" / "ledger.db").is_file()
    await close_tools(tools.values())
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["ledger.db"]


def http(fields: str, more: str = "") -> str:
    return f'{{name: a, http: {{base_url: "https://x.y", {fields}}}{more}}}'


# What is wrong: the entry, the key within it, and words of the message.
WRONG: dict[str, tuple[str, str, str]] = {
    "no kind": ("{name: a}", "", "a tool is one of function, http, sqlite, postgresql, mysql, dynamodb: none"),
    "two kinds": (f"{ADD}, http: {{}}}}", "", "function and http are written"),
    "no name": ('{function: "tests.config.shop:add"}', ".name", "required"),
    "not a mapping": ("7", "", "expected a mapping"),
    "bad name": (ADD.replace("name: a", "name: a b") + "}", ".name", "1 to 64 letters, digits, hyphens"),
    "function without module": ("{name: a, function: add}", ".function", "as in shop.tools:add"),
    "function with spaces": ("{name: a, function: 'x y:add'}", ".function", "as in shop.tools:add"),
    "no such module": ("{name: a, function: 'no_shop:add'}", ".function", "No module named 'no_shop'"),
    "no such function": ("{name: a, function: 'tests.config.shop:nix'}", ".function", "no attribute 'nix'"),
    "a module that raises": ("{name: a, function: 'broken_shop:add'}", ".function", "KeyError: 'boom'"),
    "not a function": (
        "{name: a, function: 'tests.config.shop:NUMBER'}",
        ".function",
        "not a function, but of the type int",
    ),
    "unknown key": (f"{ADD}, timeout: 3}}", ".timeout", "did you mean 'timeout_s'?"),
    "unknown inner key": (
        f"{ADD}, retry: {{tries: 3}}}}",
        ".retry.tries",
        "known here are attempt_timeout_s, attempts",
    ),
    "unknown key of a kind": (http("pat: /"), ".http.pat", "did you mean 'path'?"),
    "key inside": (http("timeout_s: 3"), ".http.timeout_s", "'timeout_s' stands beside 'http': move it there"),
    "key outside": (http("path: /", ", method: GET"), ".method", "'method' stands within 'http': move it there"),
    "driver": (SQL.replace("path:", "driver: mysql, path:") + "}", ".sqlite.driver", "unknown key 'driver'"),
    "text for a number": (f"{ADD}, timeout_s: soon}}", ".timeout_s", "expected a number, got text"),
    "quoted number": (f'{ADD}, timeout_s: "5"}}', ".timeout_s", "expected a number, got text"),
    "variable that is no number": (f'{ADD}, timeout_s: "${{KEY}}"}}', ".timeout_s", "expected a number, got text"),
    "out of bounds": (f"{ADD}, retry: {{attempts: 0}}}}", ".retry.attempts", "must be at least 1, not 0"),
    "text for a list": (f"{ADD}, permissions: orders}}", ".permissions", "expected a list, got text"),
    "a choice": (f"{ADD}, return_target: me}}", ".return_target", "write 'llm', 'human', 'agent' or 'step', not 'me'"),
    "a number for text": (f"{ADD}, version: 2}}", ".version", "expected text, got a number: put it in quotes"),
    "a number with dots in its key": (f"{ADD}, metrics_tags: {{a.b: 3}}}}", ".metrics_tags.a.b", "expected text"),
    "an example without arguments": (f"{ADD}, examples: [{{}}]}}", ".examples[0].arguments", "required"),
    "parameter type": (f"{ADD}, parameters: {{a: integre}}}}", ".parameters", "the type 'integre' is not known"),
    "parameters not taken": (f"{ADD}, parameters: {{z: string}}}}", ".function", "does not take"),
    "two memories": (f"{ADD}, cache: {{}}, idempotency: {{ledger: true}}}}", ".function", "exclude each other"),
    "key_from nothing": (
        f"{ADD}, idempotency: {{key_from: [z]}}}}",
        ".idempotency.key_from",
        "parameters are 'a', 'b'",
    ),
    "unknown type": (f"{ADD}, type: fast}}", ".type", "known are batching, cached, default, standard, streaming"),
    "type of a database": (f"{SQL}, type: cached}}", ".type", "write standard or module:Class, not 'cached'"),
    "type that is no class": (f"{ADD}, type: 'tests.config.shop:add'}}", ".type", "must extend BaseFunctionExecutor"),
    "type of another kind": (f"{SQL}, type: 'tests.config.shop:Loud'}}", ".type", "must extend BaseDbExecutor"),
    "type that is not there": (f"{ADD}, type: 'tests.config.shop:Nix'}}", ".type", "no attribute 'Nix'"),
    "missing key of a kind": ("{name: a, sqlite: {path: x.db}}", ".sqlite.statement", "required"),
    "kind that is no mapping": ("{name: a, http: https://x.y}", ".http", "expected a mapping"),
    "unknown argument of a template": (http("path: '/{city}'"), ".http", "no parameter is called 'city'"),
    "unknown argument of a statement": (SQL.replace("1", ":id") + "}", ".sqlite", "no parameter is called 'id'"),
    "a statement that writes": (SQL.replace("SELECT 1", "DELETE FROM x") + "}", ".sqlite", "read_only: false"),
    "an operation that writes": (
        "{name: a, dynamodb: {table: t, operation: put, item: {id: 1}}}",
        ".dynamodb",
        "put writes: write read_only: false",
    ),
    "an address": ("{name: a, http: {base_url: 'ftp://x.y'}}", ".http.base_url", "write base_url as http://host"),
    "a secret in an address": (http("query: {key: '${KEY}'}"), ".http.query", "put ${NAME} into headers"),
    "a secret in a path": (http("path: '/${KEY}'"), ".http.path", "put ${NAME} into headers"),
    "a secret in a body": (http("method: POST, body: {key: '${KEY}'}"), ".http.body", "put ${NAME} into headers"),
    "a written secret": (http("headers: {authorization: Bearer abc}"), ".http.headers", "put it in the environment"),
    "no such variable": (http("headers: {x-k: '${NIX}'}"), ".http.headers.x-k", "variable 'NIX' is not set"),
    "no such variable in a dsn": ("{name: a, mysql: {dsn: '${NIX}', statement: x}}", ".mysql.dsn", "'NIX' is not set"),
    "a dsn that is none": (
        "{name: a, postgresql: {dsn: 'http://${KEY}@h', statement: SELECT 1}}",
        ".postgresql",
        "the dsn is no address of PostgreSQL",
    ),
}


@pytest.mark.parametrize("row", WRONG.values(), ids=list(WRONG))
def test_case_27_a_wrong_tool_is_refused_with_line_and_key(
    row: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, key, words = row
    shop.broken(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    error = refused(tmp_path, f"tools:\n  - {ADD.replace('name: a', 'name: first')}}}\n  - {entry}\n")
    assert (error.line, error.key) == (3, f"tools[1]{key}")
    assert words in error.problem
    assert "canary" not in str(error)
    sys.modules.pop("broken_shop", None)


def test_case_27_a_mistake_is_placed_on_its_own_line(tmp_path: Path) -> None:
    error = refused(tmp_path, "tools:\n  - name: a\n    http:\n      base_url: https://x.y\n      retries: 3\n")
    assert (error.line, error.key) == (5, "tools[0].http.retries")


def test_case_27_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, f"tools:\n  - {ADD}}}\n  - {SQL}}}\n")
    assert (error.line, error.key) == (3, "tools[1].name")
    assert "stands twice, on lines 2 and 3" in error.problem


def test_case_25_no_message_shows_the_value_of_a_variable(tmp_path: Path) -> None:
    for fields in ("base_url: '${KEY}'", "base_url: 'https://x.y', method: '${KEY}'", "base_url: 'https://${KEY}@x.y'"):
        assert "canary" not in str(refused(tmp_path, f"tools: [{{name: a, http: {{{fields}}}}}]"))


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "a"},
        {"name": "a", "function": "m:f", "http": {"base_url": "https://x.y"}},
        {"name": "a", "function": "m:f", "timeout": 3},
        {"name": "a", "function": "m:f", "retry": {"tries": 3}},
        {"name": "a", "function": "m:f", "timeout_s": "soon"},
        {"name": "a", "http": {"path": "/"}},
        {"name": "a", "http": {"base_url": "https://x.y", "statement": "x"}},
        {"name": "a", "sqlite": {"path": "x", "statement": "SELECT 1"}, "run_in": "inline"},
        {"function": "m:f"},
    ],
)
def test_the_schema_refuses_what_is_wrong(entry: dict[str, Any]) -> None:
    published = jsonschema.Draft202012Validator(schema())
    assert not published.is_valid({"tools": [entry]})
    assert published.is_valid({"tools": [{"name": "a", "function": "m:f", "return_type": "string"}]})


async def test_files_are_found_from_the_folder_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    sqlite3.connect(home / "x.db").close()
    add = '{name: add, function: "tests.config.shop:add", idempotency: {ledger: true}}'
    (home / "penstock.yaml").write_text(f"tools:\n  - {SQL}}}\n  - {add}\nstore: {{dir: kept}}\n")
    monkeypatch.chdir(elsewhere)
    settings = load(str(home / "penstock.yaml"), ENV)
    tools = make_tools(settings.tools, ENV, directory=settings.store.dir)
    assert (await tools["a"].execute({})).ok
    assert (await tools["add"].execute({"a": 1, "b": 2}, ToolContext(idempotency_key="k"))).ok
    await close_tools(tools.values())
    assert (home / "kept" / "ledger.db").exists()
    assert not list(elsewhere.iterdir())
