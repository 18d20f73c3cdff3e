"""The command line: `hftitan validate | plan | render | run | operator | crd | rbac`, and the commands of cluster.py.

To start fast, only typer is imported before a command runs; each command imports what it needs. Exit codes: 0 success,
1 the job failed, 2 invalid input, 128 + N stopped by signal N.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hftitan_operator.cli import cluster
from hftitan_operator.cli.options import (
    EXIT_BAD_INPUT,
    DefaultsOption,
    JobArgument,
    LogLevel,
    SetOption,
    TextOrJson,
    YamlOrJson,
    exit_on_bad_input,
    print_notes,
)

app = typer.Typer(
    name="hftitan",
    help="Train any Hugging Face causal LM with torchtitan, from one job.yaml.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hftitan {version('hftitan')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train any Hugging Face causal LM with torchtitan, from one job.yaml."""


@app.command(short_help="Check jobs and list all errors.")
def validate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Jobs as YAML or JSON; - reads standard input.")
    ],
    job_defaults: DefaultsOption = None,
) -> None:
    """Check jobs, and a file of job defaults, and list all errors. Warn about local paths that do not exist here."""
    from hftitan_api import mesh
    from hftitan_operator.cli import job_file, paths

    with exit_on_bad_input():
        if job_defaults is not None:
            job_file.load_defaults(job_defaults)
    bad = False
    for source in files:
        try:
            file = job_file.load(source)
        except job_file.BadInput as problem:
            bad = True
            for line in problem.lines:
                typer.echo(line, err=True)
            continue
        print_notes(file)
        for warning in paths.warnings(file.job):
            typer.echo(f"{source}: warning: {warning}", err=True)
        plan = mesh.plan(file.job.spec, file.config)
        typer.echo(f"{source}: valid: {file.job.metadata.name}, mesh {plan.summary}, world size {plan.world_size}")
    if bad:
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command(short_help="Show a job's mesh: ranks, groups, memory per rank.")
def plan(
    source: JobArgument,
    settings: SetOption = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", min=1, help="Memory of one GPU in GiB, to check if the job fits.  [default: 80]"),
    ] = None,
    output: Annotated[TextOrJson, typer.Option("-o", "--output", help="Output format.")] = TextOrJson.TEXT,
) -> None:
    """Show a job's mesh: ranks of each node, groups of each axis, memory per rank, and whether it fits into the GPU."""
    import json

    from hftitan_api import mesh
    from hftitan_operator.cli import job_file
    from hftitan_operator.cli import plan as plan_text

    with exit_on_bad_input():
        file = job_file.load(source, settings or ())
        planned = mesh.plan(file.job.spec, file.config)
        print_notes(file)
        if output is TextOrJson.JSON:
            typer.echo(json.dumps(plan_text.plan_json(file.job, planned, file.config, gpu_memory), indent=2))
        else:
            typer.echo(plan_text.plan_tables(file.job, planned, file.config, gpu_memory), nl=False)


@app.command(short_help="Print the exact objects that a cluster would get.")
def render(
    source: JobArgument,
    settings: SetOption = None,
    job_defaults: DefaultsOption = None,
    attempt: Annotated[int, typer.Option(min=1, help="Attempt number to render.")] = 1,
    output: Annotated[
        YamlOrJson, typer.Option("-o", "--output", help="YAML documents, or one JSON list.")
    ] = YamlOrJson.YAML,
) -> None:
    """Print the exact objects that a cluster would get: Service, ConfigMap, pods, PodGroup. Changes nothing."""
    from hftitan_api import mesh
    from hftitan_operator.cli import job_file
    from hftitan_operator.cli import plan as plan_text
    from hftitan_operator.core.rendering.defaults import with_defaults
    from hftitan_operator.core.rendering.render import render as render_objects

    with exit_on_bad_input():
        file = job_file.load(source, settings or ())
        job = plan_text.with_uid(file.job)
        if job_defaults is not None:
            job = with_defaults(job, job_file.load_defaults(job_defaults))
        objects = render_objects(job, mesh.plan(job.spec, file.config), attempt).objects
        typer.echo(plan_text.objects_text(objects, output), nl=False)


@app.command()
def run(
    source: JobArgument,
    workdir: Annotated[
        Path | None,
        typer.Option(help="Folder for logs/, checkpoint/, export/ and metrics.jsonl.  [default: runs/<job>]"),
    ] = None,
    output: Annotated[
        TextOrJson, typer.Option("-o", "--output", help="Output format; json prints one object per line.")
    ] = TextOrJson.TEXT,
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Folder to use for a volume in spec.pod.volumes. May be repeated."),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Run a job on this machine, with its pods as processes. Run it again in the same folder to resume it.

    Ctrl-C stops the job after saving a checkpoint; a second one kills it.
    """
    from hftitan_operator.cli import output as reporters
    from hftitan_operator.cli.run import prepare_run
    from hftitan_operator.local.run import run as drive
    from hftitan_operator.local.store import Busy

    with exit_on_bad_input():
        file, prepared = prepare_run(source, settings or (), volume or (), workdir)
    print_notes(file)
    machine = prepared.machine
    with reporters.reporter(file.job, machine.workdir, as_json=output is TextOrJson.JSON) as reporter:
        try:
            code = drive(prepared, reporter)
        except (Busy, ValueError) as error:
            typer.echo(f"{source}: {error}", err=True)
            raise typer.Exit(EXIT_BAD_INPUT) from None
    raise typer.Exit(code)


@app.command(short_help="Write one HTML page about a run.")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Work folder of a run: runs/<job>.")],
    out: Annotated[Path | None, typer.Option(help="Output file.  [default: report.html in the folder]")] = None,
) -> None:
    """Write one HTML page about a run: curves, restarts, checkpoints, config. It needs no network or server."""
    from hftitan_operator.cli import job_file
    from hftitan_operator.cli import report as report_page

    with exit_on_bad_input():
        text = report_page.page(report_page.read(folder))
        target = out or folder / "report.html"
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise job_file.BadInput([f"{target}: {error.strerror}"]) from None
    typer.echo(target)


@app.command()
def operator(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Watch only this namespace. May be repeated.  [default: all]")
    ] = None,
    leader_elect: Annotated[
        bool, typer.Option("--leader-elect", help="Use a Lease so that only one of several replicas is active.")
    ] = False,
    lease_namespace: Annotated[
        str | None, typer.Option(help="Namespace of the Lease.  [default: the pod's own]")
    ] = None,
    job_defaults: DefaultsOption = None,
    kubeconfig: Annotated[
        str | None, typer.Option(help="Path to a kubeconfig.  [default: the pod's account, else kubectl's]")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Kubeconfig context.")] = None,
    host: Annotated[str, typer.Option(help="Address that serves /metrics, /healthz and /readyz.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port that serves them; 0 disables the server.")] = 8080,
    log_level: Annotated[LogLevel, typer.Option(help="Log level.")] = LogLevel.INFO,
) -> None:
    """Run the operator. SIGTERM stops it; running jobs continue without it."""
    from hftitan_operator.cli import job_file
    from hftitan_operator.core.rendering.defaults import NO_DEFAULTS
    from hftitan_operator.kube import operator as operator_process

    with exit_on_bad_input():
        defaults = NO_DEFAULTS if job_defaults is None else job_file.load_defaults(job_defaults)
    options = operator_process.Options(
        defaults=defaults,
        namespaces=tuple(namespace or ()),
        kubeconfig=kubeconfig,
        context=context,
        leader_elect=leader_elect,
        lease_namespace=lease_namespace,
        host=host,
        port=port,
    )
    try:
        operator_process.main(options, log_level)
    except OSError as error:
        typer.echo(f"hftitan operator: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition."""
    from hftitan_api.crd import to_yaml

    typer.echo(to_yaml(), nl=False)


@app.command(short_help="Print the operator's permissions as RBAC objects.")
def rbac(
    namespace: Annotated[
        list[str] | None, typer.Option(help="Watch only this namespace. May be repeated.  [default: all]")
    ] = None,
    operator_namespace: Annotated[str, typer.Option(help="Namespace of the operator.")] = "hftitan-system",
    service_account: Annotated[str, typer.Option(help="ServiceAccount of the operator.")] = "hftitan-operator",
    with_nodes: Annotated[
        bool,
        typer.Option(
            "--with-nodes", help="With --namespace: also allow the operator to read nodes (needs a ClusterRole)."
        ),
    ] = False,
    with_gangs: Annotated[
        bool,
        typer.Option("--with-gangs", help="With --namespace: also allow gang schedulers (docs/scheduling.md)."),
    ] = False,
) -> None:
    """Print the permissions that the operator needs, as RBAC objects for `kubectl apply -f -`."""
    from hftitan_operator.cli import plan as plan_text
    from hftitan_operator.core.rendering import access

    try:
        account = access.Account(service_account, operator_namespace)
        some = access.namespaced(account, namespace or (), nodes=with_nodes, gangs=with_gangs)
        objects = some if namespace else access.cluster_wide(account)
    except ValueError as error:
        typer.echo(f"hftitan rbac: {error}", err=True)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    typer.echo(plan_text.objects_text(objects, YamlOrJson.YAML), nl=False)


app.add_typer(cluster.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `hftitan` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a path or log line may have characters that the terminal cannot show
    app(args=list(arguments) if arguments is not None else None, prog_name="hftitan")
