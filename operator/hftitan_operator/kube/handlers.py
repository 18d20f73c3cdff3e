"""The kopf handler that watches HFTitanJobs. It updates the store, which wakes the job.

Only `on.event` handlers: they write nothing. kopf's create, update, delete and daemon handlers put finalizers and
annotations on the user's objects, and repeat an error after a minute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import kopf

from hftitan_api.models import GROUP, PLURAL, VERSION
from hftitan_operator.kube.api import KubeApi
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.reflector import PAGE, backoff

log = logging.getLogger(__name__)


class Backoffs:
    """kopf gives a request up after the last of these, and itself with it; so there is no last one."""

    def __iter__(self) -> Iterator[float]:
        failures = 0
        while True:
            failures += 1
            yield backoff(failures)


class NoDiffs(kopf.DiffBaseStorage):
    """Nobody here asks what changed; to be able to say it, kopf copies each object twice at each event."""

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
        """The same access as the rest of the operator. Asked for again whenever the server says 401."""
        session = api.new_session(await api.authorization())
        return kopf.AiohttpSession(server=api.server, aiohttp_session=session)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def job_event(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] == "DELETED":
            cluster.jobs.remove(dict(event["object"]))
        else:
            cluster.jobs.put(dict(event["object"]))

    return handlers


def settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True  # watching all CRDs and namespaces would take rights over the whole cluster
    chosen.peering.standalone = True  # two replicas agree by a Lease
    chosen.watching.chunk_size = PAGE
    chosen.watching.server_timeout = 270
    chosen.networking.error_backoffs = Backoffs()
    chosen.queueing.error_delays = (0.1, 0.5, 1, 2)
    chosen.process.ultimate_exiting_timeout = None
    chosen.persistence.diffbase_storage = NoDiffs()
    return chosen


async def watch(
    api: KubeApi, cluster: KubeCluster, namespaces: Sequence[str] = (), started: Callable[[], None] = lambda: None
) -> None:
    """Runs kopf until cancelled. What kopf takes for fatal (say, an error inside a watch) only makes it start anew.

    `started` is called after each start: kopf has then put its own signal handlers in place.
    """
    failures = 0
    while True:
        began = asyncio.get_running_loop().time()
        # Not kopf.operator(): when that ends, it cancels every task of the event loop that it did not know before.
        tasks = await kopf.spawn_tasks(
            registry=registry(api, cluster),
            settings=settings(),
            # Never told to anybody (standalone), but kopf's own guess fails for a user id without a name, which is what
            # a container has: getpass in kopf/_core/engines/peering.py.
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
        log.warning("the watch on %s.%s ended (%s); starting it anew", PLURAL, GROUP, next(filter(None, reasons), ""))
        await asyncio.sleep(backoff(failures))
