"""The local adapter of the port: runs the pods of one job as processes.

It implements the same port as the Kubernetes adapter, so the same core decides. The job is kept in memory and its
status in the work folder. A pod is a supervised process tree (process.py); the table in pod.py lists the meaning of
each manifest field. Linux only, because it needs a loopback address per pod and a child subreaper.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import Callable, Sequence

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_api.wire import Progress
from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_NODE_INDEX
from hftitan_operator.core.rendering import sizing
from hftitan_operator.core.rendering.scheduling import POD_GROUP
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
from hftitan_operator.local import store
from hftitan_operator.local.machine import RANK_SCRIPT, Machine, Place, Refused
from hftitan_operator.local.pod import gpu_count, translate
from hftitan_operator.local.process import LocalPod
from hftitan_operator.net import fetch_progress, free_port, loopback, port_is_free
from hftitan_operator.port import Conflict

log = logging.getLogger(__name__)

WORKDIR_TAG = "HFTITAN_LOCAL_WORKDIR"
POLL_SECONDS = 0.4


class LocalCluster:
    """Runs one job in `machine.workdir`. Use as `async with LocalCluster(job, machine) as cluster`.

    Entering locks the work folder (raises `Busy` if another run holds it) and kills processes that a killed run left
    behind. Leaving kills every process of this run. `changed` is set when `observe` may return something new.
    """

    def __init__(self, job: HFTitanJob, machine: Machine, on_event: Callable[[Event], None] | None = None) -> None:
        if sys.platform != "linux":
            raise OSError("hftitan run needs Linux; on another system use a container or a cluster")
        self.machine = machine
        self.changed = asyncio.Event()
        self.progress: Progress | None = None
        self.ended: list[PodView] = []
        """Every pod that ended, oldest first. Its exit report is kept after the pod is deleted."""
        self._job = job
        self._on_event = on_event
        self._pods: dict[str, LocalPod] = {}
        self._services: set[str] = set()
        self._configs: set[str] = set()
        self._gangs: dict[int, str] = {}
        self._ports: dict[int, int] = {}
        self._sequence = 0
        self._lock = store.WorkdirLock(machine.workdir)
        self._poller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LocalCluster:
        self.machine.workdir.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            killed = store.kill_tagged(WORKDIR_TAG, str(self.machine.workdir))
            if killed:
                log.warning("killed %d processes of an earlier run in %s", killed, self.machine.workdir)
            saved = store.load(self.machine.workdir)
        except BaseException:
            self._lock.release()
            raise
        metadata = self._job.metadata.model_copy(update={"uid": saved.uid, "generation": saved.generation + 1})
        self._job = self._job.model_copy(update={"metadata": metadata, "status": saved.status})
        self._save()
        script = self.machine.rank_script
        script.parent.mkdir(exist_ok=True)
        script.write_text(RANK_SCRIPT.format(python=shlex.quote(self.machine.python)), encoding="utf-8")
        script.chmod(0o755)
        self._poller = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._poller is not None:
            self._poller.cancel()
        for pod in self._pods.values():
            pod.close()
        store.kill_tagged(WORKDIR_TAG, str(self.machine.workdir))
        self._lock.release()

    # --- the port -------------------------------------------------------------------------------------------

    async def observe(self, namespace: str, name: str) -> Seen | None:
        job = self._job
        if (job.metadata.namespace, job.metadata.name) != (namespace, name):
            return None
        pods = tuple(pod.view() for pod in self._pods.values())
        for gone in [pod.name for pod in self._pods.values() if pod.ended and pod.deletion_deadline is not None]:
            # As with a kubelet, a pod deleted while it ran is removed only after its end and report were observed.
            del self._pods[gone]
            self.changed.set()
        observed = Observed(pods, bool(self._services), bool(self._configs), self.progress)
        return Seen(job, observed)

    async def apply(self, job: HFTitanJob, action: Action) -> None:
        """Raises `Conflict` for another job or an older spec, `Refused` for a field that is not supported here."""
        self._same(job)
        match action:
            case Apply(manifest):
                self._create(manifest)
            case Require() | DeletePodGroup():
                pass  # one machine has no gang scheduler
            case DeletePod(name, uid, grace):
                pod = self._pods.get(name)
                if pod is not None and pod.place.uid == uid:
                    if pod.alive:
                        pod.stop(grace)
                    else:
                        del self._pods[name]
            case DeleteJob():
                # Keep the user's job file and work folder; stop only the pods, which a cluster would garbage-collect.
                for pod in self.alive:
                    pod.stop(sizing.DRAIN_GRACE_SECONDS)
        self.changed.set()

    async def write_status(self, job: HFTitanJob, status: JobStatus) -> None:
        held = self._same(job)
        self._job = held.model_copy(update={"status": status})
        self._save()

    async def emit(self, job: HFTitanJob, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    # --- beyond the port: operations of `hftitan run` ---------------------------------------------------------

    @property
    def job(self) -> HFTitanJob:
        return self._job

    def suspend(self) -> None:
        """Set spec.runPolicy.suspend, as `kubectl patch` would. The core stops the pods, which save a checkpoint."""
        if self._job.spec.run_policy.suspend:
            return
        policy = self._job.spec.run_policy.model_copy(update={"suspend": True})
        metadata = self._job.metadata.model_copy(update={"generation": self._job.metadata.generation + 1})
        spec = self._job.spec.model_copy(update={"run_policy": policy})
        self._job = self._job.model_copy(update={"spec": spec, "metadata": metadata})
        self.changed.set()

    def kill(self) -> None:
        """Kill every pod immediately."""
        for pod in self._pods.values():
            pod.stop(0)

    @property
    def alive(self) -> Sequence[LocalPod]:
        return [pod for pod in self._pods.values() if pod.alive]

    # --- inside ---------------------------------------------------------------------------------------------

    def _same(self, job: HFTitanJob) -> HFTitanJob:
        if job.metadata.uid != self._job.metadata.uid:
            raise Conflict(f"job {job.metadata.uid} is not the job of this run")
        if job.metadata.generation != self._job.metadata.generation:
            raise Conflict("the job's spec has changed")
        return self._job

    def _save(self) -> None:
        metadata = self._job.metadata
        store.save(self.machine.workdir, store.Saved(metadata.uid, metadata.generation, self._job.status))

    def _create(self, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "Pod":
            if name not in self._pods:
                self._pods[name] = self._start(manifest)
        elif kind == "ConfigMap":
            folder = self.machine.config_folder(name)
            folder.mkdir(parents=True, exist_ok=True)
            for key, text in manifest.get("data", {}).items():
                (folder / key).write_text(text, encoding="utf-8")
            self._configs.add(name)
        elif kind == "Service":
            self._services.add(name)
        elif kind == POD_GROUP:
            pass  # affects only placement, like nodeSelector
        else:
            raise Refused(kind, "a local run does not support this kind of object")

    def _start(self, manifest: Manifest) -> LocalPod:
        metadata = manifest["metadata"]
        attempt, index = int(metadata["labels"][LABEL_ATTEMPT]), int(metadata["labels"][LABEL_NODE_INDEX])
        self._sequence += 1
        place = Place(
            uid=f"{self._job.metadata.uid}-{attempt}-{index}-{self._sequence}",
            address=self._address(attempt, index),
            rendezvous=f"{self._address(attempt, 0)}:{self._port(attempt)}",
            first_gpu=index * gpu_count(manifest, self.machine.gpu_resource),
        )
        launch = translate(manifest, self.machine, place, frozenset(self._configs))
        name = metadata["name"]
        pod: LocalPod

        def ended() -> None:
            assert pod.ended is not None
            self.ended.append(pod.ended)
            self.changed.set()

        pod = LocalPod(name, attempt, index, place, launch, self.machine.pod_log(name), ended)
        return pod

    def _address(self, attempt: int, index: int) -> str:
        if attempt not in self._gangs:
            # Another run may use the same addresses; then the port is in use on its first pod's address.
            names = [f"{self._job.metadata.uid}/{attempt}/{salt}" for salt in range(20)]
            port = self._job.spec.monitoring.port
            self._gangs[attempt] = next((name for name in names if port_is_free(loopback(name, 0), port)), names[0])
        return loopback(self._gangs[attempt], index)

    def _port(self, attempt: int) -> int:
        """Return the rendezvous port of an attempt. Its store listens on all addresses, so each run needs its own."""
        if attempt not in self._ports:
            self._ports[attempt] = free_port()
        return self._ports[attempt]

    async def _poll(self) -> None:
        """Keep `progress` up to date by polling node 0. No decision waits for the answer."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            job = self._job
            node0 = next((pod for pod in self._pods.values() if pod.index == 0 and pod.alive), None)
            if node0 is None:
                continue
            progress = await fetch_progress(node0.place.address, job.spec.monitoring.port)
            if progress is not None and progress != self.progress:
                self.progress = progress
                self.changed.set()
