"""Creates, deletes and checks objects of gang schedulers, whose kinds the API server may not serve.

A 404 may mean that the namespace, the object or the kind is missing. API discovery decides: the scheduler counts as not
installed only if discovery answers and does not list the kind.
"""

from __future__ import annotations

from hftitan_operator.core.state import DeletePodGroup, Manifest, Require
from hftitan_operator.kube.api import METADATA_ONLY, ApiError, KubeApi
from hftitan_operator.port import Denied, Unserved

NOT_NOW = frozenset({401, 408, 409, 410, 425, 429})
"""Statuses that do not reject the object: a retry may succeed."""
PLURAL = "podgroups"


def passing(error: ApiError) -> bool:
    """Return whether a retry of the same request may succeed."""
    return error.status in NOT_NOW or error.status >= 500


async def create(api: KubeApi, manifest: Manifest) -> None:
    """Create a PodGroup. An existing one belongs to the job, from an earlier pass: its name contains the job's UID."""
    api_version, metadata = manifest["apiVersion"], manifest["metadata"]
    try:
        await api.request("POST", _path(api_version, metadata["namespace"], PLURAL), manifest, accept=METADATA_ONLY)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            return
        await _refused(api, api_version, PLURAL, f"PodGroup {metadata['name']}", error)


async def delete(api: KubeApi, namespace: str, action: DeletePodGroup) -> None:
    """Delete a PodGroup. If the server rejects that, it is deleted with its job; no attempt waits for it."""
    try:
        await api.request("DELETE", f"{_path(action.api_version, namespace, PLURAL)}/{action.name}")
    except ApiError as error:
        if passing(error):
            raise


async def require(api: KubeApi, namespace: str, action: Require) -> None:
    """Raise Denied if the object does not exist in the namespace, Unserved if the cluster does not serve its kind."""
    path = f"{_path(action.api_version, namespace, action.resource)}/{action.name}"
    try:
        await api.request("GET", path, accept=METADATA_ONLY)
    except ApiError as error:
        await _refused(api, action.api_version, action.resource, f"namespace {namespace}", error)


async def _refused(api: KubeApi, api_version: str, resource: str, what: str, error: ApiError) -> None:
    if passing(error):
        raise error
    if error.status == 404 and not await _served(api, api_version, resource):
        raise Unserved(f"{what}: this cluster does not serve {resource} of {api_version}") from error
    raise Denied(f"{what}: {error}") from error


async def _served(api: KubeApi, api_version: str, resource: str) -> bool:
    try:
        known = await api.request("GET", f"/apis/{api_version}")
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return any(entry.get("name") == resource for entry in known.get("resources", ()))


def _path(api_version: str, namespace: str, resource: str) -> str:
    return f"/apis/{api_version}/namespaces/{namespace}/{resource}"
