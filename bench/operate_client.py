"""Parts of bench/operate.py: a minimal client of the API server, a watch on pods, and the operator's process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import aiohttp
from control_plane import ControlPlane
from operate_objects import Object, job, jobs_path, pods_path
from operator_process import OperatorProcess
from prometheus_client.parser import text_string_to_metric_families

from hftitan_api.metric_names import API_REQUESTS, QUEUE_DEPTH, RECONCILE_DURATION
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import access

AT_ONCE = 64
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
END_SECONDS = 10.0


class Client:
    """A JSON client with at most AT_ONCE requests at a time."""

    def __init__(self, server: str, ca: Path, token: str) -> None:
        self._server = server
        self._gate = asyncio.Semaphore(AT_ONCE)
        connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cafile=ca))
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)

    async def close(self) -> None:
        await self.session.close()

    async def call(self, method: str, path: str, body: Object | None = None) -> Object:
        data = None if body is None else json.dumps(body)
        async with (
            self._gate,
            self.session.request(
                method, self._server + path, data=data, headers={"Content-Type": "application/json"}
            ) as answer,
        ):
            text = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return json.loads(text) if method == "GET" else {}

    async def create(self, path: str, objects: Iterable[Object]) -> None:
        """Create all objects as fast as possible."""
        await asyncio.gather(*(self.call("POST", path, item) for item in objects))

    async def warm_up(self) -> None:
        """Open the connections."""
        await asyncio.gather(*(self.call("GET", "/version") for _ in range(AT_ONCE)))

    async def empty(self, namespace: str, collections: Iterable[str]) -> None:
        """Delete these collections, then all other objects of a namespace. Nothing may run that recreates them."""
        options = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        core = f"/api/v1/namespaces/{namespace}"
        for collection in collections:
            await self.call("DELETE", collection, options)
        for kind in ("pods", "configmaps", "events"):
            while found := (await self.call("GET", f"{core}/{kind}?limit=1"))["items"]:
                with contextlib.suppress(RuntimeError):  # 504: the server needs longer than its limit for many objects
                    await self.call("DELETE", f"{core}/{kind}", options)
                if "finalizers" in found[0]["metadata"]:  # of the Job controller
                    await self._release(namespace)
        services = (await self.call("GET", f"{core}/services"))["items"]
        await asyncio.gather(*(self.call("DELETE", f"{core}/services/{s['metadata']['name']}") for s in services))

    async def _release(self, namespace: str) -> None:
        """Remove the finalizers of all pods of a namespace. A running Job controller may remove some first."""
        pods = (await self.call("GET", pods_path(namespace)))["items"]
        for pod in pods:
            pod["metadata"]["finalizers"] = []
        updates = (self.call("PUT", pods_path(namespace, pod["metadata"]["name"]), pod) for pod in pods)
        await asyncio.gather(*updates, return_exceptions=True)


class PodWatch:
    """Records when each pod of a namespace was added, by job and attempt. `async with` runs the watch."""

    def __init__(self, client: Client, server: str, namespace: str) -> None:
        self.added: dict[tuple[str, int], dict[str, float]] = {}
        """(job, attempt) -> pod -> time.perf_counter()."""
        self.total = 0
        self.on_added: Callable[[Object], Awaitable[None]] | None = None
        self._client, self._url = client, server + pods_path(namespace)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> PodWatch:
        opened = asyncio.Event()
        self._task = asyncio.create_task(self._run(opened))
        await opened.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def count(self, job: str, attempt: int = 1) -> int:
        return len(self.added.get((job, attempt), ()))

    def last(self, job: str, attempt: int = 1) -> float:
        """Return the time at which the newest pod was seen."""
        return max(self.added[job, attempt].values())

    async def until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def _run(self, opened: asyncio.Event) -> None:
        parameters = {"watch": "1", "labelSelector": naming.LABEL_JOB}
        headers = {"Accept": METADATA_ONLY}
        while True:  # the API server ends a watch whose client is slow; the next one begins with all pods
            async with self._client.session.get(self._url, params=parameters, headers=headers) as answer:
                assert answer.status == 200, answer.status
                opened.set()
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._see(json.loads(line))
            print("the watch of the client was interrupted; its times are too long", file=sys.stderr, flush=True)

    def _see(self, event: Object) -> None:
        if event["type"] == "ERROR":
            raise RuntimeError(f"the watch failed: {event['object']}")
        if event["type"] != "ADDED":
            return
        now, metadata = time.perf_counter(), event["object"]["metadata"]
        job = metadata["labels"][naming.LABEL_JOB], int(metadata["labels"][naming.LABEL_ATTEMPT])
        pods = self.added.setdefault(job, {})
        if metadata["name"] in pods:  # the first event of a new watch
            return
        pods[metadata["name"]] = now
        self.total += 1
        if self.on_added is not None:
            answer = asyncio.ensure_future(self.on_added(metadata))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
        self._news.set()


def cpu_seconds(*pids: int) -> float:
    """Return the CPU time of these processes so far."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


class Operator(OperatorProcess):
    """The operator with the permissions of `hftitan rbac`. `async with` starts it, waits until ready, and stops it."""

    async def __aenter__(self) -> Operator:
        self.started = time.perf_counter()
        self.start()
        await asyncio.to_thread(self.wait_ready)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.terminate()
        try:
            await asyncio.to_thread(self.ended, END_SECONDS)
        finally:
            self.kill()

    path = staticmethod(jobs_path)
    job = staticmethod(job)

    @staticmethod
    def collections(namespace: str) -> Iterable[str]:
        """Return the paths of the jobs, which `Client.empty` deletes."""
        return (jobs_path(namespace),)

    @property
    def pids(self) -> list[int]:
        return [self.pid]

    async def metrics(self) -> dict[str, float]:
        """Return passes (reconciliations so far), depth (waiting jobs), writes and reads (API requests)."""
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = await answer.text()
        found = dict.fromkeys(("passes", "depth", "writes", "reads"), 0.0)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{RECONCILE_DURATION.name}_count":
                    found["passes"] += sample.value
                elif sample.name == QUEUE_DEPTH.name:
                    found["depth"] += sample.value
                elif sample.name == API_REQUESTS.name:
                    found["reads" if sample.labels["method"] == "GET" else "writes"] += sample.value
        return found

    async def quiet(self, passes: float = 0, seconds: float = 120) -> None:
        """Wait until no job is queued and no write has happened for 0.5 s, after at least `passes` reconciliations."""
        last: dict[str, float] = {}
        async with asyncio.timeout(seconds):
            while True:
                found = await self.metrics()
                if found["passes"] >= passes and not found["depth"] and found["writes"] == last.get("writes"):
                    return
                last = found
                await asyncio.sleep(0.5)

    def memory(self) -> tuple[float, float]:
        """Return the resident memory in MiB, now and at its peak."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def grant(plane: ControlPlane) -> tuple[Path, str]:
    """Grant the permissions of `hftitan rbac`. Return a kubeconfig of the operator's service account, and its user."""
    account = access.Account()
    plane.admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": account.namespace}})
    for item in access.cluster_wide(account):
        plane.admin.upsert(item)
    user = f"system:serviceaccount:{account.namespace}:{account.name}"
    return plane.kubeconfig(user), user
