"""Client for the jobs of a cluster, with the user's kubeconfig and namespace. Each error message names the fix."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from hftitan_api.models import GROUP, KIND, PLURAL, VERSION
from hftitan_operator.core import naming
from hftitan_operator.kube.api import MERGE_PATCH, ApiError, Json, KubeApi, Method, user_access

RESOURCE = f"{PLURAL}.{GROUP}"
PAGE = 500
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""Pauses between reconnects of a watch while the API server is down; the last one repeats."""
SHOWN_NAMES = 8


class Trouble(Exception):
    """An error that ends a command: lines for stderr, and the exit code."""

    def __init__(self, *lines: str, code: int = 1) -> None:
        super().__init__("\n".join(lines))
        self.lines, self.code = lines, code


@dataclass(frozen=True, slots=True)
class Access:
    """The cluster and namespace options of a command; None where the user set none."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


@contextlib.asynccontextmanager
async def connect(access: Access) -> AsyncIterator[Cluster]:
    """Yield a Cluster. Raises Trouble without a usable kubeconfig. Sends no request yet."""
    try:
        configuration, namespace = await user_access(access.kubeconfig, access.context)
        api = KubeApi(configuration)
    except OSError as error:
        raise Trouble(str(error)) from error
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(api)  # reads the certificates
        except OSError as error:
            raise Trouble(f"cannot read a certificate of the kubeconfig: {error}") from error
        yield Cluster(api, access.namespace or namespace)


class Cluster:
    """The requests of the commands. Each passes its RBAC verb and resource for the error message. Raises Trouble."""

    def __init__(self, api: KubeApi, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    # --- jobs -----------------------------------------------------------------------------------------------

    async def job(self, name: str) -> Json:
        return await self._on_job("get", "GET", name)

    async def jobs(self, *, everywhere: bool = False, labels: str | None = None) -> Json:
        """Return the API server's list, with all pages merged."""
        path = f"/apis/{GROUP}/{VERSION}/{PLURAL}" if everywhere else self._jobs()
        params = {"labelSelector": labels} if labels else {}
        return await self._list(path, params, "" if everywhere else self.namespace)

    async def create(self, job: Json, *, dry_run: bool = False) -> Json:
        params = {"dryRun": "All"} if dry_run else {}
        return await self._ask("create", RESOURCE, "POST", self._jobs(), job, params, name=job["metadata"]["name"])

    async def set_suspend(self, name: str, suspend: bool) -> Json:
        return await self._on_job("patch", "PATCH", name, {"spec": {"runPolicy": {"suspend": suspend}}})

    async def delete(self, name: str) -> Json:
        return await self._on_job("delete", "DELETE", name, {"propagationPolicy": "Background"})

    async def follow(self, name: str) -> AsyncIterator[Json | None]:
        """Yield the job now and after each change, and None when it is deleted. Reconnects when a watch ends."""
        found = await self.job(name)
        uid, failures = found["metadata"]["uid"], 0
        yield found
        while True:
            version = found["metadata"]["resourceVersion"]
            params = {"fieldSelector": f"metadata.name={name}", "resourceVersion": version}
            try:
                async for event in self.api.watch(self._jobs(), params, "application/json"):
                    failures = 0
                    if event["type"] == "DELETED" or event["object"]["metadata"]["uid"] != uid:
                        yield None
                        return
                    yield event["object"]
            except ApiError as error:
                if error.status in (401, 403):
                    raise explain(error, "watch", RESOURCE, name, self.namespace, self.api.server) from error
            except OSError:
                pass
            while True:  # the watch ended: after its usual timeout, or because the server stopped
                await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)] if failures else 0)
                try:
                    found = await self.api.request("GET", f"{self._jobs()}/{name}")
                    break
                except ApiError as error:
                    if error.status == 404:
                        yield None
                        return
                    if error.status < 500 and error.status != 429:
                        raise explain(error, "get", RESOURCE, name, self.namespace, self.api.server) from error
                except OSError:
                    pass
                failures += 1
            failures += 1
            if found["metadata"]["uid"] != uid:
                yield None
                return
            if found["metadata"]["resourceVersion"] != version:
                yield found

    # --- what belongs to a job --------------------------------------------------------------------------------

    async def pods(self, job: str) -> list[Json]:
        labels = {"labelSelector": f"{naming.LABEL_JOB}={job}"}
        listed = await self._list(f"/api/v1/namespaces/{self.namespace}/pods", labels, self.namespace, "pods")
        return list(listed["items"])

    async def pod(self, name: str) -> Json:
        return await self._ask("get", "pods", "GET", self.pod_path(name), name=name)

    async def events(self, **fields: str) -> list[Json]:
        """Return the events of objects with these fields (kind, name), ordered by when they were last seen."""
        selector = ",".join(f"involvedObject.{key}={value}" for key, value in fields.items())
        path = f"/api/v1/namespaces/{self.namespace}/events"
        listed = await self._list(path, {"fieldSelector": selector} if selector else {}, self.namespace, "events")
        return sorted(listed["items"], key=_seen)

    async def events_of(self, job: str) -> list[Json]:
        """Return the events of the job and of its pods, also deleted ones. A pod's events explain why it is pending."""
        found = await asyncio.gather(self.events(kind=KIND, name=job), self.events(kind="Pod"))
        pods = [event for event in found[1] if naming.is_pod_of(event["involvedObject"].get("name", ""), job)]
        return sorted([*found[0], *pods], key=_seen)

    def pod_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    # --- requests -------------------------------------------------------------------------------------------

    def _jobs(self) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    async def _on_job(self, verb: str, method: Method, name: str, body: Json | None = None) -> Json:
        try:
            return await self._ask(verb, RESOURCE, method, f"{self._jobs()}/{name}", body, name=name)
        except NotFound as error:
            names: list[str] = []
            with contextlib.suppress(Trouble):  # without permission to list, the message has no names
                names = [each["metadata"]["name"] for each in (await self.jobs())["items"]]
            raise Trouble(not_found(name, self.namespace, names)) from error

    async def _list(self, path: str, params: Mapping[str, str], namespace: str, resource: str = RESOURCE) -> Json:
        params = {**params, "limit": str(PAGE)}
        whole = page = await self._ask("list", resource, "GET", path, params=params, namespace=namespace)
        while page["metadata"].get("continue"):
            params = {**params, "continue": page["metadata"]["continue"]}
            page = await self._ask("list", resource, "GET", path, params=params, namespace=namespace)
            whole["items"] += page["items"]
        whole["metadata"].pop("continue", None)
        whole["metadata"].pop("remainingItemCount", None)
        return whole

    async def _ask(
        self,
        verb: str,
        resource: str,
        method: Method,
        path: str,
        body: Json | None = None,
        params: Mapping[str, str] | None = None,
        *,
        name: str = "",
        namespace: str | None = None,
    ) -> Json:
        where = self.namespace if namespace is None else namespace
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            return await self.api.request(method, path, body, params=params, content_type=kind)
        except OSError as error:
            raise explain(error, verb, resource, name, where, self.api.server) from error


def _seen(event: Json) -> tuple[str, int]:
    when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
    version = event["metadata"].get("resourceVersion", "0")
    return str(when), int(version) if version.isdigit() else 0


# --- errors -------------------------------------------------------------------------------------------------


class NotFound(Trouble):
    """The kind is served, but the object does not exist."""


def explain(error: OSError, verb: str, resource: str, name: str, namespace: str, server: str) -> Trouble:
    """Turn the error of a request into a message with a fix. An empty `namespace` means all namespaces."""
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    if not isinstance(error, ApiError):
        return Trouble(
            f"no answer from {server}: {error}",
            "check that the cluster is running, and that --context is the right one",
        )
    reply = str(error)
    if error.status == 401:
        return Trouble(f"{server} rejected your credentials ({reply}); log in again, or choose another --context")
    if error.status == 403 and error.reason in ("Forbidden", "") and "is forbidden: User" in reply:
        return Trouble(
            f"you do not have permission to {verb} {resource} {where}: {reply}",
            f"ask the cluster's administrator for the verb {verb!r} on {resource}",
        )
    if error.status == 404 and 'namespaces "' in reply:
        return Trouble(f"namespace {namespace} does not exist; create it with `kubectl create namespace {namespace}`")
    if error.status == 404 and '" not found' not in reply:
        return Trouble(
            f"{server} has no {resource}: the HFTitanJob CRD is not installed",
            "install it with `hftitan crd | kubectl apply -f -`",
        )
    if error.status == 404:
        return NotFound(f"no {resource} {name} {where}")
    if error.reason == "AlreadyExists":
        return Trouble(
            f"job {name} already exists {where}; delete it with `hftitan delete {name}`, or submit under another name "
            "with --set metadata.name=NAME"
        )
    refused = verb == "create" and error.status in (400, 422)
    return Trouble(f"{verb} {resource} {name}: {reply}", code=2 if refused else 1)


def not_found(name: str, namespace: str, names: Sequence[str]) -> str:
    """Return the error for a missing job, with similar names, else with some existing ones."""
    text = f"no job {name} in namespace {namespace}"
    near = difflib.get_close_matches(name, names, 3, 0.6) or [each for each in names if name in each][:3]
    if near:
        return f"{text}; did you mean {' or '.join(near)}?"
    if names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        return f"{text}; existing jobs: {', '.join(sorted(names)[:SHOWN_NAMES])}{more}"
    return f"{text}; no job is visible there; `hftitan list -A` lists the jobs of all namespaces"
