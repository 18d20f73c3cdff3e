"""Objects of gang schedulers on a Kubernetes API server that may not serve their kinds.

A 404 may mean the namespace, the object or the kind. Which of them says the API's own discovery: only when it answers,
and without the kind, is the scheduler known not to be installed.
"""

from __future__ import annotations

from hftitan_operator.core.state import DeletePodGroup, Manifest, Require
from hftitan_operator.kube.api import METADATA_ONLY, ApiError, KubeApi
from hftitan_operator.port import Denied, Unserved

NOT_NOW = frozenset({401, 408, 409, 410, 425, 429})
"""Answers that say nothing against the object: the same request may pass a moment later."""
PLURAL = "podgroups"


def passing(error: ApiError) -> bool:
    """Whether the same request may pass a moment later."""
    return error.status in NOT_NOW or error.status >= 500


async def create(api: KubeApi, manifest: Manifest) -> None:
    """Create a PodGroup. One of this name is the job's own from an earlier try: the name has its uid in it."""
    api_version, metadata = manifest["apiVersion"], manifest["metadata"]
    try:
        await api.request("POST", _path(api_version, metadata["namespace"], PLURAL), manifest, accept=METADATA_ONLY)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            return
        await _refused(api, api_version, PLURAL, f"PodGroup {metadata['name']}", error)


async def delete(api: KubeApi, namespace: str, action: DeletePodGroup) -> None:
    """Delete a PodGroup. One that may not be deleted goes with its job: no attempt waits for it."""
    try:
        await api.request("DELETE", f"{_path(action.api_version, namespace, PLURAL)}/{action.name}")
    except ApiError as error:
        if passing(error):
            raise


async def require(api: KubeApi, namespace: str, action: Require) -> None:
    """Raises Denied when there is no such object in the namespace, Unserved when there can be none."""
    path = f"{_path(action.api_version, namespace, action.resource)}/{action.name}"
    try:
        await api.request("GET", path, accept=METADATA_ONLY)
    except ApiError as error:
        await _refused(api, action.api_version, action.resource, f"namespace {namespace}", error)


async def _refused(api: KubeApi, api_version: str, resource: str, what: str, error: ApiError) -> None:
    if passing(error):
        raise error
    if error.status == 404 and not await _served(api, api_version, resource):
        raise Unserved(f"{what}: there is no {resource} of {api_version} here") from error
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
