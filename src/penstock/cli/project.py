"""The commands `penstock project ...` and their options; each imports its work when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.ends import reported
from penstock.cli.options import Config, Json

project = typer.Typer(name="project", help="See, repair and keep the runs of projects.", no_args_is_help=True)

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="the run; default: the newest one")]
ProjectFile = Annotated[
    str | None, typer.Option("--file", metavar="FILE", help="the project file; default: the one it began with")
]
Log = Annotated[bool, typer.Option("--json", help="the log as JSON, an entry a line")]


@project.command("list")
def list_runs(
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="how many, at most")] = 20,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """List the runs, the newest first."""
    from penstock.cli import runs as work

    with reported():
        work.list_runs(config, limit=limit, as_json=as_json)


@project.command()
def status(
    name: Name = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="watch it until it has ended")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show how a run and its tasks stand."""
    from penstock.cli import runs as work

    with reported():
        code = work.status(name, config, follow=follow, as_json=as_json)
    raise typer.Exit(code)


@project.command()
def report(
    name: Name = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="default: stdout")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write all that a run gave, as Markdown."""
    from penstock.cli import runs as work

    with reported():
        work.report(name, config, output=output, as_json=as_json)


@project.command()
def graph(
    name: Name = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="as a Mermaid flowchart")] = False,
    config: Config = None,
) -> None:
    """Draw which task needs which, and how they stand."""
    from penstock.cli import runs as work

    with reported():
        work.graph(name, config, as_mermaid=mermaid)


@project.command()
def events(
    name: Name = None,
    after: Annotated[int, typer.Option(metavar="OFFSET", min=0, help="only what comes behind it")] = 0,
    full: Annotated[bool, typer.Option("--full", help="whole values, not their first lines")] = False,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Print the log of a run, with the offset of each entry."""
    from penstock.cli import happened as work

    with reported():
        work.events(name, config, after=after, full=full, as_json=as_json)


@project.command()
def resume(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="default: the only one there is")] = None,
    file: ProjectFile = None,
    config: Config = None,
    as_json: Log = False,
) -> None:
    """Go on with a run that was interrupted; what has ended is not done again."""
    from penstock.cli import mend as work

    with reported():
        code = work.resume(name, config, file=file, as_json=as_json)
    raise typer.Exit(code)


@project.command()
def retry(
    name: Name = None,
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="default: all that failed or were cancelled")
    ] = None,
    file: ProjectFile = None,
    config: Config = None,
    as_json: Log = False,
) -> None:
    """Do again what failed or was cancelled, and what may have happened where it is named; then go on with the run."""
    from penstock.cli import mend as work

    with reported():
        code = work.retry(name, tasks or (), config, file=file, as_json=as_json)
    raise typer.Exit(code)


@project.command()
def cancel(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="default: the only one not ended")] = None,
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="default: the whole run")] = None,
    config: Config = None,
) -> None:
    """Cancel a run or one of its tasks, whichever process runs it."""
    from penstock.cli import mend as work

    with reported():
        code = work.cancel(name, task, config)
    raise typer.Exit(code)


@project.command()
def rollback(
    name: Annotated[str, typer.Argument(help="the run")],
    offset: Annotated[int, typer.Argument(help="an offset of its log, as `penstock project events` shows them")],
    config: Config = None,
) -> None:
    """Bring a run that does not go on back to an earlier state."""
    from penstock.cli import mend as work

    with reported():
        work.rollback(name, offset, config)


@project.command()
def remove(
    name: Annotated[str, typer.Argument(help="the run")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remove a run that does not go on, with its log; it is not asked for again."""
    from penstock.cli import mend as work

    with reported():
        work.remove(name, config, as_json=as_json)


@project.command()
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a new file")],
    config: Config = None,
) -> None:
    """Copy the journal of all runs to a new file, also while they go on."""
    from penstock.cli import runs as work

    with reported():
        work.backup(file, config)
