"""The everyday commands on a cluster: `hftitan submit | list | status | logs | describe | events | suspend | resume |
delete`. Thin over the API: whatever they do, kubectl can do as well.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hftitan_operator.cli.options import JobArgument, SetOption, TextOrJson, say_notes, told

if TYPE_CHECKING:
    from hftitan_operator.cli.client import Access, Cluster
    from hftitan_operator.cli.logs import Line

app = typer.Typer()


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    from hftitan_operator.cli.session import names

    return names(ctx.params, incomplete)


Name = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.", autocompletion=_names)]
Names = Annotated[list[str], typer.Argument(metavar="JOB...", help="Names of jobs.", autocompletion=_names)]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Namespace of the job.  [default: that of the context]")
]
Kubeconfig = Annotated[
    str | None, typer.Option(metavar="FILE", help="Access to the cluster.  [default: as kubectl finds it]")
]
Context = Annotated[str | None, typer.Option(metavar="NAME", help="Context of the kubeconfig.  [default: its current]")]
Output = Annotated[TextOrJson, typer.Option("-o", "--output", help="text, or json for programs.")]


def _access(kubeconfig: str | None, context: str | None, namespace: str | None) -> Access:
    from hftitan_operator.cli.client import Access

    return Access(kubeconfig, context, namespace)


def _width() -> int | None:
    """Of the terminal; what goes elsewhere keeps a line for each thing."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@app.command(short_help="Check a job and create it on a cluster.")
def submit(
    source: JobArgument,
    settings: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it here and on the API server, and create nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show it until it is over; exit with 1 if it failed.")] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Check a job as `hftitan validate` does, and create it on a cluster."""
    from hftitan_operator.cli import job_file, session
    from hftitan_operator.cli import submit as submission

    with told():
        file = job_file.load(source, settings or ())
        if dry_run and wait:
            raise job_file.BadInput(["--wait: a --dry-run makes no job to wait for"])
        stated = submission.namespace_of(source, file.job, namespace)
    say_notes(file)

    async def work(cluster: Cluster) -> int | None:
        made = await cluster.create(submission.document(file.job, cluster.namespace), dry_run=dry_run)
        where = f"{made['metadata']['name']} in namespace {cluster.namespace}"
        if output is TextOrJson.JSON and not wait:
            session.print_json(made)
        elif output is TextOrJson.TEXT:
            typer.echo(f"{source}: could be created: {where}" if dry_run else f"created {where}")
        return await session.watch_job(cluster, made, output, from_start=True) if wait else None

    session.on_cluster(_access(kubeconfig, context, stated), work)


@app.command("list")
def list_jobs(
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    selector: Annotated[
        str | None, typer.Option("-l", "--selector", metavar="LABELS", help="Only jobs with these labels: team=nlp.")
    ] = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """List the jobs, with the columns of `kubectl get htj`."""
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
        bool, typer.Option("-w", "--watch", help="Show it live until it is over; exit with 1 if it failed.")
    ] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Show how a job is doing. With --watch and -o json: an object a line, as `hftitan run -o json` prints them."""
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
        bool, typer.Option("-f", "--follow", help="Go on with what comes, through new attempts, until it is over.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Only lines of this rank, and torchrun's own.")] = None,
    node: Annotated[int | None, typer.Option(min=0, help="Only the pod of this node.  [default: all]")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt.  [default: the newest]")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with the last so many lines of each pod.")] = None,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Annotated[TextOrJson, typer.Option("-o", "--output", help="json: one object a line.")] = TextOrJson.TEXT,
) -> None:
    """Print what the pods of a job print. Of several pods each line begins with its pod's name."""
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


@app.command(short_help="Tell all about a job: conditions, restarts, pods, events.")
def describe(
    name: Name,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Tell all about a job: its status, conditions, restarts, pods and events."""
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
    """List the events of a job and of its pods, the newest last."""
    from hftitan_operator.cli import session, tables

    async def work(cluster: Cluster) -> None:
        await cluster.job(name)
        found = await cluster.events_of(name)
        if output is TextOrJson.JSON:
            session.print_json(found)
        elif found:
            typer.echo(tables.events_table(found, time.time(), _width()), nl=False)
        else:
            typer.echo(f"no events of {name}: the cluster keeps them for an hour", err=True)

    session.on_cluster(_access(kubeconfig, context, namespace), work)


@app.command(short_help="Let jobs save and give their pods back.")
def suspend(
    names: Names,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Output = TextOrJson.TEXT,
) -> None:
    """Let jobs save and give their pods back; `hftitan resume` goes on from there."""
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
    """Let suspended jobs go on from the newest checkpoint."""
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
    """Delete jobs and their pods. What they saved on a volume stays."""
    from hftitan_operator.cli import session

    session.on_each(_access(kubeconfig, context, namespace), names, output, session.delete)
