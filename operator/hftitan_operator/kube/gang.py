"""Creates, deletes and checks objects of gang schedulers, whose kinds the API server may not serve.

A 404 may mean that the namespace, the object or the kind is missing. API discovery decides: the scheduler counts as not
installed only if discovery answers and does not list the kind.
"""

from __future__ import annotations

from hftitan_operator.core.rendering import scheduling
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
    """Create a PodGroup in the first version of its API that the cluster serves. An existing one belongs to the job,
    from an earlier pass: its name contains the job's UID."""
    metadata = manifest["metadata"]
    unserved: Unserved | None = None
    for api_version in scheduling.versions(manifest["apiVersion"]):
        group = scheduling.in_version(manifest, api_version)
        path = _path(api_version, metadata["namespace"], PLURAL)
        try:
            if scheduling.CONSTRAINTS in group["spec"]:
                await _check_constraints(api, path, group)
            await api.request("POST", path, group, accept=METADATA_ONLY)
            return
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return
            try:
                await _refused(api, api_version, PLURAL, f"PodGroup {metadata['name']}", error)
            except Unserved as found:
                unserved = unserved or found
    if unserved:
        raise unserved


async def _check_constraints(api: KubeApi, path: str, group: Manifest) -> None:
    """Raise Denied if the API server would drop the topology, which it does without an error."""
    kept = await api.request("POST", path, group, params={"dryRun": "All"})
    if scheduling.CONSTRAINTS not in kept["spec"]:
        raise Denied(
            f"PodGroup {group['metadata']['name']}: this API server ignores spec.scheduling.topologyKey; enable its "
            "feature gate TopologyAwareWorkloadScheduling, or remove the field"
        )


async def delete(api: KubeApi, namespace: str, action: DeletePodGroup) -> None:
    """Delete a PodGroup or Workload. If the server rejects that, it is deleted with its job or its pods."""
    for api_version in scheduling.versions(action.api_version):
        try:
            await api.request("DELETE", f"{_path(api_version, namespace, action.resource)}/{action.name}")
            return
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
