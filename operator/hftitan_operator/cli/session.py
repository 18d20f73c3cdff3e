"""Shared steps of the cluster commands: connect, report errors, watch, repeat for several jobs."""

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
    """Run it, say its trouble on stderr, and end with its exit code."""

    async def connected() -> int | None:
        async with connect(access) as cluster:
            return await work(cluster)

    try:
        code = asyncio.run(connected())
    except Trouble as trouble:
        _say(trouble)
        raise typer.Exit(trouble.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if code:
        raise typer.Exit(code)


def names(given: Mapping[str, Any], incomplete: str) -> list[str]:
    """For the shell's completion: the names of the jobs; none when the cluster does not answer at once."""

    async def fetch() -> list[str]:
        access = Access(given.get("kubeconfig"), given.get("context"), given.get("namespace"))
        async with asyncio.timeout(COMPLETION_SECONDS), connect(access) as cluster:
            found = [job["metadata"]["name"] for job in (await cluster.jobs())["items"]]
            return [name for name in found if name.startswith(incomplete)]

    with contextlib.suppress(Exception):  # a traceback into the line that is being typed helps nobody
        return asyncio.run(fetch())
    return []


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


# --- watching -----------------------------------------------------------------------------------------------


async def watch_job(cluster: Cluster, obj: Any, output: TextOrJson, *, from_start: bool) -> int:
    name = obj["metadata"]["name"]
    try:
        job = job_view(obj).job
        with reporter(job, None, as_json=output is TextOrJson.JSON, age=age(job)) as told:
            return await watch(cluster, name, told, from_start=from_start)
    except asyncio.CancelledError:
        typer.echo(f"no longer watching; {name} goes on", err=True)
        raise


# --- several jobs at once -------------------------------------------------------------------------------------

One = Callable[[Cluster, str], Awaitable[tuple[Any, str]]]
"""With a job's name -> the answer of the API server, and words for it."""


def on_each(access: Access, jobs: Sequence[str], output: TextOrJson, one: One) -> None:
    """Every job, also when one of them cannot be; its exit code then. JSON: an object a line for each that could."""

    async def work(cluster: Cluster) -> int:
        code = 0
        for name in dict.fromkeys(jobs):
            try:
                answer, words = await one(cluster, name)
            except Trouble as trouble:
                code = trouble.code
                _say(trouble)
                continue
            typer.echo(json.dumps(answer) if output is TextOrJson.JSON else words)
        return code

    on_cluster(access, work)


async def set_suspend(cluster: Cluster, name: str, suspend: bool) -> tuple[Any, str]:
    job = await cluster.job(name)
    phase = (job.get("status") or {}).get("phase")
    if phase in TERMINAL:
        raise Trouble(f"job {name} is over ({phase}); it can be neither suspended nor resumed")
    if bool(((job.get("spec") or {}).get("runPolicy") or {}).get("suspend")) is suspend:
        return job, f"{name} was {'suspended already' if suspend else 'not suspended'}"
    return await cluster.set_suspend(name, suspend), f"{'suspended' if suspend else 'resumed'} {name}"


async def delete(cluster: Cluster, name: str) -> tuple[Any, str]:
    return await cluster.delete(name), f"deleted {name}"


def _say(trouble: Trouble) -> None:
    for line in trouble.lines:
        typer.echo(line, err=True)
