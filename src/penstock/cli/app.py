"""The commands and their options; each imports its work when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.ends import reported
from penstock.cli.options import Config, Json
from penstock.cli.project import project
from penstock.errors import UsageError

app = typer.Typer(
    name="penstock",
    help="Runs LLM work through one executor contract and serves it over the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, and with them keys
    context_settings={"help_option_names": ["-h", "--help"]},
)
token = typer.Typer(name="token", help="Make tokens for callers of the server.", no_args_is_help=True)
app.add_typer(token)
tools = typer.Typer(name="tools", help="List, show and call the configured tools.", no_args_is_help=True)
app.add_typer(tools)
app.add_typer(project)

Host = Annotated[str | None, typer.Option(help="default: 127.0.0.1; any other needs tokens")]
Port = Annotated[int | None, typer.Option(help="default: 8000")]
Workers = Annotated[int | None, typer.Option(help="processes, default: 1")]
Log = Annotated[str | None, typer.Option(help="plain or json")]
ToolName = Annotated[str, typer.Argument(help="the tool's name")]


def _show_version(asked: bool) -> None:
    if asked:
        from penstock.cli import version

        print(f"penstock {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def serve(  # noqa: PLR0913, PLR0917  # each is an option
    host: Host = None,
    port: Port = None,
    config: Config = None,
    workers: Workers = None,
    log: Log = None,
    replay: Annotated[
        str | None, typer.Option(metavar="DIR", help="answer from recordings, with no key and no network")
    ] = None,
    record: Annotated[str | None, typer.Option(hidden=True)] = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the models over the OpenAI API."""
    from penstock.cli.record import folders
    from penstock.cli.serve import serve as run

    flags = {"host": host, "port": port, "workers": workers, "log": log, "recordings": folders(record, replay)}
    with reported():
        code = run(config, {name: value for name, value in flags.items() if value is not None}, fd=fd)
    raise typer.Exit(code)


@app.command("record")
def record_exchanges(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="the folder, one file for each exchange")],
    host: Host = None,
    port: Port = None,
    config: Config = None,
    workers: Workers = None,
    log: Log = None,
) -> None:
    """Serve the models, and record every exchange, to be replayed by `penstock serve --replay DIR`."""
    serve(host, port, config, workers, log, record=directory)


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="default: read from stdin, or ask")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="default: the first one")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="the system message")] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Ask a model here in the terminal, without a server."""
    from penstock.cli.chat import converse

    with reported():
        code = converse(prompt, model=model, system=system, as_json=as_json, config=config)
    raise typer.Exit(code)


@app.command()
def check(
    config: Config = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of the file instead")] = False,
    as_json: Json = False,
) -> None:
    """Say whether the configuration is right, and what it serves."""
    from penstock.cli import check as checking

    with reported():
        if schema:
            checking.print_schema()
        else:
            raise typer.Exit(checking.check(config, as_json=as_json))


@app.command()
def batch(  # noqa: PLR0913, PLR0917  # each is an option
    items: Annotated[
        str | None, typer.Argument(metavar="FILE", help="a JSON object a line, such as items.jsonl; - is stdin")
    ] = None,
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="FILE", help="JSON Schema of a value; default: a plan")
    ] = None,
    acts: Annotated[str | None, typer.Option("--acts", help='what plans may do: "MoveTo|Attack"')] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="default: the first one")] = None,
    instructions: Annotated[str, typer.Option("--instructions", "-i", help="what to do; @FILE reads a file")] = "",
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="default: stdout")] = None,
    size: Annotated[int, typer.Option(min=1, help="items of a call, at most")] = 10,
    concurrent: Annotated[int, typer.Option(min=1, help="calls at once")] = 4,
    latency: Annotated[float | None, typer.Option(metavar="SECONDS", help="how long a call may take")] = None,
    params: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="a field of each request")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="begin anew, although values are kept")] = False,
    listing: Annotated[bool, typer.Option("--list", help="list the batches that are kept, and do no more")] = False,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="remove what is kept of a batch")] = None,
    config: Config = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="each outcome as it ends, then the report, on stdout")
    ] = False,
) -> None:
    """Get a value for each item of a file, many a call; one that is interrupted goes on when it is run again."""
    from penstock.cli.batch import Options, run_batch, tell_batches

    chosen = Options(
        schema=schema,
        acts=acts,
        model=model,
        instructions=instructions,
        output=output,
        size=size,
        concurrent=concurrent,
        latency_s=latency,
        params=params or (),
        config=config,
        as_json=as_json,
        new=new,
    )
    with reported():
        if listing or remove is not None:
            code = tell_batches(chosen, remove=remove)
        elif items is None:
            raise UsageError("no items: name a file with a JSON object a line, or - for stdin")
        else:
            code = run_batch(items, chosen)
    raise typer.Exit(code)


@app.command()
def run(  # noqa: PLR0913, PLR0917  # each is an option
    file: Annotated[str, typer.Argument(metavar="FILE", help="a project file, such as project.yaml")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run that was interrupted")] = False,
    new: Annotated[bool, typer.Option("--new", help="begin anew, although a run was interrupted")] = False,
    concurrent: Annotated[int | None, typer.Option(min=1, help="tasks at once; default: what the file says")] = None,
    dry: Annotated[bool, typer.Option("--check", help="read and check it, print its tasks, and run nothing")] = False,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="the log as JSON, an entry a line, then the report")] = False,
) -> None:
    """Run a project, and show it; one that is interrupted goes on with --resume."""
    from penstock.cli.run import check_project, run_project

    with reported():
        if dry:
            raise typer.Exit(check_project(file, as_json=as_json, config=config))
        code = run_project(file, resume=resume, new=new, concurrent=concurrent, as_json=as_json, config=config)
    raise typer.Exit(code)


@app.command()
def plan(
    goal: Annotated[str, typer.Argument(help="what is to be reached")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="default: the first one")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="default: project.yaml")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Have a model propose a small project for a goal; it is checked, shown and saved, and nothing of it runs."""
    from penstock.cli.plan import plan as propose

    with reported():
        code = propose(goal, model=model, config=config, output=output, as_json=as_json)
    raise typer.Exit(code)


@token.command()
def new(
    name: Annotated[str, typer.Argument(help="who will use it")],
    scopes: Annotated[str, typer.Option(help="separated by commas: chat, tools, projects, admin")] = "chat",
    tenant: Annotated[str | None, typer.Option(help="default: the name")] = None,
    as_json: Json = False,
) -> None:
    """Make a token, and the line of penstock.yaml that lets it in. The token is shown once and not stored."""
    from penstock.cli.token import new as make

    with reported():
        make(name, scopes=scopes.split(","), tenant=tenant, as_json=as_json)


@token.callback()
def token_options() -> None:
    """Keep `new` a command of its own while it is the only one."""


@tools.command("list")
def list_tools(config: Config = None, as_json: Json = False) -> None:
    """List the configured tools."""
    from penstock.cli import tools as work

    with reported():
        work.list_tools(config, as_json=as_json)


@tools.command("show")
def show_tool(name: ToolName, config: Config = None, as_json: Json = False) -> None:
    """Show one tool: what a model is told, and how it is run."""
    from penstock.cli import tools as work

    with reported():
        work.show_tool(name, config, as_json=as_json)


@tools.command("call")
def call_tool(
    name: ToolName,
    arguments: Annotated[str, typer.Argument(help="a JSON object; - reads it from stdin")] = "{}",
    key: Annotated[str | None, typer.Option("--key", help="idempotency key: a call under it runs at most once")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Call a tool here in the terminal, without a server."""
    from penstock.cli import tools as work

    with reported():
        code = work.call_tool(name, arguments, key=key, config=config, as_json=as_json)
    raise typer.Exit(code)
