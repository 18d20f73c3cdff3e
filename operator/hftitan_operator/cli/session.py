"""Steps that the cluster commands share: connect, report errors, watch, repeat for several jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import typer

from hftitan_api.models import TERMINAL
from hftitan_operator.cli.client import Access, Cluster, Trouble, connect
from hftitan_operator.cli.options import TextOrJson
from hftitan_operator.cli.output import reporter
from hftitan_operator.cli.watch import age, watch
from hftitan_operator.kube.views import job_view

EXIT_INTERRUPTED = 130
COMPLETION_SECONDS = 2.0

Work = Callable[[Cluster], Awaitable[int | None]]


def on_cluster(access: Access, work: Work) -> None:
    """Run `work` with a connection, print its errors to stderr, and exit with its code."""

    async def connected() -> int | None:
        async with connect(access) as cluster:
            return await work(cluster)

    try:
        code = asyncio.run(connected())
    except Trouble as trouble:
        _print_error(trouble)
        raise typer.Exit(trouble.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if code:
        raise typer.Exit(code)


def names(given: Mapping[str, Any], incomplete: str) -> list[str]:
    """Return job names for shell completion; none if the cluster does not answer within COMPLETION_SECONDS."""

    async def fetch() -> list[str]:
        access = Access(given.get("kubeconfig"), given.get("context"), given.get("namespace"))
        async with asyncio.timeout(COMPLETION_SECONDS), connect(access) as cluster:
            found = [job["metadata"]["name"] for job in (await cluster.jobs())["items"]]
            return [name for name in found if name.startswith(incomplete)]

    with contextlib.suppress(Exception):  # a traceback would break the line being typed
        return asyncio.run(fetch())
    return []


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


# --- watching -----------------------------------------------------------------------------------------------


async def watch_job(cluster: Cluster, obj: Any, output: TextOrJson, *, from_start: bool) -> int:
    name = obj["metadata"]["name"]
    try:
        job = job_view(obj).job
        with reporter(job, None, as_json=output is TextOrJson.JSON, age=age(job)) as view:
            return await watch(cluster, name, view, from_start=from_start)
    except asyncio.CancelledError:
        typer.echo(f"stopped watching; job {name} keeps running", err=True)
        raise


# --- several jobs at once -------------------------------------------------------------------------------------

One = Callable[[Cluster, str], Awaitable[tuple[Any, str]]]
"""Function of a job's name: the API server's answer, and the line to print."""


def on_each(access: Access, jobs: Sequence[str], output: TextOrJson, one: One) -> None:
    """Run `one` for every job, also after an error; exit with the last error's code. JSON: one object per line."""

    async def work(cluster: Cluster) -> int:
        code = 0
        for name in dict.fromkeys(jobs):
            try:
                answer, line = await one(cluster, name)
            except Trouble as trouble:
                code = trouble.code
                _print_error(trouble)
                continue
            typer.echo(json.dumps(answer) if output is TextOrJson.JSON else line)
        return code

    on_cluster(access, work)


async def set_suspend(cluster: Cluster, name: str, suspend: bool) -> tuple[Any, str]:
    job = await cluster.job(name)
    phase = (job.get("status") or {}).get("phase")
    if phase in TERMINAL:
        raise Trouble(f"job {name} has finished ({phase}); it cannot be suspended or resumed")
    if bool(((job.get("spec") or {}).get("runPolicy") or {}).get("suspend")) is suspend:
        return job, f"{name} is {'already' if suspend else 'not'} suspended"
    return await cluster.set_suspend(name, suspend), f"{'suspended' if suspend else 'resumed'} {name}"


async def delete(cluster: Cluster, name: str) -> tuple[Any, str]:
    return await cluster.delete(name), f"deleted {name}"


def _print_error(trouble: Trouble) -> None:
    for line in trouble.lines:
        typer.echo(line, err=True)
