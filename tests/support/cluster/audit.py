"""Watches jobs and their pods on the API server, independently of the operator, and records forbidden states.

    with Audit(plane) as audit:
        ...
        assert audit.violations == []

A watch reports the changes of pods in order, so the state after each event is a state that existed. Two attempts at
the same time are therefore detected, however short the overlap is. Nothing is detected while the API server is down.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from control_plane import ControlPlane
from kubectl import path_of

from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE_INDEX

Object = dict[str, Any]
Name = tuple[str, str]
"""Namespace and name."""
TERMINAL = ("Succeeded", "Failed")
RETRY_SECONDS = 0.1
SILENCE_SECONDS = 30.0


@dataclass
class History:
    """The observed history of one job."""

    made: dict[tuple[int, int], str] = field(default_factory=dict)
    """(attempt, index) -> uid of the pod."""
    unfinished: dict[str, int] = field(default_factory=dict)
    """uid -> attempt, of each pod that exists and has not ended."""
    nodes: int | None = None
    attempt: int = 0
    restarts: int = 0
    end: str | None = None


class Audit:
    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.violations: list[str] = []
        self.jobs: dict[Name, Object] = {}
        self.pods: dict[Name, Object] = {}
        self.last: dict[Name, Object] = {}
        """The last observed state of each job, also of deleted jobs."""
        self._histories: dict[str, History] = defaultdict(History)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=arguments, daemon=True)
            for arguments in (
                ("hftitanjobs", "", self.jobs, self._check_job),
                ("pods", LABEL_JOB, self.pods, self._check_pod),
            )
        ]

    def __enter__(self) -> Audit:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # the threads end after their next event, or with the process

    def job(self, namespace: str, name: str) -> Object | None:
        return self.jobs.get((namespace, name))

    def pods_of(self, job: Object) -> list[Object]:
        with self._lock:
            return [pod for pod in self.pods.values() if owner(pod) == job["metadata"]["uid"]]

    # --- forbidden states -----------------------------------------------------------------------------------

    def _check_job(self, job: Object, *, gone: bool) -> None:
        metadata, status = job["metadata"], job.get("status") or {}
        self.last[metadata["namespace"], metadata["name"]] = job
        history = self._histories[metadata["uid"]]
        history.nodes = job["spec"]["mesh"]["nodes"]
        attempt, restarts, phase = status.get("attempt", 0), status.get("restarts", 0), status.get("phase")
        if attempt < history.attempt:
            self._violated(job, f"status.attempt decreased from {history.attempt} to {attempt}")
        if restarts < history.restarts:
            self._violated(job, f"status.restarts decreased from {history.restarts} to {restarts}")
        if history.end and phase != history.end:
            self._violated(job, f"status.phase changed from {history.end} to {phase}")
        history.attempt, history.restarts = attempt, restarts
        history.end = phase if phase in TERMINAL else history.end

    def _check_pod(self, pod: Object, *, gone: bool) -> None:
        labels, uid = pod["metadata"]["labels"], pod["metadata"]["uid"]
        attempt, index = int(labels[LABEL_ATTEMPT]), int(labels[LABEL_NODE_INDEX])
        history = self._histories[owner(pod) or ""]
        if history.made.setdefault((attempt, index), uid) != uid:
            self._violated(pod, "was created a second time")
            history.made[attempt, index] = uid
        if index >= (history.nodes or index + 1):
            self._violated(pod, f"has an index too high for {history.nodes} nodes")
        if attempt < max(made for made, _ in history.made) and uid not in history.unfinished and not finished(pod):
            self._violated(pod, "was created after the pods of a later attempt")
        if gone or finished(pod):
            history.unfinished.pop(uid, None)
            return
        history.unfinished[uid] = attempt
        attempts = sorted(set(history.unfinished.values()))
        if len(attempts) > 1:
            self._violated(pod, f"runs while attempts {attempts} exist at the same time")

    def _violated(self, thing: Object, what: str) -> None:
        metadata = thing["metadata"]
        self.violations.append(
            f"{metadata['namespace']}/{metadata['name']} (version {metadata['resourceVersion']}): {what}"
        )

    # --- list and watch -------------------------------------------------------------------------------------

    def _follow(self, resource: str, label: str, held: dict[Name, Object], check: Callable[..., None]) -> None:
        version = ""
        while not self._ended.is_set():
            try:
                if not version:
                    version = self._list(resource, label, held, check)
                query = f"&watch=1&allowWatchBookmarks=true&timeoutSeconds=600&resourceVersion={version}"
                with self._open(resource, label, query) as stream:
                    for line in stream:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            version = ""
                            break
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            self._put(event["object"], held, check, gone=event["type"] == "DELETED")
                        if self._ended.is_set():
                            return
            except (OSError, ValueError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    version = ""
                time.sleep(RETRY_SECONDS)

    def _list(self, resource: str, label: str, held: dict[Name, Object], check: Callable[..., None]) -> str:
        with self._open(resource, label, "") as answer:
            document = json.load(answer)
        there = {item["metadata"]["uid"] for item in document["items"]}
        for old in [item for item in held.values() if item["metadata"]["uid"] not in there]:
            self._put(old, held, check, gone=True)
        for item in sorted(
            document["items"], key=finished, reverse=True
        ):  # otherwise two attempts would seem to overlap
            self._put(item, held, check, gone=False)
        return str(document["metadata"]["resourceVersion"])

    def _put(self, item: Object, held: dict[Name, Object], check: Callable[..., None], *, gone: bool) -> None:
        name = (item["metadata"]["namespace"], item["metadata"]["name"])
        with self._lock:
            check(item, gone=gone)
            if gone:
                held.pop(name, None)
            else:
                held[name] = item

    def _open(self, resource: str, label: str, query: str) -> Any:
        request = urllib.request.Request(
            f"{self._plane.url}{path_of(resource, '', None)}?labelSelector={label}{query}",
            headers={"Authorization": f"Bearer {self._plane.admin_token}"},
        )
        tls = ssl.create_default_context(cafile=self._plane.ca)
        return urllib.request.urlopen(request, timeout=SILENCE_SECONDS, context=tls)


# --- at the end ---------------------------------------------------------------------------------------------


def orphans(plane: ControlPlane, namespaces: Collection[str]) -> list[str]:
    """Return the objects in these namespaces that belong to deleted jobs."""
    admin = plane.admin
    jobs = {job["metadata"]["uid"] for job in admin.list("hftitanjobs", None)}
    return [
        f"{resource} {item['metadata']['namespace']}/{item['metadata']['name']}"
        for resource in ("pods", "services", "configmaps")
        for item in admin.list(resource, None, labels=LABEL_JOB)
        if item["metadata"]["namespace"] in namespaces and owner(item) not in jobs
    ]


def objects(plane: ControlPlane, namespace: str, job: str) -> set[str]:
    """Return all objects with the job's label, as `pods x-1-0`."""
    return {
        f"{resource} {item['metadata']['name']}"
        for resource in ("pods", "services", "configmaps")
        for item in plane.admin.list(resource, namespace, labels=f"{LABEL_JOB}={job}")
    }


def owner(thing: Object) -> str | None:
    """Return the uid of the job that owns an object."""
    return next((ref["uid"] for ref in thing["metadata"].get("ownerReferences", ()) if ref.get("controller")), None)


def finished(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in TERMINAL
