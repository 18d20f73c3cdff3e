"""The kopf handler that watches HFTitanJobs. It updates the store, which wakes the job.

It is an `on.event` handler because these do not write. kopf's create, update, delete and daemon handlers add finalizers
and annotations to users' objects, and retry an error only after a minute.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import aiohttp
import kopf

from hftitan_api.models import GROUP, PLURAL, VERSION
from hftitan_operator.kube.api import KubeApi
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.reflector import PAGE, Timing
from hftitan_operator.kube.retry import backoff

log = logging.getLogger(__name__)


class Backoffs:
    """An endless sequence of pauses in seconds: after the last one kopf would stop."""

    def __iter__(self) -> Iterator[float]:
        failures = 0
        while True:
            failures += 1
            yield backoff(failures)


class NoDiffs(kopf.DiffBaseStorage):
    """Disables kopf's diffs: they copy each object twice at each event, and no handler needs them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def registry(api: KubeApi, cluster: KubeCluster) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.AiohttpSession:
        """Use the same access as the rest of the operator. kopf calls this again after a 401."""
        session = api.new_session(await api.authorization(), [_trace(api, cluster)])
        return kopf.AiohttpSession(server=api.server, aiohttp_session=session)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def job_event(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] == "DELETED":
            cluster.jobs.remove(dict(event["object"]))
        else:
            cluster.jobs.put(dict(event["object"]))

    return handlers


def _trace(api: KubeApi, cluster: KubeCluster) -> aiohttp.TraceConfig:
    """Observe kopf's requests: count them, and list the jobs after each list of kopf.

    kopf lists only when it starts or has lost its position. It does not report the jobs that its list lacks.
    """

    async def ended(_: object, __: object, request: aiohttp.TraceRequestEndParams) -> None:
        api.observe_request(request.method, request.response.status)
        query = request.url.query
        if request.url.name == PLURAL and request.response.status == 200 and not {"watch", "continue"} & {*query}:
            cluster.list_jobs_soon()

    async def failed(_: object, __: object, request: aiohttp.TraceRequestExceptionParams) -> None:
        api.observe_request(request.method, 0)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(ended)
    trace.on_request_exception.append(failed)
    return trace


def settings(timing: Timing) -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True  # scanning CRDs and namespaces needs cluster-wide permissions
    chosen.peering.standalone = True  # replicas use a Lease instead
    chosen.watching.chunk_size = PAGE
    chosen.watching.server_timeout = max(1, round(random.uniform(*timing.check)))
    chosen.watching.inactivity_timeout = timing.silence
    chosen.networking.error_backoffs = Backoffs()
    chosen.queueing.error_delays = (0.1, 0.5, 1, 2)
    chosen.process.ultimate_exiting_timeout = None
    chosen.persistence.diffbase_storage = NoDiffs()
    return chosen


async def watch(
    api: KubeApi, cluster: KubeCluster, namespaces: Sequence[str] = (), started: Callable[[], None] = lambda: None
) -> None:
    """Run kopf until cancelled. An error that stops kopf (for example inside a watch) restarts it.

    `started` is called after each start, because kopf then has replaced the signal handlers.
    """
    failures = 0
    while True:
        began = asyncio.get_running_loop().time()
        # Not kopf.operator(): when that ends, it cancels all tasks of the event loop that started after it.
        tasks = await kopf.spawn_tasks(
            registry=registry(api, cluster),
            settings=settings(cluster.timing),
            # Unused with `standalone`, but kopf's default (getpass in kopf/_core/engines/peering.py) fails for a user
            # ID without a name, as in a container.
            identity=cast(Any, PLURAL),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
        )
        started()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        reasons = [task.exception() for task in done if not task.cancelled()]
        failures = 1 if asyncio.get_running_loop().time() - began > 60 else failures + 1
        log.warning("the watch on %s.%s ended (%s); restarting it", PLURAL, GROUP, next(filter(None, reasons), ""))
        await asyncio.sleep(backoff(failures))
