"""The configuration file: what is read, and for every mistake the file, the line, the key and what to write instead."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import Settings, load, schema
from penstock.config.document import read
from penstock.errors import ConfigError

HASH = "sha256:" + "0" * 64
FULL = f"""
server: {{host: 127.0.0.1, port: 8100, workers: 2, disconnect: finish, heartbeat_s: 5, write_stall_s: 60, drain_s: 1.5,
         max_body_mb: 2, cors_origins: ["*", "https://app.example.com"], log: json}}
auth:
  tokens:
    - {{name: alice, hash: "{HASH}", scopes: [chat, tools, admin], tenant: acme}}
    - {{name: bob, value: "${{BOB_TOKEN}}"}}
models:
  - name: fast
    llm: openai:gpt-5-mini
    api_key: ${{OPENAI_API_KEY}}
    headers: {{X-Project: p1}}
    params: {{temperature: 0.2, since: 2024-01-01}}
    timeout_s: 30
    idle_timeout_s: 10
    connect_timeout_s: 2.5
    retry: {{attempts: 4}}
    limit: {{requests_per_minute: 600, tokens_per_minute: 200000, concurrent: 64}}
    allow: [extra_body]
  - {{name: local, llm: "ollama:qwen3:8b", base_url: "http://127.0.0.1:1234/v1"}}
  - {{name: toy, llm: demo}}
tracing: {{otlp: "http://127.0.0.1:4318", content: true}}
"""
ENV = {"OPENAI_API_KEY": "sk-canary-0123456789", "BOB_TOKEN": "pk-canary-9876543210", "PORT": "8100", "ON": "true"}


def written(folder: Path, text: str) -> str:
    path = folder / "penstock.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def refused(folder: Path, text: str, env: Mapping[str, str] = ENV) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text), env)
    assert caught.value.file.endswith("penstock.yaml")
    return caught.value


def test_every_key_of_a_file_is_read(tmp_path: Path) -> None:
    settings = load(written(tmp_path, FULL), ENV)
    assert settings.server.port == 8100
    assert settings.server.cors_origins == ("*", "https://app.example.com")
    assert settings.auth.tokens[1].value is not None
    assert settings.auth.tokens[1].value.get_secret_value() == ENV["BOB_TOKEN"]
    fast, local, toy = settings.models
    assert fast.api_key is not None
    assert fast.api_key.get_secret_value() == ENV["OPENAI_API_KEY"]
    assert fast.params == {"temperature": 0.2, "since": "2024-01-01"}
    assert fast.headers["x-project"].get_secret_value() == "p1"
    assert (local.llm, local.name, toy.llm) == ("ollama:qwen3:8b", "local", "demo")
    assert settings.tracing.content


def test_no_file_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}) == Settings()


def test_the_file_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "server: {port: 9000}")
    assert load(None, {}).server.port == 9000


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    settings = load(written(tmp_path, "# nothing yet\n"), {})
    assert settings.store.dir == str(tmp_path / Settings().store.dir)
    assert settings.model_copy(update={"store": Settings().store}) == Settings()


# Each row: the file, the line, the key, and words that the message must hold.
MODEL = "models:\n  - name: a\n    llm: openai:x\n"
WRONG: dict[str, tuple[str, int | None, str, str]] = {
    "unknown section": ("servr: {}", 1, "servr", "did you mean 'server'"),
    "unknown key": ("server:\n  prot: 1", 2, "server.prot", "did you mean 'port'"),
    "unknown key of a model": (f"{MODEL}    retry:\n      attemps: 2", 5, "models[0].retry.attemps", "'attempts'"),
    "unknown key like no other": ("zzz: 1", 1, "zzz", "known here are agents, auth, models, recordings, server"),
    "not built: store": ("store: {url: 'sqlite:///x.db'}", 1, "store.url", "not supported by this version"),
    "not built: mcpServers": ("mcpServers: {}", 1, "mcpServers", "not supported by this version"),
    "not built: detach": (
        "server:\n  disconnect: detach",
        2,
        "server.disconnect",
        "not supported by this version: write",
    ),
    "bad type: number": ("server:\n  port: eight", 2, "server.port", "expected a whole number, got text"),
    "bad type: fraction": ("server: {port: 80.5}", 1, "server.port", "expected a whole number, got a number"),
    "bad type: flag": ("tracing: {content: 1}", 1, "tracing.content", "expected true or false, got a number"),
    "bad type: text": (
        "models:\n  - name: 5\n    llm: openai:x",
        2,
        "models[0].name",
        "text, got a number: put it in quotes",
    ),
    "bad type: list": ("models: {}", 1, "models", "expected a list, got a mapping"),
    "bad type: mapping": ("server: []", 1, "server", "expected a mapping of keys to values, got a list"),
    "bad type: nothing": ("server:\n  port: 1\nauth:", 3, "auth", "got nothing: write a value, or remove the key"),
    "bad type: from the environment": ("server:\n  port: ${BOB_TOKEN}", 2, "server.port", "whole number, got text"),
    "bad type: whole file": ("- a", 1, "", "expected a mapping"),
    "out of bounds": ("server:\n  port: 99999", 2, "server.port", "at most 65535, not 99999"),
    "too small": ("server: {workers: 0}", 1, "server.workers", "at least 1, not 0"),
    "no time at all": ("server: {drain_s: 0}", 1, "server.drain_s", "more than 0"),
    "no number": ("server: {drain_s: .inf}", 1, "server.drain_s", "finite number"),
    "not a choice": ("server: {log: fancy}", 1, "server.log", "write 'plain' or 'json', not 'fancy'"),
    "not a scope": (
        f"auth: {{tokens: [{{name: a, hash: '{HASH}', scopes: [x]}}]}}",
        1,
        "auth.tokens[0].scopes[0]",
        "'chat'",
    ),
    "missing key": ("models:\n  - name: a", 2, "models[0].llm", "required, but not written"),
    "empty name": ("models: [{name: '', llm: 'openai:x'}]", 1, "models[0].name", "must not be empty"),
    "missing variable": (f"{MODEL}    api_key: ${{NOPE}}", 4, "models[0].api_key", "'NOPE' is not set"),
    "empty variable": (f"{MODEL}    api_key: a${{EMPTY}}", 4, "models[0].api_key", "'EMPTY' is not set, or empty"),
    "malformed reference": ("server: {host: '${'}", 1, "server.host", "write ${NAME}"),
    "default in a reference": ("server:\n  host: ${A:-b}", 2, "server.host", "write ${NAME}"),
    "duplicate key": ("server:\n  port: 1\n  log: json\n  port: 2", 4, "server.port", "stands twice, on lines 2 and 4"),
    "duplicate section": ("server: {}\nauth: {}\nserver: {}", 3, "server", "lines 1 and 3"),
    "duplicate model": (
        f"{MODEL}  - {{name: a, llm: demo}}",
        4,
        "models[1].name",
        "'a' stands twice, on lines 2 and 4",
    ),
    "duplicate token": (
        f"auth:\n  tokens:\n    - {{name: a, hash: '{HASH}'}}\n    - {{name: a, hash: '{HASH}'}}",
        4,
        "auth.tokens[1].name",
        "lines 3 and 4",
    ),
    "unknown service": (
        "models: [{name: a, llm: 'foo:x'}]",
        1,
        "models[0].llm",
        "no service 'foo': services are anthropic, azure",
    ),
    "no service": ("models: [{name: a, llm: gpt-5}]", 1, "models[0].llm", "write the service before the model"),
    "no model": ("models: [{name: a, llm: 'openai:'}]", 1, "models[0].llm", "openai:MODEL"),
    "no address": ("models: [{name: a, llm: 'azure:x'}]", 1, "models[0].base_url", "AZURE_OPENAI_ENDPOINT"),
    "credentials": (f"{MODEL}    base_url: http://u:p@h/v1", 4, "models[0].base_url", "no user name or password"),
    "not an address": (f"{MODEL}    base_url: localhost:80", 4, "models[0].base_url", "http://127.0.0.1:8080/v1"),
    "not a port": (f"{MODEL}    base_url: http://h:99999/v1", 4, "models[0].base_url", "expected an address"),
    "query": (f"{MODEL}    base_url: http://h/v1?key=1", 4, "models[0].base_url", "remove what follows"),
    "origin with a path": ("server: {cors_origins: ['http://a/b']}", 1, "server.cors_origins[0]", "without a path"),
    "header name": (f"{MODEL}    headers: {{a b: c}}", 4, "models[0].headers.a b", "a header name such as"),
    "header value": (f'{MODEL}    headers: {{a: "b\\nc"}}', 4, "models[0].headers.a", "one line of printable ASCII"),
    "default of a request": (
        f"{MODEL}    params: {{stream: true}}",
        4,
        "models[0].params",
        "'stream' cannot be a default",
    ),
    "address as default": (f"{MODEL}    params: {{api_base: x}}", 4, "models[0].params", "'api_base' cannot be"),
    "nothing to allow": (f"{MODEL}    allow: [temperature]", 4, "models[0].allow[0]", "api_base, api_key"),
    "two credentials": (
        f"auth: {{tokens: [{{name: a, hash: '{HASH}', value: b}}]}}",
        1,
        "auth.tokens[0]",
        "either hash or value",
    ),
    "no credential": ("auth: {tokens: [{name: a}]}", 1, "auth.tokens[0]", "penstock token new NAME"),
    "bad hash": ("auth: {tokens: [{name: a, hash: abc}]}", 1, "auth.tokens[0].hash", "sha256: and 64 hex digits"),
    "open host": ("server:\n  host: 0.0.0.0", 2, "server.host", "no token is configured: add auth.tokens"),
    "open host by name": ("server:\n  host: example.com", 2, "server.host", "no token is configured"),
    "not YAML": ("server:\n  port: [", 2, "", "not valid YAML"),
    "unquoted reference": ("server: {host: ${ON}}", 1, "", 'put "${NAME}" in quotes'),
    "unknown alias": ("a: *abc", 1, "", "in quotes"),
    "tag": ("server:\n  host: !secret abc", 2, "server.host", "tags are not used here"),
    "python object": ("server: !!python/object/apply:os.getcwd []", 1, "server", "expected a mapping"),
    "value that does not fit its tag": ("server:\n  port: !!int x", 2, "server.port", "put it in quotes"),
    "alias in itself": ("server: &a\n  host: *a", 1, "server.host", "must not contain itself"),
    "two documents": ("server: {}\n---\nserver: {}", 2, "", "one document"),
    "key that is no text": ("server:\n  1: 2", 2, "server", "a key is text"),
    "control character": ("server: {host: \x01}", None, "", "a character that YAML does not allow"),
    "too deep": ("a: " + "[" * 5000, None, "", "nested too deeply"),
}


@pytest.mark.parametrize(("text", "line", "key", "words"), WRONG.values(), ids=WRONG)
def test_case_27_a_wrong_file_is_refused_with_line_and_key(
    tmp_path: Path, text: str, line: int | None, key: str, words: str
) -> None:
    error = refused(tmp_path, text)
    assert (error.line, error.key) == (line, key)
    assert words in error.problem
    assert str(error).startswith(f"{error.file}:{line}: " if line else f"{error.file}: ")


def test_the_first_of_several_mistakes_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path, "tracing:\n  otlp: 1\nserver:\n  prot: 1\n  port: x").line == 2
    assert refused(tmp_path, "server:\n  port: x\n  prot: 1\ntracing:\n  otlp: 1").key == "server.port"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="No such file") as caught:
        load(missing, {})
    assert caught.value.file == missing


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "penstock.yaml"
    path.write_bytes(b"server: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(str(path), {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${ON}", "true"),
        ("a${ON}b${PORT}", "atrueb8100"),
        ("$${ON}", "${ON}"),
        ("$ON", "$ON"),
        ("costs $5", "costs $5"),
    ],
)
def test_variables_are_replaced_inside_text(text: str, expected: str) -> None:
    document = read(f"key: {text}", file="f", env=ENV)
    assert document.value == {"key": expected}


def test_a_variable_stands_for_a_number_or_a_flag_where_one_is_expected(tmp_path: Path) -> None:
    text = "server:\n  port: ${PORT}\n  drain_s: ${PORT}\n  host: 127.0.0.1\ntracing:\n  content: ${ON}"
    settings = load(written(tmp_path, text), ENV)
    assert (settings.server.port, settings.server.drain_s, settings.tracing.content) == (8100, 8100.0, True)


def test_a_written_text_does_not_stand_for_a_number(tmp_path: Path) -> None:
    assert refused(tmp_path, "server: {port: '8100'}").key == "server.port"


def test_a_key_of_digits_from_a_variable_is_text(tmp_path: Path) -> None:
    settings = load(written(tmp_path, f"{MODEL}    api_key: ${{PORT}}"), ENV)
    assert settings.models[0].api_key is not None
    assert settings.models[0].api_key.get_secret_value() == "8100"


def test_a_merged_mapping_gives_its_keys(tmp_path: Path) -> None:
    text = "models:\n  - &base {name: a, llm: 'ollama:m', timeout_s: 5}\n  - {<<: *base, name: b}"
    assert [(model.name, model.timeout_s) for model in load(written(tmp_path, text), {}).models] == [("a", 5), ("b", 5)]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "::ffff:127.0.0.1"])
def test_a_loopback_host_needs_no_token(tmp_path: Path, host: str) -> None:
    assert load(written(tmp_path, f"server: {{host: '{host}'}}"), {}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "127.0.0.1.example.com"])
def test_another_host_needs_a_token_wherever_it_is_written(tmp_path: Path, host: str) -> None:
    assert refused(tmp_path, f"server: {{host: '{host}'}}").key == "server.host"
    path = written(tmp_path, "server: {port: 1}")
    with pytest.raises(ConfigError) as caught:
        load(path, {}, overrides={"host": host})
    assert (caught.value.file, caught.value.key) == ("command line", "--host")
    guarded = written(tmp_path, f"auth: {{tokens: [{{name: a, hash: '{HASH}'}}]}}")
    assert load(guarded, {}, overrides={"host": host}).server.host == host


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "server: {host: 0.0.0.0, port: 1, log: json}")
    server = load(path, {}, overrides={"host": "127.0.0.1", "port": 2}).server
    assert (server.host, server.port, server.log) == ("127.0.0.1", 2, "json")


@pytest.mark.parametrize(("flag", "value"), [("port", 70000), ("workers", 0), ("log", "fancy")])
def test_a_wrong_option_is_refused_by_its_name(flag: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, overrides={flag: value})
    assert caught.value.key == f"--{flag}"


# Every place where a secret can be written, right or wrong.
CANARY = "canary-7f3a9c51e2"
LEAKY = [
    f"{MODEL}    api_key: {CANARY}\n    x: 1",
    f"{MODEL}    api_key: [{CANARY}]",
    f"{MODEL}    api_key: {CANARY}ü",
    f"{MODEL}    apikey: {CANARY}",
    f"{MODEL}    base_url: http://u:{CANARY}@h/v1",
    f"{MODEL}    base_url: http://u:{CANARY}@[h/v1",
    f"{MODEL}    base_url: {CANARY}",
    f"{MODEL}    base_url: http://h/v1?key={CANARY}",
    f"{MODEL}    headers: {{A: {CANARY}ü}}",
    f"{MODEL}    headers: {{A: [{CANARY}]}}",
    f"{MODEL}    timeout_s: {CANARY}",
    f"{MODEL}    timeout_s: ${{SECRET}}",
    f"auth: {{tokens: [{{name: a, hash: {CANARY}}}]}}",
    f"auth: {{tokens: [{{name: a, hash: '{HASH}', value: {CANARY}}}]}}",
    f"auth: {{tokens: [{{name: a, value: {CANARY}, scopes: ['${{SECRET}}']}}]}}",
    "server:\n  log: ${SECRET}",
    "server:\n  host: a\n  disconnect: ${SECRET}",
    f"{MODEL}    api_key: *{CANARY}",
    f"{MODEL}    api_key: !{CANARY}",
    f"{MODEL}    api_key: !{CANARY} x",
    f'{MODEL}    api_key: "{CANARY}',
    f"{MODEL}    api_key: {{{CANARY}: ",
    f"auth:\n  tokens: {CANARY}",
    f"tracing: {{otlp: 'http://{CANARY}@h'}}",
]


@pytest.mark.parametrize("text", LEAKY)
def test_case_25_no_message_shows_a_secret(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, text, {"SECRET": CANARY})
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    assert not any(CANARY[at : at + 8] in shown for at in range(len(CANARY) - 7))


def test_case_25_settings_do_not_show_their_secrets(tmp_path: Path) -> None:
    settings = load(written(tmp_path, FULL), ENV)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert not any(ENV[name][at : at + 8] in shown for name in ("OPENAI_API_KEY", "BOB_TOKEN") for at in range(12))


def test_the_schema_accepts_what_is_accepted_and_refuses_unknown_keys() -> None:
    published = jsonschema.Draft202012Validator(schema())
    found = yaml.safe_load(FULL.replace("2024-01-01", "'2024-01-01'"))
    published.validate(found)
    assert not published.is_valid({**found, "mcpServers": {}})
    assert not published.is_valid({"server": {"prot": 1}})


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        read(text, file="f", env={})
