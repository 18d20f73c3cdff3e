"""`hftitan operator`: the operator process, from its start to its orderly shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import uvloop
from aiohttp import web

from hftitan_api.models import HFTitanJob, PodDefaults
from hftitan_operator.core.rendering.defaults import NO_DEFAULTS
from hftitan_operator.core.state import Event
from hftitan_operator.kube import handlers
from hftitan_operator.kube.api import KubeApi, NotLeading, load_configuration
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.kueue import KueuePoller
from hftitan_operator.kube.lease import Lease
from hftitan_operator.kube.metrics import JobsCollector, OperatorMetrics
from hftitan_operator.kube.progress import ProgressPoller
from hftitan_operator.kube.reflector import Timing
from hftitan_operator.kube.store import Key
from hftitan_operator.kube.workqueue import WorkQueue
from hftitan_operator.port import Conflict
from hftitan_operator.step import step

log = logging.getLogger(__name__)

WORKERS = 256
"""Concurrent passes; KubeCluster limits the concurrent writes to the API server."""
LAST_PASSES_SECONDS = 1.0
"""Time for running passes after SIGTERM. An interrupted pass is simply repeated."""
LEASE_NAME = "hftitan-operator"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
EXIT_LEASE_LOST = 1


@dataclass(frozen=True, slots=True)
class Options:
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; all if empty."""
    kubeconfig: str | None = None
    context: str | None = None
    leader_elect: bool = False
    lease_namespace: str | None = None
    """Default: the pod's namespace."""
    defaults: PodDefaults = NO_DEFAULTS
    """Defaults of spec.pod for fields that a job omits."""
    host: str = "0.0.0.0"
    port: int = 8080
    """Port of /metrics, /healthz and /readyz; 0 disables them."""
    timing: Timing = field(default_factory=Timing)


class Operator:
    """Starts and stops the parts of the operator."""

    def __init__(self, api: KubeApi, options: Options) -> None:
        self._api, self._options = api, options
        self._queue = WorkQueue[Key](self._pass, WORKERS)
        self._queue.on_error = self._failed
        self._cluster = KubeCluster(api, options.namespaces, self._queue.wake, options.timing)
        self._cluster.on_event = self._on_event
        self._metrics = OperatorMetrics(version("hftitan"))
        self._cluster.on_status = self._metrics.wrote
        self._metrics.queue_depth.set_function(lambda: self._queue.depth)
        self._ready = False
        self._stop = asyncio.Event()
        api.observe_request = self._metrics.request

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        defaults = self._options.defaults.model_dump_json(by_alias=True, exclude_defaults=True)
        if defaults != "{}":
            log.info("defaults for jobs: %s", defaults)
        async with self._web(), self._cluster:
            self._catch_signals()
            tasks = [asyncio.create_task(self._serve())]
            stop = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _serve(self) -> None:
        began = time.monotonic()
        await self._cluster.synced()
        log.info(
            "listed %d jobs and %d pods in %.1f s", len(self._cluster.jobs), len(self._cluster.pods), _since(began)
        )
        async with asyncio.TaskGroup() as tasks:
            watch = handlers.watch(self._api, self._cluster, self._options.namespaces, self._catch_signals)
            tasks.create_task(watch)
            self._ready = True
            lease = self._lease()
            if lease is not None:
                await lease.acquire()
                self._api.may_write = lease.held
                tasks.create_task(_exit_when_lost(lease))
            self._metrics.leader.set(1)
            # Only the leader exports metrics of jobs.
            self._metrics.registry.register(JobsCollector(_Jobs(self._cluster)))
            try:
                await self._act()
            finally:
                if lease is not None:
                    await lease.release()

    async def _act(self) -> None:
        """Reconcile jobs, poll their progress and their queues; only the leader does this."""
        for key in self._cluster.jobs.job_keys():
            self._queue.wake(key)
        work = asyncio.create_task(self._queue.run())
        polls = [
            asyncio.create_task(poller(self._cluster, self._queue.wake).run())
            for poller in (ProgressPoller, KueuePoller)
        ]
        try:
            await asyncio.gather(work, *polls)
        finally:
            for poll in polls:
                poll.cancel()
            await self._queue.drain(LAST_PASSES_SECONDS)
            work.cancel()
            await asyncio.gather(work, *polls, return_exceptions=True)

    def _lease(self) -> Lease | None:
        if not self._options.leader_elect:
            return None
        namespace = self._options.lease_namespace or _own_namespace()
        identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.getpid()}_{os.urandom(3).hex()}"
        return Lease(self._api, namespace, LEASE_NAME, identity)

    # --- one pass -------------------------------------------------------------------------------------------

    async def _pass(self, key: Key) -> float | None:
        began = time.perf_counter()
        try:
            return await step(self._cluster, *key, time.time(), self._options.defaults)
        finally:
            self._metrics.pass_seconds.observe(time.perf_counter() - began)

    def _failed(self, key: Key, error: Exception) -> None:
        self._metrics.failed(error)
        if isinstance(error, NotLeading):
            return
        unexpected = not isinstance(error, OSError | Conflict)
        log.log(logging.ERROR if unexpected else logging.WARNING, "%s/%s: %s", *key, error, exc_info=unexpected)

    def _on_event(self, job: HFTitanJob, event: Event) -> None:
        self._metrics.told(event)
        level = logging.WARNING if event.type == "Warning" else logging.INFO
        log.log(level, "%s/%s: %s: %s", job.metadata.namespace, job.metadata.name, event.reason, event.message)

    # --- /metrics, /healthz, /readyz ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _web(self) -> AsyncIterator[None]:
        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

        async def healthy(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        async def ready(_: web.Request) -> web.Response:
            # A replica that waits for the lease is also ready: it can take over.
            if self._ready:
                return web.Response(text="ok\n")
            return web.Response(text="\n".join([*self._cluster.unlisted(), ""]), status=503)

        if not self._options.port:
            yield
            return
        app = web.Application()
        app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthy), web.get("/readyz", ready)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._options.host, self._options.port).start()
            yield
        finally:
            await runner.cleanup()


@dataclass(frozen=True, slots=True)
class _Jobs:
    """Iterates over all jobs that exist at the time of the iteration."""

    cluster: KubeCluster

    def __iter__(self) -> Iterator[HFTitanJob]:
        return (record.view.job for record in self.cluster.jobs.all())


async def _exit_when_lost(lease: Lease) -> None:
    """Exit when the lease is lost, without cleaning up: another replica acts now, so any further write may be wrong."""
    await lease.renew()
    log.critical("the lease is lost; exiting")
    logging.shutdown()
    os._exit(EXIT_LEASE_LOST)


def _own_namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return os.environ.get("POD_NAMESPACE", "default")


def _since(began: float) -> float:
    return time.monotonic() - began


async def operate(options: Options) -> None:
    """Run the operator. Raises OSError without access to a cluster."""
    configuration = await load_configuration(options.kubeconfig, options.context)
    async with KubeApi(configuration) as api:
        await Operator(api, options).run()


NESTING = 25_000
"""Recursion limit. An API server accepts objects with 10,000 nested levels where the schema allows it, and Python's
JSON reader fails at the default limit of 1,000. One such object must not prevent the operator from reading the others.
"""

COLLECT_EVERY = 10_000
"""New objects before a garbage collection (Python's default: 700). Full collections paused the operator for 50 to
100 ms every thirty jobs and freed nothing."""


def main(options: Options, level: str = "info") -> None:
    sys.setrecursionlimit(NESTING)
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    gc.freeze()  # objects of the imports live until the end
    gc.set_threshold(COLLECT_EVERY)
    uvloop.run(operate(options))
