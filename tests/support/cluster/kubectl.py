"""A small synchronous API server client for tests: plain dicts in and out, one connection per thread."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

GROUPS = {
    "": "namespaces nodes pods services configmaps secrets serviceaccounts events "
    "persistentvolumes persistentvolumeclaims resourcequotas",
    "admissionregistration.k8s.io": "mutatingwebhookconfigurations validatingwebhookconfigurations",
    "apps": "deployments replicasets",
    "batch": "jobs",
    "apiextensions.k8s.io": "customresourcedefinitions",
    "coordination.k8s.io": "leases",
    "hftitan.io": "hftitanjobs",
    "kueue.x-k8s.io": "clusterqueues localqueues resourceflavors topologies workloads",
    "rbac.authorization.k8s.io": "roles rolebindings clusterroles clusterrolebindings",
    "scheduling.k8s.io": "priorityclasses",
}
VERSIONS = {"hftitan.io": "v1alpha1", "kueue.x-k8s.io": "v1beta2"}
CLUSTER_SCOPED = frozenset(
    [
        "namespaces", "nodes", "persistentvolumes", "customresourcedefinitions", "clusterroles", "clusterrolebindings",
        "priorityclasses", "mutatingwebhookconfigurations", "validatingwebhookconfigurations", "clusterqueues",
        "resourceflavors", "topologies",
    ]
)  # fmt: skip
GROUP_OF = {resource: group for group, resources in GROUPS.items() for resource in resources.split()}


class ApiError(Exception):
    """An error response, with the server's message."""

    def __init__(self, status: int, answer: Any) -> None:
        answer = answer if isinstance(answer, dict) else {"message": str(answer)}
        super().__init__(f"{status} {answer.get('reason', '')}: {answer.get('message', '')}")
        self.status, self.reason, self.message = status, answer.get("reason", ""), answer.get("message", "")


def resource_of(kind: str) -> str:
    lower = kind.lower()
    if lower.endswith("y"):
        return lower[:-1] + "ies"
    return lower + "es" if lower.endswith("ss") else lower + "s"


def path_of(resource: str, name: str = "", namespace: str | None = "default") -> str:
    """Return the URL path of a resource. `namespace=None`: in all namespaces."""
    group = GROUP_OF[resource]
    base = f"/apis/{group}/{VERSIONS.get(group, 'v1')}" if group else "/api/v1"
    if resource not in CLUSTER_SCOPED and namespace:
        base += f"/namespaces/{namespace}"
    return f"{base}/{resource}" + (f"/{name}" if name else "")


class Kubectl:
    def __init__(self, url: str, ca: str, token: str) -> None:
        """`ca`: the certificate in PEM."""
        self._host = urllib.parse.urlsplit(url).netloc
        self._tls = ssl.create_default_context(cadata=ca)
        self._token = token
        self._local = threading.local()

    @classmethod
    def of(cls, kubeconfig: Path) -> Kubectl:
        """Return a client for a kubeconfig written by ControlPlane.kubeconfig."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        return cls(cluster["server"], ca, config["users"][0]["user"]["token"])

    # --- verbs ----------------------------------------------------------------------------------------------

    def get(self, resource: str, name: str, namespace: str = "default") -> Object:
        return self.request("GET", path_of(resource, name, namespace))

    def find(self, resource: str, name: str, namespace: str = "default") -> Object | None:
        """Return the object, or None if it does not exist."""
        try:
            return self.get(resource, name, namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def list(
        self, resource: str, namespace: str | None = "default", *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        query = {"labelSelector": labels, "fieldSelector": fields}
        return self.request("GET", path_of(resource, "", namespace), query=query)["items"]

    def create(self, manifest: Object) -> Object:
        return self.request("POST", self._path(manifest, named=False), manifest)

    def replace(self, manifest: Object) -> Object:
        return self.request("PUT", self._path(manifest), manifest)

    def apply(self, manifest: Object, manager: str = "tests") -> Object:
        """Server-side apply with force."""
        query = {"fieldManager": manager, "force": "true"}
        return self.request("PATCH", self._path(manifest), manifest, "application/apply-patch+yaml", query)

    def upsert(self, manifest: Object) -> Object:
        """Create or replace an object that an old server cannot take by server-side apply."""
        try:
            return self.create(manifest)
        except ApiError as error:
            if error.status != 409:
                raise
        found = self.request("GET", self._path(manifest))
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        return self.replace({**manifest, "metadata": {**manifest["metadata"], **version}})

    def patch(
        self, resource: str, name: str, body: Object, namespace: str = "default", *, subresource: str = ""
    ) -> Object:
        """Send a JSON merge patch."""
        path = path_of(resource, name, namespace) + (f"/{subresource}" if subresource else "")
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(
        self,
        resource: str,
        name: str,
        namespace: str = "default",
        *,
        grace: int | None = None,
        propagation: str = "Background",
    ) -> Object:
        body: Object = {"propagationPolicy": propagation}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        return self.request("DELETE", path_of(resource, name, namespace), body)

    def delete_quietly(self, resource: str, name: str, namespace: str = "default", *, grace: int | None = None) -> None:
        """Delete an object, ignoring one that does not exist."""
        try:
            self.delete(resource, name, namespace, grace=grace)
        except ApiError as error:
            if error.status != 404:
                raise

    def delete_all(self, resource: str, namespace: str = "default", *, labels: str = "", grace: int = 0) -> None:
        query = {"labelSelector": labels}
        self.request("DELETE", path_of(resource, "", namespace), {"gracePeriodSeconds": grace}, query=query)

    def make_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> str:
        """Create a namespace and wait for its default service account, which pods need."""
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}})
        self.wait(lambda: self.find("serviceaccounts", "default", name), f"the service account of {name}")
        return name

    def make_claim(self, name: str, namespace: str = "default") -> str:
        """Create a bound PersistentVolumeClaim. Only the process kubelet can use its volume."""
        size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
        claim = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "name": name, "namespace": namespace}
        volume = f"{namespace}-{name}"
        spec: Object = {"capacity": size, "accessModes": modes, "claimRef": claim, "storageClassName": ""}
        spec |= {"hostPath": {"path": "/nowhere"}, "persistentVolumeReclaimPolicy": "Retain"}
        self.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec})
        spec = {"accessModes": modes, "resources": {"requests": size}, "volumeName": volume, "storageClassName": ""}
        metadata = {"name": name, "namespace": namespace}
        self.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
        self.wait_for("persistentvolumeclaims", name, lambda c: c["status"].get("phase") == "Bound", namespace)
        return name

    def wait(self, condition: Callable[[], Any], what: str = "the condition", timeout: float = 30.0) -> Any:
        """Wait for the first true value of `condition()` and return it."""
        return wait(condition, what, timeout)

    def wait_for(
        self, resource: str, name: str, condition: Callable[[Object], Any], namespace: str = "default",
        timeout: float = 30.0,
    ) -> Object:  # fmt: skip
        """Wait until `condition(object)` is true and return the object. The error has its last state."""
        deadline = time.monotonic() + timeout
        while True:
            found = self.find(resource, name, namespace)
            if found is not None and condition(found):
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"timeout after {timeout:g} s for {resource}/{name}: {json.dumps(found)[:2000]}")
            time.sleep(0.03)

    def wait_gone(self, resource: str, name: str, namespace: str = "default", timeout: float = 30.0) -> None:
        self.wait(lambda: self.find(resource, name, namespace) is None, f"the deletion of {resource}/{name}", timeout)

    # --- transport ------------------------------------------------------------------------------------------

    def _path(self, manifest: Object, *, named: bool = True) -> str:
        metadata = manifest["metadata"]
        name = metadata["name"] if named else ""
        return path_of(resource_of(manifest["kind"]), name, metadata.get("namespace", "default"))

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Any:
        if query := {k: v for k, v in (query or {}).items() if v}:
            path += "?" + urllib.parse.urlencode(query)
        headers = {"Authorization": f"Bearer {self._token}", "Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        data = None if body is None else json.dumps(body)
        for last in (False, True):
            connection = getattr(self._local, "connection", None)
            fresh = connection is None
            if connection is None:
                connection = http.client.HTTPSConnection(self._host, context=self._tls, timeout=30)
                self._local.connection = connection
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                text = answer.read()
                break
            except (OSError, http.client.HTTPException):
                # A reused connection may be stale after a restart of the server; an error on a new one is real.
                connection.close()
                self._local.connection = None
                if fresh or last:
                    raise
        kind = answer.headers.get("Content-Type", "")
        document = json.loads(text) if kind.startswith("application/json") else text.decode()
        if answer.status >= 400:
            raise ApiError(answer.status, document)
        return document


def wait(condition: Callable[[], Any], what: str = "the condition", timeout: float = 30.0) -> Any:
    """Wait for the first true value of `condition()` and return it. Raises AssertionError naming `what`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"timeout after {timeout:g} s waiting for {what}")
        time.sleep(0.03)
    return value
