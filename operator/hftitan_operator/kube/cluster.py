"""The Kubernetes adapter of the port: jobs are custom resources.

Observing costs no request: lists and watches keep stores of small values (store.py) up to date, and every answer
to a write of ours goes there as well, so that a pass sees what the pass before it did. Writes are safe to repeat: names
are functions of the job, deletions and status writes name the uid and version that they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hftitan_api.models import API_VERSION, GROUP, KIND, PLURAL, VERSION, HFTitanJob, JobStatus
from hftitan_api.wire import Progress
from hftitan_operator.core import naming, scheduling
from hftitan_operator.core.state import (
    Action,
    Apply,
    DeleteJob,
    DeletePod,
    DeletePodGroup,
    Event,
    Manifest,
    Observed,
    PodView,
    Require,
    Seen,
)
from hftitan_operator.kube import gang, views
from hftitan_operator.kube.api import MERGE_PATCH, METADATA_ONLY, ApiError, Json, KubeApi
from hftitan_operator.kube.reflector import Reflector, level
from hftitan_operator.kube.store import (
    JobRecord,
    Key,
    NodeRecord,
    ObjectRecord,
    PodRecord,
    Store,
    job_record,
    node_record,
    object_record,
    pod_record,
)
from hftitan_operator.kube.turns import Turns
from hftitan_operator.port import Conflict, Denied

log = logging.getLogger(__name__)

WRITES_AT_ONCE = 28
"""More gain nothing (16 to 96 tried: bench/operate.py), and its fair queueing begins to refuse."""
STATUS_PATIENCE_SECONDS, EVENT_PATIENCE_SECONDS = 4.0, 8.0
"""When more is to be written than that, pods come first: GPUs wait for them. What is told of them has so much time."""
EVENTS_WAITING = 2000
NO_CRD = f"the resource {PLURAL}.{GROUP} is not installed: hftitan crd | kubectl apply -f -"
COMPONENT = naming.MANAGED_BY
_PLURALS = {"Pod": "pods", "Service": "services", "ConfigMap": "configmaps"}


class KubeCluster:
    """Implements ClusterPort. `wake` is called with a job's key whenever something about it is new.

    `async with` runs the lists and watches; `synced()` waits until the first lists are in. Of jobs, only lists are made
    here: `jobs` is fed by whoever watches them (handlers.py).
    """

    def __init__(self, api: KubeApi, namespaces: Sequence[str] = (), wake: Callable[[Key], None] = lambda key: None):
        """`namespaces`: those served; none: all."""
        self.api = api
        self.progress: dict[str, Progress] = {}
        """The newest /progress of node 0, by the uid of the job."""
        self.unreachable: set[str] = set()
        """Uids of jobs whose node 0 has not answered us several times in a row."""
        self.told: Callable[[HFTitanJob, Event], None] = lambda job, event: None
        """Hears every event as well."""
        self.wrote: Callable[[HFTitanJob, JobStatus], None] = lambda job, status: None
        """Hears of every status that was written: the job as it was, and its new status."""
        self.jobs = Store[JobRecord](job_record, self._job_changed)
        self.pods = Store[PodRecord](pod_record, lambda record: wake(record.key))
        self._services = Store[ObjectRecord](object_record, lambda record: wake(record.key))
        self._configs = Store[ObjectRecord](object_record, lambda record: wake(record.key))
        self._nodes = Store[NodeRecord](node_record, self._node_changed)
        self._wake = wake
        self._writes = Turns(WRITES_AT_ONCE)
        self._events: asyncio.Queue[Json] = asyncio.Queue(EVENTS_WAITING)
        self._gone_nodes: set[str] = set()
        """Those that were seen to go while pods were bound to them."""
        self._nodes_as_of = 0
        """The resource version of the newest list of nodes."""
        self._node_list = Reflector(api, "/api/v1/nodes", self._nodes, optional=True, listed=self._nodes_listed)
        self._reflectors = [self._node_list]
        for namespace in namespaces or (None,):
            self._reflectors += self._of_namespace(namespace)
        self._tasks: list[asyncio.Task[None]] = []

    def _of_namespace(self, namespace: str | None) -> list[Reflector]:
        def path(root: str, plural: str) -> str:
            return f"{root}/{plural}" if namespace is None else f"{root}/namespaces/{namespace}/{plural}"

        def ours(plural: str, store: Store[Any], *, metadata_only: bool) -> Reflector:
            return Reflector(
                self.api,
                path("/api/v1", plural),
                store,
                namespace=namespace,
                selector=naming.LABEL_JOB,
                metadata_only=metadata_only,
            )

        return [
            Reflector(
                self.api,
                path(f"/apis/{GROUP}/{VERSION}", PLURAL),
                self.jobs,
                namespace=namespace,
                watched=False,
                absent=NO_CRD,
            ),
            ours("pods", self.pods, metadata_only=False),
            ours("services", self._services, metadata_only=True),
            ours("configmaps", self._configs, metadata_only=True),
        ]

    async def __aenter__(self) -> KubeCluster:
        self._tasks = [asyncio.create_task(reflector.run()) for reflector in self._reflectors]
        self._tasks.append(asyncio.create_task(self._send_events()))
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._events.join(), 1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def synced(self) -> None:
        """Returns when everything that is there now is known."""
        await asyncio.gather(*(reflector.synced.wait() for reflector in self._reflectors))

    def unlisted(self) -> list[str]:
        """What is not known yet, and why."""
        return [reflector.waits_for for reflector in self._reflectors if not reflector.synced.is_set()]

    # --- the port -------------------------------------------------------------------------------------------

    async def observe(self, namespace: str, name: str) -> Seen | None:
        record = self.job((namespace, name))
        if record is None:
            return None
        job = record.view.job
        uid = job.metadata.uid
        pods = tuple(self._with_node(pod.view) for pod in self.pods.group(record.key) if pod.owner == uid)

        def there(store: Store[ObjectRecord], wanted: str) -> bool:
            return any(found.name == wanted and found.owner == uid for found in store.group(record.key))

        observed = Observed(
            pods=pods,
            service=there(self._services, naming.service_name(name)),
            config=there(self._configs, naming.config_name(name)),
            progress=self.progress.get(uid),
            unreachable=uid in self.unreachable and any(pod.index == 0 and pod.ready for pod in pods),
        )
        return Seen(job, observed, record.view.problems)

    async def apply(self, job: HFTitanJob, action: Action) -> None:
        async with self._writes.take():
            match action:
                case Require():
                    await gang.require(self.api, job.metadata.namespace, action)
                case Apply({"kind": scheduling.POD_GROUP} as manifest):
                    await gang.create(self.api, manifest)
                case Apply(manifest):
                    await self._create(job, manifest)
                case DeletePodGroup():
                    await gang.delete(self.api, job.metadata.namespace, action)
                case DeletePod(name, uid, grace):
                    await self._delete_pod(job.metadata.namespace, name, uid, grace)
                case DeleteJob():
                    await self._delete(_job_path(job), job.metadata.uid, {"propagationPolicy": "Background"})

    async def write_status(self, job: HFTitanJob, status: JobStatus) -> None:
        record = self.job((job.metadata.namespace, job.metadata.name))
        stale = record.view.stale_status if record is not None else ()
        # A first status is sent whole: what equals a default is there for kubectl and dashboards to see.
        before = {} if job.status == JobStatus() else job.status.to_dict()
        changes = {**dict.fromkeys(stale), **views.status_patch(before, status.to_dict())}
        patch = {
            "metadata": {"uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version},
            "status": changes,
        }
        try:
            async with self._writes.take(STATUS_PATIENCE_SECONDS):
                written = await self.api.request("PATCH", f"{_job_path(job)}/status", patch, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status == 404:
                self.jobs.forget(job.metadata.uid)
                return
            if error.status == 409:
                await self._refresh(job)
                raise Conflict(f"the job changed meanwhile: {error}") from error
            raise
        self.jobs.put(written)
        self.wrote(job, status)

    async def emit(self, job: HFTitanJob, event: Event) -> None:
        """Queued: nothing waits for what only humans read, and when thousands wait already it is dropped."""
        self.told(job, event)
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(_event(job, event))

    # --- beyond the port --------------------------------------------------------------------------------------

    def job(self, key: Key) -> JobRecord | None:
        """The job of this name; of one that was deleted and made anew in a moment, the newer."""
        found = self.jobs.group(key)
        return max(found, key=lambda r: self.jobs.version(r.view.job.metadata.uid), default=None)

    def nodes_known(self) -> bool:
        """Whether losses of nodes are seen: without the right to list nodes they are not."""
        return self._node_list.synced.is_set() and not self._node_list.denied

    # --- writes ---------------------------------------------------------------------------------------------

    async def _create(self, job: HFTitanJob, manifest: Manifest) -> None:
        kind, name, namespace = manifest["kind"], manifest["metadata"]["name"], job.metadata.namespace
        collection = f"/api/v1/namespaces/{namespace}/{_PLURALS[kind]}"
        try:
            # The rest of the answer is what was sent; what the server adds to it, the watch tells.
            made = await self.api.request("POST", collection, manifest, accept=METADATA_ONLY)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                made = await self._adopt(job, kind, f"{collection}/{name}")
            elif gang.passing(error):
                raise
            else:
                raise Denied(f"{kind} {name}: {error}") from error
        self._store(kind).put(made)

    async def _adopt(self, job: HFTitanJob, kind: str, path: str) -> Json:
        """The object that has the name already: ours from an earlier try, or somebody's."""
        found = await self.api.request("GET", path)
        if views.owner_uid(found) == job.metadata.uid:
            return found
        name = found["metadata"]["name"]
        if found["metadata"].get("deletionTimestamp"):
            raise Denied(f"{kind} {name} of an earlier owner is still being deleted")
        raise Denied(f"a {kind} named {name} is there already and is not this job's; delete it, or rename the job")

    async def _delete_pod(self, namespace: str, name: str, uid: str, grace: int | None) -> None:
        options: Json = {} if grace is None else {"gracePeriodSeconds": grace}
        left = await self._delete(f"/api/v1/namespaces/{namespace}/pods/{name}", uid, options)
        if left is not None and left.get("metadata", {}).get("uid") == uid and grace != 0:
            self.pods.put(left)
        else:
            self.pods.forget(uid)

    async def _delete(self, path: str, uid: str, options: Json) -> Json | None:
        """What is left of it, or None when it was gone (or replaced by another of the same name) already."""
        try:
            return await self.api.request("DELETE", path, {**options, "preconditions": {"uid": uid}})
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status != 409:
                raise
            await self._replaced(path, uid, error)
            return None

    async def _replaced(self, path: str, uid: str, error: ApiError) -> None:
        """A deletion conflicts when the uid is another one, or when the object changed at that very moment; then
        `Conflict`. A pod that is wrongly taken for gone would have the next attempt beside it."""
        try:
            found = await self.api.request("GET", path)
        except ApiError as answer:
            if answer.status == 404:
                return
            raise
        if found["metadata"]["uid"] == uid:
            raise Conflict(f"not deleted: {error}") from error

    async def _refresh(self, job: HFTitanJob) -> None:
        try:
            self.jobs.put(await self.api.request("GET", _job_path(job)))
        except ApiError as error:
            if error.status != 404:
                raise
            self.jobs.forget(job.metadata.uid)

    async def _send_events(self) -> None:
        failures = 0
        while True:
            event = await self._events.get()
            try:
                async with self._writes.take(EVENT_PATIENCE_SECONDS):
                    await self.api.request("POST", f"/api/v1/namespaces/{event['metadata']['namespace']}/events", event)
                failures = 0
            except OSError as error:
                failures += 1
                log.log(level(failures), "event %s is lost: %s", event["metadata"]["name"], error)
            finally:
                self._events.task_done()

    # --- inside ---------------------------------------------------------------------------------------------

    def _store(self, kind: str) -> Store[Any]:
        stores: dict[str, Store[Any]] = {"Pod": self.pods, "Service": self._services, "ConfigMap": self._configs}
        return stores[kind]

    def _with_node(self, pod: PodView) -> PodView:
        if pod.node is None or pod.phase in ("Succeeded", "Failed") or not self.nodes_known():
            return pod
        found = self._node(pod.node)
        if found is None:
            # A pod may be bound to a node that was not seen yet. One that a newer list does not hold is gone.
            gone = pod.node in self._gone_nodes or self.pods.version(pod.uid) <= self._nodes_as_of
            return replace(pod, node_lost=True, node_gone=True) if gone else pod
        return pod if found.ready else replace(pod, node_lost=True)

    def _node(self, name: str) -> NodeRecord | None:
        return next(iter(self._nodes.group(("", name))), None)

    def _job_changed(self, record: JobRecord) -> None:
        uid = record.view.job.metadata.uid
        if not self.jobs.version(uid):
            self.progress.pop(uid, None)
            self.unreachable.discard(uid)
        self._wake(record.key)

    def _node_changed(self, record: NodeRecord) -> None:
        name, pods = record.key[1], self.pods.all()
        self._gone_nodes.discard(name)
        if self._node(name) is None:
            self._gone_nodes = {*self._gone_nodes, name} & {pod.view.node for pod in pods if pod.view.node}
        for pod in pods:
            if pod.view.node == name:
                self._wake(pod.key)

    def _nodes_listed(self, version: int) -> None:
        self._nodes_as_of = version
        for pod in self.pods.all():
            if pod.view.node is not None and self._node(pod.view.node) is None:
                self._wake(pod.key)


def _job_path(job: HFTitanJob) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{job.metadata.namespace}/{PLURAL}/{job.metadata.name}"


def _event(job: HFTitanJob, event: Event) -> Json:
    now = datetime.now(UTC)
    text = f"{job.metadata.uid}/{event.reason}/{event.message}/{now.timestamp():.3f}"
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{job.metadata.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
            "namespace": job.metadata.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": job.metadata.name,
            "namespace": job.metadata.namespace,
            "uid": job.metadata.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": COMPONENT},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
