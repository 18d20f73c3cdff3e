"""A kubelet that runs the pods of its nodes as processes on this machine, or simulates them by a script (`--fake`).

    python tests/support/cluster/process_kubelet.py --kubeconfig K --node a,b --workdir D
        [--gpus 8] [--program hftitan-agent=...]

A pod's container is translated to a process as by `hftitan run` (local/pod.py), and its status is reported as by a real
kubelet. SIGKILL to this process simulates lost nodes: their processes end with it. SIGSTOP simulates a partition: the
processes keep running. All kubelets of a cluster share one work folder. A pod's output is in the folder of its claim
there (claims/NAMESPACE/CLAIM) or in its own (pods/UID), its log in logs/POD.log below that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import kubelet_status as status
from kubelet_api import MERGE, STRATEGIC, Api, Gone, Object
from kubelet_fake import FakePod
from kubelet_logs import LogServer
from kubelet_pod import Node, ProcessPod, Refused

PROBE_SECONDS = 0.25
"""Probe period until a pod is ready; then the pod's own period applies."""
NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass
class Entry:
    pod: Object
    runner: ProcessPod | FakePod
    task: asyncio.Task[None] | None = None
    started: bool = False
    deleting: bool = False
    reported: Object | None = None
    """The last status that this kubelet wrote."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while writing a status, so that statuses arrive in order."""

    @property
    def path(self) -> str:
        metadata = self.pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


class Kubelet:
    def __init__(
        self, api: Api, nodes: dict[str, Node], renew: float, script: object | None, certificate: Path | None
    ) -> None:
        self._certificate, self._log_port = certificate, 0
        self._api, self._nodes, self._renew, self._script = api, nodes, renew, script
        self._entries: dict[str, Entry] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._http = aiohttp.ClientSession()

    async def run(self) -> None:
        if self._certificate is not None:
            self._log_port = await LogServer(self._logged).start(self._certificate)
        await asyncio.gather(*(self._register(node) for node in self._nodes.values()))
        print("registered", flush=True)
        self._spawn(self._heartbeat())
        names = list(self._nodes)
        selector = f"spec.nodeName%3D{names[0]}" if len(names) == 1 else "spec.nodeName!%3D"
        async for kind, found in self._api.follow("/api/v1/pods", selector):
            if kind == "LISTED":
                here = {pod["metadata"]["uid"] for pod in found}
                for uid in [uid for uid in self._entries if uid not in here]:
                    self._forget(uid)
                for pod in found:
                    self._observe(pod)
            elif kind == "DELETED":
                self._forget(found["metadata"]["uid"])
            else:
                self._observe(found)

    # --- the node -------------------------------------------------------------------------------------------

    async def _register(self, node: Node) -> None:
        labels = {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}
        body: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": labels}}
        try:
            await self._api.call("POST", NODES, body)
        except Gone:  # the node exists, from an earlier run of this kubelet
            await self._api.call("PATCH", f"{NODES}/{node.name}", {"metadata": {"labels": labels}}, MERGE)
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": node.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": node.name, "leaseDurationSeconds": 40, "renewTime": status.now_micro()},
        }
        try:
            await self._api.call("POST", LEASES, lease)
        except Gone:
            await self._api.call("PATCH", f"{LEASES}/{node.name}", {"spec": lease["spec"]}, MERGE)
        await self._report(node)

    async def _report(self, node: Node) -> None:
        capacity = {"cpu": "1000", "memory": "8Ti", "ephemeral-storage": "8Ti", "pods": "10000"}
        if node.gpus:
            capacity["nvidia.com/gpu"] = str(node.gpus)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "a process kubelet"}
        ready |= {"lastHeartbeatTime": status.now(), "lastTransitionTime": status.now()}
        # No Hostname: the API server would prefer it, but it does not resolve.
        addresses = {"InternalIP": status.HOST_IP}
        state = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [ready],
            "addresses": [{"type": kind, "address": address} for kind, address in addresses.items()],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._log_port}},
        }
        await self._api.call("PATCH", f"{NODES}/{node.name}/status", {"status": state}, STRATEGIC)

    async def _heartbeat(self) -> None:
        beat = 0
        while True:
            await asyncio.sleep(self._renew)
            beat += 1
            await asyncio.gather(*(self._renew_node(node, full=beat % 5 == 0) for node in self._nodes.values()))

    async def _renew_node(self, node: Node, *, full: bool) -> None:
        """Renew the Lease. With `full`, also write the node status, which a long silence sets to unknown."""
        try:
            await self._api.call("PATCH", f"{LEASES}/{node.name}", {"spec": {"renewTime": status.now_micro()}}, MERGE)
            if full:
                await self._report(node)
        except Gone:
            pass  # the node was deleted from the cluster

    def _logged(self, namespace: str, name: str) -> ProcessPod | None:
        for entry in reversed(self._entries.values()):
            runner = entry.runner
            if isinstance(runner, ProcessPod) and (runner.namespace, runner.name) == (namespace, name):
                return runner
        return None

    # --- pods -----------------------------------------------------------------------------------------------

    def _observe(self, pod: Object) -> None:
        metadata, phase = pod["metadata"], pod.get("status", {}).get("phase")
        node = self._nodes.get(pod["spec"].get("nodeName", ""))
        if node is None:
            return
        entry = self._entries.get(metadata["uid"])
        if entry is None:
            runner = ProcessPod(pod, node, self._api) if self._script is None else FakePod(pod, self._script)
            entry = Entry(pod, runner)
            if phase in ("Succeeded", "Failed"):
                if "deletionTimestamp" in metadata:
                    self._spawn(self._remove(entry))
                return
            self._entries[metadata["uid"]] = entry
            if "deletionTimestamp" not in metadata:
                entry.task = self._spawn(self._run_pod(entry) if phase == "Pending" else self._report_lost(entry))
        entry.pod = pod
        if entry.reported is not None and contradicts(pod, entry.reported):
            self._spawn(self._patch(entry, None))
        if "deletionTimestamp" in metadata:
            self._stop(entry)

    def _stop(self, entry: Entry) -> None:
        """Stop a running pod with the grace period of its deletion; remove a pod that has not started."""
        first, entry.deleting = not entry.deleting, True
        if entry.started and entry.task is not None and not entry.task.done():
            entry.runner.stop(entry.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        elif first:
            if entry.task is not None:
                entry.task.cancel()
            self._spawn(self._remove(entry))

    def _forget(self, uid: str) -> None:
        entry = self._entries.pop(uid, None)
        if entry is None:
            return
        if entry.started:
            entry.runner.stop(0)
        elif entry.task is not None:
            entry.task.cancel()

    async def _run_pod(self, entry: Entry) -> None:
        runner = entry.runner
        try:
            if isinstance(runner, ProcessPod):
                await self._patch(entry, status.waiting(entry.pod, "ContainerCreating"))
            try:
                await runner.start()
            except (Refused, OSError) as error:
                await self._patch(entry, status.rejected(entry.pod, "Rejected", str(error)))
                return
            entry.started, started = True, status.now()
            ready = await runner.ready(self._http)
            await self._patch(entry, status.running(entry.pod, runner.address, started, ready=ready))
            period = entry.pod["spec"]["containers"][0].get("readinessProbe", {}).get("periodSeconds", 10)
            while not await happens(runner.done, period if ready else PROBE_SECONDS):
                if ready != (ready := await runner.ready(self._http)):
                    await self._patch(entry, status.running(entry.pod, runner.address, started, ready=ready))
            await self._patch(
                entry, status.ended(entry.pod, started, runner.exit_code, runner.message, getattr(runner, "reason", ""))
            )
            if entry.deleting:
                await self._remove(entry)
        except Gone:
            runner.stop(0)
        finally:
            runner.release()

    async def _report_lost(self, entry: Entry) -> None:
        """Report the end of a pod that ran under an earlier run of this kubelet and ended with it."""
        started = entry.pod["status"].get("startTime", status.now())
        state = status.ended(entry.pod, started, 137, "the kubelet was restarted", "ContainerStatusUnknown")
        await self._patch(entry, state)
        if entry.deleting:
            await self._remove(entry)

    async def _patch(self, entry: Entry, state: Object | None) -> None:
        """Write a status; None repeats the last. With the uid, the server rejects it for a later pod of that name."""
        async with entry.lock:
            entry.reported = state or entry.reported
            body = {"metadata": {"uid": entry.pod["metadata"]["uid"]}, "status": entry.reported}
            await self._api.call("PATCH", f"{entry.path}/status", body, STRATEGIC)

    async def _remove(self, entry: Entry) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": entry.pod["metadata"]["uid"]}}
        with contextlib.suppress(Gone):
            await self._api.call("DELETE", entry.path, body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Gone):
            traceback.print_exception(error, file=sys.stderr)


def contradicts(pod: Object, reported: Object) -> bool:
    """Whether the node controller marked a ready pod as not ready, after it considered this node lost."""
    running = pod["status"].get("phase") == reported["phase"] == "Running"
    return running and status.is_ready(reported) and not status.is_ready(pod["status"])


async def happens(event: asyncio.Event, timeout: float) -> bool:
    try:
        async with asyncio.timeout(timeout):
            return await event.wait()
    except TimeoutError:
        return False


async def main() -> None:
    parser = argparse.ArgumentParser(description="Run the pods of some nodes as processes on this machine.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--node", required=True, help="names, separated by commas")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=8, help="GPUs per node")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS per rank")
    parser.add_argument(
        "--program", action="append", default=[], metavar="NAME=WORDS", help="command to run instead of NAME"
    )
    parser.add_argument("--certificate", type=Path, help="certificate for serving logs, with the key next to it")
    parser.add_argument("--renew", type=float, default=1.0, help="seconds between heartbeats")
    parser.add_argument(
        "--fake", nargs="?", const="{}", type=json.loads, metavar="SCRIPT", help="simulate pods, see kubelet_fake.py"
    )
    options = parser.parse_args()
    programs = {"hftitan-agent": [sys.executable, "-m", "hftitan_trainer.process.agent"]}
    programs |= {name: shlex.split(words) for name, _, words in (text.partition("=") for text in options.program)}
    nodes = {
        name: Node(name, options.workdir.resolve(), programs, options.gpus, options.threads)
        for name in options.node.split(",")
    }
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sys.exit, 0)
    kubelet = Kubelet(Api(options.kubeconfig), nodes, options.renew, options.fake, options.certificate)
    await kubelet.run()


if __name__ == "__main__":
    asyncio.run(main())
