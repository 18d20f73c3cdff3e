"""The commands for a cluster: `hftitan submit | list | status | logs | describe | events | suspend | resume | delete`.

Everything that they do can also be done with kubectl.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hftitan_operator.cli.options import JobArgument, SetOption, TextOrJson, exit_on_bad_input, print_notes

if TYPE_CHECKING:
    from hftitan_operator.cli.client import Access, Cluster
    from hftitan_operator.cli.logs import Line

app = typer.Typer()


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    from hftitan_operator.cli.session import names

    return names(ctx.params, incomplete)


Name = Annotated[str, typer.Argument(metavar="JOB", help="Job name.", autocompletion=_names)]
Names = Annotated[list[str], typer.Argument(metavar="JOB...", help="Job names.", autocompletion=_names)]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Namespace.  [default: the context's namespace]")
]
Kubeconfig = Annotated[
    str | None, typer.Option(metavar="FILE", help="Path to a kubeconfig.  [default: as for kubectl]")
]
Context = Annotated[
    str | None, typer.Option(metavar="NAME", help="Kubeconfig context.  [default: the current context]")
]
Output = Annotated[TextOrJson, typer.Option("-o", "--output", help="Output format.")]


def _access(kubeconfig: str | None, context: str | None, namespace: str | None) -> Access:
    from hftitan_operator.cli.client import Access

    return Access(kubeconfig, context, namespace)


def _width() -> int | None:
    """Return the terminal's width; None without a terminal, so that lines are not folded."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@app.command(short_help="Check a job and create it on a cluster.")
def submit(
    source: JobArgument,
    settings: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the job here and on the API server; create nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the job until it finishes; exit with 1 if it fails.")
    ] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Check a job as `hftitan validate` does, then create it on a cluster."""
    from hftitan_operator.cli import job_file, session
    from hftitan_operator.cli import submit as submission

    with exit_on_bad_input():
        file = job_file.load(source, settings or ())
        if dry_run and wait:
            raise job_file.BadInput(["--wait: --dry-run creates no job to wait for"])
        stated = submission.namespace_of(source, file.job, namespace)
    print_notes(file)

    async def work(cluster: Cluster) -> int | None:
        made = await cluster.create(submission.document(file.job, cluster.namespace), dry_run=dry_run)
        where = f"{made['metadata']['name']} in namespace {cluster.namespace}"
        if output is TextOrJson.JSON and not wait:
            session.print_json(made)
        elif output is TextOrJson.TEXT:
            typer.echo(f"{source}: dry run: would create {where}" if dry_run else f"created {where}")
        return await session.watch_job(cluster, made, output, from_start=True) if wait else None

    session.on_cluster(_access(kubeconfig, context, stated), work)


@app.command("list")
def list_jobs(
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="List jobs in all namespaces.")] = False,
    selector: Annotated[
        str | None, typer.Option("-l", "--selector", metavar="LABELS", help="Label selector, e.g. team=nlp.")
    ] = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """List jobs, with the columns of `kubectl get htj`."""
    from hftitan_operator.cli import session, tables

    async def work(cluster: Cluster) -> None:
        found = await cluster.jobs(everywhere=everywhere, labels=selector)
        if output is TextOrJson.JSON:
            session.print_json(found)
        elif found["items"]:
            shown = tables.jobs_table(found["items"], time.time(), namespaces=everywhere, width=_width())
            typer.echo(shown, nl=False)
        else:
            typer.echo("no jobs" if everywhere else f"no jobs in namespace {cluster.namespace}", err=True)

    session.on_cluster(_access(kubeconfig, context, namespace), work)


@app.command()
def status(
    name: Name,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Show the job live until it finishes; exit with 1 if it fails.")
    ] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Show the state of a job. --watch with -o json prints one object per line, as `hftitan run -o json` does."""
    from hftitan_operator.cli import session, tables

    async def work(cluster: Cluster) -> int | None:
        job = await cluster.job(name)
        if watch:
            return await session.watch_job(cluster, job, output, from_start=False)
        if output is TextOrJson.JSON:
            session.print_json(job)
        else:
            typer.echo(tables.summary(job, time.time(), _width()), nl=False)
        return None

    session.on_cluster(_access(kubeconfig, context, namespace), work)


@app.command()
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow the logs, across new attempts, until the job finishes.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Show only lines of this rank and of torchrun.")] = None,
    node: Annotated[int | None, typer.Option(min=0, help="Show only this node's pod.  [default: all]")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Show this attempt.  [default: the newest]")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Start with the last N lines of each pod.")] = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Annotated[
        TextOrJson, typer.Option("-o", "--output", help="Output format; json prints one object per line.")
    ] = TextOrJson.TEXT,
) -> None:
    """Print the logs of a job's pods. With several pods, each line starts with the pod's name."""
    from hftitan_operator.cli import logs as reading
    from hftitan_operator.cli import session
    from hftitan_operator.cli.output import put

    def line(found: Line) -> None:
        if output is TextOrJson.JSON:
            text = json.dumps(reading.line_dict(found))
        else:
            text = f"[{found.pod}] {found.text}" if many else found.text
        put(sys.stdout, text)

    many = rank is None and node is None
    wanted = reading.Wanted(rank, node, attempt, tail, follow)
    out = reading.Out(line, lambda text: typer.echo(f"--- {text}", err=True))
    session.on_cluster(
        _access(kubeconfig, context, namespace), lambda cluster: reading.logs(cluster, name, wanted, out)
    )


@app.command(short_help="Show a job in detail: conditions, restarts, pods, events.")
def describe(
    name: Name,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Show a job in detail: status, conditions, restarts, pods and events."""
    from hftitan_operator.cli import session, tables

    async def work(cluster: Cluster) -> None:
        job = await cluster.job(name)
        pods, events = await cluster.pods(name), await cluster.events_of(name)
        if output is TextOrJson.JSON:
            session.print_json({"job": job, "pods": pods, "events": events})
        else:
            typer.echo(tables.description(job, pods, events, time.time(), _width()), nl=False)

    session.on_cluster(_access(kubeconfig, context, namespace), work)


@app.command()
def events(
    name: Name,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """List the events of a job and its pods, newest last."""
    from hftitan_operator.cli import session, tables

    async def work(cluster: Cluster) -> None:
        await cluster.job(name)
        found = await cluster.events_of(name)
        if output is TextOrJson.JSON:
            session.print_json(found)
        elif found:
            typer.echo(tables.events_table(found, time.time(), _width()), nl=False)
        else:
            typer.echo(f"no events of {name}; a cluster usually keeps events for one hour", err=True)

    session.on_cluster(_access(kubeconfig, context, namespace), work)


@app.command(short_help="Checkpoint jobs and release their pods.")
def suspend(
    names: Names,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Checkpoint jobs and release their pods. `hftitan resume` restarts them from the checkpoint."""
    from hftitan_operator.cli import session

    session.on_each(
        _access(kubeconfig, context, namespace),
        names,
        output,
        lambda cluster, name: session.set_suspend(cluster, name, True),
    )


@app.command()
def resume(
    names: Names,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Resume suspended jobs from the newest checkpoint."""
    from hftitan_operator.cli import session

    session.on_each(
        _access(kubeconfig, context, namespace),
        names,
        output,
        lambda cluster, name: session.set_suspend(cluster, name, False),
    )


@app.command()
def delete(
    names: Names,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Delete jobs and their pods. Files on volumes are kept."""
    from hftitan_operator.cli import session

    session.on_each(_access(kubeconfig, context, namespace), names, output, session.delete)
