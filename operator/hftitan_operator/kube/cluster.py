"""The Kubernetes adapter of the port: jobs are custom resources.

Observing needs no request: lists and watches update stores of small values (store.py). Responses to the operator's own
writes also go into the stores, so that a pass sees the writes of the pass before it. Writes are idempotent: names
depend only on the job, and deletions and status writes have preconditions on UID and resource version.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from hftitan_api.models import API_VERSION, GROUP, KIND, PLURAL, VERSION, HFTitanJob, JobStatus
from hftitan_api.wire import Progress
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import scheduling
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
from hftitan_operator.kube.nodes import Nodes
from hftitan_operator.kube.reflector import Reflector, Timing
from hftitan_operator.kube.retry import level
from hftitan_operator.kube.store import (
    JobRecord,
    Key,
    ObjectRecord,
    PodRecord,
    Store,
    job_record,
    object_record,
    pod_record,
)
from hftitan_operator.kube.turns import Turns
from hftitan_operator.port import Conflict, Denied

log = logging.getLogger(__name__)

WRITES_AT_ONCE = 28
"""More concurrent writes are not faster (measured with 16 to 96 in bench/operate.py), and API Priority and Fairness
starts to reject requests."""
STATUS_PATIENCE_SECONDS, EVENT_PATIENCE_SECONDS = 4.0, 8.0
"""Seconds that status writes and events may wait while pods, for which GPUs wait, are written first."""
EVENTS_WAITING = 2000
NO_CRD = f"the CRD {PLURAL}.{GROUP} is not installed; run: hftitan crd | kubectl apply -f -"
COMPONENT = naming.MANAGED_BY
_PLURALS = {"Pod": "pods", "Service": "services", "ConfigMap": "configmaps"}


class KubeCluster:
    """Implements ClusterPort. Calls `wake` with a job's key whenever the job or its objects change.

    `async with` runs the lists and watches; `synced()` waits for the first lists. Jobs are only listed here;
    handlers.py watches them and updates `jobs`.
    """

    def __init__(
        self,
        api: KubeApi,
        namespaces: Sequence[str] = (),
        wake: Callable[[Key], None] = lambda key: None,
        timing: Timing | None = None,
    ) -> None:
        """`namespaces` are the namespaces to serve; all if empty."""
        self.api = api
        self.timing = timing or Timing()
        self.progress: dict[str, Progress] = {}
        """The newest /progress of node 0, by the UID of the job."""
        self.unreachable: set[str] = set()
        """UIDs of the jobs whose node 0 did not answer several times in a row."""
        self.queue_messages: dict[str, str | None] = {}
        """Kueue's messages about gangs that wait for admission, by the name of the group."""
        self._departed: dict[str, PodView] = {}
        """By the UID of the job, see Observed.departed."""
        self.on_event: Callable[[HFTitanJob, Event], None] = lambda job, event: None
        """Called with every event."""
        self.on_status: Callable[[HFTitanJob, JobStatus], None] = lambda job, status: None
        """Called after every status write, with the job before the write and its new status."""
        self.jobs = Store[JobRecord](job_record, self._job_changed)
        self.pods = Store[PodRecord](pod_record, self._pod_changed, self._pod_deleted)
        self._services = Store[ObjectRecord](object_record, lambda record: wake(record.key))
        self._configs = Store[ObjectRecord](object_record, lambda record: wake(record.key))
        self._nodes = Nodes(self.pods, wake)
        self._wake = wake
        self._writes = Turns(WRITES_AT_ONCE)
        self._events: asyncio.Queue[Json] = asyncio.Queue(EVENTS_WAITING)
        self._node_list = Reflector(
            api, "/api/v1/nodes", self._nodes.store, optional=True, reached=self._nodes.reached, timing=self.timing
        )
        self._job_lists: list[Reflector] = []
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
                timing=self.timing,
            )

        jobs = Reflector(
            self.api,
            path(f"/apis/{GROUP}/{VERSION}", PLURAL),
            self.jobs,
            namespace=namespace,
            watched=False,
            absent=NO_CRD,
            timing=self.timing,
        )
        self._job_lists.append(jobs)
        return [
            jobs,
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
        """Wait until the first list of every kind is complete."""
        await asyncio.gather(*(reflector.synced.wait() for reflector in self._reflectors))

    def unlisted(self) -> list[str]:
        """Return the lists that are not complete yet, with the reason."""
        return [reflector.waits_for for reflector in self._reflectors if not reflector.synced.is_set()]

    # --- the port -------------------------------------------------------------------------------------------

    async def observe(self, namespace: str, name: str) -> Seen | None:
        record = self.job((namespace, name))
        if record is None:
            return None
        job = record.view.job
        uid = job.metadata.uid
        owned = (pod.view for pod in self.pods.group(record.key) if pod.owner == uid)
        pods = tuple(map(self._nodes.judge, owned) if self.nodes_known() else owned)

        def there(store: Store[ObjectRecord], wanted: str) -> bool:
            return any(found.name == wanted and found.owner == uid for found in store.group(record.key))

        observed = Observed(
            pods=pods,
            service=there(self._services, naming.service_name(name)),
            config=there(self._configs, naming.config_name(name)),
            departed=self._departed.get(uid),
            queue_message=self.queue_messages.get(scheduling.group_name(job, job.status.attempt)),
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
                    await self._delete_job(job)

    async def write_status(self, job: HFTitanJob, status: JobStatus) -> None:
        record = self.job((job.metadata.namespace, job.metadata.name))
        stale = record.view.stale_status if record is not None else ()
        # The first status is sent in full, so that kubectl and dashboards also see values that equal the defaults.
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
                raise Conflict(f"the job changed concurrently: {error}") from error
            raise
        self.jobs.put(written)
        self.on_status(job, status)

    async def emit(self, job: HFTitanJob, event: Event) -> None:
        """Queue the event: no pass waits for it. A full queue drops the event."""
        self.on_event(job, event)
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(_event(job, event))

    # --- beyond the port --------------------------------------------------------------------------------------

    def job(self, key: Key) -> JobRecord | None:
        """Return the job of this name. If it was deleted and created again quickly, return the newer job."""
        found = self.jobs.group(key)
        return max(found, key=lambda r: self.jobs.version(r.view.job.metadata.uid), default=None)

    def list_jobs_soon(self) -> None:
        """Compare `jobs` with a new list: their watch has lost its position."""
        for jobs in self._job_lists:
            jobs.list_soon()

    def nodes_known(self) -> bool:
        """Return whether lost nodes are detected; that needs permission to list nodes."""
        return self._node_list.synced.is_set() and not self._node_list.denied

    # --- writes ---------------------------------------------------------------------------------------------

    async def _create(self, job: HFTitanJob, manifest: Manifest) -> None:
        kind, name, namespace = manifest["kind"], manifest["metadata"]["name"], job.metadata.namespace
        collection = f"/api/v1/namespaces/{namespace}/{_PLURALS[kind]}"
        try:
            # Metadata is enough: the rest was sent in the request, or arrives with the watch.
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
        """Return the existing object of this name if the job owns it, from an earlier pass. Else raise Denied."""
        found = await self.api.request("GET", path)
        if views.owner_uid(found) == job.metadata.uid:
            return found
        name = found["metadata"]["name"]
        if found["metadata"].get("deletionTimestamp"):
            raise Denied(f"{kind} {name} of an earlier owner is still being deleted")
        raise Denied(
            f"a {kind} named {name} already exists and does not belong to this job; delete it, or rename the job"
        )

    async def _delete_pod(self, namespace: str, name: str, uid: str, grace: int | None) -> None:
        options: Json = {} if grace is None else {"gracePeriodSeconds": grace}
        left = await self._delete(f"/api/v1/namespaces/{namespace}/pods/{name}", uid, options)
        if left is not None and left.get("metadata", {}).get("uid") == uid and grace != 0:
            self.pods.put(left)
        else:
            self.pods.forget(uid)

    async def _delete_job(self, job: HFTitanJob) -> None:
        left = await self._delete(_job_path(job), job.metadata.uid, {"propagationPolicy": "Background"})
        if left is not None and left.get("kind") == KIND:  # a finalizer of someone else keeps it
            self.jobs.put(left)
        else:
            self.jobs.forget(job.metadata.uid)

    async def _delete(self, path: str, uid: str, options: Json) -> Json | None:
        """Delete the object with this UID. Return its last state, or None if it was already gone or replaced."""
        try:
            return await self.api.request("DELETE", path, {**options, "preconditions": {"uid": uid}})
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status != 409:
                raise
            await self._check_replaced(path, uid, error)
            return None

    async def _check_replaced(self, path: str, uid: str, error: ApiError) -> None:
        """Raise `Conflict` if the object with this UID still exists after a deletion conflict.

        A deletion conflicts if the UID differs, or if the object changed at the same time. If a pod that still runs
        counted as gone, the next attempt would start beside it.
        """
        try:
            found = await self.api.request("GET", path)
        except ApiError as response:
            if response.status == 404:
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
                log.log(level(failures), "event %s was not written: %s", event["metadata"]["name"], error)
            finally:
                self._events.task_done()

    # --- stores ---------------------------------------------------------------------------------------------

    def _store(self, kind: str) -> Store[Any]:
        stores: dict[str, Store[Any]] = {"Pod": self.pods, "Service": self._services, "ConfigMap": self._configs}
        return stores[kind]

    def _job_changed(self, record: JobRecord) -> None:
        uid = record.view.job.metadata.uid
        if not self.jobs.version(uid):
            self.progress.pop(uid, None)
            self._departed.pop(uid, None)
            self.unreachable.discard(uid)
        self._wake(record.key)

    def _pod_changed(self, record: PodRecord) -> None:
        self._nodes.pod_changed(record)
        self._wake(record.key)

    def _pod_deleted(self, record: PodRecord) -> None:
        """Keep the exit report of a deleted pod: it names the checkpoint that the pod saved on its way out."""
        if record.owner is None or record.view.report is None:
            return
        known = self._departed.get(record.owner)
        if known is None or _report_order(known) <= _report_order(record.view):
            self._departed[record.owner] = record.view


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


def _report_order(pod: PodView) -> tuple[int, int, bool]:
    """Sort by attempt and saved step; the report of node 0 has the progress."""
    assert pod.report is not None
    return pod.attempt, pod.report.checkpoint_step or 0, pod.report.progress is not None
